"""π_θ(y|x) from any causal language model of Hugging Face transformers, under the (B, G) rule.

    log π(y|x) = Σ_t log softmax(h(x, y_<t) W)[y_t],  the end token included

A prompt is computed once however many responses it has, and logits are made only at places from which a
response token is predicted (`packing.py` says how). Responses end with `end_token`, or at `max_new_tokens`.

The same class is a policy over texts and over a token tree's few ids: it never needs a tokenizer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf_lab.batch import Tokens
from rlhf_lab.checks import LabError, check_positive
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.packing import (
    body_of,
    check_batch,
    check_prompts,
    context_of,
    dropout_off,
    packed_states,
)

LOGITS_AT_ONCE = 2**27
"""Logits held at a time. More are made in parts, and made again in the backward pass instead of being kept."""


class LanguageModelPolicy(Policy):
    """A causal language model as a policy.

    Attributes:
        model: the Hugging Face model, trained in place.
        end_token: id that ends a response, or None where every response has `max_new_tokens` tokens.
        max_new_tokens: longest response that `sample` draws, the end token included.
        vocab_size: ids 0 … vocab_size − 1 can stand in a response, no others.
        tokenizer: kept for whoever needs texts; the policy itself works on ids alone.
    """

    def __init__(
        self,
        model: nn.Module,
        end_token: int | None,
        max_new_tokens: int,
        vocab_size: int | None = None,
        tokenizer: Any = None,
    ) -> None:
        """Wrap `model`.

        Args:
            model: a causal LM with sdpa or eager attention (GPT-2, GPT-NeoX/Pythia and Llama are tested).
            end_token: id that ends a response; None for responses of exactly `max_new_tokens` tokens.
            max_new_tokens: longest response drawn.
            vocab_size: logits are cut to this many ids before the softmax, for worlds with a few ids and for
                vocabularies padded to a round number. None: all of the model's.
            tokenizer: saved with the model by `save_pretrained`.

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
        if not 1 <= self.vocab_size <= known:
            raise LabError(f"vocab_size must be between 1 and the model's {known} ids, not {vocab_size}.")
        if max_new_tokens < 1:
            raise LabError(f"max_new_tokens must be at least 1, not {max_new_tokens}.")
        if end_token is not None and not 0 <= end_token < self.vocab_size:
            raise LabError(
                f"end_token {end_token} is not among the ids 0 … {self.vocab_size - 1} that a response can hold. "
                f"Pass end_token=None for responses of fixed length."
            )
        self._check_block_mask()

    @torch.no_grad()
    def _check_block_mask(self) -> None:
        """Compare a packed row of six tokens with the model's own answer on two plain rows."""
        ids = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 1]], device=self.device) % self.vocab_size
        if (context_of(self.model.config) or 4) < 4:
            return
        with dropout_off(self.model):
            plain = self.model(ids).logits[:, 1:3, : self.vocab_size].float()
            prompts, responses = Tokens.full(ids[:1, :2]), Tokens.full(ids[None, :, 2:])
            states = packed_states(body_of(self.model), prompts, responses)
            packed = self._logits(states.flat)[states.before[0]]
        scale = plain.abs().max().clamp(min=1.0)
        if (plain - packed).abs().max() > scale * (0.1 if self.dtype.itemsize < 4 else 1e-3):
            raise LabError(
                f"{type(self.model).__name__} gives other logits in a packed row than in plain rows: its attention "
                f"does not honour a block mask, or its head does more than multiply. GPT-2, GPT-NeoX and Llama do."
            )

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
        prompts, responses = prompts.to(self.device), responses.to(self.device)
        check_batch(prompts, responses, self.model.config, self.vocab_size)
        with dropout_off(self.model):
            states = packed_states(body_of(self.model), prompts, responses)
            values = self._selected(
                states.flat, states.before[responses.mask], responses.ids[responses.mask], temperature
            )
        out = values.new_zeros(responses.shape)
        return out.masked_scatter(responses.mask, values)

    def _selected(self, states: Tensor, rows: Tensor, ids: Tensor, temperature: float) -> Tensor:
        """log softmax(states[rows] W / temperature)[ids], each row of logits made once."""

        def part(states: Tensor, rows: Tensor, ids: Tensor) -> Tensor:
            logits = self._logits(states) / temperature if temperature != 1.0 else self._logits(states)
            return logits[rows, ids] - logits.logsumexp(-1)[rows]

        each = max(LOGITS_AT_ONCE // self.vocab_size, 1)
        if len(states) <= each:
            return part(states, rows, ids)
        out = states.new_zeros(len(rows), dtype=torch.promote_types(states.dtype, torch.float32))
        for start in range(0, len(states), each):
            here = (rows >= start) & (rows < start + each)
            inputs = (states[start : start + each], rows[here] - start, ids[here])
            keep = not torch.is_grad_enabled()
            out = out.masked_scatter(here, part(*inputs) if keep else checkpoint(part, *inputs, use_reentrant=False))
        return out

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
    ) -> Tokens:
        """Draw (B, num_samples, T) responses; the mask includes the end token.

        Each prompt is computed once, and its keys and values repeated for its samples. All rows go on until the
        last has ended.

        Raises:
            LabError: an empty prompt, or one that leaves no room for `max_new_tokens` in the model's context.
        """
        check_positive(temperature, "temperature", "For the likeliest token use a small one, e.g. 1e-3.")
        if num_samples < 1:
            raise LabError(f"num_samples must be at least 1, not {num_samples}.")
        prompts = prompts.to(self.device).trim()
        check_prompts(prompts, self.model.config.vocab_size)
        self._check_room(prompts)
        with dropout_off(self.model):
            return self._decode(prompts, num_samples, generator, temperature)

    def _check_room(self, prompts: Tokens) -> None:
        limit = context_of(self.model.config)
        long = prompts.lengths + self.max_new_tokens > (limit or torch.inf)
        if long.any():
            row = int(long.nonzero()[0])
            raise LabError(
                f"Prompt {row} has {int(prompts.lengths[row])} tokens, which leaves no room for {self.max_new_tokens} "
                f"more: the model's context holds {limit}. Shorten the prompt or lower max_new_tokens."
            )

    def _decode(
        self, prompts: Tokens, num_samples: int, generator: torch.Generator | None, temperature: float
    ) -> Tokens:
        count, body = len(prompts), body_of(self.model)
        # Prompts lie at the left: under a causal mask what follows a prompt's end cannot reach it.
        out = body(prompts.ids, attention_mask=torch.ones_like(prompts.ids), use_cache=True)
        last = out.last_hidden_state[torch.arange(count, device=self.device), prompts.lengths - 1]
        drawn = self._draw(self._logits(last), num_samples, generator, temperature).flatten()
        cache = out.past_key_values
        if self.max_new_tokens > 1:
            cache.batch_repeat_interleave(num_samples)
        seen = prompts.mask.repeat_interleave(num_samples, 0)
        position = prompts.lengths.repeat_interleave(num_samples)
        alive = torch.ones_like(drawn, dtype=torch.bool)
        ids, mask = [], []
        for step in range(self.max_new_tokens):
            ids.append(drawn.where(alive, 0))
            mask.append(alive)
            if self.end_token is not None:
                alive = alive & (drawn != self.end_token)
                if not alive.any():
                    break
            if step + 1 == self.max_new_tokens:
                break
            seen = torch.cat([seen, torch.ones_like(seen[:, :1])], 1)
            out = body(
                drawn[:, None],
                attention_mask=seen.long(),
                position_ids=(position + step)[:, None],
                past_key_values=cache,
                use_cache=True,
            )
            drawn = self._draw(self._logits(out.last_hidden_state[:, -1]), 1, generator, temperature)[:, 0]
        shape = (count, num_samples, len(ids))
        return Tokens(torch.stack(ids, -1).view(shape), torch.stack(mask, -1).view(shape))

    @staticmethod
    def _draw(logits: Tensor, number: int, generator: torch.Generator | None, temperature: float) -> Tensor:
        """(N, V) logits to (N, number) ids. A generator on another device than the model is served there."""
        chances = torch.softmax(logits / temperature, -1)
        if generator is not None and generator.device != chances.device:
            drawn = torch.multinomial(chances.to(generator.device), number, True, generator=generator)
            return drawn.to(chances.device)
        return torch.multinomial(chances, number, True, generator=generator)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model, and the tokenizer if there is one, as `from_pretrained` reads them."""
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
