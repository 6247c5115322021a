"""Decoding on a GPU without waiting for Python: a step's kernels are recorded once and replayed.

A step of GPT-2 at a few dozen rows is some 300 kernels of a few microseconds, and launching them from Python takes
several times as long as running them. A CUDA graph launches all at once. What it replays has fixed addresses and fixed
numbers, so a step must be the same for every token: inputs are copied into buffers that stay, the number of tokens so
far is a tensor, and room for all keys is read at each step, with those to come barred (`StaticKVCache`). Responses that
have ended stay in the grid. Drawing the token is outside of the graph: it needs the generator.

Not yet measured on a GPU, so nobody gets it unasked (`LanguageModelPolicy.cuda_graphs`, `--sampler graphs`). On a CPU
the tests record the very operations, refuse what a capture refuses (reading a number back, making a tensor of Python
numbers), replay them blindly, and compare.
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
    """What was recorded of a function.

    Attributes:
        replay: do the same again, on what the same tensors then hold.
        out: the tensor that holds the result after each replay.
    """

    replay: Callable[[], None]
    out: Tensor


Recorder = Callable[[Callable[[], Tensor]], Recording]
"""Records a function of no arguments, without having run it."""


def cuda_graph(run: Callable[[], Tensor]) -> Recording:
    """Record `run` as a CUDA graph; its memory is given back with the graph."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    return Recording(graph.replay, out)


class StaticKVCache(SharedPromptCache):
    """`SharedPromptCache` whose every step is the same operations: the step's number lies in a tensor.

    Attributes:
        at: (1,), tokens that each response has in its own keys before this step.
    """

    def __init__(self, prompts: Tokens, layout: varlen_attention.VarlenLayout, group: int, room: int) -> None:
        """As `SharedPromptCache`."""
        super().__init__(prompts, layout, group, room)
        self.at = torch.zeros(1, dtype=torch.long, device=prompts.device)
        self._places = torch.arange(room, device=prompts.device)

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
                whole.zero_()  # what is barred is multiplied all the same, by 0, and 0 · nan would be nan
        return own


class CudaGraphStep:
    """One decoding step of `body`: the first is run, the second recorded and replayed, the others replayed.

    Attributes:
        thins: False; what is recorded has a fixed number of rows.
    """

    thins = False

    def __init__(
        self,
        body: nn.Module,
        prompts: Tokens,
        layout: varlen_attention.VarlenLayout,
        group: int,
        room: int,
        record: Recorder | None = None,
    ) -> None:
        """Take the buffers for `group` responses to each of `prompts` (B, P).

        Args:
            body: the transformer without its head.
            prompts: (B, P), as `SharedPromptCache` takes it, like the next three.
            layout: of a pass over the prompts alone.
            group: G.
            room: tokens for which keys are preallocated.
            record: a stand-in for `cuda_graph`.
        """
        self.cache = StaticKVCache(prompts, layout, group, room)
        self._body, self._record = body, record or cuda_graph
        self._tokens = torch.zeros(1, len(prompts) * group, dtype=torch.long, device=prompts.device)
        self._positions = torch.zeros_like(self._tokens)
        self._recording: Recording | None = None
        self._warm = False

    def __call__(self, tokens: Tensor, positions: Tensor, step: int) -> Tensor:
        """States (1, n, H) of `tokens` (n,) at `positions` (n,). They are overwritten by the next step."""
        self._tokens.copy_(tokens[None])
        self._positions.copy_(positions[None])
        self.cache.at.fill_(step)
        if not self._warm:
            # Whatever is made at a first use (libraries' handles, the room for keys) must be there before recording.
            self._warm = True
            return self._beside()
        if self._recording is None:
            self._recording = self._record(self._run)
        self._recording.replay()
        return self._recording.out

    def _run(self) -> Tensor:
        states = varlen_attention.forward_with_layout(self._body, self._tokens, self._positions, self.cache)
        assert states is not None  # the prompts went the same way
        return states

    def _beside(self) -> Tensor:
        """Run on a stream of its own, as the captured step will."""
        if self._tokens.device.type != "cuda":
            return self._run()
        here, beside = torch.cuda.current_stream(), torch.cuda.Stream()
        beside.wait_stream(here)
        with torch.cuda.stream(beside):
            states = self._run()
        here.wait_stream(beside)
        states.record_stream(here)
        return states


def check_device(device: torch.device) -> None:
    """Raise `LabError` unless `device` has CUDA graphs."""
    if device.type != "cuda":
        raise LabError(f"CUDA graphs need a CUDA device, and the model lies on {device}. Leave them out.")
