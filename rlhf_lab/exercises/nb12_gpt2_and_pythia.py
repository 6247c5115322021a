"""Exercises of notebook 12: end tokens, LoRA parameters and memory of a real language model."""

from rlhf_lab.exercises.checking import Case, Exercise, Mistake


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


EXERCISES = (
    Exercise(
        key="nb12.ended",
        title="Where a response ends",
        objective="end a response once, but not if it was cut",
        difficulty=1,
        minutes=4,
        cases=(
            Case("it fits", {"response": [5, 8, 6], "end": 0, "limit": 6}),
            Case("it is too long", {"response": [5, 8, 6, 9, 7], "end": 0, "limit": 4}),
            Case("it fits only without its end", {"response": [3, 2, 4], "end": 0, "limit": 3}),
        ),
        solution=ended,
        mistakes=(
            Mistake(
                "cut, then ended",
                "a response that was cut gets an end token, and is longer than the limit: the model would learn to "
                "stop in the middle of a sentence.",
                lambda y, end, n: [*y[:n], end],
            ),
            Mistake(
                "last token replaced",
                "the last token is replaced by the end token where the text was cut, but the text did not end there.",
                lambda y, end, n: [*y[: n - 1], end],
            ),
            Mistake(
                "never ended",
                "the end token is missing: nothing teaches the model to stop.",
                lambda y, end, n: y[:n],
            ),
            Mistake(
                "not cut",
                "nothing is cut here. Return at most `limit` ids, including the end token.",
                lambda y, end, n: [*y, end],
            ),
            Mistake(
                "beginning lost",
                "the beginning was cut off. A prompt keeps its end, a response its beginning.",
                lambda y, end, n: [*y, end][-n:],
            ),
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
        mistakes=(
            Mistake(
                "the layer itself",
                "that is the layer itself, which is frozen.",
                lambda i, o, r: i * o,
            ),
            Mistake(
                "one factor",
                "only one of the two factors is counted: W' = W + (α/r) B A trains both.",
                lambda i, o, r: r * i,
            ),
            Mistake(
                "product",
                "this is a product instead of a sum: A and B are r × in and out × r.",
                lambda i, o, r: r * i * o,
            ),
            Mistake(
                "with the layer",
                "the frozen layer is counted too: it is used, not trained.",
                lambda i, o, r: i * o + r * (i + o),
            ),
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
        mistakes=(
            Mistake(
                "one moment",
                "Adam stores two moments of each trained weight; this counts one.",
                lambda w, t, ref: 4 * w + 8 * t + 4 * w * ref,
            ),
            Mistake(
                "everything trained",
                "gradients and moments are counted for frozen weights too: they have none.",
                lambda w, t, ref: 16 * w + 4 * w * ref,
            ),
            Mistake(
                "reference forgotten",
                "the reference is missing.",
                _lost_reference,
            ),
            Mistake(
                "reference trained",
                "the reference is counted as if it were trained: it is frozen and has only its weights.",
                lambda w, t, ref: 4 * w + 12 * t + (4 * w + 12 * t if ref else 0),
            ),
            Mistake(
                "half precision",
                "these are two bytes for each number, but float32 has four.",
                lambda w, t, ref: (4 * w + 12 * t + 4 * w * ref) // 2,
            ),
        ),
        hints=(
            "Each number has four bytes. Which numbers belong to every weight, and which only to trained ones?",
            "Every weight is stored. A trained weight also has a gradient and Adam's two moments. A reference has "
            "frozen weights.",
        ),
    ),
)
