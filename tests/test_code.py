"""What a reader can rely on in every file: short functions, short algorithms, and one class of each name."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("rlhf_lab", "slides", "tools", "benchmarks")
TREES = {
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for folder in FOLDERS
    for path in sorted((ROOT / folder).rglob("*.py"))
}


def test_no_function_has_more_than_80_lines():
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                assert lines <= 80, f"{path}: {node.name} has {lines} lines"


def test_an_algorithm_is_a_file_of_at_most_220_lines_and_most_have_fewer_than_150():
    lines = {
        path.name: len(path.read_text(encoding="utf-8").splitlines())
        for path in (ROOT / "rlhf_lab").glob("algorithms/[a-z]*.py")
    }
    assert {name: number for name, number in lines.items() if number > 220} == {}
    assert sum(number < 150 for number in lines.values()) > len(lines) / 2


def names_in(tree: ast.Module) -> list[str]:
    """The public classes and type aliases of a module."""
    names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            # `Values = Sequence[float] | Tensor`, but neither `T = TypeVar("T")` nor a constant.
            names += [name] * (name[0].isupper() and not name.isupper() and not isinstance(node.value, ast.Call))
    return [name for name in names if not name.startswith("_")]


@pytest.mark.parametrize("folder", ["rlhf_lab", "slides"])
def test_no_two_modules_have_a_class_or_a_type_of_the_same_name(folder):
    places = defaultdict(list)
    for path, tree in TREES.items():
        if path.parts[0] == folder:
            for name in names_in(tree):
                places[name].append(str(path))
    assert {name: paths for name, paths in places.items() if len(paths) > 1} == {}
