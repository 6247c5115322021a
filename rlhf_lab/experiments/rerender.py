"""`python -m rlhf_lab.experiments.rerender [NAME [RUNG]]`: draw and judge kept results again from their rows.

For a change of a picture or a sentence. Numbers stay as they were run; for new ones run the experiment.
"""

from __future__ import annotations

import sys

from rlhf_lab.errors import LabError
from rlhf_lab.experiments.results import kept, redraw


def main(words: list[str]) -> None:
    """Redraw every kept result, or those of a name, or of a name and a rung."""
    for experiment, folder in kept():
        if words in ([], [experiment.name], [experiment.name, folder.name]):
            found = redraw(experiment, folder)
            print(f"{experiment.name}, {folder.name}: {found.verdict.outcome}: {found.verdict.sentence}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except LabError as error:
        sys.exit(str(error))
