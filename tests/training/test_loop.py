"""The loop under every method: steps as functions of (seed, step), a stop that loses nothing, no silent NaN.

The vehicle is DPO on a bandit. A run is interrupted by its own data: the function that makes a step's pairs
raises, or sends the process a Ctrl-C.
"""

import json
import math
import os
import signal
import threading

import pytest
import torch
from histories import read_history, without_speed

from rlhf_lab.algorithms.dpo import DPO, dpo, pair_loss
from rlhf_lab.errors import LabError
from rlhf_lab.training import Loop, Training, checkpoint, rows_at, seeded
from rlhf_lab.worlds import bandit

WORLD = bandit.random(2, 4, seed=1)
FIXED = WORLD.preferences(50, seeded(1))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def training(**changes) -> Training:
    settings = {"steps": 12, "batch_size": 8, "learning_rate": 0.05, "log_every": 2, "save_every": 4, "progress": False}
    return Training(**(settings | changes))


def run(settings: Training, pairs=FIXED, policy=None):
    """(policy, history) of one DPO run."""
    policy = policy or WORLD.reference.copy()
    return policy, dpo(policy, WORLD.reference, pairs, DPO(beta=0.5), settings)


def fresh(trouble_at: int | None = None, trouble=None):
    """A source of fresh pairs for each step; at its call number `trouble_at` it calls `trouble` first."""
    calls = [0]

    def pairs(generator):
        if calls[0] == trouble_at:
            trouble()
        calls[0] += 1
        return WORLD.preferences(8, generator)

    return pairs


def troubled(settings: Training, trouble_at: int | None = None, trouble=None):
    """(policy, history) of a DPO run whose step number `trouble_at` calls `trouble` first.

    Each step has fresh pairs, but L-BFGS, which takes none, all of `FIXED`.
    """
    if settings.optimizer != "lbfgs":
        return run(settings, fresh(trouble_at, trouble))
    policy = WORLD.reference.copy()
    with torch.no_grad():
        log_ref = policy.log_prob(FIXED.prompts, FIXED.responses)
    with Loop("dpo", policy, settings) as loop:
        for step, _ in loop:
            if step == trouble_at:
                trouble()
            loop.update(lambda pairs, ref: pair_loss(policy, pairs, ref, DPO(beta=0.5)), batch=(FIXED, log_ref))
    return policy, loop.history


def bits(module: torch.nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in module.parameters()]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


class PowerCut(Exception):
    pass


def power_cut():
    raise PowerCut


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


# Rows and streams.


@pytest.mark.parametrize("num_rows, batch_size", [(10, 3), (10, 5), (7, 6), (5, 1), (64, 7)])
def test_every_row_is_visited_once_an_epoch(num_rows, batch_size):
    steps = [rows_at(step, num_rows, batch_size, seed=3) for step in range(4 * num_rows)]
    assert all(len(rows) == batch_size for rows in steps), "a batch may straddle two epochs, but never shrinks"
    visited = torch.cat(steps)
    epochs = visited[: len(visited) // num_rows * num_rows].view(-1, num_rows)
    assert torch.equal(epochs.sort(-1).values, torch.arange(num_rows).expand_as(epochs))
    assert num_rows < 3 or not torch.equal(epochs[0], epochs[1]), "each epoch has its own order"


def test_rows_are_a_function_of_the_step_and_the_seed():
    for step in (0, 5, 99):
        assert torch.equal(rows_at(step, 20, 6, seed=1), rows_at(step, 20, 6, seed=1))
    assert not torch.equal(rows_at(0, 20, 6, seed=1), rows_at(0, 20, 6, seed=2))


@pytest.mark.parametrize("batch_size", [5, 6, 10**9])
def test_a_batch_as_large_as_the_data_is_all_of_it_in_order(batch_size):
    assert rows_at(3, 5, batch_size, seed=0).tolist() == [0, 1, 2, 3, 4]


def test_no_rows_are_refused():
    with pytest.raises(LabError, match="no rows"):
        rows_at(0, 0, 4, seed=0)


def test_seeded_streams_are_reproducible_and_differ_between_any_two_paths():
    """First numbers of 4,000 streams of neighbouring seeds and steps: all different, and uniform (the mean of
    4,000 uniforms lies within 5/√(12·4000) of ½)."""
    paths = [(seed, room, step) for seed in range(20) for room in range(2) for step in range(100)]
    first = torch.stack([torch.rand((), dtype=torch.float64, generator=seeded(*path)) for path in paths])
    again = torch.stack([torch.rand((), dtype=torch.float64, generator=seeded(*path)) for path in paths[:50]])
    assert torch.equal(first[:50], again)
    assert len(first.unique()) == len(paths)
    assert abs(first.mean().item() - 0.5) < 5 / math.sqrt(12 * len(paths))
    assert seeded(1).initial_seed() != seeded(1, 0).initial_seed() != seeded(0, 1).initial_seed()


# Training itself.


def test_adam_in_the_loop_is_adam_by_hand_with_the_schedule_s_rate():
    """Adam's update (Kingma & Ba 2015, algorithm 1) in plain floats on (w − 3)², at the linearly falling rate."""
    module = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        module.weight.fill_(1.0)
    with Loop("by hand", module, training(steps=5, learning_rate=0.1)) as loop:
        for _ in loop:
            loop.update((module.weight - 3).square().sum())
    w, m, v = 1.0, 0.0, 0.0
    for t in range(1, 6):
        g = 2 * (w - 3)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        rate = 0.1 * (1 - (t - 1) / 5)
        w -= rate * (m / (1 - 0.9**t)) / (math.sqrt(v / (1 - 0.999**t)) + 1e-8)
    assert module.weight.item() == pytest.approx(w, abs=1e-12)


def test_gradients_are_clipped_to_the_norm_asked_for():
    """adamw's first step is rate · sign(g) whatever the norm, so the gradient itself is looked at."""
    module = torch.nn.Linear(2, 1, bias=False)
    with Loop("clip", module, training(steps=1, max_grad_norm=0.5)) as loop:
        for _ in loop:
            loop.update((module.weight * torch.tensor([[30.0, 40.0]])).sum())
    assert module.weight.grad.flatten().tolist() == pytest.approx([0.3, 0.4], rel=1e-4)


def test_history_holds_every_logged_step_and_the_last():
    _, history = run(training(steps=12, log_every=5))
    assert [row["step"] for row in history] == [0, 5, 10, 11]
    assert {"loss", "accuracy", "margin"} <= history[0].keys()
    assert history[0]["loss"] == pytest.approx(math.log(2)), "the policy starts as the reference: −log σ(0)"


@pytest.mark.parametrize("source", ["fixed", "fresh"])
def test_training_is_a_function_of_the_seed_and_takes_no_global_random_number(source):
    def once(seed):
        return bits(run(training(seed=seed), FIXED if source == "fixed" else fresh())[0])

    before = torch.get_rng_state()
    one = once(0)
    torch.rand(5)
    state = torch.get_rng_state()
    assert same(one, once(0)) and not same(one, once(1))
    assert torch.equal(torch.get_rng_state(), state) and not torch.equal(state, before)


def test_a_frozen_module_is_refused():
    with pytest.raises(LabError, match=r"nothing to train.*policy.copy\(\)"):
        run(training(), policy=WORLD.reference)


def test_lbfgs_needs_a_function_of_the_weights():
    module = torch.nn.Linear(1, 1)
    with (
        pytest.raises(LabError, match="cannot use optimizer='lbfgs'"),
        Loop("x", module, training(optimizer="lbfgs")) as loop,
    ):
        for _ in loop:
            loop.update(module.weight.sum())


# A loss that is not finite.


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("as_function", [False, True])
def test_a_loss_that_is_not_finite_is_refused_with_its_step_and_the_weights_stay(value, as_function):
    module = torch.nn.Linear(2, 2)
    kept = []
    message = rf"ppo: the loss became {value} at step 3\. .*learning_rate \(now 0.05\)"
    with pytest.raises(LabError, match=message), Loop("ppo", module, training()) as loop:
        for step, _ in loop:
            loss = module.weight.square().sum() * (value if step == 3 else 1.0)
            kept.append(bits(module))
            loop.update((lambda loss=loss: (loss, {})) if as_function else loss)
    assert len(kept) == 4 and same(kept[-1], bits(module)) and not same(kept[-1], kept[-2])


def test_a_loss_that_turns_nan_within_a_line_search_leaves_the_weights_of_the_step_before():
    """L-BFGS moves the weights between its looks at the loss; the third look here finds NaN."""
    module = torch.nn.Linear(2, 2)
    before, looks = bits(module), [0]

    def loss():
        looks[0] += 1
        return (module.weight - 5).pow(4).sum() * (math.nan if looks[0] == 3 else 1.0), {}

    with pytest.raises(LabError, match="became nan at step 0"), Loop("x", module, training(optimizer="lbfgs")) as loop:
        for _ in loop:
            loop.update(loss)
    assert looks[0] == 3 and same(before, bits(module))


def test_after_a_loss_that_is_not_finite_the_last_good_checkpoint_is_named(tmp_path):
    module = torch.nn.Linear(2, 2)
    out = tmp_path / "run"
    message = r"at step 6\. .*The last complete checkpoint is .*step-000004\."
    with pytest.raises(LabError, match=message), Loop("x", module, training(out=out)) as loop:
        for step, _ in loop:
            loop.update(module.weight.square().sum() * (math.nan if step == 6 else 1.0))


# What is written, stopping and going on.


def test_without_out_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run(training(out=None))
    assert list(tmp_path.iterdir()) == []


def test_with_out_the_run_leaves_its_settings_history_and_last_checkpoint(tmp_path):
    out = tmp_path / "run"
    policy, history = run(training(out=out))
    assert read_history(out / "history.jsonl") == without_speed(history)
    assert all(row["tokens_per_second"] > 0 for row in history)
    record = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert (record["method"], record["training"]["steps"], record["settings"]["beta"]) == ("dpo", 12, 0.5)
    other = WORLD.reference.copy()
    last = checkpoint.latest(out)
    state = checkpoint.load(last, other, torch.optim.Adam(other.parameters()))
    assert last.name == "step-000012" and state["step"] == 12 and same(bits(policy), bits(other))


@pytest.mark.parametrize(
    "optimizer, stopped_in", [("adam", 0), ("adam", 5), ("adam", 11), ("adamw", 5), ("lbfgs", 0), ("lbfgs", 5)]
)
def test_a_run_resumed_after_a_power_cut_ends_in_the_bits_of_one_never_stopped(optimizer, stopped_in, tmp_path):
    """The cut falls between checkpoints (every 4 steps), so up to three steps are made again; cut before the first
    checkpoint, the run begins again from its start. Weights and history are equal to the bit."""
    steps = {"steps": 7 if optimizer == "lbfgs" else 12, "optimizer": optimizer}
    steps["weight_decay"] = 0.1 if optimizer == "adamw" else 0.0
    whole, whole_history = troubled(training(**steps))
    out = tmp_path / "run"
    with pytest.raises(PowerCut):
        troubled(training(**steps, out=out), stopped_in, power_cut)
    resumed, history = troubled(training(**steps, out=out, resume=True))
    assert same(bits(whole), bits(resumed))
    assert without_speed(history) == read_history(out / "history.jsonl") == whole_history


def test_a_run_on_fixed_pairs_resumes_to_the_same_bits_too(tmp_path):
    """Batches by rows_at: a resumed run must go on in the middle of the epoch, not begin a new one."""
    whole, _ = run(training())
    calls = [0]

    class Cut(type(WORLD.reference)):
        def token_log_probs(self, *args, **kwargs):
            calls[0] += 1
            if calls[0] == 7:
                raise PowerCut
            return super().token_log_probs(*args, **kwargs)

    policy = WORLD.reference.copy()
    policy.__class__ = Cut
    out = tmp_path / "run"
    with pytest.raises(PowerCut):
        run(training(out=out), policy=policy)
    assert checkpoint.latest(out).name == "step-000004"
    resumed, _ = run(training(out=out, resume=True))
    assert same(bits(whole), bits(resumed))


@pytest.mark.parametrize("optimizer, steps", [("adam", 12), ("lbfgs", 7)])
def test_ctrl_c_ends_the_step_in_hand_saves_it_and_says_where(optimizer, steps, tmp_path):
    """Sent in the middle of step 5 (counted from 0): six whole steps are saved, though no checkpoint was due. The
    resumed run ends in the bits of one never stopped, and Ctrl-C is the user's again."""
    out = tmp_path / "run"
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        troubled(training(out=out, optimizer=optimizer, steps=steps), 5, ctrl_c)
    assert signal.getsignal(signal.SIGINT) is handler
    message = str(caught.value)
    assert str(out) in message and f"after step 6 of {steps}" in message and "--resume" in message
    assert checkpoint.latest(out).name == "step-000006"
    resumed, history = troubled(training(out=out, optimizer=optimizer, steps=steps, resume=True))
    whole, whole_history = troubled(training(optimizer=optimizer, steps=steps))
    assert same(bits(whole), bits(resumed)) and without_speed(history) == whole_history


def test_the_last_step_is_saved_though_no_checkpoint_is_due(tmp_path):
    """Five steps with a checkpoint every fourth: those after steps 4 and 5 are there, and the last is the policy."""
    out = tmp_path / "run"
    policy, _ = run(training(out=out, steps=5))
    assert sorted(path.name for path in (out / "checkpoints").iterdir()) == ["step-000004", "step-000005"]
    other = WORLD.reference.copy()
    checkpoint.load(checkpoint.latest(out), other, torch.optim.Adam(other.parameters()))
    assert same(bits(policy), bits(other))


def test_ctrl_c_in_the_last_step_lets_the_run_end(tmp_path):
    out = tmp_path / "run"
    policy, _ = run(training(out=out), fresh(11, ctrl_c))
    assert checkpoint.latest(out).name == "step-000012" and (out / "history.jsonl").is_file()
    assert same(bits(policy), bits(run(training(), fresh())[0]))


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_earlier_checkpoint(tmp_path):
    out = tmp_path / "run"

    def twice():
        ctrl_c()
        ctrl_c()

    with pytest.raises(
        KeyboardInterrupt, match=r"stopped in the middle of a step\. .*step-000004 is saved\. Run again with --resume"
    ):
        run(training(out=out), fresh(6, twice))
    assert checkpoint.latest(out).name == "step-000004"
    whole, _ = run(training(), fresh())
    assert same(bits(whole), bits(run(training(out=out, resume=True), fresh())[0]))


def test_ctrl_c_without_out_stops_at_once():
    """There is nothing to save, so nothing is waited for."""
    with pytest.raises(KeyboardInterrupt):
        run(training(), fresh(3, ctrl_c))


def test_the_handler_of_ctrl_c_comes_back_after_an_error(tmp_path):
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(PowerCut):
        run(training(out=tmp_path / "run"), fresh(2, power_cut))
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_run_in_a_thread_saves_too(tmp_path):
    """Only the main thread may set a signal's handler (a notebook's widget may train in another)."""
    out, done = tmp_path / "run", []
    thread = threading.Thread(target=lambda: done.append(run(training(out=out), fresh())))
    thread.start()
    thread.join()
    assert done and checkpoint.latest(out).name == "step-000012"


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    out = tmp_path / "run"
    whole, history = run(training(out=out))
    again, same_history = run(training(out=out, resume=True))
    assert same(bits(whole), bits(again)) and history == same_history


def test_a_second_run_in_the_folder_is_refused_before_any_work_and_changes_nothing(tmp_path):
    out = tmp_path / "run"
    run(training(out=out))
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    policy = WORLD.reference.copy()
    with pytest.raises(LabError, match="already contains another run"):
        run(training(out=out), fresh(0, power_cut), policy=policy)
    with pytest.raises(LabError, match=r"training.learning_rate = 0.05, not 0.5"):
        run(training(out=out, resume=True, learning_rate=0.5), fresh(0, power_cut), policy=policy)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    assert same(bits(policy), bits(WORLD.reference))


def test_resuming_from_a_checkpoint_cut_short_names_it_and_removing_it_goes_on_from_the_one_before(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(PowerCut):
        run(training(out=out), fresh(9, power_cut))
    last = checkpoint.latest(out)
    weights = last / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-20])
    with pytest.raises(LabError) as caught:
        run(training(out=out, resume=True), fresh())
    assert str(last) in str(caught.value) and "step-000004" in str(caught.value)
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    resumed, _ = run(training(out=out, resume=True), fresh())
    assert same(bits(resumed), bits(run(training(), fresh())[0]))


def test_a_finite_loss_with_a_nan_gradient_is_refused_and_the_weights_stay():
    """√(w²) at w = 0 is 0, and its derivative w/√(w²) is 0/0."""
    module = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(module.weight)
    with pytest.raises(LabError, match="gradient became nan"), Loop("x", module, training()) as loop:
        for _ in loop:
            loop.update(module.weight.square().sum().sqrt())
    assert module.weight.item() == 0.0
