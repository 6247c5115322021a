"""Random streams have names: no call of `seeded` in the package passes a bare number."""

import ast
from pathlib import Path

import rlhf_lab
from rlhf_lab.randomness import Stream


def test_every_stream_is_named_and_every_name_is_used():
    used = set()
    for path in sorted(Path(rlhf_lab.__file__).parent.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for call in ast.walk(ast.parse(text)):
            if isinstance(call, ast.Attribute) and isinstance(call.value, ast.Name) and call.value.id == "Stream":
                used.add(call.attr)
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "seeded"):
                continue
            for argument in call.args[1:2]:
                bare = isinstance(argument, ast.Constant) and isinstance(argument.value, int)
                assert not bare, f"{path}:{call.lineno} passes a bare number: name it in rlhf_lab.randomness.Stream"
    names = {name for name in vars(Stream) if name.isupper()}
    assert names <= used, f"unused: {names - used}"
