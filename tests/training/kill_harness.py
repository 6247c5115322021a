"""A small training that is killed with SIGKILL again and again, and resumed until it is done.

    python kill_harness.py FOLDER SEED

torch is imported once; each attempt is a fork of this process. A kill falls at a random moment, or at a random
point of saving: the functions that touch the disk are wrapped here, and tell the parent before and after each call,
and the writer of weights stops half way through the file. Prints one line of JSON.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)

from histories import read_history, without_speed  # noqa: E402
from tiny_models import tiny, variable_length_batch  # noqa: E402

from rlhf_lab.algorithms.dpo import DPO, dpo, held_out_pairs  # noqa: E402
from rlhf_lab.batch import Pairs  # noqa: E402
from rlhf_lab.policies.language_model import LanguageModelPolicy  # noqa: E402
from rlhf_lab.training import Training, checkpoint  # noqa: E402

KILLS = 12


def train(out: Path) -> None:
    policy = LanguageModelPolicy(tiny("gpt2", wide=0.1), end_token=0, max_new_tokens=6)
    prompts, responses = variable_length_batch(count=12, group=2)
    training = Training(
        steps=30, batch_size=5, learning_rate=3e-3, log_every=2, save_every=3, seed=4, max_grad_norm=1.0,
        optimizer="adamw", weight_decay=0.01, out=out, resume=(out / "run.json").is_file(), progress=False,
        eval_every=4, patience=20,
    )  # fmt: skip
    pairs, reference, loss = Pairs(prompts, responses), policy.frozen(), DPO(beta=0.5)
    evaluation = held_out_pairs(policy, reference, pairs[:4], loss)
    history = dpo(policy, reference, pairs[4:], loss, training, evaluation=evaluation)
    torch.save({"history": history, "weights": policy.state_dict()}, out / "result.pt")


def watched(function, tell):
    def call(*args, **kwargs):
        tell()
        value = function(*args, **kwargs)
        tell()
        return value

    return call


def slow_writer(save, tell):
    """Writes the file in halves, with a pause that a kill can fall into."""

    def call(tensors, path):
        save(tensors, path)
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        tell()
        path.write_bytes(content)

    return call


def attempt(out: Path, when: float | None, point: int | None) -> bool:
    """Fork, train, kill after `when` seconds or at the `point`-th point of saving. True if it came to its end."""
    said, tell_end = os.pipe()
    answer, go_on = os.pipe()
    child = os.fork()
    if child == 0:

        def tell():
            os.write(tell_end, b".")
            os.read(answer, 1)

        if point is not None:
            checkpoint.save_file = slow_writer(checkpoint.save_file, tell)
            checkpoint._to_disk = watched(checkpoint._to_disk, tell)
            checkpoint._put_aside = watched(checkpoint._put_aside, tell)
            checkpoint.shutil.rmtree = watched(checkpoint.shutil.rmtree, tell)
            checkpoint.os.replace = watched(checkpoint.os.replace, tell)
        code = 1
        try:
            train(out)
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        os._exit(code)
    start, seen = time.monotonic(), 0
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                assert status == 0, "the training failed by itself"
                return True
            if when is not None and time.monotonic() - start > when:
                break
            if select.select([said], [], [], 0.002)[0]:
                os.read(said, 1)
                seen += 1
                if seen == point:
                    break
                os.write(go_on, b".")
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return False
    finally:
        for handle in (said, tell_end, answer, go_on):
            os.close(handle)


def main(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    start = time.monotonic()
    assert attempt(folder / "whole", None, None)
    usual = time.monotonic() - start
    out, kills, steps, halves = folder / "killed", 0, [], 0
    while True:
        # The first two are sure to fall, however fast the machine has become: they take three checkpoints of ten.
        saving = kills < 2 or kills % 2 == 1
        when = chance.uniform(0, 0.6) * usual if not saving else None
        point = chance.randrange(1, 40 if kills < 2 else 60) if saving else None
        if kills == KILLS:
            when = point = None
        if attempt(out, when, point):
            break
        kills += 1
        found = checkpoint.latest(out)
        steps.append(int(found.name[5:]) if found else 0)
        halves += any((out / "checkpoints").glob(".step-*")) if out.is_dir() else 0
    whole, killed = (torch.load(folder / name / "result.pt") for name in ("whole", "killed"))
    same = all(torch.equal(whole["weights"][k], killed["weights"][k]) for k in whole["weights"])
    lines = [read_history(folder / name / "history.jsonl") for name in ("whole", "killed")]
    bests = [next((folder / name / "checkpoints").glob("best-*")) for name in ("whole", "killed")]
    weights = [(best / "weights.safetensors").read_bytes() for best in bests]
    report = {
        "kills": kills,
        "resumed_from": steps,
        "halves": halves,
        "same_weights": same and whole["weights"].keys() == killed["weights"].keys(),
        "same_history": without_speed(whole["history"]) == without_speed(killed["history"]) and lines[0] == lines[1],
        "rows": len(whole["history"]),
        "same_best": bests[0].name == bests[1].name and weights[0] == weights[1],
        "left": sorted(p.name for p in (out / "checkpoints").iterdir() if p != bests[1]),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
