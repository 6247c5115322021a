"""Generation with CUDA graphs (experimental): the kernels of a decoding step are recorded once and replayed.

A decoding step of GPT-2 with a few dozen rows launches about 300 kernels of a few microseconds each, and launching them
from Python takes several times as long as running them. A CUDA graph launches all of them with one call.

A graph replays kernels with fixed addresses and fixed numbers, so that every step has to perform the same operations.
Therefore the inputs are copied into buffers that are allocated once, the number of tokens before the step is a tensor,
and every step reads the memory for all keys, with a mask for those that are not written yet (`StaticKVCache`).
Responses that have ended are computed until all have ended. The next token is sampled outside of the graph, because
this needs the generator.

Experimental: this has not run on a GPU yet. It is used only if `LanguageModelPolicy.cuda_graphs` is set, which
`--sampler graphs` does. The tests imitate a capture on the CPU. They record the operations, refuse what a capture
refuses (reading a number back, creating a tensor from Python numbers), replay them, and compare the results.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.transformer import varlen_attention
from rlhf_lab.policies.transformer.generate import SharedPromptCache


class Recording(NamedTuple):
    """A recorded function.

    Attributes:
        replay: runs the recorded operations again, on the present contents of the same tensors.
        out: the tensor that contains the result after each replay.
    """

    replay: Callable[[], None]
    out: Tensor


GraphRecorder = Callable[[Callable[[], Tensor]], Recording]
"""Records a function without arguments."""


def record_cuda_graph(run: Callable[[], Tensor]) -> Recording:
    """Record `run` as a CUDA graph, which frees its memory when it is deleted."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return Recording(graph.replay, out)


class StaticKVCache(SharedPromptCache):
    """A `SharedPromptCache` of fixed size, in which every step performs the same operations.

    Attributes:
        at: (1,), the number of tokens that each response has before this step.
    """

    def __init__(self, prompts: Tokens, layout: varlen_attention.VarlenLayout, group: int, capacity: int) -> None:
        """See `SharedPromptCache`."""
        super().__init__(prompts, layout, group, capacity)
        self.at = torch.zeros(1, dtype=torch.long, device=prompts.device)
        self._places = torch.arange(capacity, device=prompts.device)

    def _remember(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        own = self._own_of(module, key, value)
        for whole, new in zip(own, (key, value), strict=True):
            whole.index_copy_(3, self.at, self._in_grid(new).unsqueeze(3).to(whole.dtype))
        return *own, self._places > self.at

    def _own_of(self, module: nn.Module, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        known = id(module) in self._own
        own = super()._own_of(module, key, value)
        if not known:
            for whole in own:
                whole.zero_()  # masked values are multiplied by 0, and 0 · nan would be nan
        return own


class CudaGraphStep:
    """A decoding step as a CUDA graph (experimental).

    The first step runs the model directly, the second one records the graph, and all further steps replay it.

    Attributes:
        cache: keys and values of prompts and responses.
        drops_ended: False, because the graph has a fixed number of rows.
    """

    drops_ended = False

    def __init__(
        self,
        body: nn.Module,
        prompts: Tokens,
        layout: varlen_attention.VarlenLayout,
        group: int,
        capacity: int,
        record: GraphRecorder | None = None,
    ) -> None:
        """Allocate the buffers.

        Args:
            body: the transformer without its head.
            prompts: (B, P) on the model's device.
            layout: the layout of `generate.prefill`.
            group: G, the number of responses per prompt.
            capacity: number of tokens per response for which memory is preallocated.
            record: records the step; None for `record_cuda_graph`. Tests pass an imitation.
        """
        self.cache = StaticKVCache(prompts, layout, group, capacity)
        self._body, self._record = body, record or record_cuda_graph
        self._tokens = torch.zeros(1, len(prompts) * group, dtype=torch.long, device=prompts.device)
        self._positions = torch.zeros_like(self._tokens)
        self._recording: Recording | None = None
        self._warm = False

    def __call__(self, tokens: Tensor, positions: Tensor, step: int) -> Tensor:
        """Compute the states (1, n, H) of `tokens` (n,) at `positions` (n,), after `step` tokens of each response.

        The next step overwrites the returned tensor.
        """
        self._tokens.copy_(tokens[None])
        self._positions.copy_(positions[None])
        self.cache.at.fill_(step)
        if not self._warm:
            # What is created at first use (libraries' handles, memory for keys) must exist before the recording.
            self._warm = True
            return self._run_on_side_stream()
        if self._recording is None:
            self._recording = self._record(self._run)
        self._recording.replay()
        return self._recording.out

    def _run(self) -> Tensor:
        states = varlen_attention.forward_with_layout(self._body, self._tokens, self._positions, self.cache)
        assert states is not None  # the same layers used the layout in `prefill`
        return states

    def _run_on_side_stream(self) -> Tensor:
        """Run on a separate stream, as PyTorch requires of the run before a capture."""
        if self._tokens.device.type != "cuda":
            return self._run()
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            states = self._run()
        here.wait_stream(beside)
        states.record_stream(here)
        return states


def check_cuda_device(device: torch.device) -> None:
    """Raise `LabError` unless `device` is a CUDA device."""
    if device.type != "cuda":
        raise LabError(f"CUDA graphs need a CUDA device, but the model is on {device}. Use another sampler.")
