"""Claim 12: which responses the pairs must cover for offline DPO, for DPO in rounds, and for RLHF with an exact KL."""
