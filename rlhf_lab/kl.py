r"""Three estimators of KL(π‖π_ref) from one sample y ~ π, and their gradients when they are used as a loss.

With k = log π(y) − log π_ref(y):

    k1 = k                  E[k1] = KL      either sign, high variance
    k2 = k²/2               E[k2] ≠ KL      biased, non-negative
    k3 = e^{−k} − 1 + k     E[k3] = KL      non-negative

An estimator with the correct *value* need not have the correct *gradient*. As a term of a loss it is differentiated at
samples drawn from π, and the samples themselves carry no gradient. The expected gradients are then

    ∇k1: 0          ∇k2: ∇KL(π‖π_ref)          ∇k3: ∇KL(π_ref‖π)

As a loss, k1 therefore has no effect on average, and k3 minimises the other KL divergence. As a part of the *reward*,
k1 gives ∇KL(π‖π_ref), because the policy gradient also differentiates the sampling.

Schulman 2020, "Approximating KL divergence". Each gradient follows in one line from E_π[∇log π] = 0. The exact KL
over an enumerated set of responses is `rlhf_lab.exact.kl`.
"""

import torch
from torch import Tensor

from rlhf_lab.errors import check_float, check_no_nan, check_same_shape


def _log_ratio(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    check_float(log_policy, "log_policy")
    check_float(log_ref, "log_ref")
    check_same_shape(log_policy=log_policy, log_ref=log_ref)
    # On an accelerator these checks would wait for its results. There the training loop checks the loss.
    if log_policy.device.type == "cpu":
        check_no_nan(log_policy, "log_policy")
        check_no_nan(log_ref, "log_ref")
        check_no_nan(
            (log_policy - log_ref).detach(),
            "log_policy − log_ref (both infinite: is it a sample that neither policy can draw?)",
        )
    return log_policy - log_ref


def k1(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    r"""k = log π − log π_ref, an unbiased estimator of KL(π‖π_ref) under y ~ π.

    As a loss its expected gradient is zero.

    Args:
        log_policy: log π(y|x) of sampled responses (or of each token), any shape, nats.
        log_ref: log π_ref of the same responses, same shape.

    Returns:
        k, with the shape of the arguments. It is positive where the policy gives y a larger probability than the
        reference does. With the opposite sign, a penalty would reward the distance from the reference.

    Raises:
        LabError: NaN; shapes that do not match.
    """
    return _log_ratio(log_policy, log_ref)


def k2(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    r"""k²/2, a biased estimator of KL(π‖π_ref), which agrees with it to second order in k.

    As a loss its expected gradient under y ~ π is exactly ∇KL(π‖π_ref). Arguments and errors are those of `k1`.
    """
    return _log_ratio(log_policy, log_ref).square() / 2


def k3(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    r"""e^{−k} − 1 + k ≥ 0, an unbiased estimator of KL(π‖π_ref) under y ~ π.

    As a loss its expected gradient is that of the other divergence, ∇KL(π_ref‖π). It is unbiased only if π has mass
    wherever π_ref has mass, because only then is the mean of e^{−k} − 1 zero. Arguments and errors are those of `k1`.
    """
    k = _log_ratio(log_policy, log_ref)
    # For an infinite k the result is infinite, but the sum below would be ∞ − ∞.
    infinite = torch.isinf(k)
    k = torch.where(infinite, 0.0, k)
    return torch.where(infinite, torch.inf, torch.expm1(-k) + k)
