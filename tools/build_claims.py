"""Write docs/claims.md and its forest plot from the saved results. With `--check`, only compare them."""

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
    if not check:
        claims_page.write(ROOT / "results", place)
    elif not claims_page.is_current(ROOT / "results", place):
        sys.exit("docs/claims.md or its forest plot does not match the saved results. Run `make claims`.")


if __name__ == "__main__":
    main()
