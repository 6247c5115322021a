"""A reward model and a critic, each a linear head on the hidden states of a language model's body.

The reward r_φ(x, y) is the head's output at the response's last token. The critic's V(x, y_<t) is its output at the
token *before* y_t, which is the prompt's last token for t = 0, so that it does not depend on y_t. Stiennon et al.
(2020), "Learning to summarize from human feedback", initialise the critic from the reward model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.loading import pick_device
from rlhf_lab.policies.lora import adapters_drop, leave_out_frozen, train_adapters_or_all
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of, check_batch, dropout_off, shared_prefix_states
from rlhf_lab.rewards import saving

S = TypeVar("S", bound="_Scored")


def at_least_float32(values: Tensor) -> Tensor:
    """Convert half precision to float32. Float64 is not changed."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class _Scored(nn.Module):
    """A body and a linear head. The head is initialised with zeros, so that no generator is needed.

    Attributes:
        adapter_dropout: dropout of the inputs of the body's adapters while a gradient is computed.
    """

    kind: ClassVar[str]
    adapter_dropout: float = 0.0

    def __init__(self, model: nn.Module, tokenizer: Any = None, copied: bool = True) -> None:
        super().__init__()
        self.body: Any
        self.head: nn.Linear
        take: Callable[[Any], Any] = copy.deepcopy if copied else lambda part: part
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
        self.head.requires_grad_(True)
        train_adapters_or_all(self.body)
        leave_out_frozen(self, "body")

    def save_pretrained(self, folder: Path | str) -> None:
        """Write body, head and tokenizer (if there is one) to `folder`; see `rlhf_lab.rewards.saving`.

        Adapters are merged into the body that is written.

        Args:
            folder: created if it does not exist.
        """
        saving.save(self, folder, self.kind, self.tokenizer)

    @classmethod
    def from_pretrained(
        cls: type[S],
        folder: Path | str,
        policy_tokenizer: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> S:
        """Load a model that `save_pretrained` wrote.

        Args:
            folder: of the model.
            policy_tokenizer: the tokenizer of the policy whose responses will be scored; None checks nothing.
            device: of the model; None for the CPU.
            dtype: of the body's weights; None for float32.

        Returns:
            The model in eval mode.

        Raises:
            LabError: there is no such folder, it is incomplete, it contains another kind of model, or the model was
                trained with another tokenizer.
        """
        body, own, _, tokenizer = saving.load(folder, cls.kind, dtype, policy_tokenizer)
        module = cls(body, tokenizer, copied=False)
        saving.load_head(module, own, folder)
        return module.to(pick_device(str(device or "cpu"))).eval()

    def _values(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """The head's output before every response token, (B, G, T), float32 or float64."""
        with dropout_off(self.body), adapters_drop(self.body, self.adapter_dropout):
            states = shared_prefix_states(self.body, prompts, responses)
        return at_least_float32(self.head(states.flat.to(self.head.weight.dtype)).squeeze(-1))[states.before]


class LanguageModelReward(_Scored):
    """A reward model r_φ(x, y): a linear head at the response's last token, on a copy of a language model's body.

    Args:
        model: a causal LM, or a reward model or critic from which to initialise.
        tokenizer: stored for `save_pretrained` and for checks against a policy's. Scoring works on ids.
        copied: False uses `model`'s body itself instead of a copy.
    """

    kind = "reward model"

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Compute scores with gradients and without dropout.

        Args:
            prompts: (B, P).
            responses: (B, G, T), each of at least one token.

        Returns:
            (B, G), float32 or float64.

        Raises:
            LabError: an empty prompt or response, or a row longer than the model's maximum length.
        """
        device = self.head.weight.device
        prompts, responses = prompts.to(device), responses.to(device)
        check_batch(prompts, responses, self.body.config)
        empty = responses.lengths == 0
        if empty.any():
            row, column = empty.nonzero()[0].tolist()
            raise LabError(f"Response {column} of prompt {row} is empty, but the score is computed at its last token.")
        # Each response is extended by one token, because the state of the last token is then computed too.
        longer = Tokens(pad(responses.ids, (0, 1)), pad(responses.mask, (1, 0), value=True))
        values = self._values(prompts, longer)
        return values.gather(-1, responses.lengths[..., None]).squeeze(-1)


class LanguageModelCritic(_Scored):
    """A critic V(x, y_<t), the value before token t is chosen.

    Args:
        model: a causal LM, whose body is copied and gets a new head, or a reward model, which is copied with its head.
        tokenizer: as in `LanguageModelReward`.
        copied: as in `LanguageModelReward`.
    """

    kind = "critic"

    def forward(self, prompts: Tokens, responses: Tokens) -> Tensor:
        """Compute values with gradients and without dropout.

        Args:
            prompts: (B, P).
            responses: (B, G, T).

        Returns:
            (B, G, T), float32 or float64, 0 where there is no token.
        """
        device = self.head.weight.device
        prompts, responses = prompts.to(device), responses.to(device)
        check_batch(prompts, responses, self.body.config)
        return self._values(prompts, responses) * responses.mask
