"""A causal language model of Hugging Face transformers as a policy.

    log π(y|x) = Σ_t log softmax(h(x, y_<t) W)[y_t],  including the end token

A prompt is computed once for all its responses (`transformer/shared_prefix_forward.py`). Logits are computed only at
the tokens from which a response token is predicted (`transformer/token_logprobs.py`). In generation, all responses of
a prompt share its keys and values (`transformer/generate.py`). Responses end with one of `end_tokens`, or after
`max_new_tokens`.

The class works on token ids and needs no tokenizer, so that it is also used on token trees.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_path, check_positive, count_of
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.end_tokens import generation_end_tokens
from rlhf_lab.policies.quantised import computes_in_half
from rlhf_lab.policies.transformer import cuda_graph, varlen_attention
from rlhf_lab.policies.transformer.generate import EagerStep, generate, generate_with_repeated_cache
from rlhf_lab.policies.transformer.malloc import keep_freed_memory
from rlhf_lab.policies.transformer.shared_prefix_forward import (
    body_of,
    check_batch,
    check_prompts,
    context_length,
    dropout_off,
    fuse_gelu,
    remove_dropout,
    shared_prefix_states,
)
from rlhf_lab.policies.transformer.token_logprobs import token_log_probs
from rlhf_lab.policies.transformer.token_sampling import check_top_k, sample_tokens


class LanguageModelPolicy(Policy):
    """A causal language model as a policy.

    Attributes:
        model: the Hugging Face model, trained in place.
        end_token: the id that ends a response, or None if every response has exactly `max_new_tokens` tokens.
        end_tokens: all ids that end a sampled response, with `end_token` first; empty if `end_token` is None.
        max_new_tokens: maximum length of a sampled response, including the end token.
        vocab_size: responses contain the ids 0 … vocab_size − 1 only.
        tokenizer: stored for users of the policy, which works on ids itself.
        cuda_graphs: sample with CUDA graphs (experimental, see `transformer/cuda_graph.py`).
    """

    def __init__(
        self,
        model: nn.Module,
        end_token: int | None,
        max_new_tokens: int,
        vocab_size: int | None = None,
        tokenizer: Any = None,
        cuda_graphs: bool = False,
        end_tokens: Sequence[int] = (),
    ) -> None:
        """Create a policy on `model`.

        Args:
            model: a causal LM with sdpa or eager attention (GPT-2, GPT-NeoX/Pythia and Llama are tested), with or
                without peft's adapters. Its dropout is set to 0, and its attention is replaced by that of
                `varlen_attention.py`. Weights and configuration do not change.
            end_token: the id that ends a response; None for responses of exactly `max_new_tokens` tokens.
            max_new_tokens: maximum length of a sampled response.
            vocab_size: only the logits of the first `vocab_size` ids enter the softmax, for token trees and for
                vocabularies that are padded to a round number. None uses all of them.
            tokenizer: saved with the model by `save_pretrained`.
            cuda_graphs: sample with CUDA graphs (experimental); `sample` then needs a CUDA device.
            end_tokens: further ids that end a sampled response (see `end_tokens.find_end_tokens`).

        Raises:
            LabError: arguments that are inconsistent, or an architecture that ignores the block mask, which is tested
                with a few tokens.
        """
        super().__init__()
        self.model: Any = model
        config: Any = model.config
        known: int = config.vocab_size
        self.vocab_size: int = known if vocab_size is None else vocab_size
        self.end_token, self.max_new_tokens, self.tokenizer = end_token, max_new_tokens, tokenizer
        self.cuda_graphs = cuda_graphs
        self.end_tokens = tuple(dict.fromkeys(i for i in (end_token, *end_tokens) if i is not None))
        if not 1 <= self.vocab_size <= known:
            raise LabError(f"vocab_size must be between 1 and the model's {known} ids, not {vocab_size}.")
        if max_new_tokens < 1:
            raise LabError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        if end_token is None and self.end_tokens:
            raise LabError(f"end_tokens {self.end_tokens} need an end_token. Pass end_token={self.end_tokens[0]}.")
        unknown = [end for end in self.end_tokens if not 0 <= end < self.vocab_size]
        if unknown:
            raise LabError(
                f"end_token {unknown[0]} is not among the ids 0 … {self.vocab_size - 1} that a response can contain. "
                f"Pass end_token=None for responses of fixed length."
            )
        if self.device.type == "cpu":
            keep_freed_memory()
        remove_dropout(model)
        fuse_gelu(model)
        self._check_shared_prefix()

    @torch.no_grad()
    def _check_shared_prefix(self) -> None:
        """Compare shared-prefix logits with the model's logits of two separate rows. Try varlen attention first."""
        ids = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]], device=self.device) % self.vocab_size
        if (context_length(self.model.config) or 4) < 4:
            return
        body = body_of(self.model)
        plain = self.model(ids, attention_mask=torch.ones_like(ids)).logits[:, 1:3, : self.vocab_size].float()
        half = self.dtype.itemsize < 4 or computes_in_half(self.model)
        limit = plain.abs().max().clamp(min=1.0) * (0.1 if half else 1e-3)
        for _ in range(2):
            try:
                states = shared_prefix_states(body, Tokens.full(ids[:1, :2]), Tokens.full(ids[None, :, 2:]))
                shared = self._logits(states.flat)[states.before[0]]
            except (AttributeError, IndexError, KeyError, TypeError, ValueError, NotImplementedError) as error:
                # The model's code expects another mask, cache or output. A RuntimeError would come from the device.
                raise LabError(
                    f"{type(self.model).__name__} cannot compute responses that share a prompt "
                    f"({type(error).__name__}: {error}). Use GPT-2, GPT-NeoX, Llama, Mistral or Qwen."
                ) from error
            if not (plain - shared).abs().max() > limit:
                return
            varlen_attention.uninstall(body)
        raise LabError(
            f"{type(self.model).__name__} computes other logits for responses that share a prompt than for separate "
            f"rows, because its attention ignores a block mask or its head is not linear. Use GPT-2, GPT-NeoX or Llama."
        )

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Switch gradient checkpointing on or off: layers are computed again in the backward pass, not stored.

        It needs less memory and a third more computation, and gives the same gradients. It is active in training mode.

        Args:
            on: whether to switch it on.

        Raises:
            LabError: the architecture does not support it.
        """
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            raise LabError(f"{type(self.model).__name__} has no gradient checkpointing. Use smaller batches instead.")
        # transformers 6 renames the method.
        name = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        if on:
            getattr(self.model, f"{name}_checkpointing_enable")({"use_reentrant": False})
            self.train()
        else:
            getattr(self.model, f"{name}_checkpointing_disable")()

    def _forward_mode(self) -> AbstractContextManager[None]:
        """The context in which log-probabilities are computed: without dropout."""
        return dropout_off(self.model)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def _logits(self, states: Tensor) -> Tensor:
        """Logits (…, vocab_size) of states (…, H), float32 or float64."""
        logits: Tensor = self.model.get_output_embeddings()(states)[..., : self.vocab_size]
        return logits if logits.dtype == torch.float64 else logits.float()

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π(y_t | x, y_<t) with gradients and without dropout; see `Policy.token_log_probs`.

        Raises:
            LabError: an empty prompt, a row longer than the model's maximum length, or ids outside the vocabulary. The
                message names the row.
        """
        check_positive(temperature, "temperature")
        check_batch(prompts, responses, self.model.config, self.vocab_size)
        with self._forward_mode():
            states = shared_prefix_states(body_of(self.model), prompts, responses)
        # The indices are computed on the mask's device. If this is the CPU, nothing waits for the GPU.
        where = responses.mask.flatten().nonzero().squeeze(1)
        ids = responses.ids.flatten()[where].to(self.device)
        where = where.to(self.device)
        values = token_log_probs(
            self.model.get_output_embeddings(), self.vocab_size, states.flat, states.before.flatten()[where], ids,
            temperature,
        )  # fmt: skip
        return values.new_zeros(responses.ids.numel()).index_copy(0, where, values).view(responses.shape)

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        """Sample responses; see `Policy.sample`.

        Each prompt is computed once, and all its samples share its keys and values. Samples that have ended are not
        computed any more.

        Raises:
            LabError: an empty prompt, a prompt that with `max_new_tokens` exceeds the model's maximum length, or
                `cuda_graphs` without a CUDA device.
        """
        check_positive(temperature, "temperature", "To get the most likely token, use a small one such as 1e-3.")
        check_top_k(top_k)
        if num_samples < 1:
            raise LabError(f"num_samples must be at least 1, not {num_samples}.")
        prompts = prompts.trim()
        check_prompts(prompts, self.model.config.vocab_size)
        self._check_context(prompts)
        with dropout_off(self.model):
            return self._decode(prompts, num_samples, generator, temperature, top_k).to(prompts.device)

    def _check_context(self, prompts: Tokens) -> None:
        limit = context_length(self.model.config)
        long = prompts.lengths + self.max_new_tokens > (limit or torch.inf)
        if long.any():
            row = int(long.nonzero()[0])
            raise LabError(
                f"Prompt {row} has {count_of(int(prompts.lengths[row]), 'token')}. With {self.max_new_tokens} more "
                f"it exceeds the model's maximum length of {limit}. Shorten the prompt or lower max_new_tokens."
            )

    def _decode(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None,
        temperature: float,
        top_k: int | None,
    ) -> Tokens:
        def sample_next(states: Tensor, number: int) -> Tensor:
            return sample_tokens(self._logits(states), number, generator, temperature, top_k)

        body = body_of(self.model)
        make_step: Any = EagerStep
        if self.cuda_graphs:
            cuda_graph.check_cuda_device(self.device)
            make_step = cuda_graph.CudaGraphStep
        if varlen_attention.install(body):
            drawn = generate(
                body, prompts, num_samples, self.max_new_tokens, self.end_tokens, sample_next, self.device, make_step
            )
            if drawn is not None:
                return drawn
            varlen_attention.uninstall(body)
        return generate_with_repeated_cache(
            body, prompts.to(self.device), num_samples, self.max_new_tokens, self.end_tokens, sample_next
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, and the tokenizer if there is one, in the format of `from_pretrained`.

        If several tokens end a response, the saved `generation_config` lists all of them.

        Args:
            folder: created if it does not exist.
        """
        folder = check_path(folder, "folder")
        settings, known = getattr(self.model, "generation_config", None), generation_end_tokens(self.model)
        if settings is not None and len(self.end_tokens) > 1 and not set(self.end_tokens) <= set(known):
            settings.eos_token_id = list(dict.fromkeys([*self.end_tokens, *known]))
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def new_reward_model(self) -> nn.Module:
        """Return a reward model on a copy of this policy's body, with a linear head whose weights are zero."""
        from rlhf_lab.rewards.language_model import LanguageModelReward

        return LanguageModelReward(self.model)

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """Return a critic on a copy of `reward_model`'s body and head, or on a copy of this policy's body."""
        from rlhf_lab.rewards.language_model import LanguageModelCritic

        return LanguageModelCritic(self.model if reward_model is None else reward_model)
