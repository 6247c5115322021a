"""What vLLM is asked for, and what becomes of its answers; the engine is a stand-in."""

import importlib.util
from types import SimpleNamespace

import pytest
import torch
from pretend_gpu import pretended_gpu
from tiny_models import one_thread, tiny, variable_length_batch  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.vllm import VllmSampler

without_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")


class Engine:
    """Answers prompt i with n responses [i], [i, 2], …, and remembers what it was asked."""

    def generate(self, prompts, settings):
        self.prompts, self.settings = prompts, settings
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=(i,) + (2,) * g) for g in range(s["n"])])
            for i, s in enumerate(settings)
        ]


@without_vllm
def test_our_arguments_reach_the_engine_in_its_words_and_answers_become_tokens():
    policy, engine = LanguageModelPolicy(tiny("gpt2"), end_token=2, max_new_tokens=6, vocab_size=20), Engine()
    sampler = VllmSampler(policy, engine)
    prompts = Tokens.from_lists([[3, 4, 5], [6]])
    drawn = sampler.sample(prompts, 3, torch.Generator().manual_seed(0), temperature=0.7, top_k=5)
    assert engine.prompts == [{"prompt_token_ids": [3, 4, 5]}, {"prompt_token_ids": [6]}]
    first, second = engine.settings
    assert first | {"seed": 0} == {
        "n": 3, "seed": 0, "temperature": 0.7, "top_k": 5, "top_p": 1.0, "min_p": 0.0, "max_tokens": 6,
        "ignore_eos": True, "stop_token_ids": [2], "allowed_token_ids": list(range(20)), "repetition_penalty": 1.0,
        "detokenize": False,
    }  # fmt: skip
    assert first["seed"] != second["seed"]
    assert drawn.tolist() == [[[0], [0, 2], [0, 2, 2]], [[1], [1, 2], [1, 2, 2]]]
    sampler.sample(prompts, 3, torch.Generator().manual_seed(0))
    assert engine.settings[0]["seed"] == first["seed"] and engine.settings[0]["top_k"] == -1


@without_vllm
def test_draws_lie_with_the_prompts_wherever_the_policy_lies():
    policy, prompts = LanguageModelPolicy(tiny("gpt2"), end_token=2, max_new_tokens=6), Tokens.from_lists([[3], [6]])
    with pretended_gpu() as device:
        policy.to(device)
        for where in (torch.device("cpu"), torch.device(device)):
            drawn = VllmSampler(policy, Engine()).sample(prompts.to(where), 2, torch.Generator().manual_seed(0))
            assert drawn.ids.device == where and drawn.tolist() == [[[0], [0, 2]], [[1], [1, 2]]]


@without_vllm
def test_the_policy_answers_all_else_and_a_missing_vllm_is_named():
    policy = LanguageModelPolicy(tiny("gpt2"), end_token=2, max_new_tokens=6)
    sampler = VllmSampler(policy, Engine())
    prompts, responses = variable_length_batch()
    assert torch.equal(sampler.log_prob(prompts, responses), policy.log_prob(prompts, responses))
    assert len(list(sampler.parameters())) == len(list(policy.parameters()))
    with pytest.raises(LabError, match="vLLM is not installed. Run pip install"):
        VllmSampler.load(policy)
    with pytest.raises(LabError, match="Prompt 0 is empty"):
        sampler.sample(Tokens.from_lists([[], [2]]), 2)


@without_vllm
def test_the_engine_reads_weights_that_have_changed_and_forgets_the_keys_of_the_old_ones(tmp_path):
    """Nothing is read before the first change; after it once, however often is drawn."""
    policy, engine = LanguageModelPolicy(tiny("gpt2"), end_token=2, max_new_tokens=6), Engine()
    done: list[str] = []
    engine.collective_rpc, engine.reset_prefix_cache = done.append, lambda: done.append("forgotten")
    sampler, prompts = VllmSampler(policy, engine), Tokens.from_lists([[3], [6]])
    sampler._folder = SimpleNamespace(name=str(tmp_path))
    sampler.sample(prompts, 2)
    assert done == []
    with torch.no_grad():
        next(policy.parameters()).add_(0.5)
    for _ in range(2):
        sampler.sample(prompts, 2)
    assert done == ["reload_weights", "forgotten"] and (tmp_path / "model.safetensors").is_file()
