"""Compressed states of an explorer: what all its pictures share is stored once.

`Explorer.states()` returns a picture for every combination of the controls. Most of a picture is the same in all of
them (titles, axes, the curve of the frontier). Most of the rest takes few values: a part that depends on one control
takes as many values as that control has stops. So a set of pictures becomes

    {"same": the first picture,
     "slots": [[path, values, which], …]}     path: position in the picture; values: the different values there;
                                              which: for each picture, the index of its value

and `unfolded` restores every picture. `assets/explorers.js` does the same in the page.

A second language differs in texts only, so it is stored as `"zh"`: `words` (English label → Chinese label), and in
`values` the Chinese values of the slot that contains the sentence below the picture (number of the slot → values).
"""

from __future__ import annotations

import copy
import json
import math
from typing import Any

from rlhf_lab import language
from rlhf_lab.errors import LabError
from rlhf_lab.widgets.explorer import Explorer, Slider

MOST = 1500
"""Maximum number of pictures of one explorer on the static page."""
DIGITS = 4
"""Significant digits of a drawn number, which is finer than a projector's pixels."""
STOPS = 41
"""Maximum number of stops of one slider."""
TEXTS = ("label", "title", "text", "unit", "symbol", "names")
"""Names of the entries of a picture or a control that are shown as text."""


def stops_for(explorer: Explorer, most: int = MOST) -> int:
    """The largest number of stops of a slider, at least 4, with which there are at most about `most` pictures."""
    for stops in range(STOPS, 4, -1):
        if math.prod(len(control.grid(stops)) for control in explorer.controls.values()) <= most:
            return stops
    return 4


def folded(explorer: Explorer, stops: int | None = None, chinese: bool = False) -> dict[str, Any]:
    """The compressed states of an explorer: `Explorer.states` with `same` and `slots` in place of its pictures.

    Args:
        explorer: any explorer.
        stops: maximum number of stops of each slider; None for as many as `MOST` allows.
        chinese: also store the Chinese texts.
    """
    stops = stops or stops_for(explorer)
    states = explorer.states(stops)
    pictures = [_rounded(picture) for picture in states.pop("pictures")]
    for control, spec in zip(states["controls"], explorer.controls.values(), strict=True):
        if isinstance(spec, Slider):
            control["low"], control["high"] = control["names"][0], control["names"][-1]
    made = {**states, **fold(pictures)}
    if chinese:
        with language.use("zh"):
            made["zh"] = _translations({**states, "pictures": pictures}, explorer.states(stops), made["slots"])
    return made


def _translations(english: dict[str, Any], chinese: dict[str, Any], slots: list[list[Any]]) -> dict[str, Any]:
    """Return the entry `zh` of the states of an explorer.

    Args:
        english: the states with their pictures.
        chinese: the same in Chinese.
        slots: the slots of the English pictures.

    Raises:
        LabError: if one English text has two translations, so that the page could not replace it.
    """
    words: dict[str, str] = {}
    _pair((english, chinese), words)
    values: dict[str, list[str]] = {}
    for number, (path, options, which) in enumerate(slots):
        if path == ["text"]:
            values[str(number)] = [chinese["pictures"][which.index(i)]["text"] for i in range(len(options))]
            for sentence in options:
                words.pop(sentence, None)
    return {"words": {e: c for e, c in words.items() if e != c}, "values": values}


def _pair(pair: tuple[Any, Any], words: dict[str, str], text: bool = False) -> None:
    """Add to `words` the texts that differ between two states of the same structure."""
    english, chinese = pair
    if isinstance(english, dict):
        for key, value in chinese.items():
            _pair((english[key], value), words, key in TEXTS)
    elif isinstance(english, list | tuple):
        if not english or isinstance(english[0], dict | list | str):
            for one in zip(english, chinese, strict=True):
                _pair(one, words, text)
    elif text and words.setdefault(english, chinese) != chinese:
        raise LabError(f"{english!r} is translated as {words[english]!r} and as {chinese!r}. Use two English texts.")


def _rounded(value: Any) -> Any:
    """`value` with its numbers rounded to `DIGITS` significant digits."""
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    if isinstance(value, float):
        short = float(f"{value:.{DIGITS}g}")
        return int(short) if short == int(short) and abs(short) < 1e15 else short
    return value


def fold(pictures: list[Any]) -> dict[str, Any]:
    """The parts `same` and `slots` of a list of pictures."""
    slots: list[list[Any]] = []
    _compare((), pictures, slots)
    same = copy.deepcopy(pictures[0])
    for path, _, _ in slots:
        if path:
            _put(same, path, None)
        else:  # nothing in common at all
            same = None
    return {"same": same, "slots": slots, "count": len(pictures)}


def _compare(path: tuple[Any, ...], values: list[Any], slots: list[list[Any]]) -> None:
    first = values[0]
    if all(value == first for value in values):
        # Python treats True, 1 and 1.0 as equal, but the page does not.
        wanted = json.dumps(first, sort_keys=True)
        if all(json.dumps(value, sort_keys=True) == wanted for value in values):
            return
    if isinstance(first, dict) and all(isinstance(v, dict) and v.keys() == first.keys() for v in values):
        for key in first:
            _compare((*path, key), [value[key] for value in values], slots)
    elif isinstance(first, list) and _alike(values):
        for i in range(len(first)):
            _compare((*path, i), [value[i] for value in values], slots)
    else:
        written = [json.dumps(value, ensure_ascii=False) for value in values]
        known = {text: number for number, text in enumerate(dict.fromkeys(written))}
        slots.append([list(path), [json.loads(text) for text in known], [known[text] for text in written]])


def _alike(values: list[Any]) -> bool:
    """Whether these are lists of equal length of dicts or lists. A list of numbers is compared as a whole."""
    lengths = {len(value) if isinstance(value, list) else -1 for value in values}
    return len(lengths) == 1 and all(isinstance(one, dict | list) for value in values for one in value)


def _put(tree: Any, path: Any, value: Any) -> None:
    for key in path[:-1]:
        tree = tree[key]
    tree[path[-1]] = value


def unfolded(states: dict[str, Any], number: int) -> Any:
    """Picture `number` of the result of `fold`."""
    picture = copy.deepcopy(states["same"])
    for path, values, which in states["slots"]:
        if not path:
            return values[which[number]]
        _put(picture, path, values[which[number]])
    return picture
