"""From best-of-n to π*: soft best-of-n and RSO as one family of exact distributions."""
