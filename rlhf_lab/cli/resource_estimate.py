"""What a run needs: numbers of weights, bytes and floating-point operations of a transformer under each method.

Weights are counted exactly. Bytes and operations follow Korthikanti et al. 2022 ("Reducing activation recomputation
in large transformer models", for what a layer keeps) and Kaplan et al. 2020 ("Scaling laws", section 2.1: 2 operations
a weight and token forward, twice that backward), with the constants of this project's own passes: prompts computed
once, logits at response places alone. Left out on purpose: what the allocator holds between tensors, and what other
programs use.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.transformer.token_logprobs import MAX_LOGITS

FLOAT = 4
"""Bytes of a weight, a gradient and each of Adam's two moments: always float32."""


@dataclass(frozen=True)
class Shape:
    """The sizes that decide a transformer's needs."""

    kind: str
    """gpt2, gpt_neox or llama, as in config.json."""
    layers: int
    hidden: int
    heads: int
    vocab: int
    context: int
    inner: int = 0
    """Width of the MLP; 0: 4 · hidden."""
    kv_heads: int = 0
    """Heads of keys and values; 0: as many as heads."""
    tied: bool = True
    """Whether the head is the embedding."""

    @property
    def width(self) -> int:
        """Width of the MLP."""
        return self.inner or 4 * self.hidden

    @property
    def kv(self) -> int:
        """Numbers in a token's keys, and as many in its values, in a layer."""
        return self.hidden * (self.kv_heads or self.heads) // self.heads

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of each matrix in a layer."""
        h, i = self.hidden, self.width
        if self.kind == "llama":
            return [(h, h), (h, self.kv), (h, self.kv), (h, h), (h, i), (h, i), (i, h)]
        return [(h, 3 * h), (h, h), (h, i), (i, h)]

    def layer_weights(self) -> int:
        """Weights in the matrices of one layer, which every token multiplies."""
        return sum(a * b for a, b in self.linears())

    def embedding(self) -> int:
        """Weights of the token embedding, and of the head as well."""
        return self.vocab * self.hidden

    def body(self) -> int:
        """Weights without a head of its own: embeddings, layers with biases and norms, the last norm."""
        h = self.hidden
        if self.kind == "llama":  # no biases; norms have a scale alone
            return self.embedding() + self.layers * (self.layer_weights() + 2 * h) + h
        biases = sum(b for _, b in self.linears())
        places = self.context * h if self.kind == "gpt2" else 0
        return self.embedding() + places + self.layers * (self.layer_weights() + biases + 4 * h) + 2 * h

    def parameters(self) -> int:
        """All weights of the language model, tied ones once."""
        return self.body() + (0 if self.tied else self.embedding())

    def adapters(self, rank: int) -> int:
        """Weights of LoRA adapters of `rank` beside every matrix of the layers (Hu et al. 2022): r (in + out) each."""
        return self.layers * rank * sum(a + b for a, b in self.linears())

    def kept(self) -> float:
        """Numbers that a layer keeps for the backward pass, for each token.

        Inputs and outputs of norms, matrices and activations, as the modules of transformers are written, with an
        attention that keeps no scores (sdpa).
        """
        a, b = {"gpt2": (9.6, 2.0), "gpt_neox": (10.6, 2.0), "llama": (11.8, 4.0)}[self.kind]
        return a * self.hidden + b * self.width


def _gpt2(layers: int, hidden: int, heads: int) -> Shape:
    return Shape("gpt2", layers, hidden, heads, 50257, 1024)


def _pythia(layers: int, hidden: int, heads: int, vocab: int = 50304) -> Shape:
    return Shape("gpt_neox", layers, hidden, heads, vocab, 2048, tied=False)


KNOWN = {
    # Radford et al. 2019, table 2, and the configurations on the Hub.
    "gpt2": _gpt2(12, 768, 12),
    "gpt2-medium": _gpt2(24, 1024, 16),
    "gpt2-large": _gpt2(36, 1280, 20),
    "gpt2-xl": _gpt2(48, 1600, 25),
    # Biderman et al. 2023, table 1. The vocabulary's padding differs with the training's parallelism.
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "pythia-6.9b": _pythia(32, 4096, 32, 50432),
    "pythia-12b": _pythia(36, 5120, 40, 50688),
    "smollm2": Shape("llama", 30, 576, 9, 49152, 8192, inner=1536, kv_heads=3),
}
"""Models whose sizes are known without asking anyone. `EleutherAI/pythia-1b` and the like are found by their end."""
_OTHER_NAMES = {"smollm2-135m": "smollm2", "smollm2-135m-instruct": "smollm2"}


def shape_of(model: str) -> Shape:
    """The sizes of a model, by name or by the config.json of a folder. Nothing is downloaded.

    Raises:
        LabError: the name is not known and no folder, or the folder's config.json is of another architecture.
    """
    from rlhf_lab.policies.loading import SHIPPED, shipped_folder

    path = shipped_folder(model) if model in SHIPPED else check_path(model, "model")
    if (path / "config.json").is_file():
        try:
            config = dict(json.loads((path / "config.json").read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            raise LabError(f"{path / 'config.json'} is damaged ({error}).") from None
        return _from_config(config, path)
    name = model.split("/")[-1].lower().removesuffix("-deduped")
    name = _OTHER_NAMES.get(name, name)
    if name not in KNOWN:
        raise LabError(
            f"The sizes of {model} are not known. Give a folder with its config.json, or one of "
            f"{', '.join([*SHIPPED, *KNOWN])}."
        )
    return KNOWN[name]


def _from_config(config: dict[str, Any], path: Path) -> Shape:
    kind = config.get("model_type")

    def number(name: str, otherwise: int | None = None) -> int:
        value = config.get(name, otherwise)
        value = otherwise if value is None else value
        if value is None:
            raise LabError(f"{path / 'config.json'} has no {name!r}.")
        if not isinstance(value, int) or value < 0:
            raise LabError(f"{path / 'config.json'}: {name} is {value!r}; expected a whole number.")
        return value

    if kind == "gpt2":
        return Shape(
            "gpt2", number("n_layer"), number("n_embd"), number("n_head"), number("vocab_size"), number("n_positions"),
            number("n_inner", 0),
        )  # fmt: skip
    if kind in ("gpt_neox", "llama"):
        return Shape(
            kind, number("num_hidden_layers"), number("hidden_size"), number("num_attention_heads"),
            number("vocab_size"), number("max_position_embeddings"), number("intermediate_size"),
            number("num_key_value_heads", 0), bool(config.get("tie_word_embeddings", False)),
        )  # fmt: skip
    raise LabError(f"The model in {path} is a {kind!r}; plan knows gpt2, gpt_neox (Pythia) and llama (SmolLM2).")


@dataclass(frozen=True)
class Method:
    """What a method computes for each row of a step's batch."""

    learned: int
    """Responses of a row that the loss is computed from."""
    drawn: float = 0.0
    """Responses drawn for each row of a step; from a set drawn beforehand, its share."""
    at_once: int = 0
    """Responses drawn for a prompt at a time."""
    reference: bool = False
    reward: bool = False
    critic: bool = False
    head: bool = True
    """Whether the loss needs logits (a reward model's does not)."""
    epochs: int = 1
    """Optimiser steps on the same rows."""
    row: str = "prompts"
    """What batch_size counts."""


METHODS = {
    "sft": Method(1),
    "reward-model": Method(2, head=False, row="pairs"),
    "ranker": Method(2, head=False, row="pairs"),
    "dpo": Method(2, reference=True, row="pairs"),
    "kto": Method(2, reference=True, row="responses"),  # the second: another prompt's, for the estimate of the KL
    "rso": Method(2, drawn=16, at_once=64, reference=True, reward=True, row="pairs"),  # 64 drawn for 4 pairs
    "raft": Method(1, drawn=8, at_once=8, reward=True),
    "rest": Method(1, drawn=1, at_once=64, reward=True, row="responses"),
    "iterated-dpo": Method(2, drawn=2, at_once=2, reference=True, reward=True, row="pairs"),
    "ppo": Method(8, drawn=8, at_once=8, reference=True, reward=True, critic=True, epochs=4),
    "rloo": Method(8, drawn=8, at_once=8, reference=True, reward=True),
    "grpo": Method(8, drawn=8, at_once=8, reference=True, reward=True),
}


@dataclass(frozen=True)
class Load:
    """One method on one model with one batch."""

    shape: Shape
    method: Method
    rows: int
    """Rows of a step, over all processes."""
    prompt: int
    """Tokens of a prompt."""
    response: int
    """Tokens of a response."""
    bf16: bool = False
    accumulate: int = 1
    checkpointing: bool = False
    lora_rank: int = 0
    devices: int = 1
    sharded: bool = False
    """Weights, gradients and moments spread over the devices (FSDP)."""

    @property
    def trained(self) -> int:
        """Weights that are trained in the policy (or reward model)."""
        if self.lora_rank:
            return self.shape.adapters(self.lora_rank)
        return self.shape.parameters() if self.method.head else self.shape.body()

    @property
    def rows_at_once(self) -> int:
        """Rows in memory at a time on one device."""
        return math.ceil(math.ceil(self.rows / self.devices) / self.accumulate)

    @property
    def row_tokens(self) -> int:
        """Tokens computed for a row: its prompt once, and each response but for its last token."""
        return self.prompt + self.method.learned * max(self.response - 1, 1)


def memory(load: Load, process: int) -> dict[str, int]:
    """Bytes on each device, by what they are for. Their sum is the peak.

    Args:
        load: the run.
        process: bytes of a process with its libraries that has computed nothing.
    """
    shape, method = load.shape, load.method
    spread = load.devices if load.sharded else 1
    own = shape.parameters() if method.head else shape.body()
    out = {"weights": (own + (load.trained if load.lora_rank else 0)) * FLOAT // spread}
    if method.reference:
        # Adapters are the whole difference to the reference; taken away, the policy is the reference.
        out["reference"] = 0 if load.lora_rank else shape.parameters() * FLOAT
    if method.reward:
        out["reward model"] = shape.body() * FLOAT
    out["gradients"] = load.trained * FLOAT // spread
    out["Adam's moments"] = 2 * load.trained * FLOAT // spread
    if method.critic:
        out["critic with gradients and moments"] = 4 * shape.body() * FLOAT // spread
    if load.sharded:
        unit = shape.embedding() * (1 if shape.tied else 2) + 2 * shape.layer_weights()
        out["gathered layers"] = min(2 * unit, own) * FLOAT
    out["process and libraries"] = process
    learning = _learning(load)
    sampling = drawing(load)
    # A step draws first and learns then.
    return out | (learning if sum(learning.values()) >= sum(sampling.values()) else sampling)


def _learning(load: Load) -> dict[str, int]:
    shape, method = load.shape, load.method
    tokens = load.rows_at_once * load.row_tokens
    # Under autocast the inputs of matrices are kept in 2 bytes, norms and the residual stream in 4; and each matrix
    # has a copy in 2 bytes.
    each = 2.6 if load.bf16 else FLOAT
    if load.checkpointing:
        kept = shape.layers * shape.hidden * FLOAT + shape.kept() * each
    else:
        kept = shape.layers * shape.kept() * each
    out = {"activations": int(tokens * kept * (2 if method.critic else 1))}
    if method.head:
        places = load.rows_at_once * method.learned * load.response
        # Logits, which become probabilities and then their gradient in place; one more while they change.
        out["logits"] = min(places * shape.vocab, MAX_LOGITS) * 2 * FLOAT
        if load.accumulate > 1 and not load.lora_rank:
            # From the second part on: the head's gradient of this part, before it is added to what is there.
            out["gradient of the head"] = shape.embedding() * FLOAT
    if load.bf16:
        out["weights in bf16"] = 2 * (shape.parameters() if method.head else shape.body())
    return out


def drawing(load: Load) -> dict[str, int]:
    """Bytes on each device while responses are drawn, beside the weights; nothing where a method draws none."""
    shape, method = load.shape, load.method
    if not method.at_once:
        return {}
    rows = -(-load.rows // load.devices)
    each = 2 if load.bf16 else FLOAT
    keys = 2 * shape.layers * shape.kv * each
    tokens = rows * (load.prompt + method.at_once * load.response)
    ids = 9 * rows * method.at_once * load.response  # an id and whether it counts
    return {
        "keys and values while sampling": tokens * keys,
        "candidates": ids,
        "next token's logits": 3 * rows * method.at_once * shape.vocab * FLOAT,
    }


def operations(load: Load) -> dict[str, float]:
    """Floating-point operations of a step, by what they are for, over all devices."""
    shape, method = load.shape, load.method
    context = load.prompt + load.response
    token = 2 * shape.layers * shape.layer_weights() + 2 * shape.layers * shape.hidden * context  # half is masked
    head = 2 * shape.embedding()
    body = load.rows * load.row_tokens * token
    logits = load.rows * method.learned * load.response * head if method.head else 0
    forward = body + logits
    # Backward: gradients of the inputs and of the weights, as much as forward each; of frozen weights none.
    passes = (2 if load.lora_rank else 3) + (1 if load.checkpointing else 0)
    out = {"learning": float(passes * forward * method.epochs)}
    if method.critic:
        out["critic"] = float((3 * method.epochs + 1) * body)
    if method.drawn:
        drawn = load.rows * method.drawn
        prompts = load.rows * method.drawn / method.at_once * load.prompt
        out["sampling"] = float((prompts + drawn * load.response) * token + drawn * load.response * head)
        if method.reward:
            out["reward"] = float((prompts + drawn * load.response) * token)
    if method.reference:
        # Once for each row; with responses of its own, the policy's old log-probabilities as well.
        out["reference"] = float(forward * (2 if method.epochs > 1 else 1))
    return out


def traffic(load: Load) -> float:
    """Bytes a step must move besides its products, over all devices: Adam's pass over its numbers, and sampling.

    Each drawn token reads all weights and the keys and values so far, however few rows are drawn at a time.
    """
    shape, method = load.shape, load.method
    adam = 7 * FLOAT * load.trained * method.epochs * (1 if load.sharded else load.devices)
    if not method.drawn:
        return float(adam)
    each = 2 if load.bf16 else FLOAT
    rounds = method.drawn / method.at_once * load.response
    keys = 2 * shape.layers * shape.kv * each
    read = rounds * (
        shape.parameters() * each * load.devices + load.rows * (load.prompt + method.at_once * load.response / 2) * keys
    )
    return float(adam + read)
