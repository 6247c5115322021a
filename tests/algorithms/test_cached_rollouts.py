"""Drawing in shards: what a shard is, what is kept on disk, and that a resumed method ends with the same bits."""

import json
from dataclasses import replace

import pytest
import torch
from histories import without_speed

from rlhf_lab.algorithms.cached_rollouts import (
    claim_output,
    from_pairs,
    from_tokens,
    in_shards,
    join,
    sample,
    to_pairs,
    to_tokens,
)
from rlhf_lab.algorithms.dpo import DPO
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.on_policy import held_out_rewards
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.rso import RSO, make_pairs, rso
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.training import Training, seeded
from rlhf_lab.worlds import bandit

WORLD = bandit.random(2, 5, seed=0)
PROMPTS = WORLD.prompts.repeat(15)


def test_shards_cover_every_row_once_and_in_order():
    asked = []

    def make(start, stop):
        asked.append((start, stop))
        return {"row": torch.arange(start, stop)}

    shards = in_shards(make, 10, 4)
    assert asked == [(0, 4), (4, 8), (8, 10)]
    assert join(shards, "row").tolist() == list(range(10))


def test_finished_shards_are_read_and_not_made_again(tmp_path):
    made = []

    def make(start, stop):
        if made and made[-1] == (2, 4) and fail:
            raise RuntimeError("killed")
        made.append((start, stop))
        return {"value": torch.full((stop - start,), 0.1 * start, dtype=torch.float64), "n": torch.tensor(stop)}

    fail = True
    with pytest.raises(RuntimeError):
        in_shards(make, 6, 2, tmp_path / "a")
    fail = False
    shards = in_shards(make, 6, 2, tmp_path / "a")
    assert made == [(0, 2), (2, 4), (4, 6)]
    fresh = in_shards(make, 6, 2)
    for kept, new in zip(shards, fresh, strict=True):
        assert kept.keys() == new.keys() and all(torch.equal(kept[k], new[k]) for k in kept)


def test_a_damaged_shard_is_named_and_removing_it_mends_the_run(tmp_path):
    in_shards(lambda a, b: {"x": torch.arange(a, b)}, 4, 2, tmp_path)
    path = tmp_path / "rows-0000002-0000004.safetensors"
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(LabError, match=r"rows-0000002-0000004\.safetensors cannot be read"):
        in_shards(lambda a, b: {"x": torch.arange(a, b)}, 4, 2, tmp_path)
    path.unlink()
    assert join(in_shards(lambda a, b: {"x": torch.arange(a, b)}, 4, 2, tmp_path), "x").tolist() == [0, 1, 2, 3]


def test_tokens_and_pairs_survive_the_way_through_a_shard(tmp_path):
    tokens = Tokens.from_lists([[[1, 2], [3]], [[4], [5, 6]]])
    pairs = Pairs(Tokens.from_lists([[1], [2, 3]]), tokens, torch.tensor([0.25, 0.75]))
    for given in (pairs, Pairs(pairs.prompts, pairs.responses), pairs[torch.zeros(0).long()]):
        folder = tmp_path / f"{len(given)}-{given.weight is None}"
        in_shards(lambda a, b, given=given: from_pairs(given), 1, 1, folder)
        (shard,) = in_shards(lambda a, b: pytest.fail("made again"), 1, 1, folder)
        back = to_pairs(shard)
        assert back.responses.tolist() == given.responses.tolist() and back.prompts.tolist() == given.prompts.tolist()
        assert (back.weight is None) == (given.weight is None)
    assert to_tokens("y", from_tokens("y", tokens)).tolist() == tokens.tolist()


def test_no_rows_and_no_room_are_refused():
    with pytest.raises(LabError, match="no prompts"):
        in_shards(lambda a, b: {}, 0, 4)
    with pytest.raises(LabError, match="at least 1 prompt"):
        in_shards(lambda a, b: {}, 4, 0)


def test_top_k_is_passed_on_only_where_it_is_given():
    seen = []

    class Policy:
        def sample(self, prompts, number, generator, temperature, **more):
            seen.append(more)

    sample(Policy(), PROMPTS, 1, seeded(0))
    sample(Policy(), PROMPTS, 1, seeded(0), top_k=3)
    assert seen == [{}, {"top_k": 3}]
    for settings in (RAFT, ReST, RSO):
        with pytest.raises(LabError, match="top_k"):
            settings(top_k=0)
        with pytest.raises(LabError, match="sampling_batch_size"):
            settings(sampling_batch_size=0)


class Stopped(Exception):
    """What stands for SIGKILL in these tests."""


class Counting:
    """A reward that counts what it is asked, and dies after a number of calls."""

    def __init__(self, dies_after=10**9):
        self.calls, self.dies_after = 0, dies_after

    def __call__(self, prompts, responses):
        self.calls += 1
        if self.calls > self.dies_after:
            raise Stopped
        return WORLD.reward(prompts, responses)


def training(out=None, resume=False):
    return Training(steps=6, save_every=2, out=out, resume=resume, progress=False, batch_size=16)


def collecting(reward):
    def collect(policy, number, generator):
        reward(PROMPTS[:1], WORLD.responses[:1])
        return WORLD.preferences(number, generator, policy=policy)

    return collect


METHODS = {
    "raft": lambda p, r, t: raft(p, r, PROMPTS, RAFT(4, rounds=2, sampling_batch_size=8), t),
    "rest": lambda p, r, t: rest(
        p, r, PROMPTS, ReST(grows=2, thresholds=(0.2, 0.5), samples=4, sampling_batch_size=8), t
    ),
    "rest with patience": lambda p, r, t: rest(
        p, r, PROMPTS,
        ReST(thresholds=(0.2, 0.5), samples=4, sampling_batch_size=8), replace(t, patience=1, eval_every=2),
        evaluation=held_out_rewards(p, WORLD.reference, r, PROMPTS[:4], 3),
    ),
    "rso": lambda p, r, t: rso(p, WORLD.reference, r, PROMPTS, RSO(candidates=8, accepted=2, sampling_batch_size=8), t),
    "online": lambda p, r, t: online(
        p, WORLD.reference, collecting(r), DPO(beta=0.5), Online(rounds=2, labels=40, labels_at_once=8), t
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_method_stopped_between_shards_resumes_to_the_same_bits_and_draws_nothing_twice(method, tmp_path):
    whole, policy = Counting(), WORLD.reference.copy()
    history = method(policy, whole, training())
    for dies_after in {1, 3, whole.calls - 1}:
        out = tmp_path / str(dies_after)
        first, second = Counting(dies_after), Counting()
        with pytest.raises(Stopped):
            method(WORLD.reference.copy(), first, training(out))
        resumed = WORLD.reference.copy()
        again = method(resumed, second, training(out, resume=True))
        assert torch.equal(WORLD.log_probs(resumed), WORLD.log_probs(policy))
        assert without_speed(again) == history
        assert dies_after + second.calls == whole.calls


def test_a_method_takes_its_folder_and_refuses_that_of_other_settings(tmp_path):
    raft(WORLD.reference.copy(), Counting(), PROMPTS, RAFT(4), training(tmp_path / "a"))
    with pytest.raises(LabError, match="already contains another run"):
        raft(WORLD.reference.copy(), Counting(), PROMPTS, RAFT(4), training(tmp_path / "a"))
    with pytest.raises(LabError, match="best_of"):
        raft(WORLD.reference.copy(), Counting(), PROMPTS, RAFT(5), training(tmp_path / "a", resume=True))
    with pytest.raises(LabError, match="Nothing to resume"):
        raft(WORLD.reference.copy(), Counting(), PROMPTS, RAFT(4), training(tmp_path / "b", resume=True))


def test_a_folder_that_the_caller_claimed_is_not_claimed_again(tmp_path):
    with claim_output("mine", training(tmp_path), {}):
        raft(WORLD.reference.copy(), Counting(), PROMPTS, RAFT(4), training(tmp_path))
    assert (tmp_path / "round-0" / "run.json").is_file()
    assert json.loads((tmp_path / "run.json").read_text())["method"] == "mine"


def test_a_claim_ends_with_its_block_and_is_of_one_folder(tmp_path):
    """After the block, and for another folder within it, a method claims for itself, and refuses what it finds."""
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with claim_output("mine", training(tmp_path / "a"), {}):
        with pytest.raises(LabError, match="other files"):
            raft(WORLD.reference.copy(), Counting(), PROMPTS, RAFT(4), training(tmp_path / "other"))
        assert (tmp_path / "a" / ".lock").is_file()
    assert not (tmp_path / "a" / ".lock").exists()
    with pytest.raises(LabError, match="another run"):
        raft(WORLD.reference.copy(), Counting(), PROMPTS, RAFT(4), training(tmp_path / "a"))


def test_shards_of_rso_follow_the_same_distribution_whatever_their_size():
    """Frequencies of accepted responses from shards of 7 and of 1000 prompts, within 4 σ of each other."""
    found = []
    for size in (7, 1000):
        settings = RSO(candidates=16, accepted=2, sampling_batch_size=size)
        pairs, _ = make_pairs(WORLD.reference, WORLD.reward, WORLD.prompts.repeat(500), settings, seed=size)
        index = WORLD.tree.index(pairs.responses).flatten()
        found.append(torch.bincount(index, minlength=5).double() / len(index))
    error = 4 * (found[0] * (1 - found[0]) / 500).sqrt() + 0.01
    assert ((found[0] - found[1]).abs() < error).all()
