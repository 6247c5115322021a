"""The same trainings in one process or in several: run by itself, or by `accelerate launch`.

    python wide_harness.py FOLDER
    accelerate launch --config_file configs/ddp_cpu.yaml wide_harness.py FOLDER

The first process writes FOLDER/<name>.pt: the history and the trained weights; each writes FOLDER/errors-<rank>.json.
"""

import contextlib
import json
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
torch.set_num_threads(1)

from tiny_models import tiny, variable_length_batch  # noqa: E402

from rlhf_lab.algorithms.dpo import DPO, dpo, held_out_pairs, pair_loss, reference_log_probs  # noqa: E402
from rlhf_lab.algorithms.kto import KTO, LabelledResponses, kto  # noqa: E402
from rlhf_lab.algorithms.reward_model import RewardModel, bradley_terry_loss, reward_model  # noqa: E402
from rlhf_lab.algorithms.sft import held_out_responses, sft, sft_loss  # noqa: E402
from rlhf_lab.batch import Pairs  # noqa: E402
from rlhf_lab.errors import LabError  # noqa: E402
from rlhf_lab.policies.language_model import LanguageModelPolicy  # noqa: E402
from rlhf_lab.training import Loop, Training, checkpoint, distributed  # noqa: E402
from rlhf_lab.training.rows import reference_rows  # noqa: E402

ROWS = []
"""How many rows this process computed, one entry a part."""


def settings(**changes) -> Training:
    # Batches of 5 over two processes: 3 rows and 2. AdamW, a clipped norm, a rate that falls.
    plain = {"steps": 4, "batch_size": 5, "learning_rate": 3e-3, "log_every": 1, "save_every": 2, "progress": False}
    return Training(**(plain | {"optimizer": "adamw", "weight_decay": 0.01, "max_grad_norm": 1.0} | changes))


def policy() -> LanguageModelPolicy:
    # Other weights on each process, to see that they begin with the first one's.
    return LanguageModelPolicy(tiny("gpt2", wide=0.1, seed=distributed.rank()).double(), end_token=0, max_new_tokens=6)


def pairs(weighted: bool = False) -> Pairs:
    prompts, responses = variable_length_batch(count=12, group=2)
    return Pairs(prompts, responses, torch.linspace(0.2, 2.0, 12) if weighted else None)


def on_the_loop(module, data: tuple, loss, training: Training) -> list[dict]:
    """Loss and rows apart, as `update(batch=…)` takes them."""

    def counted(*batch):
        ROWS.append(len(batch[0]))
        return loss(*batch)

    with Loop("wide", module, training) as loop:
        for _ in loop:
            rows = loop.rows(len(data[0]))
            loop.update(counted, batch=tuple(part[rows] for part in data))
    return loop.history


def loop_sft(training: Training):
    module, data = policy(), pairs()
    return module, on_the_loop(module, (data.prompts, data.responses), lambda x, y: sft_loss(module, x, y), training)


def loop_dpo(training: Training, weighted: bool = False):
    module, data = policy(), pairs(weighted)
    distributed.broadcast_parameters(module)
    log_ref = distributed.map_rows(lambda p: reference_log_probs(module, p, 4), data)
    return module, on_the_loop(module, (data, log_ref), lambda b, r: pair_loss(module, b, r, DPO(beta=0.5)), training)


def loop_reward(training: Training):
    module, data = policy().new_reward_model().double(), pairs()
    return module, on_the_loop(module, (data,), lambda b: bradley_terry_loss(module, b, 1e-3), training)


def whole_sft(training: Training):
    module, data = policy(), pairs()
    evaluation = held_out_responses(module, data.prompts[:7], data.responses[:7])
    return module, sft(module, data.prompts, data.responses, training, evaluation=evaluation)


def whole_dpo(training: Training):
    module = policy()
    distributed.broadcast_parameters(module)
    reference = module.frozen()
    evaluation = held_out_pairs(module, reference, pairs(weighted=True)[:7], DPO(beta=0.5))
    return module, dpo(module, reference, pairs(), DPO(beta=0.5), training, evaluation=evaluation)


def dpo_by_rows(training: Training):
    """log π_ref is computed when a step or a measurement first needs a row, as the commands do."""
    module, data, held_out = policy(), pairs(), pairs(weighted=True)[:7]
    distributed.broadcast_parameters(module)
    reference = module.frozen()
    known = reference_rows(reference, held_out, training, held_out=True)
    evaluation = held_out_pairs(module, reference, held_out, DPO(beta=0.5), known)
    known = reference_rows(reference, data, training)
    return module, dpo(module, reference, data, DPO(beta=0.5), training, "dpo", known, evaluation)


def whole_kto(training: Training):
    module = policy()
    distributed.broadcast_parameters(module)
    return module, kto(module, module.frozen(), LabelledResponses.from_pairs(pairs()), KTO(beta=0.5), training)


def whole_reward(training: Training):
    module = policy().new_reward_model().double()
    return module, reward_model(module, pairs(), RewardModel(), training)


def trainings(folder: Path) -> dict:
    """Each training by its name: (function, settings)."""
    return {
        "sft": (loop_sft, settings()),
        "sft in parts": (loop_sft, settings(accumulate=2)),
        "dpo": (loop_dpo, settings(out=folder / "run")),
        "dpo weighted": (lambda t: loop_dpo(t, True), settings()),
        "reward model": (loop_reward, settings()),
        # More processes than rows: one of them has nothing of its own to do.
        "one row": (loop_sft, settings(batch_size=1, steps=2)),
        "algorithm sft": (whole_sft, settings(eval_every=2, patience=9)),
        "algorithm dpo": (whole_dpo, settings(eval_every=2)),
        "log π_ref by rows": (dpo_by_rows, settings(eval_every=2)),
        "algorithm kto": (whole_kto, settings()),
        "algorithm reward model": (whole_reward, settings()),
    }


def run(folder: Path) -> None:
    distributed.init_process_group()
    for name, (train, training) in trainings(folder).items():
        ROWS.clear()
        module, history = train(training)
        if distributed.is_main_process():
            weights = {k: v.clone() for k, v in module.state_dict().items()}
            torch.save({"history": history, "weights": weights, "rows": list(ROWS)}, folder / f"{name}.pt")
    # Half of it in this run, the rest resumed, by as many processes.
    with contextlib.suppress(InterruptedError):
        half(folder, stop=3)
    module, history = half(folder, stop=None)
    if distributed.is_main_process():
        found = checkpoint.latest(folder / "half")
        torch.save({"history": history, "weights": module.state_dict(), "last": str(found)}, folder / "resumed.pt")
    errors = [message(lambda: nan_in_the_last_row(folder)), message(lambda: loop_sft(settings(out=folder / "run")))]
    errors += [message(lambda: full_disk(folder))]
    (folder / f"errors-{distributed.rank()}.json").write_text(json.dumps(errors))
    if distributed.world_size() > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def message(function) -> str:
    try:
        function()
    except LabError as error:
        return str(error)
    return "no error"


def nan_in_the_last_row(folder: Path) -> None:
    """Under several processes it is the last one's alone."""
    values = torch.ones(5)
    values[4] = torch.nan
    module = torch.nn.Linear(1, 1)
    on_the_loop(module, (values,), lambda v: ((module(v[:, None])).mean(), {}), settings(batch_size=5))


def full_disk(folder: Path) -> None:
    """The first process alone writes, and finds no room at its second checkpoint."""
    real, saves = checkpoint.save_file, [0]

    def save(tensors, path):
        saves[0] += 1
        if saves[0] == 3:
            raise OSError(28, "No space left on device", str(path))
        real(tensors, path)

    checkpoint.save_file = save
    try:
        loop_sft(settings(out=folder / "full"))
    finally:
        checkpoint.save_file = real


def half(folder: Path, stop: int | None):
    module, data = policy(), pairs()
    training = settings(out=folder / "half", resume=(folder / "half" / "run.json").is_file())
    if distributed.world_size() > 1:
        torch.distributed.barrier()
    with Loop("wide", module, training) as loop:
        for step, _ in loop:
            if step == stop:
                raise InterruptedError
            rows = loop.rows(len(data))
            loop.update(lambda x, y: sft_loss(module, x, y), batch=(data.prompts[rows], data.responses[rows]))
    return module, loop.history


if __name__ == "__main__":
    run(Path(sys.argv[1]))
