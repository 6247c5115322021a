"""The commands of `rlhf-lab`, one module each. A module is imported when its command is run."""
