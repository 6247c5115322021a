"""Samples from vLLM behind the same `sample`: an engine of its own draws, the policy scores and trains.

    pip install 'rlhf-lab[vllm]'           (Linux and a GPU; not tested on the machine where this was written)

vLLM has its own copy of the weights: `VllmSampler.load(policy)` writes the policy to a folder and starts an engine on
it. Before it draws it sees whether the policy has changed since, and if so has the engine read the folder anew.
Log-probabilities come from the policy, so losses see one model, and differences between the two engines' arithmetic
show up where importance ratios are looked at.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_positive
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer.shared_prefix_forward import check_prompts
from rlhf_lab.policies.transformer.token_sampling import check_top_k


class VllmSampler(Policy):
    """A policy that samples with vLLM and answers everything else with `policy`."""

    def __init__(self, policy: LanguageModelPolicy, engine: Any) -> None:
        """Use a running engine.

        Args:
            policy: whose weights the engine serves.
            engine: a `vllm.LLM`, or anything with its `generate(prompts, sampling_params)`.
        """
        super().__init__()
        self.policy = policy
        self._engine = engine
        self._folder: TemporaryDirectory[str] | None = None
        self._served = self._weights()

    @classmethod
    def load(cls, policy: LanguageModelPolicy, **options: Any) -> VllmSampler:
        """Start an engine on `policy`'s weights.

        Args:
            policy: the policy to sample from.
            options: handed on to `vllm.LLM`, for example gpu_memory_utilization or tensor_parallel_size.

        Raises:
            LabError: vLLM is not installed.
        """
        vllm = _library()
        folder = TemporaryDirectory(prefix="rlhf-lab-vllm-")
        path = Path(folder.name)
        policy.save_pretrained(path)
        # What a model's own generation settings say is not taken over; ids go in and come out.
        options = {"skip_tokenizer_init": True, "generation_config": "vllm", **options}
        sampler = cls(policy, vllm.LLM(model=str(path), **options))
        sampler._folder = folder
        return sampler

    def refresh(self) -> None:
        """Have the engine read the policy's weights as they are now. `sample` does it where they have changed.

        Raises:
            LabError: the engine was not started by `load`, or cannot read weights while it runs.
        """
        if self._folder is None:
            raise LabError("This engine was not started here: whoever started it gives it the new weights.")
        self.policy.save_pretrained(Path(self._folder.name))
        try:
            self._engine.collective_rpc("reload_weights")
            # The keys and values of prompts that it kept are those of the old weights.
            self._engine.reset_prefix_cache()
        except Exception as error:
            raise LabError(
                f"vLLM did not take the new weights ({type(error).__name__}: {error}). It must be a version that can "
                f"reload them while it runs; or sample with the policy itself."
            ) from error
        self._served = self._weights()

    def _weights(self) -> list[tuple[int, int]]:
        """Changes with every change of the policy's weights: where each lies, and how often it was written to."""
        return [(p.data_ptr(), p._version) for p in self.policy.parameters()]

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        """See `Policy.sample`. The generator gives vLLM a seed, so the draws follow from it there too."""
        check_positive(temperature, "temperature")
        check_top_k(top_k)
        if num_samples < 1:
            raise LabError(f"num_samples must be at least 1, not {num_samples}.")
        check_prompts(prompts, self.policy.model.config.vocab_size)
        if self._folder is not None and self._weights() != self._served:
            self.refresh()
        where = torch.device("cpu") if generator is None else generator.device
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=where))
        settings = vllm_sampling_params(self.policy, num_samples, seed, temperature, top_k)
        texts = [{"prompt_token_ids": ids} for ids in prompts.tolist()]
        try:
            from vllm import SamplingParams
        except ImportError:
            # A stand-in engine takes the settings as they are.
            SamplingParams = dict
        found = self._engine.generate(texts, [SamplingParams(**s) for s in _one_each(settings, len(texts))])
        rows = [[list(answer.token_ids) for answer in request.outputs] for request in found]
        if [len(row) for row in rows] != [num_samples] * len(texts):
            raise LabError("vLLM gave another number of responses than it was asked for.")
        return Tokens.from_lists(rows).to(prompts.device)

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """See `Policy.token_log_probs`."""
        return self.policy.token_log_probs(prompts, responses, temperature)

    def copy(self) -> LanguageModelPolicy:  # type: ignore[override]
        """A trainable copy of the policy, which samples for itself."""
        return self.policy.copy()

    def frozen(self) -> LanguageModelPolicy:  # type: ignore[override]
        """A frozen copy of the policy, which samples for itself."""
        return self.policy.frozen()

    def new_reward_model(self) -> nn.Module:
        """See `LanguageModelPolicy.new_reward_model`."""
        return self.policy.new_reward_model()

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """See `LanguageModelPolicy.new_critic`."""
        return self.policy.new_critic(reward_model)


def vllm_sampling_params(
    policy: LanguageModelPolicy, num_samples: int, seed: int, temperature: float, top_k: int | None
) -> dict[str, Any]:
    """Our arguments in vLLM's words (`vllm.SamplingParams`).

    The end token stays in the response, as the (B, G) rule has it; nothing else is filtered. Of the model's own
    generation settings only the end tokens are used, which the policy holds.
    """
    settings: dict[str, Any] = {
        "n": num_samples, "seed": seed, "temperature": temperature, "top_p": 1.0, "min_p": 0.0,
        "top_k": -1 if top_k is None else top_k, "max_tokens": policy.max_new_tokens, "ignore_eos": True,
        "repetition_penalty": 1.0, "detokenize": False,
    }  # fmt: skip
    if policy.end_tokens:
        settings["stop_token_ids"] = list(policy.end_tokens)
    if policy.vocab_size < policy.model.config.vocab_size:
        settings["allowed_token_ids"] = list(range(policy.vocab_size))
    return settings


def _one_each(settings: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """The settings for each prompt, with a seed of its own: equal prompts must not get equal draws."""
    return [{**settings, "seed": (settings["seed"] + 1_000_003 * i) % (2**31 - 1)} for i in range(count)]


def check_vllm_installed() -> None:
    """Raise `LabError` where there is no vLLM."""
    _library()


def _library() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise LabError(
            "vLLM is not installed: pip install 'rlhf-lab[vllm]' (Linux and a GPU), or sample with the policy itself."
        ) from error
    return vllm
