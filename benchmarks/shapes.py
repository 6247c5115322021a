"""Common inputs of the benchmarks: rows with the lengths of TL;DR or AnthropicHH, a model, and the required FLOPs.

The module imports nothing of the package, so that another library can use it in a separate environment.
"""

import random
from typing import Any

Pair = tuple[list[int], list[int], list[int]]
Lengths = list[tuple[int, list[int]]]
"""For each prompt of a step: its number of tokens, and those of its responses."""
VOCAB = 49_152
LAYERS, WIDTH = 6, 384
PROMPT, SAMPLES, TOKENS = 300, 8, 32
"""Methods that sample: tokens of a prompt, responses to each prompt, and tokens of a response."""
BATCH = {"dpo": 4, "reward": 4, "sft": 8, "kto": 8, "grpo": 4, "rloo": 4, "ppo": 4}
"""Prompts in a step of each method. Pairs have two responses and rows of SFT and KTO have one. A library that repeats
the prompt computes eight rows in all four."""


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


def method_rows(method: str, shape: str, count: int) -> list[tuple[list[int], list[list[int]]]]:
    """The data of a method: `count` prompts with their responses.

    Args:
        method: dpo and reward get pairs, the chosen response first. sft gets chosen responses. kto gets a chosen
            response (desirable) in even rows and a rejected one (undesirable) in odd rows. The other methods get
            prompts of `PROMPT` tokens without responses.
        shape: as of `pairs`. Methods that sample do not use it.
        count: number of prompts.
    """
    if method in ("grpo", "rloo", "ppo"):
        draw = random.Random(0)
        return [([draw.randrange(500, VOCAB) for _ in range(PROMPT)], []) for _ in range(count)]
    rows = pairs(shape, count)
    if method in ("dpo", "reward"):
        return [(prompt, [chosen, rejected]) for prompt, chosen, rejected in rows]
    odd = method == "kto"
    return [(row[0], [row[2 if odd and number % 2 else 1]]) for number, row in enumerate(rows)]


def forward_flops(
    lengths: Lengths, head: bool = True, layers: int = LAYERS, width: int = WIDTH, vocab: int = VOCAB
) -> float:
    """Floating-point operations of the matrix products of one forward pass; a multiply-add counts as two.

    Every distinct token counts once, except the last one of each response, which predicts nothing. Attention counts
    only where it is not masked, and logits only where a response token is predicted. Norms, softmax and the embedding
    are not counted.

    Args:
        lengths: the prompts and responses.
        head: count the logits. A reward model and a critic have none.
        layers: number of the transformer's layers.
        width: size of its hidden states.
        vocab: size of its vocabulary.
    """
    linear = attention = logits = 0
    for prompt, responses in lengths:
        computed = [n - 1 for n in responses]
        linear += prompt + sum(computed)
        attention += prompt * (prompt + 1) // 2
        attention += sum(n * prompt + n * (n + 1) // 2 for n in computed)
        logits += 1 + sum(computed)
    body = 2 * 12 * width**2 * layers * linear + 4 * width * layers * attention
    return float(body + (2 * width * vocab * logits if head else 0))


def step_flops(method: str, lengths: Lengths, epochs: int = 1, **size: Any) -> float:
    """Floating-point operations that one training step of a method needs; see `forward_flops`.

    A backward pass counts twice the forward pass. The optimizer is not counted. Reference log-probabilities of given
    data are computed before training and are not part of a step.

    - dpo, sft: one forward and backward pass.
    - reward: the same without logits, but with the last token of each response, where the score is.
    - kto: the same as dpo for the first response of each prompt, and a forward pass for the second one, which belongs
      to another prompt (z of the loss).
    - grpo, rloo: sampling, which needs as much as a forward pass; a forward pass of the reference; and a forward and
      backward pass for each epoch. With several epochs the policy's log-probabilities are computed once more.
    - ppo: the same as grpo with several epochs, and the critic, a model without logits, once and in each epoch.

    Args:
        method: one of `BATCH`.
        lengths: the prompts and responses of the step.
        epochs: passes over the samples of a step, for methods that sample.
        size: layers, width and vocab, see `forward_flops`.
    """
    policy = forward_flops(lengths, **size)
    if method in ("dpo", "sft"):
        return 3 * policy
    if method == "reward":
        return 3 * forward_flops([(p, [n + 1 for n in responses]) for p, responses in lengths], head=False, **size)
    if method == "kto":
        own, other = ([(p, responses[i : i + 1]) for p, responses in lengths] for i in range(2))
        return 3 * forward_flops(own, **size) + forward_flops(other, **size)
    if method == "ppo":
        critic = forward_flops(lengths, head=False, **size)
        return 3 * policy + critic + 3 * epochs * (policy + critic)
    return (2 + (epochs > 1) + 3 * epochs) * policy
