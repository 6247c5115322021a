"""Held-out data on the command line: what is held out, what is said about it, and the folder best/."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from small import dialogue, history, pair_rows, train, write_lines

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli.main import main
from rlhf_lab.cli.train.data import Data, _split, check_data, held_out_of, hold_out
from rlhf_lab.cli.train.dpo import TrainDPO
from rlhf_lab.errors import LabError

PROMPTS = Tokens.from_lists([[1], [2], [1], [3], [4], [1], [5], [6], [7], [8]])
PAIRS = Pairs(PROMPTS, Tokens.from_lists([[[10 + i], [30 + i]] for i in range(10)]))


def chosen(pairs: Pairs) -> list[int]:
    return [ids[0][0] - 10 for ids in pairs.responses.tolist()]


def test_a_fraction_keeps_equal_prompts_together_depends_on_the_seed_alone_and_loses_no_row():
    """Ten rows of which three have prompt 1; 40 % are held out: four rows, or three where nothing else fits."""
    splits = set()
    for seed in range(20):
        left, held = _split(Data(pairs=PAIRS), 0.4, seed)
        assert sorted(chosen(left.pairs) + chosen(held.pairs)) == list(range(10)) and len(held) in (3, 4)
        assert chosen(left.pairs) == sorted(chosen(left.pairs)), "rows keep their order"
        together = {0, 2, 5}
        assert together <= set(chosen(held.pairs)) or not together & set(chosen(held.pairs))
        assert chosen(_split(Data(pairs=PAIRS), 0.4, seed)[1].pairs) == chosen(held.pairs)
        assert held.said == [f"held out: {len(held)} of 10 rows, chosen by seed {seed}"]
        splits.add(tuple(chosen(held.pairs)))
    assert len(splits) > 10
    counts = [sum(row in split for split in splits) for row in range(10)]
    assert min(counts) > 0, "each row is held out by some seed"


def test_a_small_fraction_holds_out_one_prompt_and_a_single_prompt_cannot_be_divided():
    _, held = _split(Data(pairs=PAIRS), 1e-6, 0)
    assert len(held) == 1
    with pytest.raises(LabError, match="all rows have the same prompt"):
        _split(Data(pairs=PAIRS[torch.tensor([0, 2, 5])]), 0.4, 0)


def test_targets_labels_and_prompts_are_divided_in_the_same_rows():
    labels = torch.arange(10).unsqueeze(-1) % 2 == 0
    targets = PAIRS.responses.take(torch.zeros(10, 1, dtype=torch.long))
    left, held = _split(Data(prompts=PROMPTS, targets=targets, labels=labels), 0.3, 1)
    for part in (left, held):
        rows = [ids[0][0] - 10 for ids in part.targets.tolist()]
        assert part.labels.flatten().tolist() == [row % 2 == 0 for row in rows]
        assert part.prompts.tolist() == [PROMPTS.tolist()[row] for row in rows]


def test_rows_of_the_held_out_data_that_are_trained_on_are_counted_in_a_warning():
    """Held out: rows 0 and 3 as they are, prompt 1 with another answer, and a prompt that is nowhere else."""
    other = Pairs(
        Tokens.from_lists([[1], [3], [1], [99]]),
        Tokens.from_lists([[[10], [30]], [[13], [33]], [[50], [51]], [[7], [8]]]),
    )
    settings = SimpleNamespace(eval_fraction=None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_lab.cli.train.data.held_out_of", lambda s: SimpleNamespace(data="x"))
        _, held = hold_out(settings, Data(pairs=PAIRS), lambda s: Data(pairs=other, said=["4 pairs"]))
        assert held.said[0] == "held out: 4 pairs"
        assert "2 of the 4 held-out rows also occur in the training data, and 3 share a prompt" in held.said[1]
        _, apart = hold_out(settings, Data(pairs=PAIRS), lambda s: Data(pairs=other[torch.tensor([3])]))
        assert apart.said == []
        with pytest.raises(LabError, match="x gives no held-out data for this method"):
            hold_out(settings, Data(pairs=PAIRS), lambda s: Data())


def test_the_model_of_the_best_measurement_is_in_best_and_the_log_says_so(model, pairs, tmp_path, capsys):
    """The held-out labels are the opposite of those that are trained on. The first measurement is therefore the best
    one, and best/ is the model that was given. The history, the card and the log have the measurements."""
    out = tmp_path / "run"
    flipped = [{"chosen": row["rejected"], "rejected": row["chosen"]} for row in pair_rows(20)[16:]]
    held = write_lines(tmp_path / "held.jsonl", flipped)
    words = train("dpo", model, pairs, out, "--eval-data", held, "--eval-every", "1")
    assert main(words) == 0
    rows = [row for row in history(out) if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert rows[0]["eval_loss"] == pytest.approx(0.6931, abs=1e-3) and rows[0]["eval_accuracy"] == 0.5
    assert min(row["eval_loss"] for row in rows) == rows[0]["eval_loss"], "the case must occur"
    start, best, last = (load_file(f"{f}/model.safetensors") for f in (model, out / "best", out / "model"))
    assert all(torch.equal(best[name], start[name]) for name in start)
    assert any(not torch.equal(last[name], start[name]) for name in start)
    said, card = capsys.readouterr().err, (out / "README.md").read_text(encoding="utf-8")
    assert "held out: loss 0.69" in said and "eval_accuracy" in card
    assert "The best held-out loss is 0.6931, measured after 0 steps of dpo" in card
    assert "held out: 4 pairs of at most" in card


def test_a_run_with_held_out_data_stopped_by_ctrl_c_and_resumed_has_the_same_best_model(model, pairs, tmp_path):
    """Stopped in its first step; the held-out file is part of the run's record."""
    from rlhf_lab.algorithms import sft as room

    held = write_lines(tmp_path / "held.jsonl", pair_rows(24)[16:])
    words = ["--eval-data", held, "--eval-every", "1", "--patience", "5"]
    assert main(train("sft", model, pairs, tmp_path / "whole", *words)) == 0
    loss, calls = room.sft_loss, []

    def stopping(policy, *batch):
        calls.append(torch.is_grad_enabled())
        if calls.count(True) == 2:
            raise KeyboardInterrupt
        return loss(policy, *batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(room, "sft_loss", stopping)
        assert main(train("sft", model, pairs, tmp_path / "cut", *words)) == 130
    record = json.loads((tmp_path / "cut" / "run.json").read_text())
    assert record["eval_data"] == held and len(record["eval_data_sha256"]) == 64
    assert main(train("sft", model, pairs, tmp_path / "cut", *words, "--resume")) == 0
    for folder in ("best", "model"):
        one, two = (load_file(tmp_path / run / folder / "model.safetensors") for run in ("whole", "cut"))
        assert all(torch.equal(one[name], two[name]) for name in one)


METHODS = {
    "reward-model": [],
    "ranker": [],
    "kto": [],
    "rso": ["--candidates", "4", "--accepted", "2"],
    "raft": ["--best-of", "2", "--rounds", "2"],
    "rest": ["--samples", "2", "--thresholds", "0", "0.1"],
    "iterated-dpo": ["--rounds", "2", "--labels", "8"],
    "ppo": [],
    "grpo": ["--samples", "2"],
    "rloo": ["--samples", "2"],
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_measures_held_out_data_and_leaves_its_best_model(method, model, pairs, reward, tmp_path):
    more = ["--reward", reward, "--eval-samples", "2"] if method not in ("reward-model", "ranker", "kto") else []
    out = tmp_path / "run"
    words = [*METHODS[method], *more, "--eval-fraction", "0.25", "--eval-every", "1"]
    assert main(train(method, model, pairs, out, *words)) == 0
    rows = [row for row in history(out) if any(name.startswith("eval_") for name in row)]
    rounds = 2 if method in ("raft", "rest", "iterated-dpo") else 1
    assert len(rows) == 3 * rounds
    wanted = {"eval_score", "eval_kl"} if more else {"eval_loss", "eval_accuracy", "eval_margin"}
    assert wanted <= rows[0].keys()
    if more:
        assert all(abs(rows[0][name]) < 1e-5 for name in ["eval_kl"]), "the policy starts as the reference"
        assert ("eval_objective" in rows[0]) == (method not in ("raft", "rest"))
    same = {p.name for p in (out / "model").iterdir()}
    assert {p.name for p in (out / "best").iterdir()} == same


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "is empty"),
        ([{"text": "no pair"}], "columns"),
        ([{"chosen": dialogue("a?", "b"), "rejected": dialogue("a?", "b")}], "gives no pair. Dropped 1 row"),
    ],
)
def test_held_out_files_without_a_usable_row_are_refused_before_anything_is_written(
    rows, message, model, pairs, tmp_path, capsys
):
    held = write_lines(tmp_path / "held.jsonl", rows)
    assert main(train("dpo", model, pairs, tmp_path / "run", "--eval-data", held)) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "held.jsonl" in said and "\n" not in said and not (tmp_path / "run").exists()


def test_settings_of_the_training_data_are_not_asked_of_the_held_out_data():
    """Label noise of a world for a file, and the chat template of a file for a world, would be refused there."""
    needed = {"model": "lab-gpt2", "out": Path("run"), "seed": 3}
    noisy = TrainDPO(data="world:sentiment", label_noise=0.1, eval_data="held.jsonl", eval_limit=5, **needed)
    file = held_out_of(noisy)
    assert (file.data, file.limit, file.label_noise, file.seed) == ("held.jsonl", 5, 0.0, 3)
    chatty = TrainDPO(data="pairs.jsonl", chat="on", too_long="drop", eval_data="world:sentiment", **needed)
    world = held_out_of(chatty)
    check_data(world)
    assert (world.data, world.data_split) == ("world:sentiment", "test")


def test_a_world_gives_pairs_of_its_test_prompts_for_a_run_on_pairs_of_the_world(tmp_path):
    """The held-out pairs are sampled too, from other prompts; 16 of them."""
    out = tmp_path / "run"
    words = ["--limit", "16", "--eval-data", "world:sentiment", "--eval-limit", "16", "--eval-every", "2"]
    words = train("reward-model", "lab-gpt2", "world:sentiment", out, *words)
    for option in ("--max-prompt-tokens", "--max-response-tokens"):
        del words[words.index(option) : words.index(option) + 2]
    assert main(words) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "world:sentiment: 16 pairs sampled" in card.replace("held out: ", "") and "held out: world:sentiment" in card
    assert [row["step"] for row in history(out) if "eval_loss" in row] == [0, 2]
