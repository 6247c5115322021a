"""Load and tokenise prompts with target responses (SFT), labelled responses (KTO), and prompts alone.

Formats of targets:

- `prompt` with `completion`, `response`, `answer`, `output`, `target` or `summary`, each a text or a list of turns.
- `messages` (or `conversations`): a list of turns that ends with the assistant's, also in ShareGPT's format.
- Alpaca: `instruction`, `input`, `output` and `history`.
- Reddit TL;DR: `post`, `title`, `subreddit` and `summary`, written as in Stiennon et al. 2020.
- Any format of preference data (see `formats.py`), of which the chosen responses are used.

Prompts alone are read from all of these formats, and from data that have only the column `prompt`. Labelled responses
are prompts with targets and a column `label`, which is true if the response is desirable, as in TRL.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rlhf_lab.batch import Tokens
from rlhf_lab.data import formats as forms
from rlhf_lab.data.preferences import (
    HOLDS_END,
    LOOK,
    TOO_LONG,
    TokenReport,
    TooLong,
    check_limits,
    counts,
    end_token_hint,
    ends_of,
    ids_of,
    last,
    opening_of,
    split_end,
    was_cut,
)
from rlhf_lab.data.readers import Row, Source, near_columns, rows_of
from rlhf_lab.errors import LabError

TARGETS = ("completion", "response", "answer", "output", "target", "summary")
"""Names of the column with the target. The first one that exists is used."""

AGAIN = "repeated prompt"


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
        what = "examples" if self.targets else "prompts"
        return (
            f"{self.source} ({self.form}): {len(self):,} {what}; dropped {self.dropped.total():,} rows: "
            f"{counts(self.dropped)}"
        )


def load_targets(source: Source | str, tokenizer: Any = None) -> TargetTexts:
    """Read prompts with targets. The arguments are those of `load_preferences`.

    Raises:
        LabError: the source cannot be read, columns are missing, a row is malformed, or every row was dropped.
    """
    source = Source.of(source)
    tokenizer = forms.writer_of(source, tokenizer)

    def example(row: Row, columns: set[str]) -> tuple[str, tuple[str, str] | str]:
        form, found = _example(row, source.name, columns, tokenizer)
        if not isinstance(found, str):
            found = forms.EMPTY_PROMPT if not found[0].strip() else found if found[1].strip() else forms.EMPTY_RESPONSE
        return form, found

    return _load(source, example, "example", tokenizer)


def holds_verdicts(source: Source | str) -> bool:
    """Return whether the first row has a `label` and is not a pair."""
    first = next(rows_of(replace(Source.of(source), limit=1)))
    return "label" in first.fields and "chosen" not in first.fields


def load_verdicts(source: Source | str, tokenizer: Any = None) -> TargetTexts:
    """Read labelled responses. The arguments are those of `load_preferences`.

    Raises:
        LabError: as `load_targets`, or a label is neither true nor false.
    """
    source = Source.of(source)
    tokenizer = forms.writer_of(source, tokenizer)
    labels: list[bool] = []

    def verdict(row: Row, columns: set[str]) -> tuple[str, tuple[str, str] | str]:
        form, found = _example(row, source.name, columns, tokenizer)
        label = row.fields.get("label")
        if isinstance(found, str) or label is None:
            return form, found if isinstance(found, str) else forms.MISSING
        if not found[0].strip() or not found[1].strip():
            return form, forms.EMPTY_RESPONSE if found[0].strip() else forms.EMPTY_PROMPT
        known = {"true": True, "1": True, "false": False, "0": False}.get(str(label).lower())
        if known is None:
            raise LabError(f"{source.name}, {row.place}: `label` is {label!r}; it must be true (desirable) or false.")
        labels.append(known)
        return f"{form} with label", found

    texts = _load(source, verdict, "example", tokenizer)
    return replace(texts, labels=labels)


def load_prompts(source: Source | str, tokenizer: Any = None) -> TargetTexts:
    """Read prompts alone, without repetitions. The arguments are those of `load_preferences`.

    Raises:
        LabError: as `load_targets`.
    """
    source = Source.of(source)
    tokenizer = forms.writer_of(source, tokenizer)
    known: set[str] = set()

    def prompt(row: Row, columns: set[str]) -> tuple[str, tuple[str, str] | str]:
        form, found = _prompt(row, source.name, columns, tokenizer)
        if isinstance(found, str):
            return form, found
        if not found[0].strip():
            return form, forms.EMPTY_PROMPT
        if found[0] in known:
            return form, AGAIN
        known.add(found[0])
        return form, found

    texts = _load(source, prompt, "prompt", tokenizer)
    return TargetTexts(texts.prompts, [], texts.dropped, texts.source, texts.form)


def _load(
    source: Source, read: Callable[[Row, set[str]], tuple[str, tuple[str, str] | str]], what: str, tokenizer: Any
) -> TargetTexts:
    name = source.name
    found: list[tuple[str, str]] = []
    templated: list[bool] = []
    dropped: Counter[str] = Counter()
    seen_forms: Counter[str] = Counter()
    columns: set[str] = set()
    seen, first = 0, ""
    for row in rows_of(source):
        row = forms.standard_row(row, name)
        seen += 1
        columns |= row.fields.keys()
        if seen == LOOK and not found:
            _check_columns(columns, name, what)
        form, one = read(row, columns)
        if isinstance(one, str):
            dropped[one] += 1
            first = first or f" (the first is {row.place})"
        else:
            form, one = forms.by_chat(form, one, source, tokenizer, f"{name}, {row.place}")
            found.append(one)
            templated.append(forms.by_template(form, tokenizer))
            seen_forms[form] += 1
            if len(found) == source.limit:
                break
    if not found:
        _check_columns(columns, name, what)
        article = "an" if what == "example" else "a"
        raise LabError(f"None of the {seen:,} rows of {name} gives {article} {what}: {counts(dropped)}{first}.")
    prompts, targets = (list(column) for column in zip(*found, strict=True))
    return TargetTexts(prompts, targets, dropped, name, " and ".join(sorted(seen_forms)), templated=templated)


def _check_columns(columns: set[str], source: str, what: str) -> None:
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


def _example(row: Row, source: str, columns: set[str], tokenizer: Any) -> tuple[str, tuple[str, str] | str]:
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
    prompt = forms.write_turns(turns[:-1], tokenizer, place, tools, continued)
    return prompt, forms.answer_of(turns, prompt, tokenizer, place, tools, continued)


def _prompt(row: Row, source: str, columns: set[str], tokenizer: Any) -> tuple[str, tuple[str, str] | str]:
    """Return the format of a row and its prompt with an empty target, or the reason why there is none."""
    place = f"{source}, {row.place}"
    prompt, chosen = row.fields.get("prompt"), row.fields.get("chosen")
    if prompt is not None and not isinstance(chosen, list):
        forms.check_value(prompt, "prompt", place)
        if isinstance(prompt, str):
            return "prompts", (prompt, "")
        tools, continued = forms.tools_of(row, source), bool(prompt) and prompt[-1]["role"] == "assistant"
        text = forms.write_turns(prompt, tokenizer, place, tools, continued)
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
    check_limits(max_prompt_tokens, None)
    opening = opening_of(tokenizer)
    kept: list[list[int]] = []
    dropped: Counter[str] = Counter()
    short = 0
    for ids in ids_of(prompts, tokenizer) if prompts else []:
        whole = opening + ids if ids and ids[: len(opening)] != opening else ids
        asked = last(whole, max_prompt_tokens, len(opening))
        if not asked or (too_long == "drop" and len(asked) < len(whole)):
            dropped[TOO_LONG if asked else forms.EMPTY_PROMPT] += 1
            continue
        kept.append(asked)
        short += len(asked) < len(whole)
    if not kept:
        raise LabError(f"No prompt of {source} remains after tokenisation: {counts(dropped)}.")
    return Tokens.from_lists(kept), TokenReport(len(kept), dropped, short, 0, max(map(len, kept)), "prompts")


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
    check_limits(max_prompt_tokens, max_response_tokens)
    opening = opening_of(tokenizer)
    ends = ends_of(tokenizer, end_token)
    prompts: list[list[int]] = []
    targets: list[list[list[int]]] = []
    dropped: Counter[str] = Counter()
    short = {"prompts": 0, "targets": 0}
    kept: list[int] = []
    both = zip(ids_of(texts.prompts, tokenizer), ids_of(texts.targets, tokenizer), strict=True)
    for place, (prompt, target) in enumerate(both):
        templated = bool(texts.templated) and texts.templated[place]
        target, ending = split_end(target, ends, templated, tokenizer)
        whole = opening + prompt if prompt and prompt[: len(opening)] != opening else prompt
        asked = last(whole, max_prompt_tokens, len(opening))
        answer = (target + ending)[:max_response_tokens]
        if any(end in target for end in ends):
            dropped[HOLDS_END] += 1
        elif not asked:
            dropped[forms.EMPTY_PROMPT] += 1
        elif not target:
            dropped[forms.EMPTY_RESPONSE] += 1
        elif too_long == "drop" and (len(asked) < len(whole) or was_cut(answer, target, ending)):
            dropped[TOO_LONG] += 1
        else:
            prompts.append(asked)
            targets.append([answer])
            kept.append(place)
            short["prompts"] += len(asked) < len(whole)
            short["targets"] += len(answer) < len(target) + len(ending)
    if not prompts:
        raise LabError(
            f"No example of {texts.source} remains after tokenisation: {counts(dropped)}.{end_token_hint(dropped)}"
        )
    longest = max(len(p) + len(y) for p, (y,) in zip(prompts, targets, strict=True))
    report = TokenReport(len(prompts), dropped, short["prompts"], short["targets"], longest, "examples")
    return Tokens.from_lists(prompts), Tokens.from_lists(targets), kept, report
