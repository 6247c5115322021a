"""Two processes on the CPU, started by `accelerate launch` with the configurations that ship, take the steps of one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from histories import without_speed

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux" or not torch.distributed.is_available(), reason="needs gloo"),
]


def launched(folder: Path, *launcher: str) -> Path:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / "wide_harness.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=400,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process makes."""
    return launched(tmp_path_factory.mktemp("wide") / "alone")


fsdp_on_cpu = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="this torch's fully_shard does not work on a CPU"
)


@pytest.fixture(scope="module", params=["ddp_cpu", pytest.param("fsdp_cpu", marks=fsdp_on_cpu)])
def together(request, tmp_path_factory):
    """What two processes make; under FSDP each holds half of every tensor."""
    return launched(
        tmp_path_factory.mktemp("wide") / request.param,
        "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{request.param}.yaml"),
        "--main_process_port", "0",
    )  # fmt: skip


def test_two_processes_take_the_steps_of_one(alone, together):
    """SFT, DPO (weighted pairs too, and in parts), KTO, the reward model; by hand on the loop and by the algorithms'
    own files. Batches of 5 rows are 3 and 2; a batch of one row leaves a process idle; a run cut in its fourth step is
    resumed. The sums are the same up to their order: in float64 weights agree to 1e-9, histories to 1e-6 (a metric of
    a reward model is float32)."""
    names = sorted(path.name for path in alone.glob("*.pt"))
    assert len(names) == 12 and names == sorted(path.name for path in together.glob("*.pt"))
    for name in names:
        one, two = torch.load(alone / name), torch.load(together / name)
        assert one["weights"].keys() == two["weights"].keys()
        for key, value in one["weights"].items():
            torch.testing.assert_close(two["weights"][key], value, rtol=1e-7, atol=1e-9, msg=f"{name} {key}")
        assert len(one["history"]) == len(two["history"]) > 1
        for a, b in zip(*(without_speed(run["history"]) for run in (one, two)), strict=True):
            assert a.keys() == b.keys() and all(a[k] == pytest.approx(b[k], rel=1e-6, abs=1e-9) for k in a), name


def test_each_process_computes_its_share_of_the_rows(alone, together):
    for name, whole, share in (("sft", [5] * 4, [3] * 4), ("sft in parts", [3, 2] * 4, [2, 1] * 4)):
        assert torch.load(alone / f"{name}.pt")["rows"] == whole
        assert torch.load(together / f"{name}.pt")["rows"] == share


def test_the_weights_moved(alone):
    """Else agreement would say nothing."""
    history = torch.load(alone / "sft.pt")["history"]
    assert history[-1]["loss"] < history[0]["loss"] - 0.05


def test_the_checkpoint_of_several_processes_is_one_of_one_process(alone, together):
    """Same names, shapes and numbers, whole tensors: it can be resumed by any number of processes."""
    from safetensors.torch import load_file

    for file in ("weights", "optimizer"):
        one, two = (
            load_file(f / "run" / "checkpoints" / "step-000004" / f"{file}.safetensors") for f in (alone, together)
        )
        assert one.keys() == two.keys() and len(one) > 10
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-6, atol=1e-9)
    assert [p.name for p in sorted((together / "run").iterdir())] == ["checkpoints", "history.jsonl", "run.json"]


def test_what_one_process_finds_wrong_all_of_them_say(together):
    """NaN in a row that only the second computes; a folder that only the first looks at; a disk that only it fills."""
    first, second = (json.loads((together / f"errors-{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    nan, taken, full = first
    assert "loss became nan at step 0, whose batch is rows 0, 1, 2, 3, 4 of the data" in nan
    assert "already contains another run" in taken
    assert "No space left" in full and "last complete checkpoint is" in full and "step-000002" in full
