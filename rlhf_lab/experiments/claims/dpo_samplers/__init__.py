"""Which pairs let DPO converge fastest: uniform ones, those of a policy, or a mixture."""
