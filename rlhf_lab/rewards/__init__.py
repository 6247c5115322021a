"""Reward models and pairwise rankers."""
