"""Names that users know from papers and from other tools: commands of DPO's losses, other names, and suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Sequence

LOSS_COMMANDS: dict[str, str] = {
    "orpo": "orpo",
    "simpo": "simpo",
    "ipo": "ipo",
    "cdpo": "cdpo",
    "robust-dpo": "robust",
    "slic": "hinge",
    "chi-po": "chi",
    "dpop": "dpop",
    "rpo": "dpo-nll",
    "apo-zero": "apo-zero",
    "apo-down": "apo-down",
    "bco": "bco",
    "sppo": "sppo",
}
"""`train NAME` → the loss of `train dpo` that it stands for. It is the same command with `--loss`."""

ALIASES: dict[str, str] = {"lr": "learning_rate"}
"""Another name of an option → the option. Both work."""

ELSEWHERE: dict[str, str] = {
    "output_dir": "out",
    "model_name_or_path": "model",
    "base_model": "model",
    "dataset": "data",
    "dataset_name": "data",
    "datasets": "data",
    "max_steps": "steps",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batch_size",
    "micro_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulate",
    "lr_scheduler": "schedule",
    "lr_scheduler_type": "schedule",
    "warmup_steps": "warmup",
    "pref_beta": "beta",
    "dpo_beta": "beta",
    "loss_type": "loss",
    "dpo_loss_type": "loss",
    "dpo_label_smoothing": "label_smoothing",
    "kto_chosen_weight": "desirable_weight",
    "kto_rejected_weight": "undesirable_weight",
    "cosine_min_lr_ratio": "min_rate",
    "use_rslora": "lora_rank_stabilised",
    "val_size": "eval_fraction",
    "val_set_size": "eval_fraction",
    "eval_steps": "eval_every",
    "early_stopping_patience": "patience",
    "pref_loss": "loss",
    "pref_ftx": "nll_weight",
    "rpo_alpha": "nll_weight",
    "simpo_gamma": "target_margin",
    "ref_model": "reference",
    "lora_r": "lora_rank",
    "lora_target": "lora_targets",
    "lora_target_modules": "lora_targets",
    "lora_model_dir": "model",
    "adapter_name_or_path": "model",
    "create_new_adapter": "adapter",
    "quantization_bit": "load_in_4bit",
    "use_peft": "lora_rank",
    "finetuning_type": "lora_rank",
    "bf16": "precision",
    "fp16": "precision",
    "cutoff_len": "max_prompt_tokens",
    "max_length": "max_prompt_tokens",
    "sequence_len": "max_prompt_tokens",
    "max_completion_length": "max_response_tokens",
    "max_new_tokens": "max_response_tokens",
    "max_samples": "limit",
    "interleave_probs": "data_weights",
    "prompt_data_probs": "data_weights",
    "dataset_mixer": "data_weights",
    "logging_steps": "log_every",
    "save_steps": "save_every",
    "report_to": "trackers",
    "resume_from_checkpoint": "resume",
    "reward_model": "reward",
    "reward_model_path": "reward",
    "num_generations": "samples",
}
"""An option of TRL, axolotl or LLaMA-Factory → ours. These names do not work, but the error suggests ours."""

_COMMANDS_ELSEWHERE = {
    "rm": "train reward-model",
    "reward": "train reward-model",
    "online-dpo": "train iterated-dpo",
    "rso": "train rso",
    "eval": "evaluate",
    "chat": "sample",
    "generate": "sample",
    "inference": "sample",
    "finetune": "train sft",
    "fine-tune": "train sft",
}


def loss_command(words: Sequence[str]) -> list[str]:
    """Return the words of a command line with `train NAME` of a loss replaced by `train dpo --loss …`.

    Args:
        words: the command line without the program's name.

    Raises:
        LabError: another loss is given by `--loss`.
    """
    if len(words) < 2 or words[0] != "train" or words[1] not in LOSS_COMMANDS:
        return list(words)
    name, loss, rest = words[1], LOSS_COMMANDS[words[1]], list(words[2:])
    for place, word in enumerate(rest):
        option, equals, value = word.partition("=")
        given = value if equals else "".join(rest[place + 1 : place + 2])
        if option == "--loss" and given != loss:
            from rlhf_lab.errors import LabError  # which imports torch

            raise LabError(
                f"`train {name}` has the loss {loss}, and --loss is {given}. Leave --loss out, or use `train dpo`."
            )
    return ["train", "dpo", f"--loss={loss}", *rest]


def near_command(words: Sequence[str], commands: Collection[str]) -> str | None:
    """Return the command that an unknown command line may mean, or None.

    Args:
        words: the command line without the program's name, of which at least one word.
        commands: names of all commands, such as "train dpo".
    """
    first, two = words[0], " ".join(words[:2])
    for given in (two, first, words[1] if len(words) > 1 else first):
        if given in commands:
            return given
        if given in _COMMANDS_ELSEWHERE:
            return _COMMANDS_ELSEWHERE[given]
        if ends := [name for name in commands if name.split()[-1] == given]:
            return ends[0]
    # Exchanged letters are the most common slip, and difflib does not know them.
    letters = sorted(two)
    if near := [name for name in commands if sorted(name) == letters] or difflib.get_close_matches(two, commands, 1):
        return near[0]
    last = {name.split()[-1]: name for name in commands}
    near = difflib.get_close_matches(first, last, 1, 0.7)
    return last[near[0]] if near else None


def near_options(name: str, options: Collection[str]) -> list[str]:
    """Return the options that an unknown name, with `_`, may mean: ours for one of another tool, or similar ones."""
    there = ELSEWHERE.get(name, "")
    if there in options:
        return [there]
    return difflib.get_close_matches(name, options, 1, 0.85) or difflib.get_close_matches(name, options, 3, 0.6)


def unknown_option(words: Sequence[str], options: Collection[str], prog: str) -> str | None:
    """Return a message about the first option that a command does not have, or None if it has all of them.

    Args:
        words: the command line behind the command's name.
        options: names of the command's options, with `_`.
        prog: the program and the command, for the message.
    """
    for word in words:
        name = word[2:].partition("=")[0].replace("-", "_")
        if not word.startswith("--") or name in ("", "help") or {name, name.removeprefix("no_")} & set(options):
            continue
        near = near_options(name, options)
        meant = " or ".join(f"--{option.replace('_', '-')}" for option in near)
        hint = f"Do you mean {meant}?" if near else f"`{prog} --help` lists the options."
        return f"{prog.removeprefix('rlhf-lab ')} has no option {word.partition('=')[0]}. {hint}"
    return None
