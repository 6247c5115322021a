"""Every derivation of the library: all lines hold, every wrong line fails, and what is shown can be read."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

from rlhf_lab import derivations
from rlhf_lab.derivations import library, optimal_policy
from rlhf_lab.derivations.display import source_of
from rlhf_lab.training import seeded

LIBRARY = library()


@pytest.mark.parametrize("key", LIBRARY)
def test_every_line_holds_and_every_wrong_line_fails(key):
    """On worlds that no notebook shows; `strict` raises at the first line that is not as it should be."""
    LIBRARY[key].check(worlds=60, seed=1, strict=True)


@pytest.mark.parametrize("key", LIBRARY)
def test_each_line_is_shown_with_its_reason_and_balanced_latex(key):
    one = LIBRARY[key]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", key) and one.title and one.source
    for latex in [*(x for line in one.lines for x in (line.left, line.right)), *(w.right for w in one.wrong)]:
        plain = latex.replace(r"\{", "").replace(r"\}", "")
        assert plain.count("{") == plain.count("}"), latex
        assert len(re.findall(r"\\left\b", latex)) == len(re.findall(r"\\right\b", latex)), latex
        assert "$" not in latex
    for words in [line.reason for line in one.lines] + [w.mistake for w in one.wrong]:
        assert words and words.count("$") % 2 == 0, words


def test_a_mutated_line_is_caught(monkeypatch):
    """The library's ticks hang on the code they name: with J's sign of the KL turned, the first line fails."""

    def paid_for_drift(log_policy, log_ref, reward, beta):
        return (log_policy.exp() * (reward + beta * (log_policy - log_ref))).sum(-1)

    monkeypatch.setattr(optimal_policy.exact, "objective", paid_for_drift)
    assert optimal_policy.objective_to_optimum.check(5).ticked[0] is False


def test_every_derivation_written_in_the_room_is_found():
    """Read from the files, not from what was imported; the lecture's blocks come first, in its order."""
    room = Path(derivations.__file__).parent
    keys = []
    for path in set(room.glob("*.py")) - {room / "tool.py"}:  # whose docstring's example is no derivation
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Derivation":
                keys.append(node.args[0].value if node.args else node.keywords[0].value.value)
    assert sorted(keys) == sorted(LIBRARY) and len(set(keys)) == len(keys)
    order = list(LIBRARY)
    assert order.index("bradley-terry") < order.index("objective-to-optimum") < order.index("filter-limit")


def test_the_derivations_that_the_course_names_are_there():
    """One by one, as the plan of the course lists them."""
    assert {
        "bradley-terry", "reward-up-to-f", "objective-to-optimum", "gibbs", "reward-from-optimum", "z-cancels",
        "z-variance", "dpo-is-likelihood", "dpo-gradient", "chosen-may-fall", "kl-values", "kl-gradient-k1",
        "kl-gradient-k2", "kl-gradient-k3", "soft-value-recursion", "acceptance", "accepted-are-exact",
        "gumbel-top-k", "best-of-n", "filter-limit", "rising-thresholds", "raft", "label-price", "ipo", "cdpo",
        "robust-is-unbiased",
    } <= set(LIBRARY)  # fmt: skip


@pytest.mark.parametrize("key", LIBRARY)
def test_the_code_that_is_shown_computes_what_the_line_computes(key):
    """The text is compiled again with the names of the module, and compared on a random world."""
    one = LIBRARY[key]
    world = one.world(seeded(5))
    for side in [f for line in one.lines for f in (line.left_value, line.value) if f is not None]:
        text = source_of(side)
        if side.__name__ == "<lambda>":
            names = {**side.__globals__, **inspect.getclosurevars(side).nonlocals}
            again = eval(f"({text}\n)", names)
        else:
            space = dict(side.__globals__)
            exec(text, space)
            again = space[side.__name__]
        assert torch.equal(torch.as_tensor(side(world)), torch.as_tensor(again(world))), text
