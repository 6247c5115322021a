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


def places_of_streams(tree: ast.Module) -> dict[str, int]:
    """The place of the argument `stream` in the calls of each function of a module that has one, without `self`."""
    places = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            names = [one.arg for one in node.args.args if one.arg != "self"]
            if "stream" in names:
                places[node.name] = names.index("stream")
    return places


def test_every_stream_is_named_and_every_name_is_used():
    used = set()
    shared = places_of_streams(TREES[PACKAGE / "experiments" / "setup.py"])
    assert {"training", "fit_reward_model"} <= set(shared)
    for path, tree in TREES.items():
        places = {"seeded": 1}
        if "experiments" in path.parts:
            places |= shared | places_of_streams(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream":
                used.add(node.attr)
            if not isinstance(node, ast.Call):
                continue
            given = [one.value for one in node.keywords if one.arg == "stream"]
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            given += node.args[places[name] : places[name] + 1] if name in places else []
            for argument in given:
                assert not numbers(argument), f"{path}:{node.lineno} passes a bare number: name it in `Stream`"
    names = {name for name in vars(Stream) if name.isupper()}
    assert names <= used, f"unused: {names - used}"
