"""What every contender is given: pairs with the lengths of TL;DR or AnthropicHH, the same model, the needed arithmetic.

It imports nothing of the lab, so that a peer in an environment of its own can read it too.
"""

import random
from typing import Any

Pair = tuple[list[int], list[int], list[int]]
VOCAB = 49_152
LAYERS, WIDTH = 6, 384


def pairs(shape: str, count: int, seed: int = 0) -> list[Pair]:
    """`count` triples (prompt, chosen, rejected) of random ids in [500, VOCAB).

    Args:
        shape: "tldr", prompts of about 300 tokens and responses of about 34; or "hh", log-normal lengths with long
            tails, prompts of about 100 and responses of about 45.
        count: how many.
        seed: of the lengths and ids.
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
    """The model that everyone trains: GPT-2 architecture, 6 layers of 384, no dropout, seed 0."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_layer=LAYERS, n_embd=WIDTH, n_head=6, n_positions=1024, attn_pdrop=0.0, embd_pdrop=0.0,
        resid_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=1, attn_implementation="sdpa",
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def needed_flops(batch: list[Pair], layers: int = LAYERS, width: int = WIDTH, vocab: int = VOCAB) -> float:
    """Floating-point operations that one DPO step's matrix products need: a multiplication and an addition are two.

    Every distinct token once, except each response's last, which predicts nothing; attention only where a token may
    look; logits only where a response token is predicted; forward 1, backward 2. Norms, softmax, the optimiser and the
    embedding are not counted.
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
