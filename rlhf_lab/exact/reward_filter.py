r"""ReST's reward filter: the policy to which one Grow step, one filter and supervised fine-tuning converge.

    π_τ(y|x) = π_ref(y|x) 1[r(x,y) > τ] / P_ref(r > τ)

Gulcehre et al. 2023 (ReST), the filter F(x,y;τ) = 1[R(x,y) > τ]; lecture, "Reinforced Self-Training Algorithm".
"""

import torch
from torch import Tensor

from rlhf_lab.errors import LabError, first_true_index
from rlhf_lab.exact.policy import _check
from rlhf_lab.rounding import wins


def filtered(log_ref: Tensor, reward: Tensor, threshold: Tensor | float) -> Tensor:
    r"""log of π_ref conditioned on r > τ, shape (…, K): the limit of ReST's filter and SFT with infinitely many data.

    It is not π*. Above the threshold all responses keep the proportions of π_ref, however large their rewards are.

    Args:
        log_ref: (…, K).
        reward: (…, K), finite.
        threshold: τ, a number or a tensor that broadcasts to (…, 1), in units of reward. The inequality is strict,
            and a reward that equals τ within rounding does not pass the filter.

    Raises:
        LabError: no response with mass passes the filter in some row (the message names the row, its best reward
            and τ); inputs as in `best_of_n`.
    """
    _check(log_ref, reward)
    threshold = torch.as_tensor(threshold, dtype=reward.dtype, device=reward.device)
    if torch.isnan(threshold).any():
        raise LabError("threshold is NaN. Give a number in units of reward.")
    log_ref, reward = torch.broadcast_tensors(log_ref, reward)
    passes = (wins(reward, threshold) == 1) & (log_ref > -torch.inf)
    none = ~passes.any(-1)
    if none.any():
        best = torch.where(log_ref > -torch.inf, reward, -torch.inf).amax(-1)[none][0].item()
        tau = torch.broadcast_to(threshold, reward.shape)[..., 0][none][0].item()
        place = f" at {first_true_index(none)}" if none.ndim else ""
        raise LabError(
            f"No response passes the filter{place}: the best reward is {best:g} and the threshold {tau:g} "
            f"(r > threshold is strict). Lower the threshold."
        )
    kept = torch.where(passes, log_ref, -torch.inf)
    return kept - kept.logsumexp(-1, keepdim=True)
