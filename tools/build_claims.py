"""Write docs/claims.md from the kept results. `--check` writes nothing and fails where the page is not theirs."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlhf_lab.experiments import claims_page

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Read the command line and write or compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    place = ROOT / "docs" / "claims.md"
    text = claims_page.build(ROOT / "results", place)
    if not check:
        place.write_text(text, encoding="utf-8")
    elif not place.is_file() or place.read_text(encoding="utf-8") != text:
        sys.exit("docs/claims.md is not what the kept results say: run `make claims`.")


if __name__ == "__main__":
    main()
