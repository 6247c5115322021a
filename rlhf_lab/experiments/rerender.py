"""`python -m rlhf_lab.experiments.rerender [NAME [SCALE]]`: draw saved results again from their rows.

Use it after a change of a picture or of a decision rule. The rows stay as they are.
"""

from __future__ import annotations

import sys

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.results import rerender, saved


def main(words: list[str]) -> None:
    """Redraw every saved result, or those of one experiment, or the one of an experiment on one scale."""
    for experiment, folder in saved():
        if words in ([], [experiment.name], [experiment.name, folder.name]):
            found = rerender(experiment, folder)
            print(f"{experiment.name}, {folder.name}: {found.verdict.outcome}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LabError as error:
        sys.exit(str(error))
