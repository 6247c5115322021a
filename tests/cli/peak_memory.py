"""Peak memory of DPO steps of a GPT-2, measured by the system: `python peak_memory.py ROWS PROMPT RESPONSE [FLAG ...]`.

The model has 6 × 384; with the flag `large`, 12 × 768. `parts` takes the batch in two, `checkpointing` computes again.

Prints bytes: what `rlhf_lab.cli.resource_estimate` predicts for the steps, and what they took at the peak beyond the
process
and its libraries. The model, the batch and the prediction are described here alone.
"""

import gc
import sys
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from rlhf_lab.algorithms.dpo import DPO, dpo
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli.resource_estimate import METHODS, Shape, Workload, memory
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.training import Training


def peak() -> int:
    """The most memory this process has held, in bytes. `ru_maxrss` would also count the one that started it."""
    found = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(found.split()[1]) * 1024


def main(rows: int, prompt: int, response: int, *flags: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    base = peak()
    layers, heads = (12, 12) if "large" in flags else (6, 6)
    shape = Shape("gpt2", layers, 64 * heads, heads, 49152, 1024)
    load = Workload(
        shape, METHODS["dpo"], rows, prompt, response,
        accumulate=2 if "parts" in flags else 1, checkpointing="checkpointing" in flags,
    )  # fmt: skip
    config = GPT2Config(
        n_layer=shape.layers, n_embd=shape.hidden, n_head=shape.heads, n_positions=shape.context,
        vocab_size=shape.vocab, attn_implementation="sdpa", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    policy = LanguageModelPolicy(GPT2LMHeadModel(config), None, response)
    ids = torch.randint(0, shape.vocab, (rows, prompt + 2 * response))
    pairs = Pairs(Tokens.full(ids[:, :prompt]), Tokens.full(ids[:, prompt:].reshape(rows, 2, response).contiguous()))
    gc.collect()
    training = Training(
        steps=2, batch_size=rows, learning_rate=1e-4, progress=False, accumulate=load.accumulate,
        gradient_checkpointing=load.checkpointing,
    )  # fmt: skip
    dpo(policy, policy.frozen(), pairs, DPO(), training)
    print(sum(memory(load, 0).values()), peak() - base)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:])
