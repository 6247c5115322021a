"""The judge: what it learns from, what it reads, and that `agreement` measures it."""

import pytest
import torch

from rlhf_lab.errors import LabError
from rlhf_lab.evaluation import GoldJudge
from rlhf_lab.experiments import text_judge as third
from rlhf_lab.experiments.setup_text import text_task


@pytest.fixture(scope="module")
def summaries():
    torch.set_num_threads(1)
    return text_task("small", "summaries")


class _Turned:
    """The gold judge's opposite."""

    order_free = True

    def __init__(self, gold):
        self.gold = GoldJudge(gold)

    def __call__(self, prompts, a, b):
        return [1 - p for p in self.gold(prompts, a, b)]


def test_agreement_is_1_for_gold_itself_0_for_its_opposite_and_half_for_ties(summaries):
    same = third.agreement(summaries, GoldJudge(summaries.world.gold), prompts=12)
    assert same == (1, 1)
    turned = third.agreement(summaries, _Turned(summaries.world.gold), prompts=12)
    assert turned == (0, 0)
    ties = third.agreement(summaries, GoldJudge(summaries.world.gold, tie=9.0), prompts=12)
    assert ties == (0.5, 0.5)


@pytest.mark.slow
def test_a_judge_fitted_to_little_beats_a_coin_and_the_same_seed_gives_the_same_judge(summaries):
    """96 prompts and 16 steps: far less than the judge of the claims, and still above the coin's 0.5."""
    torch.set_num_threads(1)
    small = third.fitted(summaries, prompts=96, steps=16)
    found = third.agreement(summaries, small, prompts=48)
    assert sum(found) / 2 > 0.55
    asked = [example.prompt for example in summaries.world.examples("test", 4)]
    texts = [example.target for example in summaries.world.examples("test", 4)]
    assert small(asked, texts, texts) == [0.5] * 4
    again = third.fitted(summaries, prompts=96, steps=16)
    ids = small.tokenizer(texts)["input_ids"]
    assert ids and all(
        torch.equal(one, two) for one, two in zip(small.reward.parameters(), again.reward.parameters(), strict=True)
    )


def test_labels_follow_the_gold_reward_through_the_blur(summaries):
    """The share of labels that agree with gold is E[σ(|gap|/blur)] over the pairs, within 4 standard errors."""
    asked, answers = third._answers(summaries, "train", 64, 2, 5)
    # The last prompts of the split, with their targets: runs are labelled on the first ones.
    last = summaries.world.examples("train")[-64:]
    assert asked == [example.prompt for example in last]
    assert [row[-1] for row in answers] == [example.target for example in last]
    from rlhf_lab.policies.loading import load_tokenizer

    pairs = third._labelled(summaries, load_tokenizer("lab-pythia"), asked, answers, 5)
    tokenizer = load_tokenizer("lab-pythia")
    prompts = tokenizer.batch_decode(pairs.prompts.tolist(), skip_special_tokens=True)
    chosen = tokenizer.batch_decode([y[0] for y in pairs.responses.tolist()], skip_special_tokens=True)
    rejected = tokenizer.batch_decode([y[1] for y in pairs.responses.tolist()], skip_special_tokens=True)
    assert {y[-1] for ys in pairs.responses.tolist() for y in ys} == {tokenizer.eos_token_id}
    gold = torch.tensor([summaries.world.gold(prompts, side) for side in (chosen, rejected)]).double()
    gap = (gold[0] - gold[1]) / (third.BLUR * summaries.unit)
    chance = torch.sigmoid(gap.abs())
    right = torch.where(gap == 0, 0.5, (gap > 0).double())
    error = (chance * (1 - chance)).sum().sqrt() / len(gap)
    assert abs(right.mean() - torch.where(gap == 0, 0.5, chance).mean()) < 4 * error


def test_a_reward_that_sees_no_difference_is_refused(summaries):
    import dataclasses

    blind = dataclasses.replace(summaries, world=dataclasses.replace(summaries.world, score=lambda x, y: 0.0))
    with pytest.raises(LabError, match="both texts have the same gold reward"):
        third.agreement(blind, GoldJudge(summaries.world.gold), prompts=4)
