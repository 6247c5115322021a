"""Load the data of `--data` as token ids: pairs, labels, targets or prompts from a file, the Hub or a text world."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli.train.settings import WORLD, PairSettings
from rlhf_lab.data import preferences, sft
from rlhf_lab.data.readers import Source, check_source, holds_splits, is_local
from rlhf_lab.errors import LabError, check_path, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.hub_lookup import cache_folder
from rlhf_lab.policies.transformer.shared_prefix_forward import context_length
from rlhf_lab.randomness import Stream
from rlhf_lab.training import distributed, seeded

Kind = Literal["pairs", "targets", "prompts", "verdicts"]

TOKENS = 256
"""Default maximum length of a prompt and of a response, in tokens."""
WORLD_PAIRS = 1000
"""Default number of pairs sampled in a world."""


@dataclass
class Data:
    """The data of a method. Fields that the kind of data does not have are None.

    Attributes:
        pairs: preference pairs.
        prompts: prompts, (N, P).
        targets: target or labelled responses, (N, 1, T).
        labels: whether each labelled response is desirable, (N, 1) booleans.
        said: lines of text about the rows that were read, dropped and truncated.
    """

    pairs: Pairs | None = None
    prompts: Tokens | None = None
    targets: Tokens | None = None
    labels: Tensor | None = None
    said: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.pairs if self.pairs is not None else self.prompts or ())

    def __getitem__(self, rows: Tensor) -> Data:
        """Select rows. The result has nothing to say."""
        found = Data()
        for name in ("pairs", "prompts", "targets", "labels"):
            part = getattr(self, name)
            setattr(found, name, None if part is None else part[rows])
        return found

    def keys(self) -> list[tuple[bytes, bytes]]:
        """Return two digests of each row: that of its prompt, and that of its prompt and responses."""
        prompts = self.prompts if self.pairs is None else self.pairs.prompts
        responses = self.targets if self.pairs is None else self.pairs.responses
        assert prompts is not None
        found = []
        for start in range(0, len(prompts), 4096):  # stored data are padded, part by part, when they are read
            part = slice(start, start + 4096)
            asked = prompts[part].tolist()
            both = zip(asked, asked if responses is None else responses[part].tolist(), strict=True)
            found += [(_digest(prompt), _digest([prompt, answers])) for prompt, answers in both]
        return found


def _digest(ids: Any) -> bytes:
    return hashlib.blake2b(str(ids).encode(), digest_size=16).digest()


def check_data(settings: Any, split_given: bool = True) -> None:
    """Raise `LabError` if the data do not exist or a setting does not fit them. Nothing is loaded.

    Args:
        settings: of a command with data.
        split_given: whether `data_split` was given for these data, and not taken from other data.

    Raises:
        LabError: there is no such file, world or data set, or a setting has no effect on these data.
    """
    hub_only = ["data_revision", "data_folder"]
    if settings.world is not None:
        load_world(settings.world)
        refuse_unused(settings, hub_only, "on data of a world; it is for data sets on the Hub")
        texts_only = [name for name in ("chat", "too_long") if isinstance(getattr(settings, name, None), str)]
        refuse_unused(settings, texts_only, "on data of a world; it is for texts of a file or of the Hub")
    elif is_local(settings.data):
        check_source(settings.data)
        refuse_unused(settings, hub_only, "on a local file; it is for data sets on the Hub")
        if split_given and not holds_splits(settings.data):
            reason = f"on {settings.data}, a file without splits; only a .json file can have splits"
            refuse_unused(settings, ["data_split"], reason)
    else:
        check_source(settings.data, settings.data_revision)


def held_out_of(settings: Any) -> Any:
    """Return `settings` with the data of `--eval-data` in place of `--data`, or None without `--eval-data`.

    The folder and the revision on the Hub are those of `--data` if both are the same data set.
    """
    if settings.eval_data is None:
        return None
    same = settings.eval_data == settings.data
    # Settings without effect on these data are refused: a world has no texts, and only its pairs are labelled here.
    other: dict[str, Any] = {"chat": "auto", "too_long": "cut"}
    if not settings.eval_data.startswith(WORLD):
        other = {"label_noise": 0.0, "label_beta": 1.0} if isinstance(settings, PairSettings) else {}
    return replace(
        settings,
        data=settings.eval_data,
        data_split=settings.eval_split,
        data_revision=settings.data_revision if same else None,
        data_folder=settings.data_folder if same else None,
        limit=settings.eval_limit,
        eval_data=None,
        eval_fraction=0.5,  # the settings about held-out data are refused without one of the two
        eval_split="test",
        eval_limit=None,
        **other,
    )


def load_world(name: str) -> Any:
    """Return the text world with this name."""
    from rlhf_lab.worlds import text

    return text.load(name)


def data_mark(settings: Any) -> dict[str, str]:
    """Return the SHA-256 of the local data files, for run.json. Other data have none."""
    marks = {}
    for name in ("data", "original", "eval_data"):
        source = getattr(settings, name, None)
        if source is not None and not source.startswith("world:") and is_local(source):
            with check_path(source, name).open("rb") as file:
                marks[f"{name}_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return marks


def original_of(settings: Any) -> Any:
    """Return `settings` with the data of `--original` in place of `--data`, or None without `--original`."""
    if settings.original is None:
        return None
    return replace(
        settings,
        data=settings.original,
        data_split=settings.original_split or settings.data_split,
        data_revision=settings.original_revision,
        data_folder=settings.original_folder,
        limit=settings.original_limit,
    )


def token_limits(settings: Any, config: Any, tokenizer: Any) -> tuple[int, int]:
    """Return the maximum lengths of a prompt and of a response in tokens.

    They are given by the settings, by the world or by the model's context.

    Raises:
        LabError: the two together do not fit into the context.
    """
    prompt, response = settings.max_prompt_tokens, settings.max_response_tokens
    context = context_length(config)
    if settings.world is not None:
        world = load_world(settings.world)
        prompt = prompt or world.max_prompt_tokens(tokenizer)
        response = response or world.max_response_tokens(tokenizer)
    room = context or 2 * TOKENS
    response = response or max(min(TOKENS, room // 2 if prompt is None else room - prompt), 1)
    prompt = prompt or max(min(TOKENS, room - response), 1)
    if context is not None and prompt + response > context:
        raise LabError(
            f"max_prompt_tokens={prompt} and max_response_tokens={response} are {prompt + response} tokens together. "
            f"The context of {settings.model} holds {context}. Lower one of them."
        )
    return prompt, response


def load_data(settings: Any, kind: Kind, tokenizer: Any, limits: tuple[int, int]) -> Data:
    """Read and tokenise the data. Pairs of a world are not read but sampled, see `sample_pairs`.

    Raises:
        LabError: as the loaders of `rlhf_lab.data`.
    """
    if settings.world is not None:
        return Data() if kind in ("pairs", "verdicts") else _from_world(settings, kind, tokenizer, limits)
    chat: Any = getattr(settings, "chat", "auto")
    where = Source(
        settings.data, settings.data_split, settings.data_revision, settings.data_folder, settings.limit,
        "auto" if isinstance(chat, bool) else chat,
    )  # fmt: skip
    too_long: Any = getattr(settings, "too_long", "cut")
    end = tokenizer.eos_token_id
    if kind == "verdicts" and not sft.holds_verdicts(where):
        kind = "pairs"
    if kind == "pairs":
        folder = cache_folder() / "tokens"
        progress = distributed.shows_progress(settings.progress)
        pairs, said = preferences.load_pairs(where, tokenizer, *limits, end, folder, progress, too_long)
        return Data(pairs=pairs, said=said)
    if kind in ("targets", "verdicts"):
        load = sft.load_targets if kind == "targets" else sft.load_verdicts
        examples = load(where, tokenizer)
        prompts, targets, kept, report = sft.tokenise_targets(examples, tokenizer, *limits, end, too_long)
        labels = torch.tensor([[examples.labels[i]] for i in kept]) if examples.labels else None
        return Data(prompts=prompts, targets=targets, labels=labels, said=[examples.summary(), report.summary()])
    asked = sft.load_prompts(where, tokenizer)
    prompts, report = sft.tokenise_prompts(asked.prompts, tokenizer, limits[0], settings.data, too_long)
    return Data(prompts=prompts, said=[asked.summary(), report.summary()])


def _from_world(settings: Any, kind: Kind, tokenizer: Any, limits: tuple[int, int]) -> Data:
    world = load_world(str(settings.world))
    if kind == "targets":
        prompts, targets = world.sft(tokenizer, settings.data_split, settings.limit)
        longest = int(targets.lengths.max())
        if longest > limits[1]:
            raise LabError(
                f"A target of {settings.data} has {longest} tokens. Raise max_response_tokens to this number."
            )
        data = Data(prompts=prompts, targets=targets)
    else:
        prompts = world.prompts(tokenizer, settings.data_split, settings.limit)
        data = Data(prompts=prompts)
    longest = int(prompts.lengths.max())
    if longest > limits[0]:
        raise LabError(f"A prompt of {settings.data} has {longest} tokens. Raise max_prompt_tokens to this number.")
    what = "examples" if kind == "targets" else "prompts"
    data.said.append(f"{settings.data}, split {settings.data_split}: {len(prompts):,} {what}")
    return data


def hold_out(settings: Any, data: Data, load: Callable[[Any], Data]) -> tuple[Data, Data | None]:
    """Return the data to train on and the held-out data, which are None if the settings name none.

    The field `said` of the held-out data has lines about them, among them a warning about rows in both.

    Args:
        settings: of a command.
        data: all data of `--data`.
        load: loads the data of other settings, those of `held_out_of`.

    Raises:
        LabError: as `load`; the held-out data are empty; all rows have the same prompt, so they cannot be divided.
    """
    if settings.eval_fraction is not None:
        return _split(data, settings.eval_fraction, settings.seed)
    other = held_out_of(settings)
    if other is None:
        return data, None
    held = load(other)
    if len(held) == 0:
        raise LabError(f"{other.data} gives no held-out data for this method. Give a file to --eval-data.")
    held.said = [f"held out: {line}" for line in held.said]
    prompts, rows = (set(part) for part in zip(*data.keys(), strict=True))
    theirs = held.keys()
    known, equal = sum(prompt in prompts for prompt, _ in theirs), sum(row in rows for _, row in theirs)
    if known:
        held.said.append(
            f"Warning: of the {len(held):,} held-out rows, {equal:,} are also in the training data, and "
            f"{known:,} have a prompt of the training data. Results on them are too good."
        )
    return data, held


def _split(data: Data, fraction: float, seed: int) -> tuple[Data, Data]:
    """Hold out a fraction of the rows at random. Rows with the same prompt stay together."""
    groups: dict[bytes, list[int]] = {}
    for row, (prompt, _) in enumerate(data.keys()):
        groups.setdefault(prompt, []).append(row)
    if len(groups) < 2:
        raise LabError(
            f"eval_fraction={fraction:g} cannot divide the {len(data):,} rows, because they all have the same prompt. "
            f"Give --eval-data in its place."
        )
    order = torch.randperm(len(groups), generator=seeded(seed, Stream.HELD_OUT_SPLIT)).tolist()
    shuffled = [list(groups.values())[place] for place in order]
    wanted, held = fraction * len(data), list[int]()
    for rows in shuffled:
        if len(held) + len(rows) <= wanted:
            held += rows
    held = held or min(shuffled, key=len)
    apart = torch.zeros(len(data), dtype=torch.bool)
    apart[held] = True
    train, test = data[(~apart).nonzero()[:, 0]], data[apart.nonzero()[:, 0]]
    train.said = data.said
    test.said = [f"held out: {len(test):,} of {len(data):,} rows, chosen by seed {seed}"]
    return train, test


def sample_pairs(settings: Any, policy: Policy, tokenizer: Any, stream: int = Stream.COMMAND_PAIRS) -> Data:
    """Sample two responses of the policy to each prompt of a world, labelled by Bradley-Terry on the gold reward."""
    number = settings.limit or WORLD_PAIRS
    pairs, dropped = load_world(str(settings.world)).preferences(
        policy,
        tokenizer,
        settings.data_split,
        number,
        seeded(settings.seed, stream, device=policy.device),
        settings.label_beta,
        settings.label_noise,
        distributed.shows_progress(settings.progress),
    )
    said = (
        f"{settings.data}: {len(pairs):,} pairs sampled from {settings.model}, {dropped:,} with equal responses dropped"
    )
    return Data(pairs=pairs, said=[said])


def gold_reward(name: str, tokenizer: Any) -> Reward:
    """Return the gold reward of a text world, as a function of token ids."""
    reward: Reward = load_world(name).reward(tokenizer)
    return reward
