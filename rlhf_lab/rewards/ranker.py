r"""The pairwise ranker ρ(x, y₁, y₂) = P(y₁ ≻ y₂), which reads both responses together, and the reward made from it.

RSO trains such a ranker instead of a reward model (Liu et al. 2023, section 3.1, after SLiC-HF). With a baseline
response y_b sampled from the SFT policy it becomes a reward (their equation 8):

    r(x, y) = logit ρ(x, y, y_b)

If preferences follow a Bradley–Terry model, logit ρ = r*(x, y₁) − r*(x, y₂). The reward is then r*(x, y) up to a
constant for each prompt, which no method depends on. In general, however, a ranker is not a difference of two scores.
It can prefer A to B, B to C and C to A, and then its reward depends on y_b.

The model reads one row [x | y₁ | y₂], and the score is computed at y₂'s last token. No separating ids are used, because
a token tree has no spare ids. The positions of y₂ start where those of y₁ start, so that a row needs no more positions
than one response. A learned vector, which is added to the embeddings, distinguishes the responses.

The logit f(y₁, y₂) need not equal −f(y₂, y₁). Both orders are used in training. Afterwards the ranker averages over the
orders, (f(y₁, y₂) − f(y₂, y₁))/2, or samples one for each pair, as in the paper.
"""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_positive
from rlhf_lab.policies.base import Policy
from rlhf_lab.policies.loading import pick_device
from rlhf_lab.policies.lora import adapters_drop, leave_out_frozen, train_adapters_or_all
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of, check_batch, dropout_off
from rlhf_lab.rewards import saving
from rlhf_lab.rewards.language_model import at_least_float32

Order = Literal["both", "random"]
MAX_TOKENS_PER_PASS = 2**14
"""Maximum number of tokens in a forward pass without gradients."""


class PairwiseRanker(nn.Module):
    """A ranker that computes logit ρ(x, y₁, y₂) on a copy of a language model's body.

    Attributes:
        order: "both" averages over the two orders, which costs twice as much and is exactly antisymmetric; "random"
            samples one order for each pair.
        tokenizer: stored for `save_pretrained` and for checks against a policy's. Ranking works on ids.
        which: two learned vectors, which are added to the embeddings of the first and of the second response.
        adapter_dropout: dropout of the inputs of the body's adapters while a gradient is computed.
    """

    kind = "pairwise ranker"
    adapter_dropout: float = 0.0

    def __init__(
        self, model: nn.Module, order: Order = "both", tokenizer: Any = None, seed: int = 0, copied: bool = True
    ) -> None:
        """Create a ranker for which all responses are equally good.

        Args:
            model: a causal LM (GPT-2, GPT-NeoX and Llama are tested), or a policy with an attribute `model`.
            order: see the class.
            tokenizer: see the class.
            seed: of the vectors that distinguish the responses.
            copied: False uses `model`'s body itself instead of a copy.
        """
        super().__init__()
        if order not in get_args(Order):
            raise LabError(f"order must be 'both' or 'random', not {order!r}.")
        model = getattr(model, "model", model) if isinstance(model, Policy) else model
        body: Any = body_of(model)
        self.order, self.tokenizer = order, tokenizer
        self.body: Any = copy.deepcopy(body) if copied else body
        width, weight = self.body.config.hidden_size, next(self.body.parameters())
        self.head = nn.Linear(width, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        # The standard deviation is that of the initial embeddings in these architectures.
        which = 0.02 * torch.randn(2, width, generator=_generator(31, seed))
        self.which = nn.Parameter(which.to(weight.device))
        self.head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        train_adapters_or_all(self.body)
        leave_out_frozen(self, "body")

    def logits(self, prompts: Tokens, first: Tokens, second: Tokens) -> Tensor:
        """Compute f(x, y₁, y₂) in the given order, with gradients and without dropout.

        Args:
            prompts: (B, P).
            first: y₁, (B, G, T₁), each of at least one token.
            second: y₂, (B, G, T₂), each of at least one token.

        Returns:
            (B, G), float32 or float64.

        Raises:
            LabError: an empty prompt or response, a response that is too long for the model, or sides of different
                shapes.
        """
        device = self.head.weight.device
        prompts, first, second = prompts.to(device), first.to(device), second.to(device)
        if first.shape[:-1] != second.shape[:-1]:
            shapes = f"{tuple(first.shape[:-1])} and {tuple(second.shape[:-1])}"
            raise LabError(f"The two sides have different numbers of responses, {shapes}. Give equally many.")
        for side in (first, second):
            check_batch(prompts, side, self.body.config)
            empty = side.lengths == 0
            if empty.any():
                row, column = empty.nonzero()[0].tolist()
                raise LabError(f"Response {column} of prompt {row} is empty and cannot be ranked. Remove it.")
        count, group = first.shape[:2]
        repeated, ones, twos = prompts.repeat(group), first.reshape(count * group), second.reshape(count * group)
        width = prompts.shape[-1] + first.shape[-1] + second.shape[-1]
        each = len(repeated) if torch.is_grad_enabled() else max(MAX_TOKENS_PER_PASS // width, 1)
        parts = [
            self._scores(repeated[i : i + each], ones[i : i + each], twos[i : i + each])
            for i in range(0, len(repeated), each)
        ]
        return torch.cat(parts).view(count, group)

    def _scores(self, x: Tokens, one: Tokens, two: Tokens) -> Tensor:
        """Compute the scores (N,) of N rows [x | y₁ | y₂]."""
        after = x.lengths[:, None]
        columns = []
        for number, part in enumerate((x, one, two)):
            place = torch.arange(part.shape[-1], device=part.device).expand_as(part.ids)
            position = place + after if number else place
            columns.append((part.ids, position, torch.full_like(part.ids, number)))
        mask = torch.cat([x.mask, one.mask, two.mask], 1)
        lengths = mask.sum(1)
        longest = int(lengths.max())
        # Masked tokens are written to an extra last column, which is then removed.
        target = (mask.cumsum(1) - 1).where(mask, longest)

        def lay(values: tuple[Tensor, ...]) -> Tensor:
            flat = torch.cat(values, 1)
            return flat.new_zeros(len(flat), longest + 1).scatter(1, target, flat)[:, :longest]

        ids, positions, segment = (lay(values) for values in zip(*columns, strict=True))
        added = torch.cat([torch.zeros_like(self.which[:1]), self.which])[segment]
        embedded = self.body.get_input_embeddings()(ids)
        with dropout_off(self.body), adapters_drop(self.body, self.adapter_dropout):
            # The mask is all ones: padding follows the tokens, so that a causal model does not attend to it.
            states = self.body(
                inputs_embeds=embedded + added.to(embedded.dtype),
                attention_mask=torch.ones_like(ids),
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state
        last = states[torch.arange(len(ids), device=ids.device), lengths - 1]
        return at_least_float32(self.head(last.to(self.head.weight.dtype)).squeeze(-1))

    def forward(
        self, prompts: Tokens, first: Tokens, second: Tokens, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compute logit ρ(x, y₁, y₂) from both orders, or from one that is sampled with `generator`.

        Args:
            prompts: (B, P).
            first: y₁, (B, G, T₁).
            second: y₂, (B, G, T₂).
            generator: needed if the order is "random".

        Returns:
            (B, G).

        Raises:
            LabError: as in `logits`, or the order is "random" and there is no generator.
        """
        if self.order == "both":
            return (self.logits(prompts, first, second) - self.logits(prompts, second, first)) / 2
        if generator is None:
            raise LabError("A ranker with order='random' needs a generator. Pass generator=….")
        turned = torch.rand(first.shape[:2], generator=generator, device=generator.device) < 0.5
        one, two = swap_where(first, second, turned)
        score = self.logits(prompts, one, two)
        return torch.where(turned.to(score.device), -score, score)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write body, head and tokenizer (if there is one) to `folder`; see `rlhf_lab.rewards.saving`."""
        saving.save(self, folder, self.kind, self.tokenizer, order=self.order)

    @classmethod
    def from_pretrained(
        cls,
        folder: Path | str,
        policy_tokenizer: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> PairwiseRanker:
        """Load a ranker that `save_pretrained` wrote; see `LanguageModelReward.from_pretrained`."""
        body, own, record, tokenizer = saving.load(folder, cls.kind, dtype, policy_tokenizer)
        ranker = cls(body, record.get("order", "both"), tokenizer, copied=False)
        saving.load_head(ranker, own, folder)
        return ranker.to(pick_device(str(device or "cpu"))).eval()


def swap_where(first: Tokens, second: Tokens, turned: Tensor) -> tuple[Tokens, Tokens]:
    """Exchange the two sides where a mask is True.

    Args:
        first: (B, G, T₁).
        second: (B, G, T₂).
        turned: (B, G) boolean.

    Returns:
        The two sides after the exchange, (B, G, T) each, with T = max(T₁, T₂).
    """
    length = max(first.shape[-1], second.shape[-1])
    a, b = first.pad_to(length), second.pad_to(length)
    turned = turned.to(a.device)[..., None]
    return (
        Tokens(torch.where(turned, b.ids, a.ids), torch.where(turned, b.mask, a.mask)),
        Tokens(torch.where(turned, a.ids, b.ids), torch.where(turned, a.mask, b.mask)),
    )


class BaselineReward:
    """A reward r(x, y) = logit ρ(x, y, y_b), with one baseline y_b ~ π_sft for each prompt.

    A baseline is sampled when its prompt occurs for the first time, and is then stored. It depends only on the seed and
    on the new prompts of the call, so that the same calls in the same order give the same rewards.

    Attributes:
        ranker: ρ.
        policy: π_sft, from which the baselines are sampled.
    """

    def __init__(self, ranker: PairwiseRanker, policy: Policy, seed: int = 0, temperature: float = 1.0) -> None:
        """Create the reward. No baseline is sampled yet.

        Args:
            ranker: a trained ranker.
            policy: π_sft.
            seed: of the baselines, and of the order if the ranker's order is "random".
            temperature: with which baselines are sampled.
        """
        check_positive(temperature, "temperature")
        self.ranker, self.policy, self.seed, self.temperature = ranker, policy, seed, temperature
        self._baselines: dict[tuple[int, ...], list[int]] = {}

    @torch.no_grad()
    def baselines(self, prompts: Tokens) -> Tokens:
        """Return the baseline of each prompt (B, P), (B, 1, T)."""
        keys = [tuple(ids) for ids in prompts.tolist()]
        new = list(dict.fromkeys(key for key in keys if key not in self._baselines))
        if new:
            generator = _generator(32, self.seed, new, device=self.policy.device)
            drawn = self.policy.sample(Tokens.from_lists(new), 1, generator, self.temperature).tolist()
            self._baselines.update(zip(new, (row[0] for row in drawn), strict=True))
        return Tokens.from_lists([[self._baselines[key]] for key in keys])

    @torch.no_grad()
    def __call__(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Compute rewards.

        Args:
            prompts: (B, P).
            responses: (B, G, T).

        Returns:
            (B, G), float32 or float64, on the responses' device.

        Raises:
            LabError: as in `PairwiseRanker.logits`.
        """
        group = responses.shape[1]
        base = self.baselines(prompts).to(responses.device)
        both = Tokens(base.ids.expand(-1, group, -1), base.mask.expand(-1, group, -1))
        generator = None
        if self.ranker.order == "random":
            generator = _generator(33, self.seed, prompts.tolist(), responses.tolist())
        rewards: Tensor = self.ranker(prompts, responses, both, generator)
        return rewards.to(responses.device)


def _generator(*values: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator whose seed is a function of numbers and lists of ids."""
    digest = hashlib.sha256(repr(values).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
