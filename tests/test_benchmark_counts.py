"""The benchmarks count the operations that a training step needs. Here they are counted in a step that runs."""

import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.training import Training

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import shapes
import trl_peer
import trl_step

SIZE = {"layers": 2, "width": 32, "vocab": 101}
TOKENS = 5


def rows_of(method):
    """Two prompts, with responses of unequal lengths where the method has given data."""
    ids = iter(range(1, 100))

    def take(n):
        return [next(ids) for _ in range(n)]

    if method in ("grpo", "rloo", "ppo"):
        return [(take(7), []), (take(4), [])]
    if method in ("sft", "kto"):
        return [(take(7), [take(3)]), (take(4), [take(6)])]
    return [(take(7), [take(3), take(5)]), (take(4), [take(6), take(2)])]


def counted(method, steps, epochs):
    """Operations of all matrix products outside of attention, and what precedes the first step."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=SIZE["vocab"], n_layer=SIZE["layers"], n_embd=SIZE["width"], n_head=2, n_positions=32,
        bos_token_id=0, eos_token_id=0, attn_implementation="sdpa",
    )  # fmt: skip
    policy = LanguageModelPolicy(GPT2LMHeadModel(config), end_token=None, max_new_tokens=TOKENS)
    training = Training(steps=steps, batch_size=2, learning_rate=1e-5, optimizer="adamw", progress=False)
    with FlopCounterMode(display=False) as counter:
        trl_step.train(method, policy, rows_of(method), training, epochs)
    total = counter.get_flop_counts()["Global"]
    return sum(n for op, n in total.items() if str(op) in ("aten.mm", "aten.addmm"))


def attention_flops(method, lengths, epochs):
    """Operations of attention, from a list of the tokens that each token attends to.

    A token is written as the path from the start to it, so a prompt's token is the same for all its responses.
    """
    own = {"reward": 0}.get(method, 1)

    def forward(prompt, responses):
        paths = {("x", i) for i in range(prompt)}
        seen = sum(i + 1 for _, i in paths)
        for response in responses:
            seen += sum(prompt + t + 1 for t in range(response - own))
        return 2 * 2 * seen * SIZE["width"] * SIZE["layers"]

    passes = {"dpo": 3, "sft": 3, "reward": 3, "ppo": 4 + 6 * epochs}.get(method, 2 + (epochs > 1) + 3 * epochs)
    if method == "kto":
        return sum(3 * forward(p, [own_]) + forward(p, [other]) for p, (own_, other) in lengths)
    return passes * sum(forward(p, responses) for p, responses in lengths)


@pytest.mark.parametrize(
    "method, epochs",
    [("dpo", 1), ("sft", 1), ("reward", 1), ("kto", 1), ("grpo", 1), ("grpo", 2), ("rloo", 1), ("ppo", 1), ("ppo", 3)],
)
def test_a_step_computes_the_operations_that_the_benchmark_counts(method, epochs):
    """The difference between two steps and one is a step; torch counts its products, except for those of attention.

    The only other products are those of the heads of reward model and critic, which have one output: less than 0.3 %.
    """
    lengths = trl_step.lengths_of(method, rows_of(method), tokens=TOKENS)
    step = counted(method, 2, epochs) - counted(method, 1, epochs)
    expected = shapes.step_flops(method, lengths, epochs, **SIZE) - attention_flops(method, lengths, epochs)
    assert step == pytest.approx(expected, rel=3e-3)


def test_both_sides_of_the_benchmark_get_rows_of_equal_lengths():
    """TRL appends an end token to each given response; prompts and sampled responses are not changed."""
    for method in shapes.BATCH:
        ours = shapes.method_rows(method, "hh", 6)
        theirs = trl_peer.dataset(method, "hh", 6)
        assert len(ours) == len(theirs) == 6
        for (prompt, responses), row in zip(ours, theirs, strict=True):
            assert row["prompt"].split() == [f"w{i}" for i in prompt]
            texts = [row[name] for name in ("chosen", "rejected", "completion") if name in row]
            assert [len(t.split()) + 1 for t in texts] == [len(y) for y in responses]
    assert [row["label"] for row in trl_peer.dataset("kto", "hh", 3)] == [True, False, True]
    assert trl_step.labelled_of(shapes.method_rows("kto", "hh", 3)).desirable.flatten().tolist() == [True, False, True]


def test_kto_gets_a_chosen_response_in_even_rows_and_a_rejected_one_in_odd_rows():
    pairs = shapes.pairs("tldr", 4)
    kto = shapes.method_rows("kto", "tldr", 4)
    assert [y for _, (y,) in kto] == [pairs[0][1], pairs[1][2], pairs[2][1], pairs[3][2]]
    assert [y for _, (y,) in shapes.method_rows("sft", "tldr", 4)] == [pair[1] for pair in pairs]
