r"""What a preference label is worth, and which pairs to spend labels on.

For rewards of K responses fitted to N Bradley–Terry labels on pairs drawn from μ, the Fisher information is a
weighted graph Laplacian,

    I(μ) = Σ_{i<j} w_ij b_ij b_ijᵀ,   w_ij = (μ_ij + μ_ji) p_ij (1 − p_ij),   b_ij = e_i − e_j,

and the plug-in policy π̂ ∝ π_ref exp(r̂/β) loses, to leading order in 1/N,

    N · E[J(π*) − J(π̂)] → φ(μ) = tr(Σ I(μ)⁺) / (2β),   Σ = diag(π*) − π* π*ᵀ,

because J(π*) − J(π̂) = β KL(π̂‖π*) is half a quadratic form in (r̂ − r)/β with matrix βΣ. φ is convex in μ: a
c-optimal-type design problem, solved by the multiplicative algorithm with power ½ (Silvey, Titterington &
Torsney 1978; Yu 2010), and certified by the equivalence theorem (Kiefer & Wolfowitz). It answers the lecture's
last question for a finite set of responses: given a budget of labels, which pairs?
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
        pair_weights: μ, (…, K, K), non-negative, summing to 1: the probability that a label is spent on the
            ordered pair (i, j). (i, j) and (j, i) are the same pair; the diagonal is labels thrown away.

    Returns:
        (…), units of reward × labels. Divide by N for the expected regret. `+inf` where the pairs leave some
        response that π* needs without a chain of comparisons to the others.

    Raises:
        LabError: as `exact.optimal_policy`, and for pair_weights of another shape, negative or not summing to 1.
    """
    beta = check_beta(beta)
    log_star = optimal_policy(log_ref, reward, beta)
    _check_weights(pair_weights, log_star)
    dtype = torch.promote_types(log_star.dtype, pair_weights.dtype)
    # Doubles inside: a gap of 30 leaves p(1 − p) = 1e-13, beside which floats cannot hold a ¼.
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
    r"""The pair weights that minimise `label_price`: where labels teach the policy most.

    The algorithm stops when no pair's directional derivative exceeds the price by more than `tolerance` of it;
    by convexity the price is then within that fraction of the least possible one. The design depends on the
    unknown rewards: it is the bound that active strategies are measured against.

    Args:
        log_ref: (…, K), K ≥ 2.
        reward: (…, K).
        beta: β > 0.
        tolerance: relative gap of the certificate.
        max_iterations: where it stops without the certificate, with an error.

    Returns:
        (…, K, K) float64, symmetric, zero diagonal, summing to 1 over the last two axes.

    Raises:
        LabError: K = 1; inputs as in `label_price`; the certificate not reached in `max_iterations`, or out of
            reach because responses that the policy needs lie more than about 40 apart in reward.
    """
    beta = check_beta(beta)
    log_star = optimal_policy(log_ref, reward, beta).detach().double()
    size = log_star.shape[-1]
    if size < 2:
        raise LabError("A pair needs two responses: log_ref has only one.")
    lead = log_star.shape[:-1]
    star = log_star.exp().reshape(-1, size)
    reward = torch.broadcast_to(reward.detach().double(), log_star.shape).reshape(-1, size)
    # Pairs so unequal that their label is known beforehand carry no information that doubles can hold; a floor
    # keeps every design's price finite, and such a pair unattractive.
    information = _information(reward).clamp(min=1e-18)
    off_diagonal = ~torch.eye(size, dtype=torch.bool)

    # Mass below this would ask for pairs that nothing can certify; where it is worth a label there is an error.
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
        middle = (middle + middle.transpose(-1, -2)) / 2  # rounding must not part (i, j) from (j, i)
        spread = middle.diagonal(dim1=-2, dim2=-1)
        slope = c * (spread.unsqueeze(-1) + spread.unsqueeze(-2) - 2 * middle) * off_diagonal
        ratio = slope.clamp(min=0) / price.clamp(min=1e-300)[:, None, None]
        # With π* on one response alone the price is zero for every design: nothing to choose.
        done = (ratio.amax((-1, -2)) <= 1 + tolerance) | (price <= 1e-250)
        moved = mu * ratio.sqrt()
        moved = torch.where(done[:, None, None], mu, moved)
        weights[open_rows] = moved / moved.sum((-1, -2), keepdim=True)
        open_rows = open_rows[~done]
        if len(open_rows) == 0:
            # Halved with its mirror image: rounding may have parted (i, j) from (j, i) in the last digit.
            return ((weights + weights.transpose(-1, -2)) / 2).reshape(*lead, size, size)
    raise LabError(
        f"The design's certificate was not reached in {max_iterations} iterations (gap "
        f"{ratio.amax().item() - 1:.2g}, tolerance {tolerance:g}). Raise tolerance or max_iterations."
    )


def _check_certifiable(star: Tensor, reward: Tensor) -> None:
    """Raise where the best design hangs on labels so nearly certain that doubles cannot certify it.

    An error in the reward of response i costs about π*_i, and a label against the best response tells
    exp(−gap) of it: its share of the price is about π*_i exp(gap).
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
            f"No design can be certified in double precision: in row {int(bad.nonzero()[0])} the reward holds "
            f"responses {gap[bad][0].max().item():.3g} apart that the policy needs, and labels between them are "
            f"all but certain. Scale the reward down, or lower beta."
        )


def _information(reward: Tensor) -> Tensor:
    """p_ij (1 − p_ij), (…, K, K): what one label on the pair tells of r_i − r_j."""
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
        raise LabError(f"pair_weights is negative at {first_true_index(pair_weights < 0)}; they are probabilities.")
    total = pair_weights.detach().sum((-1, -2))
    bad = (total - 1).abs() > 1e-3
    if bad.any():
        raise LabError(
            f"pair_weights sum to {total[bad][0].item():.6g} over the last two axes, not 1. Divide by their sum."
        )


def _reachable(joined: Tensor, ground: Tensor) -> Tensor:
    """Which responses a chain of compared pairs joins to `ground` (…, 1): booleans (…, K)."""
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
    """tr(Σ L⁻) and the inverse of the Laplacian of `edges`, grounded at one response.

    Σ1 = 0, so any generalised inverse gives the same trace. Grounding (the reward of one response is set to 0,
    which Bradley–Terry allows) makes the rest positive definite. Rows out of reach are rows of zeros. With the
    ground at the largest π* the difference in the last line loses no digits that the inverse has. Beyond
    `condition` (a bound on the scaled inverse; times 1e-16, the relative error) the slow and sure way is taken.
    """
    grounded = torch.zeros_like(reached).scatter(-1, ground, True)
    free = reached & ~grounded
    both = free.unsqueeze(-1) & free.unsqueeze(-2)
    # Scaled to a unit diagonal, so that weights of very different size stay well conditioned.
    scale = torch.where(free, edges.sum(-1), 1.0).clamp(min=torch.finfo(edges.dtype).tiny).rsqrt()
    body = torch.where(both, -edges * scale.unsqueeze(-1) * scale.unsqueeze(-2), 0.0)
    body = body + torch.eye(edges.shape[-1], dtype=edges.dtype, device=edges.device)
    scaled, failed = torch.linalg.inv_ex(body)
    # Two responses close to each other and far from the ground are singular to working precision.
    if bool(failed.any()) or not bool((scaled.detach().abs().sum(-1) < condition).all()):
        inverse = _eliminate(torch.where(reached.unsqueeze(-1) & reached.unsqueeze(-2), edges, 0.0), grounded)
    else:
        inverse = scaled * scale.unsqueeze(-1) * scale.unsqueeze(-2)
    # A response without mass weighs nothing, however little is known of it.
    inverse = torch.where(both, inverse, 0.0)
    counted = torch.where((star > 0).unsqueeze(-1) & (star > 0).unsqueeze(-2), inverse, 0.0)
    price = (star * counted.diagonal(dim1=-2, dim2=-1)).sum(-1) - torch.einsum(
        "...i,...ij,...j->...", star, counted, star
    )
    return price.clamp(min=0), inverse


def _eliminate(edges: Tensor, grounded: Tensor) -> Tensor:
    """The grounded inverse Laplacian without a single subtraction, so that every entry keeps its digits.

    Responses leave one by one, each leaving to its neighbours the edges w_ik w_kj / Σ w_k (the star–mesh
    transform; Grassmann, Taksar & Heyman 1985 did so for Markov chains), and come back in the opposite order: a
    response k that reaches the earlier ones with chances q adds the row q G and the corner 1/Σ w_k + q G qᵀ.
    """
    size = edges.shape[-1]
    ground = torch.where(grounded.unsqueeze(-2), edges, 0.0).sum(-1)
    edges = torch.where(grounded.unsqueeze(-1) | grounded.unsqueeze(-2), 0.0, edges)
    steps: list[tuple[Tensor, Tensor]] = []
    for k in range(size - 1, -1, -1):
        row = edges[..., k, :k]
        total = row.sum(-1) + ground[..., k]
        total = torch.where(total > 0, total, 1.0)  # out of reach, or the ground itself
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
