"""Rewards and critics, `(prompts, responses) → (B, G)` or `(B, G, T)`, that read texts or token ids.

- `language_model`: a reward model and a critic, each a linear head on a language model's body.
- `implicit`: the implicit reward of a policy and its reference.
- `ranker`: the pairwise ranker of RSO, and the reward that is made from it.
- `text`: a reward computed by any function of strings.
- `saving`: folders of models with a head.
"""
