"""`rlhf-lab data FILE --model MODEL`: print what a run would be trained on.

The rows are read, written by the chat template, tokenised, cut and dropped by the code of `rlhf-lab train`, with the
same options. The command shows how many rows remain, why others are dropped, what is cut, how long the texts are, how
many rows occur twice, and a few rows token by token with the tokens that are in the loss. It writes no file.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import tyro
from torch import Tensor

from rlhf_lab.cli.train.data import Data, Kind, check_data, load_data, token_limits
from rlhf_lab.cli.train.settings import DataSettings
from rlhf_lab.data import sft
from rlhf_lab.data.conversations import TrainOn
from rlhf_lab.data.readers import Source
from rlhf_lab.errors import LabError, Natural, Seed, check_paths, check_settings, count_of, refuse_unused
from rlhf_lab.policies.loading import check_model_available, load_config, load_tokenizer, show_progress_bars

KINDS: dict[str, Kind] = {"sft": "targets", "pairs": "pairs", "kto": "labelled", "prompts": "prompts"}
"""Value of `--as` → the kind of data that the `train` commands load."""

WIDTH = 80
"""Columns of the output."""
SHOWN = 40
"""Number of tokens at either end of a long text that are shown."""
BINS = 10
"""Largest number of lines of a histogram."""

TRAINED, OTHER = ("30;42", "30;102"), ("90", "37")
"""Colours of tokens that are in the loss and of other ones. Two shades alternate, so that tokens can be told apart."""


@dataclass(frozen=True, kw_only=True)
class InspectData(DataSettings):
    """Print what a run would be trained on: rows read, dropped and cut, lengths, duplicates, and a few rows."""

    data: Annotated[tyro.conf.Positional[str | tuple[str, ...]], tyro.conf.arg(metavar="FILE [FILE …]")]
    """The data: a .json, .jsonl, .csv or .parquet file (also .gz), a data set on the Hub, or world:NAME. Several files
    and data sets on the Hub are mixed, as `train` mixes them."""
    as_: Annotated[Literal["auto", "sft", "pairs", "kto", "prompts"], tyro.conf.arg(name="as")] = "auto"
    """The method that the data are for. sft: targets. pairs: reward-model, ranker, dpo and its losses. kto: labelled
    responses. prompts: methods that sample. auto: decided by the columns of the first row."""
    train_on: TrainOn = "last"
    """For sft: whether the last answer of a conversation is in the loss, or all of them."""
    rows: Natural = 3
    """Number of rows that are shown token by token."""
    seed: Seed = 0
    """Seed that chooses these rows."""
    json: bool = False
    """Print JSON in place of tables."""
    progress: bool = True
    """Show a progress bar while large data are tokenised."""

    def __post_init__(self) -> None:
        check_settings(self)
        self._check_data()


def inspect_data(settings: InspectData) -> dict[str, Any]:
    """Run the command.

    Returns:
        What is printed, as `--json` writes it.

    Raises:
        LabError: the data or the model's tokenizer cannot be loaded, or a setting has no effect on these data.
    """
    settings = check_paths(settings)
    show_progress_bars(settings.progress)
    check_data(settings)
    check_model_available(settings.model, settings.model_revision)
    tokenizer = load_tokenizer(settings.model, settings.model_revision)
    kind = _kind(settings)
    if kind != "targets":
        refuse_unused(settings, ["train_on"], "for these data, since only sft has a loss of several answers")
    limits = token_limits(settings, load_config(settings.model, settings.model_revision), tokenizer)
    data = load_data(settings, kind, tokenizer, limits)
    found = report(settings, data, tokenizer, limits)
    if settings.json:
        print(json.dumps(found, indent=1))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        print("\n".join(_lines(found, colour)))
    return found


def _kind(settings: InspectData) -> Kind:
    """The kind of data that is loaded.

    Raises:
        LabError: pairs or labelled responses of a world, which are sampled from the model.
    """
    if settings.world is not None:
        if settings.as_ in ("pairs", "kto"):
            raise LabError(
                f"The responses of {settings.data} are sampled from the model before training, so as={settings.as_} "
                f"cannot show them. Use --as sft or --as prompts."
            )
        return KINDS["sft" if settings.as_ == "auto" else settings.as_]
    if settings.as_ != "auto":
        return KINDS[settings.as_]
    where = Source(settings.sources[0], settings.data_split, settings.data_revision, settings.data_folder)
    return KINDS[sft.usual_method(where)]


def report(settings: InspectData, data: Data, tokenizer: Any, limits: tuple[int, int]) -> dict[str, Any]:
    """Return the numbers and the rows that are printed.

    Args:
        settings: of the command.
        data: rows that `load_data` has loaded.
        tokenizer: the tokenizer of the model.
        limits: maximum lengths of a prompt and of a response, in tokens.
    """
    prompts, responses = (
        (data.prompts, data.targets) if data.pairs is None else (data.pairs.prompts, data.pairs.responses)
    )
    assert prompts is not None
    first, last = zip(*data.keys(), strict=True)
    names = _names(data)
    lengths = {"prompt": _lengths(prompts.lengths, limits[0])}
    for place, name in enumerate(names[1:]):
        assert responses is not None
        lengths[name] = _lengths(responses.lengths[:, place], limits[1])
    if settings.train_on == "all":  # a conversation with several answers shares both limits
        lengths["response"]["limit_with_prompt"] = sum(limits)
    chosen = sorted(random.Random(settings.seed).sample(range(len(data)), min(settings.rows, len(data))))
    return {
        "model": settings.model,
        "sources": data.counts,
        "rows": len(data),
        "duplicates": {"rows": len(last) - len(set(last)), "prompts": len(first) - len(set(first))},
        "lengths": lengths,
        "shown": [_row(data, number, names, tokenizer) for number in chosen],
    }


def _names(data: Data) -> list[str]:
    """The names of the texts of a row."""
    if data.pairs is not None:
        return ["prompt", "chosen", "rejected"]
    return ["prompt"] if data.targets is None else ["prompt", "response"]


def _lengths(lengths: Tensor, limit: int) -> dict[str, Any]:
    """The distribution of lengths in tokens: quantiles, and a histogram of [first, last, number]."""
    ordered = lengths.flatten().sort().values
    shortest, longest = int(ordered[0]), int(ordered[-1])
    widths = (factor * 10**power for power in range(10) for factor in (1, 2, 5))
    width = next(width for width in widths if longest // width - shortest // width < BINS)
    first = shortest // width
    numbers = (ordered // width - first).bincount().tolist()
    return {
        "median": int(ordered[len(ordered) // 2]),
        "95%": int(ordered[len(ordered) * 95 // 100]),
        "maximum": longest,
        "limit": limit,
        "histogram": [[width * place, width * (place + 1) - 1, number] for place, number in enumerate(numbers, first)],
    }


def _row(data: Data, number: int, names: Sequence[str], tokenizer: Any) -> dict[str, Any]:
    """One row: for each of its texts the tokens, and the weight of each token in the loss."""
    one = data[torch.tensor([number])]
    prompts, responses = (one.prompts, one.targets) if one.pairs is None else (one.pairs.prompts, one.pairs.responses)
    assert prompts is not None
    ids = prompts.tolist() + ([] if responses is None else responses.tolist()[0])
    # The chosen response raises the margin of a pair and the rejected one lowers it.
    weights = [
        [0] * len(ids[0]),
        *([-1 if name == "rejected" else 1] * len(part) for name, part in zip(names[1:], ids[1:], strict=True)),
    ]
    if one.trained is not None:
        weights[1] = one.trained.tolist()[0][0]
    row: dict[str, Any] = {"row": number + 1}
    if one.labels is not None:
        row["label"] = bool(one.labels[0, 0])
        weights[1] = [1 if row["label"] else -1] * len(ids[1])
    for name, part, weight in zip(names, ids, weights, strict=True):
        row[name] = {"tokens": [tokenizer.decode([token]) for token in part], "weights": weight}
    return row


def _lines(found: dict[str, Any], colour: bool) -> Iterator[str]:
    """The report as lines of at most `WIDTH` columns, colours not counted."""
    texts, kept = max(len(found["lengths"]) - 1, 1), found["rows"]
    table = list[tuple[str, int, int]]()
    for name, counts in found["sources"].items():
        read, left = counts["read"], counts["kept"]
        table += [(f"{name} ({counts['form']})", -1, 0)]
        table += [("rows read", read, 0), (f"{counts['what']} to train on", left, read)]
        table += [(f"dropped: {reason}", number, read) for reason, number in sorted(counts["dropped"].items())]
        table += [("prompts cut", counts["cut_prompts"], left)]
        table += [(f"prompts that {how}", number, left) for how, number in sorted(counts["cuts"].items())]
        table += [("responses cut", counts["cut_responses"], left * texts)]
    if len(found["sources"]) > 1:
        table += [("mixture", -1, 0), ("rows of an epoch", kept, 0)]
    table += [(f"{name} equal to an earlier one", number, kept) for name, number in found["duplicates"].items()]
    for name, number, of in table:
        if number < 0:
            yield name
            continue
        share = f"{number / of:.1%}" if of else ""
        yield f"  {name[: WIDTH - 24]:<{WIDTH - 24}}{number:>13,} {share:>7}".rstrip()
    for name, lengths in found["lengths"].items():
        yield ""
        yield from _histogram(name, lengths)
    if not found["shown"]:
        return
    yield ""
    if colour:
        inside, outside = _painted("this", TRAINED[0]), _painted("this", OTHER[0])
        yield f"Tokens in the loss look like {inside}, and other tokens like {outside}."
    else:
        yield "[tokens] in square brackets are in the loss, and |tokens| between bars are not."
    for row in found["shown"]:
        yield ""
        label = "" if "label" not in row else f", {'desirable' if row['label'] else 'undesirable'}"
        yield f"row {row['row']:,} of {kept:,}{label}"
        for name in found["lengths"]:
            yield from _text(name, row[name]["tokens"], row[name]["weights"], colour)


def _histogram(name: str, lengths: dict[str, Any]) -> Iterator[str]:
    numbers = ", ".join(f"{what} {lengths[what]:,}" for what in ("median", "95%", "maximum", "limit"))
    if "limit_with_prompt" in lengths:
        numbers += f", with prompt {lengths['limit_with_prompt']:,}"
    yield f"{name}, in tokens: {numbers}"
    most = max(number for *_, number in lengths["histogram"])
    for start, end, number in lengths["histogram"]:
        bar = "#" * round(number / most * (WIDTH - 32))
        yield f"{start:>8,} – {end:<8,} {number:>9,} {bar or ('.' if number else '')}".rstrip()


def _text(name: str, tokens: list[str], weights: list[int], colour: bool) -> Iterator[str]:
    """The tokens of a text, with a mark for the loss, in lines of at most `WIDTH` columns."""
    yield _heading(name, weights)
    places = list(range(len(tokens)))
    if len(tokens) > 2 * SHOWN + 1:
        places = [*places[:SHOWN], -1, *places[-SHOWN:]]
    line, width, bar = "  ", 2, False
    for place in places:
        inside = place >= 0 and bool(weights[place])
        plain = f" … {count_of(len(tokens) - 2 * SHOWN, 'token')} … " if place < 0 else _visible(tokens[place])
        marked = plain if colour or place < 0 else f"[{plain}]" if inside else f"{plain}|"
        if width + len(marked) >= WIDTH and width > 2:
            yield line
            line, width, bar = "  ", 2, False
        if marked[-1] == "|" and not inside and not bar:
            marked = f"|{marked}"
        bar = not inside and place >= 0
        line += _painted(plain, (TRAINED if inside else OTHER)[place % 2]) if colour and place >= 0 else marked
        width += len(marked)
    yield line


def _heading(name: str, weights: list[int]) -> str:
    """How many tokens a text has, how many of them are in the loss, and their weights."""
    said = {value: f"weight {value:+d}" for value in weights if value} or {0: "not in the loss"}
    trained = sum(map(bool, weights))
    part = "" if trained in (0, len(weights)) else f", {trained:,} of them in the loss"
    return f"  {name}, {count_of(len(weights), 'token')}{part}, {' and '.join(said.values())}"


def _visible(token: str) -> str:
    """A token with its control characters written out, so that they cannot move the cursor of the terminal."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in token)


def _painted(text: str, code: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m"
