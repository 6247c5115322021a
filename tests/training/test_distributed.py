"""What several processes share out and put together, with the other processes played by the test.

Real processes train together in `test_wide.py`; here each function is asked as each process in turn.
"""

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.training import distributed


def be(monkeypatch, rank, count):
    """This process is number `rank` of `count`."""
    monkeypatch.setattr(distributed, "world_size", lambda: count)
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "_device", lambda: torch.device("cpu"))


@pytest.mark.parametrize("number", [1, 2, 5, 7])
def test_each_process_computes_its_own_rows_and_their_sum_is_the_whole(number, monkeypatch):
    """x² of rows in three processes; what a process does not compute it gives as zeros, also where it has no row."""
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda value: value)
    x = torch.arange(1.0, number + 1).view(-1, 1)
    parts = []
    for rank in range(3):
        be(monkeypatch, rank, 3)
        parts.append(distributed.map_rows(torch.square, x))
    assert torch.equal(sum(parts), x.square())
    assert (torch.stack(parts) != 0).sum() == number, "no row is computed twice"


@pytest.mark.parametrize("bucket", [1, 4, 2**25])
def test_all_gradients_are_summed_whatever_the_buckets_and_types(bucket, monkeypatch):
    """Two processes with equal gradients: each is doubled. The last parameter has none, which must not keep the others
    of its bucket waiting."""
    be(monkeypatch, 0, 2)
    monkeypatch.setattr(distributed, "all_reduce_sum", lambda value: 2 * value)
    monkeypatch.setattr(distributed, "BUCKET", bucket)
    shapes = [((2, 3), torch.float32), ((1,), torch.float64), ((4,), torch.float32), ((2,), torch.float32)]
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape, dtype in shapes]
    parameters.append(torch.nn.Parameter(torch.zeros(3)))
    for number, parameter in enumerate(parameters[:-1]):
        parameter.grad = 10 * number + torch.arange(1.0, parameter.numel() + 1).to(parameter.dtype).view_as(parameter)
    before = [parameter.grad.clone() for parameter in parameters[:-1]]
    distributed.all_reduce_gradients(parameters)
    for parameter, grad in zip(parameters[:-1], before, strict=True):
        assert torch.equal(parameter.grad, 2 * grad)
    assert parameters[-1].grad is None


def test_weights_and_buffers_of_the_first_process_reach_the_others(monkeypatch):
    be(monkeypatch, 1, 2)
    monkeypatch.setattr(distributed.dist, "broadcast", lambda tensor, src: tensor.fill_(7.0 + src))
    module = torch.nn.BatchNorm1d(3)
    module.register_buffer("shift", torch.zeros(2))
    distributed.broadcast_parameters(module)
    assert all((tensor == 7).all() for tensor in [*module.parameters(), module.running_mean, module.shift])


@pytest.mark.parametrize("error", [LabError("a full disk"), ValueError("a full disk")])
def test_an_error_on_the_first_process_is_raised_on_all(error, monkeypatch):
    """The message that the first one sends is what the second one raises; nobody is left waiting."""
    sent = []

    def broadcast(message, src):
        if distributed.is_main_process():
            sent.append(list(message))
        else:
            message[:] = sent[-1]

    def fail():
        assert distributed.is_main_process(), "the others do not run it"
        raise error

    monkeypatch.setattr(distributed.dist, "broadcast_object_list", broadcast)
    for rank in (0, 1):
        be(monkeypatch, rank, 2)
        with pytest.raises(LabError, match="a full disk"):
            distributed.on_main_process(fail)
    be(monkeypatch, 0, 2)
    assert distributed.on_main_process(lambda: 5) == 5
    be(monkeypatch, 1, 2)
    assert distributed.on_main_process(fail) is None


def test_only_the_first_process_writes_and_shows_progress(monkeypatch):
    for rank in (0, 1):
        be(monkeypatch, rank, 2)
        assert distributed.is_main_process() == distributed.shows_progress(True) == (rank == 0)
        assert not distributed.shows_progress(False)
