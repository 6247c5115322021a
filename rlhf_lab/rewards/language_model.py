"""Scores and values from a language model's body: a linear head on the states of the packed forward pass.

The reward r_φ(x, y) is read at the response's last token; the critic's V(x, y_<t) at the token *before* y_t
(the prompt's last one for t = 0), so it is known before y_t is chosen. Starting the critic from the reward
model is what Stiennon et al. (2020), "Learning to summarize from human feedback", found needed.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.loading import pick_device
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of, check_batch, dropout_off, shared_prefix_states
from rlhf_lab.rewards import saving
from rlhf_lab.rewards.shared_vocabulary import check_same_tokenizer

S = TypeVar("S", bound="_Scored")


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision widened; float64 stays, so that a model in it gives the same digits on every machine."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _Scored(nn.Module):
    """A body and a linear head. The head starts at zero: no generator is needed, and scores start equal."""

    kind: ClassVar[str]

    def __init__(self, model: nn.Module, tokenizer: Any = None, copied: bool = True) -> None:
        super().__init__()
        self.body: Any
        self.head: nn.Linear
        take = copy.deepcopy if copied else lambda part: part
        self.tokenizer = tokenizer
        if isinstance(model, _Scored):
            self.body, self.head = take(model.body), take(model.head)
            self.tokenizer = tokenizer if tokenizer is not None else model.tokenizer
        else:
            self.body = take(body_of(model))
            self.head = nn.Linear(self.body.config.hidden_size, 1)
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
            weight = next(self.body.parameters())
            self.head.to(weight.device, torch.promote_types(weight.dtype, torch.float32))
        self.requires_grad_(True)

    def save_pretrained(self, folder: Path | str) -> None:
        """Write body, head and tokenizer (if there is one) to `folder`; see `rlhf_lab.rewards.saving`."""
        saving.save(self, folder, self.kind, self.tokenizer)

    @classmethod
    def from_pretrained(
        cls: type[S],
        folder: Path | str,
        policy_tokenizer: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> S:
        """Read what `save_pretrained` wrote.

        Args:
            folder: where it lies.
            policy_tokenizer: the tokenizer of the policy whose responses will be scored; None checks nothing.
            device: where to put it; None for the CPU.
            dtype: number type of the body's weights; None for float32.

        Raises:
            LabError: it is not there, not whole, of another kind, or was trained with another tokenizer.
        """
        body, own, _, tokenizer = saving.load(folder, cls.kind, dtype)
        if tokenizer is not None and policy_tokenizer is not None:
            check_same_tokenizer(policy_tokenizer, tokenizer, reward_name=f"the {cls.kind}")
        module = cls(body, tokenizer, copied=False)
        saving.load_head(module, own, folder)
        return module.to(pick_device(str(device or "cpu"))).eval()

    def _values(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """The head's number, float32 at least, at every place from which a response token is predicted, (B, G, T)."""
        with dropout_off(self.body):
            states = shared_prefix_states(self.body, prompts, responses)
        return at_least_float32(self.head(states.flat.to(self.head.weight.dtype)).squeeze(-1))[states.before]


class LanguageModelReward(_Scored):
    """r_φ(x, y), read at the response's last token by a linear head on a copy of a language model's body.

    Args:
        model: a causal LM, or another reward model or critic to start from.
        tokenizer: kept for `save_pretrained` and for checks against a policy's; scoring works on ids alone.
        copied: False takes `model`'s body as its own.
    """

    kind = "reward model"

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Scores of shape (B, G), float32 at least. Dropout is off; gradients flow.

        Args:
            prompts: (B, P).
            responses: (B, G, T), each of at least one token.

        Raises:
            LabError: an empty prompt or response, or a row longer than the model's context.
        """
        device = self.head.weight.device
        prompts, responses = prompts.to(device), responses.to(device)
        check_batch(prompts, responses, self.body.config)
        empty = responses.lengths == 0
        if empty.any():
            row, column = empty.nonzero()[0].tolist()
            raise LabError(f"Response {column} of prompt {row} is empty: there is no last token to read a score at.")
        # One place more, that stands for "what would come next": it is predicted from the last token.
        longer = Tokens(pad(responses.ids, (0, 1)), pad(responses.mask, (1, 0), value=True))
        values = self._values(prompts, longer)
        return values.gather(-1, responses.lengths[..., None]).squeeze(-1)


class LanguageModelCritic(_Scored):
    """V(x, y_<t), the value before token t is chosen.

    Args:
        model: a causal LM, whose body is copied under a new head, or a reward model, copied with its head.
        tokenizer: as in `LanguageModelReward`.
        copied: as in `LanguageModelReward`.
    """

    kind = "critic"

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Values of shape (B, G, T), float32 at least, 0 where there is no token. Dropout is off; gradients flow.

        Args:
            prompts: (B, P).
            responses: (B, G, T).
        """
        device = self.head.weight.device
        prompts, responses = prompts.to(device), responses.to(device)
        check_batch(prompts, responses, self.body.config)
        return self._values(prompts, responses) * responses.mask
