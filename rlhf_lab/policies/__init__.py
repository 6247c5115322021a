"""Policies: tables of logits, a small transformer over token trees, and causal language models."""
