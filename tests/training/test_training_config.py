"""`Training`: schedules by hand, stages, refusals."""

import math
from pathlib import Path

import pytest

from rlhf_lab.errors import LabError
from rlhf_lab.training import Training


def rates(**settings):
    training = Training(**settings)
    return [training.rate_at(step) for step in range(training.steps)]


def test_constant_rate_stays():
    assert rates(steps=4, schedule="constant") == [1.0] * 4


def test_linear_rate_falls_by_the_same_amount_each_step_from_one_towards_zero():
    assert rates(steps=4, schedule="linear") == pytest.approx([1, 0.75, 0.5, 0.25])


def test_cosine_rate_is_half_of_one_plus_the_cosine():
    expected = [0.5 * (1 + math.cos(math.pi * s / 5)) for s in range(5)]
    assert rates(steps=5, schedule="cosine") == pytest.approx(expected)


def test_the_rate_falls_to_its_minimum():
    """Linear from 1 to 0.2 in four steps loses 0.2 a step. The cosine's factor f becomes 0.2 + 0.8 f."""
    assert rates(steps=4, schedule="linear", min_rate=0.2) == pytest.approx([1, 0.8, 0.6, 0.4])
    plain = rates(steps=5, schedule="cosine")
    assert rates(steps=5, schedule="cosine", min_rate=0.2) == pytest.approx([0.2 + 0.8 * f for f in plain])


def test_the_inverse_square_root_falls_from_the_end_of_the_warmup():
    """With a warm-up of 4 steps, √(4/4), √(4/5), …, √(4/16) = ½ at 12 steps more; not below the minimum. Without one
    the rate is 1/√2 after 10,000 steps. The number of all steps does not matter."""
    found = rates(steps=17, schedule="inverse-sqrt", warmup=4)
    assert found[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert (found[4], found[5], found[16]) == pytest.approx((1.0, math.sqrt(4 / 5), 0.5))
    assert rates(steps=17, schedule="inverse-sqrt", warmup=4, min_rate=0.7)[16] == 0.7
    assert found[:10] == rates(steps=10, schedule="inverse-sqrt", warmup=4)
    assert Training(steps=20_000, schedule="inverse-sqrt").rate_at(10_000) == pytest.approx(math.sqrt(0.5))


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_warmup_rises_to_the_peak_and_the_fall_takes_the_steps_that_are_left(schedule):
    """¼, ½, ¾, 1 and then the schedule of a run of the remaining steps."""
    after = rates(steps=6, schedule=schedule)
    assert rates(steps=10, warmup=4, schedule=schedule) == pytest.approx([0.25, 0.5, 0.75, 1.0, *after])


def test_a_run_that_is_all_warmup_never_divides_by_zero():
    assert rates(steps=3, warmup=3) == pytest.approx([1 / 3, 2 / 3, 1.0])


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"learning_rate": -1.0}, "learning_rate must be"),
        ({"learning_rate": math.nan}, "learning_rate must be"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
        ({"log_every": 0}, "log_every must be a whole number"),
        ({"save_every": -3}, "save_every must be a whole number"),
        ({"seed": -1}, "seed must be a whole number"),
        ({"resume": True}, "Give the folder as out"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be a finite number above 0 or None, not 0.0. None means"),
        ({"max_grad_norm": -1.0}, "max_grad_norm must be"),
        ({"optimizer": "sgd"}, "optimizer must be adam, adamw or lbfgs, not 'sgd'"),
        ({"min_rate": 1.5}, "min_rate must be a finite number between 0 and 1"),
        ({"min_rate": 0.1, "schedule": "constant"}, "min_rate=0.1 has no effect with schedule='constant'"),
        ({"schedule": "polynomial"}, "schedule must be constant, linear, cosine or inverse-sqrt, not 'polynomial'"),
        ({"steps": 2, "warmup": 4}, "warmup=4 is more than the run's 2 steps"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 has no effect with optimizer='adam'; adamw has it"),
        ({"weight_decay": 0.1, "optimizer": "lbfgs"}, "weight_decay=0.1 has no effect with optimizer='lbfgs'"),
        ({"warmup": 3, "optimizer": "lbfgs"}, "warmup=3 has no effect with optimizer='lbfgs'"),
        ({"schedule": "cosine", "optimizer": "lbfgs"}, "schedule='cosine' has no effect with optimizer='lbfgs'"),
        ({"max_grad_norm": 1.0, "optimizer": "lbfgs"}, "max_grad_norm=1.0 has no effect with optimizer='lbfgs'"),
        ({"adam_epsilon": 1e-6, "optimizer": "lbfgs"}, "adam_epsilon=1e-06 has no effect with optimizer='lbfgs'"),
    ],
)
def test_settings_that_cannot_be_are_refused_when_they_are_made(settings, message):
    with pytest.raises(LabError, match=message):
        Training(**settings)


def test_stages_have_folders_and_seeds_of_their_own(tmp_path):
    training = Training(out=tmp_path, seed=3)
    one, two = training.stage("grow", 0), training.stage("improve", 1, steps=7)
    assert (one.out, two.out) == (tmp_path / "grow", tmp_path / "improve")
    assert len({training.seed, one.seed, two.seed}) == 3
    assert two.steps == 7 and one.steps == training.steps
    assert Training().stage("grow").out is None


def test_a_stage_is_resumed_only_where_it_had_begun(tmp_path):
    training = Training(out=tmp_path, resume=True)
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.json").write_text("{}")
    assert training.stage("begun").resume
    assert not training.stage("never begun").resume
    assert not Training(out=Path(tmp_path)).stage("begun").resume


def test_lbfgs_is_refused_where_a_step_does_not_have_all_rows(tmp_path):
    """Before anything is written; with all rows it goes on, as does Adam with some of them."""
    from rlhf_lab.algorithms.dpo import dpo
    from rlhf_lab.training import seeded
    from rlhf_lab.worlds import bandit

    world = bandit.random(2, 4, seed=0)
    pairs = world.preferences(12, seeded(0))
    out = tmp_path / "run"
    some = Training(steps=1, batch_size=11, optimizer="lbfgs", out=out, progress=False)
    with pytest.raises(LabError, match="needs all 12 rows in every step, and batch_size is 11"):
        dpo(world.reference.copy(), world.reference, pairs, training=some)
    whole = Training(steps=1, batch_size=12, optimizer="lbfgs", progress=False)
    with pytest.raises(LabError, match="new data at every step"):
        dpo(world.reference.copy(), world.reference, lambda generator: pairs, training=whole)
    assert not out.exists()
    assert len(dpo(world.reference.copy(), world.reference, pairs, training=whole)) == 1


@pytest.mark.parametrize("method", ["sft", "kto", "reward-model"])
def test_the_other_methods_with_rows_refuse_lbfgs_on_some_of_them(method, tmp_path):
    """Twelve rows and batches of eleven; nothing is written."""
    from rlhf_lab.algorithms.kto import LabelledResponses, kto
    from rlhf_lab.algorithms.reward_model import reward_model
    from rlhf_lab.algorithms.sft import sft
    from rlhf_lab.training import seeded
    from rlhf_lab.worlds import bandit

    world = bandit.random(2, 4, seed=0)
    pairs = world.preferences(12, seeded(0))
    some = Training(steps=1, batch_size=11, optimizer="lbfgs", out=tmp_path / "run", progress=False)
    with pytest.raises(LabError, match=r"needs all \d+ rows in every step, and batch_size is 11"):
        if method == "sft":
            sft(world.reference.copy(), pairs.prompts, pairs.responses, some)
        elif method == "kto":
            kto(world.reference.copy(), world.reference, LabelledResponses.from_pairs(pairs), training=some)
        else:
            reward_model(world.reference.new_reward_model(), pairs, training=some)
    assert not (tmp_path / "run").exists()
