"""Random streams have names: no call in the package or the slides passes a bare number as a stream."""

import ast
from pathlib import Path

import rlhf_lab
from rlhf_lab.randomness import Stream

PACKAGE = Path(rlhf_lab.__file__).parent
TREES = {
    path: ast.parse(path.read_text(encoding="utf-8"))
    for folder in (PACKAGE, PACKAGE.parent / "slides")
    for path in sorted(folder.rglob("*.py"))
}


def numbers(argument: ast.expr) -> list[int]:
    """The whole numbers in an argument that is made of numbers and variables, and not of a named stream."""
    parts = list(ast.walk(argument))
    if any(isinstance(part, ast.Attribute) for part in parts):
        return []
    return [part.value for part in parts if isinstance(part, ast.Constant) and isinstance(part.value, int)]


def test_every_stream_is_named_and_every_name_is_used():
    used = set()
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream":
                used.add(node.attr)
            if not isinstance(node, ast.Call):
                continue
            given = [one.value for one in node.keywords if one.arg == "stream"]
            given += node.args[1:2] if isinstance(node.func, ast.Name) and node.func.id == "seeded" else []
            for argument in given:
                assert not numbers(argument), f"{path}:{node.lineno} passes a bare number: name it in `Stream`"
    names = {name for name in vars(Stream) if name.isupper()}
    assert names <= used, f"unused: {names - used}"
