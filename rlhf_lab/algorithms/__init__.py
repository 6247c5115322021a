"""Training methods: one module for each method of the lecture, the same code at every scale."""
