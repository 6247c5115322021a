"""Run the experiments on the lecture's claims at every scale, with the settings of the saved results.

    python tools/run_experiments.py --workers 8
    python tools/run_experiments.py --only rso-table --scale small

A run that was stopped resumes when the command is repeated. Results are saved in results/NAME/SCALE.
"""

from __future__ import annotations

import argparse
import sys

from rlhf_lab.cli.main import main as lab
from rlhf_lab.experiments.results import NAMES, experiment_of
from rlhf_lab.experiments.scales import SCALES


def main() -> None:
    """Run the chosen experiments one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=NAMES, nargs="+", default=NAMES, help="experiments to run; default: all")
    parser.add_argument("--scale", choices=SCALES, nargs="+", default=list(SCALES), help="scales to run; default: all")
    parser.add_argument("--workers", type=int, default=1, help="number of processes per experiment")
    args = parser.parse_args()
    for name in args.only:
        for scale in args.scale:
            if scale in experiment_of(name).scales:
                code = lab(["experiment", name, "--scale", scale, "--workers", str(args.workers)])
                if code:
                    sys.exit(code)


if __name__ == "__main__":
    main()
