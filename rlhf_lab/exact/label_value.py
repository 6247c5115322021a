r"""The value of preference labels: the regret that N labels leave, and the best pairs to label.

Rewards of K responses are fitted to N Bradley–Terry labels on pairs drawn from μ. Their Fisher information per label is
a weighted graph Laplacian,

    I(μ) = Σ_{i<j} w_ij b_ij b_ijᵀ,   w_ij = (μ_ij + μ_ji) p_ij (1 − p_ij),   b_ij = e_i − e_j,

and the expected regret of the plug-in policy π̂ ∝ π_ref exp(r̂/β) is, to leading order in 1/N,

    N · E[J(π*) − J(π̂)] → φ(μ) = tr(Σ I(μ)⁺) / (2β),   Σ = diag(π*) − π* π*ᵀ,

because J(π*) − J(π̂) = β KL(π̂‖π*) is, to second order, half the quadratic form of (r̂ − r)/β with the matrix βΣ.

φ is convex in μ. Minimising it is a problem of optimal design. It is solved by the multiplicative algorithm with power
½ (Silvey, Titterington & Torsney 1978; Yu 2010), and the equivalence theorem (Kiefer & Wolfowitz) certifies the
solution. This answers the lecture's last question for a finite set of responses: which pairs should be labelled with a
given budget of labels?
"""

import torch
from torch import Tensor

from rlhf_lab.errors import (
    LabError,
    check_beta,
    check_finite,
    check_float,
    check_responses_axis,
    check_same_shape,
    first_true_index,
)
from rlhf_lab.exact.policy import optimal_policy


def label_price(log_ref: Tensor, reward: Tensor, beta: float, pair_weights: Tensor) -> Tensor:
    r"""The limit of N · E[regret] for N Bradley–Terry labels on pairs drawn with `pair_weights`.

    Args:
        log_ref: log π_ref, (…, K).
        reward: the true rewards, (…, K); labels are drawn with p(i ≻ j) = σ(r_i − r_j).
        beta: β > 0 of the objective.
        pair_weights: μ, (…, K, K), non-negative, summing to 1: the probability that a label compares the ordered
            pair (i, j). (i, j) and (j, i) are the same pair. Labels on the diagonal are wasted.

    Returns:
        (…), units of reward × labels. Divide by N for the expected regret. The result is `+inf` where no chain of
        comparisons connects two responses to which π* gives mass.

    Raises:
        LabError: as in `exact.optimal_policy`; pair_weights of another shape, negative or not summing to 1.
    """
    beta = check_beta(beta)
    log_star = optimal_policy(log_ref, reward, beta)
    _check_weights(pair_weights, log_star)
    dtype = torch.promote_types(log_star.dtype, pair_weights.dtype)
    # Computed in float64: p(1 − p) is 1e-13 at a gap of 30, and float32 cannot add that to ¼.
    log_star, pair_weights = optimal_policy(log_ref.double(), reward.double(), beta), pair_weights.double()
    edges = (pair_weights + pair_weights.transpose(-1, -2)) * _information(reward.double())
    size = log_star.shape[-1]
    edges = edges.masked_fill(torch.eye(size, dtype=torch.bool, device=edges.device), 0.0)
    star = log_star.exp()
    edges = edges.expand(*torch.broadcast_shapes(edges.shape[:-2], star.shape[:-1]), size, size)
    star = star.expand(*edges.shape[:-1])

    ground = star.argmax(-1, keepdim=True)
    reached = _reachable(edges > torch.finfo(edges.dtype).tiny, ground)
    cut_off = ((star > 0) & ~reached).any(-1)
    price, _ = _solve(edges, star, reached, ground)
    return torch.where(cut_off, torch.inf, price / (2 * beta)).to(dtype)


def optimal_pair_design(
    log_ref: Tensor, reward: Tensor, beta: float, *, tolerance: float = 1e-4, max_iterations: int = 20_000
) -> Tensor:
    r"""The pair weights that minimise `label_price`, so that the fewest labels reach a given regret.

    The algorithm stops when no pair's directional derivative exceeds `label_price` by more than the fraction
    `tolerance` of it. By convexity the result is then within that fraction of the minimum. The design depends on the
    true rewards, which are unknown in practice. It is the bound with which active strategies are compared.

    Args:
        log_ref: (…, K), K ≥ 2.
        reward: (…, K).
        beta: β > 0.
        tolerance: relative gap of the certificate.
        max_iterations: number of iterations after which an error is raised if the certificate is not reached.

    Returns:
        (…, K, K) float64, symmetric, zero diagonal, summing to 1 over the last two axes.

    Raises:
        LabError: K = 1; inputs as in `label_price`; the certificate was not reached in `max_iterations`, or cannot be
            reached because the rewards of responses to which π* gives mass differ by more than about 40.
    """
    beta = check_beta(beta)
    log_star = optimal_policy(log_ref, reward, beta).detach().double()
    size = log_star.shape[-1]
    if size < 2:
        raise LabError("A pair needs two responses, but log_ref has only one.")
    lead = log_star.shape[:-1]
    star = log_star.exp().reshape(-1, size)
    reward = torch.broadcast_to(reward.detach().double(), log_star.shape).reshape(-1, size)
    # The information of a nearly certain label underflows. A floor keeps the price of every design finite and gives
    # such pairs almost no weight.
    information = _information(reward).clamp(min=1e-18)
    off_diagonal = ~torch.eye(size, dtype=torch.bool)

    # Responses with less mass than this need pairs that cannot be certified. The check raises where they matter.
    _check_certifiable(star, reward)
    star = torch.where(star < 1e-18, 0.0, star)
    start = information.rsqrt() * (star.unsqueeze(-1) + star.unsqueeze(-2) + 1e-6).sqrt() * off_diagonal
    weights = start / start.sum((-1, -2), keepdim=True)
    everywhere = torch.ones_like(star, dtype=torch.bool)
    ground = star.argmax(-1, keepdim=True)
    open_rows = torch.arange(len(star))
    for _ in range(max_iterations):
        mu, c, s = weights[open_rows], information[open_rows], star[open_rows]
        price, inverse = _solve(2 * mu * c * off_diagonal, s, everywhere[open_rows], ground[open_rows], 1e10)
        # d_ij = −∂φ/∂μ of the unordered pair = c_ij bᵀ I⁻ Σ I⁻ b; Σ_ij μ_ij d_ij = φ, and at the optimum d ≤ φ.
        middle = inverse * s.unsqueeze(-2) @ inverse - (inverse @ s.unsqueeze(-1)) @ (s.unsqueeze(-2) @ inverse)
        middle = (middle + middle.transpose(-1, -2)) / 2  # rounding must not make (i, j) and (j, i) differ
        spread = middle.diagonal(dim1=-2, dim2=-1)
        slope = c * (spread.unsqueeze(-1) + spread.unsqueeze(-2) - 2 * middle) * off_diagonal
        ratio = slope.clamp(min=0) / price.clamp(min=1e-300)[:, None, None]
        # Where π* gives all its mass to one response, the price is zero for every design.
        done = (ratio.amax((-1, -2)) <= 1 + tolerance) | (price <= 1e-250)
        moved = mu * ratio.sqrt()
        moved = torch.where(done[:, None, None], mu, moved)
        weights[open_rows] = moved / moved.sum((-1, -2), keepdim=True)
        open_rows = open_rows[~done]
        if len(open_rows) == 0:
            # Made symmetric, because rounding may have changed the last digit of (i, j) or (j, i).
            return ((weights + weights.transpose(-1, -2)) / 2).reshape(*lead, size, size)
    raise LabError(
        f"The design's certificate was not reached in {max_iterations} iterations (gap "
        f"{ratio.amax().item() - 1:.2g}, tolerance {tolerance:g}). Raise tolerance or max_iterations."
    )


def d_optimal_pair_design(reward: Tensor) -> Tensor:
    r"""The pair weights whose information about the rewards of a table has the maximum determinant.

    The multiplicative algorithm (Silvey, Titterington & Torsney 1978) stops when no pair's variance exceeds K − 1, its
    value at the optimum, by more than a thousandth (Kiefer & Wolfowitz 1960). Unlike `optimal_pair_design` this design
    does not know which rewards matter for the policy.

    Args:
        reward: the true rewards, (W, K).

    Returns:
        (W, K, K), symmetric, zero diagonal, summing to 1 over the last two axes.
    """
    information, size = _information(reward), reward.shape[-1]
    off_diagonal = ~torch.eye(size, dtype=torch.bool)
    mu = off_diagonal.to(reward.dtype).expand_as(information) / (size * (size - 1))
    for _ in range(20_000):
        edges = mu * information
        inverse = torch.linalg.inv(edges.sum(-1).diag_embed() - edges + edges.mean((-1, -2), keepdim=True))
        spread = inverse.diagonal(dim1=-2, dim2=-1)
        resistance = (spread.unsqueeze(-1) + spread.unsqueeze(-2) - inverse - inverse.mT).clamp(min=0)
        variance = information * resistance * off_diagonal / 2
        if variance.max() <= (size - 1) * (1 + 1e-3):
            break
        mu = mu * variance / (size - 1)
        mu = mu / mu.sum((-1, -2), keepdim=True)
    return mu


def _check_certifiable(star: Tensor, reward: Tensor) -> None:
    """Raise where the best design depends on labels so nearly certain that float64 cannot certify it.

    An error in the reward of response i changes the regret by about π*_i, and the information of a label against the
    best response is about exp(−gap). The share of response i in the price is therefore about π*_i exp(gap).
    """
    best = star.argmax(-1, keepdim=True)
    gap = (reward - reward.gather(-1, best)).abs()
    share = (star.log() + gap).scatter(-1, best, -torch.inf)
    counted = star >= 1e-18
    left_out = torch.where(counted, -torch.inf, share).amax(-1).exp()
    weighed = torch.where(counted, share, -torch.inf).amax(-1).exp()
    too_far = torch.where(counted, gap, 0.0).amax(-1)
    bad = (left_out > 1e-5 * weighed + 1e-12) | (too_far > 40)
    if bad.any():
        raise LabError(
            f"No design can be certified in double precision. In row {int(bad.nonzero()[0])} the rewards of responses "
            f"to which the optimal policy gives mass differ by {gap[bad][0].max().item():.3g}, so labels between them "
            f"are nearly certain. Scale the reward down, or lower beta."
        )


def _information(reward: Tensor) -> Tensor:
    """p_ij (1 − p_ij), (…, K, K): the Fisher information of one label on the pair about r_i − r_j."""
    gap = reward.unsqueeze(-1) - reward.unsqueeze(-2)
    return torch.sigmoid(gap) * torch.sigmoid(-gap)


def _check_weights(pair_weights: Tensor, log_star: Tensor) -> None:
    check_float(pair_weights, "pair_weights")
    size = log_star.shape[-1]
    if pair_weights.ndim < 2 or pair_weights.shape[-2:] != (size, size):
        raise LabError(
            f"pair_weights has shape {tuple(pair_weights.shape)}; with {size} responses it must end in "
            f"({size}, {size})."
        )
    check_responses_axis(log_ref=log_star.unsqueeze(-2), pair_weights=pair_weights)
    check_same_shape(log_ref=log_star.unsqueeze(-1), pair_weights=pair_weights)
    check_finite(pair_weights, "pair_weights")
    if (pair_weights < 0).any():
        raise LabError(
            f"pair_weights is negative at {first_true_index(pair_weights < 0)}. Its entries are probabilities."
        )
    total = pair_weights.detach().sum((-1, -2))
    bad = (total - 1).abs() > 1e-3
    if bad.any():
        raise LabError(
            f"pair_weights sum to {total[bad][0].item():.6g} over the last two axes, not 1. Divide by their sum."
        )


def _reachable(joined: Tensor, ground: Tensor) -> Tensor:
    """Whether a chain of compared pairs connects each response to the response `ground` (…, 1): booleans (…, K)."""
    reached = torch.zeros_like(joined[..., 0]).scatter(-1, ground, True)
    for _ in range(joined.shape[-1]):
        wider = reached | (joined & reached.unsqueeze(-2)).any(-1)
        if torch.equal(wider, reached):
            break
        reached = wider
    return reached


def _solve(
    edges: Tensor, star: Tensor, reached: Tensor, ground: Tensor, condition: float = 1e6
) -> tuple[Tensor, Tensor]:
    """tr(Σ L⁻) and the inverse of the Laplacian L of `edges`, grounded at one response.

    Σ1 = 0, so any generalised inverse gives the same trace. Grounding sets the reward of one response to 0, which
    Bradley–Terry allows, and makes the other rows positive definite. Responses that are not connected get rows of
    zeros. The ground is the response with the largest π*, because the difference in the last line then loses no digits.
    `condition` bounds the scaled inverse, whose relative error is about `condition` times 1e-16. Where the bound is
    exceeded, the slower elimination without cancellation is used.
    """
    grounded = torch.zeros_like(reached).scatter(-1, ground, True)
    free = reached & ~grounded
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    # Scaled to a unit diagonal, which keeps weights of very different sizes well conditioned.
    scale = torch.where(free, edges.sum(-1), 1.0).clamp(min=torch.finfo(edges.dtype).tiny).rsqrt()
    body = torch.where(both, -edges * scale.unsqueeze(-1) * scale.unsqueeze(-2), 0.0)
    body = body + torch.eye(edges.shape[-1], dtype=edges.dtype, device=edges.device)
    scaled, failed = torch.linalg.inv_ex(body)
    # The matrix is singular to working precision if two responses are close to each other and far from the ground.
    if bool(failed.any()) or not bool((scaled.detach().abs().sum(-1) < condition).all()):
        inverse = _eliminate(torch.where(reached.unsqueeze(-1) & reached.unsqueeze(-2), edges, 0.0), grounded)
    else:
        inverse = scaled * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    # A response without mass has no weight, even if nothing is known about its reward.
    inverse = torch.where(both, inverse, 0.0)
    counted = torch.where((star > 0).unsqueeze(-1) & (star > 0).unsqueeze(-2), inverse, 0.0)
    price = (star * counted.diagonal(dim1=-2, dim2=-1)).sum(-1) - torch.einsum(
        "...i,...ij,...j->...", star, counted, star
    )
    return price.clamp(min=0), inverse


def _eliminate(edges: Tensor, grounded: Tensor) -> Tensor:
    """The grounded inverse Laplacian, computed without subtractions, so that every entry keeps its digits.

    The responses are eliminated one by one. Eliminating response k adds the edges w_ik w_kj / Σ w_k between its
    neighbours (the star–mesh transform; Grassmann, Taksar & Heyman 1985 used it for Markov chains). Then the responses
    are added back in the opposite order. A response k that reaches the earlier ones with the probabilities q adds the
    row q G and the corner 1/Σ w_k + q G qᵀ to the inverse G.
    """
    size = edges.shape[-1]
    ground = torch.where(grounded.unsqueeze(-2), edges, 0.0).sum(-1)
    edges = torch.where(grounded.unsqueeze(-1) | grounded.unsqueeze(-2), 0.0, edges)
    steps: list[tuple[Tensor, Tensor]] = []
    for k in range(size - 1, -1, -1):
        row = edges[..., k, :k]
        total = row.sum(-1) + ground[..., k]
        total = torch.where(total > 0, total, 1.0)  # not connected, or the ground itself
        chance = row / total.unsqueeze(-1)
        steps.append((chance, total))
        edges = edges[..., :k, :k] + edges[..., :k, k].unsqueeze(-1) * chance.unsqueeze(-2)
        edges = edges.masked_fill(torch.eye(k, dtype=torch.bool, device=edges.device), 0.0)
        ground = ground[..., :k] + chance * ground[..., k].unsqueeze(-1)
    inverse = edges
    for chance, total in reversed(steps):
        row = (chance.unsqueeze(-2) @ inverse).squeeze(-2)
        corner = 1 / total + (row * chance).sum(-1)
        inverse = torch.cat([inverse, row.unsqueeze(-2)], -2)
        inverse = torch.cat([inverse, torch.cat([row, corner.unsqueeze(-1)], -1).unsqueeze(-1)], -1)
    return inverse
