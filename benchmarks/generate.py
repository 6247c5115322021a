"""Benchmark of sampling 64 responses of 32 tokens to a prompt of 300: `LanguageModelPolicy.sample` against `generate`.

Both sample from the same distribution (temperature 0.7, no top-k, exactly 32 tokens) and alternate in one process.
tests/policies/test_generate.py tests that the sampled tokens have the probabilities that `token_log_probs` returns.
Here the mean log-probability per token of both sets of responses is printed with its standard error. On a GPU
(`--device cuda`) a third variant takes part, which records the kernels of a step as a CUDA graph.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from shapes import LAYERS, VOCAB, WIDTH, gpt2
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import pick_device


def main(arguments: Sequence[str] | None = None) -> float:
    """Time both alternately, and print the medians and their ratio. Returns the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--responses", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=300)
    parser.add_argument(
        "--times", type=int, default=3, help="repetitions of each variant; the lab's run once more for warm-up"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--device", default="cpu", help="cuda runs the model and all three variants on the GPU, in bf16"
    )
    parser.add_argument("--quick", action="store_true", help="8 responses of 8 tokens, once")
    args = parser.parse_args(arguments)
    if args.quick:
        args.responses, args.tokens, args.times = 8, 8, 1
    torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    model = gpt2().eval().to(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    model.generation_config.eos_token_id = None  # exactly 32 tokens, as with the lab's sampling
    policy = LanguageModelPolicy(copy.deepcopy(model), end_token=None, max_new_tokens=args.tokens)
    ids = torch.randint(500, VOCAB, (1, args.prompt), generator=torch.Generator().manual_seed(0))
    prompts = Tokens.full(ids)
    ids = ids.to(device)

    def lab(turn: int, graphs: bool = False) -> Tensor:
        policy.cuda_graphs = graphs
        return policy.sample(prompts, args.responses, torch.Generator().manual_seed(turn), 0.7).ids

    def peer() -> Tensor:
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, num_return_sequences=args.responses,
            max_new_tokens=args.tokens, temperature=0.7, top_k=0, pad_token_id=1,
        )  # fmt: skip
        found: Tensor = out[None, :, args.prompt :]
        return found

    ways: dict[str, Callable[[int], Tensor]] = {"lab": lab, "generate": lambda turn: peer()}
    if device.type == "cuda":
        ways["lab, graphs"] = partial(lab, graphs=True)
        peer()
    for name in ways.keys() - {"generate"}:
        ways[name](0)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    drawn: dict[str, list[Tensor]] = {name: [] for name in ways}
    for turn in range(args.times):
        for name in sorted(ways, reverse=bool(turn % 2)):
            start = time.perf_counter()
            drawn[name].append(ways[name](turn).cpu())  # .cpu() waits for the device
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratio = medians["generate"] / medians["lab"]
    number = args.responses * args.tokens
    body = 2 * 12 * WIDTH**2 * LAYERS
    flops = (args.prompt + args.responses * (args.tokens - 1)) * body + number * 2 * WIDTH * VOCAB
    print(
        f"{args.responses} responses of {args.tokens} tokens to {args.prompt}, {args.threads} threads, {device}, "
        f"median of {args.times}: lab {medians['lab']:.2f} s ({number / medians['lab']:.0f} tokens/s), generate "
        f"{medians['generate']:.2f} s, ratio {ratio:.1f}×; arithmetic {flops / 1e9:.0f} GFLOP"
    )
    if "lab, graphs" in medians:
        both = (medians[way] / medians["lab, graphs"] for way in ("generate", "lab"))
        print("  with graphs {:.3f} s, ratio {:.1f}× to generate, {:.1f}× to the lab's plain steps".format(
            medians["lab, graphs"], *both
        ))  # fmt: skip
    for name, sets in drawn.items():
        with torch.no_grad():
            responses = torch.cat(sets[:1], 1)[:, :16]
            mean = policy.log_prob(prompts, Tokens.full(responses), 0.7)[0] / args.tokens
        error = float(mean.std()) / len(mean) ** 0.5
        print(f"  mean log-probability per token, {name}: {float(mean.mean()):.3f} ± {error:.3f} nats")
    return ratio


if __name__ == "__main__":
    main()
