"""The forward pass and the sampling of transformer language models, with every prompt computed once for its responses.

- `shared_prefix_forward`: the hidden states from which response tokens are predicted.
- `varlen_attention`: attention over a batch in one row without padding.
- `flex_attention`: the same as a block-sparse GPU kernel (experimental).
- `token_logprobs`: log-probabilities of selected tokens from hidden states, with little memory.
- `generate`: sampling of many responses per prompt, which share the prompt's keys and values.
- `cuda_graph`: sampling steps as CUDA graphs (experimental).
- `token_sampling`: temperature, top-k and the sampling of one token.
- `malloc`: a setting of glibc that makes sampling on a CPU faster.
"""
