"""TRL's side of `trl_step.py`: the same steps with TRL's trainers, in the environment in which TRL is installed.

The settings, which are chosen to be fast and to match those of the other side, are those of `run`. TRL appends an end
token to each given response, so the last id of each response is left out here and both sides have equal lengths.
"""

import argparse
import os
import resource
import sys
import tempfile
import time
from typing import Any

from shapes import BATCH, SAMPLES, TOKENS, gpt2, method_rows

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def wait() -> None:
    """Announce that a step may begin, and wait for the permission."""
    print("ready", flush=True)
    sys.stdin.readline()


def peak() -> float:
    """Peak memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that both sides have."""
    parser.add_argument("--method", default="dpo", choices=list(BATCH))
    parser.add_argument("--shape", default="tldr", choices=["tldr", "hh"], help="lengths of given data")
    parser.add_argument("--steps", type=int, default=4, help="steps of each library; the first is not counted")
    parser.add_argument("--batch", type=int, help="prompts per step; 8 for sft and kto, else 4")
    parser.add_argument("--epochs", type=int, default=1, help="passes over a step's samples, for grpo, rloo and ppo")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", default="wall", choices=list(CLOCKS), help="cpu: processor seconds of the process")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])


def text(ids: list[int]) -> str:
    """A text in which each word is one token, so that texts correspond to ids."""
    return " " + " ".join(f"w{i}" for i in ids) + " "


def dataset(method: str, shape: str, count: int) -> list[dict[str, Any]]:
    """The rows of `shapes.method_rows` in TRL's formats."""
    rows = method_rows(method, shape, count)
    names = {"dpo": ("chosen", "rejected"), "reward": ("chosen", "rejected")}.get(method, ("completion",))
    texts: list[dict[str, Any]] = [
        {"prompt": text(prompt), **{name: text(ids[:-1]) for name, ids in zip(names, responses, strict=False)}}
        for prompt, responses in rows
    ]
    if method == "kto":
        return [{**row, "label": number % 2 == 0} for number, row in enumerate(texts)]
    return texts


def even_ids(completion_ids: list[list[int]], **more: object) -> list[float]:
    """The reward: the fraction of even ids in a response."""
    return [sum(i % 2 == 0 for i in ids) / len(ids) for ids in completion_ids]


def run(args: argparse.Namespace) -> None:
    """Run the steps.

    The reference's log-probabilities are computed before training where TRL can do so (DPO, KTO). Gradient
    checkpointing, logging, saving and workers that load data are off. The optimizer is AdamW (fused) without weight
    decay, with a learning rate of 1e-5 that falls linearly and gradients clipped at 1. The rows come in their order.
    GRPO and RLOO sample from the whole distribution at temperature 1 and have no end token, so that all responses have
    the same length. β is 0.1.
    """
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    import trl
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    torch.set_num_threads(args.threads)
    words = {"<eos>": 0, "<pad>": 1, **{f"w{i}": i for i in range(2, 49_152)}}
    inner = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>")

    epochs, clock = args.epochs, CLOCKS[args.clock]

    class Clock(TrainerCallback):  # a round of sampling and learning has `epochs` of the trainer's steps
        def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % epochs == 0:
                wait()
                self.start = clock()

        def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step % epochs == 0:
                print(clock() - self.start, peak(), flush=True)

    samples = args.method in ("grpo", "rloo")
    settings: dict[str, Any] = {
        "max_steps": args.steps * epochs, "report_to": [], "logging_steps": 10_000, "save_strategy": "no",
        "use_cpu": True, "bf16": args.precision == "bf16", "gradient_checkpointing": False, "learning_rate": 1e-5,
        "lr_scheduler_type": "linear", "optim": "adamw_torch_fused", "weight_decay": 0.0, "max_grad_norm": 1.0,
        "dataloader_num_workers": 0, "dataloader_pin_memory": False, "seed": 0, "disable_tqdm": True,
        "per_device_train_batch_size": args.batch * (SAMPLES if samples else 1),
    }  # fmt: skip
    if samples:
        settings |= {
            "num_generations": SAMPLES, "max_completion_length": TOKENS, "num_iterations": epochs, "beta": 0.1,
            "temperature": 1.0, "shuffle_dataset": False, "generation_kwargs": {"eos_token_id": None},
        }  # fmt: skip
    else:
        settings["train_sampling_strategy"] = "sequential"
    if args.method == "grpo":
        settings["loss_type"] = "grpo"
    if args.method in ("dpo", "kto"):
        settings |= {"precompute_ref_log_probs": True, "beta": 0.1}
    name = {"sft": "SFT", "reward": "Reward"}.get(args.method, args.method.upper())
    with tempfile.TemporaryDirectory() as folder:
        gpt2().save_pretrained(f"{folder}/model")
        getattr(trl, f"{name}Trainer")(
            model=f"{folder}/model", args=getattr(trl, f"{name}Config")(output_dir=folder, **settings),
            train_dataset=Dataset.from_list(dataset(args.method, args.shape, args.steps * args.batch)),
            processing_class=tokenizer, callbacks=[Clock()], **({"reward_funcs": even_ids} if samples else {}),
        ).train()  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    run(parser.parse_args())
