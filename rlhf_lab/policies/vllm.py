"""Sampling with vLLM (experimental): a vLLM engine samples, and the policy computes log-probabilities and is trained.

    pip install 'rlhf-lab[vllm]'           (Linux and a GPU)

vLLM has a separate copy of the weights. `VllmSampler.load(policy)` writes the policy to a folder and starts an engine
on it. If the policy has changed before the next call of `sample`, the folder is written again and the engine reloads
it. All log-probabilities are computed by the policy. Differences between the arithmetic of the two implementations are
therefore visible in the importance ratios.

Experimental: this has been tested with an imitation of the engine only, and not yet with vLLM on a GPU.
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
    """A policy that samples with vLLM (experimental) and uses `policy` for everything else."""

    def __init__(self, policy: LanguageModelPolicy, engine: Any) -> None:
        """Use a running engine.

        Args:
            policy: the policy whose weights the engine has.
            engine: a `vllm.LLM`, or an object with the same `generate(prompts, sampling_params)`.
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
            options: keyword arguments of `vllm.LLM`, for example gpu_memory_utilization or tensor_parallel_size.

        Raises:
            LabError: vLLM is not installed.
        """
        vllm = _library()
        folder = TemporaryDirectory(prefix="rlhf-lab-vllm-")
        path = Path(folder.name)
        policy.save_pretrained(path)
        # The model's generation settings are not used. Prompts and responses are ids.
        options = {"skip_tokenizer_init": True, "generation_config": "vllm", **options}
        sampler = cls(policy, vllm.LLM(model=str(path), **options))
        sampler._folder = folder
        return sampler

    def update_weights(self) -> None:
        """Make the engine load the policy's present weights. `sample` calls this if they have changed.

        Raises:
            LabError: the engine was not started by `load`, or it cannot load weights while it runs.
        """
        if self._folder is None:
            raise LabError(
                "This engine was not started by `VllmSampler.load`. Load the new weights where it was started."
            )
        self.policy.save_pretrained(Path(self._folder.name))
        try:
            self._engine.collective_rpc("reload_weights")
            # The cached keys and values of prompts were computed with the old weights.
            self._engine.reset_prefix_cache()
        except Exception as error:
            raise LabError(
                f"vLLM did not load the new weights ({type(error).__name__}: {error}). Use a version of vLLM that can "
                f"reload weights while it runs, or sample with the policy itself."
            ) from error
        self._served = self._weights()

    def _weights(self) -> list[tuple[int, int]]:
        """The address and version counter of each weight, which show whether the policy has changed."""
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
        """Sample with vLLM; see `Policy.sample`. The generator determines vLLM's seeds, and so the responses."""
        check_positive(temperature, "temperature")
        check_top_k(top_k)
        if num_samples < 1:
            raise LabError(f"num_samples must be at least 1, not {num_samples}.")
        check_prompts(prompts, self.policy.model.config.vocab_size)
        if self._folder is not None and self._weights() != self._served:
            self.update_weights()
        where = torch.device("cpu") if generator is None else generator.device
        seed = int(torch.randint(2**31 - 1, (), generator=generator, device=where))
        settings = vllm_sampling_params(self.policy, num_samples, seed, temperature, top_k)
        texts = [{"prompt_token_ids": ids} for ids in prompts.tolist()]
        try:
            from vllm import SamplingParams
        except ImportError:
            # The imitation of an engine in the tests accepts a dictionary.
            SamplingParams = dict
        found = self._engine.generate(texts, [SamplingParams(**s) for s in _one_each(settings, len(texts))])
        rows = [[list(answer.token_ids) for answer in request.outputs] for request in found]
        if [len(row) for row in rows] != [num_samples] * len(texts):
            raise LabError("vLLM returned another number of responses than requested. Sample with the policy itself.")
        return Tokens.from_lists(rows).to(prompts.device)

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π(y_t | x, y_<t) with the policy; see `Policy.token_log_probs`."""
        return self.policy.token_log_probs(prompts, responses, temperature)

    def copy(self) -> LanguageModelPolicy:  # type: ignore[override]
        """Return a trainable copy of the policy, which does not use vLLM."""
        return self.policy.copy()

    def frozen(self) -> LanguageModelPolicy:  # type: ignore[override]
        """Return a frozen copy of the policy, which does not use vLLM."""
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
    """Translate the arguments of `sample` to those of `vllm.SamplingParams`.

    The response includes the end token, as the (B, G) rule requires. Of the model's generation settings only the end
    tokens are used, which the policy has.

    Args:
        policy: the policy.
        num_samples: number of responses per prompt.
        seed: of the first prompt.
        temperature: the logits are divided by it.
        top_k: sample from the k most likely tokens only; None for all.

    Returns:
        Keyword arguments of `vllm.SamplingParams`.
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
    """The settings for each prompt, with different seeds, so that equal prompts get different responses."""
    return [{**settings, "seed": (settings["seed"] + 1_000_003 * i) % (2**31 - 1)} for i in range(count)]


def check_vllm_installed() -> None:
    """Raise `LabError` unless vLLM is installed."""
    _library()


def _library() -> Any:
    try:
        import vllm
    except ImportError as error:
        raise LabError(
            "vLLM is not installed. Run pip install 'rlhf-lab[vllm]' (Linux and a GPU), or leave the sampler out."
        ) from error
    return vllm
