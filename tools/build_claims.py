"""Write docs/claims.md from the saved results. With `--check`, only compare the page with them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlhf_lab.experiments import claims_page

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Write the page, or compare it, from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only")
    check = parser.parse_args().check
    place = ROOT / "docs" / "claims.md"
    text = claims_page.build(ROOT / "results", place)
    if not check:
        place.write_text(text, encoding="utf-8")
    elif not place.is_file() or place.read_text(encoding="utf-8") != text:
        sys.exit("docs/claims.md does not match the saved results. Run `make claims`.")


if __name__ == "__main__":
    main()
