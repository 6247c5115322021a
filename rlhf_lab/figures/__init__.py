"""Matplotlib figures and their common style."""
