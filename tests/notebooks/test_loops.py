"""The table of loops from scratch in CONTRIBUTING.md: each loop exists, has as many lines, and is asserted equal."""

import ast
import importlib
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
# The method, its notebook, the cell with the loop, the cell with the assertion, and what the loop is equal to.
LOOPS = [
    ("SFT", "01", "sft-scratch", "sft-library", "algorithms.sft.sft"),
    ("reward model", "01", "rm-scratch", "rm-scratch", "algorithms.reward_model.reward_model"),
    ("REINFORCE with a KL penalty", "01", "reinforce", "reinforce-library", "algorithms.ppo.ppo"),
    ("PPO with its critic", "01", "ppo-scratch", "ppo-library", "algorithms.ppo.ppo"),
    ("gradient ascent on J", "03", "ascent", "ascent", "exact.optimal_policy"),
    ("DPO", "05", "05-scratch-loop", "05-library", "algorithms.dpo.dpo"),
    ("DPO without autograd", "06", "06-loop", "06-library", "algorithms.dpo.pair_loss"),
    ("rejection sampling, Algorithm 1", "07", "printed", "printed", "sampling.algorithm_1"),
    ("RSO's sampler", "08", "loop-sampler", "loop-sampler", "sampling.algorithm_1"),
    ("RSO's fit", "08", "loop-fit", "loop-fit", "algorithms.rso.rso"),
    ("ReST", "09", "loop", "loop", "algorithms.rest.rest"),
    ("RAFT", "09", "raft-loop", "raft-loop", "algorithms.raft.raft"),
    ("RLOO", "15", "rloo-loop", "rloo-loop", "algorithms.grpo_rloo.group"),
    ("GRPO and Dr. GRPO", "15", "grpo-loop", "grpo-loop", "algorithms.grpo_rloo.group"),
    ("RLOO and Dr. GRPO on the tree", "15", "tree-loop", "tree-loop", "algorithms.grpo_rloo.group"),
]


def code_of(number: str) -> tuple[str, dict[str, str]]:
    """The name of a notebook and its code by the id of the cell."""
    [path] = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = nbformat.read(path, as_version=4).cells
    return path.name, {cell.id: cell.source for cell in cells if cell.cell_type == "code"}


def lines(source: str) -> int:
    """The length of the longest loop, or function with a loop, without blank lines and comments."""
    rows = source.split("\n")
    parts = [one for one in ast.parse(source).body if isinstance(one, ast.For | ast.While | ast.FunctionDef)]
    loops = [one for one in parts if any(isinstance(node, ast.For | ast.While) for node in ast.walk(one))]
    return max(sum(bool(re.match(r"\s*[^\s#]", row)) for row in rows[one.lineno - 1 : one.end_lineno]) for one in loops)


def test_the_table_lists_the_loops_with_their_lines() -> None:
    rows = ["| method | notebook and cell | lines | asserted equal to |", "|---|---|---|---|"]
    for method, number, cell, _, equal in LOOPS:
        name, code = code_of(number)
        rows.append(f"| {method} | [{name[:-6]}](notebooks/{name}), `{cell}` | {lines(code[cell])} | `{equal}` |")
    table = "\n".join(rows)
    assert table in (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), f"CONTRIBUTING.md should contain\n{table}"


@pytest.mark.parametrize(("number", "cell", "equal"), [one[1:2] + one[3:] for one in LOOPS])
def test_a_loop_is_asserted_equal_to_what_the_table_names(number: str, cell: str, equal: str) -> None:
    _, code = code_of(number)
    module, name = equal.rsplit(".", 1)
    assert callable(getattr(importlib.import_module(f"rlhf_lab.{module}"), name))
    called = re.compile(rf"\b{name}\(")
    # The call may be in a function that the asserting cell calls.
    helpers = re.findall(r"^def (\w+)", "\n".join(text for text in code.values() if called.search(text)), re.M)
    assert "torch.testing.assert_close(" in code[cell]
    assert called.search(code[cell]) or any(f"{helper}(" in code[cell] for helper in helpers)


def test_every_training_loop_that_is_compared_with_the_library_is_listed() -> None:
    """A cell with an assertion and a gradient step, except an exercise, is in the table."""
    listed = {(number, cell) for _, number, loop, asserting, _ in LOOPS for cell in (loop, asserting)}
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        number = path.name[:2]
        for cell, source in code_of(number)[1].items():
            if "assert_close(" in source and ".backward()" in source:
                assert (number, cell) in listed, f"{path.name}, cell {cell}"
