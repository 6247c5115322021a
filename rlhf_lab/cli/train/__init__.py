"""`rlhf-lab train METHOD`: each algorithm of `rlhf_lab.algorithms` on a language model, one module per method."""
