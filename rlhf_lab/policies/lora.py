"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) through peft, and the reference that they give for free.

    W' = W + (α/r) B A,     A ∈ ℝ^{r×in} random, B ∈ ℝ^{out×r} zero, W frozen

With B = 0 the policy starts at π_ref, and π_ref is at any time the same model with its adapters switched off: no
second copy of the weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.language_model import LanguageModelPolicy

P = TypeVar("P", bound=LanguageModelPolicy)


def with_lora(
    policy: LanguageModelPolicy,
    rank: int = 8,
    alpha: float | None = None,
    targets: Sequence[str] | str | None = None,
    seed: int = 0,
) -> LoraPolicy:
    """A policy whose weights are `policy`'s, frozen and shared, under trainable adapters that change nothing yet.

    Args:
        policy: the language model to adapt; its model object is wrapped, not copied.
        rank: r, the adapters' inner width.
        alpha: the adapters' product is scaled by alpha / rank; None for 2·rank.
        targets: names of the linear layers to adapt; "all-linear" for all; None for what peft knows to be usual for
            the architecture.
        seed: of the adapters' A matrices.

    Raises:
        LabError: peft is not installed, a rank below 1, or targets that the model doesn't have.
    """
    check_lora_rank(rank, policy.model.config)
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise LabError("LoRA needs peft: pip install 'rlhf-lab[lora]'.") from error
    chosen: Any = targets if targets is None or isinstance(targets, str) else list(targets)
    scale: Any = 2 * rank if alpha is None else alpha
    settings = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=0.0, target_modules=chosen, task_type="CAUSAL_LM")
    if any(type(m).__name__ == "Conv1D" for m in policy.model.modules()):
        settings.fan_in_fan_out = True  # GPT-2 stores its weights the other way around
    # peft initialises from the global generator, which is put back as it was.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                # peft asks transformers by a name that is going out of use; no user can do anything about it.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                model = get_peft_model(policy.model, settings)
        except ValueError as error:
            raise LabError(f"The adapters do not fit the model: {error}") from error
    return _like(LoraPolicy, policy, model)


def check_lora_rank(rank: int, config: Any) -> None:
    """Raise `LabError` unless adapters of `rank` are narrower than, or as wide as, the model of `config`."""
    width = config.get_text_config().hidden_size
    if not 1 <= rank <= width:
        raise LabError(
            f"lora_rank must be a whole number between 1 and {width}, the model's hidden size, not {rank}: wider "
            f"adapters have more weights than the layers that they adapt. Usual are 8 to 64."
        )


def _like(kind: type[P], policy: LanguageModelPolicy, model: nn.Module) -> P:
    """A policy of this kind on `model`, with the settings of `policy`."""
    return kind(
        model, policy.end_token, policy.max_new_tokens, policy.vocab_size, policy.tokenizer, policy.cuda_graphs,
        policy.end_tokens,
    )  # fmt: skip


class LoraPolicy(LanguageModelPolicy):
    """A `LanguageModelPolicy` on a peft model: the adapters train, everything below them is frozen."""

    def reference(self) -> AdapterReference:
        """π_ref: this very model with its adapters off."""
        return AdapterReference(self)

    def copy(self) -> LoraPolicy:
        """A copy with adapters and frozen weights of its own; what is frozen here is frozen there."""
        import copy

        return copy.deepcopy(self)

    def merged(self) -> LanguageModelPolicy:
        """A plain policy with the adapters' product added to the weights, on a copy."""
        import copy

        plain = copy.deepcopy(self.model).merge_and_unload()
        return _like(LanguageModelPolicy, self, plain)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapters alone, as peft's `from_pretrained` reads them."""
        self.model.save_pretrained(check_path(folder, "folder"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the merged model, and the tokenizer if there is one: it loads without peft."""
        self.merged().save_pretrained(folder)

    def new_reward_model(self) -> nn.Module:
        """A reward model on a copy of the merged body."""
        return self.merged().new_reward_model()

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """A critic on a copy of `reward_model`'s body and head, or else of the merged body."""
        return self.merged().new_critic(reward_model)


class AdapterReference(Policy):
    """π_ref as a view of a `LoraPolicy` with its adapters off. It holds no weights of its own and trains none."""

    cache_note = "adapters off"

    def __init__(self, policy: LoraPolicy) -> None:
        """A view of `policy`, which may go on training."""
        super().__init__()
        # In a tuple, so that the policy's weights are not registered as this module's.
        self._policy = (policy,)

    @property
    def policy(self) -> LoraPolicy:
        """The policy that is looked through."""
        return self._policy[0]

    @torch.no_grad()
    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """See `Policy.token_log_probs`; without gradients."""
        with self.policy.model.disable_adapter():
            return self.policy.token_log_probs(prompts, responses, temperature)

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        """See `Policy.sample`."""
        with self.policy.model.disable_adapter():
            return self.policy.sample(prompts, num_samples, generator, temperature, top_k)

    def frozen(self) -> AdapterReference:
        """Itself: it is frozen already."""
        return self

    def copy(self) -> LanguageModelPolicy:  # type: ignore[override]
        """A trainable plain policy with these weights: the model without its adapters, copied."""
        import copy

        plain = copy.deepcopy(self.policy.model).unload()
        plain.requires_grad_(True)
        return _like(LanguageModelPolicy, self.policy, plain)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The frozen weights that decide this reference's numbers, without the adapters."""
        whole = self.policy.model.state_dict()
        return {name: value for name, value in whole.items() if "lora_" not in name}

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return self.policy.device
