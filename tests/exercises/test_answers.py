"""What students write, for every exercise: other right forms pass, and each kind of wrong answer is told the truth."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Linear
from torch.nn.functional import cross_entropy, kl_div, logsigmoid, softplus

from rlhf_lab.exercises import check, exercise, notebooks, of_notebook

EXERCISES = [one for number in notebooks() for one in of_notebook(number) if one.kind == "implement"]
each = pytest.mark.parametrize("one", EXERCISES, ids=lambda one: one.key)


def diag(p: Tensor) -> Tensor:
    return torch.diag(p) - p[:, None] * p[None, :]


def log_mean(x: Tensor) -> Tensor:
    best = x.max(-1, keepdim=True).values
    return (x - best).exp().mean(-1).log() + best[..., 0]


def by_position(score, p, q, mask, beta):
    out = torch.where(mask, -beta * (p - q), 0.0)
    for b in range(out.shape[0]):
        for g in range(out.shape[1]):
            out[b, g, int(mask[b, g].sum()) - 1] += score[b, g]
    return out


def clipped_by_sign(ratio, a, c):
    return torch.where(a > 0, ratio.clamp(max=1 + c), ratio.clamp(min=1 - c)) * a


def population(lp, lr, r, b):
    total, k = 0.0, len(r)
    for i in range(k):
        for j in range(i):
            m = b * (lp[i] - lr[i] - lp[j] + lr[j])
            p = torch.sigmoid(r[i] - r[j])
            total = total + p * softplus(-m) + (1 - p) * softplus(m)
    return total / (k * (k - 1) / 2)


def each_pair_once(implicit, r):
    """p softplus(−m) + (1 − p) softplus(m) is softplus(−m) + (1 − p) m."""
    i, j = torch.triu_indices(len(r), len(r), 1)
    m = implicit[i] - implicit[j]
    return (softplus(-m) + torch.sigmoid(r[j] - r[i]) * m).mean()


def by_autograd(logits, ref, w, losing, beta):
    x = logits.clone().requires_grad_(True)
    ratio = x.log_softmax(-1) - ref
    return torch.autograd.grad(softplus(-beta * (ratio[w] - ratio[losing])), x)[0]


def leave_one_out(p, q):
    k = (p - q).detach()
    return (k - (k.sum() - k) / (len(k) - 1)) * p


RIGHT = {
    "nb00.optimal_policy": [
        lambda lr, r, b: (lr + r / b).softmax(-1).log(),
        lambda lr, r, b: lr + r / b - torch.logsumexp(lr + r / b, 1, keepdim=True),
        lambda lr, r, b: torch.log(lr.exp() * (r / b).exp() / (lr.exp() * (r / b).exp()).sum(1)[:, None]),
    ],
    "nb01.sft_loss": [
        lambda z, ids, m: (cross_entropy(z[:, :-1].mT, ids[:, 1:], reduction="none") * m[:, 1:]).sum() / len(ids),
        lambda z, ids, m: sum(-z[b, :-1].log_softmax(-1)[range(4), ids[b, 1:]][m[b, 1:]].sum() for b in range(2)) / 2,
        lambda z, ids, m: (
            torch.where(m[:, 1:], z[:, :-1].logsumexp(-1) - z[:, :-1].gather(-1, ids[:, 1:, None])[..., 0], 0.0)
            .sum(1)
            .mean()
        ),
    ],
    "nb01.reward_distance": [
        lambda a, b: (a - b).std(-1, correction=0),
        lambda a, b: ((a - b).pow(2).mean(1) - (a - b).mean(1) ** 2).clamp(min=0).sqrt(),
        lambda a, b: (a - a.mean(-1, keepdim=True) - b + b.mean(-1, keepdim=True)).norm(dim=-1) / a.shape[-1] ** 0.5,
    ],
    "nb01.token_rewards": [
        by_position,
        lambda s, p, q, m, b: (
            b * (q - p) * m + s[..., None] * (torch.arange(m.shape[-1]) == m.sum(-1, keepdim=True) - 1)
        ),
        lambda s, p, q, m, b: (
            -b * torch.where(m, p - q, 0.0) + s[..., None] * torch.nn.functional.one_hot(m.sum(-1) - 1, m.shape[-1])
        ),
    ],
    "nb01.clipped_surrogate": [
        clipped_by_sign,
        lambda ratio, a, c: torch.min(ratio * a, torch.clip(ratio, 1 - c, 1 + c) * a),
        lambda ratio, a, c: -torch.max(-ratio * a, -ratio.clamp(1 - c, 1 + c) * a),
    ],
    "nb02.kl": [
        lambda p, q: kl_div(q, p, reduction="none", log_target=True).sum(-1),
        lambda p, q: (p.exp() * p).sum(-1) - (p.exp() * q).sum(-1),
        lambda p, q: torch.einsum("...k,...k->...", p.exp(), p - q),
    ],
    "nb02.k3": [
        lambda p, q: torch.expm1(q - p) - (q - p),
        lambda p, q: (q - p).exp() - (1 + q - p),
        lambda p, q: q.exp() / p.exp() - 1 - torch.log(q.exp() / p.exp()),
    ],
    "nb02.response_k1": [
        lambda p, q, m: torch.where(m, p - q, 0.0).sum(-1),
        lambda p, q, m: (p * m).sum(-1) - (q * m).sum(-1),
        lambda p, q, m: (p - q).masked_fill(~m, 0.0).sum(2),
    ],
    "nb02.kl_term": [
        lambda p, q: (p - q).square() / 2,
        lambda p, q: (p - q + 1).detach() * p,
        lambda p, q: (p - q - 0.7).detach() * p,
        leave_one_out,
        lambda p, q: (p - q - (p - q).mean()).detach() * p,
        lambda p, q: (p - p.detach()).exp() * (p - q).detach(),
        lambda p, q: (p - q).detach() * p + (p - q),
    ],
    "nb03.regret": [
        lambda p, s, b: b * kl_div(s, p, reduction="none", log_target=True).sum(-1),
        lambda p, s, b: b * ((p.exp() * p).sum(-1) - (p.exp() * s).sum(-1)),
        lambda p, s, b: torch.einsum("xk,xk->x", p.exp(), p - s) * b,
    ],
    "nb03.optimal_policy": [
        lambda lr, r, b: (lr + r / b).softmax(-1).log(),
        lambda lr, r, b: lr + r / b - torch.logsumexp(lr + r / b, -1, keepdim=True),
        lambda lr, r, b: torch.log_softmax(lr + (r - r.max()) / b, -1),
    ],
    "nb03.soft_value": [
        lambda lr, r, v, b: b * (lr + (r + v) / b).logsumexp(1),
        lambda lr, r, v, b: b * (log_mean(lr + (r + v) / b) + math.log(r.shape[-1])),
        lambda lr, r, v, b: b * torch.logsumexp((b * lr + r + v) / b, -1),
    ],
    "nb03.beta_for_kl": [
        lambda lr, r, kl: newton_free(lr, r, kl, 40),
        lambda lr, r, kl: newton_free(lr, r, kl, 25),
        lambda lr, r, kl: by_inverse(lr, r, kl),
    ],
    "nb04.log_z_estimate": [
        lambda r, b: log_mean(r / b),
        lambda r, b: torch.logsumexp(r / b - math.log(r.shape[1]), 1),
        lambda r, b: (r / b).logsumexp(-1) - torch.tensor(float(r.shape[-1]), dtype=r.dtype).log(),
    ],
    "nb04.samples_needed": [
        lambda lr, r, b, a: (
            ((lr.exp() * (2 * r / b).exp()).sum(-1) / (lr.exp() * (r / b).exp()).sum(-1) ** 2 - 1) / a**2
        ),
        lambda lr, r, b, a: ((((lr + r / b).log_softmax(-1) - lr).exp() * (lr + r / b).softmax(-1)).sum(-1) - 1) / a**2,
        lambda lr, r, b, a: torch.expm1((lr + 2 * r / b).logsumexp(-1) - 2 * (lr + r / b).logsumexp(-1)) / a / a,
    ],
    "nb04.preference": [
        lambda p, q, b: ((p - q)[:, None] * b - (p - q)[None, :] * b).sigmoid(),
        lambda p, q, b: 1 / (1 + ((p - q)[None, :] - (p - q)[:, None]).mul(b).exp()),
        lambda p, q, b: (p - q).mul(b).exp()[:, None] / ((p - q).mul(b).exp()[:, None] + (p - q).mul(b).exp()[None, :]),
    ],
    "nb04.log_z_chain": [
        lambda f, m, r, b, n: (f.exp() @ torch.linalg.matrix_power((m + r / b).exp(), n - 1)).sum().log(),
        lambda f, m, r, b, n: (torch.linalg.matrix_power((m + r / b).exp().T, n - 1) @ f.exp()).sum().log(),
        lambda f, m, r, b, n: every_sequence(f, m + r / b, n).logsumexp(0),
    ],
    "nb05.dpo_loss": [
        lambda c, r, b: softplus(b * (r - c)),
        lambda c, r, b: torch.logaddexp(torch.zeros_like(c), b * (r - c)),
        lambda c, r, b: -logsigmoid(b * c - b * r),
    ],
    "nb05.population_loss": [
        population,
        lambda lp, lr, r, b: (
            -2
            * (torch.sigmoid(r[:, None] - r) * logsigmoid(b * ((lp - lr)[:, None] - (lp - lr)))).fill_diagonal_(0).sum()
            / (len(r) * (len(r) - 1))
        ),
        lambda lp, lr, r, b: each_pair_once(b * (lp - lr), r),
    ],
    "nb05.robust_loss": [
        lambda c, r, b, e: ((1 - e) * softplus(b * (r - c)) - e * softplus(b * (c - r))) / (1 - 2 * e),
        lambda c, r, b, e: -logsigmoid(b * (c - r)) - e / (1 - 2 * e) * b * (c - r),
        lambda c, r, b, e: (softplus(b * (r - c)) - e * (softplus(b * (r - c)) + softplus(b * (c - r)))) / (1 - 2 * e),
    ],
    "nb05.ipo_margin": [
        lambda p, t: (2 * p - 1) / (2 * t),
        lambda p, t: p / (2 * t) - (1 - p) / (2 * t),
        lambda p, t: torch.tensor([(x - 0.5) / t for x in p.tolist()]),
    ],
    "nb06.dpo_gradient": [
        by_autograd,
        lambda x, ref, w, losing, b: (
            b
            * torch.sigmoid(b * ((x - ref)[losing] - (x - ref)[w]))
            * (torch.eye(len(x))[losing] - torch.eye(len(x))[w])
        ),
        lambda x, ref, w, losing, b: torch.autograd.functional.jacobian(
            lambda z: -logsigmoid(b * ((z - ref)[w] - (z - ref)[losing])), x
        ),
    ],
    "nb06.chosen_speed": [
        lambda c, r, b, w: b * w * (c @ c - c @ r),
        lambda c, r, b, w: (b * w * c * (c - r)).sum(),
        lambda c, r, b, w: (c @ (c - r)).item() * b * w,
    ],
    "nb06.response_log_prob": [
        lambda t, m: t.masked_fill(~m, 0.0).sum(-1),
        lambda t, m: torch.nan_to_num(t, neginf=0.0).mul(m).sum(-1),
        lambda t, m: torch.tensor([[t[b, g][m[b, g]].sum() for g in range(t.shape[1])] for b in range(t.shape[0])]),
    ],
    "nb07.acceptance": [
        lambda r, b: (r / b - (r / b).max(-1, keepdim=True).values).exp(),
        lambda r, b: (r / b).softmax(-1) / (r / b).softmax(-1).max(-1, keepdim=True)[0],
        lambda r, b: torch.stack([((row - row.max()) / b).exp() for row in r]),
    ],
    "nb07.acceptance_rate": [
        lambda s, r, b: (s + (r - r.amax(-1, keepdim=True)) / b).logsumexp(-1).exp(),
        lambda s, r, b: (s.exp() * (r / b).exp()).sum(-1) / (r.max(-1).values / b).exp(),
        lambda s, r, b: 1 / ((s + r / b).log_softmax(-1) - s).max(-1).values.exp(),
    ],
    "nb07.gumbel_top_k": [
        lambda r, b, u, n: (r - b * (-u.log()).log()).argsort(-1, descending=True)[:, :n],
        lambda r, b, u, n: ((r / b).exp() / -u.log()).topk(n, -1).indices,
        lambda r, b, u, n: (u.log() / (r / b).exp()).topk(n).indices,
    ],
    "nb07.two_accepted": [
        lambda r, b: torch.stack([following(torch.softmax(r / b, -1), i) for i in range(len(r))]),
        lambda r, b: torch.tensor(
            [[0.0 if i == j else second(r / b, i, j) for j in range(len(r))] for i in range(len(r))]
        ),
        lambda r, b: ((r / b).softmax(0).logit().exp()[:, None] * (r / b).softmax(0)).fill_diagonal_(0),
    ],
    "nb08.first_round": [
        lambda s: (s.exp()[:, None] * s.exp()).fill_diagonal_(0) / (1 - s.exp().square().sum()),
        lambda s: (s[:, None] + s).exp().sub(torch.diag((2 * s).exp())) / (1 - (2 * s).exp().sum()),
        lambda s: (
            (s[:, None] + s).masked_fill(torch.eye(len(s)).bool(), -torch.inf).flatten().softmax(0).view(len(s), -1)
        ),
    ],
    "nb08.fitted_policy": [
        lambda s, r, b, g: (s + r / g).softmax(-1).log(),
        lambda s, r, b, g: s + r / g - (s + r / g).logsumexp(-1),
        lambda s, r, b, g: torch.log(s.exp() * (r / g).exp() / (s.exp() * (r / g).exp()).sum()),
    ],
    "nb08.information": [
        lambda r, w: laplacian(r, w),
        lambda r, w: -torch.autograd.functional.hessian(lambda x: (w * expected_log(r, x)).sum(), r),
        lambda r, w: by_vectors(w / (2 + 2 * torch.cosh(r[:, None] - r))),
    ],
    "nb08.where_rso_loses": [
        lambda f: ([math.log(0.25)] * 4, [0.0, 0.0, -20.0, -20.0], 0.5),
        lambda f: (torch.full((4,), 0.25).log().double(), torch.tensor([0.0, 0.0, -20.0, -20.0]), torch.tensor(0.5)),
        lambda f: (np.log([0.3, 0.3, 0.4]), np.array([2.0, 2.0, -4.0]), 0.5),
    ],
    "nb09.improve_loss": [
        lambda s, lp, t: -torch.where(s > t, lp, 0.0).mean(),
        lambda s, lp, t: -lp[s > t].sum() / lp.numel(),
        lambda s, lp, t: -((s > t).float() * lp).sum() / (lp.shape[0] * lp.shape[1]),
    ],
    "nb09.filter_limit": [
        lambda lr, r, t: torch.where(r > t, lr, -torch.inf).softmax(-1),
        lambda lr, r, t: lr.exp() * (r > t) / (lr.exp() * (r > t)).sum(1)[:, None],
        lambda lr, r, t: torch.nn.functional.normalize(lr.exp() * (r > t).double(), p=1, dim=-1),
    ],
    "nb09.best_of_n": [
        lambda *given: by_listing(*given),
        lambda p, r, n: torch.zeros_like(p).scatter(
            0, r.argsort(), torch.diff(p[r.argsort()].cumsum(0) ** n, prepend=torch.zeros(1, dtype=p.dtype))
        ),
        lambda p, r, n: sum(
            math.comb(n, k) * p**k * (p * (r < r[:, None])).sum(-1) ** (n - k) for k in range(1, n + 1)
        ),
    ],
    "nb09.least_regret": [
        lambda lr, r, b: min(float(cut_regret(lr, r, b, low)) for low in r.tolist()),
        lambda lr, r, b: torch.stack([cut_regret(lr, r, b, low) for low in r.tolist()]).min(),
        lambda lr, r, b: by_sorted_sums(lr, r, b),
    ],
    "nb10.regret_of_place": [
        lambda kl, r, z, b: b * (z + kl) - r,
        lambda kl, r, z, b: torch.tensor([b * z - x + b * k for k, x in zip(kl.tolist(), r.tolist(), strict=True)]),
        lambda kl, r, z, b: torch.full_like(r, b * z).sub(r).add(kl, alpha=b),
    ],
    "nb10.equal_price": [
        lambda ka, ra, kb, rb: (rb - ra) / (kb - ka),
        lambda ka, ra, kb, rb: torch.tensor((ra - rb) / (ka - kb)),
        lambda ka, ra, kb, rb: np.float64((ra - rb) / (ka - kb)),
    ],
    "nb10.regret_in_two": [
        lambda *a: torch.stack(exercise("nb10.regret_in_two").solution(*a)),
        lambda p, q, r, b, t: (gap(p, q, r, t), gap((q + r / t).log_softmax(0), q, r, b)),
        lambda p, q, r, b, t: [gap(p, q, r, t).item(), gap((q + r / t).log_softmax(0), q, r, b).item()],
    ],
    "nb11.response_kl": [
        lambda p, q, m: torch.where(m, p - q, 0.0).sum() / (m.shape[0] * m.shape[1]),
        lambda p, q, m: ((p * m).sum(-1) - (q * m).sum(-1)).mean().item(),
        lambda p, q, m: (p - q).masked_fill(~m, 0).sum(2).flatten().mean(),
    ],
    "nb11.error_over_prompts": [
        lambda s: s.mean(1).var().div(len(s)).sqrt(),
        lambda s: float(np.std(s.mean(1).numpy(), ddof=1) / len(s) ** 0.5),
        lambda s: ((s.mean(1) - s.mean()).square().sum() / (len(s) * (len(s) - 1))).sqrt(),
    ],
    "nb11.gold_under_tilt": [
        lambda p, g, b: (((p / b).exp() * g).sum(-1) / (p / b).exp().sum(-1)).mean(),
        lambda p, g, b: torch.stack([(x / b).softmax(0) @ y for x, y in zip(p, g, strict=True)]).mean(),
        lambda p, g, b: ((p / b - (p / b).logsumexp(1, keepdim=True)).exp() * g).sum().item() / len(p),
    ],
    "nb12.ended": [
        lambda y, e, n: y[:n] if len(y) >= n else [*y, e],
        lambda y, e, n: list((*y, e))[:n],
        lambda y, e, n: torch.tensor([*y, e])[:n],
    ],
    "nb12.adapter_weights": [
        lambda i, o, r: r * i + o * r,
        lambda i, o, r: float(r * (i + o)),
        lambda i, o, r: sum(one.weight.numel() for one in (Linear(i, r, bias=False), Linear(r, o, bias=False))),
    ],
    "nb12.training_bytes": [
        lambda w, t, ref: 4 * (w * (1 + ref) + 3 * t),
        lambda w, t, ref: 4.0 * w + 12 * t + 4 * w * ref,
        lambda w, t, ref: sum(4 * count for count in (w, t, t, t, w if ref else 0)),
    ],
    "nb13.moving_regret": [
        lambda p, q, r, u, a, b: (
            b * (q + (math.cos(a) * r + math.sin(a) * u) / b).logsumexp(-1)
            - (p.exp() * (math.cos(a) * r + math.sin(a) * u - b * (p - q))).sum(-1)
        ),
        lambda p, q, r, u, a, b: (
            b * kl_div(turned_optimum(q, r, u, a, b), p, reduction="none", log_target=True).sum(-1)
        ),
        lambda p, q, r, u, a, b: gap(
            p, q, torch.stack([r, u], -1) @ torch.tensor([math.cos(a), math.sin(a)]).double(), b
        ),
    ],
    "nb13.window_cost": [
        lambda p, d, n, w, k: sum(p / (n * w) + d * ((w + 1) / 2 + late) ** 2 for late in range(k)) / k,
        lambda p, d, n, w, k: p / n / w + d * (((w + k) / 2) ** 2 + (k * k - 1) / 12),
        lambda p, d, n, w, k: p / (n * w) + d * (torch.arange(k).double() + (w + 1) / 2).square().mean(),
    ],
    "nb13.best_window": [
        lambda p, d, n: 1 + int(torch.tensor([p / n / w + d * (w + 1) ** 2 / 4 for w in range(1, 500)]).argmin()),
        lambda p, d, n: min(range(1, 400), key=lambda w: p / (n * w) + d * ((w + 1) / 2) ** 2),
        # One more round pays as long as it lowers the variance by more than it raises the squared age.
        lambda p, d, n: next(w for w in itertools.count(1) if p / (n * w * (w + 1)) < d * (2 * w + 3) / 4),
    ],
    "nb13.once_wins": [
        lambda p, late, n: torch.tensor([2 * p / (late * n), 0.5]),
        lambda p, late, n: (1.0, 3.0),
        lambda p, late, n: np.array([1, 1]),
    ],
    "nb14.share_labels": [
        lambda p, n: n * p**0.5 / (p**0.5).sum(),
        lambda p, n: torch.tensor([n * x**0.5 / sum(y**0.5 for y in p.tolist()) for x in p.tolist()]),
        lambda p, n: n * (0.5 * p.log()).softmax(-1),
    ],
    "nb14.worth_of_a_label": [
        lambda *given: by_update(*given),
        lambda m, t, v: t * across(v @ m @ v) / (1 + t * across(v)),
        lambda m, t, v: across(v @ m @ v) / (1 / t + across(v)),
    ],
    "nb14.regret_of_both": [
        lambda s, d, i, nd, nl, db, b: (diag(s) * torch.linalg.pinv(nd * diag(d) / db**2 + nl * i)).sum() / b / 2,
        lambda s, d, i, nd, nl, db, b: (
            torch.linalg.solve(nd / db**2 * diag(d) + nl * i + 1, diag(s)).diagonal().sum().item() / (2 * b)
        ),
        lambda s, d, i, nd, nl, db, b: (
            torch.trace(diag(s) @ torch.linalg.inv(nd * diag(d) / db**2 + nl * i + torch.ones_like(i))) / (2 * b)
        ),
    ],
    "nb15.leave_one_out": [
        lambda s: s.shape[-1] / (s.shape[-1] - 1) * (s - s.mean(-1, keepdim=True)),
        lambda s: s - s @ ((1 - torch.eye(s.shape[-1], dtype=s.dtype)) / (s.shape[-1] - 1)),
        lambda s: torch.stack([torch.stack([(r[i] - r).sum() / (len(r) - 1) for i in range(len(r))]) for r in s]),
    ],
    "nb15.success_with_k3": [
        lambda p, b: 1 - 2 * b * (1 - p) / (1 + b + ((1 + b) ** 2 - 4 * b * (1 - p)) ** 0.5),
        lambda p, b: (1 - b + ((1 - b) ** 2 + 4 * b * p).sqrt()) / 2,
        lambda p, b: torch.stack([halved(float(x), b) for x in p]),
    ],
    "nb15.equivalent_beta": [
        lambda ref, p: 1 / (p * (1 - ref) / (ref * (1 - p))).log(),
        lambda ref, p: 1 / ((p.log() - ref.log()) - (torch.log1p(-p) - torch.log1p(-ref))),
        lambda ref, p: (torch.special.logit(p) - torch.special.logit(ref)) ** -1,
    ],
}


# Wrong answers beside the mistakes that an exercise knows.
WRONG = {
    "nb03.beta_for_kl": [
        (lambda lr, r, kl: 2 * newton_free(lr, r, kl, 40), "expected"),
        (lambda lr, r, kl: newton_free(lr, r, kl / math.log(2), 40), "expected"),
        (lambda lr, r, kl: newton_free(lr, r, kl, 3), "expected"),
    ],
    "nb08.where_rso_loses": [
        (lambda f: ([math.log(1 / 3)] * 3, [0.0, 1.0], 0.5), "shape"),
        (lambda f: ([0.5, 0.5], [0.0, 1.0], 0.5), "this is not a valid world"),
        (lambda f: ([math.log(1 / 3)] * 3, [0.0, 1.0, 2.0], 0.0), "this is not a valid world"),
        (lambda f: ("a", "b", "c"), "tensors of K numbers"),
        (lambda f: (1.0, 2.0), "three things"),
    ],
    "nb12.adapter_weights": [
        (lambda i, o, r: i + o, "expected"),
        (lambda i, o, r: r * (i + o) + o, "expected"),
    ],
    "nb13.best_window": [
        (lambda p, d, n: (2 * p / (n * d)) ** (1 / 3) / 2, "expected"),
        (lambda p, d, n: min(p / (n * w) + d * ((w + 1) / 2) ** 2 for w in range(1, 400)), "expected"),
    ],
    "nb13.once_wins": [
        (lambda *given: ["a", 1.0], "two numbers"),
        (lambda *given: (1.0, 1.0, 1.0), "two numbers"),
        (lambda *given: (0.2, 1.0), "too few"),
        (lambda *given: (1.0, 7.0), "not allowed"),
    ],
}


def turned_optimum(log_ref, reward, velocity, angle, beta):
    """log π* of the rewards after a turn."""
    return (log_ref + (math.cos(angle) * reward + math.sin(angle) * velocity) / beta).log_softmax(-1)


def every_sequence(first, following, length):
    """The sums of all V^length sequences."""
    size = range(len(first))
    return torch.stack(
        [
            first[y[0]] + sum(following[one, two] for one, two in itertools.pairwise(y))
            for y in itertools.product(size, repeat=length)
        ]
    )


def by_vectors(weight):
    """Σ weight b bᵀ over all ordered pairs."""
    eye = torch.eye(len(weight), dtype=weight.dtype)
    b = eye[:, None] - eye
    return torch.einsum("ij,ijk,ijl->kl", weight, b, b)


def by_sorted_sums(lr, r, b):
    """The regret β log Z − J of every threshold from cumulated sums, from the highest reward downwards."""
    order = r.argsort(descending=True)
    p = lr[order].exp()
    mass = p.cumsum(0)
    return (b * (lr + r / b).logsumexp(0) - (p * r[order]).cumsum(0) / mass - b * mass.log()).min()


def by_inverse(lr, r, kl):
    """β by halving an interval of 1/β, in which the KL rises."""
    low, high = 0.0, 1000.0
    for _ in range(60):
        middle = (low + high) / 2
        star = (lr + r * middle).log_softmax(-1)
        low, high = (low, middle) if (star.exp() * (star - lr)).sum() > kl else (middle, high)
    return torch.tensor(1 / low)


def halved(p, b):
    """The q at which the slope 1 + b (p/q − (1 − p)/(1 − q)) of the objective is zero, by halving."""
    low, high = 1e-12, 1 - 1e-12
    for _ in range(60):
        q = (low + high) / 2
        low, high = (q, high) if 1 + b * (p / q - (1 - p) / (1 - q)) > 0 else (low, q)
    return torch.tensor((low + high) / 2, dtype=torch.float64)


def following(first, i):
    """P(i first, j second) for every j: a softmax over those that are left."""
    left = first.clone()
    left[i] = 0
    return first[i] * left / left.sum()


def second(scores, i, j):
    left = [s for k, s in enumerate(scores.tolist()) if k != i]
    whole = sum(map(math.exp, scores.tolist()))
    return math.exp(scores[i]) / whole * math.exp(scores[j]) / sum(map(math.exp, left))


def by_listing(p, r, n):
    """Every sequence of n draws, its best at its probability."""
    out = torch.zeros_like(p)
    for drawn in itertools.product(range(len(p)), repeat=n):
        out[max(drawn, key=lambda y: float(r[y]))] += p[list(drawn)].prod()
    return out


def cut_regret(lr, r, b, low):
    kept = torch.where(r >= low, lr, -torch.inf)
    mass = kept.logsumexp(-1)
    return b * (lr + r / b).logsumexp(-1) - ((kept - mass).exp() * r).sum() - b * mass


def by_update(m, t, v):
    """tr(Σ V) before and after one label on each pair, with the inverse taken anew."""
    size = len(t)
    out = torch.zeros_like(t)
    for i in range(size):
        for j in range(size):
            b = torch.eye(size, dtype=t.dtype)[i] - torch.eye(size, dtype=t.dtype)[j]
            after = torch.linalg.inv(torch.linalg.inv(v) + t[i, j] * torch.outer(b, b))
            out[i, j] = torch.trace(m @ (v - after))
    return out


def gap(log_policy, log_ref, reward, beta):
    """β log Z − J, the regret from its definition."""
    log_z = (log_ref + reward / beta).logsumexp(-1)
    return beta * log_z - (log_policy.exp() * (reward - beta * (log_policy - log_ref))).sum(-1)


def across(matrix):
    """bᵀ M b of every pair, by the vectors b."""
    eye = torch.eye(len(matrix), dtype=matrix.dtype)
    b = eye[:, None] - eye[None]
    return torch.einsum("ijk,kl,ijl->ij", b, matrix, b)


def newton_free(lr, r, kl, halvings):
    """β by halving an interval of log β."""
    low, high = math.log(1e-3), math.log(1e3)
    for _ in range(halvings):
        middle = (low + high) / 2
        star = (lr + r / math.exp(middle)).log_softmax(-1)
        low, high = (middle, high) if (star.exp() * (star - lr)).sum() > kl else (low, middle)
    return math.exp((low + high) / 2)


def laplacian(r, w):
    """Σ w p(1 − p) b bᵀ, pair by pair."""
    out = torch.zeros(len(r), len(r), dtype=r.dtype)
    for i in range(len(r)):
        for j in range(len(r)):
            b = torch.zeros(len(r), dtype=r.dtype)
            b[i] += 1
            b[j] -= 1
            p = torch.sigmoid(r[i] - r[j])
            out = out + w[i, j] * p * (1 - p) * torch.outer(b, b)
    return out


def expected_log(r, x):
    p = torch.sigmoid(r[:, None] - r[None, :])
    gap = x[:, None] - x[None, :]
    return p * logsigmoid(gap) + (1 - p) * logsigmoid(-gap)


@pytest.mark.parametrize(("key", "number"), [(key, i) for key, forms in RIGHT.items() for i in range(len(forms))])
def test_another_right_form_passes(key, number):
    feedback = check(key, RIGHT[key][number])
    assert feedback.passed, feedback


@pytest.mark.parametrize(("key", "number"), [(key, i) for key, forms in WRONG.items() for i in range(len(forms))])
def test_a_wrong_answer_that_is_no_known_mistake_gets_a_sentence(key, number):
    answer, words = WRONG[key][number]
    feedback = check(key, answer)
    assert not feedback.passed and feedback.mistake == "" and words in repr(feedback), feedback


def cast(x, to):
    """`x` with every floating tensor in another dtype."""
    if isinstance(x, Tensor):
        return x.to(to) if x.is_floating_point() else x
    return type(x)(cast(item, to) for item in x) if isinstance(x, tuple | list) else x


def wrapped(function, change):
    def answer(*given):
        return change(function(*given))

    return answer


@each
def test_a_right_answer_in_float32_passes(one):
    assert check(one.key, wrapped(one.solution, lambda x: cast(x, torch.float32))).passed


@each
def test_a_classic_mistake_is_recognised_in_float32_as_a_number_and_in_a_longer_shape(one):
    """The same wrong numbers, so the same message, whatever they come in."""
    for mistake in one.mistakes:
        feedback = check(one.key, wrapped(mistake.function, lambda x: cast(x, torch.float32)))
        assert not feedback.passed and feedback.mistake == mistake.name, (mistake.name, feedback)
        if one.measure or one.differentiate:
            continue
        arrays = check(one.key, wrapped(mistake.function, lambda x: x.numpy() if isinstance(x, Tensor) else x))
        assert arrays.mistake == mistake.name, (mistake.name, arrays)
        plain = check(
            one.key, wrapped(mistake.function, lambda x: x.item() if isinstance(x, Tensor) and x.ndim == 0 else x)
        )
        assert plain.mistake == mistake.name, (mistake.name, plain)


def in_place(one, name):
    """The right answer, from copies, by a function that also changes its argument `name`: nothing else is wrong."""

    def answer(*given):
        kept = [copy.deepcopy(x) if not isinstance(x, Tensor) else x.clone() for x in given]
        target = given[list(one.cases[0].inputs).index(name)]
        target.append(1) if isinstance(target, list) else target.zero_()
        return one.solution(*kept)

    return answer


@each
def test_an_answer_that_changes_an_argument_is_told_so_and_spoils_nothing(one):
    before = copy.deepcopy(one.cases)
    for name, value in one.cases[0].inputs.items():
        if isinstance(value, Tensor | list):
            feedback = check(one.key, in_place(one, name))
            assert not feedback.passed and f"changes its argument {name} in place" in repr(feedback), feedback
    for old, new in zip(before, one.cases, strict=True):
        assert repr(dict(old.inputs)) == repr(dict(new.inputs))
    assert check(one.key, one.solution).passed


@each
@pytest.mark.parametrize(
    "made",
    [
        None,
        "text",
        np.array(["a", None], dtype=object),
        torch.full((7, 5, 3, 2), 2.0),
        torch.tensor([1j, 2j]),
        [[1.0], [2.0, 3.0]],
        math.nan,
        10**400,
        {"a": 1},
    ],
    ids=["None", "text", "objects", "shape", "complex", "ragged", "nan", "huge", "dict"],
)
def test_an_answer_of_no_use_gets_a_sentence_and_never_a_traceback(one, made):
    feedback = check(one.key, lambda *given: made)
    assert not feedback.passed and len(feedback.lines[0]) > len(one.key) + 5


LOSSES = [one for one in EXERCISES if one.differentiate]


def test_every_loss_must_be_trainable():
    names = {one.name for one in EXERCISES if one.name.endswith("loss") or one.name == "clipped_surrogate"}
    assert names <= {one.name for one in LOSSES}


@pytest.mark.parametrize("one", LOSSES, ids=lambda one: one.key)
def test_a_loss_that_cannot_be_trained_is_refused_for_that_reason(one):
    """Detached, computed without gradients, as a number, in numpy: the values are correct, but without gradient."""

    def unrecorded(*given):
        with torch.no_grad():
            return one.solution(*given)

    for answer in (wrapped(one.solution, Tensor.detach), unrecorded):
        feedback = check(one.key, answer)
        assert not feedback.passed and "no gradient reaches" in repr(feedback), feedback
        assert feedback.mistake == "" and "values are correct" in repr(feedback)
    for leave in (lambda x: x.numpy(), lambda x: x.detach().numpy(), lambda x: x.tolist()):
        feedback = check(one.key, wrapped(one.solution, leave))
        assert not feedback.passed and "have no gradient" in repr(feedback), feedback
        assert "Use tensor.detach" not in repr(feedback)
    # Wrong and detached: the formula comes first, if the first input shows that it is wrong.
    for mistake in one.mistakes:
        feedback = check(one.key, wrapped(mistake.function, Tensor.detach))
        late = mistake.name == "log of sigmoid in two steps" and "no gradient reaches" in repr(feedback)
        assert feedback.mistake == mistake.name or late, feedback


def test_a_loss_that_is_infinite_for_a_pair_ranked_very_wrongly_is_told_to_use_logsigmoid():
    for per_pair in (lambda x: -x.sigmoid().log(), lambda x: (1 + (-x).exp()).log()):
        feedback = check("nb05.dpo_loss", lambda c, r, beta, per_pair=per_pair: per_pair(beta * (c - r)))
        assert not feedback.passed and "logsigmoid" in feedback.lines[0], feedback


def test_a_wrong_formula_is_not_sent_to_fix_a_type():
    """IPO's target of one label is a number and not a tensor; that it does not depend on p is what is wrong with it."""
    feedback = check("nb05.ipo_margin", lambda p, tau: 1 / (2 * tau))
    assert feedback.mistake == "label noise forgotten" and "torch.tensor" not in repr(feedback)
    assert "a single number, 2.5" in repr(feedback)


def test_two_numbers_that_differ_are_written_so_that_they_differ():
    right = exercise("nb03.beta_for_kl").solution
    text = repr(check("nb03.beta_for_kl", lambda *given: right(*given) * 1.002))
    want, got = text.split("expected ")[1].rstrip(".").split(", got ")
    assert want != got and math.isclose(float(got) / float(want), 1.002, rel_tol=1e-3)
    # Near enough for a bisection that stops early.
    assert check("nb03.beta_for_kl", lambda *given: right(*given) * 1.0002).passed


def test_the_expected_gradient_decides_and_a_baseline_with_the_sample_in_it_is_remarked_upon():
    key = "nb02.kl_term"
    remarked = check(key, lambda p, q: (p - q - (p - q).mean()).detach() * p)
    assert remarked.passed and "(n − 1)/n" in repr(remarked)
    assert "remark" not in repr(check(key, leave_one_out))
    # A half of the right size in every batch is no baseline's doing.
    assert not check(key, lambda p, q: (p - q).square() / 4).passed
    assert "no gradient reaches" in repr(check(key, lambda p, q: (p - q).detach() * p.detach()))
    assert "one value for each sample" in repr(check(key, lambda p, q: ((p - q).detach() * p).mean()))
