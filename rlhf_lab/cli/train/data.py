"""Load the data of `--data` as token ids: pairs, labels, targets or prompts from a file, the Hub or a text world."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli.train.settings import WORLD, PairSettings
from rlhf_lab.data import loading, sft, token_store
from rlhf_lab.data.loading import Kind as Kind  # also for other commands
from rlhf_lab.data.preferences import TokenReport
from rlhf_lab.data.readers import Source, check_source, file_sha256, holds_splits, is_local
from rlhf_lab.errors import LabError, count_of, refuse_unused
from rlhf_lab.policies.base import Policy, Reward
from rlhf_lab.policies.hub_lookup import cache_folder
from rlhf_lab.policies.transformer.shared_prefix_forward import context_length
from rlhf_lab.randomness import Stream
from rlhf_lab.training import distributed, seeded

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
        trained: 1 for each token of a target that is trained on, (N, 1, T). None: all of them.
        said: lines of text about the rows that were read, dropped and truncated.
        counts: for each source of the data the numbers in these lines.
    """

    pairs: Pairs | None = None
    prompts: Tokens | None = None
    targets: Tokens | None = None
    labels: Tensor | None = None
    trained: Tokens | None = None
    said: list[str] = field(default_factory=list)
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.pairs if self.pairs is not None else self.prompts or ())

    def __getitem__(self, rows: Tensor) -> Data:
        """Select rows. The result has nothing to say."""
        found = Data()
        for name in ("pairs", "prompts", "targets", "labels", "trained"):
            part = getattr(self, name)
            setattr(found, name, None if part is None else part[rows])
        return found

    def keys(self) -> list[tuple[bytes, bytes]]:
        """Return two digests of each row: that of its prompt, and that of its prompt and responses."""
        prompts = self.prompts if self.pairs is None else self.pairs.prompts
        responses = self.targets if self.pairs is None else self.pairs.responses
        assert prompts is not None
        asked = prompts.keys()
        answers = asked if responses is None else responses.keys()
        return [(prompt, prompt + rest) for prompt, rest in zip(asked, answers, strict=True)]


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
        load_world(settings.world).examples(settings.data_split, 1)  # an unknown split is an error
        refuse_unused(settings, hub_only, "on data of a world; it is for data sets on the Hub")
        texts_only = ["chat", "too_long", "train_on"]
        refuse_unused(settings, texts_only, "on data of a world; it is for texts of a file or of the Hub")
        return
    names = sources_of(settings)
    for name in names:
        check_source(name, None if is_local(name) else settings.data_revision)
    if all(map(is_local, names)):
        refuse_unused(settings, hub_only, "on a local file; it is for data sets on the Hub")
        if split_given and not any(map(holds_splits, names)):
            what = "a file without splits" if len(names) == 1 else "files without splits"
            reason = f"on {' and '.join(names)}, {what}; only a .json file can have splits"
            refuse_unused(settings, ["data_split"], reason)


def sources_of(settings: Any) -> tuple[str, ...]:
    """Return the names of the data of a command."""
    return (settings.data,) if isinstance(settings.data, str) else settings.data


def held_out_of(settings: Any) -> Any:
    """Return `settings` with the data of `--eval-data` in place of `--data`, or None without `--eval-data`.

    The folder and the revision on the Hub are those of `--data` if both are the same data set.
    """
    if settings.eval_data is None:
        return None
    same = settings.eval_data in sources_of(settings)
    # Settings without effect on these data are refused: a world has no texts, and only its pairs are labelled here.
    other: dict[str, Any] = {"chat": "auto", "too_long": "cut"}
    if hasattr(settings, "train_on"):
        other["train_on"] = "last"
    if not settings.eval_data.startswith(WORLD):
        other = {"label_noise": 0.0, "label_beta": 1.0} if isinstance(settings, PairSettings) else {}
    return replace(
        settings,
        data=settings.eval_data,
        data_weights=(),
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


def data_mark(settings: Any) -> dict[str, str | list[str | None]]:
    """Return the SHA-256 of the local data files, for run.json. Other data have none."""
    marks: dict[str, str | list[str | None]] = {}
    for name in ("data", "original", "eval_data"):
        source = getattr(settings, name, None)
        if isinstance(source, tuple):
            marks[f"{name}_sha256"] = [file_sha256(one) if is_local(one) else None for one in source]
        elif source is not None and not source.startswith(WORLD) and is_local(source):
            marks[f"{name}_sha256"] = file_sha256(source)
    return marks


def original_of(settings: Any) -> Any:
    """Return `settings` with the data of `--original` in place of `--data`, or None without `--original`."""
    if settings.original is None:
        return None
    return replace(
        settings,
        data=settings.original,
        data_weights=(),
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

    Several data are mixed: all their rows, or with `data_weights` the rows that `mixture` selects.

    Raises:
        LabError: as the loaders of `rlhf_lab.data`; some of several data have labels and others have none.
    """
    if settings.world is not None:
        return Data() if kind in ("pairs", "labelled") else _from_world(settings, kind, tokenizer, limits)
    where = [
        Source(
            name, settings.data_split, settings.data_revision, settings.data_folder, settings.limit,
            getattr(settings, "chat", "auto"),
        )
        for name in sources_of(settings)
    ]  # fmt: skip
    if kind == "labelled":
        kind = _kind_of_labels(where)
    parts = [
        loading.load_rows(
            kind, source, tokenizer, *limits, tokenizer.eos_token_id, cache_folder() / "tokens",
            distributed.shows_progress(settings.progress), getattr(settings, "too_long", "cut"),
            getattr(settings, "train_on", "last") if kind == "targets" else "last",
        )
        for source in where
    ]  # fmt: skip
    said, counts = parts[0].said, dict[str, dict[str, Any]]()
    for place, part in enumerate(parts):
        name, before = where[place].name, [source.name for source in where[:place]]
        counts[f"{name} ({before.count(name) + 1})" if name in before else name] = part.counts
    rows = parts[0].rows if len(parts) == 1 else token_store.join([part.rows for part in parts])
    prompts, responses, labels, trained = rows
    if kind == "pairs":
        assert responses is not None
        data = Data(pairs=Pairs(prompts, responses), said=said, counts=counts)
    else:
        data = Data(None, prompts, responses, labels, trained, said, counts)
    return data if len(parts) == 1 else _mixed(data, [source.name for source in where], parts, settings)


def _kind_of_labels(sources: Sequence[Source]) -> Kind:
    """Whether KTO's data have labels of responses, or are preference pairs."""
    labelled = [sft.holds_labelled(source) for source in sources]
    if any(labelled) and not all(labelled):
        one, other = sources[labelled.index(True)].name, sources[labelled.index(False)].name
        raise LabError(
            f"{one} has labels of responses, and {other} has none. Mixed data must all have labels, or all be "
            f"preference pairs."
        )
    return "labelled" if all(labelled) else "pairs"


def _mixed(data: Data, names: Sequence[str], parts: Sequence[loading.LoadedRows], settings: Any) -> Data:
    """Select the rows of several data that are used, and report them for each of the data."""
    sizes = [len(part.rows.prompts) for part in parts]
    rows = mixture(sizes, settings.data_weights, settings.seed)
    whole = torch.cat(rows)
    mixed, shares = data[whole] if settings.data_weights else data, []
    mixed.said, mixed.counts = [], data.counts
    for name, part, used, size in zip(names, parts, rows, sizes, strict=True):
        mixed.said += [part.said[0], f"{name}: {part.said[1]}"]  # the second line does not name its data
        shares.append(f"{name}: {len(used):,} of {count_of(size, 'row')}, {len(used) / len(whole):.1%} of an epoch")
    mixed.said.append(f"mixture of {count_of(len(whole), 'row')}: {'; '.join(shares)}")
    return mixed


def mixture(sizes: Sequence[int], weights: Sequence[float], seed: int) -> list[Tensor]:
    """Select the rows of several data that make up an epoch.

    With weights wᵢ, divided by their sum, and nᵢ rows, an epoch has N = min nᵢ/wᵢ rows. This is the largest number for
    which no row is needed twice. Of each data wᵢ N rows are selected at random, rounded to whole rows and at least one.
    They are the same in every epoch.

    Args:
        sizes: nᵢ ≥ 1.
        weights: wᵢ > 0; or none, which selects all rows.
        seed: of the run.

    Returns:
        the selected rows of each data, in increasing order. The rows of all data are counted one after the other.
    """
    total = sum(weights)
    longest = min(n * total / w for n, w in zip(sizes, weights, strict=True)) if weights else 0.0
    rows, start = [], 0
    for place, number in enumerate(sizes):
        part = torch.arange(number)
        if weights:
            wanted = min(max(round(longest * weights[place] / total), 1), number)
            part = torch.randperm(number, generator=seeded(seed, Stream.DATA_MIXTURE, place))[:wanted].sort().values
        rows.append(part + start)
        start += number
    return rows


def _from_world(settings: Any, kind: Kind, tokenizer: Any, limits: tuple[int, int]) -> Data:
    world = load_world(str(settings.world))
    if kind == "targets":
        prompts, targets = world.sft(tokenizer, settings.data_split, settings.limit)
        longest = int(targets.lengths.max())
        if longest > limits[1]:
            raise LabError(
                f"A target of {settings.data} has {count_of(longest, 'token')}. Raise max_response_tokens to this "
                f"number."
            )
        data = Data(prompts=prompts, targets=targets)
    else:
        prompts = world.prompts(tokenizer, settings.data_split, settings.limit)
        data = Data(prompts=prompts)
    longest = int(prompts.lengths.max())
    if longest > limits[0]:
        tokens = count_of(longest, "token")
        raise LabError(f"A prompt of {settings.data} has {tokens}. Raise max_prompt_tokens to this number.")
    what = "example" if kind == "targets" else "prompt"
    data.said.append(f"{settings.data}, split {settings.data_split}: {count_of(len(prompts), what)}")
    report = TokenReport(len(prompts), Counter(), 0, 0, longest, what)
    data.counts[settings.data] = report.counts(f"split {settings.data_split}", Counter())
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
            f"Warning: {equal:,} of the {count_of(len(held), 'held-out row')} also occur in the training data, and "
            f"{known:,} share a prompt with it. Results on them are too good."
        )
    return data, held


def _split(data: Data, fraction: float, seed: int) -> tuple[Data, Data]:
    """Hold out a fraction of the rows at random. Rows with the same prompt stay together."""
    groups: dict[bytes, list[int]] = {}
    for row, (prompt, _) in enumerate(data.keys()):
        groups.setdefault(prompt, []).append(row)
    if len(groups) < 2:
        raise LabError(
            f"eval_fraction={fraction:g} cannot divide the data, because all rows have the same prompt. "
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
    test.said = [f"held out: {len(test):,} of {count_of(len(data), 'row')}, chosen by seed {seed}"]
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
        f"{settings.data}: {count_of(len(pairs), 'pair')} sampled from {settings.model}, {dropped:,} with equal "
        f"responses dropped"
    )
    return Data(pairs=pairs, said=[said])


def gold_reward(name: str, tokenizer: Any) -> Reward:
    """Return the gold reward of a text world, as a function of token ids."""
    reward: Reward = load_world(name).reward(tokenizer)
    return reward
