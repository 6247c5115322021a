"""A real small transformer as the policy over a token tree, with every shared prefix computed once.

Responses of a tree share prefixes: 4,096 sequences of four tokens over eight have 585 prefixes between them. The
model walks the tree depth by depth; each distinct prefix of the batch is one token of one forward pass, and takes
its past from its parent's keys and values. Twenty thousand sampled pairs then cost no more than the whole tree,
and enumeration is exact log π(y|x) for every response. The numbers are those of `LanguageModelPolicy`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_positive
from rlhf_lab.exact import path_sums
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of, dropout_off
from rlhf_lab.policies.transformer.token_sampling import check_top_k, keep_top_k, sample_index
from rlhf_lab.response_tree import ResponseTree

Architecture = Literal["gpt2", "gpt_neox"]


class TreeTransformerPolicy(LanguageModelPolicy):
    """A GPT-2- or GPT-NeoX-architecture model over the ids of a token tree (and one id for each prompt)."""

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
        """A randomly initialised model.

        Args:
            tree: the response set.
            num_prompts: X; prompt x is the single id V + x.
            architecture: "gpt2" or "gpt_neox" (Pythia's).
            layers: transformer blocks.
            width: hidden size, a multiple of `heads`.
            heads: attention heads.
            seed: of the initial weights.

        Raises:
            LabError: an unknown architecture.
        """
        model = _new_model(architecture, tree, num_prompts, layers, width, heads, seed)
        super().__init__(model, tree.end_token, tree.depth, vocab_size=tree.vocab_size)
        self.tree = tree

    def _rows(self, prompts: Tokens) -> Tensor:
        """The number of each prompt, (B, 1)."""
        rows = self.tree.prompt_index(prompts.to(self.device)).unsqueeze(-1)
        known = self.model.config.vocab_size - self.tree.vocab_size
        if len(rows) and int(rows.max()) >= known:
            raise LabError(f"Prompt {int(rows.max())} is unknown to a model of {known} prompts.")
        return rows

    def token_log_probs(self, prompts: Tokens, responses: Tokens, temperature: float = 1.0) -> Tensor:
        """See `Policy.token_log_probs`; each distinct prefix in the batch is computed once."""
        check_positive(temperature, "temperature")
        prompts, responses = prompts.to(self.device), responses.to(self.device)
        self.tree.check(responses)
        rows = self._rows(prompts)
        nodes, out = self.tree.nodes(responses), []
        with dropout_off(self.model):
            walk = _Walk(self, temperature)
            for t in range(min(responses.shape[-1], self.tree.depth)):
                here = responses.mask[..., t]
                codes = (rows * self.tree.branching**t + nodes[..., t])[here]
                table, place = walk.step(codes)
                values = table[place, responses.ids[..., t][here]]
                out.append(values.new_zeros(here.shape).masked_scatter(here, values))
        out += [torch.zeros_like(out[0])] * (responses.shape[-1] - len(out))
        return torch.stack(out, -1)

    def log_tables(self, prompts: Tokens) -> list[Tensor]:
        """log π(a|s) of every prefix for these prompts, one table a depth, (B, c^t, V)."""
        rows = self._rows(prompts)
        tables = []
        with dropout_off(self.model):
            walk = _Walk(self, 1.0)
            for nodes, tokens in self.tree.shapes:
                codes = rows * nodes + torch.arange(nodes, device=self.device)
                table, place = walk.step(codes.flatten())
                tables.append(table[place].view(len(prompts), nodes, tokens))
        return tables

    def enumerate(self, prompts: Tokens) -> tuple[Tokens, Tensor]:
        """Every response, (B, K, L), and its log-probability, (B, K)."""
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
        """See `Policy.sample`; samples that have drawn the same prefix so far share its computation."""
        check_positive(temperature, "temperature")
        check_top_k(top_k)
        if num_samples < 1:
            raise LabError(f"num_samples must be at least 1, not {num_samples}.")
        rows = self._rows(prompts)
        node = torch.zeros(len(prompts), num_samples, dtype=torch.long, device=self.device)
        going = torch.ones_like(node, dtype=torch.bool)
        ids, mask = [], []
        with dropout_off(self.model):
            walk = _Walk(self, temperature)
            for t in range(self.tree.depth):
                if not going.any():
                    break
                table, place = walk.step((rows * self.tree.branching**t + node)[going])
                drawn = sample_index(keep_top_k(table, top_k).exp()[place], generator)
                token = torch.zeros_like(node).masked_scatter(going, drawn)
                ids.append(token)
                mask.append(going)
                going = going & (token < self.tree.branching)
                node = torch.where(going, node * self.tree.branching + token, 0)
        return Tokens(torch.stack(ids, -1), torch.stack(mask, -1)).to(prompts.device)


class _Walk:
    """Down the tree, one depth a step. A prefix's code is x·c^t + node; its parent's is the code over c."""

    def __init__(self, policy: TreeTransformerPolicy, temperature: float) -> None:
        self.policy, self.temperature = policy, temperature
        self.codes: Tensor | None = None
        self.cache: Any = None
        self.depth = 0

    def step(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """log π(·|prefix) of the distinct prefixes among `codes` (N,), and the row of each code in it."""
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
    # transformers is heavy; a world of tables never loads it.
    from transformers import GPT2Config, GPT2LMHeadModel, GPTNeoXConfig, GPTNeoXForCausalLM

    ids, positions = tree.vocab_size + num_prompts, tree.depth + 2
    # transformers initialises from the global generators, which are put back as they were.
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
