"""What a run needs, every number by hand, on a transformer of two layers that is small enough for that."""

import json
from dataclasses import replace

import pytest

from rlhf_lab.cli.plan import GIB, Device, ResourcePlan, ResourceReport, estimate
from rlhf_lab.cli.resource_estimate import (
    METHODS,
    Shape,
    Workload,
    memory,
    operations,
    sampling_memory,
    shape_of,
    traffic,
)
from rlhf_lab.errors import LabError

GPT2 = Shape("gpt2", 2, 8, 2, 10, 16)
"""Width of the MLP 32; a layer's matrices have 8·24 + 8·8 + 8·32 + 32·8 = 768 weights and 72 biases."""
LLAMA = Shape("llama", 2, 8, 4, 10, 16, inner=16, kv_heads=2, tied=False)
"""Keys of width 4; 2·8·8 + 2·8·4 + 3·8·16 = 576 weights in a layer, and no biases."""
DPO = Workload(GPT2, METHODS["dpo"], rows=4, prompt=6, response=3)
"""A row: its prompt and two responses less their last tokens, 6 + 2·2 = 10."""
RLOO = Workload(GPT2, METHODS["rloo"], rows=4, prompt=6, response=3)


def test_weights_by_hand():
    """Embeddings of 10 tokens and, in GPT-2, 16 places; biases and two norms of 2·8 a layer (Llama: 2·8 in all), and a
    last norm. Adapters of rank 3 at each matrix: 3 (in + out)."""
    assert (GPT2.layer_weights(), LLAMA.layer_weights(), LLAMA.kv) == (768, 576, 4)
    assert GPT2.body() == 80 + 128 + 2 * (768 + 72 + 32) + 16 == GPT2.parameters()
    assert LLAMA.body() == 80 + 2 * (576 + 16) + 8 and LLAMA.parameters() == LLAMA.body() + 80
    assert GPT2.adapters(3) == 2 * 3 * ((8 + 24) + (8 + 8) + (8 + 32) + (32 + 8))


def test_memory_of_a_step_by_hand():
    """Four bytes a weight, a gradient and each of two moments; each token keeps 9.6·8 + 2·32 numbers a layer; logits of
    4 rows with 2 responses of 3 tokens, twice."""
    weights = 4 * GPT2.parameters()
    assert memory(DPO, 7) == {
        "weights": weights,
        "reference": weights,
        "gradients": weights,
        "Adam's moments": 2 * weights,
        "process and libraries": 7,
        "activations": int(4 * 10 * 2 * (9.6 * 8 + 2 * 32) * 4),
        "logits": 4 * 2 * 3 * 10 * 2 * 4,
    }


def test_parts_of_a_batch_adapters_checkpoints_and_several_devices_by_hand():
    """In two parts half of the rows are in memory, and the head's gradient is made apart. Adapters are all that is
    trained, and the reference is the model without them. A checkpoint keeps a layer's input, and one layer whole."""
    kept, weights = 9.6 * 8 + 2 * 32, 4 * GPT2.parameters()
    parts = memory(replace(DPO, accumulate=2), 0)
    assert parts["activations"] == int(2 * 10 * 2 * kept * 4) and parts["logits"] == 2 * 2 * 3 * 10 * 2 * 4
    assert parts["gradient of the head"] == 80 * 4
    adapted, trained = memory(replace(DPO, lora_rank=3), 0), 4 * GPT2.adapters(3)
    # In 4 bits a matrix has ½ + 1/64 + 4/(64·256) bytes a weight, and one of them, 8 × 32, is dequantised at a time.
    four = memory(replace(DPO, lora_rank=3, four_bits=True), 0)
    matrices = 2 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8)
    assert four.pop("one dequantised matrix") == 4 * 8 * 32
    assert four.pop("weights") == adapted["weights"] - int(matrices * (4 - 0.515869140625))
    assert four == {name: value for name, value in adapted.items() if name != "weights"}
    half = [memory(replace(DPO, lora_rank=3, bf16=True, four_bits=bits), 0) for bits in (False, True)]
    assert half[1]["weights in bf16"] == half[0]["weights in bf16"] - 2 * matrices
    assert half[1]["one dequantised matrix"] == 2 * 8 * 32
    assert (adapted["weights"], adapted["reference"]) == (weights + trained, 0)
    assert (adapted["gradients"], adapted["Adam's moments"]) == (trained, 2 * trained)
    # Fifty weights that are trained further: their frozen copy is the reference. Another model as reference is whole.
    further = memory(replace(DPO, saved_adapters=50), 0)
    assert (further["weights"], further["reference"], further["adapters at the start, frozen"]) == (
        weights + 200,
        0,
        200,
    )
    assert (further["gradients"], further["Adam's moments"]) == (200, 400)
    assert memory(replace(DPO, lora_rank=3, own_reference=True), 0)["reference"] == weights
    assert "adapters at the start, frozen" not in memory(
        replace(DPO, method=METHODS["reward-model"], saved_adapters=50), 0
    )
    checkpoints = memory(replace(DPO, checkpointing=True), 0)
    assert checkpoints["activations"] == int(40 * (2 * 8 * 4 + kept * 4))
    spread = memory(replace(DPO, devices=2, sharded=True), 0)
    assert (spread["weights"], spread["gradients"], spread["Adam's moments"]) == (weights // 2, weights // 2, weights)
    assert spread["activations"] == int(20 * 2 * kept * 4)
    apart = memory(replace(DPO, devices=2), 0)
    assert (apart["gradients"], apart["Adam's moments"]) == (weights, 2 * weights)


def test_sampling_by_hand_and_the_larger_of_sampling_and_training_is_the_peak():
    """Eight responses to each of four prompts: 6 + 8·3 tokens a row with keys and values of 2 layers of width 8. With
    grouped heads of half the width it is half of it. RLOO learns from what it draws, which needs more; of RSO's 64
    candidates two are learned from, and sampling needs more."""
    assert sampling_memory(RLOO) == {
        "keys and values while sampling": 4 * 30 * 2 * 2 * 8 * 4,
        "candidates": 9 * 4 * 8 * 3,
        "next token's logits": 3 * 4 * 8 * 10 * 4,
    }
    assert sampling_memory(replace(RLOO, shape=LLAMA))["keys and values while sampling"] == 4 * 30 * 2 * 2 * 4 * 4
    assert sampling_memory(DPO) == {}
    learns, draws = memory(RLOO, 0), memory(replace(RLOO, method=METHODS["rso"], response=9), 0)
    assert "activations" in learns and "candidates" not in learns
    assert "candidates" in draws and "activations" not in draws


def test_operations_by_hand():
    """Forward: 2 a weight and token, and attention's 2·2·8·9 with half of it masked; 2·80 a logit. Three times that to
    learn, once for the reference. Adapters save the weights' gradients, checkpoints cost a pass more."""
    token = 2 * 2 * 768 + 2 * 2 * 8 * (6 + 3)
    forward = 4 * 10 * token + 4 * 2 * 3 * 160
    assert operations(DPO) == {"learning": 3 * forward, "reference": forward}
    assert operations(replace(DPO, checkpointing=True))["learning"] == 4 * forward
    assert operations(replace(DPO, lora_rank=3))["learning"] == 2 * forward
    ppo = operations(replace(DPO, method=METHODS["ppo"]))
    row, body = 6 + 8 * 2, 4 * (6 + 8 * 2) * token
    forward = body + 4 * 8 * 3 * 160
    assert row == 22 and ppo["learning"] == 3 * forward * 4 and ppo["critic"] == (3 * 4 + 1) * body
    assert ppo["reference"] == 2 * forward
    drawn = (4 * 6 + 4 * 8 * 3) * token
    assert ppo["sampling"] == drawn + 4 * 8 * 3 * 160 and ppo["reward"] == drawn


def test_sizes_are_read_from_their_own_places_in_a_config(tmp_path):
    """Every number differs from every other, so that two that trade places are seen."""
    gpt2 = {"model_type": "gpt2", "n_layer": 3, "n_embd": 20, "n_head": 4, "vocab_size": 50, "n_positions": 60}
    llama = {
        "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 20, "num_attention_heads": 4, "vocab_size": 50,
        "max_position_embeddings": 60, "intermediate_size": 70, "num_key_value_heads": 2, "tie_word_embeddings": True,
    }  # fmt: skip
    for config, expected in (
        (gpt2, Shape("gpt2", 3, 20, 4, 50, 60)),
        (gpt2 | {"n_inner": 90}, Shape("gpt2", 3, 20, 4, 50, 60, 90)),
        (llama, Shape("llama", 3, 20, 4, 50, 60, 70, 2, True)),
        (llama | {"tie_word_embeddings": False}, Shape("llama", 3, 20, 4, 50, 60, 70, 2, False)),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert shape_of(str(tmp_path)) == expected


DEVICE = Device("card", fp32=1e12, bf16=4e12, bandwidth=1e11, memory=8 * GIB)


def plan(**changes) -> ResourcePlan:
    return ResourcePlan(**{"model": "gpt2", "method": "dpo", "batch_size": 4, **changes})


def test_a_plan_s_options_reach_the_workload():
    load = plan(accumulate=2, lora_rank=5, gradient_checkpointing=True, precision="bf16", num_devices=3, fsdp=True,
                prompt_tokens=9, response_tokens=7).workload()  # fmt: skip
    assert (load.rows, load.prompt, load.response, load.accumulate, load.lora_rank) == (4, 9, 7, 2, 5)
    assert (load.checkpointing, load.bf16, load.devices, load.sharded) == (True, True, 3, True)
    more = plan(method="ppo", samples=5).workload().method
    assert (more.samples_per_prompt, more.responses, more.sampled) == (5, 5, 5)
    few = plan(method="rso", samples=32).workload().method
    assert (few.samples_per_prompt, few.responses, few.sampled) == (32, 2, 8)
    assert plan().tokens(2000) == (256, 64) and plan().tokens(100) == (75, 25)
    assert plan(prompt_tokens=1000, response_tokens=24).workload().prompt == 1000
    with pytest.raises(LabError, match="1,000 prompt tokens and 25 response tokens are more than the 1024"):
        plan(prompt_tokens=1000, response_tokens=25).workload()


def test_a_plan_s_time_is_products_at_half_their_rate_and_what_memory_moves():
    for changes, rate in (({}, 1e12), ({"precision": "bf16"}, 4e12)):
        settings = plan(**changes)
        load = settings.workload()
        one = sum(operations(load).values()) / (0.5 * rate) + traffic(load) / 1e11
        assert estimate(settings, DEVICE).seconds == pytest.approx(one)
    two = plan(num_devices=2)
    load = two.workload()
    both = (sum(operations(load).values()) / 0.5e12 + traffic(load) / 1e11) / 2
    assert estimate(two, DEVICE).seconds == pytest.approx(both)


def test_a_plan_fits_where_a_tenth_of_a_card_or_a_fifth_of_the_memory_stays_free():
    def report(name: str, peak: int) -> ResourceReport:
        return ResourceReport(1, 1, {"all": peak}, 1000.0, {}, 1.0, 1, replace(DEVICE, name=name), {})

    assert [report("card", peak).fits for peak in (900, 901)] == [True, False]
    assert [report("CPU", peak).fits for peak in (800, 801)] == [True, False]
    assert estimate(plan(memory_gb=3.0), DEVICE).available == 3 * GIB


def test_proposed_changes_need_less_each_by_its_own_plan():
    """Of what does not fit into a hundredth of a GiB every proposal's peak is that of the plan with the change."""
    settings = plan(memory_gb=0.01)
    found = estimate(settings, DEVICE)
    assert not found.fits and found.changes
    assert all(peak < found.peak for peak in found.changes.values())
    assert found.changes["lora_rank=16"] == estimate(replace(settings, lora_rank=16), DEVICE).peak
    assert (
        found.changes["gradient_checkpointing"] == estimate(replace(settings, gradient_checkpointing=True), DEVICE).peak
    )
    # Weights outweigh the activations of a row of three tokens: a copy of them in bf16 would only add to that.
    short = plan(memory_gb=0.01, batch_size=1, prompt_tokens=2, response_tokens=1)
    assert estimate(replace(short, precision="bf16"), DEVICE).peak > estimate(short, DEVICE).peak
    assert not any("bf16" in name for name in estimate(short, DEVICE).changes)
