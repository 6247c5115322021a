"""Benchmark of the commands of docs/commands.md: seconds and peak memory on this machine, as a Markdown table.

    python benchmarks/commands.py [--model lab-gpt2] [--world sentiment] [--only dpo …]

Each command runs in a new process, so its time includes imports. Later commands use the output of earlier ones.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time

FAST = "--learning-rate 1e-4"
COMMANDS = {
    "doctor": "doctor --no-hub",
    "plan": "plan --model MODEL --method dpo",
    "sft": "train sft --model MODEL --data DATA --out OUT/sft --steps 50 --learning-rate 3e-4",
    "reward-model": "train reward-model --model MODEL --data DATA --limit 500 --out OUT/reward --learning-rate 3e-4",
    "ranker": "train ranker --model MODEL --data DATA --limit 500 --out OUT/ranker --learning-rate 3e-4",
    "dpo": f"train dpo --model MODEL --data DATA --limit 500 --out OUT/dpo {FAST}",
    "kto": f"train kto --model MODEL --data DATA --limit 500 --out OUT/kto {FAST}",
    "ppo": f"train ppo --model MODEL --data DATA --reward OUT/reward --out OUT/ppo --steps 20 {FAST}",
    "rloo": f"train rloo --model MODEL --data DATA --reward OUT/reward --out OUT/rloo --steps 20 {FAST}",
    "grpo": f"train grpo --model MODEL --data DATA --reward OUT/reward --out OUT/grpo --steps 20 {FAST}",
    "rso": "train rso --model MODEL --data DATA --reward OUT/ranker --limit 100 --out OUT/rso --candidates 16 "
    f"--accepted 4 {FAST}",
    "raft": f"train raft --model MODEL --data DATA --reward OUT/reward --limit 200 --out OUT/raft {FAST}",
    "rest": f"train rest --model MODEL --data DATA --reward OUT/reward --limit 100 --out OUT/rest --samples 8 "
    f"--steps 20 {FAST}",
    "iterated-dpo": f"train iterated-dpo --model MODEL --data DATA --reward gold --out OUT/iterated-dpo "
    f"--labels 400 {FAST}",
    "sample": "sample --model OUT/dpo/model --data DATA --limit 64 --num-samples 4 --out OUT/samples.jsonl",
    "evaluate": "evaluate --model OUT/dpo/model --reference MODEL --data DATA --reward OUT/reward --limit 64 "
    "--out OUT/report",
}


def measure(words: list[str]) -> tuple[float, float, int]:
    """Seconds, peak MB and exit code of one command."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "rlhf_lab.cli", *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - start, usage.ru_maxrss * unit / 1e6, os.waitstatus_to_exitcode(status)


def main() -> int:
    """Run the commands in order and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="lab-gpt2")
    parser.add_argument("--world", default="sentiment")
    parser.add_argument("--only", nargs="*", default=list(COMMANDS))
    asked = parser.parse_args()
    print("| command | seconds | peak MB |\n|---|---|---|", flush=True)
    failed = 0
    with tempfile.TemporaryDirectory() as out:
        for name in asked.only:
            places = {"MODEL": asked.model, "DATA": f"world:{asked.world}", "OUT": out}
            words = shlex.split(COMMANDS[name])
            for place, value in places.items():
                words = [word.replace(place, value) for word in words]
            if name not in ("doctor", "plan"):
                words.append("--no-progress")
            seconds, memory, code = measure(words)
            failed += code != 0
            said = COMMANDS[name].replace("OUT", "runs").replace("MODEL", asked.model)
            note = "" if code == 0 else f" (exit code {code})"
            print(f"| `rlhf-lab {said.replace('DATA', 'world:' + asked.world)}`{note} | {seconds:.0f} | {memory:.0f} |")
            sys.stdout.flush()
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
