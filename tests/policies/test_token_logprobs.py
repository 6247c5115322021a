"""log softmax(h W / τ)[y] in one buffer, against autograd through torch's own log-softmax, in float64."""

import pytest
import torch
from torch import nn

from rlhf_lab.policies.transformer import token_logprobs
from rlhf_lab.policies.transformer.token_logprobs import token_log_probs


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("vocab", [13, 9])
@pytest.mark.parametrize("at_once", [2**27, 40])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_equal_autograd_s(bias, vocab, at_once, temperature, monkeypatch):
    """Some rows are picked several times, one of them with the same id twice, one row never."""
    monkeypatch.setattr(token_logprobs, "MAX_LOGITS", at_once)
    torch.manual_seed(0)
    linear = nn.Linear(5, 13, bias=bias).double()
    states = torch.randn(11, 5, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([0, 0, 3, 2, 10, 9, 5, 3, 3])
    ids = torch.tensor([1, 8, 0, 4, 8, 2, 2, 0, 7])
    weight = torch.randn(9, dtype=torch.float64)
    wrt = [states, *linear.parameters()]
    ours = token_log_probs(linear, vocab, states, rows, ids, temperature)
    plain = (linear(states)[:, :vocab] / temperature).log_softmax(-1)[rows, ids]
    assert torch.allclose(ours, plain, atol=1e-12)
    for a, b in zip(
        torch.autograd.grad((ours * weight).sum(), wrt, retain_graph=True),
        torch.autograd.grad((plain * weight).sum(), wrt),
        strict=True,
    ):
        assert torch.allclose(a, b, atol=1e-12)
    # A second backward pass through the same graph finds what it needs.
    again = torch.autograd.grad((ours * weight).sum(), wrt)
    assert torch.allclose(again[0], torch.autograd.grad((token_log_probs(linear, vocab, states, rows, ids, temperature)
                                                         * weight).sum(), wrt)[0], atol=1e-12)  # fmt: skip


def test_a_head_that_is_watched_or_not_linear_is_called():
    """A hook (an adapter's, a sharded weight's) or another class must not be passed by."""
    linear, calls = nn.Linear(5, 13), []
    states, rows, ids = torch.randn(4, 5), torch.arange(4), torch.arange(4)
    expected = token_log_probs(linear, 13, states, rows, ids, 1.0)
    handle = linear.register_forward_hook(lambda *a: calls.append(1))
    assert torch.allclose(token_log_probs(linear, 13, states, rows, ids, 1.0), expected, atol=1e-6)
    assert calls == [1]
    handle.remove()
    scaled = nn.Sequential(linear, nn.Identity())
    assert torch.allclose(token_log_probs(scaled, 13, states, rows, ids, 1.0), expected, atol=1e-6)


def test_logits_of_a_thousand_nats_overflow_nothing():
    linear = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1000.0], [999.0], [-1000.0]]))
    states = torch.ones(1, 1, requires_grad=True)
    values = token_log_probs(linear, 3, states, torch.zeros(3, dtype=torch.long), torch.arange(3), 1.0)
    log_z = torch.log1p(torch.exp(torch.tensor(-1.0)))
    assert torch.allclose(values, torch.tensor([0.0, -1.0, -2000.0]) - log_z)
    values[0].backward()
    assert torch.isfinite(states.grad).all()


@pytest.mark.parametrize("at_once", [2**27, 40])
def test_a_head_that_is_called_knows_the_temperature_and_the_vocabulary(at_once, monkeypatch):
    """A head of another class than `nn.Linear`, against torch's own log-softmax over the first 9 of 13 ids."""
    monkeypatch.setattr(token_logprobs, "MAX_LOGITS", at_once)
    torch.manual_seed(0)
    called = nn.Sequential(nn.Linear(5, 13)).double()
    states, rows = torch.randn(6, 5, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, 3, 5])
    ids, weight = torch.tensor([1, 8, 0, 4]), torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=torch.float64)
    ours = token_log_probs(called, 9, states, rows, ids, 0.7)
    plain = (called(states)[:, :9] / 0.7).log_softmax(-1)[rows, ids]
    assert torch.allclose(ours, plain, atol=1e-12)
    mine, theirs = (torch.autograd.grad((v * weight).sum(), [states, *called.parameters()]) for v in (ours, plain))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(mine, theirs, strict=True))
