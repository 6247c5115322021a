"""Names that users know from papers and from other tools: commands of DPO's losses, other names, and suggestions."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

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
    "assistant_only_loss": "train_on",
    "roles_to_train": "train_on",
    "mask_history": "train_on",
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
    "num_iterations": "epochs",
    "scale_rewards": "divide_by_std",
    "epsilon": "clip",
    "cliprange": "clip",
    "cliprange_value": "value_clip",
    "vf_coef": "value_coefficient",
    "lam": "gae_lambda",
    "num_mini_batches": "minibatches",
    "num_ppo_epochs": "epochs",
    "ppo_epochs": "epochs",
    "kl_coef": "beta",
    "init_kl_coef": "beta",
    "rl_beta": "beta",
    "orpo_alpha": "beta",
    "orpo_beta": "beta",
    "kto_desirable_weight": "desirable_weight",
    "kto_undesirable_weight": "undesirable_weight",
    "use_vllm": "sampler",
    "precompute_ref_log_probs": "reference_cache",
    "ref_model_name_or_path": "reference",
    "gradient_clipping": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "dataset_path": "data",
    "train_file": "data",
    "validation_file": "eval_data",
    "test_size": "eval_fraction",
    "test_split_size": "eval_fraction",
    "early_stopping": "patience",
    "chat_template": "chat",
    "template": "chat",
    "max_seq_length": "max_prompt_tokens",
    "torch_dtype": "precision",
    "tf32": "precision",
    "optim": "",
    "adam_beta1": "",
    "save_total_limit": "",
    "deepspeed": "",
}
"""An option of TRL, axolotl or LLaMA-Factory → ours, or "" without one. They do not work, but the error suggests
ours."""

VALUES_ELSEWHERE: dict[tuple[str, str], str] = {
    ("loss", "sigmoid"): "sigmoid-norm",
    ("loss", "dpo"): "sigmoid-norm",
    ("loss", "sigmoid_norm"): "dpo-length",  # TRL's name of the loss that is divided by length
    ("loss", "bco_pair"): "bco",
    ("loss", "sppo_hard"): "sppo",
    ("loss", "slic"): "hinge",
    ("loss", "rpo"): "dpo-nll",
    ("precision", "bfloat16"): "bf16",
    ("precision", "float32"): "fp32",
    ("precision", "True"): "bf16",
    ("schedule", "constant_with_warmup"): "constant",
    ("schedule", "cosine_with_min_lr"): "cosine",
    ("adapter", "lora"): "",
    ("adapter", "qlora"): "",
}
"""(option, value of another tool) → our value, or "" without one. These do not work, but the error suggests ours."""

_COMMANDS_ELSEWHERE = {
    "rm": "train reward-model",
    "reward": "train reward-model",
    "online-dpo": "train iterated-dpo",
    "rso": "train rso",
    "eval": "evaluate",
    "preprocess": "data",
    "inspect": "data",
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
    if first == "experiment" and (near := difflib.get_close_matches(two, commands, 1)):
        return near[0]
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
    if name in ELSEWHERE:
        return [there] if (there := ELSEWHERE[name]) in options else []
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
        if prog.endswith(" data") and name == "data":
            return f"data has no option --data. Leave it out, and give the files alone: `{prog} FILE --model MODEL`."
        if not word.startswith("--") or name in ("", "help") or {name, name.removeprefix("no_")} & set(options):
            continue
        near = near_options(name, options)
        meant = " or ".join(f"--{option.replace('_', '-')}" for option in near)
        hint = f"Do you mean {meant}?" if near else f"`{prog} --help` lists the options."
        return f"{prog.removeprefix('rlhf-lab ')} has no option {word.partition('=')[0]}. {hint}"
    return None


def missing_value(words: Sequence[str], options: Mapping[str, Any], prog: str) -> str | None:
    """Return a message about the first option without a value, or None if all have one.

    Args:
        words: the command line behind the command's name.
        options: the type of each option, by its name with `_`.
        prog: the program and the command, for the message.
    """
    for word, following in pairwise([*words, "--help"]):
        option, equals, value = word.partition("=")
        name, after = (one[2:].replace("-", "_") for one in (option, following))
        if not word.startswith("--") or options.get(name, bool) is bool:
            continue
        another = following.startswith("--") and {after, after.removeprefix("no_")} & {"help", *options}
        # An empty text would be the present folder. An empty prompt has a message of its own.
        empty = not (value if equals else following) and typing.get_origin(options[name]) is not tuple
        if empty or (another and not equals):
            return f"{prog.removeprefix('rlhf-lab ')}: {option} needs a value. `{prog} --help` explains the option."
    return None


def near_value(name: str, value: str, allowed: Sequence[str]) -> str:
    """Return the value of an option that a wrong one may mean, or an empty text.

    Args:
        name: of the option, with `_`.
        value: the wrong one.
        allowed: the values that the option has.
    """
    near = VALUES_ELSEWHERE.get((name, value))
    if near is None:
        near = next(iter(difflib.get_close_matches(value.replace("_", "-"), allowed, 1)), "")
    return near
