"""The explorers of the slides: the notebooks' own, by name, on the worlds that the notebooks use.

A slide says `Explorer("optimal_policy")`; the function of that name here builds it. Both views build the same object:
the live lecture shows it, the exported page computes its states.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from rlhf_lab.errors import LabError
from rlhf_lab.figures.picture import Picture
from rlhf_lab.training import Training, seeded
from rlhf_lab.widgets.explorer import Explorer
from rlhf_lab.worlds import bandit

BETA = 0.5
"""β of the lecture's bandit in every notebook."""


def _bandit() -> tuple[Any, Any, Any, Any]:
    """log π_ref, rewards, names of the responses, names of the prompts."""
    world = bandit.lecture()
    return world.log_ref(), world.rewards(), world.response_names(), world.prompt_names


def _once(name: str, train: Callable[[], Any]) -> Any:
    """What `train` gives, from build/slides/cache where it was trained before by the same lab.

    A kernel that starts in front of a room cannot train for ten seconds first.
    """
    from slides import build

    place = build.BUILD / "cache" / f"trained-{name}-{build.digest(experiments=name == 'roads')}.pickle"
    with contextlib.suppress(Exception):  # missing, or of another version of a library: train again
        return pickle.loads(place.read_bytes())
    made = train()
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in place.parent.glob(f"trained-{name}-*.pickle"):
        old.unlink(missing_ok=True)
    # Two kernels may train at once; neither may find half a file.
    part = place.with_suffix(f".{os.getpid()}")
    part.write_bytes(pickle.dumps(made))
    part.replace(place)
    return made


def bradley_terry() -> Explorer:
    """Notebook 01: an offset that no label can see, a scale that every label sees."""
    from rlhf_lab.widgets.bradley_terry import bradley_terry_explorer

    log_ref, reward, responses, _ = _bandit()
    return bradley_terry_explorer(log_ref[0], reward[0], responses, beta=BETA)


def kl_estimators() -> Explorer:
    """Notebook 02: k1, k2, k3, their means and spreads, and what their gradients estimate."""
    from rlhf_lab.widgets.kl_estimators import kl_estimators_explorer

    log_ref, reward, responses, _ = _bandit()
    return kl_estimators_explorer(log_ref[0], reward[0], responses, drift=1.0)


def optimal_policy() -> Explorer:
    """Notebook 03: π* under a slider for β, and where it stands on the frontier."""
    from rlhf_lab.widgets.optimal_policy import optimal_policy_explorer

    log_ref, reward, responses, prompts = _bandit()
    return optimal_policy_explorer(log_ref, reward, responses, prompts, beta=BETA)


def partition() -> Explorer:
    """Notebook 04: how many samples an estimate of Z needs as β falls and the reward's range grows."""
    from rlhf_lab.widgets.partition import partition_explorer

    return partition_explorer()


def finite_preferences() -> Explorer:
    """Notebook 05: DPO's exact optimum on N labels beside π*."""
    from rlhf_lab.widgets.finite_preferences import finite_preferences_explorer

    log_ref, reward, responses, _ = _bandit()
    return finite_preferences_explorer(log_ref[0], reward[0], responses, beta=BETA)


def dpo_gradient() -> Explorer:
    """Notebook 06: the weight of a pair in DPO's gradient, and what it pulls."""
    from rlhf_lab.widgets.dpo_gradient import dpo_gradient_explorer

    return dpo_gradient_explorer(beta=0.5, chosen=-1.0, rejected=1.0)


def rejection() -> Explorer:
    """Notebook 07: statistical rejection sampling, draw by draw."""
    from rlhf_lab.widgets.rejection import rejection_explorer

    log_ref, reward, responses, prompts = _bandit()
    return rejection_explorer(log_ref, reward, responses, prompts, beta=BETA)


def pair_sources() -> Explorer:
    """Notebook 08: direct, sft-sample-rank, rso-sample-rank: where pairs come from, and what a label is worth."""
    from rlhf_lab.widgets.pair_sources import pair_sources_explorer

    log_ref, reward, responses, prompts = _bandit()
    return pair_sources_explorer(log_ref, reward, responses, prompts, beta=BETA)


def rest_filter() -> Explorer:
    """Notebook 09: the ReST filter with a rising threshold beside π* and best-of-n."""
    from rlhf_lab.widgets.rest_filter import rest_filter_explorer

    log_ref, reward, responses, prompts = _bandit()
    return rest_filter_explorer(log_ref, reward, responses, prompts, threshold=0.7, beta=BETA)


def roads() -> Explorer:
    """Notebook 10: every method's road on the map of KL and reward, against the frontier (bandit alone)."""
    from rlhf_lab.experiments import compare
    from rlhf_lab.experiments.trajectories import walk
    from rlhf_lab.widgets.trajectories import roads_explorer, scene

    settings = compare.Compare(seeds=2, beta=BETA, steps=60, learning_rate=0.1, progress=False)
    world = settings.make_world()
    methods = ["sft", "ppo", "dpo", "rso-rso-sample-rank", "raft", "rest", "online"]
    walked = _once("roads", lambda: walk(settings, world, methods, every=6))
    return roads_explorer({"bandit": scene(world.log_ref(), world.rewards(), walked, BETA)})


def over_optimisation() -> Explorer:
    """Notebook 11's, on a bandit of thirty responses: reward models of few and of many labels, optimised harder."""
    from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
    from rlhf_lab.widgets.over_optimisation import over_optimisation_explorer

    world = bandit.random(4, 30, seed=3)
    drawn = torch.multinomial(world.log_ref().exp(), 400, replacement=True, generator=seeded(0, 7))

    def fitted() -> dict[str, torch.Tensor]:
        scores = {}
        for labels in (2000, 250, 60):
            model = world.reference.new_reward_model()
            schedule = Training(steps=2, batch_size=labels, optimizer="lbfgs", learning_rate=1.0, progress=False)
            reward_model(model, world.preferences(labels, seeded(0, 1)), RewardModel(prior=1e-2), schedule)
            scores[f"{labels} labels"] = model.enumerate(world.prompts).detach().double().gather(-1, drawn)
        return scores

    return over_optimisation_explorer(_once("over_optimisation", fitted), world.rewards().gather(-1, drawn))


def non_static() -> Explorer:
    """Notebook 13: a world that moves; how many labels to keep, how often to fit."""
    from rlhf_lab.widgets.nonstationary import non_static_explorer
    from rlhf_lab.worlds import nonstationary

    return non_static_explorer(nonstationary.moving_bandit(num_prompts=4, num_arms=6, seed=0, rounds=24))


def annotation_budget() -> Explorer:
    """Notebook 14: which pairs get the labels, and what regret they leave."""
    from rlhf_lab.widgets.annotation_budget import annotation_budget_explorer

    return annotation_budget_explorer(*_bandit())


FACTORIES: dict[str, Callable[[], Explorer]] = {
    factory.__name__: factory
    for factory in (
        bradley_terry, kl_estimators, optimal_policy, partition, finite_preferences, dpo_gradient, rejection,
        pair_sources, rest_filter, roads, over_optimisation, non_static, annotation_budget,
    )
}  # fmt: skip
"""By the name that a slide says."""


def make(
    name: str, at: Mapping[str, Any] | None = None, only: Sequence[str] = (), panels: Sequence[int] = ()
) -> Explorer:
    """A new explorer of this name.

    Args:
        name: of a factory.
        at: where controls stand at first, by name.
        only: the controls that are kept; the others stay where they stand. Empty: all.
        panels: the panels of its picture that are kept, from 0. Empty: all.

    Raises:
        LabError: there is none; a control or a panel that it has not; a value that its control cannot take.
    """
    if name not in FACTORIES:
        raise LabError(f"There is no explorer {name!r}. There are: {', '.join(FACTORIES)}.")
    made, at = FACTORIES[name](), dict(at or {})
    for control in (*at, *only):
        if control not in made.controls:
            raise LabError(f"The explorer {name!r} has no control {control!r}. It has: {', '.join(made.controls)}.")
    count = len(made.picture().panels)
    for panel in panels:
        if not 0 <= panel < count:
            raise LabError(f"The explorer {name!r} has panels 0 to {count - 1}, not {panel}.")
    if not at and not only and not panels:
        return made
    first = {key: at.get(key, control.value) for key, control in made.controls.items()}
    kept = {
        key: dataclasses.replace(control, value=first[key])
        for key, control in made.controls.items()
        if not only or key in only
    }
    held = {key: value for key, value in first.items() if key not in kept}
    compute = functools.partial(made.compute, **held)
    return Explorer(_with(compute, tuple(panels)) if panels else compute, kept, made.title)


def _with(compute: Callable[..., Picture], panels: tuple[int, ...]) -> Callable[..., Picture]:
    """`compute` with these panels of its pictures alone."""

    def picture(**values: Any) -> Picture:
        whole = compute(**values)
        return dataclasses.replace(whole, panels=tuple(whole.panels[i] for i in panels))

    return picture
