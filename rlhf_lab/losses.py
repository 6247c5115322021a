r"""One pure function a loss. The only copy: every rung and every method takes its loss from here.

Arguments are log-ratios log π_θ(y|x)/π_ref(y|x), **summed** over the response's tokens, for the chosen response
y_w and the rejected y_l; Δ is their difference. Each function returns one value per example, in the shape that
its arguments broadcast to; the mean is the caller's.

    dpo (RSO's sigmoid-norm)   −log σ(β Δ)
    cDPO  dpo(…, ε)            (1−ε) L(w,l) + ε L(l,w)
    robust_dpo(…, ε)           ((1−ε) L(w,l) − ε L(l,w)) / (1 − 2ε)
    ipo                        (Δ − 1/(2τ))²
    hinge_norm                 max(0, 1 − γ Δ)
    hinge (SLiC)               the same on plain log-probabilities: no reference
    bradley_terry              −log σ(r_w − r_l)

"norm" is RSO's word and means *divided by π_sft*. Elsewhere a "normalised" loss divides by length; none here does.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab.checks import LabError, check_beta, check_float, check_no_nan, check_positive, check_same_shape


def _difference(chosen: Tensor, rejected: Tensor, name: str) -> Tensor:
    check_float(chosen, f"chosen_{name}")
    check_float(rejected, f"rejected_{name}")
    check_same_shape(**{f"chosen_{name}": chosen, f"rejected_{name}": rejected})
    difference = chosen - rejected
    if difference.device.type == "cpu":  # on a device this would wait; there the training loop watches the loss
        check_no_nan(chosen, f"chosen_{name}")
        check_no_nan(rejected, f"rejected_{name}")
        check_no_nan(difference, f"chosen_{name} − rejected_{name} (both infinite?)")
    return difference


def _smoothing(label_smoothing: float, below_half: bool) -> float:
    top_ok = label_smoothing < 0.5 if below_half else label_smoothing <= 0.5
    if not (label_smoothing >= 0 and top_ok):
        raise LabError(
            f"label_smoothing must lie in [0, 0.5{')' if below_half else ']'}, not {label_smoothing}: it is the "
            f"probability that a label is wrong."
        )
    return float(label_smoothing)


def dpo(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, label_smoothing: float = 0.0) -> Tensor:
    r"""−log σ(β Δ); with `label_smoothing` ε > 0, cDPO: −(1−ε) log σ(β Δ) − ε log σ(−β Δ).

    Rafailov et al. 2023, equation 7 (lecture, "DPO Objective Function"); cDPO: Mitchell 2023. RSO calls it
    sigmoid-norm and writes γ for β.

    Args:
        chosen_log_ratio: log π_θ/π_ref of the chosen response, any shape, nats.
        rejected_log_ratio: the same of the rejected one.
        beta: β > 0.
        label_smoothing: ε in [0, ½], the rate at which labels are believed to be flipped.

    Returns:
        non-negative values of the broadcast shape.

    Raises:
        LabError: beta or label_smoothing out of range; NaN; shapes that do not match.
    """
    margin = check_beta(beta) * _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    epsilon = _smoothing(label_smoothing, below_half=False)
    loss = -(1 - epsilon) * logsigmoid(margin)
    return loss - epsilon * logsigmoid(-margin) if epsilon else loss


def robust_dpo(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, label_smoothing: float) -> Tensor:
    r"""((1−ε) L(w,l) − ε L(l,w)) / (1 − 2ε) with L = −log σ(β Δ): unbiased under labels flipped at rate ε.

    Chowdhury, Kini & Natarajan 2024, equation 12. Its mean over flips is the clean DPO loss; single values can
    be negative. Not cDPO, which adds the second term where this takes it off.

    Args:
        chosen_log_ratio: any shape, nats.
        rejected_log_ratio: any shape, nats.
        beta: β > 0.
        label_smoothing: ε in [0, ½).

    Raises:
        LabError: as `dpo`; ε = ½, where a label says nothing.
    """
    margin = check_beta(beta) * _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    epsilon = _smoothing(label_smoothing, below_half=True)
    return (-(1 - epsilon) * logsigmoid(margin) + epsilon * logsigmoid(-margin)) / (1 - 2 * epsilon)


def ipo(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, tau: float) -> Tensor:
    r"""(Δ − 1/(2τ))²: a finite target for the margin, so that certain labels do not drive it to infinity.

    Azar et al. 2023, equation 17. Their theory is about the log-probability of the whole response, a sum over
    its tokens; pass means over tokens to get the variant that some implementations use.

    Args:
        chosen_log_ratio: any shape, nats.
        rejected_log_ratio: any shape, nats.
        tau: τ > 0, the weight of the KL term.

    Raises:
        LabError: tau not above zero; NaN; shapes that do not match.
    """
    tau = check_positive(tau, "tau")
    return (_difference(chosen_log_ratio, rejected_log_ratio, "log_ratio") - 1 / (2 * tau)).square()


def hinge_norm(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, gamma: float) -> Tensor:
    r"""max(0, 1 − γ Δ), the support-vector form. Liu et al. 2023 (RSO), equation 10.

    Args:
        chosen_log_ratio: any shape, nats.
        rejected_log_ratio: any shape, nats.
        gamma: γ > 0, the slope; the margin asked for is 1/γ nats. Not β of the objective.

    Raises:
        LabError: gamma not above zero; NaN; shapes that do not match.
    """
    gamma = check_positive(gamma, "gamma")
    return torch.relu(1 - gamma * _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio"))


def hinge(chosen_log_prob: Tensor, rejected_log_prob: Tensor, gamma: float) -> Tensor:
    r"""max(0, 1 − γ (log π_θ(y_w) − log π_θ(y_l))): SLiC's calibration loss, with no reference.

    Zhao et al. 2023 (SLiC-HF), equation 1; Liu et al. 2023, equation 9. Arguments as in `hinge_norm`, but plain
    log-probabilities.
    """
    gamma = check_positive(gamma, "gamma")
    return torch.relu(1 - gamma * _difference(chosen_log_prob, rejected_log_prob, "log_prob"))


def bradley_terry(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    r"""−log σ(r_w − r_l): the reward model's negative log-likelihood. Lecture, "Preliminaries", ℒ_R.

    Args:
        chosen_reward: r_φ(x, y_w), any shape.
        rejected_reward: r_φ(x, y_l), any shape.

    Raises:
        LabError: NaN; shapes that do not match.
    """
    return -logsigmoid(_difference(chosen_reward, rejected_reward, "reward"))


def dpo_gradient_weight(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    r"""σ(r̂_l − r̂_w) with r̂ = β log-ratio, in (0, 1): how much a pair counts in DPO's gradient,

        ∇ℒ = −β E[ σ(r̂_l − r̂_w) (∇log π_θ(y_w|x) − ∇log π_θ(y_l|x)) ].

    Near 1 where the implicit reward ranks the pair wrongly, ½ at the start, near 0 once it is learned. The
    factor β in front is not part of it. Rafailov et al. 2023, section 4; lecture, "DPO Objective Function".
    """
    margin = check_beta(beta) * _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return torch.sigmoid(-margin)
