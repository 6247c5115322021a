"""RSO's Table 1: three losses with three sources of pairs, RAFT and ReST."""
