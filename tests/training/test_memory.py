"""What is said about memory, and layers whose activations are computed again, without a model."""

import pytest
import torch

from rlhf_lab.training import Training, memory


@pytest.mark.parametrize(
    ("precision", "mend"),
    [("fp32", "responses and gradient_checkpointing on; precision=bf16."), ("bf16", "on; a smaller model.")],
)
def test_bf16_is_advised_only_where_it_is_not_on(precision, mend):
    said = memory.advice(Training(precision=precision, batch_size=7))
    assert mend in said and "batch_size (now 7)" in said


def test_checkpointing_is_not_advised_where_it_is_on_and_nothing_is_named_that_a_command_lacks():
    assert "gradient_checkpointing" not in memory.advice(Training(gradient_checkpointing=True))
    assert "fewer rows at a time; shorter" in memory.advice(object())


class Cache:
    """What transformers recognises as a cache of keys and values."""

    def __init__(self):
        self.written = []

    def get_seq_length(self):
        return len(self.written)


def test_a_layer_is_computed_again_unless_it_writes_to_a_cache():
    """Twice for the backward pass; once without gradients; and once with a cache, which would hold each key twice."""
    calls = []

    def layer(x, cache=None):
        calls.append(1)
        if cache is not None:
            cache.written.append(x.detach())
        return x.sin()

    checkpointed, x, cache = memory._CheckpointedForward(layer), torch.ones(2, requires_grad=True), Cache()
    checkpointed(x).sum().backward()
    assert len(calls) == 2 and torch.equal(x.grad, torch.ones(2).cos())
    with torch.no_grad():
        checkpointed(x)
    assert len(calls) == 3
    checkpointed(x, cache).sum().backward()
    checkpointed(x, cache=cache).sum().backward()
    assert len(calls) == 5 and cache.get_seq_length() == 2
