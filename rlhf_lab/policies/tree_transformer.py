"""A small transformer as a policy over a token tree, in which every shared prefix is computed once.

The responses of a tree share prefixes. For example, the 4,096 sequences of four tokens from a vocabulary of eight have
only 585 different prefixes. The model is evaluated depth by depth. Each distinct prefix of the batch is one row of one
forward pass, which reads the keys and values of the prefix without its last token from the cache. A batch of twenty
thousand pairs therefore costs no more than the whole tree, and `enumerate` computes log π(y|x) of every response. The
numbers are the same as those of `LanguageModelPolicy`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_positive, count_of
from rlhf_lab.exact import path_sums
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of, dropout_off
from rlhf_lab.policies.transformer.token_sampling import check_top_k, keep_top_k, sample_index
from rlhf_lab.response_tree import ResponseTree

Architecture = Literal["gpt2", "gpt_neox"]


class TreeTransformerPolicy(LanguageModelPolicy):
    """A model of the GPT-2 or GPT-NeoX architecture over the ids of a token tree, with one more id for each prompt."""

    def __init__(
        self,
        tree: ResponseTree,
        num_prompts: int,
        architecture: Architecture = "gpt2",
        layers: int = 2,
        width: int = 64,
        heads: int = 2,
        seed: int = 0,
    ) -> None:
        """Create a randomly initialised model.

        Args:
            tree: the response set.
            num_prompts: X. Prompt x is the single id V + x.
            architecture: "gpt2" or "gpt_neox" (Pythia's).
            layers: number of transformer blocks.
            width: hidden size, a multiple of `heads`.
            heads: number of attention heads.
            seed: of the initial weights.

        Raises:
            LabError: an unknown architecture.
        """
        model = _new_model(architecture, tree, num_prompts, layers, width, heads, seed)
        super().__init__(model, tree.end_token, tree.depth, vocab_size=tree.vocab_size)
        self.tree = tree

    def _rows(self, prompts: Tokens) -> Tensor:
        """The index of each prompt, (B, 1)."""
        rows = self.tree.prompt_index(prompts.to(self.device)).unsqueeze(-1)
        known = self.model.config.vocab_size - self.tree.vocab_size
        if len(rows) and int(rows.max()) >= known:
            raise LabError(f"Prompt {int(rows.max())} is unknown to the model, which has {count_of(known, 'prompt')}.")
        return rows

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """Compute log π(y_t | x, y_<t), each distinct prefix of the batch once; see `Policy.token_log_probs`."""
        check_positive(temperature, "temperature")
        prompts, responses = prompts.to(self.device), responses.to(self.device)
        self.tree.check(responses)
        rows = self._rows(prompts)
        nodes, out = self.tree.nodes(responses), []
        with dropout_off(self.model):
            walker = _PrefixWalker(self, temperature)
            for t in range(min(responses.shape[-1], self.tree.depth)):
                here = responses.mask[..., t]
                codes = (rows * self.tree.branching**t + nodes[..., t])[here]
                table, place = walker.step(codes)
                values = table[place, responses.ids[..., t][here]]
                out.append(values.new_zeros(here.shape).masked_scatter(here, values))
        out += [torch.zeros_like(out[0])] * (responses.shape[-1] - len(out))
        return torch.stack(out, -1)

    def log_tables(self, prompts: Tokens) -> list[Tensor]:
        """Log π(a|s) of every prefix for these prompts (B, 1), one table per depth, (B, c^t, V)."""
        rows = self._rows(prompts)
        tables = []
        with dropout_off(self.model):
            walker = _PrefixWalker(self, 1.0)
            for nodes, tokens in self.tree.shapes:
                codes = rows * nodes + torch.arange(nodes, device=self.device)
                table, place = walker.step(codes.flatten())
                tables.append(table[place].view(len(prompts), nodes, tokens))
        return tables

    def enumerate(self, prompts: Tokens) -> tuple[Tokens, Tensor]:
        """All responses, (B, K, L), and their log-probabilities, (B, K), for prompts (B, 1)."""
        log_p = path_sums(self.log_tables(prompts))
        every = self.tree.responses.to(self.device)
        lead = (len(prompts), *every.shape)
        return Tokens(every.ids.expand(lead), every.mask.expand(lead)), log_p

    @torch.no_grad()
    def sample(
        self,
        prompts: Tokens,
        num_samples: int,
        generator: torch.Generator | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
    ) -> Tokens:
        """Sample responses; those with a common prefix share its computation. See `Policy.sample`."""
        check_positive(temperature, "temperature")
        check_top_k(top_k)
        if num_samples < 1:
            raise LabError(f"num_samples must be at least 1, not {num_samples}.")
        rows = self._rows(prompts)
        node = torch.zeros(len(prompts), num_samples, dtype=torch.long, device=self.device)
        going = torch.ones_like(node, dtype=torch.bool)
        ids, mask = [], []
        with dropout_off(self.model):
            walker = _PrefixWalker(self, temperature)
            for t in range(self.tree.depth):
                if not going.any():
                    break
                table, place = walker.step((rows * self.tree.branching**t + node)[going])
                drawn = sample_index(keep_top_k(table, top_k).exp()[place], generator)
                token = torch.zeros_like(node).masked_scatter(going, drawn)
                ids.append(token)
                mask.append(going)
                going = going & (token < self.tree.branching)
                node = torch.where(going, node * self.tree.branching + token, 0)
        return Tokens(torch.stack(ids, -1), torch.stack(mask, -1)).to(prompts.device)


class _PrefixWalker:
    """Evaluates the model depth by depth. A prefix has the code x·c^t + node, and its parent the code divided by c."""

    def __init__(self, policy: TreeTransformerPolicy, temperature: float) -> None:
        self.policy, self.temperature = policy, temperature
        self.codes: Tensor | None = None
        self.cache: Any = None
        self.depth = 0

    def step(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Log π(·|prefix) of the distinct prefixes among `codes` (N,), and each code's row among these."""
        policy, branching = self.policy, self.policy.tree.branching
        distinct, place = codes.unique(return_inverse=True)
        if self.codes is None:
            tokens = distinct + policy.tree.vocab_size
        else:
            self.cache.reorder_cache(torch.searchsorted(self.codes, distinct // branching))
            tokens = distinct % branching
        seen = torch.ones(len(distinct), self.depth + 1, dtype=torch.long, device=codes.device)
        out = body_of(policy.model)(
            tokens.unsqueeze(-1),
            attention_mask=seen,
            position_ids=seen[:, -1:] * self.depth,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.codes, self.cache, self.depth = distinct, out.past_key_values, self.depth + 1
        return (policy._logits(out.last_hidden_state[:, 0]) / self.temperature).log_softmax(-1), place


def _new_model(
    architecture: str, tree: ResponseTree, num_prompts: int, layers: int, width: int, heads: int, seed: int
) -> Any:
    # transformers is imported late, because importing it is slow and tabular policies do not need it.
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    ids, positions = tree.vocab_size + num_prompts, tree.depth + 2
    # transformers initialises from the global generators, whose states are restored afterwards.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        if architecture == "gpt2":
            gpt2 = GPT2Config(
                vocab_size=ids, n_positions=positions, n_embd=width, n_layer=layers, n_head=heads,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
            )  # fmt: skip
            return GPT2LMHeadModel(gpt2)
        if architecture == "gpt_neox":
            neox = GPTNeoXConfig(
                vocab_size=ids, max_position_embeddings=positions, hidden_size=width, num_hidden_layers=layers,
                num_attention_heads=heads, intermediate_size=4 * width, bos_token_id=None, eos_token_id=None,
            )  # fmt: skip
            return GPTNeoXForCausalLM(neox)
    raise LabError(f"architecture must be 'gpt2' or 'gpt_neox', not {architecture!r}.")
