"""Drawing tokens in two steps: frequencies, tokens without mass, generators, and what can't be drawn from."""

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.policies.transformer import token_sampling
from rlhf_lab.policies.transformer.token_sampling import keep_top_k, sample_index, sample_tokens


@pytest.mark.parametrize("width", [3, 256, 700])
def test_frequencies_are_the_softmax_of_the_logits_over_the_temperature(width):
    """Pearson's χ² has width − 1 degrees of freedom; six standard deviations above its mean is the limit."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(2, width, generator=g)
    logits[:, width // 2] = -torch.inf
    exact = (logits.double() / 0.7).softmax(-1)
    drawn = sample_tokens(logits, 20_000, g, temperature=0.7)
    for row in range(2):
        counts = torch.bincount(drawn[row], minlength=width)
        some = exact[row] > 0
        assert counts[~some].sum() == 0
        expected = 20_000 * exact[row][some]
        chi2 = float(((counts[some] - expected) ** 2 / expected).sum())
        assert chi2 < (width - 2) + 6 * (2 * (width - 2)) ** 0.5


@pytest.mark.parametrize("u", [0.0, 1.0 - 2.0**-53])
def test_the_ends_of_the_unit_interval_draw_tokens_with_mass(u, monkeypatch):
    """Mass at 300 and 500 only, among 700 ids in three blocks: u = 0 gives 300, the largest u gives 500."""
    monkeypatch.setattr(
        token_sampling, "uniform", lambda shape, generator, device: torch.full(shape, u, dtype=torch.float64)
    )
    logits = torch.full((1, 700), -torch.inf)
    logits[0, [300, 500]] = 0.0
    expected = 300 if u == 0 else 500
    assert sample_tokens(logits, 1).item() == expected
    assert sample_index(logits.softmax(-1)).item() == expected


def test_ties_with_the_kth_token_are_kept():
    logits = torch.tensor([[1.0, 0.0, 0.0, -1.0]])
    assert torch.isfinite(keep_top_k(logits, 2)).tolist() == [[True, True, True, False]]
    assert keep_top_k(logits, 4) is logits and keep_top_k(logits, None) is logits


def test_logits_that_are_not_numbers_are_refused():
    with pytest.raises(LabError, match="contain nan or infinity"):
        sample_tokens(torch.tensor([[0.0, torch.nan]]), 1)
    with pytest.raises(LabError, match="contains nan or sums to 0"):
        sample_index(torch.tensor([[0.0, torch.nan]]))


def test_top_k_on_tables_and_trees_bars_all_but_the_likeliest():
    from rlhf_lab.policies.tabular import TabularPolicy
    from rlhf_lab.policies.tree_transformer import TreeTransformerPolicy
    from rlhf_lab.response_tree import ResponseTree

    tree = ResponseTree(5, 1)
    policy = TabularPolicy(tree, [torch.tensor([[[0.0, 3.0, 1.0, 2.0, -1.0]]], dtype=torch.float64)])
    g = torch.Generator().manual_seed(0)
    assert set(policy.sample(tree.prompts(1), 500, g, top_k=2).ids.flatten().tolist()) == {1, 3}
    walker = TreeTransformerPolicy(ResponseTree(5, 2), 1, width=16)
    likeliest = walker.log_tables(tree.prompts(1))[0][0, 0].topk(2).indices.tolist()
    assert set(walker.sample(tree.prompts(1), 500, g, top_k=2).ids[..., 0].flatten().tolist()) == set(likeliest)
    for each in (policy, walker):
        with pytest.raises(LabError, match="top_k"):
            each.sample(tree.prompts(1), 5, top_k=0)


def told(u: float):
    return lambda shape, generator, device: torch.full(shape, u, dtype=torch.float64)


def test_rounding_of_a_block_s_sum_never_runs_past_its_last_token(monkeypatch):
    """Masses are summed in single precision over a block and in double within it: where the former is the larger, the
    largest number of the unit interval lies beyond the block. The last token with mass is drawn then."""
    monkeypatch.setattr(token_sampling, "uniform", told(1.0 - 2.0**-53))
    logits = torch.randn(60, 200, generator=torch.Generator().manual_seed(0))
    chances = (logits - logits.amax(-1, keepdim=True)).exp()
    assert (chances.sum(-1).double() > chances.double().sum(-1)).any()
    assert (sample_tokens(logits, 1) == 199).all()


def test_masses_of_a_billionth_are_told_apart(monkeypatch):
    """In single precision 1 + 1e-9 is 1, and the second token (in another block too) could never be drawn."""
    monkeypatch.setattr(token_sampling, "uniform", told(1.0 - 5e-10))
    assert sample_index(torch.tensor([[1.0, 1e-9]], dtype=torch.float64)).item() == 1
    logits = torch.full((1, 700), -torch.inf)
    logits[0, 0], logits[0, 300] = 0.0, -20.723  # e^-20.723 = 1.0e-9
    assert sample_tokens(logits, 1).item() == 300
