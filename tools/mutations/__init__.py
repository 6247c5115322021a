"""The bugs that `mutation_run.py` inserts into the code, with one table for each subpackage."""

from mutations import (
    algorithms,
    cli,
    data,
    derivations,
    evaluation,
    exercises,
    experiments,
    figures,
    mathematics,
    policies,
    rewards,
    training,
    widgets,
    worlds,
)
from mutations.mutation import KINDS, Mutation

TABLES: dict[str, list[Mutation]] = {
    "mathematics": mathematics.MUTATIONS,
    "policies": policies.MUTATIONS,
    "rewards": rewards.MUTATIONS,
    "training": training.MUTATIONS,
    "algorithms": algorithms.MUTATIONS,
    "worlds": worlds.MUTATIONS,
    "data": data.MUTATIONS,
    "evaluation": evaluation.MUTATIONS,
    "figures": figures.MUTATIONS,
    "derivations": derivations.MUTATIONS,
    "experiments": experiments.MUTATIONS,
    "widgets": widgets.MUTATIONS,
    "exercises": exercises.MUTATIONS,
    "cli": cli.MUTATIONS,
}
MUTATIONS = [mutation for table in TABLES.values() for mutation in table]

__all__ = ["KINDS", "MUTATIONS", "TABLES", "Mutation"]
