"""Benchmark of a DPO step on a GPU in bf16: GPT-2 124M and Pythia-410M with random weights, against TRL.

The pairs have the lengths of TL;DR. For each model the output contains the seconds per step (forward, backward, fused
AdamW), the fraction of the GPU's peak that the required operations reach, and peak memory. If trl can be imported,
TRL's seconds on the same pairs and the ratio follow. Without a GPU nothing is measured. `--tiny` runs the program with
two narrow layers on any device, as a test.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from shapes import Pair, pairs, step_flops

from rlhf_lab.algorithms.dpo import DPO, pair_loss
from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.policies.language_model import LanguageModelPolicy

PEAKS = {"H200": 989e12, "H100 PCIe": 756e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12,
         "4090": 165e12, "3090": 71e12, "V100": 125e12, "T4": 65e12}  # fmt: skip
"""Dense bf16 (V100 and T4: fp16) tensor-core peaks from the manufacturers' data sheets, in FLOP/s."""


def models(device: str, tiny: bool = False) -> dict[str, Callable[[], Any]]:
    """Both architectures with random weights (seed 0) and no dropout; with `tiny`, two layers of width 64."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    def gpt2() -> Any:
        small: dict[str, Any] = {"n_layer": 2, "n_embd": 64, "n_head": 2} if tiny else {}
        config = GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, pad_token_id=50_256, **small)
        return GPT2LMHeadModel(config)

    def pythia() -> Any:
        layers, width, heads = (2, 64, 2) if tiny else (24, 1024, 16)
        config = GPTNeoXConfig(
            vocab_size=50_304, hidden_size=width, num_hidden_layers=layers, num_attention_heads=heads,
            intermediate_size=4 * width, max_position_embeddings=2048, bos_token_id=0, eos_token_id=0,
            pad_token_id=1,
        )  # fmt: skip
        return GPTNeoXForCausalLM(config)

    def seeded(make: Callable[[], Any]) -> Callable[[], Any]:
        def build() -> Any:
            torch.manual_seed(0)
            return make().to(device)

        return build

    return {"GPT-2 124M": seeded(gpt2), "Pythia-410M": seeded(pythia)}


def wait() -> None:
    """Wait until the GPU has finished, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def lab_step(model: Any, rows: list[Pair]) -> Callable[[], None]:
    """A function that runs one training step of this package."""
    policy = LanguageModelPolicy(model, end_token=None, max_new_tokens=64)
    batch = Pairs(Tokens.from_lists([x for x, _, _ in rows]), Tokens.from_lists([[c, r] for _, c, r in rows]))
    fused = policy.device.type == "cuda"
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-5, fused=fused)
    log_ref = torch.zeros(len(rows), 2, device=policy.device)

    def step() -> None:
        with torch.autocast(policy.device.type, torch.bfloat16):
            loss, _ = pair_loss(policy, batch, log_ref, DPO(beta=0.1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()

    return step


def trl_times(model: Any, rows: list[Pair], steps: int) -> list[float] | None:
    """Seconds of each of TRL's steps, with a precomputed reference; None if TRL is not installed."""
    try:
        from datasets import Dataset
        from tokenizers import Tokenizer, pre_tokenizers
        from tokenizers import models as kinds
        from transformers import PreTrainedTokenizerFast, TrainerCallback
        from trl import DPOConfig, DPOTrainer
    except ImportError:
        return None
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, 50_000)}}
    inner = Tokenizer(kinds.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")
    names = ("prompt", "chosen", "rejected")
    texts = [{n: " " + " ".join(f"w{i}" for i in ids) + " " for n, ids in zip(names, row, strict=True)} for row in rows]
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *args: object, **kwargs: object) -> None:
            wait()
            self.start = time.perf_counter()

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            wait()
            times.append(time.perf_counter() - self.start)

    settings = DPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=len(rows), max_steps=steps, report_to=[],
        logging_steps=10_000, save_strategy="no", precompute_ref_log_probs=True, bf16=True,
        gradient_checkpointing=False, beta=0.1, learning_rate=1e-5, optim="adamw_torch_fused", seed=0,
        disable_tqdm=True, use_cpu=not torch.cuda.is_available(),
    )  # fmt: skip
    DPOTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(texts * steps), processing_class=tokenizer,
        callbacks=[Clock()],
    ).train()  # fmt: skip
    return times


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32, help="pairs per step")
    parser.add_argument("--steps", type=int, default=13, help="steps of each; the first three are not counted")
    parser.add_argument("--tiny", action="store_true", help="a test with two narrow layers on any device")
    args = parser.parse_args(arguments)
    here = torch.cuda.is_available()
    if not here and not args.tiny:
        print("There is no GPU, so nothing is measured.")
        return
    card = torch.cuda.get_device_name() if here else "the CPU"
    peak = next((rate for name, rate in PEAKS.items() if name in card), None)
    rows = pairs("tldr", args.batch)
    for name, build in models("cuda" if here else "cpu", args.tiny).items():
        if here:
            torch.cuda.reset_peak_memory_stats()
        model = build()
        config = model.config
        flops = step_flops(
            "dpo", [(len(x), [len(c), len(r)]) for x, c, r in rows],
            layers=config.num_hidden_layers, width=config.hidden_size, vocab=config.vocab_size,
        )  # fmt: skip
        step, times = lab_step(model, rows), []
        for _ in range(args.steps):
            wait()
            start = time.perf_counter()
            step()
            wait()
            times.append(time.perf_counter() - start)
        seconds = statistics.median(times[3:] or times)
        share = f", {flops / seconds / peak:.0%} of the card's peak" if peak else ""
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if here else ""
        called = f"{'two narrow layers of ' if args.tiny else ''}{name}"
        print(f"{called} on {card}, bf16, {args.batch} TL;DR-shaped pairs: {seconds * 1e3:.1f} ms{share}{memory}")
        del model, step
        if here:
            torch.cuda.empty_cache()
        theirs = trl_times(build(), rows, args.steps)
        if theirs is None:
            print("  TRL is not installed, so there is no ratio.")
        else:
            other = statistics.median(theirs[3:] or theirs)
            print(f"  TRL {other * 1e3:.1f} ms: ratio {other / seconds:.1f}×")


if __name__ == "__main__":
    main()
