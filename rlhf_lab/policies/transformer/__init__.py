"""Forward passes, sampling and token log-probabilities of transformer language models."""
