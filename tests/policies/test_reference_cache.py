"""Reference log-probabilities on disk: found again, keyed by all they depend on, never trusted when damaged."""

import pytest
import torch
from tiny_models import one_thread, tiny, variable_length_batch  # noqa: F401

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.reference_cache import ReferenceRows, cached_reference_log_probs


@pytest.fixture
def policy():
    return LanguageModelPolicy(tiny("gpt2"), end_token=0, max_new_tokens=6).frozen()


@pytest.fixture
def computed(monkeypatch):
    """A list that grows by one if a computation is necessary, whatever its number of blocks."""
    calls, real = [], ReferenceRows._compute

    def compute(self, rows):
        if self not in calls:
            calls.append(self)
        real(self, rows)

    monkeypatch.setattr(ReferenceRows, "_compute", compute)
    return calls


def test_the_second_call_reads_what_the_first_computed(policy, computed, tmp_path):
    prompts, responses = variable_length_batch()
    first = cached_reference_log_probs(policy, (prompts, responses), tmp_path / "cache", 2)
    again = cached_reference_log_probs(policy, (prompts, responses), tmp_path / "cache", 2)
    assert len(computed) == 1 and torch.equal(first, again)
    assert torch.allclose(first, policy.log_prob(prompts, responses), atol=1e-5) and first.shape == (3, 4)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # and no half-written file beside it
    # Wider padding and pairs in place of two sets are the same data.
    pairs = Pairs(prompts, responses.take(torch.tensor([[0, 1]] * 3)))
    wide = (prompts.pad_to(40), pairs.responses.pad_to(40))
    a = cached_reference_log_probs(policy, pairs, tmp_path / "cache", 1)
    b = cached_reference_log_probs(policy, wide, tmp_path / "cache", 1)
    assert len(computed) == 2 and torch.equal(a, b) and a.shape == (3, 2)


def test_other_weights_ids_settings_or_lengths_are_another_key(policy, computed, tmp_path):
    prompts, responses = variable_length_batch()
    cached_reference_log_probs(policy, (prompts, responses), tmp_path, 2)
    moved = policy.copy()
    with torch.no_grad():
        next(moved.parameters())[0, 0] += 1e-3
    changed = Tokens(responses.ids.clone(), responses.mask)
    changed.ids[0, 0, 0] = (changed.ids[0, 0, 0] + 1) % 37
    shorter = Tokens(responses.ids, responses.mask.clone())
    shorter.mask[0, 0, 1:] = False
    cut = LanguageModelPolicy(policy.model, end_token=0, max_new_tokens=6, vocab_size=36)
    small = responses.ids.clamp(max=35)
    for reference, data in [
        (moved, (prompts, responses)),
        (policy, (prompts, changed)),
        (policy, (prompts, shorter)),
        (policy, (prompts, Tokens(small, responses.mask))),
        (cut, (prompts, Tokens(small, responses.mask))),
    ]:
        before = len(computed)
        found = cached_reference_log_probs(reference, data, tmp_path, 2)
        assert len(computed) == before + 1
        assert torch.allclose(found, reference.log_prob(*data), atol=1e-5)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_a_damaged_file_is_computed_again_and_mended(policy, computed, tmp_path, damage):
    data = variable_length_batch()
    first = cached_reference_log_probs(policy, data, tmp_path, 2)
    (file,) = tmp_path.iterdir()
    good = file.read_bytes()
    if damage == "other":  # a whole, valid file of other numbers
        from safetensors.torch import save

        file.write_bytes(save({"log_probs": first + 1}, {"sha256": "0" * 64}))
    else:
        flipped = good[:-1] + bytes([good[-1] ^ 1])
        file.write_bytes({"cut": good[:-3], "flip": flipped, "empty": b""}[damage])
    assert torch.equal(cached_reference_log_probs(policy, data, tmp_path, 2), first)
    assert len(computed) == 2 and file.read_bytes() == good


def test_without_a_folder_nothing_is_written_and_errors_name_the_mend(policy, tmp_path):
    prompts, responses = variable_length_batch()
    assert cached_reference_log_probs(policy, (prompts, responses), None, 2).shape == (3, 4)
    with pytest.raises(LabError, match="no pairs or prompts"):
        cached_reference_log_probs(policy, (prompts[:0], responses[:0]), None, 2)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(LabError, match="could not be written"):
        cached_reference_log_probs(policy, (prompts, responses), blocked / "sub", 2)


def test_other_prompts_masks_and_architectures_are_another_key(policy, computed, tmp_path):
    """Each of these has the same ids, shapes or weights as what is there: a prompt with another token; a response
    that ends in the id 0 where the other is padded; a model whose heads are twice as many with the same weights."""
    prompts, responses = Tokens.from_lists([[3, 4], [5, 6]]), Tokens.from_lists([[[7, 8]], [[9]]])
    cached_reference_log_probs(policy, (prompts, responses), tmp_path, 2)
    moved = Tokens(prompts.ids + torch.tensor([[0, 1], [0, 0]]), prompts.mask)
    whole = Tokens.full(responses.ids)
    heads = policy.copy().frozen()
    heads.model.config.n_head = 4
    for layer in heads.model.transformer.h:
        layer.attn.num_heads, layer.attn.head_dim = 4, layer.attn.head_dim // 2
        layer.attn.scaling = layer.attn.head_dim**-0.5
    known = {policy.log_prob(prompts, responses)}
    for reference, data in ((policy, (moved, responses)), (policy, (prompts, whole)), (heads, (prompts, responses))):
        before = len(computed)
        found = cached_reference_log_probs(reference, data, tmp_path, 2)
        assert len(computed) == before + 1
        expected = reference.log_prob(*data)
        assert torch.allclose(found, expected, atol=1e-5)
        assert all((expected - other).abs().max() > 1e-3 for other in known)
        known.add(expected)


def test_a_whole_file_of_another_key_is_not_believed(policy, computed, tmp_path):
    """Its shape and its own checksum are right, its numbers are those of other prompts."""
    responses = Tokens.from_lists([[[7, 8]], [[9, 1]]])
    one, other = Tokens.from_lists([[3], [4]]), Tokens.from_lists([[5], [6]])
    cached_reference_log_probs(policy, (one, responses), tmp_path, 2)
    (file,) = tmp_path.iterdir()
    theirs = ReferenceRows(policy, (other, responses), None, 2, tmp_path)
    file.rename(theirs._file)
    found = cached_reference_log_probs(policy, (other, responses), tmp_path, 2)
    assert len(computed) == 2 and torch.allclose(found, policy.log_prob(other, responses), atol=1e-5)


# --- rows that are computed when they are needed -------------------------------------------------------------------


def pairs_of(number: int) -> Pairs:
    """Pairs of different lengths, so that a batch's padding depends on its rows."""
    prompts = Tokens.from_lists([[1 + i % 7] * (1 + i % 4) for i in range(number)])
    return Pairs(prompts, Tokens.from_lists([[[2 + i % 5] * (1 + i % 3), [9, 3 + i]] for i in range(number)]))


class Counting:
    """A policy that remembers the rows of each call. The last token of a row's rejected response is 3 + its number."""

    def __init__(self, policy):
        self.policy, self.calls = policy, []

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def log_prob(self, prompts, responses):
        self.calls.append([y[1][1] - 3 for y in responses.tolist()])
        return self.policy.log_prob(prompts, responses)


def test_rows_are_computed_in_the_batches_of_the_first_epoch_and_only_when_they_are_needed(policy):
    data, order, reference = pairs_of(7), torch.tensor([4, 0, 6, 2, 5, 1, 3]), Counting(policy)
    rows = ReferenceRows(reference, data, order, 3, None)
    assert rows.shape == (7, 2) and reference.calls == []
    found = rows[order[:3]]
    assert reference.calls == [[4, 0, 6]]
    assert torch.allclose(found, policy.log_prob(data[order[:3]].prompts, data[order[:3]].responses), atol=1e-6)
    rows[torch.tensor([6, 4])]
    assert len(reference.calls) == 1  # known
    rows[torch.tensor([3, 0, 5])]  # the end of the first epoch, a known row, and one of the second block
    assert reference.calls[1:] == [[2, 5, 1], [3]]
    assert torch.allclose(rows[torch.arange(7)], policy.log_prob(data.prompts, data.responses), atol=1e-6)


def test_stored_rows_and_rows_computed_again_are_equal_to_the_last_bit(policy, tmp_path):
    data, order = pairs_of(9), torch.randperm(9, generator=torch.Generator().manual_seed(3))
    whole = ReferenceRows(policy, data, order, 4, None)[torch.arange(9)]
    first = ReferenceRows(Counting(policy), data, order, 4, tmp_path)
    first[order[:4]]
    first.save()
    counted = Counting(policy)
    again = ReferenceRows(counted, data, order, 4, tmp_path)
    assert torch.equal(again[torch.arange(9)], whole)
    assert all(row not in order[:4].tolist() for call in counted.calls for row in call)
    again.save()
    # Another order, another batch size, other data and another reference have files of their own.
    moved = policy.copy()
    with torch.no_grad():
        next(moved.parameters())[0, 0] += 1e-3
    few = order[order < 8]
    others = [
        (policy, data, order.flip(0), 4),
        (policy, data, order, 3),
        (policy, data[:8], few, 4),
        (moved, data, order, 4),
    ]
    for arguments in [*others, (moved, data, order, 4)]:
        reference = Counting(arguments[0])
        ReferenceRows(reference, *arguments[1:], tmp_path)[torch.tensor([0])]
        assert len(reference.calls) == 1


def test_a_block_is_computed_in_as_many_parts_as_the_training_step(policy):
    data, reference = pairs_of(5), Counting(policy)
    ReferenceRows(reference, data, torch.arange(5), 5, None, accumulate=2)[torch.tensor([1])]
    assert reference.calls == [[0, 1, 2], [3, 4]]


def test_no_pairs_and_log_probabilities_that_are_not_finite_are_refused(policy):
    with pytest.raises(LabError, match="no pairs"):
        ReferenceRows(policy, pairs_of(3)[:0], torch.arange(0), 2, None)
    broken = Counting(policy)
    broken.log_prob = lambda prompts, responses: torch.full((len(prompts), 2), torch.nan)
    with pytest.raises(LabError, match="log π_ref contains nan"):
        ReferenceRows(broken, pairs_of(3), torch.arange(3), 2, None)[torch.tensor([0])]


def test_dpo_with_rows_computed_when_needed_is_dpo_with_all_of_them(policy):
    """Two epochs and a part of a third, so that batches contain rows of two epochs."""
    from rlhf_lab.algorithms.dpo import DPO, dpo, reference_log_probs
    from rlhf_lab.training import Training
    from rlhf_lab.training.rows import epoch_order

    data = pairs_of(7)
    training = Training(steps=6, batch_size=3, learning_rate=1e-3, seed=5, progress=False)
    rows = ReferenceRows(policy, data, epoch_order(7, 5, 0), 3, None)
    lazy, eager = policy.copy(), policy.copy()
    history = dpo(lazy, policy, data, DPO(), training, reference_log_probs=rows)
    other = dpo(eager, policy, data, DPO(), training, reference_log_probs=reference_log_probs(policy, data, 7))
    assert history[0]["margin"] == 0  # policy and reference were computed from the same rows, so they are equal
    for a, b in zip(lazy.parameters(), eager.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    assert [row["loss"] for row in history] == pytest.approx([row["loss"] for row in other], abs=1e-4)
