"""Train the two small language models that ship with the package from random weights, and measure their quality.

    python tools/build_models.py                    # both, into data/models/
    python tools/build_models.py --only gpt2 --out elsewhere
    python tools/build_models.py --check            # rebuild in a temporary folder and compare with the shipped ones

The corpora come from the grammars of `rlhf_lab.worlds.text` (seed 0, train splits only). One tokenizer is trained on
them. Each model is pre-trained on whole texts (prompt and target) and then fine-tuned on targets given prompts. The
result is the SFT policy of the lecture, whose quality is as mixed as that of its data. The measurements are written
to metrics.json and to the model card README.md beside the weights. Two runs on one machine with the same number of
threads give the same weights. Other machines round differently, and `--check` reports the difference.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.worlds import text

ROOT = Path(__file__).parents[1]
MODELS = ("gpt2", "pythia")
END, PAD = "<|end|>", "<|pad|>"
CONTEXT = 192

load = cache(text.load)


@dataclass(frozen=True)
class Recipe:
    """Hyperparameters, which are also written to metrics.json."""

    seed: int = 0
    examples: int = text.SIZES["train"]  # of each world
    vocabulary: int = 1280
    pretraining_epochs: float = 1
    translation_times: int = 2  # per epoch of pre-training, because its texts are the hardest and the shortest
    sft_epochs: float = 2
    batch: int = 16  # texts
    pretraining_rate: float = 2e-3  # AdamW with 50 steps of warm-up, then cosine decay to a tenth
    sft_rate: float = 1e-3
    weight_decay: float = 0.05
    held_out: int = text.SIZES["test"]  # test targets of each world for the held-out loss
    measured: int = 128  # test prompts of each world for which responses are sampled
    answers: int = 4  # responses per prompt


QUICK = Recipe(examples=64, pretraining_epochs=0.2, sft_epochs=0.1, held_out=16, measured=4, answers=2)


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Train a byte-level BPE (Sennrich et al. 2016; bytes as in GPT-2), which decodes any encoded text unchanged."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def new_model(name: str, tokenizer: Any, seed: int) -> Any:
    """A model of about a million weights: 4 layers of width 128 with 4 heads."""
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "gpt2":
            drops: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
            # The same function as GPT-2's "gelu_new", but computed in one kernel.
            sizes: dict[str, Any] = {"n_layer": 4, "n_embd": 128, "n_head": 4, "n_positions": CONTEXT}
            return GPT2LMHeadModel(GPT2Config(activation_function="gelu_pytorch_tanh", **sizes, **drops, **common))
        sizes = {"num_hidden_layers": 4, "hidden_size": 128, "num_attention_heads": 4, "intermediate_size": 512}
        return GPTNeoXForCausalLM(GPTNeoXConfig(max_position_embeddings=CONTEXT, **sizes, **common))


@dataclass
class Rows:
    """Texts as token ids, each with the length of its prompt."""

    ids: list[list[int]]
    prompt: list[int]

    def batches(self, size: int, epochs: float, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Ids (B, T), padded on the right with −1, and prompt lengths (B,), in random order grouped by length."""
        generator = torch.Generator().manual_seed(seed)
        for step in range(self.steps(size, epochs)):
            place = step % self.steps(size, 1)
            if place == 0:
                order = torch.randperm(len(self.ids), generator=generator).tolist()
                pools = [order[i : i + 32 * size] for i in range(0, len(order), 32 * size)]
                sorted_ = [row for pool in pools for row in sorted(pool, key=lambda row: len(self.ids[row]))]
                cut = [sorted_[i : i + size] for i in range(0, len(sorted_), size)]
                cut = [cut[i] for i in torch.randperm(len(cut), generator=generator).tolist()]
            yield self.padded(cut[place])

    def steps(self, size: int, epochs: float) -> int:
        """The number of batches of this size in this number of epochs."""
        return max(1, round(epochs * math.ceil(len(self.ids) / size)))

    def padded(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Token ids of these rows, padded with −1 to one length, and the lengths of their prompts."""
        longest = max(len(self.ids[row]) for row in rows)
        ids = torch.full((len(rows), longest), -1)
        for i, row in enumerate(rows):
            ids[i, : len(self.ids[row])] = torch.tensor(self.ids[row])
        return ids, torch.tensor([self.prompt[row] for row in rows])


def rows_of(tokenizer: Any, worlds: list[text.TextWorld], split: str, limit: int | None) -> Rows:
    """Prompt + target + end token; prompt and target are tokenised separately, as everywhere in the package."""
    ids, prompt = [], []
    for world in worlds:
        prompts, targets = world.sft(tokenizer, split, limit)
        for x, (y,) in zip(prompts.tolist(), targets.tolist(), strict=True):
            ids.append(x + y)
            prompt.append(len(x))
    return Rows(ids, prompt)


def token_losses(model: Any, ids: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses and masks of all tokens after the first, each of shape (B, T−1).

    Padding is on the right, where causal attention ignores it.

    Returns:
        −log p of each token (0 for padding), the mask of tokens, and the mask of tokens that belong to targets.
    """
    logits = model(input_ids=ids[:, :-1].clamp(min=0), use_cache=False).logits
    next_ = ids[:, 1:]
    losses = F.cross_entropy(logits.transpose(1, 2), next_, ignore_index=-1, reduction="none")
    counts = next_ >= 0
    return losses, counts, counts & (torch.arange(1, ids.shape[1]) >= prompt[:, None])


def train(model: Any, rows: Rows, epochs: float, rate: float, targets_only: bool, recipe: Recipe, name: str) -> int:
    """Train one phase in place. Returns the number of processed tokens."""
    steps = rows.steps(recipe.batch, epochs)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    warm = min(50, max(1, steps // 10))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min(
            (step + 1) / warm, 0.55 + 0.45 * math.cos(math.pi * max(0, step - warm) / max(1, steps - warm))
        ),
    )
    model.train()
    read = 0
    bar = tqdm(rows.batches(recipe.batch, epochs, recipe.seed), total=steps, desc=name, mininterval=5)
    for step, (ids, prompt) in enumerate(bar):
        losses, counts, of_target = token_losses(model, ids, prompt)
        loss = losses.sum() / counts.sum() if not targets_only else (losses * of_target).sum() / of_target.sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        read += int(counts.sum()) + len(ids)
        if step % 50 == 0:
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()
    return read


@torch.no_grad()
def target_loss(model: Any, rows: Rows) -> float:
    """Mean held-out −log π(y|x) over targets, in nats per target."""
    total = 0.0
    for begin in range(0, len(rows.ids), 128):
        ids, prompt = rows.padded(list(range(begin, min(begin + 128, len(rows.ids)))))
        losses, _, of_target = token_losses(model, ids, prompt)
        total += float((losses * of_target).sum())
    return total / len(rows.ids)


def measure(model: Any, tokenizer: Any, recipe: Recipe) -> dict[str, dict[str, float]]:
    """Metrics on each world's test prompts, which the model card explains."""
    from rlhf_lab.policies.language_model import LanguageModelPolicy

    found: dict[str, dict[str, float]] = {}
    for name in text.WORLDS:
        world = load(name)
        examples = world.examples("test")
        asked = examples[: recipe.measured]
        room = CONTEXT - world.max_prompt_tokens(tokenizer)
        policy = LanguageModelPolicy(
            model, tokenizer.eos_token_id, min(room, world.max_response_tokens(tokenizer) + 4), tokenizer=tokenizer
        )
        generator = torch.Generator().manual_seed(recipe.seed)
        prompts = world.prompts(tokenizer, "test", recipe.measured)
        drawn = [policy.sample(part, recipe.answers, generator) for part in split_rows(prompts, 32)]
        said = [tokenizer.batch_decode(y, skip_special_tokens=True) for part in drawn for y in part.tolist()]
        repeated = [example.prompt for example in asked for _ in range(recipe.answers)]
        flat = [response for responses in said for response in responses]
        gold = torch.tensor(world.gold(repeated, flat)).view(len(asked), recipe.answers)
        of_targets = world.gold([e.prompt for e in examples], [e.target for e in examples])
        rows = rows_of(tokenizer, [world], "test", recipe.held_out)
        found[name] = {
            "loss": target_loss(model, rows),
            "grammar": statistics.mean(example.nats for example in examples),
            "tokens": statistics.mean(len(ids) - prompt for ids, prompt in zip(rows.ids, rows.prompt, strict=True)),
            "speaks": statistics.mean(map(world.follows_grammar, repeated, flat)),
            "ended": statistics.mean(
                y[-1] == tokenizer.eos_token_id for part in drawn for g in part.tolist() for y in g
            ),
            "gold": float(gold.mean()),
            "gold_error": float(gold.mean(1).std() / len(asked) ** 0.5),
            "gold_targets": statistics.mean(of_targets),
            "gold_best_of": float(gold.max(1).values.mean()),
            "gold_spread": float(gold.var(1).mean().sqrt()),
            "distinct": statistics.mean(len(set(responses)) / len(responses) for responses in said),
        }
        if isinstance(world, text.Translation):
            found[name] |= world.corpus(repeated, flat)
    return found


def split_rows(tokens: Tokens, size: int) -> list[Tokens]:
    """Split the rows into groups of `size`."""
    return [tokens[begin : begin + size] for begin in range(0, len(tokens), size)]


HALF_WAY = "pretrained.json"
"""File in a model's folder that marks a finished pre-training."""


def pretraining_of(recipe: Recipe) -> dict[str, Any]:
    """The hyperparameters that determine the weights after pre-training."""
    return {
        key: value
        for key, value in asdict(recipe).items()
        if not key.startswith(("sft", "held_out", "measured", "answers"))
    }


def half_way_of(model: Any, folder: Path, recipe: Recipe) -> dict[str, Any] | None:
    """Load the weights that pre-training with the same hyperparameters saved in `folder`; None if there are none."""
    from safetensors.torch import load_model

    if not (folder / HALF_WAY).is_file():
        return None
    found: dict[str, Any] = json.loads((folder / HALF_WAY).read_text(encoding="utf-8"))
    if found["recipe"] != pretraining_of(recipe):
        return None
    load_model(model, folder / "model.safetensors")
    return found


def build(names: list[str], out: Path, recipe: Recipe, resume: bool = False) -> None:
    """Train the tokenizer and the named models, and write a folder for each."""
    worlds = [load(name) for name in text.WORLDS]
    begin = time.perf_counter()
    texts = [e.prompt + e.target for world in worlds for e in world.examples("train", recipe.examples)]
    tokenizer = train_tokenizer(texts, recipe.vocabulary)
    rows = rows_of(tokenizer, worlds, "train", recipe.examples)
    again = [world for world in worlds if world.name == "translation"] * (recipe.translation_times - 1)
    whole = rows_of(tokenizer, worlds + again, "train", recipe.examples)
    tqdm.write(f"{len(texts):,} texts, {sum(map(len, rows.ids)):,} tokens in {time.perf_counter() - begin:.0f} s")
    for name in names:
        folder = out / name
        model = new_model(name, tokenizer, recipe.seed)
        half_way = half_way_of(model, folder, recipe) if resume else None
        begin = time.perf_counter()
        if half_way is None:
            epochs, rate = recipe.pretraining_epochs, recipe.pretraining_rate
            read = train(model, whole, epochs, rate, False, recipe, f"{name}: texts")
            half_way = {"recipe": pretraining_of(recipe), "read": read, "seconds": round(time.perf_counter() - begin)}
            save(model, tokenizer, folder)
            (folder / HALF_WAY).write_text(json.dumps(half_way) + "\n", encoding="utf-8")
        between = time.perf_counter()
        read_sft = train(model, rows, recipe.sft_epochs, recipe.sft_rate, True, recipe, f"{name}: SFT")
        end = time.perf_counter()
        save(model, tokenizer, folder)
        (folder / HALF_WAY).unlink()
        metrics = {
            "recipe": asdict(recipe),
            "weights": sum(p.numel() for p in model.parameters()),
            "tokens": {"pretraining": half_way["read"], "sft": read_sft},
            "seconds": {"pretraining": half_way["seconds"], "sft": round(end - between)},
            "made_with": {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "machine": platform.machine(),
            },
        }
        write_metrics(folder, metrics, measure(model, tokenizer, recipe))
        write_card(name, folder)


def measure_again(name: str, folder: Path) -> None:
    """Measure an existing model and rewrite its card."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    write_metrics(folder, metrics, measure(model, tokenizer, Recipe(**metrics["recipe"])))
    write_card(name, folder)


def write_metrics(folder: Path, metrics: dict[str, Any], worlds: dict[str, dict[str, float]]) -> None:
    """Write metrics.json: how the model was trained, and its metrics."""
    found = json.dumps(_rounded({**metrics, "worlds": worlds}), indent=1, ensure_ascii=False)
    (folder / "metrics.json").write_text(found + "\n", encoding="utf-8")


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save model and tokenizer for `from_pretrained`, readable by all users."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        file.chmod(0o644)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return round(value, 4) if isinstance(value, float) else value


CARD = """---
license: mit
language: en
library_name: transformers
pipeline_tag: text-generation
tags: [rlhf_lab, sft, teaching]
---

# lab-{name}

This is a {architecture} model of {weights:,} weights (4 layers of width 128, context {context}, {vocabulary:,} tokens).
It was trained for teaching and knows only the four text worlds of `rlhf_lab`. It is the SFT policy, the reference
π_ref from which every method of the course starts. `tools/build_models.py` wrote this card with its numbers.

    from rlhf_lab.policies.loading import load_language_model
    model, tokenizer = load_language_model("lab-{name}")

## How it was made

Run `make models`, or `python tools/build_models.py --only {name}`. Nothing is downloaded. The texts come from the
grammars of this repository (seed 0; see `data/corpora/`), with {examples:,} prompts of each world from the train split.

| phase | loss on | tokens read | epochs | peak rate | seconds |
|---|---|---|---|---|---|
| pre-training | texts, translation {translation_times} times | {pre:,} | {pre_epochs} | {pre_rate} | {pre_seconds} |
| SFT | targets | {sft:,} | {sft_epochs} | {sft_rate} | {sft_seconds} |

The optimizer is AdamW with batches of {batch} texts, seed {seed} and float32, in torch {torch} on {machine} with
{threads} thread(s), while other programs were running. `python tools/build_models.py --check` rebuilds the model and
reports the differences. Another build on the same kind of machine, with the same number of threads, gave bit-identical
weights.

## Metrics on test prompts

The responses were sampled at temperature 1: {answers} responses to each of {measured} unseen prompts of each world. The
losses are means over all test prompts.

| world | loss | grammar | valid | gold of responses | of SFT targets | best of {answers} | spread | distinct |
|---|---|---|---|---|---|---|---|---|
{rows}

- loss: held-out −log π(y|x) in nats per target. grammar: the mean −log p of a target's derivation under the grammar
  that generated it, given the facts of the prompt, which is close to the lowest possible loss.
- valid: fraction of responses that the grammar of targets can generate, whether correct or not.
- gold: mean gold reward of the responses (± its standard error), of the SFT targets, and of the best of {answers}
  responses. spread: standard deviation of the gold reward between responses to one prompt, which preferences can
  exploit. distinct: fraction of different responses among {answers}.

Translation, measured with sacrebleu: {translation}.

## Limits

The model knows a few hundred words. Its responses to prompts outside its worlds are meaningless. Its targets are of
mixed quality on purpose: some are negative, wrong, rude or long-winded.
"""


def write_card(name: str, folder: Path) -> None:
    """Write README.md from metrics.json alone."""
    m = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    recipe = m["recipe"]
    line = (
        "| {world} | {loss:.2f} | {grammar:.2f} | {speaks:.1%} | {gold:.3f} ± {gold_error:.3f} | {gold_targets:.3f} "
        "| {gold_best_of:.3f} | {gold_spread:.2f} | {distinct:.2f} |"
    )
    translation = m["worlds"]["translation"]
    card = CARD.format(
        name=name,
        architecture="GPT-2" if name == "gpt2" else "GPT-NeoX (Pythia)",
        weights=m["weights"],
        context=CONTEXT,
        pre=m["tokens"]["pretraining"],
        sft=m["tokens"]["sft"],
        pre_epochs=recipe["pretraining_epochs"],
        pre_rate=recipe["pretraining_rate"],
        pre_seconds=m["seconds"]["pretraining"],
        sft_seconds=m["seconds"]["sft"],
        rows="\n".join(line.format(world=world, **numbers) for world, numbers in m["worlds"].items()),
        translation=f"BLEU {translation['bleu']:.1f}, chrF {translation['chrf']:.1f}, "
        f"{translation['exact']:.1%} exactly correct",
        **m["made_with"],
        **{key: value for key, value in recipe.items()},
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def compare(names: list[str], shipped: Path, rebuilt: Path) -> None:
    """Print the differences between rebuilt and shipped models."""
    from safetensors.torch import load_file

    for name in names:
        one, two = shipped / name, rebuilt / name
        for file in ("model.safetensors", "tokenizer.json", "metrics.json"):
            if not (one / file).is_file():
                raise LabError(f"There is no {one / file} to compare with. Run this without --check first.")
        same = (one / "tokenizer.json").read_bytes() == (two / "tokenizer.json").read_bytes()
        a, b = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
        far = max(float((a[key] - b[key]).abs().max()) for key in a) if a.keys() == b.keys() else math.inf
        print(f"{name}: tokenizer {'identical' if same else 'DIFFERS'}, largest difference of weights {far:.3g}")
        before, after = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (one, two))
        for world in before["worlds"]:
            old, new = before["worlds"][world], after["worlds"][world]
            print(
                f"  {world:12} held-out loss {old['loss']:.4f} shipped, {new['loss']:.4f} rebuilt "
                f"({new['loss'] - old['loss']:+.4f} nats); gold {old['gold']:.3f} and {new['gold']:.3f}; "
                f"speaks {old['speaks']:.1%} and {new['speaks']:.1%}"
            )


def main() -> None:
    """Build the models, or compare or measure them, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=MODELS, help="one model instead of both")
    parser.add_argument("--out", type=Path, default=ROOT / "data" / "models", help="folder for the models")
    parser.add_argument("--check", action="store_true", help="rebuild in a temporary folder and compare with --out")
    parser.add_argument("--measure", action="store_true", help="build nothing, but measure the models in --out again")
    parser.add_argument("--resume", action="store_true", help="skip the pre-training that an earlier run has done")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few texts, as a test")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads of torch; equal numbers are needed for equal weights"
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names, recipe = [args.only] if args.only else list(MODELS), QUICK if args.quick else Recipe()
    if args.measure:
        for name in names:
            measure_again(name, args.out / name)
        return
    if not args.check:
        build(names, args.out, recipe, args.resume)
        return
    with tempfile.TemporaryDirectory() as folder:
        build(names, Path(folder), recipe)
        compare(names, args.out, Path(folder))


if __name__ == "__main__":
    main()
