"""Load and tokenise prompts with target responses (SFT), labelled responses (KTO), and prompts alone.

Formats of targets:

- `prompt` with `completion`, `response`, `answer`, `output`, `target` or `summary`, each a text or a list of turns.
- `messages` (or `conversations`): a list of turns that ends with the assistant's, also in ShareGPT's format.
- Alpaca: `instruction`, `input`, `output` and `history`.
- Reddit TL;DR: `post`, `title`, `subreddit` and `summary`, written as in Stiennon et al. 2020.
- Any format of preference data (see `formats.py`), of which the chosen responses are used.

Prompts alone are read from all of these formats, and from data that have only the column `prompt`. Labelled responses
are prompts with targets and a column `label`, which is true if the response is desirable, as in TRL. Of such data only
the desirable responses are targets.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rlhf_lab.batch import Tokens
from rlhf_lab.data import formats as forms
from rlhf_lab.data.conversations import answer_of, write_turns
from rlhf_lab.data.preferences import (
    Encoder,
    Example,
    Reading,
    RowKind,
    TokenReport,
    TooLong,
    examples_of,
    summary,
)
from rlhf_lab.data.readers import Row, Source, near_columns, rows_of
from rlhf_lab.errors import LabError

TARGETS = ("completion", "response", "answer", "output", "target", "summary")
"""Names of the column with the target. The first one that exists is used."""
UNDESIRABLE = "labelled undesirable"
"""The reason why a row of KTO's data is no target. Other values of `label` than true and false do not count."""


@dataclass(frozen=True)
class TargetTexts:
    """Prompts and their targets as texts. The whole text is prompt + target, with nothing between them.

    Attributes:
        prompts: the prompt of each example.
        targets: the target of each example. Empty if only prompts were loaded.
        dropped: number of dropped rows, by reason.
        source: the file or data set.
        form: the format of the rows.
        labels: for labelled responses, whether each target is desirable.
        templated: whether the chat template wrote the prompt of each example. Empty if it wrote none.
    """

    prompts: list[str]
    targets: list[str]
    dropped: Counter[str] = field(default_factory=Counter)
    source: str = ""
    form: str = ""
    labels: list[bool] = field(default_factory=list)
    templated: list[bool] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.prompts)

    def summary(self) -> str:
        """Return a line with the source, the number of examples, and the numbers of dropped rows."""
        return summary(self.source, self.form, len(self), "example" if self.targets else "prompt", self.dropped)


def load_targets(source: Source | str, tokenizer: Any = None) -> TargetTexts:
    """Read prompts with targets. The arguments are those of `load_preferences`.

    Raises:
        LabError: the source cannot be read, columns are missing, a row is malformed, or every row was dropped.
    """
    return _load(EXAMPLES, source, tokenizer)


def holds_labelled(source: Source | str) -> bool:
    """Return whether the first row has a `label` and is not a pair."""
    first = next(rows_of(replace(Source.of(source), limit=1)))
    return "label" in first.fields and "chosen" not in first.fields


def usual_method(source: Source | str) -> str:
    """Return what the first row is usually used for: pairs, kto, sft or prompts."""
    first = next(rows_of(replace(Source.of(source), limit=1)))
    fields = forms.standard_row(first, Source.of(source).name).fields.keys()
    if {"chosen", "rejected"} <= fields or fields >= forms.COMPARISON:
        return "pairs"
    if fields & {*TARGETS, *forms.TURNS}:
        return "kto" if "label" in fields else "sft"
    return "prompts"


def load_labelled(source: Source | str, tokenizer: Any = None) -> TargetTexts:
    """Read labelled responses. The arguments are those of `load_preferences`.

    Raises:
        LabError: as `load_targets`, or a label is neither true nor false.
    """
    return _load(LABELLED, source, tokenizer)


def load_prompts(source: Source | str, tokenizer: Any = None) -> TargetTexts:
    """Read prompts alone, without repetitions. The arguments are those of `load_preferences`.

    Raises:
        LabError: as `load_targets`.
    """
    return _load(PROMPTS, source, tokenizer)


def _load(kind: RowKind, source: Source | str, tokenizer: Any) -> TargetTexts:
    reading = Reading(kind, source, tokenizer)
    examples = list(reading)
    prompts, *targets = (list(column) for column in zip(*(one.texts for one in examples), strict=True))
    return TargetTexts(
        prompts,
        targets[0] if targets else [],
        reading.dropped,
        reading.source.name,
        reading.form,
        [one.label for one in examples if one.label is not None],
        [one.templated for one in examples] if targets else [],
    )


def _desirable(row: Row) -> bool | None:
    """Whether the response of a row is desirable, or None if its `label` does not say."""
    return {"true": True, "1": True, "false": False, "0": False}.get(str(row.fields.get("label")).lower())


def _label(row: Row, source: str) -> bool | None:
    """The label of a row, or None if it has none."""
    label, known = row.fields.get("label"), _desirable(row)
    if label is not None and known is None:
        raise LabError(f"{source}, {row.place}: `label` is {label!r}; it must be true (desirable) or false.")
    return known


def _check_columns(columns: set[str], source: str, what: str = "example") -> None:
    pairs = {"chosen", "rejected"} <= columns or columns >= forms.COMPARISON
    turns = any(name in columns for name in forms.TURNS)
    target = any(name in columns for name in TARGETS)
    if pairs or turns or ("post" in columns and target) or ("prompt" in columns and (target or what == "prompt")):
        return
    wanted = ["prompt"] if what == "prompt" else ["prompt", "completion"]
    raise LabError(
        f"{source} has the columns {', '.join(sorted(columns))}. Expected are `prompt`"
        + ("" if what == "prompt" else f" with one of {', '.join(f'`{name}`' for name in TARGETS)}")
        + f", or `messages`, or preference pairs. Rename the columns.{near_columns(wanted, columns)}"
    )


def _example(row: Row, source: str, columns: set[str], tokenizer: Any) -> tuple[str, tuple[str, ...] | str]:
    place = f"{source}, {row.place}"
    if {"chosen", "rejected"} <= columns or columns >= forms.COMPARISON:
        form, pair = forms.pair_of(row, source, "prompt" in columns, tokenizer)
        return f"chosen side of {form}", pair if isinstance(pair, str) else pair[:2]
    turns_in = next((name for name in forms.TURNS if name in columns), None)
    target_in = next((name for name in TARGETS if name in columns), None)
    tools = forms.tools_of(row, source)
    if "prompt" in columns and target_in is not None:
        return _of_columns(row, target_in, place, tokenizer, tools)
    if turns_in is not None:
        turns = row.fields.get(turns_in)
        found = forms.MISSING if turns is None else _of_turns(turns, turns_in, place, tokenizer, tools)
        return forms.with_tools("messages", tools, tokenizer), found
    if "post" in columns and target_in is not None:
        summary = row.fields.get(target_in)
        if row.fields.get("post") is None or summary is None:
            return "TL;DR", forms.MISSING
        forms.check_value(summary, target_in, place)
        return "TL;DR", (forms.post_prompt(row.fields, place), forms.with_space(str(summary)))
    return "", forms.MISSING


def _target(row: Row, source: str, columns: set[str], tokenizer: Any) -> tuple[str, tuple[str, ...] | str]:
    """An example, unless it is labelled undesirable. Pairs may have a column `label` of another meaning."""
    if _desirable(row) is False and "chosen" not in columns:
        return "", UNDESIRABLE
    return _example(row, source, columns, tokenizer)


def _of_columns(
    row: Row, target_in: str, place: str, tokenizer: Any, tools: list[Any] | None
) -> tuple[str, tuple[str, str] | str]:
    prompt, target = row.fields.get("prompt"), row.fields.get(target_in)
    form = "prompt and target"
    if prompt is None or target is None:
        return form, forms.MISSING
    forms.check_value(prompt, "prompt", place)
    forms.check_value(target, target_in, place)
    if isinstance(prompt, str) and isinstance(target, str):
        return forms.with_tools(form, tools, tokenizer), (prompt, target)
    before = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    after = [{"role": "assistant", "content": target}] if isinstance(target, str) else target
    continued = len(after) == 1 and bool(before) and before[-1]["role"] == "assistant"
    found = _of_turns([*before, *after], target_in, place, tokenizer, tools, continued)
    return forms.with_tools(f"{form} as messages", tools, tokenizer), found


def _of_turns(
    turns: Any, name: str, place: str, tokenizer: Any, tools: list[Any] | None, continued: bool = False
) -> tuple[str, str] | str:
    if isinstance(turns, str):
        raise LabError(f"{place}: `{name}` is a text; expected a list of objects with `role` and `content`.")
    forms.check_value(turns, name, place)
    if not turns or turns[-1]["role"] != "assistant":
        return forms.NO_ASSISTANT
    prompt = write_turns(turns[:-1], tokenizer, place, tools, continued)
    return prompt, answer_of(turns, prompt, tokenizer, place, tools, continued)


def _prompt(row: Row, source: str, columns: set[str], tokenizer: Any) -> tuple[str, tuple[str, ...] | str]:
    """Return the format of a row and its prompt, or the reason why there is none."""
    place = f"{source}, {row.place}"
    prompt, chosen = row.fields.get("prompt"), row.fields.get("chosen")
    if prompt is not None and not isinstance(chosen, list):
        forms.check_value(prompt, "prompt", place)
        if isinstance(prompt, str):
            return "prompts", (prompt, "")
        tools, continued = forms.tools_of(row, source), bool(prompt) and prompt[-1]["role"] == "assistant"
        text = write_turns(prompt, tokenizer, place, tools, continued)
        return forms.with_tools("prompts as messages", tools, tokenizer), (text, "")
    if "prompt" not in columns:
        if isinstance(chosen, str):
            cut = forms.cut_dialogue(chosen)
            return "AnthropicHH", forms.NO_ASSISTANT if cut is None else (cut[0], "")
        if columns >= forms.COMPARISON and chosen is None:
            info = row.fields.get("info")
            return "comparisons", (forms.post_prompt(info, place), "") if isinstance(info, dict) else forms.MISSING
        if row.fields.get("post") is not None:
            return "TL;DR", (forms.post_prompt(row.fields, place), "")
    form, found = _example(row, source, columns, tokenizer)
    return form, found if isinstance(found, str) else (found[0], "")


EXAMPLES = RowKind("example", 1, _target, _check_columns)
LABELLED = RowKind("example", 1, _example, _check_columns, _label)
PROMPTS = RowKind("prompt", 0, _prompt, partial(_check_columns, what="prompt"), distinct=True)


def tokenise_prompts(
    prompts: list[str],
    tokenizer: Any,
    max_prompt_tokens: int | None,
    source: str = "the prompts",
    too_long: TooLong = "cut",
) -> tuple[Tokens, TokenReport]:
    """Return prompts as ids (N, P), truncated as by `preferences.tokenise`, and a report.

    Raises:
        LabError: the limit is below 1, or every prompt was dropped.
    """
    encoder = Encoder(PROMPTS.what, tokenizer, max_prompt_tokens, None, None, too_long)
    found = encoder.encode([Example((prompt,)) for prompt in prompts])
    report = encoder.report(source)
    return Tokens.from_lists(found.prompts), report


def tokenise_targets(
    texts: TargetTexts,
    tokenizer: Any,
    max_prompt_tokens: int | None,
    max_response_tokens: int | None,
    end_token: int | None,
    too_long: TooLong = "cut",
) -> tuple[Tokens, Tokens, list[int], TokenReport]:
    """Tokenise prompts and targets separately, truncated and ended as by `preferences.tokenise`.

    Returns:
        prompts (N, P), targets (N, 1, T), the indices in `texts` of the kept examples, and a report.

    Raises:
        LabError: a limit is below 1, or every example was dropped.
    """
    encoder = Encoder(EXAMPLES.what, tokenizer, max_prompt_tokens, max_response_tokens, end_token, too_long)
    texts_of = zip(texts.prompts, texts.targets, strict=True)
    prompts, targets, kept, _ = encoder.encode(examples_of(texts_of, texts.templated))
    report = encoder.report(texts.source)
    return Tokens.from_lists(prompts), Tokens.from_lists(targets), kept, report
