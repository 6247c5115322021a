"""The explorers of the slides, by name: the notebooks' explorers on the notebooks' worlds.

A slide names an explorer with `ExplorerPart("optimal_policy")`, and the function of that name builds it. Both views
build the same object: the live view shows it, and the static page stores its states.
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
from rlhf_lab.randomness import Stream
from rlhf_lab.training import Training, seeded
from rlhf_lab.widgets.explorer import Explorer
from rlhf_lab.worlds import bandit

BETA = 0.5
"""β that every notebook uses for the lecture's bandit."""


def _bandit() -> tuple[Any, Any, Any, Any]:
    """log π_ref, the rewards, the names of the responses and the names of the prompts."""
    world = bandit.lecture()
    return world.log_ref(), world.rewards(), world.response_names(), world.prompt_names


def _once(name: str, train: Callable[[], Any]) -> Any:
    """The result of `train`, from build/slides/cache if the same code has already trained it.

    A kernel that starts during a lecture has no time to train for ten seconds.
    """
    from slides import build

    place = build.BUILD / "cache" / f"trained-{name}-{build.digest(experiments=name == 'trajectories')}.pickle"
    with contextlib.suppress(Exception):  # missing, or of another version of a library: train again
        return pickle.loads(place.read_bytes())
    made = train()
    place.parent.mkdir(parents=True, exist_ok=True)
    for old in place.parent.glob(f"trained-{name}-*.pickle"):
        old.unlink(missing_ok=True)
    # Two kernels may train at the same time, and neither may read an incomplete file.
    part = place.with_suffix(f".{os.getpid()}")
    part.write_bytes(pickle.dumps(made))
    part.replace(place)
    return made


def bradley_terry() -> Explorer:
    """Notebook 01: labels do not depend on an offset of the reward, but they depend on its scale."""
    from rlhf_lab.widgets.bradley_terry import bradley_terry_explorer

    log_ref, reward, responses, _ = _bandit()
    return bradley_terry_explorer(log_ref[0], reward[0], responses, beta=BETA)


def kl_estimators() -> Explorer:
    """Notebook 02: k1, k2 and k3, their means and standard deviations, and what their gradients estimate."""
    from rlhf_lab.widgets.kl_estimators import kl_estimators_explorer

    log_ref, reward, responses, _ = _bandit()
    return kl_estimators_explorer(log_ref[0], reward[0], responses, drift=1.0)


def optimal_policy() -> Explorer:
    """Notebook 03: π* as a function of β, and its point on the frontier of reward against KL."""
    from rlhf_lab.widgets.optimal_policy import optimal_policy_explorer

    log_ref, reward, responses, prompts = _bandit()
    return optimal_policy_explorer(log_ref, reward, responses, prompts, beta=BETA)


def partition() -> Explorer:
    """Notebook 04: the number of samples that an estimate of Z needs, by β and by the range of the reward."""
    from rlhf_lab.widgets.partition import partition_explorer

    return partition_explorer()


def finite_preferences() -> Explorer:
    """Notebook 05: the policy to which DPO converges with N labels, beside π*."""
    from rlhf_lab.widgets.finite_preferences import finite_preferences_explorer

    log_ref, reward, responses, _ = _bandit()
    return finite_preferences_explorer(log_ref[0], reward[0], responses, beta=BETA)


def dpo_gradient() -> Explorer:
    """Notebook 06: the weight of a pair in DPO's gradient, and the effect of the gradient on the logits."""
    from rlhf_lab.widgets.dpo_gradient import dpo_gradient_explorer

    return dpo_gradient_explorer(beta=0.5, chosen=-1.0, rejected=1.0)


def rejection() -> Explorer:
    """Notebook 07: statistical rejection sampling, draw by draw."""
    from rlhf_lab.widgets.rejection import rejection_explorer

    log_ref, reward, responses, prompts = _bandit()
    return rejection_explorer(log_ref, reward, responses, prompts, beta=BETA)


def pair_misfit() -> Explorer:
    """Notebook 08: where pairs from π_r help a restricted policy, by what the policy misses and by β."""
    from rlhf_lab.widgets.pair_misfit import pair_misfit_explorer

    return pair_misfit_explorer(beta=BETA)


def rest_filter() -> Explorer:
    """Notebook 09: the ReST filter with a rising threshold beside π* and best-of-n."""
    from rlhf_lab.widgets.rest_filter import rest_filter_explorer

    log_ref, reward, responses, prompts = _bandit()
    return rest_filter_explorer(log_ref, reward, responses, prompts, threshold=0.7, beta=BETA)


def trajectories() -> Explorer:
    """Notebook 10: the training trajectory of every method in the plane of KL and reward (on the bandit only)."""
    from rlhf_lab.experiments import compare
    from rlhf_lab.experiments.trajectories import record_trajectories
    from rlhf_lab.widgets.trajectories import recorded_world, trajectories_explorer

    settings = compare.Compare(seeds=2, beta=BETA, steps=60, learning_rate=0.1, progress=False)
    world = settings.make_world()
    methods = ["sft", "ppo", "dpo", "rso-rso-sample-rank", "raft", "rest", "online"]
    walked = _once("trajectories", lambda: record_trajectories(settings, world, methods, every=6))
    return trajectories_explorer({"bandit": recorded_world(world.log_ref(), world.rewards(), walked, BETA)})


def over_optimisation() -> Explorer:
    """Notebook 11's explorer on a bandit of thirty responses: over-optimisation with few and with many labels."""
    from rlhf_lab.algorithms.reward_model import RewardModel, reward_model
    from rlhf_lab.widgets.over_optimisation import over_optimisation_explorer

    world = bandit.random(4, 30, seed=3)
    generator = seeded(0, Stream.SLIDE_RESPONSES)
    drawn = torch.multinomial(world.log_ref().exp(), 400, replacement=True, generator=generator)

    def fitted() -> dict[str, torch.Tensor]:
        scores = {}
        for name, labels in {"2000 labels": 2000, "250 labels": 250, "60 labels": 60}.items():
            model: Any = world.reference.new_reward_model()
            schedule = Training(steps=2, batch_size=labels, optimizer="lbfgs", learning_rate=1.0, progress=False)
            pairs = world.preferences(labels, seeded(0, Stream.SLIDE_LABELS))
            reward_model(model, pairs, RewardModel(prior=1e-2), schedule)
            scores[name] = model.enumerate(world.prompts).detach().double().gather(-1, drawn)
        return scores

    return over_optimisation_explorer(_once("over_optimisation", fitted), world.rewards().gather(-1, drawn))


def non_static() -> Explorer:
    """Notebook 13: a non-stationary environment, the number of labels to keep, and how often to refit."""
    from rlhf_lab.widgets.nonstationary import non_static_explorer
    from rlhf_lab.worlds import nonstationary

    return non_static_explorer(nonstationary.nonstationary_bandit(num_prompts=4, num_arms=6, seed=0, rounds=24))


def annotation_budget() -> Explorer:
    """Notebook 14: which pairs are labelled, and the regret that results."""
    from rlhf_lab.widgets.annotation_budget import annotation_budget_explorer

    return annotation_budget_explorer(*_bandit())


FACTORIES: dict[str, Callable[[], Explorer]] = {
    factory.__name__: factory
    for factory in (
        bradley_terry, kl_estimators, optimal_policy, partition, finite_preferences, dpo_gradient, rejection,
        pair_misfit, rest_filter, trajectories, over_optimisation, non_static, annotation_budget,
    )
}  # fmt: skip
"""The factories by the names that slides use."""


def make(
    name: str, at: Mapping[str, Any] | None = None, only: Sequence[str] = (), panels: Sequence[int] = ()
) -> Explorer:
    """A new explorer of this name.

    Args:
        name: name of a factory.
        at: initial values of controls, by name.
        only: the controls that are shown; the others are fixed at their initial values. Empty means all.
        panels: the panels of its picture that are shown, from 0. Empty means all.

    Raises:
        LabError: if there is no such explorer, control or panel, or a control cannot take the given value.
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
    """`compute` with only these panels of its pictures."""

    def picture(**values: Any) -> Picture:
        whole = compute(**values)
        return dataclasses.replace(whole, panels=tuple(whole.panels[i] for i in panels))

    return picture
