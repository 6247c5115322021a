"""Train SmolLM2-135M on real preferences by the commands of docs/real_model.md, and write the tables of that page.

    python tools/real_model.py                        # run what is missing, with the data set from the Hub
    python tools/real_model.py --data FILE            # the same with a local copy of the data set's test split
    python tools/real_model.py --list                 # print the commands
    python tools/real_model.py --page                 # write the page's tables from the saved results

A run that was stopped continues from its last checkpoint when the command is repeated. The numbers of a finished
command are saved in results/real-model/. Its model and the texts stay in the folder of the runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rlhf_lab.data.readers import Source, is_local, rows_of
from rlhf_lab.errors import LabError
from rlhf_lab.intervals import Interval

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / "docs" / "real_model.md", ROOT / "results" / "real-model"
DATA_SET, FOLDER, SPLIT = "Anthropic/hh-rlhf", "harmless-base", "test"
MODEL, SEEDS = "smollm2", (0, 1)

# The design. It was written before the first run and is not changed afterwards.
STEPS, PAIRS = 200, 4
HELD_OUT_PAIRS, HELD_OUT_PROMPTS = 300, 128
BETA = 0.1
PROMPT_CHARACTERS, RESPONSE_CHARACTERS = 800, 400
LENGTHS = {"max-prompt-tokens": 320, "max-response-tokens": 160}
SAMPLED_TOKENS = 96
TRAINING = {
    "steps": STEPS, "batch-size": PAIRS, **LENGTHS, "precision": "bf16", "warmup-ratio": 0.1, "schedule": "cosine",
    "save-every": 20, "log-every": 10,
}  # fmt: skip
ADAPTERS = {"lora-rank": 32, "lora-alpha": 16}
RATES = {("dpo", False): 1e-6, ("dpo", True): 1e-5, ("reward-model", False): 1e-5, ("reward-model", True): 1e-4}
PLANNED = (("reward-model", True), ("dpo", True), ("dpo", False), ("reward-model", False))
JUDGE = ("reward-model", True)


class Job(NamedTuple):
    """A command, and the file that exists when it is finished."""

    name: str
    words: list[str]
    done: Path


def name_of(method: str, adapters: bool, seed: int) -> str:
    """Return the name of a run, which is also that of its folder."""
    return f"{method}-{'lora' if adapters else 'full'}-{seed}"


def options(values: dict[str, Any]) -> list[str]:
    """Return options of the command line."""
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


def jobs(runs: Path) -> Iterator[Job]:
    """Yield all commands in their order."""
    held = {"data": runs / "held-out.jsonl", **LENGTHS, "batch-size": 8}
    for seed in SEEDS:
        for method, adapters in PLANNED:
            name = name_of(method, adapters, seed)
            out, reports = runs / name, runs / "reports"
            given = {"model": MODEL, "data": runs / "train.jsonl", "out": out, **TRAINING}
            given |= {"learning-rate": RATES[method, adapters], "seed": seed}
            given |= {"beta": BETA} if method == "dpo" else {}
            given |= ADAPTERS if adapters else {}
            yield Job(name, ["train", method, *options(given), "--no-progress"], out / "README.md")
            judged = {"implicit-beta": BETA, "reference": MODEL} if method == "dpo" else {}
            folder = reports / f"accuracy-{name}"
            more = {"model": out, **judged, **held, "limit": HELD_OUT_PAIRS, "out": folder}
            yield Job(f"accuracy-{name}", ["evaluate", *options(more), "--no-progress"], folder / "report.json")
            if method == "dpo":
                folder, judge = reports / f"wins-{name}", runs / name_of(*JUDGE, seed)
                more = {"model": out, "reference": MODEL, "against": MODEL, "reward": judge, "judge": "reward", **held}
                more |= {"max-response-tokens": SAMPLED_TOKENS, "num-samples": 1, "limit": HELD_OUT_PROMPTS}
                more |= {"seed": seed, "out": folder}
                yield Job(
                    f"wins-{name}",
                    ["evaluate", *options(more), "--no-targets", "--no-progress"],
                    folder / "report.json",
                )


def first_turn(row: dict[str, Any]) -> str:
    """Return the first turn of a dialogue, which several rows of the data set may share."""
    return str(row["chosen"]).split("\n\nAssistant:")[0]


def too_long(row: dict[str, Any]) -> bool:
    """Return whether a text has more characters than the design allows."""
    parts = [str(row[name]).rpartition("\n\nAssistant:") for name in ("chosen", "rejected")]
    return any(len(before) > PROMPT_CHARACTERS or len(last) > RESPONSE_CHARACTERS for before, _, last in parts)


def prepare(data: str, runs: Path) -> None:
    """Write train.jsonl and held-out.jsonl, unless they exist.

    Rows with long texts are left out, so that no text is cut. A hash of the first turn decides which dialogues are held
    out, about a fifth, and of these one row each is used.

    Args:
        data: the data set's name on the Hub, or a local file.
        runs: folder of the runs.
    """
    if (runs / "held-out.jsonl").exists():
        return
    source = Source(data) if is_local(data) else Source(data, split=SPLIT, folder=FOLDER)
    train, held = list[str](), dict[str, str]()
    for row in rows_of(source):
        if too_long(row.fields):
            continue
        turn = first_turn(row.fields)
        line = json.dumps({name: row.fields[name] for name in ("chosen", "rejected")}, ensure_ascii=False) + "\n"
        if hashlib.sha256(turn.encode()).digest()[0] % 5 == 0:
            held.setdefault(turn, line)
        else:
            train.append(line)
    runs.mkdir(parents=True, exist_ok=True)
    for name, lines in (("train", train), ("held-out", list(held.values()))):
        part = runs / f".{name}.part"
        part.write_text("".join(lines), encoding="utf-8")
        os.replace(part, runs / f"{name}.jsonl")
    print(f"{len(train):,} rows to train on, {len(held):,} held out", flush=True)


def run(job: Job, runs: Path) -> None:
    """Run a command, or resume it, and save its numbers.

    Raises:
        SystemExit: the command failed.
    """
    out = Path(job.words[job.words.index("--out") + 1])
    resumed = job.words[0] == "train" and (out / "run.json").exists()
    words = [*job.words, *(["--resume"] if resumed else [])]
    print(time.strftime("%H:%M:%S"), shlex.join(["rlhf-lab", *words]), flush=True)
    before = os.times()
    code = subprocess.run([sys.executable, "-m", "rlhf_lab.cli", *words]).returncode
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    spent = {"seconds": after.elapsed - before.elapsed, "processor_seconds": used}
    times = runs / f"{job.name}.times.json"
    parts = [*(json.loads(times.read_text()) if times.exists() else []), spent]
    times.write_text(json.dumps(parts))
    if code:
        sys.exit(code)
    collect(job, runs)
    shutil.rmtree(out / "checkpoints", ignore_errors=True)


def collect(job: Job, runs: Path) -> None:
    """Save the numbers of a finished command. They contain no text of the data set."""
    times = runs / f"{job.name}.times.json"
    parts = json.loads(times.read_text()) if times.exists() else []
    found: dict[str, Any] = {key: sum(part[key] for part in parts) for key in ("seconds", "processor_seconds")}
    found["parts"] = len(parts)
    out = job.done.parent
    if job.words[0] == "train":
        rows = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
        kept = ("step", "loss", "accuracy", "margin", "grad_norm")
        found["history"] = [{key: row[key] for key in kept if key in row} for row in rows]
    else:
        report = json.loads(job.done.read_text())
        report.pop("examples", None)
        found["report"] = report
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1, ensure_ascii=False) + "\n"
    (RESULTS / f"{job.name}.json").write_text(text, encoding="utf-8")


def saved(name: str) -> dict[str, Any] | None:
    """Return the saved numbers of a command, or None if it is not finished."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def percent(found: dict[str, float] | None) -> str:
    """Return a share with its interval, as text."""
    return "–" if found is None else f"{Interval(found['mean'], found['low'], found['high']):percent,1}"


def label(method: str, adapters: bool) -> str:
    """Return the name of a model in the tables."""
    kind = {"dpo": "DPO", "reward-model": "reward model"}[method]
    return f"{kind}, {'LoRA' if adapters else 'all weights'}"


def models() -> Iterator[tuple[str, int, str]]:
    """Yield the label, the seed and the name of each trained model, in the order of the tables."""
    for method, adapters in sorted(PLANNED, key=lambda one: (one[0] != "dpo", not one[1])):
        for seed in SEEDS:
            yield label(method, adapters), seed, name_of(method, adapters, seed)


def accuracy_table() -> list[str]:
    """Return the table of held-out accuracy."""
    lines = ["| model | seed | accuracy | loss, nats | prefers the longer response |", "|---|---|---|---|---|"]
    for title, seed, name in models():
        found = saved(f"accuracy-{name}")
        if found is None:
            lines.append(f"| {title} | {seed} | not run yet | | |")
            continue
        report = found["report"]
        loss = Interval(*(report["loss"][key] for key in ("mean", "low", "high")))
        longer = percent(report["prefers_longer"])
        lines.append(f"| {title} | {seed} | {percent(report['accuracy'])} | {loss} | {longer} |")
    return lines


def wins_table() -> list[str]:
    """Return the table of win rates."""
    lines = [
        "| model | seed | wins against the base model | reward | KL to the base model, nats | tokens |",
        "|---|---|---|---|---|---|",
    ]
    for title, seed, name in models():
        if not name.startswith("dpo"):
            continue
        found = saved(f"wins-{name}")
        if found is None:
            lines.append(f"| {title} | {seed} | not run yet | | | |")
            continue
        report = found["report"]
        numbers = (Interval(*(report[key][k] for k in ("mean", "low", "high"))) for key in ("proxy", "kl_k1", "tokens"))
        lines.append(
            f"| {title} | {seed} | {percent(report['against_policy'])} | {' | '.join(str(one) for one in numbers)} |"
        )
    return lines


def time_table() -> list[str]:
    """Return the table of processor time."""
    lines = [
        "| model | seed | training, minutes of one core | evaluation, minutes of one core |",
        "|---|---|---|---|",
    ]
    for title, seed, name in models():
        trained = saved(name)
        if trained is None:
            lines.append(f"| {title} | {seed} | not run yet | |")
            continue
        reports = [saved(f"{kind}-{name}") for kind in ("accuracy", "wins")]
        minutes = sum(one["processor_seconds"] for one in reports if one) / 60
        evaluated = f"{minutes:.0f}" if any(reports) else "not run yet"
        lines.append(f"| {title} | {seed} | {trained['processor_seconds'] / 60:.0f} | {evaluated} |")
    return lines


def commands() -> list[str]:
    """Return the commands with LoRA and the first seed, as a block of code."""
    chosen = [job for job in jobs(Path("runs/real-model")) if f"lora-{SEEDS[0]}" in job.name]
    lines = []
    for job in chosen:
        text = ""
        for word in shlex.join(["rlhf-lab", *job.words]).replace(" --", "\n--").split("\n"):
            text += (" \\\n    " if len(text.rsplit("\n", 1)[-1]) + len(word) > 110 else " ") + word
        lines.append(text.strip())
    return ["```sh", *lines, "```"]


TABLES = {"commands": commands, "accuracy": accuracy_table, "wins": wins_table, "time": time_table}


def filled(page: str) -> str:
    """Return the page with its tables written from the saved results."""
    for name, table in TABLES.items():
        opening, closing = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        before, _, rest = page.partition(opening)
        _, found, after = rest.partition(closing)
        if not found:
            raise LabError(f"{PAGE} has no place for the table {name!r}. Add the lines {opening!r} and {closing!r}.")
        page = before + opening + "\n".join(table()) + "\n" + closing + after
    return page


def main() -> None:
    """Run what is missing, or print the commands, or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA_SET, help="the data set: its name on the Hub, or a local file")
    parser.add_argument("--runs", type=Path, default=Path("runs/real-model"), help="folder of the runs")
    parser.add_argument("--list", action="store_true", help="print the commands and stop")
    parser.add_argument("--page", action="store_true", help="write the tables of the page and stop")
    args = parser.parse_args()
    if args.list:
        for job in jobs(args.runs):
            print(shlex.join(["rlhf-lab", *job.words]))
        return
    if not args.page:
        prepare(args.data, args.runs)
        for job in jobs(args.runs):
            if not job.done.exists() or saved(job.name) is None:
                collect(job, args.runs) if job.done.exists() else run(job, args.runs)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
