"""Exercises of notebook 12: end tokens, LoRA and memory of a real language model."""

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_lab import exact
from rlhf_lab.derivations.optimal_policy import reward_from_optimum
from rlhf_lab.exercises.checking import Case, Exercise, Task
from rlhf_lab.exercises.derive import NextLine
from rlhf_lab.exercises.edits import Edited, wrong_answers
from rlhf_lab.exercises.predictions import Prediction
from rlhf_lab.exercises.training_loops import TrainingLoop
from rlhf_lab.training import seeded


def ended(response: list[int], end: int, limit: int) -> list[int]:
    """The response's ids for training: the end token once, and at most `limit` ids."""
    return [*response, end][:limit]


def adapter_weights(inputs: int, outputs: int, rank: int) -> int:
    """Weights that LoRA of this rank trains in a linear layer of `inputs` × `outputs`."""
    return rank * (inputs + outputs)


def training_bytes(weights: int, trained: int, reference: bool) -> int:
    """Bytes that weights, gradients and Adam's moments need in float32, and a reference's weights if there is one."""
    return 4 * weights + 12 * trained + (4 * weights if reference else 0)


def _lost_reference(weights: int, trained: int, reference: bool) -> int:
    return 4 * weights + 12 * trained


def solved_for_reward(w: Any) -> Any:
    """r(x, y) in terms of π* and Z, (X, K)."""
    return w.beta * (w.log_star - w.log_ref + w.log_z[:, None])


class Adapter(nn.Module):
    """The two matrices of LoRA: A, (rank, D), random; B, (K, rank), zero."""

    def __init__(self, outputs: int, inputs: int, rank: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(rank, inputs, dtype=torch.float64, generator=seeded(1)))
        self.B = nn.Parameter(torch.zeros(outputs, rank, dtype=torch.float64))


def train_lora(
    adapter: Adapter,
    weight: Tensor,
    scale: float,
    features: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    beta: float,
    steps: int,
    learning_rate: float,
) -> list[float]:
    """DPO of adapter.A and adapter.B; the logits are features @ W.T."""
    optimizer = torch.optim.SGD(adapter.parameters(), lr=learning_rate)
    log_ref = (features @ weight.T).log_softmax(-1)
    losses = []
    for _ in range(steps):
        adapted = weight + scale * adapter.B @ adapter.A
        log_ratio = (features @ adapted.T).log_softmax(-1) - log_ref
        delta = log_ratio.gather(-1, chosen) - log_ratio.gather(-1, rejected)
        loss = -torch.nn.functional.logsigmoid(beta * delta).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def fit_responses(logits: Tensor, ids: Tensor, lengths: Tensor, steps: int, learning_rate: float) -> list[float]:
    """SFT of a table (V, V) for the next token; ids (N, T) are padded with 0, the end."""
    optimizer = torch.optim.SGD([logits], lr=learning_rate)
    mask = torch.arange(1, ids.shape[1]) < lengths[:, None]
    losses = []
    for _ in range(steps):
        log_prob = logits.log_softmax(-1)[ids[:, :-1], ids[:, 1:]]
        loss = -(log_prob * mask).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


_END_MASKED = "torch.arange(1, ids.shape[1]) < lengths[:, None] → ids[:, 1:] != 0"
_BETA, _SCALE = 0.5, 1.5
_FEATURES = torch.randn(8, 3, dtype=torch.float64, generator=seeded(2))
_WEIGHT = torch.randn(4, 3, dtype=torch.float64, generator=seeded(3))
_GOLD = torch.randn(4, 2, dtype=torch.float64, generator=seeded(4)) @ torch.randn(
    2, 3, dtype=torch.float64, generator=seeded(5)
)
"""The gold reward is linear in the features, and its matrix has the rank of the adapter."""


def _lora_arguments() -> dict[str, object]:
    generator, reward = seeded(6), _FEATURES @ _GOLD.T
    one = torch.randint(4, (8, 400), generator=generator)
    two = (one + torch.randint(1, 4, one.shape, generator=generator)) % 4
    first = torch.rand(one.shape, dtype=torch.float64, generator=generator) < torch.sigmoid(
        reward.gather(-1, one) - reward.gather(-1, two)
    )
    return {
        "adapter": Adapter(4, 3, 2),
        "weight": _WEIGHT,
        "scale": _SCALE,
        "features": _FEATURES,
        "chosen": torch.where(first, one, two),
        "rejected": torch.where(first, two, one),
        "beta": _BETA,
        "steps": 100,
        "learning_rate": 2.0,
    }


def _lora_regret(adapter: Adapter) -> float:
    log_policy = (_FEATURES @ (_WEIGHT + _SCALE * adapter.B @ adapter.A).T).log_softmax(-1)
    log_ref = (_FEATURES @ _WEIGHT.T).log_softmax(-1)
    return exact.regret(log_policy, log_ref, _FEATURES @ _GOLD.T, _BETA).mean().item()


_NEXT = torch.tensor([[0.3, 0.3, 0.1, 0.3], [0.1, 0.2, 0.5, 0.2], [0.25, 0.25, 0.1, 0.4]], dtype=torch.float64)
"""Probabilities of the tokens 0 (the end) to 3 after the tokens 1 to 3."""


def _response_arguments() -> dict[str, object]:
    generator, number, longest = seeded(7), 1000, 12
    ids = torch.zeros(number, longest, dtype=torch.long)
    ids[:, 0] = torch.randint(1, 4, (number,), generator=generator)
    lengths = torch.full((number,), longest)
    for t in range(1, longest):
        going = ids[:, t - 1] != 0
        ids[going, t] = torch.multinomial(_NEXT[ids[going, t - 1] - 1], 1, generator=generator).squeeze(-1)
        lengths[going & (ids[:, t] == 0)] = t + 1
    logits = torch.zeros(4, 4, dtype=torch.float64, requires_grad=True)
    return {"logits": logits, "ids": ids, "lengths": lengths, "steps": 40, "learning_rate": 2.0}


def _response_kl(logits: Tensor) -> float:
    return exact.kl(_NEXT.log(), logits.log_softmax(-1)[1:]).mean().item()


def _end_without_targets() -> str:
    """What the loop with the wrong mask does to the mean probability of the end token after tokens 1 to 3."""
    given: dict[str, Any] = _response_arguments()
    Edited(fit_responses, (_END_MASKED,))(**given)
    end = given["logits"].detach().softmax(-1)[1:, 0].mean().item()
    return "A" if end > 0.25 else "C" if end < 0.05 else "B"


EXERCISES: tuple[Task, ...] = (
    Prediction(
        key="nb12.end_without_targets",
        title="A mask that removes the end token",
        objective="predict what a language model learns about a token that is never a target",
        difficulty=1,
        minutes=2,
        question=(
            "The end token is also the padding token, and the mask of the SFT loss is `ids != pad`. Before training, "
            "the model ends a response with probability 0.25 after every token. What happens to this probability "
            "during training?"
        ),
        options={
            "A": "It rises, because every response is followed by padding.",
            "B": "It stays close to 0.25, because the end token is not part of the loss.",
            "C": "It falls to nearly zero.",
        },
        truth=_end_without_targets,
        explanation=(
            "The softmax distributes a probability of one over all tokens. At every position that counts, another "
            "token is the target, so its probability rises and that of the end token falls."
        ),
        why_not={
            "A": "the padding is masked, so it is never a target.",
            "B": "the end token is never a target, but it is in the denominator of every softmax.",
        },
    ),
    NextLine(
        key="nb12.solved_for_reward",
        title="The reward that belongs to a policy",
        objective="solve for the reward under which a given policy is optimal",
        difficulty=1,
        minutes=4,
        derivation=reward_from_optimum,
        line=3,
        quantities=("log_star", "log_ref", "log_z", "beta"),
        solution=solved_for_reward,
        mistakes=wrong_answers(
            solved_for_reward,
            {
                "no partition function": lambda w: w.beta * (w.log_star - w.log_ref),
                "no reference": lambda w: w.beta * (w.log_star + w.log_z[:, None]),
                "divided by beta": lambda w: (w.log_star - w.log_ref + w.log_z[:, None]) / w.beta,
            },
            {
                "no partition function": "this is the implicit reward β log π*/π_ref. The term with Z(x) is missing, "
                "which shifts all rewards of a prompt.",
                "no reference": "π_ref is missing. The reward depends on the ratio of π* and π_ref.",
                "divided by beta": "β is on the wrong side. The reward divided by β is added to log π_ref.",
            },
        ),
        hints=(
            "log π* = log π_ref + r/β − log Z. Move everything except r/β to one side.",
            "r = β (log π* − log π_ref + log Z). `w.log_z` has one number for each prompt; `w.log_z[:, None]` has "
            "shape (X, 1).",
        ),
    ),
    TrainingLoop(
        key="nb12.train_lora",
        title="DPO of an adapter",
        objective="write a training loop that changes an adapter and leaves the weights frozen",
        difficulty=3,
        minutes=12,
        arguments=_lora_arguments,
        distance=_lora_regret,
        solution=train_lora,
        mistakes=wrong_answers(
            train_lora,
            {
                "no scale": "scale * adapter.B → adapter.B",
                "adapter alone": "weight + scale → scale",
                "no reference": "log_softmax(-1) - log_ref → log_softmax(-1)",
                "swapped pair": "chosen) - log_ratio.gather(-1, rejected) → rejected) - log_ratio.gather(-1, chosen)",
                "no beta": "beta * delta → delta",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "no scale": "the factor α/r (`scale`) of the adapter is missing.",
                "adapter alone": "the frozen weight is missing from the policy: W' = W + (α/r) B A.",
                "no reference": "the log-probabilities of the reference are missing from the log-ratio.",
                "swapped pair": "chosen and rejected are swapped.",
                "no beta": "β is missing from the margin.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("no scale", "no beta"), ("swapped pair", "no beta")),
        ),
        hints=(
            "The reference is the model without the adapter, `features @ weight.T`. Its log-probabilities do not "
            "change.",
            "In every step compute `adapted = weight + scale * adapter.B @ adapter.A`, the log-probabilities of "
            "`features @ adapted.T`, and their difference to the reference.",
            "`log_ratio.gather(-1, chosen)` selects the responses of the pairs, (X, N). The loss is the mean of "
            "−log σ(β Δ).",
        ),
    ),
    TrainingLoop(
        key="nb12.fit_responses",
        title="A model that does not stop",
        objective="find a bug in the mask of an SFT loss",
        difficulty=2,
        minutes=8,
        arguments=_response_arguments,
        distance=_response_kl,
        quantity="KL(π_demo‖π_θ)",
        solution=fit_responses,
        bug="end token masked",
        mistakes=wrong_answers(
            fit_responses,
            {
                "end token masked": _END_MASKED,
                "padding counted": "< lengths[:, None] → < ids.shape[1]",
                "no shift": "[ids[:, :-1], ids[:, 1:]] → [ids[:, 1:], ids[:, 1:]]",
                "probabilities": "log_prob * mask → log_prob.exp() * mask",
                "gradients not reset": "optimizer.zero_grad() → pass",
            },
            {
                "end token masked": "the mask removes the true end tokens too, so nothing teaches the model to stop.",
                "padding counted": "the padding after the end of a response is part of the loss.",
                "no shift": "each token is predicted from itself instead of the token before it.",
                "probabilities": "the loss contains probabilities instead of their logarithms.",
                "gradients not reset": "gradients add up over the steps, because they are not reset to zero.",
            },
            pairs=(("end token masked", "no shift"), ("end token masked", "gradients not reset")),
        ),
        hints=(
            "After training, compute the probability of the end token. Which targets could teach the model to stop?",
            "The mask must come from the lengths: position t of `ids` counts if t < `lengths`.",
        ),
    ),
    Exercise(
        key="nb12.ended",
        title="Where a response ends",
        objective="append exactly one end token to a response, and none if it was truncated",
        difficulty=1,
        minutes=4,
        cases=(
            Case("it fits", {"response": [5, 8, 6], "end": 0, "limit": 6}),
            Case("it is too long", {"response": [5, 8, 6, 9, 7], "end": 0, "limit": 4}),
            Case("it fits only without its end", {"response": [3, 2, 4], "end": 0, "limit": 3}),
        ),
        solution=ended,
        mistakes=wrong_answers(
            ended,
            {
                "cut, then ended": lambda y, end, n: [*y[:n], end],
                "last token replaced": lambda y, end, n: [*y[: n - 1], end],
                "never ended": lambda y, end, n: y[:n],
                "not cut": lambda y, end, n: [*y, end],
                "beginning lost": lambda y, end, n: [*y, end][-n:],
            },
            {
                "cut, then ended": "a response that was cut gets an end token, and is longer than the limit: the model "
                "would learn to stop in the middle of a sentence.",
                "last token replaced": "the last token is replaced by the end token where the text was cut, but the "
                "text did not end there.",
                "never ended": "the end token is missing: nothing teaches the model to stop.",
                "not cut": "nothing is cut here. Return at most `limit` ids, including the end token.",
                "beginning lost": "the beginning was cut off. A prompt keeps its end, a response its beginning.",
            },
        ),
        hints=(
            "Is the response ended and then cut, or the reverse? What does the model learn from each?",
            "Append the end token first. It is correct that the limit may cut it off again.",
        ),
    ),
    Exercise(
        key="nb12.adapter_weights",
        title="What LoRA trains",
        objective="count the weights of an adapter",
        difficulty=1,
        minutes=3,
        cases=(
            Case("GPT-2's MLP, rank 8", {"inputs": 768, "outputs": 3072, "rank": 8}),
            Case("a square layer, rank 4", {"inputs": 1024, "outputs": 1024, "rank": 4}),
        ),
        solution=adapter_weights,
        mistakes=wrong_answers(
            adapter_weights,
            {
                "the layer itself": lambda i, o, r: i * o,
                "one factor": lambda i, o, r: r * i,
                "product": lambda i, o, r: r * i * o,
                "with the layer": lambda i, o, r: i * o + r * (i + o),
            },
            {
                "the layer itself": "that is the layer itself, which is frozen.",
                "one factor": "only one of the two factors is counted: W' = W + (α/r) B A trains both.",
                "product": "this is a product instead of a sum: A and B are r × in and out × r.",
                "with the layer": "the frozen layer is counted too: it is used, not trained.",
            },
        ),
        hints=(
            "W' = W + (α/r) B A: what are the shapes of A and B?",
            "A is r × in, B is out × r. Count both.",
        ),
    ),
    Exercise(
        key="nb12.training_bytes",
        title="Memory before the first token",
        objective="compute the memory of weights, gradients, Adam and a reference before training",
        difficulty=2,
        minutes=6,
        cases=(
            Case("124 million trained weights", {"weights": 124_000_000, "trained": 124_000_000, "reference": True}),
            Case("adapters of 1 million", {"weights": 124_000_000, "trained": 1_000_000, "reference": False}),
            Case(
                "adapters and a separate reference", {"weights": 410_000_000, "trained": 2_000_000, "reference": True}
            ),
        ),
        solution=training_bytes,
        mistakes=wrong_answers(
            training_bytes,
            {
                "one moment": lambda w, t, ref: 4 * w + 8 * t + 4 * w * ref,
                "everything trained": lambda w, t, ref: 16 * w + 4 * w * ref,
                "reference forgotten": _lost_reference,
                "reference trained": lambda w, t, ref: 4 * w + 12 * t + (4 * w + 12 * t if ref else 0),
                "half precision": lambda w, t, ref: (4 * w + 12 * t + 4 * w * ref) // 2,
            },
            {
                "one moment": "Adam stores two moments of each trained weight; this counts one.",
                "everything trained": "gradients and moments are counted for frozen weights too: they have none.",
                "reference forgotten": "the reference is missing.",
                "reference trained": "the reference is counted as if it were trained: it is frozen and has only its "
                "weights.",
                "half precision": "these are two bytes for each number, but float32 has four.",
            },
        ),
        hints=(
            "Each number has four bytes. Which numbers belong to every weight, and which only to trained ones?",
            "Every weight is stored. A trained weight also has a gradient and Adam's two moments. A reference has "
            "frozen weights.",
        ),
    ),
)
