"""Common inputs of the benchmarks: pairs with the lengths of TL;DR or AnthropicHH, a model, and the required FLOPs.

The module imports nothing of the package, so that another library can use it in a separate environment.
"""

import random
from typing import Any

Pair = tuple[list[int], list[int], list[int]]
VOCAB = 49_152
LAYERS, WIDTH = 6, 384


def pairs(shape: str, count: int, seed: int = 0) -> list[Pair]:
    """`count` triples (prompt, chosen, rejected) of random ids in [500, VOCAB).

    Args:
        shape: "tldr" for prompts of about 300 tokens and responses of about 34; "hh" for log-normal lengths with long
            tails, prompts of about 100 tokens and responses of about 45.
        count: number of pairs.
        seed: seed of the lengths and ids.
    """
    draw = random.Random(seed)

    def normal(mean: float, deviation: float, low: int, high: int) -> int:
        return min(max(int(draw.gauss(mean, deviation)), low), high)

    def log_normal(mean: float, low: int, high: int) -> int:
        return min(max(int(draw.lognormvariate(mean, 0.8)), low), high)

    out = []
    for _ in range(count):
        if shape == "tldr":
            lengths = [normal(300, 90, 120, 480), *(normal(34, 12, 12, 60) for _ in range(2))]
        elif shape == "hh":
            lengths = [log_normal(4.6, 16, 500), *(log_normal(3.8, 8, 300) for _ in range(2))]
        else:
            raise SystemExit(f"--shape must be tldr or hh, not {shape!r}.")
        prompt, chosen, rejected = ([draw.randrange(500, VOCAB) for _ in range(n)] for n in lengths)
        out.append((prompt, chosen, rejected))
    return out


def gpt2() -> Any:
    """The common model: GPT-2 with 6 layers of width 384, without dropout, from seed 0."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    attention: dict[str, Any] = {"attn_implementation": "sdpa"}
    config = GPT2Config(
        vocab_size=VOCAB, n_layer=LAYERS, n_embd=WIDTH, n_head=6, n_positions=1024, attn_pdrop=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=1, **attention,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def needed_flops(batch: list[Pair], layers: int = LAYERS, width: int = WIDTH, vocab: int = VOCAB) -> float:
    """Floating-point operations of the matrix products of one DPO step; a multiply-add counts as two.

    Every distinct token counts once, except the last one of each response, which predicts nothing. Attention counts
    only where it is not masked, and logits only where a response token is predicted. The backward pass counts twice the
    forward pass. Norms, softmax, the optimizer and the embedding are not counted.
    """
    linear = attention = logits = 0
    for prompt, chosen, rejected in batch:
        responses = [len(chosen) - 1, len(rejected) - 1]
        linear += len(prompt) + sum(responses)
        attention += len(prompt) * (len(prompt) + 1) // 2
        attention += sum(n * len(prompt) + n * (n + 1) // 2 for n in responses)
        logits += 1 + sum(responses)
    forward = 2 * 12 * width**2 * layers * linear + 4 * width * layers * attention + 2 * width * vocab * logits
    return 3.0 * forward
