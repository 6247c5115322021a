"""Bugs in `policies`."""

from mutations.mutation import Mutation, in_file

MUTATIONS: list[Mutation] = [
    *in_file(
        "policies/base.py",
        ["policies/test_tabular.py", "policies/test_language_model.py"],
        Mutation(
            "mean",
            "log π(y|x): the mean over tokens, not the sum",
            "return self.token_log_probs(prompts, responses, temperature).sum(-1)",
            "return self.token_log_probs(prompts, responses, temperature).mean(-1)",
        ),
    ),
    *in_file(
        "policies/tabular.py",
        ["policies/test_tabular.py"],
        Mutation(
            "sign",
            "logits times the temperature",
            "entries = (table / scale).log_softmax(-1)",
            "entries = (table * scale).log_softmax(-1)",
        ),
        Mutation(
            "mask",
            "tokens after the end count",
            "out.append(torch.where(responses.mask[..., t], entries, 0.0))",
            "out.append(entries)",
        ),
        Mutation(
            "mask",
            "the end token does not end a sample",
            "going = going & (token < self.tree.branching)",
            "going = going & (token <= self.tree.branching)",
        ),
        Mutation(
            "mean",
            "a reward model's score: the mean over tokens",
            "return self.table(prompts, responses).sum(-1)",
            "return self.table(prompts, responses).mean(-1)",
        ),
        Mutation(
            "norm",
            "V(s) not weighted by the policy",
            "below = (table.detach().exp() * q).sum(-1)",
            "below = q.mean(-1)",
        ),
    ),
    *in_file(
        "policies/token_tree.py",
        ["policies/test_tree_transformer.py"],
        Mutation(
            "mask",
            "every token one position too late",
            "position_ids=seen[:, -1:] * self.depth,",
            "position_ids=seen[:, -1:] * (self.depth + 1),",
        ),
        Mutation(
            "sign",
            "logits times the temperature",
            "_logits(out.last_hidden_state[:, 0]) / self.temperature)",
            "_logits(out.last_hidden_state[:, 0]) * self.temperature)",
        ),
        Mutation(
            "swap",
            "a prefix reads the keys and values of another's parent",
            "torch.searchsorted(self.codes, distinct // branching)",
            "torch.searchsorted(self.codes, distinct // branching).flip(0)",
        ),
    ),
    *in_file(
        "policies/packing.py",
        ["policies/test_language_model.py"],
        Mutation(
            "mask",
            "labels shifted: a token predicted from the one after its predecessor",
            "(-1, rest.shape[1], 1), rest[..., :-1]], -1)",
            "(-1, rest.shape[1], 1), rest[..., 1:]], -1)",
        ),
        Mutation(
            "mask",
            "responses see their older sisters",
            "allowed = ((query == key) | (key == 0)) & past",
            "allowed = ((query >= key) | (key == 0)) & past",
        ),
        Mutation(
            "mask",
            "no causal mask within a response",
            "allowed = ((query == key) | (key == 0)) & past",
            "allowed = (query == key) | (key == 0)",
        ),
        Mutation(
            "mask",
            "positions counted from the padded prompt's width",
            "step = step + prompts.lengths[:, None, None]",
            "step = step + prompts.shape[-1]",
        ),
    ),
    *in_file(
        "policies/ragged.py",
        ["policies/test_ragged.py", "policies/test_language_model.py"],
        Mutation(
            "mask",
            "a response's last token is computed too, though nothing follows it",
            "pad(responses.mask[..., 1:], (0, 1)))",
            "responses.mask)",
        ),
        Mutation(
            "mask",
            "responses see their older sisters",
            "seen = ((q == k) | (k == 0)).tril(",
            "seen = ((q >= k) | (k == 0)).tril(",
        ),
        Mutation(
            "mask",
            "no causal mask within a row",
            "seen = ((q == k) | (k == 0)).tril(k.shape[1] - q.shape[0])",
            "seen = (q == k) | (k == 0)",
        ),
        Mutation(
            "mask",
            "a response's positions start at 0 again",
            "position[:, prompts.shape[-1] :] += prompts.lengths[:, None]",
            "position[:, prompts.shape[-1] :] += 0",
        ),
        Mutation(
            "norm",
            "attention without the model's own scale",
            "attn_mask=mask, is_causal=mask is None, scale=scale",
            "attn_mask=mask, is_causal=mask is None, scale=1.0",
        ),
    ),
    *in_file(
        "policies/head.py",
        ["policies/test_head.py", "policies/test_language_model.py"],
        Mutation("norm", "log π without the log-sum-exp", "return picked - log_total[rows, 0]", "return picked"),
        Mutation(
            "swap",
            "the gradient in the states turned round",
            "gradient = kept * -mass[:, None]",
            "gradient = kept * mass[:, None]",
        ),
        Mutation(
            "beta",
            "the gradient forgets the temperature",
            "upstream = (upstream * ctx.scale).to(log_total.dtype)",
            "upstream = upstream.to(log_total.dtype)",
        ),
    ),
    *in_file(
        "policies/decode.py",
        ["policies/test_decode.py", "policies/test_language_model.py"],
        Mutation(
            "mask",
            "padding of shorter prompts is looked at",
            "self._barred = None if bool(prompts.mask.all()) else ~prompts.mask",
            "self._barred = None",
        ),
        Mutation(
            "mask",
            "the end token left out of a sample's mask",
            "drawn.where(alive, 0), alive\n",
            "drawn.where(alive, 0), alive & (drawn != (-1 if end_token is None else end_token))\n",
        ),
        Mutation(
            "mask",
            "each new token's keys and values written over the first one's",
            "whole[:, :, :, self.step] = self._in_grid(new)",
            "whole[:, :, :, 0] = self._in_grid(new)",
        ),
        Mutation(
            "mask",
            "positions of new tokens stand still",
            "drawn.flatten(), position.flatten() + step",
            "drawn.flatten(), position.flatten()",
        ),
    ),
    *in_file(
        "policies/graphs.py",
        ["policies/test_graphs.py"],
        Mutation(
            "mask",
            "a token that is yet to come is seen",
            "self._places > self.at",
            "self._places > self.at + 1",
        ),
        Mutation(
            "mask",
            "a replayed step goes on with the second token for ever",
            "self.cache.at.fill_(step)",
            "self.cache.at.fill_(min(step, 1))",
        ),
        Mutation(
            "swap",
            "a replayed step reads the position of the step that was recorded",
            "self._positions.copy_(positions[None])",
            "self._positions.copy_(positions[None] if self._recording is None else self._positions)",
        ),
    ),
    *in_file(
        "policies/flex.py",
        ["policies/test_flex.py", "policies/test_ragged.py"],
        Mutation(
            "mask",
            "blocks of the prompt are not seen",
            "earlier & (prompt | (k_last_run == q_run))",
            "earlier & (k_last_run == q_run)",
        ),
        Mutation(
            "mask",
            "a block that sticks out of the row is seen whole",
            "earlier & one_text & all_seen & filled",
            "earlier & one_text & all_seen",
        ),
        Mutation(
            "mask",
            "responses see each other",
            "own = (there_segment[k] == 0) | (there_segment[q] == there_segment[k])",
            "own = there_segment[k] >= 0",
        ),
    ),
    *in_file(
        "policies/drawing.py",
        ["policies/test_drawing.py", "policies/test_decode.py"],
        Mutation(
            "sign",
            "samples at the inverse temperature",
            "chances.div_(temperature)",
            "chances.mul_(temperature)",
        ),
        Mutation(
            "sign",
            "sampling from the distribution turned round",
            "return (cdf <= target.unsqueeze(-1)).sum(-1)",
            "return (cdf > target.unsqueeze(-1)).sum(-1)",
        ),
        Mutation(
            "swap",
            "top-k keeps the least likely",
            "logits.masked_fill(logits < least, -torch.inf)",
            "logits.masked_fill(logits > least, -torch.inf)",
        ),
    ),
]
