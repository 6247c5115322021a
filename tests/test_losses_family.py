"""The relatives of DPO with papers of their own, and KTO: numbers worked by hand, TRL's numbers, gradients, bad input.

What each of them aims at in the limit of data is tested where they are fitted: tests/algorithms/test_dpo_family.py.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlhf_lab import losses
from rlhf_lab.errors import LabError

F64 = torch.float64
ordinary = st.floats(-10, 10, allow_nan=False)
probabilities = st.floats(-12, -1e-3)
lengths = st.integers(1, 40)


def t(value, dtype=F64, grad=False):
    return torch.tensor(value, dtype=dtype).requires_grad_(grad)


THREE, TWO = torch.tensor(3), torch.tensor(2)
# Every pair loss as a function of two values of 3 and 2 tokens.
PAIRWISE = {
    "chi_po": lambda c, r: losses.chi_po(c, r, 0.3),
    "chi_po clipped": lambda c, r: losses.chi_po(c, r, 0.3, max_reward=1e4),
    "ipo_mean": lambda c, r: losses.ipo_mean(c, r, THREE, TWO, 0.3),
    "dpo_length": lambda c, r: losses.dpo_length(c, r, THREE, TWO, 0.3),
    "simpo": lambda c, r: losses.simpo(c, r, THREE, TWO, 2.0, 0.5),
    "orpo": lambda c, r: losses.orpo(c, r, THREE, TWO, 0.3),
    "dpop": lambda c, r: losses.dpop(c, r, 0.3, 5.0),
    "dpo_nll": lambda c, r: losses.dpo_nll(c, r, c - 0.5, THREE, 0.3, 0.7),
    "apo_zero": lambda c, r: losses.apo_zero(c, r, 0.3),
    "apo_down": lambda c, r: losses.apo_down(c, r, 0.3),
    "bco": lambda c, r: losses.bco(c, r, 0.3, 0.2),
    "sppo": lambda c, r: losses.sppo(c, r, 0.3),
}
every_loss = pytest.mark.parametrize("loss", PAIRWISE.values(), ids=PAIRWISE.keys())


# Worked by hand.


def test_chi_po_by_hand():
    """z_w = 2, z_l = ½: φ(z_w) − φ(z_l) = 2 + log 2 − ½ + log 2 = 1.5 + 2 log 2; β = ½: margin 0.75 + log 2,
    so the loss is log(1 + e^{−0.75}/2) = log(1 + 0.4723666/2) = log 1.2361833 = 0.2120286.
    """
    value = losses.chi_po(t(math.log(2)), t(-math.log(2)), 0.5).item()
    assert value == pytest.approx(math.log(1 + math.exp(-0.75) / 2), rel=1e-12)
    assert value == pytest.approx(0.2120286, abs=1e-6)


def test_the_chi_link_goes_on_with_its_logarithm_where_its_first_term_is_cut():
    """φ at log z = 5 is e⁵ + 5; at log z = 30 the first term is cut at e²⁰, and the second one is not."""
    value = losses.chi_link(t([5.0, 19.0, 30.0])).tolist()
    assert value == pytest.approx([math.exp(5) + 5, math.exp(19) + 19, math.exp(20) + 30], rel=1e-12)


def test_log_odds_of_a_certain_response_are_large_and_finite():
    """p is cut one unit in the last place ε below 1: −log(1 − e^{−ε}) = −log ε to first order, with the gradient 0."""
    certain = t(0.0, grad=True)
    value = losses.log_odds(certain)
    assert value.item() == pytest.approx(-math.log(torch.finfo(F64).eps), rel=1e-9)
    assert torch.autograd.grad(value, certain)[0].item() == 0.0


def test_chi_po_clips_the_difference_of_rewards_at_twice_the_largest_one():
    """As above the margin is 1.443; with R = ½ it is clipped at 2R = 1: log(1 + e⁻¹) = 0.313262, and no gradient."""
    chosen = t(math.log(2), grad=True)
    value = losses.chi_po(chosen, t(-math.log(2)), 0.5, max_reward=0.5)
    assert value.item() == pytest.approx(0.3132616875182228, rel=1e-12)
    assert torch.autograd.grad(value, chosen)[0].item() == 0.0
    turned = losses.chi_po(t(-math.log(2)), t(math.log(2)), 0.5, max_reward=0.5)
    assert turned.item() == pytest.approx(1.3132616875182228, rel=1e-12)


def test_ipo_by_mean_by_hand():
    """1.5/3 − (−0.5)/2 = 0.75; τ = 0.4 asks for 1.25: (0.75 − 1.25)² = 0.25. By sum it is 0.5625."""
    assert losses.ipo_mean(t(1.5), t(-0.5), THREE, TWO, 0.4).item() == pytest.approx(0.25, rel=1e-12)
    assert losses.ipo(t(1.5), t(-0.5), 0.4).item() == pytest.approx(0.5625, rel=1e-12)


def test_dpo_by_length_by_hand():
    """β = 2: 2·0.75 = 1.5, log(1 + e^{−1.5}) = log 1.2231302 = 0.2014133."""
    assert losses.dpo_length(t(1.5), t(-0.5), THREE, TWO, 2.0).item() == pytest.approx(0.2014133, abs=1e-7)


def test_simpo_by_hand():
    """−6/3 − (−5/2) = ½; β = 2, γ = 0.4: 2·½ − 0.4 = 0.6; log(1 + e^{−0.6}) = log 1.5488116 = 0.4374879."""
    assert losses.simpo(t(-6.0), t(-5.0), THREE, TWO, 2.0, 0.4).item() == pytest.approx(0.4374879, abs=1e-6)


def test_orpo_by_hand():
    """P_w = ½ a token (two tokens), P_l = 1/5 (one token): odds 1 and ¼, so the second term is log(1 + ¼);
    the first −log ½. With λ = ½: 0.693147 + 0.223144/2 = 0.804719.
    """
    value = losses.orpo(t(2 * math.log(0.5)), t(math.log(0.2)), TWO, torch.tensor(1), 0.5).item()
    assert value == pytest.approx(math.log(2) + math.log(1.25) / 2, rel=1e-12)


def test_dpop_by_hand():
    """β = ½, λ = 3. Log-ratios 1 and −1: the chosen one is above the reference, so it is DPO, log(1 + e⁻¹) = 0.313262.
    Log-ratios −1 and −2: ½ (1 − 3·1) = −1, so it is log(1 + e) = 1.313262."""
    value = losses.dpop(t([1.0, -1.0]), t([-1.0, -2.0]), 0.5, 3.0)
    assert value.tolist() == pytest.approx([0.3132616875182228, 1.3132616875182228], rel=1e-12)


def test_dpo_with_nll_by_hand():
    """β = ½, log-ratios 1 and −1: DPO's loss is 0.313262. log π(y_w) = −6 over three tokens is 2 a token; α = ¼."""
    value = losses.dpo_nll(t(1.0), t(-1.0), t(-6.0), THREE, 0.5, 0.25).item()
    assert value == pytest.approx(0.3132616875182228 + 0.25 * 2, rel=1e-12)


def test_apo_by_hand():
    """β = ½, log-ratios 2 and −4: rewards 1 and −2. Zero: 1 − σ(1) + σ(−2) = 0.268941 + 0.119203. Down: σ(1) + 1 −
    σ(3) = 0.731059 + 0.047426."""
    assert losses.apo_zero(t(2.0), t(-4.0), 0.5).item() == pytest.approx(0.2689414213 + 0.1192029220, abs=1e-9)
    assert losses.apo_down(t(2.0), t(-4.0), 0.5).item() == pytest.approx(0.7310585787 + 0.0474258731, abs=1e-9)


def test_bco_by_hand():
    """β = ½, log-ratios 2 and −4: rewards 1 and −2. δ = 0: log(1 + e⁻¹) + log(1 + e⁻²) = 0.313262 + 0.126928. δ = 1:
    log 2 + log(1 + e⁻³) = 0.693147 + 0.048587."""
    assert losses.bco(t(2.0), t(-4.0), 0.5).item() == pytest.approx(0.3132616875 + 0.1269280111, abs=1e-9)
    assert losses.bco(t(2.0), t(-4.0), 0.5, 1.0).item() == pytest.approx(math.log(2) + 0.0485873516, abs=1e-9)


def test_sppo_by_hand():
    """β = ¼: the targets are 2 and −2. Log-ratios 1 and −5: (1 − 2)² + (−5 + 2)² = 10."""
    assert losses.sppo(t(1.0), t(-5.0), 0.25).item() == pytest.approx(10.0, rel=1e-12)


# The values that TRL 1.16.0 computes (`DPOTrainer._compute_loss`; SimPO: `CPOTrainer.cpo_loss`; ORPO:
# `ORPOTrainer.odds_ratio_loss`, in float32) for one pair. log π_θ and log π_ref are −2.2 and −2.4 of the chosen
# response, which has three tokens, and −2.5 and −1.5 of the rejected one, which has two.
CHOSEN, REJECTED, RATIOS, SIZES = t(-2.2), t(-2.5), (t(-2.2 + 2.4), t(-2.5 + 1.5)), (THREE, TWO)
TRL = [
    ("sigmoid", 0.6349461015956135, lambda: losses.dpo(*RATIOS, 0.1)),
    ("sigmoid", 0.3588698996603233, lambda: losses.dpo(*RATIOS, 0.7)),
    ("hinge", 0.16000000000000025, lambda: losses.hinge_norm(*RATIOS, 0.7)),
    ("ipo", 0.02179138321995469, lambda: losses.ipo_mean(*RATIOS, *SIZES, 0.7)),
    ("robust, ε 0.2", 0.0788698996603234, lambda: losses.robust_dpo(*RATIOS, 0.7, 0.2)),
    ("sigmoid_norm", 0.5143542952736782, lambda: losses.dpo_length(*RATIOS, *SIZES, 0.7)),
    ("simpo, γ 0.5", 0.46162249262875726, lambda: losses.simpo(CHOSEN, REJECTED, *SIZES, 2.0, 0.5)),
    ("orpo", 0.9498156299193701, lambda: losses.orpo(CHOSEN, REJECTED, *SIZES, 0.6)),
    ("bco_pair", 1.3275938398002052, lambda: losses.bco(*RATIOS, 0.1)),
    ("bco_pair", 1.0287812312226094, lambda: losses.bco(*RATIOS, 0.7)),
    ("sppo_hard", 39.040000000000006, lambda: losses.sppo(*RATIOS, 0.1)),
    ("sppo_hard", 0.3461224489795921, lambda: losses.sppo(*RATIOS, 0.7)),
    ("apo_zero", 0.9700209791810602, lambda: losses.apo_zero(*RATIOS, 0.1)),
    ("apo_zero", 0.7968692826736195, lambda: losses.apo_zero(*RATIOS, 0.7)),
    ("apo_down", 0.975035781575428, lambda: losses.apo_down(*RATIOS, 0.1)),
    ("apo_down", 0.8364777291556759, lambda: losses.apo_down(*RATIOS, 0.7)),
    ("sigmoid + 0.6 sft", 1.0749461015956134, lambda: losses.dpo_nll(*RATIOS, CHOSEN, THREE, 0.1, 0.6)),
    ("sigmoid + 0.6 sft", 0.7988698996603233, lambda: losses.dpo_nll(*RATIOS, CHOSEN, THREE, 0.7, 0.6)),
]


@pytest.mark.parametrize("name, value, loss", TRL, ids=[f"{name} {value:.3f}" for name, value, _ in TRL])
def test_a_pair_has_the_loss_that_trl_computes(name, value, loss):
    assert loss().item() == pytest.approx(value, rel=1e-6 if name == "orpo" else 1e-9)


def test_kto_by_hand():
    """k = 1.5, z = 0.5, β = ½: σ(−½) = 0.3775407 where desirable; λ_U = 1.5: 1.5·σ(½) = 0.9336890 where not."""
    labels = torch.tensor([True, False])
    value = losses.kto(t([1.5, 1.5]), labels, 0.5, 0.5, undesirable_weight=1.5)
    assert value.tolist() == pytest.approx([0.3775406687981454, 1.5 * 0.6224593312018546], rel=1e-12)
    cut = losses.kto(t([1.5, 1.5]), labels, -3.0, 0.5)
    assert cut.tolist() == pytest.approx(losses.kto(t([1.5, 1.5]), labels, 0.0, 0.5).tolist(), rel=1e-12)


# Identities.


@given(ordinary, ordinary, st.floats(0.1, 3), st.floats(-3, 3))
def test_bco_is_at_least_dpo(c, r, beta, shift):
    """Jung et al. 2024: the classifier's loss bounds DPO's from above, with every shift."""
    assert losses.bco(t(c), t(r), beta, shift).item() >= losses.dpo(t(c), t(r), beta).item() - 1e-12


@given(st.floats(0, 10), ordinary, st.floats(0.1, 3), st.floats(0.1, 100))
def test_dpop_is_dpo_where_the_chosen_response_has_not_become_less_probable(c, r, beta, penalty):
    assert losses.dpop(t(c), t(r), beta, penalty).item() == losses.dpo(t(c), t(r), beta).item()


@given(ordinary, ordinary, st.floats(0.1, 5))
def test_on_responses_of_one_token_the_divided_losses_are_the_plain_ones(c, r, strength):
    one = torch.tensor(1)
    assert losses.ipo_mean(t(c), t(r), one, one, strength).item() == losses.ipo(t(c), t(r), strength).item()
    assert losses.dpo_length(t(c), t(r), one, one, strength).item() == losses.dpo(t(c), t(r), strength).item()
    plain = losses.bradley_terry(t(strength * c), t(strength * r)).item()
    assert losses.simpo(t(c), t(r), one, one, strength).item() == pytest.approx(plain, rel=1e-9, abs=1e-12)


@given(ordinary, ordinary, lengths, lengths, st.floats(0.1, 3), st.floats(0, 2))
def test_simpo_is_dpo_by_length_with_the_margin_moved_by_gamma(c, r, m, n, beta, gamma):
    """−log σ(d − γ) is −log σ(d) at a chosen reward γ smaller."""
    long, short = torch.tensor(m), torch.tensor(n)
    value = losses.simpo(t(c), t(r), long, short, beta, gamma).item()
    moved = losses.dpo_length(t(c - gamma * m / beta), t(r), long, short, beta).item()
    assert value == pytest.approx(moved, rel=1e-9, abs=1e-12)


@given(probabilities)
def test_log_odds_is_the_logit(log_p):
    p = math.exp(log_p)
    assert losses.log_odds(t(log_p)).item() == pytest.approx(log_p - math.log(-math.expm1(log_p)), rel=1e-9, abs=1e-9)
    x = t(log_p, grad=True)
    # d/d(log p) log(p/(1−p)) = 1/(1−p)
    (slope,) = torch.autograd.grad(losses.log_odds(x), x)
    assert slope.item() == pytest.approx(1 / (1 - p), rel=1e-9)


@given(ordinary, ordinary)
def test_the_chi_link_grows_faster_than_the_logarithm(c, r):
    """φ' in log z is z + 1 > 1: χPO's implicit rewards lie further apart than DPO's, in the same order."""
    gap = (losses.chi_link(t(c)) - losses.chi_link(t(r))).item()
    assert gap * (c - r) >= (c - r) ** 2 - 1e-9


@given(ordinary, st.floats(0, 3), st.floats(0.05, 3))
def test_the_two_parts_of_kto_sum_to_one_and_pull_equally(k, z, beta):
    """σ(−u) + σ(u) = 1: at equal weights a response praised once and blamed once teaches nothing."""
    ratio = t([k, k], grad=True)
    value = losses.kto(ratio, torch.tensor([True, False]), z, beta).sum()
    assert value.item() == pytest.approx(1.0, abs=1e-12)
    (slope,) = torch.autograd.grad(value, ratio)
    assert slope.sum().item() == pytest.approx(0.0, abs=1e-12)
    assert slope[0].item() <= 0 <= slope[1].item()


def test_no_gradient_runs_through_the_reference_point_of_kto():
    ratio = t([0.3, -0.2], grad=True)
    value = losses.kto(ratio, torch.tensor([True, False]), ratio.mean() + 1, 0.5).sum()
    u = 0.5 * (ratio.detach() - (ratio.detach().mean() + 1))
    slope = 0.5 * torch.sigmoid(u) * torch.sigmoid(-u)
    found = torch.autograd.grad(value, ratio)[0]
    assert found.tolist() == pytest.approx([-slope[0].item(), slope[1].item()], rel=1e-12)


@every_loss
def test_gradients_of_the_family_agree_with_finite_differences(loss):
    chosen = torch.tensor([-2.0, -0.1, -0.5, -3.0], dtype=F64, requires_grad=True)
    rejected = torch.tensor([-1.0, -0.3, -0.9, -2.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (chosen, rejected))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("value", [-1e6, -1e3, -1e-3, -1e-12])
def test_extremes_of_the_family_give_finite_values_and_gradients(loss, dtype, value):
    for c, r in ((value, -1.0), (-1.0, value), (value, value)):
        chosen, rejected = t(c, dtype, True), t(r, dtype, True)
        out = loss(chosen, rejected)
        assert out.dtype == dtype and torch.isfinite(out)
        assert all(torch.isfinite(slope) for slope in torch.autograd.grad(out, (chosen, rejected)))


def test_chi_po_stays_finite_where_the_ratio_would_overflow():
    for dtype in (torch.float32, F64):
        chosen = t(1e4, dtype, True)
        out = losses.chi_po(chosen, t(0.0, dtype), 1.0)
        assert torch.isfinite(out) and torch.isfinite(torch.autograd.grad(out, chosen)[0])
        wrong = losses.chi_po(t(0.0, dtype), chosen, 1.0)
        # φ is cut at e²⁰ in its first term; the second goes on with slope 1.
        assert torch.isfinite(wrong)
        assert torch.autograd.grad(wrong, chosen)[0].item() == pytest.approx(1.0, rel=1e-6)


# Bad input.


@every_loss
def test_the_family_refuses_shapes_and_nan_by_name(loss):
    with pytest.raises(LabError, match=r"chosen.*\(3,\).*rejected.*\(2,\)"):
        loss(torch.zeros(3), torch.zeros(2))
    with pytest.raises(LabError, match="nan"):
        loss(torch.tensor([0.0, math.nan]), torch.zeros(2))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_the_family_refuses_strengths_out_of_range(bad):
    x, n = torch.zeros(2), torch.ones(2)
    labels = torch.tensor([True, False])
    for call, name in (
        (lambda: losses.chi_po(x, x, bad), "beta"),
        (lambda: losses.chi_po(x, x, 1.0, bad), "max_reward"),
        (lambda: losses.ipo_mean(x, x, n, n, bad), "tau"),
        (lambda: losses.dpo_length(x, x, n, n, bad), "beta"),
        (lambda: losses.simpo(x, x, n, n, bad), "beta"),
        (lambda: losses.orpo(x, x, n, n, bad), "weight"),
        (lambda: losses.dpop(x, x, bad, 1.0), "beta"),
        (lambda: losses.dpop(x, x, 1.0, bad), "penalty"),
        (lambda: losses.dpo_nll(x, x, x, n, bad, 1.0), "beta"),
        (lambda: losses.dpo_nll(x, x, x, n, 1.0, bad), "weight"),
        (lambda: losses.apo_zero(x, x, bad), "beta"),
        (lambda: losses.apo_down(x, x, bad), "beta"),
        (lambda: losses.bco(x, x, bad), "beta"),
        (lambda: losses.sppo(x, x, bad), "beta"),
        (lambda: losses.kto(x, labels, 0.0, bad), "beta"),
        (lambda: losses.kto(x, labels, 0.0, 1.0, bad), "λ_D"),
        (lambda: losses.kto(x, labels, 0.0, 1.0, 1.0, bad), "λ_U"),
    ):
        with pytest.raises(LabError, match=name):
            call()


def test_empty_responses_negative_margins_and_numbers_for_labelled_responses_are_refused():
    x, n = torch.zeros(2), torch.tensor([3, 0])
    for loss in (losses.ipo_mean, losses.dpo_length, losses.simpo, losses.orpo):
        with pytest.raises(LabError, match="0 tokens"):
            loss(x, x, n, n, 1.0)
    with pytest.raises(LabError, match="0 tokens"):
        losses.dpo_nll(x, x, x, n, 1.0, 1.0)
    for bad in (math.nan, math.inf):
        with pytest.raises(LabError, match="shift must be a finite number"):
            losses.bco(x, x, 1.0, bad)
    with pytest.raises(LabError, match="target_margin"):
        losses.simpo(x, x, torch.ones(2), torch.ones(2), 1.0, -0.1)
    with pytest.raises(LabError, match="booleans"):
        losses.kto(x, torch.ones(2), 0.0, 1.0)
