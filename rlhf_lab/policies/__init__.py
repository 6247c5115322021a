"""Policies π_θ(y|x) under the (B, G) rule, and what loading, saving and sampling from them needs.

- `base`: the interfaces `Policy` and `Reward`.
- `tabular`: policies, rewards and critics that are tables over a finite set of responses.
- `tree_transformer`: a small transformer over a token tree.
- `language_model`: any causal language model of Hugging Face transformers.
- `lora`: low-rank adapters, and the reference policy without them.
- `vllm`: sampling with vLLM (experimental).
- `transformer`: the forward pass and the sampling of language models.
- `loading`, `hub_lookup`, `gguf_files`: models from a folder, the Hub or a GGUF file.
- `end_tokens`: the tokens that end a response.
- `reference_cache`: the reference policy's log-probabilities on disk.
"""
