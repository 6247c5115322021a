r"""Block 2, π* token by token: the soft-value recursion on a small tree.

    V(s) = β log Σ_a π_ref(a|s) exp((r(s,a) + V(s·a))/β),   π*(a|s) = π_ref(a|s) exp((r(s,a) + V(s·a) − V(s))/β)

with V = 0 where the response ends. Levine 2018, section 2; Rafailov et al. 2024, "From r to Q*".
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_lab import exact
from rlhf_lab.derivations.derivation import Derivation, Line, Wrong


@dataclass(frozen=True)
class Tree:
    """All sequences of `depth` tokens over a small vocabulary, with a reward for every token.

    Attributes:
        log_ref: log π_ref(a|s), one table (1, V^t, V) for each depth.
        reward: r(s, a), the same shapes.
        beta: β.
    """

    log_ref: list[Tensor]
    reward: list[Tensor]
    beta: float

    @property
    def all_log_ref(self) -> Tensor:
        """log π_ref(y) of every sequence, (1, V^L), summed along each path."""
        return _along_paths(self.log_ref)

    @property
    def all_reward(self) -> Tensor:
        """r(y) of every sequence, (1, V^L)."""
        return _along_paths(self.reward)

    @property
    def log_z(self) -> Tensor:
        """log Z by the sum over all sequences."""
        return (self.all_log_ref.exp() * (self.all_reward / self.beta).exp()).sum(-1).log()


def _along_paths(tables: list[Tensor]) -> Tensor:
    """The sum of a table's entries along every path."""
    size, depth = tables[0].shape[-1], len(tables)
    totals = []
    for number in range(size**depth):
        total, node = torch.zeros((), dtype=torch.float64), 0
        for t in range(depth):
            token = number // size ** (depth - 1 - t) % size
            total = total + tables[t][0, node, token]
            node = node * size + token
        totals.append(total)
    return torch.stack(totals).unsqueeze(0)


def random_tree(generator: torch.Generator) -> Tree:
    """Draw a tree with two or three tokens and a depth of two or three."""
    size, depth = (int(torch.randint(2, 4, (), generator=generator)) for _ in range(2))

    def tables() -> list[Tensor]:
        shapes = [(1, size**t, size) for t in range(depth)]
        return [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in shapes]

    beta = 4.0 ** (2 * torch.rand((), dtype=torch.float64, generator=generator).item() - 1)
    return Tree([table.log_softmax(-1) for table in tables()], tables(), beta)


def _backwards(tree: Tree, hard: bool = False, uniform: bool = False) -> list[Tensor]:
    """V of every prefix by the recursion, (1, V^t) for each depth, with zeros at the leaves.

    `hard` replaces the soft maximum by the maximum, `uniform` leaves out the reference.
    """
    size, depth = tree.reward[0].shape[-1], len(tree.reward)
    values = [torch.zeros(1, size**depth, dtype=torch.float64)]
    for t in reversed(range(depth)):
        q = tree.reward[t] + values[0].reshape(tree.reward[t].shape)
        weight = torch.ones_like(q) if uniform else tree.log_ref[t].exp()
        soft = tree.beta * (weight * (q / tree.beta).exp()).sum(-1).log()
        values.insert(0, q.amax(-1) if hard else soft)
    return values


def _policy(tree: Tree, values: list[Tensor]) -> Tensor:
    """Σ_t of log π_ref(a|s) + (r + V(s·a) − V(s))/β along every path."""
    tables = []
    for t, (log_ref, reward) in enumerate(zip(tree.log_ref, tree.reward, strict=True)):
        gain = reward + values[t + 1].reshape(reward.shape) - values[t].unsqueeze(-1)
        tables.append(log_ref + gain / tree.beta)
    return _along_paths(tables)


def _myopic(tree: Tree) -> Tensor:
    """Every token tilted by the reward of this token only."""
    steps = zip(tree.log_ref, tree.reward, strict=True)
    return _along_paths([(log_ref + r / tree.beta).log_softmax(-1) for log_ref, r in steps])


def _lookahead(tree: Tree) -> tuple[list[Tensor], list[Tensor]]:
    return exact.soft_values(tree.log_ref, tree.reward, tree.beta)


soft_value_recursion = Derivation(
    "soft-value-recursion",
    "π* token by token",
    lines=(
        Line(
            r"\beta\log\sum_a \pi_\text{ref}(a|s_0)\,e^{(r(s_0,a) + V(s_0 a))/\beta}",
            "the recursion from the leaves to the root",
            lambda t: _backwards(t)[0][:, 0],
            left=r"V(s_0)",
            left_value=lambda t: _lookahead(t)[0][0][:, 0],
        ),
        Line(
            r"\beta\log\sum_y \pi_\text{ref}(y)\,e^{r(y)/\beta} = \beta\log Z",
            r"unrolled, the nested sums become one sum over all sequences",
            lambda t: t.beta * t.log_z,
        ),
        Line(
            r"\sum_t \Big[\log\pi_\text{ref}(a_t|s_t)"
            r" + \tfrac{1}{\beta}\big(r(s_t,a_t) + V(s_{t+1}) - V(s_t)\big)\Big]",
            r"the chain rule of probability, and $\pi^*(a|s) = \pi_\text{ref}(a|s)\,e^{(r + V(sa) - V(s))/\beta}$",
            lambda t: _policy(t, _backwards(t)),
            left=r"\sum_t\log\pi^*(a_t|s_t)",
            left_value=lambda t: exact.path_sums(_lookahead(t)[1]),
        ),
        Line(
            r"\log\pi_\text{ref}(y) + \tfrac{1}{\beta}\big(r(y) - V(s_0)\big)",
            "the sum telescopes: every value except the first is added once and subtracted once",
            lambda t: t.all_log_ref + (t.all_reward - _backwards(t)[0][:, :1]) / t.beta,
        ),
        Line(
            r"\log\pi^*(y)",
            r"$V(s_0) = \beta\log Z$; this is the formula of the bandit, over whole sequences",
            lambda t: exact.optimal_policy(t.all_log_ref, t.all_reward, t.beta),
        ),
    ),
    wrong=(
        Wrong(
            r"\max_a\big(r(s_0,a) + V(s_0 a)\big)",
            "this is a hard maximum, which is correct only for β → 0",
            lambda t: _backwards(t, hard=True)[0][:, 0],
            1,
        ),
        Wrong(
            r"\beta\log\sum_a e^{(r(s_0,a) + V(s_0 a))/\beta}",
            "the reference is missing; this has an entropy bonus instead of the KL",
            lambda t: _backwards(t, uniform=True)[0][:, 0],
            1,
        ),
        Wrong(
            r"\sum_t\log\frac{\pi_\text{ref}(a_t|s_t)\,e^{r(s_t,a_t)/\beta}}"
            r"{\sum_a \pi_\text{ref}(a|s_t)\,e^{r(s_t,a)/\beta}}",
            "each token is tilted by its reward only, without the value of what follows",
            _myopic,
            5,
        ),
        Wrong(
            r"\log\pi_\text{ref}(y) + \tfrac{1}{\beta}\,r(y)",
            r"$V(s_0)$ is missing, so it does not sum to one",
            lambda t: t.all_log_ref + t.all_reward / t.beta,
            4,
        ),
    ),
    source="Levine 2018, section 2; Rafailov et al. 2024, “From r to Q*”, section 3.",
    world=random_tree,
)
