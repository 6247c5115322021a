"""Recorded decoding: a stand-in for a CUDA graph records every operation of a step and replays them blindly."""

import pytest
import torch
from test_generate import PROMPTS, greedy
from tiny_models import ARCHITECTURES, one_thread, tiny  # noqa: F401
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.transformer import generate as decoder
from rlhf_lab.policies.transformer.cuda_graph import CudaGraphStep, Recording, StaticKVCache
from rlhf_lab.policies.transformer.generate import generate
from rlhf_lab.policies.transformer.shared_prefix_forward import body_of

REFUSED = ("_local_scalar_dense", "nonzero", "lift_fresh", "masked_select", "is_nonzero", "unique", "equal.default")
"""Operations at which the capture of a CUDA graph fails: they wait for a number, or copy one from Python's memory."""


class Record(TorchDispatchMode):
    """Notes each operation with the very tensors it read and made."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        assert not any(word in name for word in REFUSED), f"{name} cannot be captured"
        out = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, out))
        return out


def stand_in(run) -> Recording:
    """As `cuda_graph`: what is replayed knows nothing of Python's state, only of the tensors it was recorded with."""
    with Record() as record:
        out = run()
    calls = record.calls

    def replay():
        for func, args, kwargs, made in calls:
            again = func(*args, **kwargs)
            for old, new in zip(*(tree_leaves(x) for x in (made, again)), strict=True):
                if (
                    isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr()
                ):  # a view of what is there, or the tensor itself: nothing to move
                    old.copy_(new)

    out.fill_(torch.nan)  # a capture computes nothing: only what is replayed may be read
    return Recording(replay, out)


def recorded(body, prompts, layout, group, capacity):
    return CudaGraphStep(body, prompts, layout, group, capacity, record=stand_in)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_replayed_step_draws_what_a_plain_step_draws(kind, monkeypatch):
    """Greedy, ten steps, prompts of three lengths; in the plain way too no row is left out. What was recorded is the
    second step alone: a number of that step burnt in (keys so far, positions) would show at the third."""
    monkeypatch.setattr(decoder, "COMPACT_BELOW", 0.0)
    policy = LanguageModelPolicy(tiny(kind), end_token=None, max_new_tokens=10)
    body = body_of(policy.model)
    with torch.no_grad():
        plain = generate(body, PROMPTS, 4, 10, (), greedy(policy), policy.device)
        replayed = generate(body, PROMPTS, 4, 10, (), greedy(policy), policy.device, recorded)
    assert torch.equal(plain.ids, replayed.ids)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_every_drawn_token_has_the_probability_that_the_forward_pass_gives_it(kind):
    """Sampled, not greedy: the states of each replayed step against `token_log_probs` of the whole responses."""
    policy = LanguageModelPolicy(tiny(kind), end_token=None, max_new_tokens=7)
    g, noted = torch.Generator().manual_seed(0), []

    def choose(states, number):
        log_p = policy._logits(states).log_softmax(-1)
        drawn = torch.multinomial(log_p.exp(), number, replacement=True, generator=g)
        noted.append(log_p.gather(1, drawn).flatten())
        return drawn

    with torch.no_grad():
        drawn = generate(body_of(policy.model), PROMPTS, 5, 7, (), choose, policy.device, recorded)
        ours = torch.stack(noted, -1).view(3, 5, 7)
        theirs = policy.token_log_probs(PROMPTS, drawn)
    assert (ours - theirs).abs().max() < 1e-4


def test_responses_that_end_are_masked_and_an_end_of_all_stops_the_steps():
    """Ended responses stay in the grid of a recorded step; their ids must be those of the plain way all the same."""
    prompts = Tokens.from_lists([[3, 4, 1, 9, 2], [5], [7, 8]])
    for seed in range(3, 20):
        policy = LanguageModelPolicy(tiny("gpt2", vocab=11, seed=seed), end_token=2, max_new_tokens=8)
        with torch.no_grad():
            plain = generate(body_of(policy.model), prompts, 5, 8, (2,), greedy(policy), policy.device)
            replayed = generate(body_of(policy.model), prompts, 5, 8, (2,), greedy(policy), policy.device, recorded)
        assert plain.tolist() == replayed.tolist()
        if len({len(y) for ys in plain.tolist() for y in ys}) > 1:
            return
    pytest.fail("no model ended its responses unevenly")


def test_the_stand_in_finds_a_step_that_has_its_number_burnt_in(monkeypatch):
    """The mistake a graph invites: the plain cache, whose step is a number of Python's."""
    monkeypatch.setattr(decoder, "COMPACT_BELOW", 0.0)
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=None, max_new_tokens=10)
    body = body_of(policy.model)
    with torch.no_grad():
        plain = generate(body, PROMPTS, 4, 10, (), greedy(policy), policy.device)
        monkeypatch.setattr(StaticKVCache, "_remember", frozen)
        wrong = generate(body, PROMPTS, 4, 10, (), greedy(policy), policy.device, recorded)
    assert not torch.equal(plain.ids, wrong.ids)


def frozen(self, module, key, value):
    """As `SharedPromptCache._remember`, at the step of the moment."""
    self.seen = [*getattr(self, "seen", []), id(module)]
    step = self.seen.count(id(module)) - 1
    own = self._own_of(module, key, value)
    for whole, new in zip(own, (key, value), strict=True):
        whole[:, :, :, step] = self._in_grid(new)
    return (*(whole[:, :, :, : step + 1] for whole in own), None)


def test_a_number_that_is_read_back_while_recording_is_refused():
    x = torch.ones(3)
    with pytest.raises(AssertionError, match="cannot be captured"):
        stand_in(lambda: x * int(x.sum()))


def test_graphs_on_a_cpu_are_refused_by_name():
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=None, max_new_tokens=3)
    policy.cuda_graphs = True
    with pytest.raises(LabError, match="CUDA graphs need a CUDA device"):
        policy.sample(Tokens.from_lists([[1, 2]]), 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_on_a_gpu_the_graph_draws_what_plain_steps_draw(kind, monkeypatch):
    monkeypatch.setattr(decoder, "COMPACT_BELOW", 0.0)
    policy = LanguageModelPolicy(tiny(kind).cuda(), end_token=None, max_new_tokens=10)
    plain = policy.sample(PROMPTS, 4, torch.Generator().manual_seed(0))
    policy.cuda_graphs = True
    assert torch.equal(plain.ids, policy.sample(PROMPTS, 4, torch.Generator().manual_seed(0)).ids)
