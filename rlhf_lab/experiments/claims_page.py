"""docs/claims.md: what the source of each claim says, what was found and why, and, folded, all rules and numbers.

The page is made of the saved results (`results/NAME/SCALE/`) and of a file `results/NAME/claim.md` for each claim, by
`make claims`; a test compares. `claim.md` is written by hand, like `notes.md` (`verdicts.py`):

    ---
    figure: bandit
    outcomes: {bandit: supported, tree: partly supported}
    older: [tree]
    conditions:
      - bandit.slope < -1
    contrasts:
      - label: regret of soft best-of-8 / that of best-of-8
        number: soft_over_best
        reference: 1
        claimed: below
        axis: log
    ---
    ## Source
    ## Finding
    ## Why
    ## Source in detail
    ## Experiment

The first three sections are the visible text, of at most 150 words together. Placeholders and conditions name the scale
before the number (`{bandit.slope}`). The outcomes and conditions say for which results the words are true. `older`
names the scales whose rows are older than the rule; without it the rule was written before all runs. `Redesigns` and
`Later work` are further sections, which may be absent. `Contrast` describes the entries of `contrasts`.
"""

from __future__ import annotations

import functools
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lab.experiments.claims_forest import Contrast, draw, numbers
from rlhf_lab.experiments.results import read, saved
from rlhf_lab.experiments.runner import Experiment
from rlhf_lab.experiments.scales import SCALES, scale_of
from rlhf_lab.experiments.verdicts import OUTCOMES, Notes, Verdict, fill, read_notes, read_parts
from rlhf_lab.figures import style
from rlhf_lab.training.checkpoint import write_text

SHORT = {"Source": "What the source says", "Finding": "What we find", "Why": "Why"}
LONG = ("Source in detail", "Experiment")
FOREST = "claims-forest.png"

HEAD = """# The lecture's claims, tested

The lecture makes claims about methods, and so do papers that were written after it. Each claim is tested here
by an experiment. A rule decides the outcome from the numbers. It was written before the run, except where the
table has a †. There are four outcomes: *supported*, *partly supported* (in part, or under a condition),
*not supported* and *inconclusive* (the intervals are too wide to decide). Claim 10 is a question of the
lecture, so its outcome is *answered* or *inconclusive*.

There are three scales. On the **bandit** and the **token tree** all responses can be enumerated, so the optimal
policy π\\* and every distance to it are exact. The **small language model** (`lab-gpt2`) has about a million
weights and writes texts in four worlds with a known gold reward, so its numbers are estimates. An outcome is a
statement about these scales. It does not say what a model with a thousand times as many weights would do, but
the same command runs on one (`--scale gpt2`).

J is the objective of the lecture, the expected gold reward minus β times the KL divergence from π_ref. The
regret of a policy is J of π\\* minus J of the policy. Numbers in brackets are 95% intervals over seeds. Each
seed has a different world or, on the language model, different labels and samples. Where all seeds share a
world, the section says so.
"""

TABLE = "## All claims in one table\n"

OLDER = """† Some rows are older than the rule, which replaced an earlier one and is applied to them. The section of the
claim says what was changed and why.
"""

FOREST_WORDS = """## The key contrast of each claim

Each panel shows one contrast on every scale on which it was measured. The panels have different units, so
the lengths of the intervals cannot be compared between panels. The grey area is what the claim predicts. A scale in
brackets was not measured.
"""

FOREST_ALTERNATIVE = (
    "{} small panels in the order of the claims. Each has one interval for the bandit (blue circle), the token tree "
    "(orange square) and the small language model (green diamond), and a line at the value compared with. The table "
    "below has all numbers."
)

CLAIMS = """## The claims one by one

Each section first says what the source reports, what we find, and why. The folded parts contain everything else. One
part contains the rule and the commit in which it was written, the settings, and the changes made after a first
result. `git show COMMIT` displays that commit. Some rules were reworded later to make them clearer, but what they
decide did not change. One part for each scale contains all numbers, the rows, and the command that runs the
experiment again. Each command shows a progress bar and can continue after an interruption. Where learning rates were
searched, every method had the same search (`search.csv`). Times were measured on one shared core and are upper
bounds. This page is generated from the saved results (`make claims`).
"""


@dataclass(frozen=True)
class Result:
    """A saved result with its words."""

    folder: Path
    record: Mapping[str, Any]

    @functools.cached_property
    def verdict(self) -> Verdict:
        """Its outcome and numbers."""
        return Verdict.from_record(self.record["verdict"])

    @functools.cached_property
    def notes(self) -> Notes:
        """Its words, with placeholders."""
        return read_notes(self.folder / "notes.md")

    def filled(self, text: str) -> str:
        """Return a text of the notes with its numbers."""
        return fill(text, self.verdict, self.record["settings"])

    def words(self, section: str) -> str:
        """Return a section of the notes with its numbers."""
        return self.filled(self.notes.sections[section])


@dataclass(frozen=True)
class Claim:
    """A claim with its hand-written words and its results by scale.

    Attributes:
        experiment: that tests it.
        results: scale → the saved result.
        head: the data in front of `claim.md`.
        sections: its texts, with placeholders.
    """

    experiment: Experiment
    results: Mapping[str, Result]
    head: Mapping[str, Any]
    sections: Mapping[str, str]

    @functools.cached_property
    def verdict(self) -> Verdict:
        """The numbers of all scales, each named with its scale in front."""
        numbers = self._by_scale(lambda result: result.verdict.numbers)
        return Verdict("answered", numbers, self._by_scale(lambda result: result.verdict.thresholds))

    def _by_scale(self, values: Callable[[Result], Mapping[str, Any]]) -> dict[str, Any]:
        every = self.results.items()
        return {f"{scale}.{name}": value for scale, one in every for name, value in values(one).items()}

    @property
    def older(self) -> list[str]:
        """The scales whose rows are older than the rule."""
        return [scale for scale in self.results if scale in self.head.get("older", ())]

    def filled(self, section: str) -> str:
        """Return a section with its numbers."""
        settings = self._by_scale(lambda result: result.record["settings"])
        return fill(self.sections[section], self.verdict, settings)

    def contrasts(self) -> list[Contrast]:
        """Return the contrasts of the forest plot, with the intervals of the scales that have them."""
        verdicts = {scale: result.verdict for scale, result in self.results.items()}
        return [Contrast.of(self.experiment.number, one, verdicts) for one in self.head.get("contrasts", ())]


def claims(root: Path) -> list[Claim]:
    """Return all claims with a saved result.

    Args:
        root: the folder `results`.

    Raises:
        LabError: a claim or a result without its words.
    """
    found: dict[str, tuple[Experiment, dict[str, Result]]] = {}
    for experiment, folder in saved(root):
        found.setdefault(experiment.name, (experiment, {}))[1][folder.name] = Result(folder, read(folder))
    return [
        Claim(experiment, results, *read_parts(root / name / "claim.md", (*SHORT, *LONG)))
        for name, (experiment, results) in found.items()
    ]


def build(root: Path, page: Path) -> tuple[str, list[Contrast]]:
    """Return the page's text and the contrasts of its forest plot.

    Args:
        root: the folder `results`.
        page: where the page will be, for its links: a file in a folder of the checkout.
    """
    return page_of(claims(root), page)


def page_of(every: list[Claim], page: Path) -> tuple[str, list[Contrast]]:
    """Return the text of a page of these claims, and the contrasts of its forest plot."""
    panels = [contrast for claim in every for contrast in claim.contrasts()]
    forest = (
        f"![{FOREST_ALTERNATIVE.format(len(panels))}]({FOREST})\n\n{_fold('Numbers of this figure', numbers(panels))}"
    )
    table = [TABLE, _table(every), *([OLDER] if any(claim.older for claim in every) else [])]
    parts = [HEAD, *table, FOREST_WORDS, forest, CLAIMS, *(_claim(claim, page) for claim in every)]
    return "\n".join(parts).rstrip("\n") + "\n", panels


def write(root: Path, page: Path) -> None:
    """Write the page, and the forest plot beside it if its numbers have changed. Arguments as for `build`."""
    text, panels = build(root, page)
    write_text(page, text)
    if _stored(page.parent / FOREST) != numbers(panels):
        picture = style.png(draw(panels), dpi=110, description=numbers(panels))
        (page.parent / FOREST).write_bytes(picture)


def is_current(root: Path, page: Path) -> bool:
    """Return whether the page and the numbers in its forest plot are those of the saved results."""
    text, panels = build(root, page)
    stored = page.read_text(encoding="utf-8") if page.is_file() else ""
    return stored == text and _stored(page.parent / FOREST) == numbers(panels)


def _stored(picture: Path) -> str | None:
    """Return the description that is stored in a PNG, None without one."""
    from PIL import Image

    if not picture.is_file():
        return None
    with Image.open(picture) as image:
        return image.info.get("Description")


def unfolded(text: str) -> str:
    """Return what a reader of a page sees before opening a fold: no folded parts, and words instead of links."""
    text = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    return re.sub(r"!\[[^]]*\]\([^)]*\)|\]\([^)]*\)|<[^>]*>", " ", text)


def overall(outcomes: Mapping[str, str]) -> str:
    """Return the outcome of a claim over all scales: one if all agree, otherwise each with its scales."""
    scales = {outcome: [scale_of(s).words for s, one in outcomes.items() if one == outcome] for outcome in OUTCOMES}
    found = {outcome: names for outcome, names in scales.items() if names}
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{outcome}: {', '.join(names)}" for outcome, names in found.items())


def _table(every: list[Claim]) -> str:
    lines = [
        "| | claim | " + " | ".join(one.words for one in SCALES.values()) + " |",
        "|---|---|" + "---|" * len(SCALES),
    ]
    for claim in every:
        cells = [_cell(claim.results.get(scale), " †" * (scale in claim.older)) for scale in SCALES]
        experiment = claim.experiment
        lines.append(f"| {experiment.number} | [{experiment.title}](#{experiment.name}) | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(result: Result | None, mark: str) -> str:
    if result is None:
        return "not run"
    return f"**{result.verdict.outcome}**{mark}<br>{' '.join(result.filled(result.notes.cell).split())}"


def _claim(claim: Claim, page: Path) -> str:
    experiment = claim.experiment
    outcomes = {scale: result.verdict.outcome for scale, result in claim.results.items()}
    parts = [f"**The source.** {claim.filled('Source in detail')}", f"**Here.** {claim.filled('Experiment')}"]
    parts.append(_rule(claim, page.parents[1]))
    if "Redesigns" in claim.sections:
        parts.append(f"**Changed after a first result.**\n\n{claim.sections['Redesigns']}")
    if "Later work" in claim.sections:
        parts.append(f"**Later work.** {claim.filled('Later work')}")
    shown = claim.results[claim.head["figure"]]
    return "\n".join(
        [
            f'<a id="{experiment.name}"></a>\n\n### {experiment.number}. {experiment.title}\n',
            f"*{overall(outcomes).capitalize()}.*\n",
            *(f"**{words}.** {claim.filled(section)}\n" for section, words in SHORT.items()),
            _picture(shown, page),
            _fold("Source, experiment and rule in detail", "\n\n".join(parts)),
            *(_fold(f"{SCALES[s].words.capitalize()}: {outcomes[s]}", _scale(claim, s, page)) for s in claim.results),
        ]
    )


def _rule(claim: Claim, root: Path) -> str:
    where, older = commit_words(claim.experiment.rule_commit, root), [SCALES[scale].words for scale in claim.older]
    words = f"**Rule, written before the run{where}.**"
    if older:
        names = " and the ".join(older)
        words = (
            f"**Rule, written{where}.** Some rows of the {names} are older than this rule, which is applied to them."
        )
    return f"{words} {claim.experiment.rule}".replace("π*", "π\\*")


def _scale(claim: Claim, scale: str, page: Path) -> str:
    result = claim.results[scale]
    record, rows = result.record, _link(result.folder / "runs.csv", page)
    seeds, first = record["settings"]["seeds"], record["settings"].get("first_seed", 0)
    which = f"seeds {first} to {first + seeds - 1}" if first else f"{seeds} seeds"
    parts = [result.words("Finding"), result.words("Explanation")]
    parts += [] if scale == claim.head["figure"] else [_picture(result, page).rstrip("\n")]
    parts.append(
        f"`{record['command']}`: {which}, {record['seconds'] / 60:.1f} minutes; intervals: "
        f"{record['interval']}. [Rows]({rows}), [summary]({rows.replace('runs.csv', 'summary.csv')})."
    )
    return "\n\n".join(parts)


def _picture(result: Result, page: Path) -> str:
    words = " ".join(result.words("Figure").split()).replace("[", "(").replace("]", ")")
    return f"![{words}]({_link(result.folder / 'figure.png', page)})\n"


def _link(file: Path, page: Path) -> str:
    return Path(os.path.relpath(file, page.parent)).as_posix()


def _fold(summary: str, body: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{body}\n\n</details>\n"


def commit_words(commit: str, root: Path) -> str:
    """Return the words for a rule's commit; a link where pyproject.toml in `root` names the project's repository."""
    if not commit:
        return ""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    repository = project.get("urls", {}).get("Repository", "").rstrip("/")
    short = commit[:8]
    return f" in commit [{short}]({repository}/commit/{commit})" if repository else f" in commit {short}"
