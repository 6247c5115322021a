"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) by peft, and the reference policy without them.

    W' = W + (α/r) B A,     A ∈ ℝ^{r×in} random, B ∈ ℝ^{out×r} zero, W frozen

With B = 0 the policy starts at π_ref. Later, π_ref is the same model with its adapters switched off, so that no second
copy of the weights is needed. A reward model or ranker on the body of such a model trains the adapters and its head.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    dropout: float = 0.0,
    rank_stabilised: bool = False,
) -> LoraPolicy:
    """Add trainable adapters to a policy, whose weights are frozen. At first the adapters change nothing (B = 0).

    Args:
        policy: the language model to adapt; its model object is wrapped, not copied.
        rank: r, the inner width of the adapters.
        alpha: the product BA is scaled by alpha / rank; None for 2·rank.
        targets: names of the linear layers to adapt; "all-linear" for all of them; None for peft's default for the
            architecture.
        seed: of the initial values of A.
        dropout: probability with which an input of the adapters is set to 0 when a gradient is computed, in [0, 1). It
            draws from the global generator, which `training.Loop` seeds for each step.
        rank_stabilised: scale BA by alpha / √rank (rsLoRA, Kalajdzievski 2023), in place of alpha / rank.

    Returns:
        The policy with adapters.

    Raises:
        LabError: peft is not installed, the rank is not between 1 and the hidden size, or the model does not have the
            targets.
    """
    check_lora_rank(rank, policy.model.config)
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise LabError("LoRA needs peft: pip install 'rlhf-lab[lora]'.") from error
    chosen: Any = targets if targets is None or isinstance(targets, str) else list(targets)
    scale: Any = 2 * rank if alpha is None else alpha
    settings = LoraConfig(
        r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=chosen, task_type="CAUSAL_LM",
        use_rslora=rank_stabilised,
    )  # fmt: skip
    if any(type(m).__name__ == "Conv1D" for m in policy.model.modules()):
        settings.fan_in_fan_out = True  # GPT-2 stores its weights transposed
    # peft initialises from the global generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                # peft uses a deprecated name of transformers, which users cannot change.
                warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
                model = get_peft_model(policy.model, settings)
        except ValueError as error:
            raise LabError(f"The adapters do not fit the model: {error}") from error
    adapted = _like(LoraPolicy, policy, model)
    adapted.adapter_dropout = float(dropout)
    return adapted


def check_lora_rank(rank: int, config: Any) -> None:
    """Raise `LabError` unless `rank` is between 1 and the hidden size of a model with this configuration."""
    width = config.get_text_config().hidden_size
    if not 1 <= rank <= width:
        raise LabError(
            f"lora_rank must be a whole number between 1 and {width}, the model's hidden size, not {rank}. Adapters of "
            f"higher rank have more weights than the layers that they adapt. Common values are 8 to 64."
        )


def _like(kind: type[P], policy: LanguageModelPolicy, model: nn.Module) -> P:
    """A policy of this class on `model`, with the settings of `policy`."""
    return kind(
        model, policy.end_token, policy.max_new_tokens, policy.vocab_size, policy.tokenizer, policy.cuda_graphs,
        policy.end_tokens,
    )  # fmt: skip


@contextmanager
def adapters_drop(module: nn.Module, probability: float) -> Iterator[None]:
    """Inside the `with` block, set inputs of the adapters to 0 with this probability if a gradient is computed.

    Args:
        module: a model or body with adapters of any kind, or without.
        probability: in [0, 1); 0 changes nothing.
    """
    active = torch.is_grad_enabled() and probability > 0
    parts = [m for name, m in module.named_modules() if ".lora_dropout." in name] if active else []
    for part in parts:
        part.p, part.training = probability, True
    try:
        yield
    finally:
        for part in parts:
            part.p, part.training = 0.0, False


def freeze_all_but_adapters(body: nn.Module) -> None:
    """Freeze the weights of a body with adapters, except the adapters. Without adapters nothing is frozen."""
    weights = dict(body.named_parameters())
    if any("lora_" in name for name in weights):
        for name, weight in weights.items():
            weight.requires_grad_("lora_" in name)


def merged_body(body: nn.Module) -> nn.Module:
    """Return a copy of a body with the adapters' product added to its weights; without adapters, the body itself."""
    if not any("lora_" in name for name, _ in body.named_parameters()):
        return body
    from peft.tuners.tuners_utils import BaseTunerLayer

    twin = copy.deepcopy(body)
    for name, layer in [(n, m) for n, m in twin.named_modules() if isinstance(m, BaseTunerLayer)]:
        layer.merge()
        twin.set_submodule(name, layer.get_base_layer())
    return twin


class LoraPolicy(LanguageModelPolicy):
    """A `LanguageModelPolicy` on a peft model, of which only the adapters are trained.

    Attributes:
        adapter_dropout: dropout of the adapters' inputs while a gradient is computed; 0 at all other times.
    """

    adapter_dropout: float = 0.0

    @contextmanager
    def _forward_mode(self) -> Iterator[None]:
        """Without dropout, except that of the adapters while a gradient is computed."""
        with super()._forward_mode(), adapters_drop(self.model, self.adapter_dropout):
            yield

    def reference(self) -> AdapterReference:
        """Return π_ref, which is this model with its adapters switched off."""
        return AdapterReference(self)

    def copy(self) -> LoraPolicy:
        """Return a copy that shares no weights with this policy. The same weights are frozen."""
        return copy.deepcopy(self)

    def merged(self) -> LanguageModelPolicy:
        """Return a policy without adapters, on a copy of the model with the adapters' product added to its weights."""
        plain = copy.deepcopy(self.model).merge_and_unload()
        return _like(LanguageModelPolicy, self, plain)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapters only, in the format of peft's `from_pretrained`."""
        self.model.save_pretrained(check_path(folder, "folder"))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the merged model, which can be loaded without peft, and the tokenizer if there is one."""
        self.merged().save_pretrained(folder)

    def new_reward_model(self) -> nn.Module:
        """Return a reward model on a copy of the merged body."""
        return self.merged().new_reward_model()

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """Return a critic on a copy of `reward_model`'s body and head, or on a copy of the merged body."""
        return self.merged().new_critic(reward_model)


class AdapterReference(Policy):
    """π_ref as a view of a `LoraPolicy` with its adapters switched off. It has no separate weights."""

    def __init__(self, policy: LoraPolicy) -> None:
        """Create a view of `policy`, whose training may continue."""
        super().__init__()
        # The policy is in a tuple, so that its weights are not registered as those of this module.
        self._policy = (policy,)

    @property
    def policy(self) -> LoraPolicy:
        """The policy with adapters."""
        return self._policy[0]

    @property
    def cache_note(self) -> str:
        """What determines the numbers besides the weights; see `reference_cache.cache_key`."""
        return f"adapters off {self.policy.model.config.to_json_string(use_diff=False)}"

    @torch.no_grad()
    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π_ref(y_t | x, y_<t) without gradients; see `Policy.token_log_probs`."""
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
        """Sample from π_ref; see `Policy.sample`."""
        with self.policy.model.disable_adapter():
            return self.policy.sample(prompts, num_samples, generator, temperature, top_k)

    def frozen(self) -> AdapterReference:
        """Return the same object, because it is frozen already."""
        return self

    def copy(self) -> LanguageModelPolicy:  # type: ignore[override]
        """Return a trainable policy with the weights of π_ref, on a copy of the model without its adapters."""
        plain = copy.deepcopy(self.policy.model).unload()
        plain.requires_grad_(True)
        return _like(LanguageModelPolicy, self.policy, plain)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights of π_ref, without those of the adapters."""
        whole = self.policy.model.state_dict()
        return {name: value for name, value in whole.items() if "lora_" not in name}

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.policy.device
