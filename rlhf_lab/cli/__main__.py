"""Run `rlhf-lab` as `python -m rlhf_lab.cli`, for launchers that start a module."""

import sys

from rlhf_lab.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
