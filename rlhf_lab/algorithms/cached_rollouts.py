"""Drawing and scoring in blocks of prompts, kept on disk as they are done. Under raft, rest, rso and online.

Answers to ten thousand prompts do not fit into memory at once, and nobody wants to draw them twice. Each block has a
generator of its own, seeded by its place, so it can be drawn alone. Where the method has an output folder a finished
block is written there; a resumed run reads it, and goes on with the same bits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm.auto import tqdm

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.base import Policy
from rlhf_lab.training import Training, checkpoint, distributed

Block = dict[str, Tensor]


def own(name: str, training: Training, settings: Any, claimed: bool) -> Path | None:
    """The output folder of a method of several stages, taken for it unless the caller has done so; None without one.

    Raises:
        LabError: it holds another run, or `resume` finds none (see `checkpoint.claim`).
    """
    if training.out is not None and not claimed:
        record = {"method": name, "training": training, "settings": settings}
        checkpoint.claim(training.out, record, training.resume)
    return training.out


def ask(
    policy: Policy,
    prompts: Tokens,
    number: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tokens:
    """`policy.sample`, with `top_k` only where it is given: not every policy need know it."""
    cut = {} if top_k is None else {"top_k": top_k}
    return policy.sample(prompts, number, generator, temperature, **cut)


def in_blocks(
    make: Callable[[int, int], Block],
    number: int,
    at_once: int,
    folder: Path | None = None,
    description: str = "samples",
    progress: bool = False,
) -> list[Block]:
    """`make(start, stop)` for the rows 0 … number − 1, so many at once, in order.

    Args:
        make: gives named tensors, whatever their shapes, as a function of its two arguments alone.
        number: how many rows there are.
        at_once: rows of a block (the last may be smaller).
        folder: where finished blocks are kept, and looked for first. It must be of this run alone (see `own`).
        description: of the progress bar, which is shown for two blocks and more.
        progress: show it.

    Returns:
        the blocks, on the CPU.

    Raises:
        LabError: no rows; a kept block that cannot be read, or is of other rows; a disk that takes none.
    """
    if number < 1:
        raise LabError(f"There are no prompts to make {description} for.")
    if at_once < 1:
        raise LabError(f"At least 1 prompt is needed at a time, not {at_once}.")
    starts = range(0, number, at_once)
    shown = len(starts) > 1 and distributed.shows_progress(progress)
    blocks = []
    for start in tqdm(starts, desc=description, leave=False, disable=not shown):
        stop = min(start + at_once, number)
        path = None if folder is None else folder / f"rows-{start:07d}-{stop:07d}.safetensors"
        # All processes do the same, even where one of them sees the file first.
        if path is not None and distributed.any_rank(path.is_file()):
            blocks.append(_read(path))
            continue
        block = {name: value.detach().cpu() for name, value in make(start, stop).items()}
        if path is not None:
            _keep(path, block)
        blocks.append(block)
    return blocks


def _read(path: Path) -> Block:
    try:
        return load_file(path)
    except Exception as error:
        raise LabError(
            f"The samples kept in {path} cannot be read ({str(error).splitlines()[0]}). Remove the file: with --resume "
            f"that block is drawn again, the same as before."
        ) from None


def _keep(path: Path, block: Block) -> None:
    def write() -> None:
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file({name: value.contiguous().clone() for name, value in block.items()}, part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
        except Exception as error:  # an OSError, or safetensors' own word for one
            part.unlink(missing_ok=True)
            raise LabError(
                f"The samples of {path.name} cannot be kept in {path.parent} ({str(error).splitlines()[0]}). Make "
                f"room, then --resume goes on with the blocks before it."
            ) from None

    distributed.on_main_process(write)


def join(blocks: list[Block], name: str) -> Tensor:
    """One tensor of all blocks, along their first axis."""
    return torch.cat([block[name] for block in blocks])


def from_tokens(name: str, tokens: Tokens) -> Block:
    """`tokens` as a block's tensors under `name`; `to_tokens` is the inverse."""
    return {f"{name}.ids": tokens.ids, f"{name}.mask": tokens.mask}


def to_tokens(name: str, block: Block) -> Tokens:
    """The tokens of `name` in a block."""
    return Tokens(block[f"{name}.ids"], block[f"{name}.mask"])


def from_pairs(pairs: Pairs) -> Block:
    """Preference pairs as a block's tensors; `to_pairs` is the inverse."""
    block = from_tokens("prompts", pairs.prompts) | from_tokens("responses", pairs.responses)
    return block if pairs.weight is None else block | {"weight": pairs.weight}


def to_pairs(block: Block) -> Pairs:
    """The pairs of a block."""
    return Pairs(to_tokens("prompts", block), to_tokens("responses", block), block.get("weight"))
