"""`rlhf-lab train METHOD`: each of `algorithms/`, unchanged, on a language model. One short file a method."""
