"""Experiments on the lecture's empirical claims: set-ups, runner, saved results and reports."""
