"""Every command with its model on a GPU and its data on the CPU: on a real one where there is one, else on a pretended
one, which computes on the CPU and refuses operations whose tensors lie on two devices."""

import pytest
import torch
from pretend_gpu import TwoDevices, pretended_gpu
from small import history, train
from tiny_models import one_thread  # noqa: F401
from transformers import PreTrainedModel

from rlhf_lab.cli.main import main

METHODS = {
    "sft": [],
    "reward-model": [],
    "ranker": [],
    "dpo": ["--accumulate", "2", "--gradient-checkpointing"],
    "dpo, adapters": ["--lora-rank", "2"],
    "kto": [],
    "ppo": ["--samples", "2", "--epochs", "1"],
    "ppo, adapters": ["--samples", "2", "--epochs", "1", "--lora-rank", "2"],
    "rloo": ["--samples", "2"],
    "grpo": ["--samples", "2"],
    "rso": ["--candidates", "4", "--accepted", "2"],
    "rso, direct": ["--source", "direct"],
    "raft": ["--best-of", "2", "--rounds", "2"],
    "rest": ["--samples", "2", "--thresholds", "0", "0.3"],
    "iterated-dpo": ["--labels", "8", "--rounds", "2"],
}
REWARDED = ("ppo", "rloo", "grpo", "rso", "raft", "rest", "iterated-dpo")


@pytest.fixture
def gpu(monkeypatch):
    """The device's name."""
    if torch.cuda.is_available():
        yield "cuda:0"
        return
    save = PreTrainedModel.save_pretrained

    def from_the_cpu(self, folder, **more):
        """transformers looks at the addresses of weights, which pretended ones do not have."""
        return save(self, folder, state_dict={name: w.cpu() for name, w in self.state_dict().items()}, **more)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", from_the_cpu)
    with pretended_gpu() as device:
        yield str(device)


def test_the_pretended_gpu_refuses_what_a_gpu_refuses():
    if torch.cuda.is_available():
        pytest.skip("there is a real one")
    with pretended_gpu() as device:
        there, here = torch.ones(2, 3, device=device), torch.ones(2, 3)
        assert there.device == device and (there @ there.T).device == device
        assert (there * torch.tensor(2.0)).device == device  # a single number may lie on the CPU
        assert there[torch.tensor([1])].device == device  # and so may indices
        for wrong in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: torch.where(here > 0, there, there),
            lambda: torch.rand(3, generator=torch.Generator(), device=device),
            lambda: torch.rand(3, generator=torch.Generator(device)),
        ):
            with pytest.raises(TwoDevices):
                wrong()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert float(there.sum()) == 6.0 and there.cpu().device.type == "cpu"


def on(device: str, words: list[str]) -> list[str]:
    """The words of a run, with this device."""
    return [device if before == "--device" else word for before, word in zip(["", *words], words, strict=False)]


SLOW = {"ppo, adapters", "raft", "rest", "rso", "rloo"}
"""Cases that `make test` leaves out."""


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * (c in SLOW)) for c in METHODS])
def test_every_method_trains_on_a_gpu(case, model, pairs, reward, ranker, gpu, tmp_path):
    method, more = case.split(",")[0], [*METHODS[case]]
    if method in REWARDED and "direct" not in more:
        more += ["--reward", ranker if method == "rso" else reward]
    assert main(on(gpu, train(method, model, pairs, tmp_path / "run", *more))) == 0
    assert history(tmp_path / "run")


def test_samples_and_reports_are_made_on_a_gpu(model, pairs, reward, gpu, tmp_path, capsys):
    common = ["--model", model, "--data", pairs, "--device", gpu, "--limit", "4", "--max-response-tokens", "6"]
    common += ["--max-prompt-tokens", "32", "--reward", reward, "--no-progress"]
    assert main(["sample", *common, "--num-samples", "2"]) == 0
    assert main(["evaluate", *common, "--reference", model, "--out", str(tmp_path / "report")]) == 0
    assert "KL" in capsys.readouterr().out
