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


def places_of_streams() -> dict[str, int]:
    """The place of the argument `stream` in the calls of each function of an experiment, without `self`."""
    places = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and "experiments" in path.parts and "non_static" not in path.parts:
                names = [one.arg for one in node.args.args if one.arg != "self"]
                if "stream" in names:
                    places[node.name] = names.index("stream")
    return places


def test_every_stream_is_named_and_every_name_is_used():
    used, places = set(), places_of_streams()
    assert {"training", "fit_reward_model", "random_pairs"} <= set(places)
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream":
                used.add(node.attr)
            if not isinstance(node, ast.Call):
                continue
            given = [one.value for one in node.keywords if one.arg == "stream"]
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            place = (
                1
                if name == "seeded"
                else places.get(name)
                if "experiments" in path.parts and "non_static" not in path.parts
                else None
            )
            given += [] if place is None else node.args[place : place + 1]
            for argument in given:
                assert not numbers(argument), f"{path}:{node.lineno} passes a bare number: name it in `Stream`"
    names = {name for name in vars(Stream) if name.isupper()}
    assert names <= used, f"unused: {names - used}"
