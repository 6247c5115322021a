r"""The pairwise ranker ρ(x, y₁, y₂) = P(y₁ ≻ y₂), which reads both responses together, and the reward made of it.

RSO trains such a ranker instead of a scorer (Liu et al. 2023, section 3.1, after SLiC-HF), and turns it into a
reward by a baseline response y_b drawn from the SFT policy (their equation 8):

    r(x, y) = logit ρ(x, y, y_b)

Under a Bradley–Terry labeller logit ρ = r*(x, y₁) − r*(x, y₂), so this is r*(x, y) up to a number of each prompt,
which no method sees. But nothing makes a ranker a difference of two scores: it can say that A beats B, B beats C and
C beats A, and its reward then depends on y_b.

One row holds everything, [x | y₁ | y₂], and the score is read at y₂'s last token, which has seen all of it. There are
no separating ids (a token tree has none to spare): y₂ starts at the place where y₁ started, so that a row needs no
more context than one response does, and a learned vector added to each response's embeddings says which it is.

The raw logit f(y₁, y₂) need not be −f(y₂, y₁). Training shows both orders. At use the order is averaged over,
(f(y₁, y₂) − f(y₂, y₁))/2, or drawn for each pair, as in the paper.
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
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of, check_batch, dropout_off
from rlhf_lab.rewards import saving
from rlhf_lab.rewards.language_model import at_least_float32
from rlhf_lab.rewards.shared_vocabulary import check_same_tokenizer

Order = Literal["both", "random"]
MAX_TOKENS_PER_PASS = 2**14
"""Tokens in one forward pass where no gradient is wanted."""


class PairwiseRanker(nn.Module):
    """logit ρ(x, y₁, y₂) on a copy of a language model's body.

    Attributes:
        order: at use, "both" averages over the two orders (twice the work, antisymmetric to the last bit); "random"
            draws one for each pair.
        tokenizer: kept for `save_pretrained` and for checks against a policy's; ranking works on ids alone.
    """

    kind = "pairwise ranker"

    def __init__(
        self, model: nn.Module, order: Order = "both", tokenizer: Any = None, seed: int = 0, copied: bool = True
    ) -> None:
        """A new ranker, which finds all responses equal.

        Args:
            model: a causal LM (GPT-2, GPT-NeoX and Llama are tested), or a model that has one as `.model`.
            order: see the class.
            tokenizer: see the class.
            seed: of the vectors that tell the responses apart.
            copied: False takes `model`'s body as its own.
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
        # As large as embeddings are at the start of training in these architectures.
        which = 0.02 * torch.randn(2, width, generator=_generator(31, seed))
        self.which = nn.Parameter(which.to(weight.device))
        self.head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        self.requires_grad_(True)

    def logits(self, prompts: Tokens, first: Tokens, second: Tokens) -> Tensor:
        """f(x, y₁, y₂) as shown, (B, G), float32. Dropout is off; gradients flow.

        Args:
            prompts: (B, P).
            first: y₁, (B, G, T₁), each of at least one token.
            second: y₂, (B, G, T₂), the same.

        Raises:
            LabError: an empty prompt or response, or one too long for the model; sides of other shapes.
        """
        device = self.head.weight.device
        prompts, first, second = prompts.to(device), first.to(device), second.to(device)
        if first.shape[:-1] != second.shape[:-1]:
            raise LabError(f"The two sides differ: {tuple(first.shape[:-1])} and {tuple(second.shape[:-1])} responses.")
        for side in (first, second):
            check_batch(prompts, side, self.body.config)
            empty = side.lengths == 0
            if empty.any():
                row, column = empty.nonzero()[0].tolist()
                raise LabError(f"Response {column} of prompt {row} is empty: there is nothing to rank.")
        count, group = first.shape[:2]
        asked, ones, twos = prompts.repeat(group), first.reshape(count * group), second.reshape(count * group)
        width = prompts.shape[-1] + first.shape[-1] + second.shape[-1]
        each = len(asked) if torch.is_grad_enabled() else max(MAX_TOKENS_PER_PASS // width, 1)
        parts = [
            self._scores(asked[i : i + each], ones[i : i + each], twos[i : i + each])
            for i in range(0, len(asked), each)
        ]
        return torch.cat(parts).view(count, group)

    def _scores(self, x: Tokens, one: Tokens, two: Tokens) -> Tensor:
        """(N,) scores of N rows [x | y₁ | y₂]."""
        after = x.lengths[:, None]
        columns = []
        for number, part in enumerate((x, one, two)):
            place = torch.arange(part.shape[-1], device=part.device).expand_as(part.ids)
            position = place + after if number else place
            columns.append((part.ids, position, torch.full_like(part.ids, number)))
        mask = torch.cat([x.mask, one.mask, two.mask], 1)
        lengths = mask.sum(1)
        longest = int(lengths.max())
        target = (mask.cumsum(1) - 1).where(mask, longest)  # what does not count goes past the end, and is cut off

        def lay(values: tuple[Tensor, ...]) -> Tensor:
            flat = torch.cat(values, 1)
            return flat.new_zeros(len(flat), longest + 1).scatter(1, target, flat)[:, :longest]

        ids, positions, segment = (lay(values) for values in zip(*columns, strict=True))
        added = torch.cat([torch.zeros_like(self.which[:1]), self.which])[segment]
        embedded = self.body.get_input_embeddings()(ids)
        with dropout_off(self.body):
            # A mask of ones: places past a row's end lie at the right, where a causal model does not look.
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
        """logit ρ(x, y₁, y₂), (B, G): by both orders, or by one drawn from `generator`.

        Raises:
            LabError: as `logits`; the order is "random" and there is no generator.
        """
        if self.order == "both":
            return (self.logits(prompts, first, second) - self.logits(prompts, second, first)) / 2
        if generator is None:
            raise LabError("A ranker whose order is random needs a generator: pass generator=….")
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
        """Read what `save_pretrained` wrote. Arguments and errors as in `LanguageModelReward.from_pretrained`."""
        body, own, record, tokenizer = saving.load(folder, cls.kind, dtype)
        if tokenizer is not None and policy_tokenizer is not None:
            check_same_tokenizer(policy_tokenizer, tokenizer, reward_name=f"the {cls.kind}")
        ranker = cls(body, record.get("order", "both"), tokenizer, copied=False)
        saving.load_head(ranker, own, folder)
        return ranker.to(pick_device(str(device or "cpu"))).eval()


def swap_where(first: Tokens, second: Tokens, turned: Tensor) -> tuple[Tokens, Tokens]:
    """The two sides (B, G, T), exchanged where `turned` (B, G) is True."""
    length = max(first.shape[-1], second.shape[-1])
    a, b = first.pad_to(length), second.pad_to(length)
    turned = turned.to(a.device)[..., None]
    return (
        Tokens(torch.where(turned, b.ids, a.ids), torch.where(turned, b.mask, a.mask)),
        Tokens(torch.where(turned, a.ids, b.ids), torch.where(turned, a.mask, b.mask)),
    )


class BaselineReward:
    """r(x, y) = logit ρ(x, y, y_b), with one y_b ~ π_sft a prompt, drawn when the prompt is first met and then kept.

    What is drawn is a function of the seed and of the new prompts of a call: equal calls in equal order give equal
    rewards.

    Attributes:
        ranker: ρ.
        policy: π_sft, which answers with the baselines.
    """

    def __init__(self, ranker: PairwiseRanker, policy: Policy, seed: int = 0, temperature: float = 1.0) -> None:
        """Draws nothing yet.

        Args:
            ranker: a trained ranker.
            policy: π_sft.
            seed: of the baselines, and of the order where the ranker's is random.
            temperature: of sampling baselines.
        """
        check_positive(temperature, "temperature")
        self.ranker, self.policy, self.seed, self.temperature = ranker, policy, seed, temperature
        self._kept: dict[tuple[int, ...], list[int]] = {}

    @property
    def body(self) -> Any:
        """The ranker's body: what `check_reward_vocabulary` looks at."""
        return self.ranker.body

    @property
    def tokenizer(self) -> Any:
        """The ranker's tokenizer, if it has one."""
        return self.ranker.tokenizer

    @torch.no_grad()
    def baselines(self, prompts: Tokens) -> Tokens:
        """The baseline of each prompt, (B, 1, T)."""
        keys = [tuple(ids) for ids in prompts.tolist()]
        new = list(dict.fromkeys(key for key in keys if key not in self._kept))
        if new:
            generator = _generator(32, self.seed, new, device=self.policy.device)
            drawn = self.policy.sample(Tokens.from_lists(new), 1, generator, self.temperature).tolist()
            self._kept.update(zip(new, (row[0] for row in drawn), strict=True))
        return Tokens.from_lists([[self._kept[key]] for key in keys])

    @torch.no_grad()
    def __call__(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Rewards (B, G), float32, on the responses' device.

        Raises:
            LabError: as `PairwiseRanker.logits`.
        """
        group = responses.shape[1]
        base = self.baselines(prompts).to(responses.device)
        both = Tokens(base.ids.expand(-1, group, -1), base.mask.expand(-1, group, -1))
        generator = None
        if self.ranker.order == "random":
            generator = _generator(33, self.seed, prompts.tolist(), responses.tolist())
        return self.ranker(prompts, responses, both, generator).to(responses.device)


def _generator(*values: Any, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator that is a function of numbers and lists of ids."""
    digest = hashlib.sha256(repr(values).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
