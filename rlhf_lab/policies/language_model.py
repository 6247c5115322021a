"""π_θ(y|x) from any causal language model of Hugging Face transformers, under the (B, G) rule.

    log π(y|x) = Σ_t log softmax(h(x, y_<t) W)[y_t],  the end token included

A prompt is computed once however many responses it has, and logits are made only at places from which a
response token is predicted (`packing.py` and `head.py` say how); samples of one prompt read its keys and values
together (`decode.py`). Responses end with one of `end_tokens`, or at `max_new_tokens`.

The same class is a policy over texts and over a token tree's few ids: it never needs a tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_path, check_positive
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.end_tokens import generation_end_tokens
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
        end_token: id with which given responses end, or None where every response has `max_new_tokens` tokens.
        end_tokens: all ids that end a sampled response, `end_token` first; empty where it is None.
        max_new_tokens: longest response that `sample` draws, the end token included.
        vocab_size: ids 0 … vocab_size − 1 can stand in a response, no others.
        tokenizer: kept for whoever needs texts; the policy itself works on ids alone.
        cuda_graphs: `sample` records a step's kernels once and replays them (`cuda_graph.py`); on a GPU only.
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
        """Wrap `model`.

        Args:
            model: a causal LM with sdpa or eager attention (GPT-2, GPT-NeoX/Pythia and Llama are tested), bare or
                under peft's adapters. Its dropout is set to 0; its attention is `varlen_attention.py`; weights
                and configuration stay.
            end_token: id that ends a response; None for responses of exactly `max_new_tokens` tokens.
            max_new_tokens: longest response drawn.
            vocab_size: logits are cut to this many ids before the softmax, for worlds with a few ids and for
                vocabularies padded to a round number. None: all of the model's.
            tokenizer: saved with the model by `save_pretrained`.
            cuda_graphs: draw with recorded kernels; `sample` then needs a CUDA device.
            end_tokens: further ids that end a sampled response (`end_tokens.end_tokens` finds a model's).

        Raises:
            LabError: numbers that do not fit each other, or an architecture that does not honour a block mask
                (found out by a row of a few tokens).
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
                f"end_token {unknown[0]} is not among the ids 0 … {self.vocab_size - 1} that a response can hold. "
                f"Pass end_token=None for responses of fixed length."
            )
        if self.device.type == "cpu":
            keep_freed_memory()
        remove_dropout(model)
        fuse_gelu(model)
        self._check_shared_prefix()

    @torch.no_grad()
    def _check_shared_prefix(self) -> None:
        """Compare packed tokens with the model's own answer on two plain rows, the fast way first."""
        ids = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]], device=self.device) % self.vocab_size
        if (context_length(self.model.config) or 4) < 4:
            return
        body = body_of(self.model)
        plain = self.model(ids, attention_mask=torch.ones_like(ids)).logits[:, 1:3, : self.vocab_size].float()
        limit = plain.abs().max().clamp(min=1.0) * (0.1 if self.dtype.itemsize < 4 else 1e-3)
        for _ in range(2):
            try:
                states = shared_prefix_states(body, Tokens.full(ids[:1, :2]), Tokens.full(ids[None, :, 2:]))
                packed = self._logits(states.flat)[states.before[0]]
            except (AttributeError, IndexError, KeyError, TypeError, ValueError, NotImplementedError) as error:
                # Its code expects another mask, cache or output. A RuntimeError is the device's: no memory, for one.
                raise LabError(
                    f"{type(self.model).__name__} cannot compute packed texts ({type(error).__name__}: {error}), so "
                    f"the lab cannot use it. GPT-2, GPT-NeoX, Llama, Mistral and Qwen can."
                ) from error
            if not (plain - packed).abs().max() > limit:
                return
            varlen_attention.uninstall(body)
        raise LabError(
            f"{type(self.model).__name__} gives other logits for packed texts than for plain rows: its attention "
            f"does not honour a block mask, or its head does more than multiply. GPT-2, GPT-NeoX and Llama do."
        )

    def gradient_checkpointing(self, on: bool = True) -> None:
        """Compute each layer again in the backward pass instead of keeping what it made.

        Less memory, a third more work, the same gradients. It acts while the policy is in training mode.

        Raises:
            LabError: the architecture can't.
        """
        if not getattr(self.model, "supports_gradient_checkpointing", False):
            raise LabError(f"{type(self.model).__name__} has no gradient checkpointing. Use smaller batches instead.")
        # transformers renamed the method on its way to version 6.
        name = "activation" if hasattr(self.model, "activation_checkpointing_enable") else "gradient"
        if on:
            getattr(self.model, f"{name}_checkpointing_enable")({"use_reentrant": False})
            self.train()
        else:
            getattr(self.model, f"{name}_checkpointing_disable")()

    @property
    def dtype(self) -> torch.dtype:
        """Number type of the weights."""
        return next(self.parameters()).dtype

    def _logits(self, states: Tensor) -> Tensor:
        """(…, H) to logits (…, vocab_size), float32 at least."""
        logits = self.model.get_output_embeddings()(states)[..., : self.vocab_size]
        return logits if logits.dtype == torch.float64 else logits.float()

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """log π(y_t | x, y_<t), (B, G, T), 0 where there is no token. Dropout is off; gradients flow.

        Raises:
            LabError: an empty prompt, a row longer than the model's context, ids outside the vocabulary. The
                message names the row.
        """
        check_positive(temperature, "temperature")
        check_batch(prompts, responses, self.model.config, self.vocab_size)
        with dropout_off(self.model):
            states = shared_prefix_states(body_of(self.model), prompts, responses)
        # Where the tokens are is worked out where the mask lies: on the CPU nothing then waits on the device.
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
        """Draw (B, num_samples, T) responses, as `Policy.sample` says; they lie where the prompts lie.

        Each prompt is computed once, and its keys and values are read once a token for all its samples. Samples
        that have ended stop costing.

        Raises:
            LabError: an empty prompt, or one that leaves no room for `max_new_tokens` in the model's context; CUDA
                graphs asked for where there are none.
        """
        check_positive(temperature, "temperature", "For the likeliest token use a small one, e.g. 1e-3.")
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
                f"Prompt {row} has {int(prompts.lengths[row])} tokens, which leaves no room for {self.max_new_tokens} "
                f"more: the model's context holds {limit}. Shorten the prompt or lower max_new_tokens."
            )

    def _decode(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None,
        temperature: float,
        top_k: int | None,
    ) -> Tokens:
        def choose(states: Tensor, number: int) -> Tensor:
            return sample_tokens(self._logits(states), number, generator, temperature, top_k)

        body = body_of(self.model)
        make_step: Any = EagerStep
        if self.cuda_graphs:
            cuda_graph.check_cuda_device(self.device)
            make_step = cuda_graph.CudaGraphStep
        if varlen_attention.install(body):
            drawn = generate(
                body, prompts, num_samples, self.max_new_tokens, self.end_tokens, choose, self.device, make_step
            )
            if drawn is not None:
                return drawn
            varlen_attention.uninstall(body)
        return generate_with_repeated_cache(
            body, prompts.to(self.device), num_samples, self.max_new_tokens, self.end_tokens, choose
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, and the tokenizer if there is one, as `from_pretrained` reads them.

        Where several tokens end a response, the saved `generation_config` names all of them.
        """
        folder = check_path(folder, "folder")
        settings, known = getattr(self.model, "generation_config", None), generation_end_tokens(self.model)
        if settings is not None and len(self.end_tokens) > 1 and not set(self.end_tokens) <= set(known):
            settings.eos_token_id = list(dict.fromkeys([*self.end_tokens, *known]))
        self.model.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    def new_reward_model(self) -> nn.Module:
        """A reward model on a copy of this policy's body, with a linear head that starts at zero."""
        from rlhf_lab.rewards.language_model import LanguageModelReward

        return LanguageModelReward(self.model)

    def new_critic(self, reward_model: nn.Module | None = None) -> nn.Module:
        """A critic on a copy of `reward_model`'s body and head, or else of this policy's body."""
        from rlhf_lab.rewards.language_model import LanguageModelCritic

        return LanguageModelCritic(self.model if reward_model is None else reward_model)
