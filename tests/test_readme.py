"""README's code runs as printed, and what it points to is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """README's fenced blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def test_the_python_of_readme_prints_what_its_comments_say(capsys: pytest.CaptureFixture[str]) -> None:
    """The blocks run in one namespace, top to bottom; a `# →` comment after a print is what must appear."""
    names: dict[str, object] = {"__name__": "readme"}
    promised = []
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
        promised += [said.strip() for said in re.findall(r"# →(.*)$", block, re.M)]
    assert promised, "README shows no python with a result"
    assert capsys.readouterr().out.splitlines() == promised


def test_files_that_readme_links_to_exist() -> None:
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in link]
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_the_windows_steps_install_what_make_installs() -> None:
    """Same constraints, same extras, same pytest arguments: the two ways must not drift apart."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    windows = "".join(blocks("powershell"))
    extras = re.search(r"--no-input -c constraints\.txt -e '\.(\[.*?\])'", makefile)
    assert extras is not None and f'-c constraints.txt -e ".{extras[1]}"' in windows
    for variable in ("TWO_CORES", "NOTEBOOKS"):
        flags = re.search(rf"^{variable} := (.+)$", makefile, re.M)
        assert flags is not None and flags[1] in windows
    assert '-m "not slow" $(TEST_FLAGS) notebooks tests' in makefile and '-m "not slow"' in windows
