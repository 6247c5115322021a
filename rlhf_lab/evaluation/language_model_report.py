r"""A report on a language model from its samples: rewards, win rates, KL to the reference, length and diversity.

Every number has a standard error over prompts. KL(π‖π_ref) is estimated twice from the same samples, by k1 and by k3
summed over tokens (see `rlhf_lab.kl`). Both are unbiased for the KL of whole responses, by the chain rule. k3 is never
negative and usually has a lower variance. Diversity is measured among the G responses to a prompt. Distinct-n is the
share of n-grams that are different (Li et al. 2016). Self-BLEU is the BLEU of each response against the other responses
(Zhu et al. 2018), which rises as they become more similar.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab import kl
from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError, check_finite, check_path, check_positive, count_of
from rlhf_lab.evaluation.judges import GoldJudge, Judge
from rlhf_lab.evaluation.sampled import Estimate, over_prompts
from rlhf_lab.evaluation.win_rate import WinRate, win_rate
from rlhf_lab.intervals import Interval, aligned, format_number
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.end_tokens import strip_end_token
from rlhf_lab.policies.transformer.generate import still_generating
from rlhf_lab.randomness import Stream
from rlhf_lab.training import seeded

Gold = Callable[[Sequence[str], Sequence[str]], Sequence[float]]


@dataclass(frozen=True)
class TextReport:
    """The numbers of a policy on texts. Numbers that were not requested are None."""

    prompts: int
    samples: int
    """Responses per prompt."""
    seed: int
    temperature: float
    top_k: int | None
    gold: Estimate | None
    """The gold reward of a response."""
    proxy: Estimate | None
    """The reward model's score of a response."""
    against_targets: WinRate | None
    """The win rate against the SFT targets."""
    against_policy: WinRate | None
    """The win rate against the other policy."""
    kl_k1: Estimate | None
    """KL(π‖π_ref) of a response in nats, by k1. None with top_k, because top_k changes the sampled distribution."""
    kl_k3: Estimate | None
    """The same by k3."""
    kl_k1_per_token: Estimate | None
    """`kl_k1` divided by the mean number of tokens, in nats per token."""
    kl_k3_per_token: Estimate | None
    """The same by k3."""
    tokens: Estimate
    """The number of tokens of a response, including the end token."""
    words: Estimate
    """The number of words of a response, separated by white space."""
    no_end: Estimate
    """The share of responses that were cut off before an end token."""
    distinct_1: Estimate | None
    """The share of different words among all responses to a prompt."""
    distinct_2: Estimate | None
    """The share of different word pairs among all responses to a prompt."""
    self_bleu: Estimate | None
    """Self-BLEU, 0 … 100. None with one response per prompt."""
    examples: list[dict[str, str]] = field(default_factory=list)
    """A few prompts, each with its first response."""

    def rows(self) -> list[tuple[str, str, str]]:
        """The name, the value with its error, and the 95% interval of every number that was measured."""
        out = []
        for key, name in _NAMES.items():
            found = getattr(self, key)
            if isinstance(found, WinRate):
                out.append(
                    (name, f"{found.mean:.3f} ± {found.error:.2g}", _interval_text(found.mean, found.low, found.high))
                )
            elif isinstance(found, Estimate):
                out.append((name, str(found), _interval_text(found.mean, *_interval(key, found))))
        return out

    def table(self) -> str:
        """The report as a table of plain text."""
        lines = aligned([("", "mean ± error", "95% interval"), *self.rows()])
        prompts, samples = count_of(self.prompts, "prompt"), count_of(self.samples, "response")
        how = f"{prompts} × {samples}, temperature {self.temperature:g}"
        how += f", top-k {self.top_k}" if self.top_k is not None else ""
        notes = [f"{how}, seed {self.seed}; errors over prompts"]
        for key in ("against_targets", "against_policy"):
            if getattr(self, key) is not None:
                notes.append(f"{_NAMES[key]}: {getattr(self, key)}")
        if self.kl_k1 is None:
            notes.append("no KL: top_k cuts the distribution that was sampled")
        return "\n".join([*lines, *notes])

    def as_dict(self) -> dict[str, Any]:
        """The report as a dictionary for JSON, with 95% intervals, and with None in place of NaN."""
        out = asdict(self)
        for key in _NAMES:
            found = getattr(self, key)
            if isinstance(found, Estimate):
                low, high = _interval(key, found)
                out[key] = {"mean": found.mean, "error": found.error, "low": low, "high": high}
            if out[key] is not None:
                out[key] = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in out[key].items()}
        return out

    def to_json(self, path: Path | str | None = None) -> str:
        """The report as JSON. It is also written to `path`, if one is given."""
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False) + "\n"
        if path is not None:
            check_path(path, "path").write_text(text, encoding="utf-8")
        return text


_NAMES = {
    "gold": "gold reward",
    "proxy": "proxy reward",
    "against_targets": "wins against targets",
    "against_policy": "wins against the other policy",
    "kl_k1": "KL to the reference, k1 (nats)",
    "kl_k3": "KL to the reference, k3 (nats)",
    "kl_k1_per_token": "KL a token, k1",
    "kl_k3_per_token": "KL a token, k3",
    "tokens": "tokens",
    "words": "words",
    "no_end": "share without end token",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "self_bleu": "self-BLEU",
}


_WITHIN = {"no_end": (0, 1), "distinct_1": (0, 1), "distinct_2": (0, 1), "self_bleu": (0, 100), "kl_k3": (0, math.inf)}


def _interval_text(mean: float, low: float, high: float) -> str:
    """Print the ends of an interval, also of one without width."""
    if low < high:
        return f"{Interval(mean, low, high):ends}"
    return f"[{format_number(low)}, {format_number(high)}]"


def _interval(key: str, found: Estimate) -> tuple[float, float]:
    """The 95% interval, limited to the range of the quantity."""
    least, most = _WITHIN.get(key, (-math.inf, math.inf))
    low, high = found.interval()
    return max(low, least), min(high, most)


@torch.no_grad()
def text_report(
    policy: Policy,
    reference: Policy,
    prompts: Tokens,
    tokenizer: Any = None,
    gold: Gold | None = None,
    proxy: Reward | None = None,
    targets: Sequence[str] | None = None,
    against: Policy | None = None,
    judge: Judge | None = None,
    num_samples: int = 4,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    batch_size: int = 32,
    num_examples: int = 5,
    progress: bool = False,
) -> TextReport:
    """Sample from a policy and measure its responses.

    Args:
        policy: π.
        reference: π_ref of the KL.
        prompts: (N, P), at least two.
        tokenizer: None for the policy's own.
        gold: the gold reward, a function of texts such as `world.gold`.
        proxy: scores (B, G) of ids, usually the reward model with which the policy was trained.
        targets: one text per prompt with which each response is compared, such as `world.examples(…)[i].target`.
        against: another policy, which is sampled with the same settings. Responses are compared one by one.
        judge: compares two texts; None for the gold reward.
        num_samples: G.
        temperature: sampling temperature. In the KL, the logits of both policies are divided by it too.
        top_k: sampling from the k most likely tokens. The report then has no KL.
        seed: seed of the samples. The report depends on it and on `batch_size`.
        batch_size: prompts per batch.
        num_examples: how many prompts are saved with their first response.
        progress: show a progress bar.

    Raises:
        LabError: fewer than two prompts; no tokenizer; targets of another number; comparisons without a judge;
            scores that are not finite.
    """
    check_positive(temperature, "temperature")
    tokenizer = tokenizer if tokenizer is not None else getattr(policy, "tokenizer", None)
    _check_request(prompts, tokenizer, targets)
    if judge is None and (targets is not None or against is not None):
        judge = _gold_judge(gold)
    columns: dict[str, list[Tensor]] = {}
    whole = getattr(judge, "special_tokens", False)
    asked, shown, ours, theirs = [], [], [], []
    for start in tqdm(range(0, len(prompts), batch_size), desc="report", leave=False, disable=not progress):
        x = prompts[start : start + batch_size]
        draws = seeded(seed, Stream.REPORT_RESPONSES, start, device=policy.device)
        y = _draw(policy, x, num_samples, temperature, top_k, draws)
        block = _numbers(policy, reference, x, y, temperature, proxy, tokenizer, with_kl=top_k is None)
        for name, values in block.items():
            columns.setdefault(name, []).append(values.cpu())
        asked += _texts(x, tokenizer)
        shown += _texts(x, tokenizer, special_tokens=whole)
        ours += _grouped(y, tokenizer, _ends(policy, tokenizer))
        if against is not None:
            other = seeded(seed, Stream.REPORT_OPPONENT, start, device=against.device)
            z = _draw(against, x, num_samples, temperature, top_k, other)
            theirs += _grouped(z, tokenizer, _ends(against, tokenizer))
    return TextReport(
        prompts=len(prompts),
        samples=num_samples,
        seed=seed,
        temperature=temperature,
        top_k=top_k,
        gold=None if gold is None else over_prompts(_gold(gold, asked, ours)),
        against_targets=None if targets is None or judge is None else win_rate(shown, ours, list(targets), judge),
        against_policy=None if against is None or judge is None else win_rate(shown, ours, theirs, judge),
        examples=[{"prompt": x, "response": ys[0]} for x, ys in zip(asked[:num_examples], ours, strict=False)],
        **_estimates({name: torch.cat(parts) for name, parts in columns.items()}),
        **_diversity(ours),
    )


def _estimates(found: dict[str, Tensor]) -> dict[str, Any]:
    """The fields of a report that are estimated from token ids, each from (N, G) numbers."""
    length = found["tokens"]

    def estimate(name: str, weight: Tensor | None = None) -> Estimate | None:
        return over_prompts(found[name], weight) if name in found else None

    return {
        "proxy": estimate("proxy"),
        "kl_k1": estimate("k1"),
        "kl_k3": estimate("k3"),
        "kl_k1_per_token": estimate("k1", length),
        "kl_k3_per_token": estimate("k3", length),
        "tokens": over_prompts(length),
        "no_end": over_prompts(found["no_end"]),
    }


def _diversity(ours: list[list[str]]) -> dict[str, Any]:
    """The fields of a report that are estimated from texts, with G of them for each prompt."""
    return {
        "words": over_prompts(torch.tensor([[float(len(y.split())) for y in ys] for ys in ours])),
        "distinct_1": distinct(ours, 1),
        "distinct_2": distinct(ours, 2),
        "self_bleu": self_bleu(ours) if len(ours[0]) > 1 else None,
    }


def _check_request(prompts: Tokens, tokenizer: Any, targets: Sequence[str] | None) -> None:
    if tokenizer is None:
        raise LabError("A report on texts needs a tokenizer. Pass tokenizer=….")
    if len(prompts) < 2:
        raise LabError("A standard error over prompts needs at least two prompts.")
    if targets is not None and len(targets) != len(prompts):
        raise LabError(
            f"{count_of(len(targets), 'target')} came with {count_of(len(prompts), 'prompt')}. Give one per prompt."
        )


def _gold_judge(gold: Gold | None) -> Judge:
    if gold is None:
        raise LabError("To compare responses, pass a judge=… (see rlhf_lab.evaluation.judges) or gold=….")
    return GoldJudge(gold)


def _draw(
    policy: Policy, x: Tokens, number: int, temperature: float, top_k: int | None, generator: torch.Generator
) -> Tokens:
    more: dict[str, Any] = {} if top_k is None else {"top_k": top_k}
    return policy.sample(x, number, generator, temperature, **more)


def _numbers(
    policy: Policy,
    reference: Policy,
    x: Tokens,
    y: Tokens,
    temperature: float,
    proxy: Reward | None,
    tokenizer: Any,
    with_kl: bool,
) -> dict[str, Tensor]:
    """The numbers that are computed from token ids, (B, G) each."""
    out = {"tokens": y.lengths.cpu().double()}
    last = y.ids.gather(-1, (y.lengths - 1).clamp(min=0)[..., None]).squeeze(-1)
    out["no_end"] = (still_generating(y.lengths >= 0, last, _ends(policy, tokenizer)) | (y.lengths == 0)).cpu().double()
    if proxy is not None:
        out["proxy"] = check_finite(proxy(x, y), "proxy reward")
    if with_kl:
        ours, theirs = (one.token_log_probs(x, y, temperature).cpu().double() for one in (policy, reference))
        out["k1"], out["k3"] = kl.k1(ours, theirs).sum(-1), kl.k3(ours, theirs).sum(-1)
    return out


def _ends(policy: Policy, tokenizer: Any) -> tuple[int, ...]:
    """The ids that end a response of `policy`: those of the policy or, if it has none, that of the tokenizer."""
    return getattr(policy, "end_tokens", ()) or tuple(i for i in [tokenizer.eos_token_id] if i is not None)


def _texts(rows: Tokens, tokenizer: Any, ends: tuple[int, ...] = (), special_tokens: bool = False) -> list[str]:
    ids = [strip_end_token(row, ends) for row in rows.tolist()]
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=not special_tokens)
    return texts


def _grouped(y: Tokens, tokenizer: Any, ends: tuple[int, ...]) -> list[list[str]]:
    flat = _texts(y.reshape(y.shape[0] * y.shape[1]), tokenizer, ends)
    return [flat[i : i + y.shape[1]] for i in range(0, len(flat), y.shape[1])]


def _gold(gold: Gold, asked: Sequence[str], answers: Sequence[Sequence[str]]) -> Tensor:
    flat = [y for ys in answers for y in ys]
    scores = list(gold([x for x, ys in zip(asked, answers, strict=True) for _ in ys], flat))
    if len(scores) != len(flat):
        raise LabError(f"The gold reward returned {count_of(len(scores), 'score')} for {count_of(len(flat), 'text')}.")
    return check_finite(torch.tensor(scores, dtype=torch.float64), "gold reward").view(len(answers), -1)


def distinct(answers: Sequence[Sequence[str]], n: int) -> Estimate | None:
    """Compute distinct-n, the number of different n-grams of words divided by the number of all n-grams.

    Both are counted within the responses to a prompt.

    Args:
        answers: B lists of G texts.
        n: words in an n-gram.

    Returns:
        a number in (0, 1] with its error over prompts, or None if no text has n words.
    """
    different, every = [], []
    for texts in answers:
        words = [text.split() for text in texts]
        grams = [tuple(row[i : i + n]) for row in words for i in range(len(row) - n + 1)]
        different.append(float(len(set(grams))))
        every.append(float(len(grams)))
    return over_prompts(torch.tensor(different), torch.tensor(every)) if sum(every) else None


def self_bleu(answers: Sequence[Sequence[str]]) -> Estimate:
    """Compute self-BLEU: the sentence BLEU (0 … 100) of each response against the other responses to its prompt.

    Args:
        answers: B lists of G ≥ 2 texts.
    """
    from sacrebleu.metrics import BLEU

    bleu = BLEU(effective_order=True)
    scores = [
        [bleu.sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)]
        for texts in answers
    ]
    return over_prompts(torch.tensor(scores, dtype=torch.float64))
