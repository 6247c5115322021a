"""Claim 13: why DPO lowers the probability of chosen responses, and which losses prevent it."""
