"""Finds English words that are left on the Chinese slides, for tests and for `tools/slides_check.py`."""

from __future__ import annotations

import re

NAMES = frozenset(
    """DPO PPO SFT RSO RAFT ReST IPO KL RLHF GPU Adam LoRA logit dropout min max log sft ref unk soft Soft
    direct sft-sample-rank rso-sample-rank rso best-of best-of-n sigmoid-norm hinge-norm hinge norm
    Bradley Terry Rafailov Ouyang Schulman Liu Zhao Gulcehre Dong Bai Gao Shi Kim Verdun Song Razin Pal SLiC-HF
    DPOP ORPO NLL Reddit AnthropicHH AutoSxS IWSLT Grow Improve""".split()  # noqa: SIM905
)
"""Names of methods, papers, authors and data sets, which Chinese papers use too."""


def english(text: str) -> list[str]:
    """Words of three or more Latin letters that are not in `NAMES`."""
    words = re.findall(r"[A-Za-z]{3,}(?:-[A-Za-z]+)*", re.sub(r"\$[^$]*\$", "", text))
    return [word for word in words if word not in NAMES]
