"""Run the experiments on the lecture's claims, every one on every rung, with the settings whose results are kept.

    python tools/run_experiments.py --workers 8
    python tools/run_experiments.py --only rso-table --rung small

A run that was stopped goes on where it was when this is called again. Results land in results/NAME/RUNG.
"""

from __future__ import annotations

import argparse
import sys

from rlhf_lab.cli.main import main as lab
from rlhf_lab.experiments.results import NAMES, RUNGS, experiment_of


def main() -> None:
    """Read the command line and run one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="these experiments instead of all")
    parser.add_argument("--rung", choices=RUNGS, nargs="+", default=RUNGS, help="these rungs instead of all")
    parser.add_argument("--workers", type=int, default=1, help="processes at work in each experiment")
    args = parser.parse_args()
    for name in args.only:
        for rung in args.rung:
            if rung in experiment_of(name).rungs:
                code = lab(["experiment", name, "--rung", rung, "--workers", str(args.workers)])
                if code:
                    sys.exit(code)


if __name__ == "__main__":
    main()
