"""One package per claim of the lecture or of work after it. `run.py` of a package ends in its `EXPERIMENT`."""

from __future__ import annotations

PACKAGES = {
    "enough-labels": "enough_labels",
    "dpo-frontier": "dpo_frontier",
    "temperatures": "temperatures",
    "rso-table": "rso_table",
    "rso-why": "rso_why",
    "rso-phase": "rso_phase",
    "rso-hyperparameters": "rso_hyperparameters",
    "rest-translation": "rest_translation",
    "over-optimisation": "over_optimisation",
    "cost": "cost",
    "non-static": "non_static",
    "annotation-budget": "annotation_budget",
    "dpo-samplers": "dpo_samplers",
    "coverage": "coverage",
    "chosen-probability": "chosen_probability",
    "soft-best-of-n": "soft_best_of_n",
}
"""The package of each claim, by the name of its experiment (`rlhf-lab experiment NAME`), in the claims' order."""


def module_of(name: str) -> str:
    """Return the dotted name of the module that holds the settings and the `EXPERIMENT` of a claim."""
    return f"{__name__}.{PACKAGES[name]}.run"
