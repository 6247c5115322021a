"""Settings of the experiments: defaults by scale, quick runs, and what is refused."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest

from rlhf_lab.cli.main import _settings
from rlhf_lab.errors import LabError, Natural
from rlhf_lab.experiments.claims.rso_why.settings import RSOWhy
from rlhf_lab.experiments.results import NAMES, experiment_of
from rlhf_lab.experiments.runner import experiment_run
from rlhf_lab.experiments.settings import SEARCH_SEED, Defaults, PerScale, Settings


@dataclass(frozen=True, init=False, kw_only=True)
class Toy(Settings):
    """Toss coins."""

    tosses: Natural
    """Tosses."""
    sides: tuple[Natural, ...]
    """Sides."""

    DEFAULTS: ClassVar[Defaults] = {"seeds": PerScale(9, 6, 3), "tosses": 100, "sides": PerScale((2,), (2, 3), ())}
    QUICK: ClassVar[Defaults] = {"seeds": 2, "tosses": PerScale(4, 5, 6)}

    def check(self):
        """Refuse 13 tosses."""
        if self.tosses == 13:
            raise LabError("tosses must not be 13.")


@pytest.mark.parametrize(
    ("scale", "quick", "expected"),
    [
        ("bandit", False, (9, 100, (2,))),
        ("tree", False, (6, 100, (2, 3))),
        ("small", False, (3, 100, ())),
        ("EleutherAI/pythia-70m", False, (3, 100, ())),
        ("tree", True, (2, 5, (2, 3))),
        ("gpt2", True, (2, 6, ())),
    ],
)
def test_defaults_are_those_of_the_scale(scale, quick, expected):
    made = Toy(scale=scale, quick=quick)
    assert (made.seeds, made.tosses, made.sides) == expected
    assert made.exact == (scale in ("bandit", "tree"))


def test_given_settings_win_even_where_they_equal_another_scale_s_default():
    assert Toy(scale="tree", seeds=9, tosses=4).seeds == 9 and Toy(quick=True, tosses=100).tosses == 100


def test_a_changed_copy_keeps_all_other_settings():
    made = replace(Toy(scale="bandit"), scale="small")
    assert (made.seeds, made.tosses) == (9, 100)


def test_lists_of_a_record_become_tuples():
    assert Toy.from_record({"scale": "bandit", "seeds": 1, "tosses": 2, "sides": [4, 6]}).sides == (4, 6)


@pytest.mark.parametrize(
    ("wrong", "message"), [({"seeds": 0}, "seeds"), ({"tosses": -1}, "tosses"), ({"tosses": 13}, "13")]
)
def test_settings_out_of_range_are_refused(wrong, message):
    with pytest.raises(LabError, match=message):
        Toy(**wrong)


def test_an_unknown_setting_is_a_type_error_as_in_any_call():
    with pytest.raises(TypeError, match="no setting coins"):
        Toy(coins=1)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], {"scale": "bandit", "seeds": 9, "tosses": 100}),
        (["--scale", "tree"], {"scale": "tree", "seeds": 6, "sides": (2, 3)}),
        (["--scale=small", "--sides", "4", "5"], {"seeds": 3, "sides": (4, 5)}),
        (["--quick", "--scale", "tree", "--no-progress"], {"seeds": 2, "tosses": 5, "progress": False}),
        (["--tosses", "100", "--quick"], {"tosses": 100, "seeds": 2}),
    ],
)
def test_the_command_line_takes_the_other_settings_from_the_scale_s_table(words, expected):
    made = _settings(Toy, words, "toy")
    assert {name: getattr(made, name) for name in expected} == expected


def test_on_the_command_line_a_derived_setting_follows_the_other_unless_it_is_given():
    """In rso-why there are ten pairs for each label by default; a given number stays."""
    assert _settings(RSOWhy, ["--labels", "200"], "p").pairs == 2000
    made = _settings(RSOWhy, ["--labels", "200", "--pairs", "300"], "p")
    assert (made.labels, made.pairs) == (200, 300)


@pytest.mark.parametrize("name", NAMES)
def test_the_jobs_of_every_claim_have_the_seeds_from_the_first_one_on(name):
    experiment = experiment_of(name)
    for scale in experiment.scales:
        settings = experiment.settings(scale=scale, quick=True, seeds=3, first_seed=40)
        assert {job["seed"] for job in experiment.jobs(settings)} == {40, 41, 42}


@pytest.mark.parametrize("name", NAMES)
def test_no_result_uses_a_seed_of_its_search(name):
    experiment = experiment_of(name)
    for scale in experiment.scales:
        settings = experiment.settings(scale=scale)
        searched = {job["seed"] for job in experiment.search_trials(settings)} if experiment.search_trials else set()
        assert max(settings.seed_range) < SEARCH_SEED <= min(searched, default=SEARCH_SEED)


def test_seeds_that_reach_those_of_the_search_are_refused_before_anything_runs(tmp_path):
    experiment = experiment_of("rso-why")
    settings = experiment.settings(quick=True, seeds=2, first_seed=SEARCH_SEED - 1, out=tmp_path / "out")
    with pytest.raises(LabError, match=r"would have 1000. Lower --seeds or --first-seed"):
        experiment_run(experiment, settings)
    assert not (tmp_path / "out").exists()
