"""Several `--data`: which rows an epoch has, what is reported about each file, and which mixtures are refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from small import pair_rows, train, weights, write_lines
from tiny_models import one_thread, tiny_tokenizer  # noqa: F401

from rlhf_lab.cli.main import main
from rlhf_lab.cli.train.data import load_data, mixture
from rlhf_lab.cli.train.kto import TrainKTO

TOKENIZER = tiny_tokenizer(["abcdefgh 0123456789"], vocab=300)


def lengths(sizes, weights, seed=0):
    return [len(part) for part in mixture(sizes, weights, seed)]


def test_the_shares_of_an_epoch_are_the_weights_and_no_row_is_repeated():
    """An epoch has min(n/w) rows: 10/0.75 = 13.3 of 10 and 10 rows, so 3.3 and 10 of them; 1000/0.7 of 1000 and 600."""
    assert lengths((10, 10), (0.25, 0.75)) == lengths((10, 10), (1, 3)) == [3, 10]
    assert lengths((1000, 600), (0.7, 0.3)) == [1000, 429]  # 0.3 * 1428.6 = 428.6
    assert lengths((10, 10), (1, 1000)) == [1, 10]  # at least one row
    assert lengths((10, 4), ()) == [10, 4]
    parts = mixture((50, 80, 20), (1, 1, 2), 3)
    assert [len(part) for part in parts] == [10, 10, 20]
    for part, first, end in zip(parts, (0, 50, 130), (50, 130, 150), strict=True):
        assert part.min() >= first and part.max() < end and len(set(part.tolist())) == len(part)


def test_the_rows_depend_on_the_seed_and_every_row_is_equally_likely():
    """Each of 8 rows is among 4 selected ones with probability ½: 200 ± 10 of 400 seeds, and 5 standard deviations."""
    assert all(torch.equal(a, b) for a, b in zip(*(mixture((8, 4), (1, 1), 7) for _ in range(2)), strict=True))
    seen = torch.zeros(8)
    for seed in range(400):
        seen[mixture((8, 4), (1, 1), seed)[0]] += 1
    assert (seen - 200).abs().max() < 50
    # Two data of the same size have selections of their own.
    one, other = mixture((100, 100, 50), (1, 1, 1), 0)[:2]
    assert one.tolist() != (other - 100).tolist()


@pytest.fixture
def files(tmp_path) -> list[str]:
    """Six and four usable rows of every kind; each file also has a row without a response."""

    def rows(name: str, number: int) -> list[dict]:
        texts = [{"prompt": f"{name}{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(number)]
        return [*texts, {"prompt": name, "chosen": " ", "rejected": "b"}]

    labelled = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 2 == 0}
        for i, row in enumerate(rows("e", 5))
    ]
    return [
        write_lines(tmp_path / "c.jsonl", rows("c", 6)),
        write_lines(tmp_path / "d.jsonl", rows("d", 4)),
        write_lines(tmp_path / "e.jsonl", labelled),
    ]


def loaded(kind: str, data: list[str], **changes):
    settings = TrainKTO(model="m", data=tuple(data), out=Path("out"), progress=False, **changes)
    return load_data(settings, kind, TOKENIZER, (8, 8))


def prompts_of(tokens) -> list[str]:
    return [TOKENIZER.decode(ids) for ids in tokens.tolist()]


@pytest.mark.parametrize("kind", ["pairs", "targets", "prompts"])
def test_every_kind_of_rows_is_mixed_and_each_file_is_reported(kind, files):
    number = 1 if kind == "prompts" else 0  # the row without a response has a prompt
    names = [[f"{name}{i}" for i in range(n)] + [name] * number for name, n in (("c", 6), ("d", 4))]
    both = loaded(kind, files[:2])
    assert prompts_of(both.prompts if both.pairs is None else both.pairs.prompts) == names[0] + names[1]
    drawn = loaded(kind, files[:2], data_weights=(1.0, 2.0), seed=3)
    found = prompts_of(drawn.prompts if drawn.pairs is None else drawn.pairs.prompts)
    few = round((4 + number) / 2)
    assert len(found) == few + 4 + number and found[few:] == names[1] and set(found[:few]) < set(names[0])
    expected = mixture((6 + number, 4 + number), (1.0, 2.0), 3)
    assert found == [(names[0] + names[1])[row] for row in torch.cat(expected)]
    responses = drawn.targets if drawn.pairs is None else drawn.pairs.responses
    if responses is not None:  # the responses of a row stay with its prompt
        assert [TOKENIZER.decode(row[0][:-1]) for row in responses.tolist()] == [f"a{name[1:]}" for name in found]
    one, tokens, other, _, mixed = drawn.said
    assert one.startswith(files[0]) and other.startswith(files[1]) and tokens.startswith(f"{files[0]}: ")
    assert kind == "prompts" or all("dropped 1 row: empty response (1)" in line for line in (one, other))
    assert f"{files[0]}: {few} of {6 + number} rows" in mixed and f"{files[1]}: {4 + number} of" in mixed


def test_labels_stay_with_their_responses(files):
    found = loaded("labelled", [files[2], files[2]], data_weights=(1.0, 1.0))
    assert found.labels.tolist() == [[i % 2 == 0] for i in range(5)] * 2
    assert [TOKENIZER.decode(row[0][:-1]) for row in found.targets.tolist()] == [f"a{i}" for i in range(5)] * 2


def test_a_mixture_is_recorded_and_a_stopped_run_goes_on_with_its_rows(model, tmp_path):
    """Two steps and then two more give the weights of four steps, with the options given once or several times."""
    one = write_lines(tmp_path / "one.jsonl", pair_rows(12))
    other = write_lines(tmp_path / "other.jsonl", pair_rows(20)[12:])
    mixed = ["--data-weights", "0.25", "0.75", "--schedule", "constant", "--seed", "5"]

    def run(out: Path, steps: str, *more: str) -> int:
        words = train("dpo", model, one, out, "--data", other, *mixed, *more)
        return main([steps if word == "2" else word for word in words])

    assert run(tmp_path / "a", "2") == 0 and run(tmp_path / "a", "4", "--resume") == 0
    file = tmp_path / "settings.yaml"
    settings = yaml.safe_load((tmp_path / "a" / "settings.yaml").read_text())
    assert settings["data"] == [one, other] and settings["data_weights"] == [0.25, 0.75]
    file.write_text(yaml.safe_dump({name: value for name, value in settings.items() if name != "out"}))
    assert main(["train", "dpo", "--config", str(file), "--out", str(tmp_path / "b"), "--steps", "4"]) == 0
    ours, theirs = weights(tmp_path / "a" / "model"), weights(tmp_path / "b" / "model")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    record = json.loads((tmp_path / "a" / "run.json").read_text())
    hashes = [hashlib.sha256(Path(name).read_bytes()).hexdigest() for name in (one, other)]
    assert record["data_sha256"] == hashes and record["data_weights"] == [0.25, 0.75]
    card = (tmp_path / "a" / "README.md").read_text()
    assert all(text in card for text in (f"`{one}` and `{other}`", *hashes, "| data_weights | [0.25, 0.75] |"))
    assert f"{one}: 3 of 12 rows, 27.3% of an epoch; {other}: 8 of 8 rows, 72.7% of an epoch" in card


@pytest.mark.parametrize(
    ("data", "more", "message"),
    [
        (
            ["c", "d"],
            ["--data-weights", "0.5"],
            "--data-weights needs one number for each of the 2 data (c.jsonl, d.jsonl), in the same order, and",
        ),
        (["c", "d"], ["--data-weights", "1", "0"], "value 2 of --data-weights"),
        (["c", "d"], ["--data-weights", "1", "-2"], "value 2 of --data-weights"),
        (["c", "d"], ["--data-weights", "1", "nan"], "value 2 of --data-weights"),
        (["c"], ["--data-weights", "1"], "--data-weights 1.0 has no effect on one source of data, c.jsonl"),
        (["c", "gone"], [], "There is no data file gone.jsonl"),
        (["c,d"], [], "Several names are separated by spaces"),
        (["c", "empty"], [], "empty.jsonl is empty"),
        (["c", "bad"], [], "bad.jsonl, line 2: malformed JSON"),
        (["c", "unusable"], [], "unusable.jsonl gives no pair. Dropped 1 row: "),
        (["c", "d"], ["--data-split", "test"], "c.jsonl and d.jsonl, files without splits"),
        (["c", "d"], ["--data-folder", "x"], "--data-folder x has no effect on a local file"),
        (["c", "world"], [], "world:sentiment cannot be mixed with other data"),
    ],
)
def test_a_mixture_that_cannot_be_used_is_refused_before_anything_is_written(
    data, more, message, files, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt"\n')
    write_lines(tmp_path / "unusable.jsonl", [{"prompt": "a", "chosen": "b", "rejected": "b"}])
    names = ["world:sentiment" if name == "world" else f"{name}.jsonl" for name in data]
    words = train("dpo", model, names[0], tmp_path / "out", *more)
    place = words.index(names[0]) + 1
    assert main([*words[:place], *names[1:], *words[place:]]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "out").exists()


def test_labels_and_pairs_are_not_mixed_for_kto(files, model, tmp_path, capsys):
    words = train("kto", model, files[2], tmp_path / "out", "--data", files[0])
    assert main(words) == 2
    assert f"{files[2]} has labels of responses, and {files[0]} has none" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
