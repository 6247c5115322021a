r"""Fits of policies and reward models to labels on pairs that do not cover all responses.

A response y is a path of next tokens a after prefixes s. With parameters u, in units of reward, and features φ(s, a),

    policy          log π_u(a|s) = log π_ref(a|s) + φ(s, a)·u/β − log Z_u(s)
    reward model    r_u(y) = Σ_{(s, a) in y} φ(s, a)·u

so that both have the same parameters. DPO fits the implicit reward f = β log π_u/π_ref of whole responses. RLHF fits
r_u to the same labels and maximises J exactly over the same policies. On a bandit the only prefix is the empty one, and
f = r_u − β log Z_u. Both fits have the same differences, so that DPO and RLHF find the same policy. On a tree the
normalisers of the later prefixes differ between responses, and the methods differ too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from rlhf_lab import exact
from rlhf_lab.bradley_terry import laplacian, pair_distribution
from rlhf_lab.experiments.claims.coverage.settings import HALF, LITTLE
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded
from rlhf_lab.worlds import token_tree


@dataclass(frozen=True, eq=False)
class CoverageWorld:
    """One prompt with a class of policies and of reward models.

    Attributes:
        tokens: V, the next tokens of every prefix.
        paths: 1 where a response (row) contains a next token of a prefix (column), (K, C).
        features: φ of each next token of each prefix, (C, P).
        log_ref: log π_ref of each next token of each prefix, (C,).
        reward: r of each response, (K,).
        beta: β.
    """

    tokens: int
    paths: Tensor
    features: Tensor
    log_ref: Tensor
    reward: Tensor
    beta: float

    @cached_property
    def ref(self) -> Tensor:
        """log π_ref of each response, (K,)."""
        return self.paths @ self.log_ref

    @cached_property
    def log_star(self) -> Tensor:
        """log π* of each response, (K,)."""
        return exact.optimal_policy(self.ref, self.reward, self.beta)

    def log_policy(self, u: Tensor) -> Tensor:
        """log π_u of each response, (R, K), for parameters (R, P)."""
        return self._next_tokens(u) @ self.paths.T

    def _next_tokens(self, u: Tensor) -> Tensor:
        logits = (self.log_ref + u @ self.features.T / self.beta).view(len(u), -1, self.tokens)
        return logits.log_softmax(-1).flatten(1)

    def slopes(self, u: Tensor) -> Tensor:
        """The gradient of the implicit reward f of each response in u, (R, K, P)."""
        p = self._next_tokens(u).exp().view(len(u), -1, self.tokens, 1)
        features = self.features.view(1, -1, self.tokens, self.features.shape[1])
        return self.paths @ (features - (p * features).sum(-2, keepdim=True)).flatten(1, 2)

    def mask(self, kind: str) -> Tensor:
        """The responses that a mask of `MASKS` contains, (K,) bool."""
        star = self.log_star.exp()
        weight = (star + self.ref.exp()) / 2 if kind == "rare" else star
        p, order = weight.sort(descending=kind == "optimal")
        before = p.cumsum(0) - p
        chosen = before < HALF if kind == "optimal" else p.cumsum(0) <= LITTLE
        chosen[0] = True
        half = order[: len(order) // 2]  # at least half of all responses stay, so that there are pairs
        return torch.zeros(len(p), dtype=torch.bool).index_fill(0, half[chosen[: len(half)]], True)

    def pairs(self, kind: str, coverage: float) -> Tensor:
        """The distribution of offline pairs, (K, K): π_ref draws, masked responses `coverage` times as often."""
        return pair_distribution(self.ref + torch.where(self.mask(kind), coverage, 1.0).double().log())

    def fit_dpo(self, wins: Tensor, prior: float) -> Tensor:
        """The parameters (R, P) to which DPO converges on tables of wins (R, K, K), with the prior N(0, s²) on each."""

        def implicit(u: Tensor) -> tuple[Tensor, Tensor]:
            return self.beta * (self.log_policy(u) - self.ref), self.slopes(u)

        return self._fit(implicit, wins, prior)

    def fit_reward(self, wins: Tensor, prior: float) -> Tensor:
        """The rewards of a reward model that is fitted to the same tables with the same prior, (R, K)."""
        total = self.paths @ self.features
        return self._fit(lambda u: (u @ total.T, total.expand(len(u), -1, -1)), wins, prior) @ total.T

    def _fit(self, function: Callable[[Tensor], tuple[Tensor, Tensor]], wins: Tensor, prior: float) -> Tensor:
        labels = wins + wins.mT

        def objective(u: Tensor) -> Tensor:
            values = function(u)[0]
            gap = values.unsqueeze(-1) - values.unsqueeze(-2)
            found: Tensor = (wins * logsigmoid(gap)).sum((-1, -2)) - u.square().sum(-1) / (2 * prior**2)
            return found

        def derivatives(u: Tensor) -> tuple[Tensor, Tensor]:
            values, slopes = function(u)
            lost = torch.sigmoid(values.unsqueeze(-2) - values.unsqueeze(-1))
            pull = wins * lost
            slope = (slopes.mT @ (pull.sum(-1) - pull.sum(-2)).unsqueeze(-1)).squeeze(-1) - u / prior**2
            return slope, slopes.mT @ laplacian(labels * lost * (1 - lost)) @ slopes + _eye(u) / prior**2

        return climb(objective, derivatives, wins.new_zeros(len(wins), self.features.shape[1]))

    def best_policy(self, reward: Tensor) -> Tensor:
        """log π of the policies of the class that maximise E[r] − β KL for rewards (R, K), exactly: (R, K)."""

        def objective(u: Tensor) -> Tensor:
            return exact.objective(self.log_policy(u).log_softmax(-1), self.ref, reward, self.beta)

        def derivatives(u: Tensor) -> tuple[Tensor, Tensor]:
            log_policy, slopes = self.log_policy(u), self.slopes(u) / self.beta
            p = log_policy.exp().unsqueeze(-1)
            gain = reward - self.beta * (log_policy - self.ref)
            # At the optimum of a class that contains it, the Hessian of J is −β times the Fisher information.
            return (p * slopes * gain.unsqueeze(-1)).sum(1), self.beta * (slopes.mT @ (p * slopes)) + 1e-9 * _eye(u)

        start = reward.new_zeros(len(reward), self.features.shape[1])
        return self.log_policy(climb(objective, derivatives, start))

    def regret(self, log_policy: Tensor) -> Tensor:
        """J(π*) − J(π), (R,)."""
        return exact.regret(log_policy.log_softmax(-1), self.ref, self.reward, self.beta)

    def worst_offline(self, kind: str) -> float:
        """The highest regret of a policy that minimises DPO's loss on infinitely many pairs without masked responses.

        The loss fixes only the ratios between unmasked responses. The regret β KL(π‖π*) is convex in π, so it is
        highest where one masked response has all the mass, or where the masked responses have none.
        """
        mask = self.mask(kind)
        alone = -self.beta * self.log_star[mask]
        none = -self.beta * self.log_star[~mask].logsumexp(0)
        return float(torch.cat([alone, none.unsqueeze(0)]).max())

    def worst_rlhf(self, kind: str) -> float:
        """The same for the exact optimum of a reward model: every reward in the range of r that agrees on other pairs.

        Masked responses get the least or the greatest reward, changed one at a time until the regret no longer rises:
        a local maximum, which is at most the worst case.
        """
        masked = self.mask(kind).nonzero().flatten()
        reward = self.reward.clone()
        low, high = self.reward.min(), self.reward.max()
        reward[masked] = low + high - self.reward[masked]
        found = float(self.regret(exact.optimal_policy(self.ref, reward, self.beta).unsqueeze(0)))
        while True:
            trials = reward.repeat(2 * len(masked), 1)
            rows = torch.arange(len(masked))
            trials[rows, masked], trials[rows + len(masked), masked] = low, high
            regrets = self.regret(exact.optimal_policy(self.ref, trials, self.beta))
            best = int(regrets.argmax())
            if regrets[best] <= found + 1e-12:
                return found
            reward, found = trials[best], float(regrets[best])


def climb(
    objective: Callable[[Tensor], Tensor], derivatives: Callable[[Tensor], tuple[Tensor, Tensor]], u: Tensor
) -> Tensor:
    """Maximise a function of each row of u (R, P), by Newton's steps that are halved until the function does not fall.

    Args:
        objective: u → the function, (R,).
        derivatives: u → its gradient (R, P), and a positive definite matrix (R, P, P) in place of its negative Hessian.
        u: where to begin.
    """
    value = objective(u)
    for _ in range(200):
        slope, curvature = derivatives(u)
        step = torch.linalg.solve(curvature, slope.unsqueeze(-1)).squeeze(-1)
        if float((step * slope).sum(-1).max()) < 1e-10:
            break
        size = torch.ones_like(value)
        for _ in range(40):
            new = objective(u + size.unsqueeze(-1) * step)
            falls = new < value - 1e-12 * value.abs()
            if not bool(falls.any()):
                break
            size = torch.where(falls, size / 2, size)
        u, value = u + size.unsqueeze(-1) * step, new
    return u


def _eye(u: Tensor) -> Tensor:
    return torch.eye(u.shape[-1], dtype=u.dtype)


def coverage_world(scale: str, policies: str, seed: int, beta: float) -> CoverageWorld:
    """Make the world of a seed: 10 arms with 3 features, or the 64 sequences of 3 tokens over 4.

    Args:
        scale: bandit or tree.
        policies: table (a parameter for each next token of each prefix) or shared: the bandit's features, or the tree's
            parameters for each token in each place and for each pair of neighbouring tokens. The gold reward is a
            reward of both classes.
        seed: of the reference and of the reward.
        beta: β.
    """
    if scale == "bandit":
        generator = seeded(seed, Stream.COVERAGE_WORLD)
        log_ref, weight, *columns = torch.randn(5, 10, dtype=torch.float64, generator=generator)
        phi, eye = torch.stack(columns, -1) / 3**0.5, torch.eye(10, dtype=torch.float64)
        reward = phi @ weight[:3]
        reward = (reward - reward.mean()) / reward.std(correction=0)
        return CoverageWorld(10, eye, eye if policies == "table" else phi, log_ref.log_softmax(-1), reward, beta)
    world = token_tree.random(4, 3, 1, seed)
    tree, size = world.tree, world.tree.vocab_size
    place = torch.cat([torch.full((nodes,), t) for t, (nodes, _) in enumerate(tree.shapes)])
    node = torch.cat([torch.arange(nodes) for nodes, _ in tree.shapes])
    first = torch.tensor([0, 1, 1 + size])  # the first prefix of each depth
    ids = tree.responses.ids
    cells = (first + tree.nodes(tree.responses)) * size + ids
    paths = one_hot(cells, len(node) * size).sum(1).double()
    before = one_hot(node % size, size).double() * (place > 0).unsqueeze(-1)  # a prefix's last token
    of_prefix = torch.cat([one_hot(place).double(), before], -1)
    shared = torch.einsum("sp,ab->sapb", of_prefix, torch.eye(size, dtype=torch.float64)).flatten(2).flatten(0, 1)
    features = torch.eye(len(shared), dtype=torch.float64) if policies == "table" else shared
    tables = exact.prefix_tables(world.log_ref(), tree.shapes)
    log_ref = torch.cat([table.flatten() for table in tables])
    return CoverageWorld(size, paths, features, log_ref, world.rewards()[0], beta)
