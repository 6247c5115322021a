"""The bugs that `mutation_run.py` puts into the mathematics, one at a time: what a tired hand would really write.

Each is an exact piece of a file of `rlhf_lab/`, which must occur there once, and what stands in its place. Kinds:

    sign    a sign flipped            swap    two arguments or the two responses exchanged
    beta    β, γ, τ or n forgotten    mean    a mean for a sum, a sum for a mean, a factor lost
    mask    a mask dropped, or shifted by one place        norm    a normaliser or a weight forgotten

`tests` are the files that are asked first. `excuse` is for a mutation that no test can catch, because the mutated
code computes the same thing: why that is so.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One bug, in one place."""

    file: str
    """Below `rlhf_lab/`."""
    kind: str
    what: str
    """In words, for the report."""
    old: str
    new: str
    tests: tuple[str, ...]
    """Test files below `tests/` that are run first."""
    excuse: str = ""


def _in(file: str, *tests: str) -> list[Mutation]:
    """The mutations of one file, from the table below."""
    return [Mutation(file, kind, what, old, new, tests, EXCUSES.get(what, "")) for kind, what, old, new in TABLE[file]]


# By the mutation's words.
EXCUSES: dict[str, str] = {}

# Four columns: kind, what it is, the text as it stands, the text in its place.
TABLE: dict[str, list[tuple[str, str, str, str]]] = {
    "exact/policy.py": [
        (
            "sign",
            "π* shuns reward: π_ref exp(−r/β)",
            "tilted = log_ref + (reward - best) / beta",
            "tilted = log_ref - (reward - best) / beta",
        ),
        (
            "beta",
            "π* forgets β: π_ref exp(r)",
            "tilted = log_ref + (reward - best) / beta",
            "tilted = log_ref + (reward - best)",
        ),
        (
            "mask",
            "the shift m is taken over responses that the reference cannot give",
            "best = torch.where(log_ref > -torch.inf, reward, -torch.inf).detach().amax(-1, keepdim=True)\n"
            "    tilted = log_ref",
            "best = reward.detach().amax(-1, keepdim=True)\n    tilted = log_ref",
        ),
        (
            "beta",
            "log Z adds the shift back without dividing it by β",
            "return (best / beta + total).squeeze(-1)",
            "return (best + total).squeeze(-1)",
        ),
        ("norm", "π* is not divided by Z", "    return tilted - total\n", "    return tilted\n"),
        (
            "swap",
            "implicit reward: π_ref over π",
            "log_policy - torch.where(outside, 0.0, log_ref))",
            "torch.where(outside, 0.0, log_ref) - log_policy)",
        ),
        ("beta", "implicit reward without β", "return beta * ratio", "return ratio"),
        (
            "sign",
            "KL: log q/p in place of log p/q",
            "gap = torch.where(aside, 0.0, log_p) - torch.where(aside, 0.0, log_q)",
            "gap = torch.where(aside, 0.0, log_q) - torch.where(aside, 0.0, log_p)",
        ),
        ("mean", "KL: the mean over responses, not the sum", "* gap).sum(-1)", "* gap).mean(-1)"),
        (
            "swap",
            "KL: weighted by q, not by p",
            "finite = (torch.where(aside, 0.0, log_p.exp())",
            "finite = (torch.where(aside, 0.0, log_q.exp())",
        ),
        (
            "sign",
            "objective: KL is rewarded",
            ".sum(-1) - beta * _kl(log_policy, log_ref)",
            ".sum(-1) + beta * _kl(log_policy, log_ref)",
        ),
        (
            "beta",
            "objective: KL at price 1",
            ".sum(-1) - beta * _kl(log_policy, log_ref)",
            ".sum(-1) - _kl(log_policy, log_ref)",
        ),
        (
            "swap",
            "objective: KL(π_ref‖π)",
            ".sum(-1) - beta * _kl(log_policy, log_ref)",
            ".sum(-1) - beta * _kl(log_ref, log_policy)",
        ),
        (
            "mean",
            "objective: expected reward divided by K",
            "return (log_policy.exp() * reward).sum(-1)",
            "return (log_policy.exp() * reward).mean(-1)",
        ),
        ("beta", "regret without β", "return beta * _kl(log_policy, tilted", "return _kl(log_policy, tilted"),
        (
            "swap",
            "regret: KL(π*‖π)",
            "return beta * _kl(log_policy, tilted - total)",
            "return beta * _kl(tilted - total, log_policy)",
        ),
        (
            "swap",
            "frontier: KL(π_ref‖π*)",
            "return _kl(log_star, log_ref), (",
            "return _kl(log_ref, log_star), (",
        ),
        (
            "swap",
            "Bradley–Terry: column beats row",
            "torch.sigmoid(reward.unsqueeze(-1) - reward.unsqueeze(-2))",
            "torch.sigmoid(reward.unsqueeze(-2) - reward.unsqueeze(-1))",
        ),
    ],
    "exact/tree.py": [
        (
            "sign",
            "soft values: the better token gets less",
            "tilted = ref + (q - best) / beta",
            "tilted = ref - (q - best) / beta",
        ),
        (
            "beta",
            "soft values: V without β before the log-sum",
            "child = (best + beta * total).squeeze(-1)",
            "child = (best + total).squeeze(-1)",
        ),
        (
            "mask",
            "soft values: children shifted to the last tokens",
            "(0, ref.shape[-1] - going_on.shape[-1]))",
            "(ref.shape[-1] - going_on.shape[-1], 0))",
        ),
        ("sign", "path sums: tokens subtract", "total.unsqueeze(-1) + table", "total.unsqueeze(-1) - table"),
        ("mean", "prefix tables: a mean of what lies below", "below = joint.logsumexp(-1)", "below = joint.mean(-1)"),
    ],
    "exact/order.py": [
        (
            "beta",
            "best-of-n forgets n below the winner",
            "0.0, n * log_cdf + log_share",
            "0.0, log_cdf + log_share",
        ),
        (
            "mask",
            "best-of-n: equal rewards are ranked",
            "sorted_reward[..., 1:] > sorted_reward[..., :-1]",
            "sorted_reward[..., 1:] >= sorted_reward[..., :-1]",
        ),
        ("mask", "filter: r ≥ τ for r > τ", "passes = (reward > threshold)", "passes = (reward >= threshold)"),
        (
            "norm",
            "filter: what passes does not sum to 1",
            "return kept - kept.logsumexp(-1, keepdim=True)",
            "return kept",
        ),
    ],
    "exact/labels.py": [
        (
            "swap",
            "price of a label: (i, j) and (j, i) not the same pair",
            "edges = (pair_weights + pair_weights.transpose(-1, -2)) * _info",
            "edges = (pair_weights + pair_weights) * _info",
        ),
        (
            "beta",
            "price of a label without β",
            "torch.inf, price / (2 * beta))",
            "torch.inf, price / 2)",
        ),
        (
            "mean",
            "price of a label: the ½ of the quadratic form lost",
            "torch.inf, price / (2 * beta))",
            "torch.inf, price / beta)",
        ),
        (
            "sign",
            "information of a label: p² for p (1 − p)",
            "return torch.sigmoid(gap) * torch.sigmoid(-gap)",
            "return torch.sigmoid(gap) * torch.sigmoid(gap)",
        ),
        (
            "sign",
            "Σ = diag(π*) + π*π*ᵀ",
            ".sum(-1) - torch.einsum(",
            ".sum(-1) + torch.einsum(",
        ),
    ],
    "losses.py": [
        (
            "sign",
            "χPO takes the χ² part off",
            "return log_ratio.clamp(max=20.0).exp() + log_ratio",
            "return log_ratio - log_ratio.clamp(max=20.0).exp()",
        ),
        (
            "norm",
            "a response's mean is its sum",
            "return value / length",
            "return value",
        ),
        (
            "sign",
            "SimPO's margin is given away, not asked for",
            "beta * (chosen - rejected) - target_margin",
            "beta * (chosen - rejected) + target_margin",
        ),
        (
            "sign",
            "ORPO clones no chosen response",
            "return -chosen - weight * logsigmoid",
            "return chosen - weight * logsigmoid",
        ),
        (
            "swap",
            "ORPO prefers the rejected",
            "log_odds(chosen) - log_odds(rejected)",
            "log_odds(rejected) - log_odds(chosen)",
        ),
        (
            "beta",
            "KTO forgets β",
            "gap = beta * (log_ratio - z)",
            "gap = log_ratio - z",
        ),
        (
            "swap",
            "KTO praises the undesirable",
            "weights[0] * torch.sigmoid(-gap), weights[1] * torch.sigmoid(gap)",
            "weights[0] * torch.sigmoid(gap), weights[1] * torch.sigmoid(-gap)",
        ),
        (
            "swap",
            "every loss: rejected minus chosen",
            "difference = chosen - rejected",
            "difference = rejected - chosen",
        ),
        (
            "beta",
            "DPO without β",
            "margin = check_beta(beta) * _difference(chosen_log_ratio, rejected_log_ratio, "
            '"log_ratio")\n    epsilon = _smoothing(label_smoothing, below_half=False)',
            "check_beta(beta)\n    margin = _difference(chosen_log_ratio, rejected_log_ratio, "
            '"log_ratio")\n    epsilon = _smoothing(label_smoothing, below_half=False)',
        ),
        (
            "swap",
            "cDPO: both terms prefer the chosen",
            "return loss - epsilon * logsigmoid(-margin)",
            "return loss - epsilon * logsigmoid(margin)",
        ),
        (
            "sign",
            "cDPO: second term with robust DPO's sign",
            "return loss - epsilon * logsigmoid(-margin)",
            "return loss + epsilon * logsigmoid(-margin)",
        ),
        (
            "beta",
            "robust DPO without β",
            "margin = check_beta(beta) * _difference(chosen_log_ratio, rejected_log_ratio, "
            '"log_ratio")\n    epsilon = _smoothing(label_smoothing, below_half=True)',
            "check_beta(beta)\n    margin = _difference(chosen_log_ratio, rejected_log_ratio, "
            '"log_ratio")\n    epsilon = _smoothing(label_smoothing, below_half=True)',
        ),
        (
            "sign",
            "robust DPO: second term with cDPO's sign",
            "+ epsilon * logsigmoid(-margin)) / (1 - 2 * epsilon)",
            "- epsilon * logsigmoid(-margin)) / (1 - 2 * epsilon)",
        ),
        (
            "norm",
            "robust DPO: not divided by 1 − 2ε",
            "+ epsilon * logsigmoid(-margin)) / (1 - 2 * epsilon)",
            "+ epsilon * logsigmoid(-margin))",
        ),
        (
            "sign",
            "IPO: the margin's target below zero",
            '"log_ratio") - 1 / (2 * tau))',
            '"log_ratio") + 1 / (2 * tau))',
        ),
        ("beta", "IPO: the target without τ", '"log_ratio") - 1 / (2 * tau))', '"log_ratio") - 1 / 2)'),
        (
            "sign",
            "hinge-norm: the wider the margin, the greater the loss",
            "torch.relu(1 - gamma * _difference(chosen_log_ratio",
            "torch.relu(1 + gamma * _difference(chosen_log_ratio",
        ),
        (
            "beta",
            "hinge-norm without γ",
            "torch.relu(1 - gamma * _difference(chosen_log_ratio",
            "torch.relu(1 - _difference(chosen_log_ratio",
        ),
        (
            "beta",
            "hinge (SLiC) without γ",
            "torch.relu(1 - gamma * _difference(chosen_log_prob",
            "torch.relu(1 - _difference(chosen_log_prob",
        ),
        (
            "sign",
            "reward model: the likelihood is minimised",
            "return -logsigmoid(_difference(chosen_reward",
            "return logsigmoid(_difference(chosen_reward",
        ),
        (
            "sign",
            "DPO's gradient weight: large where the pair is right",
            "return torch.sigmoid(-margin)",
            "return torch.sigmoid(margin)",
        ),
    ],
    "kl.py": [
        ("sign", "k turned round: drift is paid for", "return log_policy - log_ref", "return log_ref - log_policy"),
        ("mean", "k2 without its ½", ".square() / 2", ".square()"),
        ("sign", "k3 of −k: e^k − 1 − k", "torch.expm1(-k) + k)", "torch.expm1(k) - k)"),
    ],
    "sampling.py": [
        ("beta", "rejection sampling forgets β", "score = gap / beta + gumbel", "score = gap + gumbel"),
        ("sign", "rejection sampling prefers the worse", "score = gap / beta + gumbel", "score = gumbel - gap / beta"),
        (
            "sign",
            "Gumbel noise upside down",
            "gumbel = -torch.log(-torch.log(noise))",
            "gumbel = torch.log(-torch.log(noise))",
        ),
        (
            "sign",
            "Algorithm 1 accepts where it should reject",
            "if coin() < _acceptance(",
            "if coin() > _acceptance(",
        ),
        (
            "sign",
            "Algorithm 1: the least reward for the largest, so that all are accepted alike",
            "r_max = max(rewards[j] for j in left if j not in accepted)",
            "r_max = min(rewards[j] for j in left if j not in accepted)",
        ),
        ("beta", "Algorithm 1 forgets β", "math.exp(min(gap / beta, 0.0))", "math.exp(min(gap, 0.0))"),
        (
            "mean",
            "acceptance rate: a mean over responses, not over the reference",
            "return (log_ref + exponent).exp().sum(-1)",
            "return (log_ref + exponent).exp().mean(-1)",
        ),
        (
            "mask",
            "acceptance rate: r_max over what the reference cannot give",
            "best = torch.where(log_ref > -torch.inf, reward, -torch.inf).amax(-1, keepdim=True)",
            "best = reward.amax(-1, keepdim=True)",
        ),
    ],
    "policies/base.py": [
        (
            "mean",
            "log π(y|x): the mean over tokens, not the sum",
            "return self.token_log_probs(prompts, responses, temperature).sum(-1)",
            "return self.token_log_probs(prompts, responses, temperature).mean(-1)",
        ),
    ],
    "policies/tabular.py": [
        (
            "sign",
            "logits times the temperature",
            "entries = (table / scale).log_softmax(-1)",
            "entries = (table * scale).log_softmax(-1)",
        ),
        (
            "mask",
            "tokens after the end count",
            "out.append(torch.where(responses.mask[..., t], entries, 0.0))",
            "out.append(entries)",
        ),
        (
            "mask",
            "the end token does not end a sample",
            "going = going & (token < self.tree.branching)",
            "going = going & (token <= self.tree.branching)",
        ),
        (
            "mean",
            "a reward model's score: the mean over tokens",
            "return self.table(prompts, responses).sum(-1)",
            "return self.table(prompts, responses).mean(-1)",
        ),
        (
            "norm",
            "V(s) not weighted by the policy",
            "below = (table.detach().exp() * q).sum(-1)",
            "below = q.mean(-1)",
        ),
    ],
    "policies/token_tree.py": [
        (
            "mask",
            "every token one position too late",
            "position_ids=seen[:, -1:] * self.depth,",
            "position_ids=seen[:, -1:] * (self.depth + 1),",
        ),
        (
            "sign",
            "logits times the temperature",
            "_logits(out.last_hidden_state[:, 0]) / self.temperature)",
            "_logits(out.last_hidden_state[:, 0]) * self.temperature)",
        ),
        (
            "swap",
            "a prefix reads the keys and values of another's parent",
            "torch.searchsorted(self.codes, distinct // branching)",
            "torch.searchsorted(self.codes, distinct // branching).flip(0)",
        ),
    ],
    "policies/packing.py": [
        (
            "mask",
            "labels shifted: a token predicted from the one after its predecessor",
            "(-1, rest.shape[1], 1), rest[..., :-1]], -1)",
            "(-1, rest.shape[1], 1), rest[..., 1:]], -1)",
        ),
        (
            "mask",
            "responses see their older sisters",
            "allowed = ((query == key) | (key == 0)) & past",
            "allowed = ((query >= key) | (key == 0)) & past",
        ),
        (
            "mask",
            "no causal mask within a response",
            "allowed = ((query == key) | (key == 0)) & past",
            "allowed = (query == key) | (key == 0)",
        ),
        (
            "mask",
            "positions counted from the padded prompt's width",
            "step = step + prompts.lengths[:, None, None]",
            "step = step + prompts.shape[-1]",
        ),
    ],
    "policies/ragged.py": [
        (
            "mask",
            "a response's last token is computed too, though nothing follows it",
            "pad(responses.mask[..., 1:], (0, 1)))",
            "responses.mask)",
        ),
        (
            "mask",
            "responses see their older sisters",
            "seen = ((q == k) | (k == 0)).tril(",
            "seen = ((q >= k) | (k == 0)).tril(",
        ),
        (
            "mask",
            "no causal mask within a row",
            "seen = ((q == k) | (k == 0)).tril(k.shape[1] - q.shape[0])",
            "seen = (q == k) | (k == 0)",
        ),
        (
            "mask",
            "a response's positions start at 0 again",
            "position[:, prompts.shape[-1] :] += prompts.lengths[:, None]",
            "position[:, prompts.shape[-1] :] += 0",
        ),
        (
            "norm",
            "attention without the model's own scale",
            "attn_mask=mask, is_causal=mask is None, scale=scale",
            "attn_mask=mask, is_causal=mask is None, scale=1.0",
        ),
    ],
    "policies/head.py": [
        (
            "norm",
            "log π without the log-sum-exp",
            "return picked - log_total[rows, 0]",
            "return picked",
        ),
        (
            "swap",
            "the gradient in the states turned round",
            "gradient = kept * -mass[:, None]",
            "gradient = kept * mass[:, None]",
        ),
        (
            "beta",
            "the gradient forgets the temperature",
            "upstream = (upstream * ctx.scale).to(log_total.dtype)",
            "upstream = upstream.to(log_total.dtype)",
        ),
    ],
    "policies/decode.py": [
        (
            "mask",
            "padding of shorter prompts is looked at",
            "self._barred = None if bool(prompts.mask.all()) else ~prompts.mask",
            "self._barred = None",
        ),
        (
            "mask",
            "the end token left out of a sample's mask",
            "drawn.where(alive, 0), alive\n",
            "drawn.where(alive, 0), alive & (drawn != (-1 if end_token is None else end_token))\n",
        ),
        (
            "mask",
            "each new token's keys and values written over the first one's",
            "whole[:, :, :, self.step] = self._in_grid(new)",
            "whole[:, :, :, 0] = self._in_grid(new)",
        ),
        (
            "mask",
            "positions of new tokens stand still",
            "drawn.flatten(), position.flatten() + step",
            "drawn.flatten(), position.flatten()",
        ),
    ],
    "policies/graphs.py": [
        (
            "mask",
            "a token that is yet to come is seen",
            "self._places > self.at",
            "self._places > self.at + 1",
        ),
        (
            "mask",
            "a replayed step goes on with the second token for ever",
            "self.cache.at.fill_(step)",
            "self.cache.at.fill_(min(step, 1))",
        ),
        (
            "swap",
            "a replayed step reads the position of the step that was recorded",
            "self._positions.copy_(positions[None])",
            "self._positions.copy_(positions[None] if self._recording is None else self._positions)",
        ),
    ],
    "policies/flex.py": [
        (
            "mask",
            "blocks of the prompt are not seen",
            "earlier & (prompt | (k_last_run == q_run))",
            "earlier & (k_last_run == q_run)",
        ),
        (
            "mask",
            "a block that sticks out of the row is seen whole",
            "earlier & one_text & all_seen & filled",
            "earlier & one_text & all_seen",
        ),
        (
            "mask",
            "responses see each other",
            "own = (there_segment[k] == 0) | (there_segment[q] == there_segment[k])",
            "own = there_segment[k] >= 0",
        ),
    ],
    "policies/drawing.py": [
        (
            "sign",
            "samples at the inverse temperature",
            "chances.div_(temperature)",
            "chances.mul_(temperature)",
        ),
        (
            "sign",
            "sampling from the distribution turned round",
            "return (cdf <= target.unsqueeze(-1)).sum(-1)",
            "return (cdf > target.unsqueeze(-1)).sum(-1)",
        ),
        (
            "swap",
            "top-k keeps the least likely",
            "logits.masked_fill(logits < least, -torch.inf)",
            "logits.masked_fill(logits > least, -torch.inf)",
        ),
    ],
}

MUTATIONS: list[Mutation] = [
    *_in("exact/policy.py", "test_exact.py"),
    *_in("exact/tree.py", "test_exact_tree.py"),
    *_in("exact/order.py", "test_best_of_n_and_filter.py"),
    *_in("exact/labels.py", "test_label_price.py"),
    *_in("losses.py", "test_losses.py", "test_losses_family.py"),
    *_in("kl.py", "test_kl.py"),
    *_in("sampling.py", "test_sampling.py"),
    *_in("policies/base.py", "policies/test_tabular.py", "policies/test_language_model.py"),
    *_in("policies/tabular.py", "policies/test_tabular.py"),
    *_in("policies/token_tree.py", "policies/test_tree_transformer.py"),
    *_in("policies/packing.py", "policies/test_language_model.py"),
    *_in("policies/ragged.py", "policies/test_ragged.py", "policies/test_language_model.py"),
    *_in("policies/head.py", "policies/test_head.py", "policies/test_language_model.py"),
    *_in("policies/decode.py", "policies/test_decode.py", "policies/test_language_model.py"),
    *_in("policies/graphs.py", "policies/test_graphs.py"),
    *_in("policies/flex.py", "policies/test_flex.py", "policies/test_ragged.py"),
    *_in("policies/drawing.py", "policies/test_drawing.py", "policies/test_decode.py"),
]
