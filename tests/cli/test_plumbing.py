"""What each command hands on: data, settings and loop to its algorithm, numbers to its sampler and its report."""

import importlib
import inspect
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_option import from_words, unused_is_no_fault, wanted  # noqa: F401
from tiny_models import one_thread, tiny, tiny_tokenizer  # noqa: F401

from rlhf_lab.batch import Pairs, Tokens
from rlhf_lab.cli import evaluate as evaluate_module
from rlhf_lab.cli import sample as sample_module
from rlhf_lab.cli.train import checks, model_card, reward, runner, sampling_batch
from rlhf_lab.cli.train.data import Data
from rlhf_lab.cli.train.pairs import save_pairs
from rlhf_lab.cli.train.runner import Job
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation.judges import EndpointJudge, GoldJudge, RewardJudge
from rlhf_lab.policies import loading
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.rewards.language_model import LanguageModelReward
from rlhf_lab.rewards.ranker import BaselineReward, PairwiseRanker
from rlhf_lab.training import rows, seeded

TOKENIZER = tiny_tokenizer(["What is one and two? It is three.", "Say it again."], vocab=300)
PROMPTS = Tokens.from_lists([[5, 6 + i] for i in range(6)])
PAIRS = Pairs(PROMPTS[:5], Tokens.from_lists([[[10 + i, 0], [20 + i, 0]] for i in range(5)]))
TARGETS = Tokens.from_lists([[[30 + i, 0]] for i in range(6)])
LABELS = torch.tensor([[True], [False], [True], [True], [False], [False]])
REFERENCE, REWARD, DRAWING, KNOWN, ORIGINAL = (object() for _ in range(5))


def policy_of(seed: int = 0, longest: int = 8) -> LanguageModelPolicy:
    model = tiny("gpt2", vocab=len(TOKENIZER) + 4, wide=0.05, seed=seed)
    return LanguageModelPolicy(model, TOKENIZER.eos_token_id, longest, len(TOKENIZER), TOKENIZER)


@pytest.fixture(scope="module")
def policy() -> LanguageModelPolicy:
    return policy_of()


def settings_of(command: str, **changes: Any) -> Any:
    """Every option at a value that is not its default, but for these; three epochs of one row a step."""
    epochs = {"data_epochs" if "data_epochs" in wanted(command) else "epochs": 3.0} if "train" in command else {}
    usual = {"steps": None, "batch_size": 1, "accumulate": 1, "lora_rank": None, "lora_alpha": None, "lora_targets": ()}
    usual |= {
        "adapter": "merge",
        "load_in_4bit": False,
        "precision": "fp32",
        "sampler": "lab",
        "trackers": (),
        "progress": False,
        "eval_data": None,
        **epochs,
    }
    values = wanted(command)
    return from_words(command, {**values, **{k: v for k, v in usual.items() if k in values}, **changes})


class Recorder:
    """Stands in for a function: remembers its arguments by name, and gives what it was told to."""

    def __init__(self, real: Any, gives: Any) -> None:
        self.signature = real.signature if isinstance(real, Recorder) else inspect.signature(real)
        self.gives, self.calls = gives, []

    def __call__(self, *args: Any, **more: Any) -> Any:
        bound = self.signature.bind(*args, **more)
        bound.apply_defaults()
        self.calls.append(SimpleNamespace(**bound.arguments))
        return self.gives

    @property
    def last(self) -> Any:
        return self.calls[-1]


def record(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, gives: Any = None) -> Recorder:
    made = Recorder(getattr(module, name), gives)
    monkeypatch.setattr(module, name, made)
    return made


# --- train: from the settings to the algorithm ---------------------------------------------------------------------


def fitted(monkeypatch, policy, method: str, algorithm: str, data: Data, module: str = "", **changes: Any) -> Any:
    """What the algorithm of `rlhf-lab train METHOD` is called with; and the settings, the kind of data, the job."""
    settings = settings_of(f"train {method}", **changes)
    room = importlib.import_module(f"rlhf_lab.cli.train.{method.replace('-', '_')}")
    place = importlib.import_module(f"rlhf_lab.cli.train.{module or method.replace('-', '_')}")
    made = Job(settings, method, policy, TOKENIZER, data, (12, 8))
    monkeypatch.setattr(Job, "reference", lambda self: REFERENCE)
    monkeypatch.setattr(Job, "reward", lambda self: REWARD)
    monkeypatch.setattr(Job, "drawing", lambda self, policy: (DRAWING, policy))
    monkeypatch.setattr(Job, "reference_rows", lambda self, reference, data, held_out=False: (KNOWN, reference, data))
    runs = []

    def run(settings, word, kind, fit, save=None, rows=None):
        runs.append(SimpleNamespace(method=word, kind=kind, save=save))
        return fit(made)

    monkeypatch.setattr(place, "run", run)
    called = record(monkeypatch, place, algorithm, [])
    getattr(room, f"train_{method.replace('-', '_')}")(settings)
    return SimpleNamespace(settings=settings, kind=runs[0].kind, method=runs[0].method, save=runs[0].save, job=made,
                           room=room, call=called.last)  # fmt: skip


def loop_is_the_command_s(found: Any, rows: int) -> None:
    """One row a step and three epochs: three times the rows. All else is the command's."""
    assert found.call.training == found.settings.training(rows) and found.call.training.steps == 3 * rows


def test_dpo_gets_pairs_loss_reference_and_the_saved_log_probabilities(monkeypatch, policy):
    found = fitted(monkeypatch, policy, "dpo", "dpo", Data(pairs=PAIRS), loss="ipo", target_margin=None)
    loop_is_the_command_s(found, 5)
    call = found.call
    assert (call.policy, call.reference, call.pairs) == (policy, REFERENCE, PAIRS) and found.kind == "pairs"
    assert call.settings == found.settings.dpo and call.settings.beta == 0.05
    assert call.reference_log_probs == (KNOWN, REFERENCE, PAIRS)
    free = fitted(monkeypatch, policy, "dpo", "dpo", Data(pairs=PAIRS))  # simpo has no reference
    assert (free.call.reference, free.call.reference_log_probs) == (None, None)


def test_kto_gets_both_sides_of_pairs_or_labelled_responses_as_they_are(monkeypatch, policy):
    given = Data(prompts=PROMPTS, targets=TARGETS, labels=LABELS)
    found = fitted(monkeypatch, policy, "kto", "kto", given)
    loop_is_the_command_s(found, 6)
    call = found.call
    assert torch.equal(call.labelled.desirable.flatten(), LABELS.flatten())
    assert call.labelled.responses.tolist() == TARGETS.tolist() and call.labelled.prompts.tolist() == PROMPTS.tolist()
    assert call.settings == found.settings.kto and call.reference is REFERENCE and found.kind == "labelled"
    assert call.reference_log_probs(TARGETS) == (KNOWN, REFERENCE, (call.labelled.prompts, TARGETS))
    both = fitted(monkeypatch, policy, "kto", "kto", Data(pairs=PAIRS))
    loop_is_the_command_s(both, 5)
    assert both.call.labelled.responses.tolist() == PAIRS.responses.tolist()
    assert both.call.labelled.desirable.tolist() == [[True, False]] * 5


def test_sft_gets_prompts_and_targets(monkeypatch, policy):
    marks = Tokens.full(torch.ones_like(TARGETS.ids))
    found = fitted(monkeypatch, policy, "sft", "sft", Data(prompts=PROMPTS, targets=TARGETS, trained=marks))
    loop_is_the_command_s(found, 6)
    assert (found.call.policy, found.call.prompts, found.call.responses) == (policy, PROMPTS, TARGETS)
    assert found.call.trained is marks
    assert found.kind == "targets"


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_group_methods_get_their_settings_and_refuse_the_other_kind(monkeypatch, policy, method):
    found = fitted(monkeypatch, policy, method, "group", Data(prompts=PROMPTS), "grpo_rloo")
    loop_is_the_command_s(found, 6)
    call = found.call
    assert call.settings == found.settings.group and call.settings.kind == method == found.method
    assert (call.policy, call.reference, call.reward, call.prompts) == ((DRAWING, policy), REFERENCE, REWARD, PROMPTS)
    other = "grpo" if method == "rloo" else "rloo"
    with pytest.raises(LabError, match=f"use `train {other}`"):
        found.room.__dict__[f"train_{method}"](
            replace(found.settings, group=replace(found.settings.group, kind=other, divide_by_length=None))
        )


def test_ppo_gets_its_settings_and_a_critic_that_starts_from_the_reward_model(monkeypatch, policy):
    from rlhf_lab.cli.train import ppo as room

    monkeypatch.setattr(room, "new_critic", lambda policy, reward: ("critic", policy, reward))
    found = fitted(monkeypatch, policy, "ppo", "ppo", Data(prompts=PROMPTS))
    loop_is_the_command_s(found, 6)
    call = found.call
    assert call.settings == found.settings.ppo and call.critic == ("critic", policy, REWARD)
    assert (call.policy, call.reference, call.reward, call.prompts) == ((DRAWING, policy), REFERENCE, REWARD, PROMPTS)


def test_a_critic_scores_as_the_reward_model_where_the_reward_is_one(policy):
    """The critic's value at a response's last token + 1 is the head's own number there; with a gold reward the head
    is new and starts at zero."""
    scorer = LanguageModelReward(policy.model)
    with torch.no_grad():
        scorer.head.weight.fill_(0.5)
    from_reward, from_gold = (
        runner.new_critic(policy, scorer),
        runner.new_critic(policy, lambda x, y: torch.zeros(1, 1)),
    )
    with torch.no_grad():
        assert from_reward(PROMPTS, TARGETS).abs().min(-1).values.max() > 1e-3
        assert from_gold(PROMPTS, TARGETS).abs().max() == 0


def test_raft_gets_its_settings(monkeypatch, policy):
    found = fitted(monkeypatch, policy, "raft", "raft", Data(prompts=PROMPTS))
    loop_is_the_command_s(found, 6)
    call = found.call
    assert call.settings == found.settings.raft
    assert (call.policy, call.reward, call.prompts) == ((DRAWING, policy), REWARD, PROMPTS)


def test_rest_has_the_original_data_in_the_mix(monkeypatch, policy):
    """128 samples for each of six prompts, and three original examples."""
    from rlhf_lab.cli.train import rest as room

    original = Data(prompts=PROMPTS[:3], targets=TARGETS[:3], said=["three"])
    loaded = record(monkeypatch, room, "load_data", original)
    monkeypatch.setattr(room, "check_data", lambda *a: None)
    found = fitted(monkeypatch, policy, "rest", "rest", Data(prompts=PROMPTS))
    loop_is_the_command_s(found, 6 * 128 + 3)
    call = found.call
    assert call.prompts is PROMPTS and call.evaluation is None
    assert call.settings == found.settings.rest and call.original == (original.prompts, original.targets)
    theirs = loaded.last.settings
    assert (theirs.data, theirs.data_split, theirs.data_revision, theirs.data_folder, theirs.limit) == (
        "some-original", "some-original_split", "some-original_revision", "some-original_folder", 3,
    )  # fmt: skip
    assert (loaded.last.kind, loaded.last.limits) == ("targets", (12, 8))
    whole = {f"original_{name}": None for name in ("split", "revision", "folder", "limit")}
    alone = fitted(monkeypatch, policy, "rest", "rest", Data(prompts=PROMPTS), original=None, **whole)
    loop_is_the_command_s(alone, 6 * 128)
    assert alone.call.original is None


def test_iterated_dpo_counts_a_round_s_labels_and_labels_its_own_responses(monkeypatch, policy):
    """2,000 labels in 8 rounds are 250 a round. `collect` asks for 7 in batches of 3: seven prompts by the generator,
    each with two draws, of which the reward (the first response id) prefers one nearly always at this scale."""
    found = fitted(monkeypatch, policy, "iterated-dpo", "online", Data(prompts=PROMPTS), batch_size=3)
    call = found.call
    assert call.training == found.settings.training(250) and call.training.steps == 250
    assert (call.policy, call.reference) == ((DRAWING, policy), REFERENCE)
    assert call.loss == found.settings.dpo and call.settings == found.settings.iterated_dpo

    class Two:
        """Two responses to a prompt, with the prompt's own second id in the first and 1 in the second."""

        def sample(self, prompts, number, generator):
            return Tokens.from_lists([[[ids[1], 0], [1, 0]] for ids in prompts.tolist()])

    monkeypatch.setattr(Job, "reward", lambda self: lambda x, y: 100.0 * y.ids[..., 0].double())
    again = fitted_iterated_dpo(monkeypatch, found)
    pairs = again.call.collect(Two(), 7, torch.Generator().manual_seed(0))
    assert len(pairs) == 7
    assert pairs.responses.ids[:, 0, 0].tolist() == pairs.prompts.ids[:, 1].tolist()
    assert pairs.responses.ids[:, 1, 0].tolist() == [1] * 7
    drawn = torch.randint(6, (7,), generator=torch.Generator().manual_seed(0))
    assert pairs.prompts.tolist() == PROMPTS[drawn].tolist()


def fitted_iterated_dpo(monkeypatch, found: Any) -> Any:
    called = record(monkeypatch, found.room, "online", [])
    found.room._fit(found.job)
    return SimpleNamespace(call=called.last)


def test_rso_draws_from_the_reference_and_fits_at_gamma(monkeypatch, policy, tmp_path):
    """γ of the loss and β of the sampler are two numbers; without γ the loss has β. Direct pairs are not drawn."""
    from rlhf_lab.cli.train import rso as room

    monkeypatch.setattr(room, "save_pairs", lambda *a: None)
    made = record(monkeypatch, room, "make_pairs", (PAIRS, 1))
    free = {"source": "rso-sample-rank", "loss": "hinge-norm", "seed": 17}
    found = fitted(monkeypatch, policy, "rso", "dpo", Data(prompts=PROMPTS), **free)
    loop_is_the_command_s(found, 5)
    asked = made.last
    assert (asked.reference, asked.reward, asked.prompts) == ((DRAWING, REFERENCE), REWARD, PROMPTS)
    assert asked.settings == found.settings.rso and asked.seed == 17
    assert (found.call.settings.loss, found.call.settings.beta, found.call.pairs) == ("hinge-norm", 0.25, PAIRS)
    assert found.settings.rso.gamma == 0.25 == found.settings.rso.beta  # equal by accident: told apart below
    apart = fitted(monkeypatch, policy, "rso", "dpo", Data(prompts=PROMPTS), **free, gamma=0.05, beta=0.7)
    assert (apart.call.settings.beta, made.last.settings.beta) == (0.05, 0.7)
    usual = fitted(monkeypatch, policy, "rso", "dpo", Data(prompts=PROMPTS), **free, gamma=None, beta=0.7)
    assert usual.call.settings.beta == 0.7
    number = len(made.calls)
    direct = fitted(monkeypatch, policy, "rso", "dpo", Data(pairs=PAIRS), source="direct", loss="hinge-norm")
    assert (direct.kind, direct.call.pairs, len(made.calls)) == ("pairs", PAIRS, number)


@pytest.mark.parametrize(
    ("method", "algorithm", "module", "drawn", "beta"),
    [
        ("ppo", "ppo", "", True, 0.05),
        ("grpo", "group", "grpo_rloo", True, 0.05),
        ("raft", "raft", "", True, None),
        ("iterated-dpo", "online", "", True, 0.05),
        ("rso", "dpo", "", False, 0.25),
    ],
)
def test_methods_that_sample_measure_held_out_prompts_by_their_reward(
    method, algorithm, module, drawn, beta, monkeypatch, policy
):
    """Held-out prompts, the method's reward, reference and β (None: no objective), and its sampler. The
    temperature and top_k are those of the method's responses; RSO's are of its candidates, iterated DPO has none."""
    from rlhf_lab.algorithms import on_policy
    from rlhf_lab.cli.train import rso

    made = record(monkeypatch, on_policy, "held_out_rewards", "the evaluation")
    monkeypatch.setattr(rso, "make_pairs", lambda *a, **more: (PAIRS, 0))
    monkeypatch.setattr(rso, "save_pairs", lambda *a: None)
    init = Job.__init__

    def with_held_out(self, *args):
        init(self, *args, Data(prompts=PROMPTS[:2]))

    monkeypatch.setattr(Job, "__init__", with_held_out)
    more = {"source": "rso-sample-rank", "loss": "hinge-norm"} if method == "rso" else {}
    found = fitted(monkeypatch, policy, method, algorithm, Data(prompts=PROMPTS), module, **more)
    call = made.last
    assert found.call.evaluation == found.job.evaluation == "the evaluation"
    assert call.policy == ((DRAWING, policy) if drawn else policy) and call.prompts.tolist() == PROMPTS[:2].tolist()
    assert (call.reference, call.reward, call.beta) == (REFERENCE, REWARD, beta)
    assert (call.seed, call.samples) == (found.settings.seed, found.settings.eval_samples)
    group = getattr(found.settings, {"grpo": "group"}.get(method, method), None) if method != "rso" else None
    assert call.temperature == getattr(group, "temperature", 1.0) and call.top_k == getattr(group, "top_k", None)


@pytest.mark.parametrize("method", ["reward-model", "ranker"])
def test_scorers_get_pairs_and_settings_and_are_what_is_saved(monkeypatch, policy, method, tmp_path):
    word = method.replace("-", "_")
    found = fitted(monkeypatch, policy, method, word, Data(pairs=PAIRS), seed=7)
    loop_is_the_command_s(found, 5)
    assert found.call.pairs is PAIRS and found.call.settings == getattr(found.settings, word)
    assert isinstance(found.call.model, LanguageModelReward if method == "reward-model" else PairwiseRanker)
    saved = []
    monkeypatch.setattr(type(found.call.model), "save_pretrained", lambda self, folder: saved.append((self, folder)))
    runner._save(found.job, tmp_path / "model", lambda j, folder: (folder.mkdir(), found.save(j, folder))[1])
    assert saved == [(found.call.model, tmp_path / ".model.part")]
    if method == "ranker":
        same, other = PairwiseRanker(policy.model, seed=7), PairwiseRanker(policy.model, seed=0)
        ours = dict(found.call.model.named_parameters())
        assert all(torch.equal(value, ours[name]) for name, value in same.named_parameters())
        assert any(not torch.equal(value, ours[name]) for name, value in other.named_parameters())


# --- train: what a job gives ----------------------------------------------------------------------------------------


def job_of(policy, **changes: Any) -> Job:
    data = Data(pairs=PAIRS, prompts=PROMPTS)
    return Job(settings_of("train ppo", **changes), "ppo", policy, TOKENIZER, data, (12, 8))


def test_a_named_reference_is_that_model_frozen_and_no_name_is_the_policy_as_it_is(monkeypatch, policy):
    named = policy_of(seed=3)
    monkeypatch.setattr(runner, "load_language_model", lambda name, device: (named.model, TOKENIZER))
    theirs = job_of(policy, reference="other").reference()
    assert torch.equal(theirs.log_prob(PROMPTS, TARGETS), named.log_prob(PROMPTS, TARGETS))
    assert theirs.end_tokens == policy.end_tokens and theirs.vocab_size == policy.vocab_size
    start = job_of(policy, reference=None).reference()
    assert torch.equal(start.log_prob(PROMPTS, TARGETS), policy.log_prob(PROMPTS, TARGETS))
    for frozen in (theirs, start):
        assert not any(weight.requires_grad for weight in frozen.parameters()) and not frozen.training


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_reference_log_probabilities_are_kept_apart_by_precision_and_computed_in_it(
    monkeypatch, policy, precision, tmp_path
):
    """The key of the cache knows nothing of autocast, so the folder must."""
    computed = []

    def log_prob(prompts, responses):
        computed.append(torch.is_autocast_enabled("cpu"))
        return real(prompts, responses)

    frozen = policy.copy().frozen()
    real = frozen.log_prob
    monkeypatch.setattr(frozen, "log_prob", log_prob, raising=False)
    made = job_of(policy, precision=precision, reference_cache=tmp_path, batch_size=3, accumulate=1)
    known = made.reference_rows(frozen, PAIRS)
    assert computed == [] and not list(tmp_path.iterdir())
    first = rows.epoch_order(5, made.settings.seed, 0)[:3]  # the rows of the first step
    known[first[:1]]
    assert computed == [precision == "bf16"]
    known[first]
    assert len(computed) == 1
    held = made.reference_rows(frozen, (PAIRS.prompts, PAIRS.responses), held_out=True)
    held[torch.arange(3)]
    assert len(computed) == 2  # the first rows of the data
    made.save_reference_rows()
    assert len(list((tmp_path / precision).iterdir())) == 2 == len(list(tmp_path.rglob("*.safetensors")))
    monkeypatch.setattr(runner.hub_lookup, "cache_folder", lambda: tmp_path / "lab")
    other = job_of(policy, precision=precision, reference_cache=None)
    other.reference_rows(frozen, PAIRS)[torch.tensor([0])]
    other.save_reference_rows()
    assert len(list((tmp_path / "lab" / "reference" / precision).iterdir())) == 1


def test_vllm_draws_from_the_reference_without_its_adapters(monkeypatch):
    pytest.importorskip("peft")
    from rlhf_lab.policies.lora import with_lora

    policy = with_lora(policy_of(), rank=2)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    monkeypatch.setattr(runner.VllmSampler, "load", lambda policy, **options: (policy, options))
    made = Job(settings_of("train ppo", sampler="vllm"), "ppo", policy, TOKENIZER, Data(), (12, 8))
    drawn, options = made.drawing(policy.reference())
    plain = policy_of()
    assert torch.allclose(drawn.log_prob(PROMPTS, TARGETS), plain.log_prob(PROMPTS, TARGETS), atol=1e-5)
    assert options == {"dtype": "float32"}
    half = Job(settings_of("train ppo", sampler="vllm", precision="bf16"), "ppo", plain, TOKENIZER, Data(), (12, 8))
    assert half.drawing(plain) == (plain, {"dtype": "bfloat16"})
    assert job_of(plain).drawing(plain) is plain


def started(monkeypatch, model: str, pairs: str, out: Path, **changes: Any) -> Job:
    """The job that `runner.run` makes of the settings; nothing is trained or saved."""
    made: list[Job] = []
    monkeypatch.setattr(runner, "_save", lambda *a: "")
    loop = {
        "device": "cpu",
        "data_revision": None,
        "data_folder": None,
        "limit": None,
        "model_revision": None,
        "too_long": "cut",
    }
    own = {"loss": "ipo", "target_margin": None, "max_prompt_tokens": 32, "max_response_tokens": 7}
    values = {**loop, **own, "model": model, "data": pairs, "out": out, **changes}
    settings = settings_of("train dpo", **values)
    runner.run(settings, "dpo", "pairs", lambda j: made.append(j) or [])
    return made[0]


def test_a_run_wraps_the_model_as_the_settings_say(monkeypatch, pairs, tmp_path):
    """The model knows eight ids more than its tokenizer, which no response may hold. A folder that another run has
    taken is refused before anything is loaded."""
    model = tiny("gpt2", vocab=len(TOKENIZER) + 8, context=96, wide=0.05)
    model.generation_config.eos_token_id = [9, TOKENIZER.eos_token_id]
    model.save_pretrained(tmp_path / "model")
    TOKENIZER.save_pretrained(tmp_path / "model")
    made = started(monkeypatch, str(tmp_path / "model"), pairs, tmp_path / "run")
    assert made.policy.end_tokens == (TOKENIZER.eos_token_id, 9)
    assert (made.policy.max_new_tokens, made.policy.vocab_size, made.limits) == (7, len(TOKENIZER), (32, 7))
    assert made.policy.end_token == made.tokenizer.eos_token_id and len(made.data.pairs) == 16
    monkeypatch.setattr(runner, "load_language_model", lambda *a, **k: pytest.fail("the model was loaded"))
    with pytest.raises(LabError, match="run"):
        started(monkeypatch, str(tmp_path / "model"), pairs, tmp_path / "run", seed=99)


def test_a_run_s_revision_and_adapters_are_those_of_the_settings(monkeypatch, model, pairs, tmp_path):
    asked, real = [], runner.load_language_model

    def load(name, device, dtype=None, revision=None, four_bits=None):
        asked.append(revision)
        return real(name, device)

    monkeypatch.setattr(runner, "load_language_model", load)
    monkeypatch.setattr(runner, "with_lora", lambda *a: pytest.fail(f"{a[1:]}"))
    # A local folder takes the place of a model on the Hub. A revision of a local model would be refused.
    for module in (checks, loading):
        monkeypatch.setattr(module, "check_model_available", lambda *a: False)
    more = {"lora_rank": 3, "lora_alpha": 5.0, "lora_targets": ("c_attn",), "seed": 11, "model_revision": "main"}
    more |= {"lora_dropout": 0.125, "lora_rank_stabilised": True, "gradient_checkpointing": False}
    with pytest.raises(pytest.fail.Exception, match=r"\(3, 5.0, \('c_attn',\), 11, 0.125, True\)"):
        started(monkeypatch, model, pairs, tmp_path / "run", **more)
    assert asked == ["main"]


def test_prompts_at_a_time_follow_what_is_drawn_and_what_was_given_stays():
    """Three rows of logits of one response are 100 bytes less than 128 MiB: 8 prompts with one response each fit into
    1 GiB, and 4 with two."""
    config = SimpleNamespace(num_attention_heads=1, num_hidden_layers=1, hidden_size=1, vocab_size=(2**27 - 100) // 12)
    fit = [sampling_batch.sampling_batch_size(config, number, (1, 1)) for number in (1, 2, 4)]
    assert fit == [8, 4, 2]
    # 16 MiB of keys and values (2 · 2²⁰ · 4 bytes for each of two tokens) and 12 MiB of logits.
    both = SimpleNamespace(num_attention_heads=1, num_hidden_layers=1, hidden_size=2**20, vocab_size=2**20)
    assert sampling_batch.sampling_batch_size(both, 1, (1, 1)) == 1024 // 28 == 36
    for command, changes, number in (
        ("train rso", {"candidates": 4, "accepted": 2, "source": "rso-sample-rank"}, 4),
        ("train rso", {"candidates": 4, "accepted": 2, "source": "sft-sample-rank"}, 2),
        ("train raft", {"best_of": 2}, 2),
        ("train rest", {"samples": 2, "thresholds": (0.0, 0.5, 0.6, 0.7)}, 2),
    ):
        name = command.split()[1]
        open_ = sampling_batch.with_sampling_batch(
            settings_of(command, **changes, sampling_batch_size=None), config, (1, 1)
        )
        assert getattr(open_, name).sampling_batch_size == 8 // number
        given = settings_of(command, **changes, sampling_batch_size=7)
        assert sampling_batch.with_sampling_batch(given, config, (1, 1)) == given


# --- rewards ---------------------------------------------------------------------------------------------------------


def test_a_ranker_s_baseline_is_the_policy_as_it_starts_with_the_run_s_seed(monkeypatch, ranker, policy):
    from rlhf_lab.policies.loading import load_tokenizer

    theirs = load_tokenizer(str(Path(ranker) / "model"))
    moving = policy_of()
    found = reward.load_reward(settings_of("train ppo", reward=ranker, seed=23), moving, theirs)
    assert isinstance(found, BaselineReward) and found.seed == 23
    before = found.policy.log_prob(PROMPTS, TARGETS)
    with torch.no_grad():
        next(moving.parameters()).add_(1.0)
    assert torch.equal(found.policy.log_prob(PROMPTS, TARGETS), before)


def test_a_reward_model_is_not_trained_along(reward_folder, policy):
    from rlhf_lab.policies.loading import load_tokenizer

    theirs = load_tokenizer(str(Path(reward_folder) / "model"))
    found = reward.load_reward(settings_of("train ppo", reward=reward_folder), policy, theirs)
    assert list(found.parameters()) and not any(weight.requires_grad for weight in found.parameters())


@pytest.fixture
def reward_folder(request) -> str:
    return request.getfixturevalue("reward")


def test_gold_by_name_wins_over_the_data_s_world():
    assert reward._gold_world("gold:summaries", "dialogue") == "summaries"
    assert reward._gold_world("gold", "dialogue") == "dialogue" and reward._gold_world("a-folder", "dialogue") is None


def test_under_lora_the_start_is_the_model_without_its_adapters():
    pytest.importorskip("peft")
    from rlhf_lab.policies.lora import with_lora

    policy = with_lora(policy_of(), rank=2)
    before = policy.log_prob(PROMPTS, TARGETS).detach()
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.fill_(0.3)
    assert torch.allclose(reward.frozen_start(policy).log_prob(PROMPTS, TARGETS), before, atol=1e-5)


# --- what is written --------------------------------------------------------------------------------------------------


def test_saved_pairs_have_the_chosen_text_under_chosen_and_no_special_tokens(tmp_path):
    import datasets

    texts = [["one", "two"], ["three", "again"]]
    ids = [[[*TOKENIZER(text)["input_ids"], TOKENIZER.eos_token_id] for text in pair] for pair in texts]
    pairs = Pairs(Tokens.from_lists(TOKENIZER(["Say", "What"])["input_ids"]), Tokens.from_lists(ids))
    save_pairs(pairs, TOKENIZER, tmp_path / "pairs", "card")
    found = datasets.Dataset.from_parquet(str(tmp_path / "pairs" / "pairs.parquet"), cache_dir=str(tmp_path / "cache"))
    assert found[:] == {"prompt": ["Say", "What"], "chosen": ["one", "three"], "rejected": ["two", "again"]}


def test_a_card_tells_the_last_step_and_every_setting():
    record = {"method": "dpo", "steps": 2, "dpo": {"beta": 0.3}}
    text = model_card.model_card("dpo", record, "m", ["d"], [], [{"loss": 0.7}, {"loss": 0.2}], "cpu", 1.0, "Loads.")
    assert "- loss: 0.2" in text and "- loss: 0.7" not in text and "| dpo.beta | 0.3 |" in text


# --- evaluate ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(monkeypatch):
    """`rlhf-lab evaluate` with models, data and report replaced: what the report is asked for."""
    models = {name: policy_of(seed) for seed, name in enumerate(("measured", "start", "rival"))}
    asked = []
    for one in models.values():
        one.model.generation_config.eos_token_id = [9, TOKENIZER.eos_token_id]

    def load(name, device, revision=None):
        asked.append((name, revision))
        return models[name].model, TOKENIZER

    config = models["measured"].model.config
    for name, gives in (("check_model_available", False), ("check_data", None), ("check_reward", None)):
        monkeypatch.setattr(evaluate_module, name, lambda *a, gives=gives: gives)
    monkeypatch.setattr(evaluate_module, "load_tokenizer", lambda name, revision=None: TOKENIZER)
    monkeypatch.setattr(evaluate_module, "load_config", lambda name, revision=None: config)
    monkeypatch.setattr(evaluate_module.evaluate_reward, "load_language_model", load)
    read = record(monkeypatch, evaluate_module, "read_reward", lambda x, y: torch.zeros(1, 2))
    loaded = record(monkeypatch, evaluate_module, "load_data", Data(prompts=PROMPTS, targets=TARGETS))
    world = SimpleNamespace(gold=lambda x, y: [0.0])
    gold = record(monkeypatch, evaluate_module, "load_world", world)
    report = record(monkeypatch, evaluate_module, "text_report", SimpleNamespace(table=lambda: ""))

    def run(**changes: Any) -> Any:
        usual = {"model": "measured", "reference": "start", "against": "rival", "out": None, "judge": None, "top_k": 9}
        usual |= {
            "implicit_beta": None,
            "max_prompt_tokens": 11,
            "max_response_tokens": 6,
            "device": "cpu",
            "targets": True,
            "temperature": 0.7,
        }
        settings = settings_of("evaluate", **usual | changes)
        evaluate_module.evaluate(settings)
        return SimpleNamespace(settings=settings, call=report.last, asked=asked, models=models, read=read, gold=gold,
                               loaded=loaded, world=world)  # fmt: skip

    return run


def test_evaluate_hands_every_number_to_the_report(measured):
    found = measured()
    call = found.call
    said = {name: policy.log_prob(PROMPTS, TARGETS) for name, policy in found.models.items()}
    for name, policy in (("measured", call.policy), ("start", call.reference), ("rival", call.against)):
        assert torch.equal(policy.log_prob(PROMPTS, TARGETS), said[name]) and policy.max_new_tokens == 6
        assert policy.end_tokens == (TOKENIZER.eos_token_id, 9)
    assert (call.num_samples, call.temperature, call.top_k, call.seed, call.batch_size) == (8, 0.7, 9, 3, 1)
    assert call.prompts is PROMPTS and call.targets == TOKENIZER.batch_decode([[30 + i] for i in range(6)])
    assert found.asked == [("measured", "some-model_revision"), ("start", None), ("rival", None)]
    assert found.loaded.last.kind == "targets" and found.loaded.last.limits == (11, 6)
    assert torch.equal(found.read.last.policy.log_prob(PROMPTS, TARGETS), said["start"]) and found.read.last.seed == 3
    assert call.gold is found.world.gold and found.gold.last.name == "some-gold"
    assert isinstance(call.judge, GoldJudge)


def test_evaluate_s_gold_is_the_one_that_is_named_and_the_judge_follows_from_what_is_there(measured):
    found = measured(data="world:dialogue", gold="summaries", targets=False)
    assert found.gold.last.name == "summaries" and found.loaded.last.kind == "prompts"
    assert measured(data="world:dialogue", gold=None).gold.last.name == "dialogue"
    assert isinstance(measured(gold=None).call.judge, RewardJudge)
    assert isinstance(measured(judge="reward").call.judge, RewardJudge)


def test_evaluate_s_endpoint_gets_model_key_and_cache(measured, tmp_path):
    judge = measured(judge="https://judge.example/v1", judge_cache=tmp_path / "answers.jsonl").call.judge
    assert isinstance(judge, EndpointJudge) and judge.url == "https://judge.example/v1/chat/completions"
    assert (judge.model, judge.key_variable) == ("some-judge_model", "some-judge_key_variable")
    assert judge.cache == tmp_path / "answers.jsonl"


# --- sample -----------------------------------------------------------------------------------------------------------


class Drawn:
    """Stands in for a policy that is drawn from: each prompt's responses repeat its first id."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def sample(self, prompts, number, generator, temperature, top_k):
        self.calls.append((prompts.tolist(), number, generator.initial_seed(), temperature, top_k))
        return Tokens.from_lists(
            [[[ids[1]] * g + [0] * (g < 3) for g in range(1, number + 1)] for ids in prompts.tolist()]
        )


def test_sample_draws_each_batch_from_its_own_seed_and_writes_rows_in_order(policy):
    """Six prompts in batches of four, of which none is done, or the first: rows of prompt i say its own text, and the
    score of each response is its own. A batch's draws are a function of the seed and the batch's place alone."""
    settings = settings_of("sample", batch_size=4, num_samples=3, temperature=0.7, top_k=5, seed=9)
    texts = [f"text {i}" for i in range(6)]

    def scores(x, y):
        return 10.0 * x.ids[:, 1:2] + y.lengths

    for done, starts in ((0, (0, 4)), (1, (4,))):
        drawn = Drawn()
        batches = list(sample_module._batches(settings, drawn, policy, scores, PROMPTS, texts, done))
        seeds = [seeded(9, 15, start).initial_seed() for start in starts]
        assert drawn.calls == [
            (PROMPTS[start : start + 4].tolist(), 3, seed, 0.7, 5) for start, seed in zip(starts, seeds, strict=True)
        ]
        rows = [row for batch in batches for row in batch]
        assert [(row["prompt"], row["sample"]) for row in rows] == [
            (texts[i], g) for i in range(starts[0], 6) for g in range(3)
        ]
        lengths = [g + (g < 3) for g in (1, 2, 3)]
        assert [row["tokens"] for row in rows] == lengths * (6 - starts[0])
        assert [row["ended"] for row in rows] == [True, True, False] * (6 - starts[0])
        assert [row["reward"] for row in rows] == [
            10.0 * (6 + i) + length for i in range(starts[0], 6) for length in lengths
        ]
        assert [row.get("last", False) for row in rows] == [row is batch[-1] for batch in batches for row in batch]


def test_a_response_that_a_second_token_ends_has_ended_and_its_text_does_not_hold_that_token():
    """The token "." ends a response of this policy too, though it is no special token."""
    words, dot = TOKENIZER("It is three", add_special_tokens=False)["input_ids"], TOKENIZER(".")["input_ids"][-1]
    policy = policy_of()
    policy.end_tokens = (TOKENIZER.eos_token_id, dot)
    drawing = SimpleNamespace(sample=lambda *a: Tokens.from_lists([[[*words, dot], words]]))
    settings = settings_of("sample", batch_size=1, num_samples=2)
    ((one, two),) = sample_module._batches(settings, drawing, policy, None, PROMPTS[:1], ["text"], 0)
    assert one["response"] == two["response"] == "It is three" and (one["ended"], two["ended"]) == (True, False)


def test_a_file_that_goes_on_loses_its_half_batch_and_refuses_other_settings(tmp_path):
    """Two whole batches, one row of the third, and half a line."""
    settings = settings_of("sample", resume=False, out=tmp_path / "drawn.jsonl")
    assert sample_module._claim(settings, settings.out) == 0
    whole = "".join(json.dumps({"sample": i, **({"last": True} if i % 2 else {})}) + "\n" for i in range(4))
    part = sample_module._part(settings.out)
    part.write_text(whole + '{"sample": 4}\n{"sam')
    again = replace(settings, resume=True, device="cuda", progress=not settings.progress)
    sample_module._check_file(again, again.out)
    assert sample_module._claim(again, again.out) == 2 and part.read_text() == whole
    with pytest.raises(LabError, match=r"started with temperature = 0\.5, not 0\.9"):
        sample_module._check_file(replace(again, temperature=0.9), again.out)


def test_sample_wraps_the_model_cuts_prompts_and_writes_chats_by_the_template(monkeypatch, tmp_path):
    """A prompt of the command line is cut to --max-prompt-tokens at its beginning; with --chat on it is a turn."""
    made, plain = [], policy_of()
    plain.model.generation_config.eos_token_id = [9, TOKENIZER.eos_token_id]
    tokenizer = tiny_tokenizer(["What is one and two? It is three.", "Say it again."], vocab=300)
    tokenizer.chat_template = "{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    stand_ins = {
        "check_model_available": False,
        "check_reward": None,
        "load_tokenizer": tokenizer,
        "load_config": plain.model.config,
        "load_language_model": (plain.model, tokenizer),
    }
    for name, gives in stand_ins.items():
        monkeypatch.setattr(sample_module, name, lambda *a, gives=gives, **k: gives)
    monkeypatch.setattr(sample_module, "_batches", lambda *a: iter(made.append(a) or ()))
    usual = {"data": None, "reward": None, "out": None, "top_k": 5, "max_prompt_tokens": 4, "max_response_tokens": 6}
    usual |= {"prompt": ("What is one and two?",), "device": "cpu", "data_revision": None}
    sample_module.sample(settings_of("sample", **usual, chat="auto"))
    _, _, policy, _, prompts, texts, _ = made[-1]
    ids = tokenizer("What is one and two?", add_special_tokens=False)["input_ids"]
    assert len(ids) > 4 and prompts.tolist() == [ids[-4:]] and texts == ["What is one and two?"]
    assert policy.max_new_tokens == 6 and policy.vocab_size == len(tokenizer)
    assert policy.end_tokens == (tokenizer.eos_token_id, 9)
    sample_module.sample(settings_of("sample", **usual | {"max_prompt_tokens": 40}, chat="on"))
    assert made[-1][4].tolist() == [tokenizer("[What is one and two?]", add_special_tokens=False)["input_ids"]]
