"""Interactive explorers: each is a pure compute function, controls and one figure."""
