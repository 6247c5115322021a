"""The solution in a notebook and the one in the file of its exercises are two texts: either passes as an answer."""

import ast
from pathlib import Path

import nbformat
import pytest

from rlhf_lab.exercises import check, notebooks, of_notebook

STORED = {f"nb{path.stem[:2]}": path for path in sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))}


def parts_of(path: Path) -> tuple[list[ast.stmt], dict[str, list[ast.stmt]]]:
    """A notebook's imports, and by function the statements of the cell that defines it, without its calls."""
    imports: list[ast.stmt] = []
    functions: dict[str, list[ast.stmt]] = {}
    code = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    for source in code:
        source = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
        body = ast.parse(source).body
        imports += [one for one in body if isinstance(one, ast.Import | ast.ImportFrom)]
        for one in body:
            if isinstance(one, ast.FunctionDef):
                functions[one.name] = [two for two in body if isinstance(two, ast.FunctionDef | ast.Assign)]
    return imports, functions


@pytest.mark.parametrize("number", notebooks())
def test_the_notebook_s_solution_passes_as_an_answer(number):
    """Run with the notebook's imports alone: a solution needs nothing else. Another number, sign or axis in either of
    the two fails."""
    imports, functions = parts_of(STORED[number])
    space: dict = {}
    exec(compile(ast.Module(imports, []), str(STORED[number]), "exec"), space)
    for one in of_notebook(number):
        if one.kind in ("predict", "debug") or one.name not in functions:
            continue  # a loop to debug is broken in the notebook, and test_exercises.py demands that nothing is missing
        own = dict(space)
        exec(compile(ast.Module(functions[one.name], []), str(STORED[number]), "exec"), own)
        feedback = check(one.key, own[one.name])
        assert feedback.passed, feedback
