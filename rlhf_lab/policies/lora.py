"""Low-rank adapters (LoRA, Hu et al. 2021, arXiv:2106.09685) by peft, and the reference policy without them.

    W' = W + (α/r) B A,     A ∈ ℝ^{r×in} random, B ∈ ℝ^{out×r} zero, W frozen

With B = 0 the policy starts at π_ref. Later, π_ref is the same model with its adapters switched off, so that no second
copy of the weights is needed. If adapters are trained further, π_ref is the model with these adapters as they were. A
frozen copy of them, a small part of all weights, is then in the same model. A reward model or ranker on the body of a
model with adapters trains them and its head.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_path, check_weights, spaces_hint
from rlhf_lab.policies import quantised
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import check_adapter_names, fitting_adapters, quiet_peft, without_weights

P = TypeVar("P", bound=LanguageModelPolicy)

TRAINED, START = "default", "start"
"""peft's names of the adapters that are trained, and of the frozen copy of adapters that are trained further."""


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
            architecture. Each name must be that of a layer.
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
    model = _with_adapters(policy.model, rank, alpha, targets, seed, dropout, rank_stabilised)
    adapted = _like(LoraPolicy, policy, model)
    adapted.adapter_dropout = float(dropout)
    return adapted


def _with_adapters(
    model: Any,
    rank: int,
    alpha: float | None = None,
    targets: Sequence[str] | str | None = None,
    seed: int = 0,
    dropout: float = 0.0,
    rank_stabilised: bool = False,
) -> Any:
    """Return a peft model with new adapters around `model`; the arguments are those of `with_lora`."""
    check_peft()
    from peft import LoraConfig, get_peft_model

    chosen: Any = targets if targets is None or isinstance(targets, str) else list(targets)
    if chosen in (["all-linear"], "all-linear"):
        chosen = "all-linear"
    elif isinstance(chosen, list):
        _check_targets(model, chosen)
    scale: Any = 2 * rank if alpha is None else alpha
    settings = LoraConfig(
        r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=chosen, task_type="CAUSAL_LM",
        use_rslora=rank_stabilised,
    )  # fmt: skip
    if any(type(m).__name__ == "Conv1D" for m in model.modules()):
        settings.fan_in_fan_out = True  # GPT-2 stores its weights transposed
    # peft initialises from the global generator, whose state is restored afterwards.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            with quiet_peft():
                return get_peft_model(model, settings)
        except ValueError as error:
            raise LabError(f"The adapters do not fit the model: {error}") from error


def _check_targets(model: nn.Module, targets: Sequence[str]) -> None:
    """Raise `LabError` if a name is not that of a layer. peft ignores such a name if another one fits."""
    names = [name for name, _ in model.named_modules()]
    wrong = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in names if name)]
    if not wrong:
        return
    linear = {name.rpartition(".")[2] for name, m in model.named_modules() if type(m).__name__ in ("Linear", "Conv1D")}
    raise LabError(
        f"lora_targets contains {wrong[0]!r}, and the model has no layer of this name. Its linear layers are "
        f"{', '.join(sorted(linear))}.{spaces_hint(wrong[0])}"
    )


def check_new_adapters(config: Any, rank: int, targets: Sequence[str]) -> None:
    """Raise the errors of `with_lora` for a model of which only the configuration is known.

    Args:
        config: the configuration of a causal language model.
        rank: of the adapters.
        targets: names of the layers that get them. Empty: peft's default.
    """
    check_lora_rank(rank, config)
    _with_adapters(without_weights(config), rank, targets=targets or None)


def check_saved_adapters(config: Any, folder: Path, base: str) -> None:
    """Raise `LabError` if adapters in a folder do not fit a base of which only the configuration is known.

    Adapters that are not plain LoRA are not checked.

    Args:
        config: the configuration of the base.
        folder: of the adapters.
        base: name of the base, for messages.
    """
    check_peft()
    from peft import LoraConfig, PeftConfig, get_peft_model

    with fitting_adapters(folder, base):
        settings: Any = PeftConfig.from_pretrained(str(folder))
        if isinstance(settings, LoraConfig) and not _odd_settings(settings):
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                check_adapter_names(get_peft_model(without_weights(config), settings), folder)


def continue_lora(
    policy: LanguageModelPolicy, folder: str | Path, base: str, dropout: float = 0.0, reference: bool = True
) -> LoraPolicy:
    """Add adapters that were trained before, to train them further. The policy's weights are frozen.

    Args:
        policy: the base of the adapters; its model object is wrapped, not copied.
        folder: of the adapters, as peft writes it.
        base: name of the base, for messages.
        dropout: as of `with_lora`.
        reference: whether the policy has a reference, which needs a frozen copy of the adapters.

    Returns:
        The policy with the adapters. Its reference has the adapters as they are in the folder.

    Raises:
        LabError: peft is not installed, these are not plain LoRA adapters, or they do not fit the base.
    """
    folder = check_path(folder, "folder")
    config = adapter_config(folder)
    config.lora_dropout = dropout
    from peft import PeftModel

    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), fitting_adapters(folder, base):
        model = PeftModel.from_pretrained(policy.model, str(folder), is_trainable=True, config=config)
        check_adapter_names(model, folder)
        if reference:
            model.load_adapter(str(folder), START)
            model.set_adapter(TRAINED)
    check_weights(
        ((name, p) for name, p in model.named_parameters() if "lora_" in name),
        lambda name: str(folder / "adapter_model.safetensors"),
    )
    adapted = _like(LoraPolicy, policy, model)
    adapted.adapter_dropout = float(dropout)
    return adapted


_NOT_PLAIN = (
    "modules_to_save", "trainable_token_indices", "target_parameters", "layer_replication", "use_dora", "lora_bias",
)  # fmt: skip
"""Settings of peft by which adapters train more than A and B."""


def adapter_config(folder: Path, **given: Any) -> Any:
    """Return peft's configuration of LoRA adapters that will be trained further.

    Args:
        folder: of the adapters.
        given: settings of the command about adapters, by name, which must be those of the adapters. None and empty ones
            are not compared.

    Raises:
        LabError: peft is not installed, these are not plain LoRA adapters, or they have other settings.
    """
    check_peft()
    from peft import LoraConfig, PeftConfig

    try:
        config: Any = PeftConfig.from_pretrained(str(folder))
    except Exception as error:
        raise LabError(
            f"{folder / 'adapter_config.json'} is damaged ({type(error).__name__}). Save it again."
        ) from None
    odd = _odd_settings(config)
    if not isinstance(config, LoraConfig) or odd:
        what = f"plain LoRA; they have the setting {odd[0]}" if odd else f"LoRA, but {config.peft_type}"
        raise LabError(
            f"The adapters in {folder} are not {what}. Such adapters cannot be trained further here. Leave "
            f"adapter=continue out, and they are merged."
        )
    names = config.target_modules
    theirs = {
        "lora_rank": config.r,
        "lora_alpha": config.lora_alpha,
        "lora_targets": names if isinstance(names, str) else tuple(sorted(names or ())),
        "lora_rank_stabilised": config.use_rslora,
    }
    for name, value in given.items():
        value = tuple(sorted(value)) if isinstance(value, tuple) else value
        if value and value != theirs[name]:
            ours, other = (" ".join(one) if isinstance(one, tuple) else repr(one) for one in (value, theirs[name]))
            raise LabError(
                f"{name}={ours} does not fit the adapters in {folder}, which have {other}. Leave it out, because "
                f"adapters that are trained further keep their shape."
            )
    return config


def _odd_settings(config: Any) -> list[str]:
    """The settings of peft by which adapters are not plain LoRA."""
    odd = [name for name in _NOT_PLAIN if getattr(config, name, None)]
    return [*odd, "bias"] if getattr(config, "bias", "none") != "none" else odd


def check_peft() -> None:
    """Raise `LabError` if peft is not installed."""
    if find_spec("peft") is None:
        raise LabError("LoRA needs peft: pip install 'rlhf-lab[lora]'.")


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


def train_adapters_or_all(body: nn.Module) -> None:
    """Train the adapters of a body and freeze its other weights. Without adapters all weights are trained."""
    weights = dict(body.named_parameters())
    adapted = any("lora_" in name for name in weights)
    for name, weight in weights.items():
        weight.requires_grad_("lora_" in name or not adapted)


def merged_body(body: nn.Module) -> nn.Module:
    """Return a copy of a body with the adapters' product added to its weights; without adapters, the body itself.

    Of weights in 4 bits the copy has the float32 values with which the body was trained.
    """
    if not any("lora_" in name for name, _ in body.named_parameters()):
        return body
    from peft.tuners.tuners_utils import BaseTunerLayer

    twin = copy.deepcopy(body)
    four_bits, changes = quantised.is_quantised(twin), dict[str, Tensor]()
    adapted: list[tuple[str, Any]] = [(n, m) for n, m in twin.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in adapted:
        if four_bits:
            changes[name] = layer.get_delta_weight(TRAINED)
        else:
            layer.merge()
        twin.set_submodule(name, layer.get_base_layer())
    return quantised.dequantised(twin, changes) if four_bits else twin


class LoraPolicy(LanguageModelPolicy):
    """A `LanguageModelPolicy` on a peft model, of which only the adapters are trained.

    Attributes:
        adapter_dropout: dropout of the adapters' inputs while a gradient is computed; 0 at all other times.
    """

    adapter_dropout: float = 0.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Create a policy on a peft model; the arguments are those of `LanguageModelPolicy`."""
        super().__init__(*args, **kwargs)
        leave_out_frozen(self, "model")

    @property
    def continues(self) -> bool:
        """Whether the adapters had been trained before, so that π_ref has adapters too."""
        return START in self.model.peft_config

    @contextmanager
    def as_reference(self) -> Iterator[None]:
        """Within the block the model is π_ref: its adapters are off, or those with which the training started."""
        if not self.continues:
            with self.model.disable_adapter():
                yield
            return
        self.model.set_adapter(START)
        try:
            yield
        finally:
            self.model.set_adapter(TRAINED)

    @contextmanager
    def _forward_mode(self) -> Iterator[None]:
        """Without dropout, except that of the adapters while a gradient is computed."""
        with super()._forward_mode(), adapters_drop(self.model, self.adapter_dropout):
            yield

    def reference(self) -> AdapterReference:
        """Return π_ref, which is this model with its adapters switched off, or as they were at the start."""
        return AdapterReference(self)

    def copy(self) -> LoraPolicy:
        """Return a copy that shares no weights with this policy. The same weights are frozen."""
        return copy.deepcopy(self)

    def merged(self) -> LanguageModelPolicy:
        """Return a policy without adapters, on a copy of the model with the adapters' product added to its weights.

        Of weights in 4 bits the copy has the float32 values with which the policy was trained.
        """
        return _like(LanguageModelPolicy, self, self.without_adapters(TRAINED))

    def without_adapters(self, merge: str | None) -> Any:
        """Return a copy of the model without adapters, in float32 where this model has 4 bits.

        Args:
            merge: name of the adapters that are merged into the weights. None: none.
        """
        model = copy.deepcopy(self.model)
        if not quantised.is_quantised(model):
            return model.unload() if merge is None else model.merge_and_unload(adapter_names=[merge])
        prefix, changes = "base_model.model.", dict[str, Tensor]()
        for name, layer in model.named_modules() if merge is not None else []:
            if hasattr(layer, "get_delta_weight"):
                changes[name.removeprefix(prefix)] = layer.get_delta_weight(merge)
        return quantised.dequantised(model.unload(), changes)

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapters only, in the format of peft's `from_pretrained`."""
        self.model.save_pretrained(
            check_path(folder, "folder"), selected_adapters=[TRAINED], save_embedding_layers=False
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the merged model, which can be loaded without peft, and the tokenizer if there is one."""
        self.merged().save_pretrained(folder)

    def new_reward_model(self) -> nn.Module:
        """Return a reward model on a copy of the merged body."""
        return self.merged().new_reward_model()

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """Return a critic on a copy of `reward_model`'s body and head, or on a copy of the merged body."""
        return self.merged().new_critic(reward_model)


def leave_out_frozen(module: nn.Module, part: str) -> None:
    """Let the state of a module contain only the adapters of a part of it, if that part has weights in 4 bits.

    Matrices in 4 bits cannot be loaded into a module, and they never change.

    Args:
        module: a policy, reward model or ranker.
        part: name of its language model or body.
    """
    if quantised.is_quantised(getattr(module, part)):
        module.register_state_dict_post_hook(partial(_drop_frozen, part))
        module.register_load_state_dict_post_hook(partial(_accept_without_frozen, part))


def _drop_frozen(part: str, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Remove everything but the adapters from the state of a part with weights in 4 bits."""
    for name in [name for name in state if name.startswith(f"{prefix}{part}.") and "lora_" not in name]:
        del state[name]


def _accept_without_frozen(part: str, module: nn.Module, keys: Any) -> None:
    """Accept a state that contains only the adapters of a part."""
    frozen = tuple(name for name in nn.Module.state_dict(getattr(module, part)) if "lora_" not in name)
    keys.missing_keys[:] = [name for name in keys.missing_keys if not name.endswith(frozen)]


class AdapterReference(Policy):
    """π_ref as a view of a `LoraPolicy` with its adapters switched off, or with those with which it started."""

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
        state = "at the start" if self.policy.continues else "off"
        return f"adapters {state} {self.policy.model.config.to_json_string(use_diff=False)}"

    @torch.no_grad()
    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π_ref(y_t | x, y_<t) without gradients; see `Policy.token_log_probs`."""
        with self.policy.as_reference():
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
        with self.policy.as_reference():
            return self.policy.sample(prompts, num_samples, generator, temperature, top_k)

    def frozen(self) -> AdapterReference:
        """Return the same object, because it is frozen already."""
        return self

    def copy(self) -> LanguageModelPolicy:  # type: ignore[override]
        """Return a trainable policy with the weights of π_ref, on a copy of the model without adapters."""
        plain = self.policy.without_adapters(START if self.policy.continues else None)
        plain.requires_grad_(True)
        return _like(LanguageModelPolicy, self.policy, plain)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return the weights of π_ref, without those of the adapters that are trained."""
        whole = self.policy.model.state_dict()
        return {name: value for name, value in whole.items() if "lora_" not in name or START in name.split(".")}

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.policy.device
