"""`rlhf-lab evaluate`: measure rewards, win rates, KL, diversity and length of a language model, with errors.

For the folder of a reward model or ranker, and for the implicit reward of a policy, it measures accuracy and
calibration (`evaluate_reward.py`).
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lab.batch import Tokens
from rlhf_lab.cli import evaluate_reward, yaml_config
from rlhf_lab.cli.train.data import Kind, check_data, load_data, load_world, token_limits
from rlhf_lab.cli.train.reward import check_reward, find_reward, read_reward
from rlhf_lab.cli.train.settings import WORLD
from rlhf_lab.data.readers import Chat
from rlhf_lab.errors import (
    Count,
    LabError,
    Positive,
    Seed,
    Temperature,
    check_output_folder,
    check_paths,
    check_settings,
    refuse_unused,
)
from rlhf_lab.evaluation.judges import EndpointJudge, GoldJudge, Judge, RewardJudge
from rlhf_lab.evaluation.language_model_report import TextReport, text_report
from rlhf_lab.evaluation.reward_report import RewardReport
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.loading import (
    check_model_available,
    check_policy,
    load_config,
    load_tokenizer,
    pick_device,
    show_progress_bars,
)
from rlhf_lab.training import checkpoint
from rlhf_lab.training.lock import FolderLock

JUDGES = ("gold", "reward")


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Evaluate a causal language model on prompts that it was not trained on, or a reward model or ranker on pairs."""

    model: str
    """Model to evaluate: a folder, a .gguf file, lab-gpt2, lab-pythia, smollm2, or a name on the Hub; or the output
    folder of `train reward-model` or `train ranker`."""
    data: str
    """Source of prompts, with or without targets: a file, a data set on the Hub, or world:NAME. For a reward model or
    ranker: labelled pairs."""
    reference: str | None = None
    """Reference model, from which the KL is measured. It is usually the model before training. For a reward model on
    world:NAME: the model whose responses are compared."""
    out: Path | None = None
    """Folder for report.json, report.txt and settings.yaml. The table is always printed."""
    config: Path | None = None
    """YAML file with any of these settings. Options of the command line override it."""
    reward: str | None = None
    """Proxy reward: the folder of the reward model that the model was trained on."""
    gold: str | None = None
    """World whose gold reward is measured. Default: the world of the data."""
    implicit_beta: Positive | None = None
    """Evaluate the implicit reward β log π/π_ref of the model on labelled pairs, with this β, in place of samples. The
    report is that of a reward model. β changes the margins, but not the accuracy."""
    against: str | None = None
    """Another model, whose responses are compared with those of the model."""
    targets: bool = True
    """Compare responses with the targets in the data, or with the chosen responses of preference pairs."""
    judge: str | None = None
    """Judge of comparisons: gold, reward, or the URL of an OpenAI-compatible service. Default: gold if there is a gold
    reward, otherwise reward."""
    judge_model: str = "gpt-4o-mini"
    """Name of the model at this URL."""
    judge_key_variable: str = "OPENAI_API_KEY"
    """Environment variable with the key of the service."""
    judge_cache: Path | None = None
    """File that stores the answers of the service, so that no question is sent twice."""
    num_samples: Count = 4
    """Number of responses to each prompt."""
    temperature: Temperature = 1.0
    """Sampling temperature."""
    top_k: Count | None = None
    """Sample only from the k most likely tokens. The KL is then not reported."""
    limit: Count | None = 128
    """Number of prompts, or of pairs for a reward model or ranker. None: all."""
    max_prompt_tokens: Count | None = None
    """Maximum length of a prompt. Longer prompts lose their beginning. Default: the longest prompt of the world, or 256
    tokens if the context has room for them."""
    chat: Chat = "auto"
    """Which rows the model's chat template writes, as in training."""
    max_response_tokens: Count | None = None
    """Maximum length of a response, with its end token. Default: as for prompts."""
    batch_size: Count = 16
    """Number of prompts that are processed at the same time."""
    seed: Seed = 0
    """Random seed of sampling."""
    model_revision: str | None = None
    """Branch, tag or commit of the model on the Hub."""
    data_revision: str | None = None
    """Branch, tag or commit of the data set on the Hub."""
    data_split: str = "test"
    """Split of the data set, of the world, or of a .json file with several splits."""
    data_folder: str | None = None
    """Folder inside the data set on the Hub."""
    device: str = "auto"
    """Device: cpu, cuda, cuda:1, …, or auto, which uses a GPU if there is one."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self) -> None:
        check_settings(self)
        if self.judge is None or "://" not in self.judge:
            of_service = ["judge_model", "judge_key_variable", "judge_cache"]
            refuse_unused(self, of_service, "if judge is not the URL of a service")

    @property
    def world(self) -> str | None:
        """Name of the text world, or None if the data are not from a world."""
        return self.data.removeprefix(WORLD) if self.data.startswith(WORLD) else None


def evaluate(settings: Evaluate) -> TextReport | RewardReport:
    """Run the command: print the table, write the files, return the report.

    Raises:
        LabError: data, a model, the reward or the judge cannot be loaded, the vocabularies of the models differ, or the
            folder contains a report or other files.
    """
    settings = check_paths(settings)
    show_progress_bars(settings.progress)
    _check_out(settings)
    folder = find_reward(settings.model)
    report: TextReport | RewardReport
    if folder is not None or settings.implicit_beta is not None:
        evaluate_reward.check(settings, folder)
        report, said = evaluate_reward.report(settings, folder)
        for line in said:
            _say(line)
    else:
        _check(settings)
        report = _text_report(settings)
    _write(settings, report)
    return report


def _text_report(settings: Evaluate) -> TextReport:
    """Load the models and measure the one of the settings."""
    device = pick_device(settings.device)
    tokenizer = load_tokenizer(settings.model, settings.model_revision)
    limits = token_limits(settings, load_config(settings.model, settings.model_revision), tokenizer)
    prompts, targets = _prompts(settings, tokenizer, limits)

    def policy_of(name: str, revision: str | None = None) -> LanguageModelPolicy:
        return evaluate_reward.load_policy(settings, name, tokenizer, limits[1], device, revision)

    policy, reference = policy_of(settings.model, settings.model_revision), policy_of(str(settings.reference))
    against = None if settings.against is None else policy_of(settings.against)
    gold = None if _gold(settings) is None else load_world(str(_gold(settings))).gold
    # A ranker scores a response against baseline responses of the reference.
    proxy = None if settings.reward is None else read_reward(settings.reward, reference, tokenizer, settings.seed)
    judge = _judge(settings, gold, proxy, tokenizer)
    if targets is not None and judge is None:
        _say(
            "Responses are not compared with the targets without a judge. Give --judge gold, reward or a URL.",
        )
        targets = None
    return text_report(
        policy,
        reference,
        prompts,
        tokenizer,
        gold,
        proxy,
        targets,
        against,
        judge,
        settings.num_samples,
        settings.temperature,
        settings.top_k,
        settings.seed,
        settings.batch_size,
        progress=settings.progress,
    )


def _write(settings: Evaluate, report: TextReport | RewardReport) -> None:
    """Print the report, and write it to the output folder."""
    print(report.table())
    if settings.out is not None:
        lock = FolderLock(settings.out)
        try:
            check_output_folder(settings.out)  # another run may have written it in the meantime
            given = f"# rlhf-lab evaluate --config\n{yaml_config.write(settings)}"
            checkpoint.write_text(settings.out / "settings.yaml", given)
            checkpoint.write_text(settings.out / "report.txt", report.table() + "\n")
            checkpoint.write_text(settings.out / "report.json", report.to_json())
        finally:
            lock.release()


def _check_out(settings: Evaluate) -> None:
    if settings.out is not None:
        if (settings.out / "report.json").exists():
            raise LabError(f"{settings.out} already contains a report; nothing was changed. Give another folder.")
        check_output_folder(settings.out)


def _check(settings: Evaluate) -> None:
    if settings.reference is None:
        raise LabError("evaluate needs --reference, from which the KL is measured: usually the model before training.")
    check_data(settings)
    check_reward(settings)
    judge = settings.judge
    if judge == "gold" and _gold(settings) is None:
        raise LabError("The judge gold needs a world. Use --data world:NAME or --gold NAME.")
    if judge == "reward" and settings.reward is None:
        raise LabError("The judge reward needs --reward, the folder of a reward model.")
    if judge is not None and judge not in JUDGES and "://" not in judge:
        raise LabError(f"judge must be gold, reward or a URL, not {judge!r}. Correct it.")
    if settings.against is not None and judge is None and _gold(settings) is None and settings.reward is None:
        raise LabError("Comparing two models needs a judge. Give --judge gold, reward or a URL.")
    for option in ("model", "reference", "against"):
        if (model := getattr(settings, option)) is not None:
            check_policy(model, option)
            check_model_available(model, settings.model_revision if model == settings.model else None)


def _gold(settings: Evaluate) -> str | None:
    return settings.gold or settings.world


def _prompts(settings: Evaluate, tokenizer: Any, limits: tuple[int, int]) -> tuple[Tokens, list[str] | None]:
    """Return the prompts, and the texts of their targets if the data have targets and they are wanted."""
    kind: Kind = "targets" if settings.targets else "prompts"
    try:
        data = load_data(settings, kind, tokenizer, limits)
    except LabError:
        if not settings.targets:
            raise
        # The data may have only prompts. If not, this call raises an error about them.
        data = load_data(settings, "prompts", tokenizer, limits)
    assert data.prompts is not None
    for line in data.said:
        _say(line)
    if data.targets is None:
        return data.prompts, None
    rows = [row[0] for row in data.targets.tolist()]
    return data.prompts, tokenizer.batch_decode(rows, skip_special_tokens=True)


def _judge(settings: Evaluate, gold: Any, proxy: Any, tokenizer: Any) -> Judge | None:
    judge = settings.judge
    if judge is None:
        judge = "gold" if gold is not None else "reward" if proxy is not None else None
    if judge is None:
        return None
    if judge == "gold":
        return GoldJudge(gold)
    if judge == "reward":
        return RewardJudge(proxy, tokenizer)
    return EndpointJudge(
        judge,
        settings.judge_model,
        settings.judge_key_variable,
        settings.judge_cache,
        progress=settings.progress,
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
