"""The report on texts: exact KL on a tree, hand-worked diversity, and what it says of a language model."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import chat_tokenizer, one_thread, tiny, tiny_tokenizer  # noqa: F401

from rlhf_lab.batch import Tokens
from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import Estimate, RewardJudge, evaluate, text_report
from rlhf_lab.evaluation.language_model_report import _gold, _grouped, _interval, _numbers, distinct, self_bleu
from rlhf_lab.policies.language_model import LanguageModelPolicy
from rlhf_lab.policies.tabular import TabularPolicy
from rlhf_lab.worlds import token_tree

WORLD = token_tree.random(4, 3, 2, seed=3, has_end=True)
OPTIMAL = TabularPolicy.from_log_probs(WORLD.tree, WORLD.optimal(0.5))


class Words:
    """A tokenizer of one word an id: id 3 ends a text (the tree's last token)."""

    eos_token_id = 3

    def batch_decode(self, rows, skip_special_tokens):
        return [" ".join(f"w{i}" for i in row if i != 3 or not skip_special_tokens) for row in rows]


def count_w1(prompts, texts):
    return [float(text.split().count("w1")) for text in texts]


def report(policy=OPTIMAL, number=300, **more):
    prompts = WORLD.draw_prompts(number, torch.Generator().manual_seed(0))
    return text_report(policy, WORLD.reference, prompts, Words(), **more)


def test_kl_reward_and_length_lie_within_their_errors_of_the_exact_ones():
    """k1 and k3 summed over tokens are both unbiased for KL(π‖π_ref); each must be within four errors of it."""
    found = report(number=1500, proxy=WORLD.reward, gold=count_w1, num_samples=4)
    enumerated = evaluate(OPTIMAL, WORLD, 0.5)
    chance = WORLD.optimal(0.5).exp()
    every = WORLD.responses
    tokens = (chance * every.lengths).sum(-1).mean().item()
    ones = (chance * ((every.ids == 1) & every.mask).sum(-1)).sum(-1).mean().item()
    last = every.ids.gather(-1, (every.lengths - 1)[..., None]).squeeze(-1)
    no_end = (chance * (last != 3)).sum(-1).mean().item()
    exact_values = {
        "kl_k1": enumerated.kl, "kl_k3": enumerated.kl, "proxy": enumerated.reward, "gold": ones, "tokens": tokens,
        "kl_k1_per_token": enumerated.kl / tokens, "kl_k3_per_token": enumerated.kl / tokens, "no_end": no_end,
    }  # fmt: skip
    for name, value in exact_values.items():
        estimate = getattr(found, name)
        assert abs(estimate.mean - value) < 4 * estimate.error < 0.2, name
    assert found.against_targets is None and found.against_policy is None
    itself = report(WORLD.reference)
    assert itself.kl_k1 == itself.kl_k3 == Estimate(0.0, 0.0, 299)


def test_the_error_per_token_is_that_of_a_ratio():
    """Repeated 80 times, per-token KL spreads as its error says (relative error of a spread: √(1/160) ≈ 8%)."""
    found = [report(number=60, seed=seed, num_samples=2).kl_k1_per_token for seed in range(80)]
    spread = torch.tensor([one.mean for one in found]).std().item()
    # The prompts are the same 60 each time, so the error over prompts may only be the larger of the two.
    said = torch.tensor([one.error for one in found]).mean().item()
    assert 0.75 * spread < said < 2 * spread


def test_wins_against_targets_and_another_policy_are_counted_by_the_judge():
    """The optimum under "count w1" against the reference wins more than half; against itself about half."""
    prompts = WORLD.draw_prompts(200, torch.Generator().manual_seed(0))
    more = {"gold": count_w1, "against": WORLD.reference}
    good = TabularPolicy.from_log_probs(
        WORLD.tree, (WORLD.log_ref() + 3 * (WORLD.responses.ids == 1).sum(-1)).log_softmax(-1)
    )
    found = text_report(good, WORLD.reference, prompts, Words(), targets=["w0 w2"] * 200, **more)
    assert found.against_policy.low > 0.6 and found.against_targets.low > 0.6
    assert found.against_targets.comparisons == 800 and found.against_policy.position_bias == 0
    itself = text_report(WORLD.reference, WORLD.reference, prompts, Words(), **more)
    assert itself.against_policy.low < 0.5 < itself.against_policy.high and 0 < itself.against_policy.ties < 1


def test_a_reward_model_that_compares_reads_the_prompts_of_a_chat_template_as_they_were_tokenised():
    """Their special tokens are neither lost nor doubled, and the responses end in the token that closes a turn."""
    tokenizer = chat_tokenizer(bos=True)
    policy = LanguageModelPolicy(tiny("llama", vocab=len(tokenizer)), tokenizer.eos_token_id, 4, tokenizer=tokenizer)
    turns = ([{"role": "user", "content": content}] for content in ("2?", "3?"))
    texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in turns]
    prompts = Tokens.from_lists(tokenizer(texts, add_special_tokens=False)["input_ids"])
    seen = []

    def reward(x, y):
        seen.append((x.tolist(), y))
        return y.lengths.float()

    found = text_report(
        policy, policy, prompts, judge=RewardJudge(reward, tokenizer), targets=["4", "5"], num_samples=1, num_examples=2
    )
    assert [x for x, _ in seen] == [prompts.tolist()]
    turn_end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert all(ids[-1] == turn_end for pair in seen[0][1].tolist() for ids in pair)
    assert found.examples[0]["prompt"] == "user\n2?\nassistant\n"


def test_diversity_by_hand():
    """Prompt 1, "a b a" and "a b": 2 of 5 words are different, 2 of the pairs ab ba ab. Prompt 2, c and c: 1 of 2."""
    answers = [["a b a", "a b"], ["c", "c"]]
    assert distinct(answers, 1).mean == pytest.approx(3 / 7)
    assert distinct(answers, 2).mean == pytest.approx(2 / 3)
    assert distinct(answers, 4) is None
    alike = self_bleu([["the cat sat on the mat", "the cat sat on the mat"]] * 2)
    other = self_bleu([["the cat sat on the mat", "dogs never run in parks today"]] * 2)
    assert alike.mean == pytest.approx(100) and other.mean < 10
    # A single word against another of three: precision 1, length penalty exp(1 − 3/1).
    assert self_bleu([["x", "x y z"]] * 2).mean < 100 * (1 + torch.tensor(-2.0).exp().item()) / 2


def test_the_report_is_a_function_of_its_seed_and_prints_and_saves_itself(tmp_path):
    one, same, other = (report(gold=count_w1, targets=["w1"] * 300, seed=s) for s in (1, 1, 2))
    assert one == same and one != other
    table = one.table()
    assert "gold reward" in table and "wins against targets" in table and "300 prompts × 4 responses" in table
    assert "proxy" not in table
    saved = json.loads(one.to_json(tmp_path / "report.json"))
    assert saved == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert saved["gold"]["mean"] == one.gold.mean and saved["gold"]["low"] < one.gold.mean < saved["gold"]["high"]
    assert saved["proxy"] is None and saved["against_targets"]["comparisons"] == 1200
    assert len(saved["examples"]) == 5 and set(saved["examples"][0]) == {"prompt", "response"}


def test_a_language_model_is_reported_in_blocks_and_one_response_has_no_self_bleu():
    tokenizer = tiny_tokenizer(["the cat sat on the mat", "a dog ran"], vocab=300)
    policy = LanguageModelPolicy(tiny("gpt2", vocab=300, wide=0.05), tokenizer.eos_token_id, 6, tokenizer=tokenizer)
    reference = LanguageModelPolicy(tiny("gpt2", vocab=300, wide=0.05, seed=1), tokenizer.eos_token_id, 6)
    prompts = Tokens.from_lists(tokenizer(["the cat", "a dog", "the", "a", "mat"])["input_ids"])
    found = text_report(policy, reference, prompts, num_samples=1, batch_size=2, temperature=0.8)
    assert found.self_bleu is None and found.kl_k3.mean > 0 and 1 <= found.tokens.mean <= 6
    assert [e["prompt"] for e in found.examples] == ["the cat", "a dog", "the", "a", "mat"]
    # Of policies that divide their logits by 0.8: the KL of that distribution, by its own log-probabilities.
    assert found.temperature == 0.8 and found.no_end.mean > 0.5


def test_what_a_report_needs_is_named():
    prompts = WORLD.draw_prompts(4)
    with pytest.raises(LabError, match="needs a tokenizer"):
        text_report(OPTIMAL, OPTIMAL, prompts)
    with pytest.raises(LabError, match="3 targets came with 4 prompts"):
        text_report(OPTIMAL, OPTIMAL, prompts, Words(), count_w1, targets=["a"] * 3)
    with pytest.raises(LabError, match="pass a judge"):
        text_report(OPTIMAL, OPTIMAL, prompts, Words(), targets=["a"] * 4)
    with pytest.raises(LabError, match="at least two prompts"):
        text_report(OPTIMAL, OPTIMAL, prompts[:1], Words())
    with pytest.raises(LabError, match="1 score for 16 texts"):
        text_report(OPTIMAL, OPTIMAL, prompts, Words(), lambda x, y: [1.0])
    with pytest.raises(LabError, match="gold reward contains nan"):
        text_report(OPTIMAL, OPTIMAL, prompts, Words(), lambda x, y: [float("nan")] * len(y))


def test_at_a_temperature_samples_and_kl_are_those_of_the_divided_logits():
    """At 0.5 every token's logits are doubled, in both policies: the KL of those two, by enumeration."""
    divided = [
        TabularPolicy(WORLD.tree, [2 * table for table in one.logits.tables]) for one in (OPTIMAL, WORLD.reference)
    ]
    ours, theirs = (one.enumerate(WORLD.prompts)[1].detach() for one in divided)
    expected = (ours.exp() * (ours - theirs)).sum(-1).mean().item()
    found = report(number=1000, temperature=0.5, gold=count_w1)
    plain = evaluate(OPTIMAL, WORLD, 0.5).kl
    for estimate in (found.kl_k1, found.kl_k3):
        assert abs(estimate.mean - expected) < 4 * estimate.error < abs(plain - expected)


class Noted(TabularPolicy):
    """Writes down how it is sampled."""

    def sample(self, prompts, num_samples, generator=None, temperature=1.0, top_k=None):
        self.asked = (num_samples, temperature, top_k)
        return super().sample(prompts, num_samples, generator, temperature, top_k)


def test_both_policies_are_sampled_with_the_top_k_that_is_asked_and_there_is_no_kl():
    """With k = 1 a prompt's responses are all the same: self-BLEU is 100 where they have a word at all."""
    policy, other = (Noted(WORLD.tree, list(WORLD.reference.logits.tables)) for _ in range(2))
    prompts = WORLD.draw_prompts(6, torch.Generator().manual_seed(0))
    found = text_report(policy, WORLD.reference, prompts, Words(), count_w1, against=other, temperature=0.7, top_k=1)
    assert policy.asked == other.asked == (4, 0.7, 1)
    assert (found.kl_k1, found.kl_k3, found.kl_k1_per_token) == (None, None, None) and found.top_k == 1
    assert found.against_policy.ties == 1.0
    free = text_report(policy, WORLD.reference, prompts, Words(), count_w1)
    assert policy.asked == (4, 1.0, None) and free.kl_k1 is not None


def test_a_policy_s_own_end_token_ends_a_response_before_the_tokenizer_s_does():
    """Responses that end in 2 and in 3: of a policy whose end is 2 the second is cut off; without one the first."""
    y = Tokens.from_lists([[[1, 2], [1, 3]]])
    for policy, cut in ((SimpleNamespace(end_tokens=(2,)), [0, 1]), (object(), [1, 0])):
        found = _numbers(policy, policy, WORLD.prompts[:1], y, 1.0, None, Words(), with_kl=False)
        assert found["no_end"].tolist() == [cut] and found["tokens"].tolist() == [[2, 2]]


def test_every_end_token_ends_a_response_and_is_left_out_of_its_text():
    """A policy that ends in 2 and in 0, neither a special token: the text goes up to either, the third was cut off."""
    y = Tokens.from_lists([[[1, 2], [1, 0], [1, 1]]])
    policy = SimpleNamespace(end_tokens=(2, 0))
    found = _numbers(policy, policy, WORLD.prompts[:1], y, 1.0, None, Words(), with_kl=False)
    assert found["no_end"].tolist() == [[0, 0, 1]]
    one, two = Words().batch_decode([[1], [1, 1]], skip_special_tokens=True)
    assert _grouped(y, Words(), (2, 0)) == [[one, one, two]]


def test_an_interval_ends_where_its_quantity_does():
    """0.98 ± 1.96 · 0.05 would end above 1, −0.01 below 0; a reward has no ends."""
    assert _interval("no_end", Estimate(0.98, 0.05)) == pytest.approx((0.882, 1.0), abs=1e-4)
    assert _interval("kl_k3", Estimate(0.01, 0.02)) == pytest.approx((0.0, 0.0492), abs=1e-4)
    assert _interval("gold", Estimate(0.98, 0.05))[1] == pytest.approx(1.078, abs=1e-4)


def test_each_response_has_the_gold_reward_of_its_own_prompt_and_no_special_token():
    """Two prompts with two responses each; the reward is the prompt's number."""
    scores = _gold(lambda prompts, texts: [float(x) for x in prompts], ["1", "2"], [["a", "b"], ["c", "d"]])
    assert scores.tolist() == [[1.0, 1.0], [2.0, 2.0]]
    seen: list[str] = []
    report(number=4, gold=lambda prompts, texts: seen.extend(texts) or [0.0] * len(texts))
    assert seen and not any("w3" in one for one in seen)
