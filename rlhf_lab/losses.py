r"""The losses of all methods, as pure functions of tensors.

The arguments of a pair loss are log-ratios log π_θ(y|x)/π_ref(y|x), **summed** over the tokens of the chosen response
y_w and of the rejected response y_l. Δ is their difference. Each function returns one value per example, in the shape
to which its arguments broadcast. The caller takes the mean.

    dpo (RSO's sigmoid-norm)   −log σ(β Δ)
    cDPO  dpo(…, ε)            (1−ε) L(w,l) + ε L(l,w)
    robust_dpo(…, ε)           ((1−ε) L(w,l) − ε L(l,w)) / (1 − 2ε)
    ipo                        (Δ − 1/(2τ))²
    hinge_norm                 max(0, 1 − γ Δ)
    hinge (SLiC)               the same function of log-probabilities, without a reference
    chi_po                     −log σ(β [φ(z_w) − φ(z_l)]),  z = π_θ/π_ref,  φ(z) = z + log z
    bradley_terry              −log σ(r_w − r_l)
    dpop                       −log σ(β (Δ − λ max(0, −log z_w)))
    dpo_nll                    −log σ(β Δ) − α log π_θ(y_w)/|y_w|
    apo_zero                   1 − σ(β log z_w) + σ(β log z_l)
    apo_down                   σ(β log z_w) + 1 − σ(β Δ)
    bco                        −log σ(β log z_w − δ) − log σ(δ − β log z_l)
    sppo                       (log z_w − 1/(2β))² + (log z_l + 1/(2β))²
    kto                        a loss of single labelled responses, without pairs

The following losses divide by the number of tokens |y|, as their names or arguments show:

    ipo_mean, dpo_length       ipo and dpo of log-ratios per token
    simpo                      −log σ(β log π_θ(y_w)/|y_w| − β log π_θ(y_l)/|y_l| − γ), without a reference
    orpo                       −log π_θ(y_w)/|y_w| − λ log σ(log odds_w − log odds_l), without a reference

Policy gradients, of tokens or of whole responses, and supervised fine-tuning:

    clipped_surrogate          −min(ρ A, clip(ρ, 1 ± ε) A),  ρ = π_θ/π_old: PPO, RLOO and GRPO
    clipped_value_loss         ½ max((V − R)², (V_old + clip(V − V_old, ±ε) − R)²): PPO's critic
    group_advantages           s − mean of the group, optionally divided by its standard deviation: RLOO and GRPO
    sft                        −log π_θ(y|x)
    masked_mean, weighted_mean the means over tokens and over examples that the methods take of these

"norm" is RSO's term for *divided by π_sft*. In other papers a "normalised" loss is one that is divided by the length.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_lab.errors import (
    LabError,
    check_beta,
    check_finite,
    check_float,
    check_no_nan,
    check_positive,
    check_same_shape,
)
from rlhf_lab.rounding import centred, standardised

Divisor = Literal["nothing", "population std", "sample std"]
"""What the advantages of a group are divided by; see `group_advantages`."""


def _difference(chosen: Tensor, rejected: Tensor, name: str) -> Tensor:
    check_float(chosen, f"chosen_{name}")
    check_float(rejected, f"rejected_{name}")
    check_same_shape(**{f"chosen_{name}": chosen, f"rejected_{name}": rejected})
    difference = chosen - rejected
    # A NaN in either of the two is one in the difference. On a GPU the check would wait for the result; the loop checks
    # the loss there.
    if difference.device.type == "cpu" and bool(difference.detach().isnan().any()):
        check_no_nan(chosen, f"chosen_{name}")
        check_no_nan(rejected, f"rejected_{name}")
        check_no_nan(difference, f"chosen_{name} − rejected_{name} (both infinite?)")
    return difference


def _smoothing(label_smoothing: float, below_half: bool) -> float:
    top_ok = label_smoothing < 0.5 if below_half else label_smoothing <= 0.5
    if not (label_smoothing >= 0 and top_ok):
        raise LabError(
            f"label_smoothing must lie in [0, 0.5{')' if below_half else ']'}, not {label_smoothing}: it is the "
            f"probability that a label is flipped."
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
        label_smoothing: ε in [0, ½], the assumed rate of flipped labels.

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
    r"""((1−ε) L(w,l) − ε L(l,w)) / (1 − 2ε) with L = −log σ(β Δ), which is unbiased if labels are flipped at rate ε.

    Chowdhury, Kini & Natarajan 2024, equation 12. The mean over flipped and unflipped labels is the DPO loss of the
    true labels. Single values can be negative. cDPO is a different loss, which adds the second term.

    Args:
        chosen_log_ratio: any shape, nats.
        rejected_log_ratio: any shape, nats.
        beta: β > 0.
        label_smoothing: ε in [0, ½).

    Raises:
        LabError: as `dpo`; or ε = ½, at which labels contain no information.
    """
    margin = check_beta(beta) * _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    epsilon = _smoothing(label_smoothing, below_half=True)
    return (-(1 - epsilon) * logsigmoid(margin) + epsilon * logsigmoid(-margin)) / (1 - 2 * epsilon)


def ipo(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, tau: float) -> Tensor:
    r"""(Δ − 1/(2τ))²: the margin has a finite target, so labels without noise do not drive it to infinity.

    Azar et al. 2023, equation 17. The theory is about the log-probability of the whole response, which is a sum over
    its tokens. `ipo_mean` is the variant with means over tokens that some implementations use.

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
        gamma: γ > 0, the slope. The loss of a pair is 0 once its margin is 1/γ nats. γ is not β of the objective.

    Raises:
        LabError: gamma not above zero; NaN; shapes that do not match.
    """
    gamma = check_positive(gamma, "gamma")
    return torch.relu(1 - gamma * _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio"))


def hinge(chosen_log_prob: Tensor, rejected_log_prob: Tensor, gamma: float) -> Tensor:
    r"""max(0, 1 − γ (log π_θ(y_w) − log π_θ(y_l))): SLiC's calibration loss, without a reference.

    Zhao et al. 2023 (SLiC-HF), equation 1; Liu et al. 2023, equation 9. The arguments are those of `hinge_norm`, with
    log-probabilities in place of log-ratios.
    """
    gamma = check_positive(gamma, "gamma")
    return torch.relu(1 - gamma * _difference(chosen_log_prob, rejected_log_prob, "log_prob"))


def chi_po(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, max_reward: float | None = None
) -> Tensor:
    r"""−log σ( clip_{2R}( β φ(z_w) − β φ(z_l) ) ) with z = π_θ/π_ref and φ(z) = z + log z: χPO.

    Huang et al. 2024, "Correcting the mythos of KL-regularization", Algorithm 1, which is DPO with another link
    function. The loss converges to the optimum of E_π[r] − β D_χ²(π‖π_ref) − β KL(π‖π_ref), where D_χ²(p‖q) is
    ½ E_q[(p/q − 1)²]. This optimum is π = π_ref W(exp((r − c)/β)) with Lambert's function W and the constant c(x) that
    makes it sum to one. For large rewards the ratio π/π_ref is then proportional to r/β and not to exp(r/β). It is
    not π*.

    Args:
        chosen_log_ratio: log z of the chosen response, any shape, nats. In the first term of φ it is clamped at 20,
            where z is 5·10⁸. The second term is not clamped.
        rejected_log_ratio: the same of the rejected one.
        beta: β > 0.
        max_reward: R > 0. Differences of implicit rewards are clipped to [−2R, 2R], and a pair beyond these bounds has
            no gradient. The paper's guarantees assume the clip. None: no clip.

    Raises:
        LabError: beta or max_reward not above zero; NaN; shapes that do not match.
    """
    beta = check_beta(beta)
    _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    margin = beta * (chi_link(chosen_log_ratio) - chi_link(rejected_log_ratio))
    if max_reward is not None:
        top = 2 * check_positive(max_reward, "max_reward")
        margin = margin.clamp(-top, top)
    return -logsigmoid(margin)


def chi_link(log_ratio: Tensor) -> Tensor:
    r"""φ(z) = z + log z as a function of log z, any shape.

    β φ is χPO's implicit reward, up to a function of x. See `chi_po`.
    """
    return log_ratio.clamp(max=20.0).exp() + log_ratio


def dpop(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, penalty: float) -> Tensor:
    r"""−log σ(β (Δ − λ max(0, −log z_w))) with z = π_θ/π_ref: DPO-positive, which penalises π_θ(y_w) < π_ref(y_w).

    Pal et al. 2024 (Smaug), equation 3. DPO's loss falls whenever Δ rises, also if both responses become less
    probable. Here a chosen response below its reference probability costs λ times its log-ratio more. For λ → 0 the
    optimum is π*. If every response is chosen in some pair, a λ of at least max_y (c π_ref − W + L)/W keeps π_ref,
    where W(y) and L(y) are the fractions of pairs in which y is chosen and rejected, and c = max_y (W − L)/π_ref. In
    between, the optimum has no closed form (derived here).

    Args:
        chosen_log_ratio: log z of the chosen response, any shape, nats.
        rejected_log_ratio: log z of the rejected response.
        beta: β > 0.
        penalty: λ > 0.

    Raises:
        LabError: beta or penalty not above zero; NaN; shapes that do not match.
    """
    beta, penalty = check_beta(beta), check_positive(penalty, "penalty")
    difference = _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return -logsigmoid(beta * (difference - penalty * torch.relu(-chosen_log_ratio)))


def dpo_nll(
    chosen_log_ratio: Tensor,
    rejected_log_ratio: Tensor,
    chosen_log_prob: Tensor,
    chosen_length: Tensor,
    beta: float,
    weight: float,
) -> Tensor:
    r"""−log σ(β Δ) − α log π_θ(y_w|x)/|y_w|: DPO with the negative log-likelihood (NLL) of the chosen response.

    Pang et al. 2024 ("Iterative reasoning preference optimization"), section 2. Liu et al. 2024 ("Provably mitigating
    overoptimization in RLHF", RPO) derive such a loss from a pessimistic objective. The optimum has no closed form. On
    responses of one token it goes from π* (α → 0) to the distribution of the chosen responses (α → ∞). If no
    chosen response is rejected in another pair, every policy without rejected responses minimises DPO's loss, but only
    the distribution of the chosen responses minimises this one (derived here).

    Args:
        chosen_log_ratio: any shape, nats.
        rejected_log_ratio: the same of the rejected response.
        chosen_log_prob: log π_θ(y_w|x), *summed* over tokens, same shape.
        chosen_length: its number of tokens, same shape.
        beta: β > 0.
        weight: α > 0.

    Raises:
        LabError: beta or weight not above zero; a response without tokens; NaN; shapes that do not match.
    """
    weight = check_positive(weight, "weight")
    likelihood = per_token(chosen_log_prob, chosen_length, "chosen_log_prob")
    return dpo(chosen_log_ratio, rejected_log_ratio, beta) + weight * sft(likelihood)


def apo_zero(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    r"""1 − σ(β log z_w) + σ(β log z_l) with z = π_θ/π_ref: anchored preference optimisation (APO), "zero".

    D'Oosterlinck et al. 2024, equation 7, for pairs whose chosen response is better than those of the policy. The two
    responses are not compared with each other, but each with its reference probability. With W(y) and L(y), the
    fractions of pairs in which y is chosen and rejected, the expected loss is 1 − Σ_y (W(y) − L(y)) σ(β log z(y)). As
    with KTO, a response that is rejected more often than it is chosen therefore loses all its probability. The others
    have (W − L) σ'(β log z) ∝ π at the optimum, which is not π* (derived here).

    Args:
        chosen_log_ratio: log z of the chosen response, any shape, nats.
        rejected_log_ratio: log z of the rejected response.
        beta: β > 0.

    Returns:
        values between 0 and 2.

    Raises:
        LabError: beta not above zero; NaN; shapes that do not match.
    """
    beta = check_beta(beta)
    _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return torch.sigmoid(-beta * chosen_log_ratio) + torch.sigmoid(beta * rejected_log_ratio)


def apo_down(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    r"""σ(β log z_w) + 1 − σ(β Δ) with z = π_θ/π_ref: anchored preference optimisation (APO), "down".

    D'Oosterlinck et al. 2024, equation 8, to which the constant 1 is added here, as in TRL. It is for pairs whose
    chosen response is worse than those of the policy: both responses should become less probable, the rejected one
    more so. The loss tends to its infimum 0 only if all chosen responses lose all their probability. If some
    responses are in no pair, and the labels do not contradict each other, the policy converges to these responses. If
    every response is in pairs, the optimum has no closed form, and it is not π* (derived here).

    The arguments, the range and the errors are those of `apo_zero`.
    """
    beta = check_beta(beta)
    difference = _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return torch.sigmoid(beta * chosen_log_ratio) + torch.sigmoid(-beta * difference)


def bco(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float, shift: float | Tensor = 0.0) -> Tensor:
    r"""−log σ(r̂_w − δ) − log σ(δ − r̂_l) with r̂ = β log π_θ/π_ref: binary classifier optimisation (BCO) of pairs.

    Jung et al. 2024. The implicit reward minus the shift δ is the logit of a classifier that separates
    chosen from rejected responses. In the paper δ is a running mean of the implicit rewards, which
    `algorithms.reward_shift` computes. δ = 0 is the loss `bco_pair` of TRL's `DPOTrainer`. With W(y) and L(y), the
    fractions of pairs in which y is chosen and rejected,
    the classifier's optimum is r̂ − δ = log W/L. A policy can reach it only if its probabilities then sum to one, that
    is, at δ = −β log Σ_y π_ref(y) (W(y)/L(y))^{1/β}. The optimum is then π ∝ π_ref (W/L)^{1/β}. With another δ it is
    the solution of (W + L) (σ(log W/L) − σ(r̂ − δ)) ∝ π, in which the normalisation distorts the classifier. The
    running mean converges to δ = ½ Σ_y (W + L) r̂, which is the right shift if KL(W‖L) = KL(L‖W). None of these
    policies is π*, because log W/L is a win rate's logit and not a reward (derived here).

    Args:
        chosen_log_ratio: any shape, nats.
        rejected_log_ratio: the same of the rejected response.
        beta: β > 0.
        shift: δ, finite, in units of reward; a number or a tensor of a shape that broadcasts.

    Returns:
        non-negative values of the broadcast shape.

    Raises:
        LabError: beta not above zero; shift not finite; NaN; shapes that do not match.
    """
    beta = check_beta(beta)
    if isinstance(shift, Tensor):
        check_finite(shift, "shift")
    elif not math.isfinite(shift):
        raise LabError(f"shift must be a finite number, not {shift}.")
    _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return -logsigmoid(beta * chosen_log_ratio - shift) - logsigmoid(shift - beta * rejected_log_ratio)


def sppo(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    r"""(log z_w − 1/(2β))² + (log z_l + 1/(2β))² with z = π_θ/π_ref: self-play preference optimisation (SPPO), hard.

    Wu et al. 2024, equation 4.7 with η = 1/β, where the estimated win rates are replaced by the labels 1 and 0 ("hard",
    as in TRL). The reference is the policy of the last iteration. With W(y) and L(y), the fractions of pairs in which
    y is chosen and rejected, the loss fits log z(y) to m(y) = (p(y) − ½)/β, where p = W/(W + L) is the win rate. These
    targets are those of the paper's update π_ref exp(p/β)/Z, with Z replaced by exp(1/(2β)), so their probabilities
    need not sum to one. The optimum is log z = m − ω(λ π_ref e^m/(W + L)), with Lambert's function ω and the λ for
    which it sums to one (derived here). It is close to the update if 1/β is small. It is not π*.

    Args:
        chosen_log_ratio: log z of the chosen response, any shape, nats.
        rejected_log_ratio: log z of the rejected response.
        beta: β = 1/η > 0. The paper uses η = 1000.

    Returns:
        non-negative values of the broadcast shape, nats².

    Raises:
        LabError: beta not above zero; NaN; shapes that do not match.
    """
    target = 1 / (2 * check_beta(beta))
    _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return (chosen_log_ratio - target).square() + (rejected_log_ratio + target).square()


def per_token(value: Tensor, length: Tensor, name: str = "value") -> Tensor:
    r"""value / |y|, which turns a sum over a response's tokens into a mean.

    Args:
        value: any shape.
        length: number of tokens of the response, the end token included; integers, broadcast with `value`.
        name: name of the value in error messages.

    Raises:
        LabError: a response without tokens; shapes that do not match.
    """
    check_same_shape(**{name: value, f"length of {name}": length})
    if length.device.type == "cpu" and bool((length < 1).any()):
        raise LabError(f"{name} of a response of {int(length.min())} tokens has no mean: drop empty responses.")
    return value / length


def ipo_mean(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, chosen_length: Tensor, rejected_length: Tensor, tau: float
) -> Tensor:
    r"""(Δ̄ − 1/(2τ))², where Δ̄ is the difference of the log-ratios *per token*. IPO's theory does not cover it.

    TRL and other libraries compute IPO in this way. Azar et al. 2023 prove their result for `ipo`, whose optimum
    π_ref exp(p(y ≻ μ)/τ)/Z is a softmax over whole responses. With means the optimum has
    log π/π_ref = |y| (p(y ≻ μ)/τ − c), so the probabilities of long responses change most. If all responses have one
    token, the two losses are equal.

    Args:
        chosen_log_ratio: *summed* over tokens, any shape, nats.
        rejected_log_ratio: the same of the rejected response.
        chosen_length: its number of tokens, same shape.
        rejected_length: the same of the rejected response.
        tau: τ > 0.

    Raises:
        LabError: tau not above zero; a response without tokens; NaN; shapes that do not match.
    """
    _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return ipo(
        per_token(chosen_log_ratio, chosen_length, "chosen_log_ratio"),
        per_token(rejected_log_ratio, rejected_length, "rejected_log_ratio"),
        tau,
    )


def dpo_length(
    chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, chosen_length: Tensor, rejected_length: Tensor, beta: float
) -> Tensor:
    r"""−log σ(β/|y_w| log z_w − β/|y_l| log z_l) with z = π_θ/π_ref: DPO of log-ratios per token.

    Lambert et al. 2024 (Tülu 3), "length-normalized DPO". It has DPO's reference and SimPO's division by the length
    (Meng et al. 2024). Its optimum is π = π_ref exp(|y| (r − c)/β), where c(x) makes it sum to one. If the lengths
    differ, this is not π*. The arguments and errors are those of `ipo_mean`, with β in place of τ.
    """
    beta = check_beta(beta)
    _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return dpo(
        per_token(chosen_log_ratio, chosen_length, "chosen_log_ratio"),
        per_token(rejected_log_ratio, rejected_length, "rejected_log_ratio"),
        beta,
    )


def simpo(
    chosen_log_prob: Tensor,
    rejected_log_prob: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    beta: float,
    target_margin: float = 0.0,
) -> Tensor:
    r"""−log σ( β/|y_w| log π_θ(y_w|x) − β/|y_l| log π_θ(y_l|x) − γ ): SimPO, without a reference.

    Meng et al. 2024, equation 6. At γ = 0 its optimum is π = exp(|y| (r − c)/β), where c(x) makes it sum to one. For
    responses of one token this is π* of a *uniform* reference. γ > 0 adds a target margin to every pair, and the
    optimum has no closed form. The best Δ of a single pair with p(w ≻ l) = p solves p σ(γ−Δ) = (1−p) σ(γ+Δ).

    Args:
        chosen_log_prob: log π_θ(y_w|x), *summed* over tokens, any shape, nats.
        rejected_log_prob: the same of the rejected response.
        chosen_length: its number of tokens, same shape.
        rejected_length: the same of the rejected response.
        beta: β > 0. The paper uses 2 to 10, because β multiplies a mean over tokens.
        target_margin: γ ≥ 0, in the units of β log π. The paper uses about half of β.

    Raises:
        LabError: beta or γ out of range; a response without tokens; NaN; shapes that do not match.
    """
    beta = check_beta(beta)
    if not target_margin >= 0:
        raise LabError(f"target_margin must not be negative, not {target_margin}.")
    _difference(chosen_log_prob, rejected_log_prob, "log_prob")
    chosen = per_token(chosen_log_prob, chosen_length, "chosen_log_prob")
    rejected = per_token(rejected_log_prob, rejected_length, "rejected_log_prob")
    return -logsigmoid(beta * (chosen - rejected) - target_margin)


def orpo(
    chosen_log_prob: Tensor,
    rejected_log_prob: Tensor,
    chosen_length: Tensor,
    rejected_length: Tensor,
    weight: float,
) -> Tensor:
    r"""−log P(y_w|x) − λ log σ( log odds(y_w|x) − log odds(y_l|x) ),  odds = P/(1−P): ORPO, without a reference.

    Hong, Lee & Thorne 2024, equations 6 and 7, with log P(y|x) = log π_θ(y|x)/|y|. The first term is SFT on the chosen
    responses. The loss contains neither β nor a reference, and its optimum is not π*. For responses of one token the
    optimum tends to the distribution of the chosen responses as λ → 0, and to the policy with log odds(y) = r(y) + c(x)
    as λ → ∞.

    Args:
        chosen_log_prob: log π_θ(y_w|x), *summed* over tokens, any shape, nats, at most zero.
        rejected_log_prob: the same of the rejected response.
        chosen_length: its number of tokens, same shape.
        rejected_length: the same of the rejected response.
        weight: λ > 0. The paper uses 0.1 to 1.

    Raises:
        LabError: weight not above zero; a response without tokens; NaN; shapes that do not match.
    """
    weight = check_positive(weight, "weight")
    _difference(chosen_log_prob, rejected_log_prob, "log_prob")
    chosen = per_token(chosen_log_prob, chosen_length, "chosen_log_prob")
    rejected = per_token(rejected_log_prob, rejected_length, "rejected_log_prob")
    return -chosen - weight * logsigmoid(log_odds(chosen) - log_odds(rejected))


def log_odds(log_p: Tensor) -> Tensor:
    r"""log(p/(1−p)) as a function of log p, any shape; p is clamped just below 1, where the odds would be infinite."""
    log_p = log_p.clamp(max=-torch.finfo(log_p.dtype).eps)
    # log(1 − p) in the form that is accurate at this p. The argument is also replaced in the form that is not used,
    # because its gradient could be nan, and nan times 0 is nan.
    near = log_p > -0.6931471805599453
    close = (-torch.expm1(torch.where(near, log_p, -1.0))).log()
    far = torch.log1p(-torch.where(near, -1.0, log_p).exp())
    return log_p - torch.where(near, close, far)


def kto(
    log_ratio: Tensor,
    desirable: Tensor,
    reference_point: Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    r"""λ_D σ(−β (k − z)) of a desirable response, λ_U σ(β (k − z)) of an undesirable one; k = log π_θ/π_ref.

    Ethayarajh et al. 2024 (KTO), equation 8, with λ_y − v written out. z = max(0, reference_point) is an estimate of
    KL(π_θ‖π_ref) without gradient. The loss is between 0 and λ, and it is flat where k is far from z on either side.
    A response that the policy ranks entirely wrongly therefore has as little gradient as one that it has learned.

    With infinite data and a fixed z, the loss depends on a response only through the number
    a(y) = λ_D P(desirable, y) − λ_U P(undesirable, y), and minimising it maximises Σ_y a(y) σ(β (k(y) − z)). Every
    response with a(y) < 0 loses all its probability, even if a(y) is only slightly negative. The optimum is therefore
    not π*. Neither the paper nor this package has a closed form for it.

    Args:
        log_ratio: k, any shape, nats.
        desirable: booleans, same shape.
        reference_point: an estimate of the KL, a number or a tensor that broadcasts; negative values count as 0.
        beta: β > 0.
        desirable_weight: λ_D > 0. The paper recommends λ_D n_D / (λ_U n_U) between 1 and 4/3.
        undesirable_weight: λ_U > 0.

    Raises:
        LabError: numbers out of range; `desirable` not boolean; NaN; shapes that do not match.
    """
    beta = check_beta(beta)
    weights = check_positive(desirable_weight, "λ_D"), check_positive(undesirable_weight, "λ_U")
    check_float(log_ratio, "log_ratio")
    if desirable.dtype != torch.bool:
        raise LabError(f"desirable must contain booleans, not {desirable.dtype}: write labels > 0.")
    check_same_shape(log_ratio=log_ratio, desirable=desirable)
    if log_ratio.device.type == "cpu":
        check_no_nan(log_ratio, "log_ratio")
    z = torch.as_tensor(reference_point, dtype=log_ratio.dtype, device=log_ratio.device).detach().clamp(min=0.0)
    gap = beta * (log_ratio - z)
    if gap.device.type == "cpu":
        check_no_nan(gap, "log_ratio − reference_point (both infinite?)")
    return torch.where(desirable, weights[0] * torch.sigmoid(-gap), weights[1] * torch.sigmoid(gap))


def bradley_terry(chosen_reward: Tensor, rejected_reward: Tensor) -> Tensor:
    r"""−log σ(r_w − r_l): the negative log-likelihood of a label. Lecture, "Preliminaries", ℒ_R.

    Args:
        chosen_reward: r_φ(x, y_w), any shape.
        rejected_reward: r_φ(x, y_l), any shape.

    Raises:
        LabError: NaN; shapes that do not match.
    """
    return -logsigmoid(_difference(chosen_reward, rejected_reward, "reward"))


def sft(log_prob: Tensor) -> Tensor:
    r"""−log π_θ(y|x), the negative log-likelihood of a response. Lecture, "Preliminaries", ℒ_SFT.

    Args:
        log_prob: log π_θ(y|x), summed over the response's tokens, any shape, nats.

    Returns:
        nats a response, in the shape of `log_prob`; not negative.
    """
    return -log_prob


def clipped_surrogate(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    r"""−min( ρ A, clip(ρ, 1 − ε, 1 + ε) A ) with ρ = π_θ/π_old: minus the clipped surrogate objective.

    Schulman et al. 2017 (PPO), equation 7. Where A > 0 the gradient is cut once ρ > 1 + ε, where A < 0 once ρ < 1 − ε;
    a move in the wrong direction is never cut. At ρ = 1 the gradient is −A ∇log π_θ. PPO and GRPO (Shao et al. 2024,
    equation 3) call it with the ratio of each token. RLOO calls it with the ratio of the whole response.

    Args:
        log_ratio: log π_θ − log π_old of each action, any shape, nats.
        advantage: A, a shape that broadcasts with `log_ratio`. No gradient should run through it.
        clip: ε > 0.

    Returns:
        values of the broadcast shape.
    """
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def clipped_value_loss(value: Tensor, old_value: Tensor, returns: Tensor, clip: float) -> Tensor:
    r"""½ max( (V − R)², (V_old + clip(V − V_old, −ε, ε) − R)² ): the critic's loss with a limited change of V.

    The value clip of OpenAI's implementations of PPO (Huang et al. 2022, "The 37 implementation details of PPO", detail
    9). It takes the larger of two squared errors, so it bounds the loss from below. The gradient is that of ½ (V − R)²,
    except where the clipped error is the larger one: there it is 0.

    Args:
        value: V, any shape.
        old_value: V before the update, same shape.
        returns: R, same shape.
        clip: ε > 0, in the units of the values.

    Returns:
        non-negative values of the same shape.
    """
    near = old_value + (value - old_value).clamp(-clip, clip)
    return torch.maximum((value - returns).square(), (near - returns).square()) / 2


def group_advantages(
    scores: Tensor,
    leave_one_out: bool,
    divide_by: Divisor = "nothing",
    doubt: Tensor | float = 0.0,
) -> Tensor:
    r"""The advantage of each response over its group, A_i = (s_i − b_i) / d.

    The baseline b_i is the mean of the other responses' scores (`leave_one_out`: RLOO, Ahmadian et al. 2024, section 3)
    or the mean of all (GRPO). Since s_i − mean_{j≠i} s_j = G/(G−1) (s_i − mean_j s_j), the two differ by a factor.
    There are two conventions for the standard deviation, and their advantages differ by the factor √((G−1)/G):

    - "population std" divides by √(Σ (s_j − mean)²/G);
    - "sample std" divides by √(Σ (s_j − mean)²/(G−1)) + 10⁻⁶, as in Stanford's CS336, assignment 5 (2025), and in every
      code that calls `torch.std` with its default.

    Where all scores of a group are equal within rounding the advantages are exactly 0; see `rounding.centred`.

    Args:
        scores: s, (…, G).
        leave_one_out: whether a response's own score is left out of its baseline.
        divide_by: d.
        doubt: how far a difference of two scores may be off because of rounding in what they were computed from, (…, 1)
            or a number; see `rlhf_lab.rounding`.

    Returns:
        (…, G). Their sum over a group is 0.
    """
    if divide_by == "population std":
        out = standardised(scores, doubt)
    else:
        out = centred(scores, doubt)
        if divide_by == "sample std":
            out = out / (scores.std(-1, keepdim=True) + 1e-6)
    group = scores.shape[-1]
    return out * (group / (group - 1)) if leave_one_out else out


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of `values` over the places where `mask` is True, a scalar.

    Args:
        values: any shape.
        mask: booleans, same shape; at least one is True.
    """
    return (values * mask).sum() / mask.sum()


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return Σ w_i v_i / Σ w_i, a scalar; the plain mean without weights, and 0 where all weights are 0.

    Args:
        values: (B,).
        weight: w ≥ 0, (B,), or None.
    """
    if weight is None:
        return values.mean()
    weight = weight.to(values.device, values.dtype)
    total = weight.sum()
    # One part of a batch may contain only rows of weight 0. It adds nothing to the step, where 0/0 would destroy it.
    return (values * weight).sum() / torch.where(total > 0, total, 1.0)


def dpo_gradient_weight(chosen_log_ratio: Tensor, rejected_log_ratio: Tensor, beta: float) -> Tensor:
    r"""σ(r̂_l − r̂_w) with r̂ = β log-ratio, in (0, 1): the weight of a pair in DPO's gradient,

        ∇ℒ = −β E[ σ(r̂_l − r̂_w) (∇log π_θ(y_w|x) − ∇log π_θ(y_l|x)) ].

    The weight is near 1 if the implicit reward ranks the pair incorrectly, ½ at the start of training, and near 0 once
    the pair is learned. It does not include the factor β. Rafailov et al. 2023, section 4; lecture, "DPO Objective
    Function".
    """
    margin = check_beta(beta) * _difference(chosen_log_ratio, rejected_log_ratio, "log_ratio")
    return torch.sigmoid(-margin)
