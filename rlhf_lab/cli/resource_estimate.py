"""Estimates of a training run: weights, memory and floating-point operations of a transformer under each method.

Weights are counted exactly. The activations that a layer saves follow Korthikanti et al. 2022 ("Reducing activation
recomputation in large transformer models"). The operations follow Kaplan et al. 2020 ("Scaling laws", section 2.1): the
forward pass takes 2 operations for each weight and token, and the backward pass twice as many. The constants are those
of this project's forward pass, which computes each prompt once and logits only at the positions of responses. Two
things are left out on purpose: the memory that the allocator holds between tensors, and the memory of other programs.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_lab.errors import LabError, check_path
from rlhf_lab.policies.transformer.token_logprobs import MAX_LOGITS

NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in 4 bits: 64 weights share a scale of 8 bits, and 256 scales a float32 (Dettmers et al. 2023)."""
FLOAT = 4
"""Bytes of a weight, a gradient and each of Adam's two moments, which are always float32."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformer."""

    kind: str
    """gpt2, gpt_neox or llama, as in config.json."""
    layers: int
    hidden: int
    heads: int
    vocab: int
    context: int
    inner: int | None = None
    """Width of the MLP. None means 4 · hidden."""
    kv_heads: int | None = None
    """Number of heads of keys and values. None means `heads`."""
    tied: bool = True
    """Whether the language-model head shares the weights of the embedding."""

    @property
    def width(self) -> int:
        """Width of the MLP."""
        return self.inner or 4 * self.hidden

    @property
    def kv(self) -> int:
        """Length of a token's key vector over all heads of a layer. The value vector has the same length."""
        return self.hidden * (self.kv_heads or self.heads) // self.heads

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of each weight matrix in a layer."""
        h, i = self.hidden, self.width
        if self.kind == "llama":
            return [(h, h), (h, self.kv), (h, self.kv), (h, h), (h, i), (h, i), (i, h)]
        return [(h, 3 * h), (h, h), (h, i), (i, h)]

    def layer_weights(self) -> int:
        """Number of weights in the matrices of one layer."""
        return sum(a * b for a, b in self.linears())

    def embedding(self) -> int:
        """Number of weights of the token embedding, which is also that of the head."""
        return self.vocab * self.hidden

    def body(self) -> int:
        """Number of weights without an untied head: embeddings, layers with biases and norms, and the last norm."""
        h = self.hidden
        if self.kind == "llama":  # no biases, and norms have only a scale
            return self.embedding() + self.layers * (self.layer_weights() + 2 * h) + h
        biases = sum(b for _, b in self.linears())
        places = self.context * h if self.kind == "gpt2" else 0
        return self.embedding() + places + self.layers * (self.layer_weights() + biases + 4 * h) + 2 * h

    def parameters(self) -> int:
        """Number of weights of the language model. Tied weights are counted once."""
        return self.body() + (0 if self.tied else self.embedding())

    def adapters(self, rank: int) -> int:
        """Number of weights of LoRA adapters on every matrix of the layers (Hu et al. 2022): rank · (in + out) each."""
        return self.layers * rank * sum(a + b for a, b in self.linears())

    def saved_numbers(self) -> float:
        """How many numbers a layer saves for the backward pass, for each token.

        These are the inputs and outputs of norms, matrices and activation functions in the modules of transformers,
        with an attention that saves no scores (sdpa).
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
"""Models with known sizes. A name on the Hub such as `EleutherAI/pythia-1b` is found by its last part."""
_OTHER_NAMES = {"smollm2-135m": "smollm2", "smollm2-135m-instruct": "smollm2"}


def shape_of(model: str) -> Shape:
    """Return the sizes of a model, found by its name or in the config.json of a folder. Nothing is downloaded.

    Raises:
        LabError: the name is neither known nor a folder, or the folder's config.json is of another architecture.
    """
    from rlhf_lab.policies.loading import SHIPPED, adapter_base, shipped_folder

    while model not in SHIPPED and (base := adapter_base(model)) is not None:
        model = base
    path = shipped_folder(model) if model in SHIPPED else check_path(model, "model")
    if not (path / "config.json").is_file():
        path = path / "model"  # the output folder of a run
    if (path / "config.json").is_file():
        try:
            config = dict(json.loads((path / "config.json").read_text(encoding="utf-8")))
        except (ValueError, TypeError, OSError) as error:
            raise LabError(f"{path / 'config.json'} is damaged ({error}). Save the model again.") from None
        return _from_config(config, path)
    name = model.split("/")[-1].lower().removesuffix("-deduped")
    name = _OTHER_NAMES.get(name, name)
    if name not in KNOWN:
        raise LabError(
            f"The sizes of {model} are not known. Give a folder with a config.json, or one of "
            f"{', '.join([*SHIPPED, *KNOWN])}."
        )
    return KNOWN[name]


def _from_config(config: dict[str, Any], path: Path) -> Shape:
    kind = config.get("model_type")

    def number(name: str, otherwise: int | None = None) -> int:
        value = config.get(name, otherwise)
        value = otherwise if value is None else value
        if value is None:
            raise LabError(f"{path / 'config.json'} has no {name!r}. Save the model again with transformers.")
        if not isinstance(value, int) or value < 0:
            raise LabError(f"{path / 'config.json'}: {name} is {value!r}; expected a whole number of at least 0.")
        return value

    if kind == "gpt2":
        return Shape(
            "gpt2", number("n_layer"), number("n_embd"), number("n_head"), number("vocab_size"), number("n_positions"),
            number("n_inner", 0) or None,
        )  # fmt: skip
    if kind in ("gpt_neox", "llama"):
        return Shape(
            kind, number("num_hidden_layers"), number("hidden_size"), number("num_attention_heads"),
            number("vocab_size"), number("max_position_embeddings"), number("intermediate_size"),
            number("num_key_value_heads", 0) or None, bool(config.get("tie_word_embeddings", False)),
        )  # fmt: skip
    raise LabError(
        f"The model in {path} is of the architecture {kind!r}. `rlhf-lab plan` knows gpt2, gpt_neox (Pythia) and llama "
        f"(SmolLM2)."
    )


@dataclass(frozen=True)
class MethodCost:
    """What a method computes for each row of a step's batch."""

    responses: int
    """Responses in the loss of a row."""
    sampled: float = 0.0
    """Responses sampled for each row of a step. If all are sampled before training, this is a row's share of them."""
    samples_per_prompt: int = 0
    """Responses sampled for a prompt at the same time."""
    # Which other models the method needs beside the policy:
    reference: bool = False
    reward: bool = False
    critic: bool = False
    head: bool = True
    """Whether the loss needs logits. That of a reward model does not."""
    epochs: int = 1
    """Passes over the rows of a step."""
    row: str = "prompt"
    """What `batch_size` counts, in the singular."""


METHODS = {
    "sft": MethodCost(1),
    "reward-model": MethodCost(2, head=False, row="pair"),
    "ranker": MethodCost(2, head=False, row="pair"),
    "dpo": MethodCost(2, reference=True, row="pair"),
    "kto": MethodCost(2, reference=True, row="response"),  # the second response is for the KL estimate
    # 64 candidates become 4 pairs
    "rso": MethodCost(2, sampled=16, samples_per_prompt=64, reference=True, reward=True, row="pair"),
    "raft": MethodCost(1, sampled=8, samples_per_prompt=8, reward=True),
    "rest": MethodCost(1, sampled=1, samples_per_prompt=64, reward=True, row="response"),
    "iterated-dpo": MethodCost(2, sampled=2, samples_per_prompt=2, reference=True, reward=True, row="pair"),
    "ppo": MethodCost(8, sampled=8, samples_per_prompt=8, reference=True, reward=True, critic=True, epochs=4),
    "rloo": MethodCost(8, sampled=8, samples_per_prompt=8, reference=True, reward=True),
    "grpo": MethodCost(8, sampled=8, samples_per_prompt=8, reference=True, reward=True),
}


@dataclass(frozen=True)
class Workload:
    """A run of one method on one model with one batch size."""

    shape: Shape
    method: MethodCost
    rows: int
    """Rows of a step, summed over all processes."""
    prompt: int
    """Tokens of a prompt."""
    response: int
    """Tokens of a response."""
    bf16: bool = False
    accumulate: int = 1
    checkpointing: bool = False
    lora_rank: int | None = None
    saved_adapters: int = 0
    """Number of weights of adapters that are trained further; 0 for none."""
    own_reference: bool = False
    """Whether the reference is another model than the policy without its adapters."""
    four_bits: bool = False
    """Whether the matrices of the layers are in 4 bits. Then only adapters are trained."""
    devices: int = 1
    sharded: bool = False
    """Whether weights, gradients and moments are spread over the devices (FSDP)."""

    @property
    def trained(self) -> int:
        """Number of trained weights of the policy (or reward model)."""
        if self.saved_adapters:
            return self.saved_adapters
        if self.lora_rank:
            return self.shape.adapters(self.lora_rank)
        return self.shape.parameters() if self.method.head else self.shape.body()

    @property
    def adapted(self) -> bool:
        """Whether adapters are trained in place of all weights."""
        return bool(self.lora_rank or self.saved_adapters)

    @property
    def rows_at_once(self) -> int:
        """Rows that are in the memory of one device at the same time."""
        return math.ceil(math.ceil(self.rows / self.devices) / self.accumulate)

    @property
    def row_tokens(self) -> int:
        """Tokens computed for a row: the prompt once, and each response without its last token."""
        return self.prompt + self.method.responses * max(self.response - 1, 1)


def memory(load: Workload, process: int) -> dict[str, int]:
    """Return the bytes on each device, by purpose. Their sum is the peak.

    Args:
        load: the run.
        process: bytes of a process that has loaded its libraries and computed nothing.
    """
    shape, method = load.shape, load.method
    spread = load.devices if load.sharded else 1
    model = shape.parameters() if method.head else shape.body()
    out = {"weights": (model + (load.trained if load.adapted else 0)) * FLOAT // spread}
    if load.four_bits:
        matrices = shape.layers * shape.layer_weights()
        out["weights"] -= int(matrices * (FLOAT - NF4))
        out["one dequantised matrix"] = max(a * b for a, b in shape.linears()) * (2 if load.bf16 else FLOAT)
    if method.reference:
        # Without its adapters the policy is the reference, so the reference needs no memory.
        out["reference"] = 0 if load.adapted and not load.own_reference else shape.parameters() * FLOAT
    if load.saved_adapters and method.head:
        out["adapters at the start, frozen"] = load.saved_adapters * FLOAT
    if method.reward:
        out["reward model"] = shape.body() * FLOAT
    out["gradients"] = load.trained * FLOAT // spread
    out["Adam's moments"] = 2 * load.trained * FLOAT // spread
    if method.critic:
        out["critic with gradients and moments"] = 4 * shape.body() * FLOAT // spread
    if load.sharded:
        unit = shape.embedding() * (1 if shape.tied else 2) + 2 * shape.layer_weights()
        out["gathered layers"] = min(2 * unit, model) * FLOAT
    out["process and libraries"] = process
    learning = _learning(load)
    sampling = sampling_memory(load)
    # A step first samples and then trains, so only the larger of the two counts.
    return out | (learning if sum(learning.values()) >= sum(sampling.values()) else sampling)


def _learning(load: Workload) -> dict[str, int]:
    shape, method = load.shape, load.method
    tokens = load.rows_at_once * load.row_tokens
    # Under autocast the inputs of matrices are saved in 2 bytes, and norms and the residual stream in 4. Each matrix
    # also has a copy in 2 bytes.
    each = 2.6 if load.bf16 else FLOAT
    if load.checkpointing:
        saved = shape.layers * shape.hidden * FLOAT + shape.saved_numbers() * each
    else:
        saved = shape.layers * shape.saved_numbers() * each
    out = {"activations": int(tokens * saved * (2 if method.critic else 1))}
    if method.head:
        places = load.rows_at_once * method.responses * load.response
        # Logits become probabilities and then their gradient in place. A second copy exists while they change.
        out["logits"] = min(places * shape.vocab, MAX_LOGITS) * 2 * FLOAT
        if load.accumulate > 1 and not load.adapted:
            # From the second part on, the part's gradient of the head exists beside the sum of the earlier ones.
            out["gradient of the head"] = shape.embedding() * FLOAT
    if load.bf16:
        # Matrices in 4 bits are dequantised when they are used, one at a time.
        matrices = shape.layers * shape.layer_weights() if load.four_bits else 0
        out["weights in bf16"] = 2 * ((shape.parameters() if method.head else shape.body()) - matrices)
    return out


def sampling_memory(load: Workload) -> dict[str, int]:
    """Return the bytes on each device for sampling, without the weights; empty if the method does not sample."""
    shape, method = load.shape, load.method
    if not method.samples_per_prompt:
        return {}
    rows = -(-load.rows // load.devices)
    each = 2 if load.bf16 else FLOAT
    keys = 2 * shape.layers * shape.kv * each
    tokens = rows * (load.prompt + method.samples_per_prompt * load.response)
    ids = 9 * rows * method.samples_per_prompt * load.response  # a token and its mask
    return {
        "keys and values while sampling": tokens * keys,
        "candidates": ids,
        "next token's logits": 3 * rows * method.samples_per_prompt * shape.vocab * FLOAT,
    }


def operations(load: Workload) -> dict[str, float]:
    """Return the floating-point operations of a step over all devices, by purpose."""
    shape, method = load.shape, load.method
    context = load.prompt + load.response
    token = 2 * shape.layers * shape.layer_weights() + 2 * shape.layers * shape.hidden * context  # half is masked
    head = 2 * shape.embedding()
    body = load.rows * load.row_tokens * token
    logits = load.rows * method.responses * load.response * head if method.head else 0
    forward = body + logits
    # The gradients of the inputs and those of the weights take as many operations as the forward pass each. Frozen
    # weights have no gradient.
    passes = (2 if load.adapted else 3) + (1 if load.checkpointing else 0)
    out = {"learning": float(passes * forward * method.epochs)}
    if method.critic:
        out["critic"] = float((3 * method.epochs + 1) * body)
    if method.sampled:
        sampled = load.rows * method.sampled
        prompts = load.rows * method.sampled / method.samples_per_prompt * load.prompt
        out["sampling"] = float((prompts + sampled * load.response) * token + sampled * load.response * head)
        if method.reward:
            out["reward"] = float((prompts + sampled * load.response) * token)
    if method.reference:
        # One pass for each row. Methods with several epochs also compute the policy's old log-probabilities.
        out["reference"] = float(forward * (2 if method.epochs > 1 else 1))
    return out


def traffic(load: Workload) -> float:
    """Return the bytes that Adam and sampling read and write in a step, over all devices.

    Each sampled token reads all weights and all earlier keys and values, whatever the number of rows.
    """
    shape, method = load.shape, load.method
    adam = 7 * FLOAT * load.trained * method.epochs * (1 if load.sharded else load.devices)
    if not method.sampled:
        return float(adam)
    each = 2 if load.bf16 else FLOAT
    rounds = method.sampled / method.samples_per_prompt * load.response
    keys = 2 * shape.layers * shape.kv * each
    read = rounds * (
        shape.parameters() * each * load.devices
        + load.rows * (load.prompt + method.samples_per_prompt * load.response / 2) * keys
    )
    return float(adam + read)
