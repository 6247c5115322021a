"""A step in parts, in bfloat16, with activations computed again: the same step, and what is said without memory."""

import errno
import math
import os
import subprocess
import sys

import pytest
import torch
from tiny_models import one_thread, tiny, variable_length_batch  # noqa: F401

from rlhf_lab.algorithms.dpo import DPO, pair_loss
from rlhf_lab.algorithms.sft import sft_loss
from rlhf_lab.batch import Pairs
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.training import Loop, Training, checkpoint, distributed, memory
from rlhf_lab.training.lock import LOCK, PROCESS, FolderLock


def settings(**changes) -> Training:
    plain = {"steps": 3, "batch_size": 5, "learning_rate": 0.01, "log_every": 1, "progress": False}
    return Training(**(plain | changes))


def policy(kind: str = "gpt2") -> LanguageModelPolicy:
    return LanguageModelPolicy(tiny(kind), end_token=0, max_new_tokens=6)


def pairs(weighted: bool = False) -> Pairs:
    prompts, responses = variable_length_batch(count=5, group=2)
    return Pairs(prompts, responses, torch.tensor([0.1, 2.0, 0.5, 1.0, 0.3]) if weighted else None)


def fit(training: Training, module=None, data=None, double: bool = True, kind: str = "gpt2"):
    """(weights, history) of DPO by hand on the loop."""
    module = module or policy(kind)
    module = module.double() if double else module
    data = data or pairs()
    with torch.no_grad():
        log_ref = module.log_prob(data.prompts, data.responses) - 0.3
    with Loop("dpo", module, training) as loop:
        for _ in loop:
            rows = loop.rows(len(data))
            loop.update(lambda b, r: pair_loss(module, b, r, DPO(beta=0.5)), batch=(data[rows], log_ref[rows]))
    return [p.detach().clone() for p in module.parameters()], loop.history


@pytest.mark.parametrize("parts", [2, 3, 5])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_step_in_parts_is_the_step_at_once(parts, weighted):
    """Σ_parts (share of the part) · (mean of the part) is the mean of all, weights and metrics included; parts of
    unequal size (5 rows in 2 and in 3). In float64 only rounding is left."""
    whole, history = fit(settings(), data=pairs(weighted))
    cut, cut_history = fit(settings(accumulate=parts), data=pairs(weighted))
    for a, b in zip(whole, cut, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    for a, b in zip(history, cut_history, strict=True):
        assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], rel=1e-8, abs=1e-10) for k in a)
    assert history[0]["loss"] != pytest.approx(history[2]["loss"], rel=1e-3), "the steps must move something"


def test_parts_are_computed_one_after_the_other():
    """Never more rows at a time than the parts have: 5 rows in 3 parts are 2, 2 and 1."""
    module, sizes = policy(), []
    prompts, responses = variable_length_batch(count=5, group=1)

    def loss(x, y):
        sizes.append(len(x))
        return sft_loss(module, x, y)

    with Loop("sft", module, settings(steps=1, accumulate=3)) as loop:
        for _ in loop:
            loop.update(loss, batch=(prompts, responses))
    assert sizes == [2, 2, 1]


@pytest.mark.parametrize("parts", [1, 3])
def test_sft_reports_nats_per_token_of_all_responses_together(parts):
    """−Σ log π / Σ |y| over the batch's responses, whose lengths differ, so it is no mean of the responses' ratios."""
    module = policy().double()
    prompts, responses = variable_length_batch(count=5, group=2)
    assert len(set(responses.lengths.flatten().tolist())) > 1
    with torch.no_grad():
        nats = -module.log_prob(prompts, responses).sum().item()
    with Loop("sft", module, settings(steps=1, accumulate=parts)) as loop:
        for _ in loop:
            loop.update(lambda x, y: sft_loss(module, x, y), batch=(prompts, responses))
    row, tokens = loop.history[0], responses.lengths.sum().item()
    assert (row["loss"], row["response_tokens"]) == pytest.approx((nats / 10, tokens / 10), rel=1e-9)
    assert row["loss_per_token"] == pytest.approx(nats / tokens, rel=1e-6)


def test_explicit_weights_decide_the_share_of_a_part():
    """The mean of x² w over rows, Σ w x²/Σ w: its gradient at x = 1 in two parts of three rows."""
    x = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    module = torch.nn.Module()
    module.x = x
    w = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)
    with Loop("by hand", module, settings(steps=1, accumulate=2)) as loop:
        for _ in loop:
            loop.update(lambda i, w: ((w * x[i].square()).sum() / w.sum(), {}), batch=(torch.arange(3), w), weight=w)
    assert x.grad.tolist() == pytest.approx([2 / 8, 4 / 8, 10 / 8])


def test_a_method_that_hands_over_a_number_cannot_be_cut_and_says_so():
    module = torch.nn.Linear(1, 1)
    for changes, message in (
        ({"accumulate": 2}, "cannot cut its batch"),
        ({"precision": "bf16"}, "not compute in bf16"),
    ):
        with pytest.raises(LabError, match=message), Loop("ppo", module, settings(**changes)) as loop:
            for _ in loop:
                loop.update(module.weight.sum())


def test_bf16_takes_the_same_steps_roughly_and_leaves_weights_and_loss_in_fp32():
    """bfloat16 has 8 bits: losses of the first step agree to a percent, and are not equal."""
    module = policy()
    _, history = fit(settings(), module=policy(), double=False)
    weights, half = fit(settings(precision="bf16"), module=module, double=False)
    assert all(w.dtype == torch.float32 for w in weights)
    assert half[0]["loss"] == pytest.approx(history[0]["loss"], rel=0.05)
    assert half[0]["loss"] != history[0]["loss"]


def test_bf16_that_a_method_opens_itself_is_seen_by_the_loop():
    module = torch.nn.Linear(4, 4)
    with Loop("x", module, settings(steps=1, precision="bf16")) as loop:
        for _ in loop:
            with loop.autocast():
                y = module(torch.ones(1, 4))
            assert y.dtype == torch.bfloat16
            loop.update(y.float().sum())


@pytest.mark.parametrize("kind", ["gpt2", "gpt_neox", "llama"])
def test_activations_computed_again_give_the_same_bits_and_are_not_kept(kind):
    """Saved for the backward pass: fewer numbers than without. Afterwards the layers are as they were."""
    kept = {}
    results = {}
    for on in (False, True):
        count = [0]

        def pack(tensor, count=count):
            count[0] += tensor.numel()
            return tensor

        module = policy(kind)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            results[on] = fit(settings(gradient_checkpointing=on), module=module, double=False)
        kept[on] = count[0]
        assert not any("forward" in vars(m) for m in module.modules())
    assert all(torch.equal(a, b) for a, b in zip(results[False][0], results[True][0], strict=True))
    assert results[False][1] == results[True][1]
    assert kept[True] < 0.8 * kept[False]


def test_checkpointing_of_what_has_no_layers_is_refused():
    with pytest.raises(LabError, match="gradient_checkpointing needs a language model"):
        Loop("dpo", torch.nn.Linear(2, 2), settings(gradient_checkpointing=True))


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_fused_kernel_begins_at_a_quarter_of_a_million_weights(optimizer):
    """512² weights are 2¹⁸, which is where it begins; 511 · 512 and 511 biases are 512² − 1, one weight fewer."""
    for module, fused in ((torch.nn.Linear(512, 512, bias=False), True), (torch.nn.Linear(512, 511), False)):
        assert Loop("big", module, settings(optimizer=optimizer)).optimizer.defaults["fused"] is fused


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_the_fused_optimiser_takes_adam_s_steps_and_resumes_to_the_bit(optimizer, tmp_path):
    """A module of 2¹⁸ weights takes the fused kernel. Beside it, the unfused optimiser of torch to 1e-6; cut after step
    2 of 4 and resumed, the same bits."""

    def run(training, stop_before=None):
        torch.manual_seed(0)
        module = torch.nn.Linear(512, 512)
        with Loop("big", module, training) as loop:
            assert loop.optimizer.defaults["fused"]
            for step, generator in loop:
                if step == stop_before:
                    raise InterruptedError
                x = torch.randn(8, 512, generator=generator)
                loop.update((module(x) - x.sin()).square().mean())
        return module

    changes = {"steps": 4, "save_every": 2, "optimizer": optimizer, "weight_decay": 0.1 * (optimizer == "adamw")}
    whole = run(settings(**changes))
    out = tmp_path / "run"
    with pytest.raises(InterruptedError):
        run(settings(**changes, out=out), stop_before=3)
    again = run(settings(**changes, out=out, resume=True))
    assert torch.equal(whole.weight, again.weight)
    from rlhf_lab.training import seeded

    torch.manual_seed(0)
    twin = torch.nn.Linear(512, 512)
    kind = torch.optim.AdamW if optimizer == "adamw" else torch.optim.Adam
    plain = kind(twin.parameters(), lr=0.01, weight_decay=changes["weight_decay"])
    for step in range(4):
        plain.param_groups[0]["lr"] = 0.01 * (1 - step / 4)
        x = torch.randn(8, 512, generator=seeded(0, 0, step))
        plain.zero_grad()
        (twin(x) - x.sin()).square().mean().backward()
        plain.step()
    torch.testing.assert_close(twin.weight, whole.weight, rtol=1e-4, atol=1e-6)


# Too little memory.


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: you tried …"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("inside", [True, False])
def test_out_of_memory_names_three_settings_and_the_last_good_checkpoint(error, inside, tmp_path):
    module = torch.nn.Linear(2, 2)
    out = tmp_path / "run"

    def loss():
        if loop.done == 3:
            raise error
        return module.weight.square().sum(), {}

    with (
        pytest.raises(LabError) as caught,
        Loop("dpo", module, settings(steps=6, save_every=2, batch_size=32, out=out)) as loop,
    ):
        for _ in loop:
            loop.update(loss if inside else loss()[0])
    message = str(caught.value)
    for words in ("out of memory at step 3", "batch_size (now 32)", "accumulate (now 1)", "gradient_checkpointing",
                  "precision=bf16", "rlhf-lab plan", "checkpoint is", "step-000002"):  # fmt: skip
        assert words in message
    assert "\n" not in message and not (out / LOCK).exists()


def test_a_real_allocation_that_is_too_large_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert memory.is_out_of_memory(caught.value)
    assert not memory.is_out_of_memory(RuntimeError("shapes do not match"))
    assert not memory.is_out_of_memory(KeyboardInterrupt())


def test_other_errors_pass_through_the_loop_as_they_are():
    module = torch.nn.Linear(2, 2)
    with pytest.raises(ZeroDivisionError), Loop("x", module, settings()) as loop:
        for _ in loop:
            loop.update(module.weight.sum() * (1 / 0))


# A loss that is not finite: which rows.


@pytest.mark.parametrize("parts", [1, 2])
def test_a_nan_loss_names_the_rows_of_the_data_that_make_it(parts):
    """40 rows, of which 7 and 31 give NaN, in batches of 20: found in whichever step meets them first."""
    module = torch.nn.Linear(1, 1)
    values = torch.ones(40)
    values[[7, 31]] = math.nan
    met = []
    with pytest.raises(LabError) as caught, Loop("x", module, settings(batch_size=20, accumulate=parts)) as loop:
        for _ in loop:
            rows = loop.rows(40)
            met.append(rows)
            loop.update(lambda v: ((module.weight * v).mean(), {}), batch=(values[rows],))
    bad = [row for row in met[-1].tolist() if row in (7, 31)]
    # With parts, those of the first part that holds one.
    cut = met[-1].tensor_split(parts)
    first = next(part.tolist() for part in cut if set(part.tolist()) & {7, 31})
    named = [row for row in first if row in bad]
    words = f"row{'s' * (len(named) > 1)} {', '.join(map(str, named))}"
    assert f"at step {len(met) - 1}, in {words} of the data." in str(caught.value)


def test_a_loss_that_only_a_whole_batch_makes_nan_names_the_batch():
    module = torch.nn.Linear(1, 1)
    with (
        pytest.raises(LabError, match=r"step 0, whose batch is rows 0, 1, 2, 3 of the data"),
        Loop("x", module, settings()) as loop,
    ):
        for _ in loop:
            rows = loop.rows(4)
            loop.update(lambda v: ((module.weight * (v / (4 - v.sum()))).sum(), {}), batch=(torch.ones(4)[rows],))


def test_weights_that_were_lost_unseen_are_not_saved_as_good(tmp_path):
    """What a GPU that is not waited for can hold: a finite loss was read, and the weights are NaN by now."""
    module = torch.nn.Linear(2, 2)
    out = tmp_path / "run"
    with (
        pytest.raises(LabError, match=r"weights became nan.*step-000002"),
        Loop("x", module, settings(steps=6, save_every=2, out=out)) as loop,
    ):
        for step, _ in loop:
            loop.update(module.bias.square().sum())
            if step == 3:
                with torch.no_grad():
                    module.weight[0, 0] = math.nan
    assert checkpoint.latest(out).name == "step-000002"


# The disk.


def test_a_full_disk_gives_one_error_and_leaves_the_last_good_checkpoint(tmp_path, monkeypatch):
    module = torch.nn.Linear(2, 2)
    out, real, saves = tmp_path / "run", checkpoint.save_file, [0]

    def full(tensors, path):
        saves[0] += 1
        if saves[0] == 4:  # the optimiser of the second checkpoint
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(LabError) as caught, Loop("x", module, settings(steps=6, save_every=2, out=out)) as loop:
        for _ in loop:
            loop.update(module.weight.square().sum())
    message = str(caught.value)
    assert "No space left on device" in message and "step-000004 cannot be written" in message
    assert f"last complete checkpoint is {out / 'checkpoints' / 'step-000002'}" in message and "\n" not in message
    assert [p.name for p in (out / "checkpoints").iterdir()] == ["step-000002"]
    twin = torch.nn.Linear(2, 2)
    checkpoint.load(checkpoint.latest(out), twin, torch.optim.Adam(twin.parameters()))


LIMITED = """
import resource, sys, torch
from pathlib import Path
from rlhf_lab.training import checkpoint
torch.set_num_threads(1)
module = torch.nn.Linear(int(sys.argv[2]), 64)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoint.save(Path(sys.argv[1]), 7, module, torch.optim.Adam(module.parameters()), {})
except ValueError as error:
    print(type(error).__name__, error)
print(sorted(p.name for p in (Path(sys.argv[1]) / "checkpoints").iterdir()))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on a file's size there")
@pytest.mark.slow
def test_a_file_that_the_system_refuses_to_write_on_leaves_no_folder_behind(tmp_path):
    """The system's own limit on a file's size, 100 kB, met by the writer in the middle of 4 · 64 · 1000 bytes."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), "1000"], capture_output=True, text=True, timeout=60, check=True
    )
    error, left = done.stdout.splitlines()
    assert error.startswith("LabError") and "step-000007 cannot be written" in error and "There is no earlier" in error
    assert left == "[]"


def test_the_named_checkpoint_is_one_that_can_be_read(tmp_path):
    """Three steps saved, the first two kept by hand; the newest is missing a file and the one before is cut short."""
    module = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(module.parameters())
    checkpoint.KEEP, keep = 3, checkpoint.KEEP
    try:
        good, cut, last = (checkpoint.save(tmp_path, step, module, optimizer, {}) for step in (1, 2, 3))
    finally:
        checkpoint.KEEP = keep
    (last / "state.json").unlink()
    weights = cut / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(LabError, match=f"{last} cannot be read .*continue from {good}\\."):
        checkpoint.load(last, module, optimizer)


def test_tied_weights_are_saved_and_come_back_tied(tmp_path):
    """GPT-2's head is its embedding: one tensor under two names."""
    module, other = tiny("gpt2", seed=0), tiny("gpt2", seed=1)
    folder = checkpoint.save(tmp_path, 1, module, torch.optim.Adam(module.parameters()), {})
    checkpoint.load(folder, other, torch.optim.Adam(other.parameters()))
    assert torch.equal(other.lm_head.weight, module.transformer.wte.weight)
    assert other.lm_head.weight is other.transformer.wte.weight


# One process at a time.

HOLDER = """
import sys, time
from pathlib import Path
from rlhf_lab.training.lock import FolderLock
lock = FolderLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_while_the_first_lives_and_let_in_when_it_is_killed(tmp_path):
    first = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        module = torch.nn.Linear(2, 2)
        with pytest.raises(LabError, match=f"in use by another run \\(process {first.pid}\\)"):
            Loop("x", module, settings(out=tmp_path))
        assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, PROCESS]
    finally:
        first.kill()
        first.wait()
    # Its mark is still there, and is no obstacle: neither to the lock nor to the claim on an empty folder.
    with Loop("x", module, settings(out=tmp_path)) as loop:
        for _ in loop:
            loop.update(module.weight.square().sum())
            assert (tmp_path / PROCESS).read_text() == str(os.getpid())
    assert not (tmp_path / LOCK).exists() and (tmp_path / "run.json").is_file()


def test_the_lock_is_given_back_after_a_refusal_and_after_an_error(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    module = torch.nn.Linear(2, 2)
    with pytest.raises(LabError, match="other files"):
        Loop("x", module, settings(out=tmp_path))
    out = tmp_path / "run"
    with pytest.raises(ZeroDivisionError), Loop("x", module, settings(out=out)) as loop:
        for _ in loop:
            raise ZeroDivisionError
    assert [p.name for p in tmp_path.iterdir()] != [] and not list(tmp_path.rglob(LOCK))
    FolderLock(out).release()


# Trackers.


def test_tensorboard_gets_the_settings_and_each_logged_row(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = torch.nn.Linear(2, 2)
    out = tmp_path / "run"
    with Loop("my run", module, settings(out=out, trackers=("tensorboard",))) as loop:
        for _ in loop:
            loop.update(module.weight.square().sum(), reward=2.5)
    files = list(out.rglob("events.out.tfevents*"))
    seen = {}
    for file in files:
        events = EventAccumulator(str(file))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            seen[tag] = [(e.step, e.value) for e in events.Scalars(tag)]
    assert seen["reward"] == [(0, 2.5), (1, 2.5), (2, 2.5)]
    assert [v for _, v in seen["loss"]] == pytest.approx([row["loss"] for row in loop.history])


@pytest.mark.parametrize("name, message", [("nosuch", "no tracker 'nosuch'"), ("comet_ml", "not installed")])
def test_a_tracker_that_is_not_there_is_refused(name, message, tmp_path):
    with pytest.raises(LabError, match=message):
        Loop("x", torch.nn.Linear(1, 1), settings(out=tmp_path / "run", trackers=(name,)))


def test_without_trackers_and_alone_accelerate_is_not_imported():
    code = (
        "import sys, torch\nfrom rlhf_lab.training import Loop, Training\nm = torch.nn.Linear(1, 1)\n"
        "with Loop('x', m, Training(steps=1, progress=False)) as loop:\n"
        "    for _ in loop: loop.update(m.weight.sum())\nprint('accelerate' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


# The progress bar.


def test_the_bar_shows_loss_reward_kl_and_speed_and_the_history_without_a_folder_no_speed():
    module = torch.nn.Linear(1, 1)
    with Loop("ppo", module, settings(progress=True)) as loop:
        for _ in loop:
            loop.update(module.weight.sum(), tokens=100, zebra=1.0, kl=0.25, reward=3.0)
    shown = loop.bar.postfix
    assert shown.index("loss=") < shown.index("reward=3") < shown.index("kl=0.25") < shown.index("tokens/s=")
    assert loop.history[-1].keys() == {"step", "loss", "zebra", "kl", "reward", "learning_rate", "grad_norm"}


# Shares of several processes, without any.


@pytest.mark.parametrize("number", [0, 1, 2, 5, 12])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shares_are_even_and_make_the_whole_in_order(number, count, monkeypatch):
    shares = []
    for me in range(count):
        monkeypatch.setattr(distributed, "world_size", lambda: count)
        monkeypatch.setattr(distributed, "rank", lambda me=me: me)
        shares.append(list(distributed.local_rows(number)))
    assert [row for share in shares for row in share] == list(range(number))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
