r"""Three estimators of KL(π‖π_ref) from one sample y ~ π, and what happens when they are put into a loss.

With k = log π(y) − log π_ref(y):

    k1 = k                  E[k1] = KL, any sign, high variance
    k2 = k²/2               E[k2] ≠ KL: biased, non-negative
    k3 = e^{−k} − 1 + k     E[k3] = KL, non-negative

A right *value* does not make a right *gradient*. Differentiated as a loss term under samples drawn from π (the
samples themselves carry no gradient), the expected gradients are

    ∇k1: 0          ∇k2: ∇KL(π‖π_ref)          ∇k3: ∇KL(π_ref‖π)

so k1 in a loss does nothing on average, and k3 pulls along the other KL. In a *reward*, where the policy
gradient differentiates the sampling, k1 gives ∇KL(π‖π_ref).

Schulman 2020, "Approximating KL divergence"; the gradients are one line each from E_π[∇log π] = 0. Exact KL over
an enumerated set is `rlhf_lab.exact.kl`.
"""

import torch
from torch import Tensor

from rlhf_lab.errors import check_float, check_no_nan, check_same_shape


def _log_ratio(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    check_float(log_policy, "log_policy")
    check_float(log_ref, "log_ref")
    check_same_shape(log_policy=log_policy, log_ref=log_ref)
    if log_policy.device.type == "cpu":  # on a device this would wait; there the training loop watches the loss
        check_no_nan(log_policy, "log_policy")
        check_no_nan(log_ref, "log_ref")
        check_no_nan(
            (log_policy - log_ref).detach(),
            "log_policy − log_ref (both infinite: a sample that neither can draw?)",
        )
    return log_policy - log_ref


def k1(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    r"""k = log π − log π_ref. Unbiased for KL(π‖π_ref) under y ~ π; as a loss its expected gradient is zero.

    Args:
        log_policy: log π(y|x) of sampled y (or of each token), any shape, nats.
        log_ref: log π_ref of the same, same shape.

    Returns:
        the shape of the arguments; positive where the policy favours y more than the reference does. With the
        ratio turned round it would pay for drift.

    Raises:
        LabError: NaN; shapes that do not match.
    """
    return _log_ratio(log_policy, log_ref)


def k2(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    r"""k²/2. Biased for KL(π‖π_ref) (equal to second order in k); as a loss its expected gradient under y ~ π is
    exactly ∇KL(π‖π_ref). Arguments and errors as in `k1`.
    """  # noqa: D205
    return _log_ratio(log_policy, log_ref).square() / 2


def k3(log_policy: Tensor, log_ref: Tensor) -> Tensor:
    r"""e^{−k} − 1 + k ≥ 0. Unbiased for KL(π‖π_ref) under y ~ π; as a loss its expected gradient is that of the
    other divergence, ∇KL(π_ref‖π). Arguments and errors as in `k1`.

    Unbiased only where π has mass wherever π_ref has: the correction e^{−k} − 1 averages to zero under that.
    """  # noqa: D205
    k = _log_ratio(log_policy, log_ref)
    # At both ends the exponential or k alone decides; their sum would be ∞ − ∞.
    infinite = torch.isinf(k)
    k = torch.where(infinite, 0.0, k)
    return torch.where(infinite, torch.inf, torch.expm1(-k) + k)
