"""Methods of several stages: what each stage is given. Draws, filter, order of rows, rates, seeds, early stop.

The fit at the end of a stage (`sft`, `dpo`) is replaced by a function that notes what it was called with. Afterwards
the notes are compared with what the paper's algorithm says, worked out from the draws themselves.
"""

import pytest
import torch

from rlhf_lab.algorithms import iterated_dpo as online_room
from rlhf_lab.algorithms import raft as raft_room
from rlhf_lab.algorithms import rest as rest_room
from rlhf_lab.algorithms import rso as rso_room
from rlhf_lab.algorithms.dpo import DPO
from rlhf_lab.algorithms.iterated_dpo import Online, online
from rlhf_lab.algorithms.raft import RAFT, raft
from rlhf_lab.algorithms.rest import ReST, rest
from rlhf_lab.algorithms.rso import RSO, make_pairs, rso
from rlhf_lab.batch import Tokens
from rlhf_lab.training import Evaluation, Training, seeded
from rlhf_lab.worlds import token_tree

WORLD = token_tree.random(3, 3, 4, seed=1, has_end=True, reward="sequence")
PROMPTS, RATE = WORLD.prompts, 0.3


def training(**changes):
    return Training(steps=4, learning_rate=RATE, seed=3, progress=False, **changes)


class Asked:
    """A policy that notes how it is sampled from, and what it answers."""

    def __init__(self, policy):
        self.policy, self.device, self.calls = policy, policy.device, []

    def sample(self, prompts, number, generator, temperature=1.0, top_k=None):
        drawn = self.policy.sample(prompts, number, generator, temperature, top_k)
        self.calls.append((prompts.tolist(), number, generator.initial_seed(), temperature, top_k, drawn.tolist()))
        return drawn


@pytest.fixture
def fits(monkeypatch):
    """What `sft` of ReST and RAFT is called with: rows as lists, and the stage's settings."""
    notes = []

    def fit(policy, prompts, responses, stage, name, evaluation=None):
        notes.append((list(zip(prompts.tolist(), responses.tolist(), strict=True)), stage, evaluation))
        return [{"step": 0, "loss": 0.0}]

    monkeypatch.setattr(rest_room, "sft", fit)
    monkeypatch.setattr(raft_room, "sft", fit)
    return notes


@pytest.fixture
def pair_fits(monkeypatch):
    """What `dpo` of online and RSO is called with."""
    notes = []

    def fit(policy, reference, pairs, loss, stage, name, reference_log_probs=None, evaluation=None):
        notes.append((pairs, loss, stage, reference_log_probs, evaluation))
        with torch.no_grad():  # the next round's policy is another one
            for table in policy.logits.tables:
                table.add_(torch.randn(table.shape, dtype=table.dtype, generator=seeded(len(notes))))
        return [{"step": 0, "loss": 0.0}]

    monkeypatch.setattr(online_room, "dpo", fit)
    monkeypatch.setattr(rso_room, "dpo", fit)
    return notes


def score(x, y):
    return float(WORLD.reward(Tokens.from_lists([x]), Tokens.from_lists([[y]])))


# ReST.


def test_each_improve_step_of_rest_gets_the_rows_above_its_threshold_beside_their_own_prompts(fits):
    """Two Grow steps and three thresholds, the original data filtered with the rest, in blocks of three prompts.

    Rewards are scaled by the range of the first grown set with the original data; in the second Grow step the reward is
    three times as large, so it passes further up. τ = 0 lets everything through, the lowest too.
    """
    policy, factor = Asked(WORLD.reference.copy()), [1.0]
    original = PROMPTS[torch.tensor([1, 3, 0])], WORLD.reference.sample(PROMPTS[torch.tensor([1, 3, 0])], 2, seeded(8))

    def reward(x, y):
        return factor[0] * WORLD.reward(x, y)

    settings = ReST(
        grows=2, thresholds=(0.0, 0.6, 0.8), samples=5, rate_decay=0.5, temperature=0.8, top_k=2, sampling_batch_size=3
    )
    inner = rest_room.sample_and_score

    def louder(*arguments):
        factor[0] = 3.0 if arguments[-1] == "rest 2" else 1.0
        return inner(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rest_room, "sample_and_score", louder)
        history = rest(policy, reward, PROMPTS, settings, training(), original)

    assert [(number, temperature, top_k) for _, number, _, temperature, top_k, _ in policy.calls] == [(5, 0.8, 2)] * 4
    assert [x for x, *_ in policy.calls] == [PROMPTS[:3].tolist(), PROMPTS[3:].tolist()] * 2
    seeds = [seed for _, _, seed, *_ in policy.calls]
    assert len(set(seeds)) == 4, "each Grow step, and each block in it, has numbers of its own"
    assert seeds[0] == seeded(3, 3, 0).initial_seed() and seeds[2] == seeded(3, 3, 1).initial_seed()

    old = [(x, y) for x, ys in zip(original[0].tolist(), original[1].tolist(), strict=True) for y in ys]
    low = high = None
    for grow in range(2):
        rows = [
            (x, y)
            for asked, *_, drawn in policy.calls[2 * grow : 2 * grow + 2]
            for x, ys in zip(asked, drawn, strict=True)
            for y in ys
        ]
        scores = [(1.0, 3.0)[grow] * score(*row) for row in rows] + [score(*row) for row in old]
        if low is None:
            low, high = min(scores), max(scores)
        for improve, threshold in enumerate((0.0, 0.6, 0.8)):
            given, stage, evaluation = fits[3 * grow + improve]
            want = [
                (x, [y])
                for (x, y), s in zip(rows + old, scores, strict=True)
                if improve == 0 or (s - low) / (high - low) > threshold
            ]
            assert given == want and len(want) > 0 and evaluation is None
            assert stage.learning_rate == pytest.approx(RATE * 0.5**improve)
            assert stage.seed == training().stage("any", 3 * grow + improve).seed
            seen = history[3 * grow + improve]
            assert (seen["grow"], seen["improve"], seen["threshold"]) == (grow, improve, threshold)
            assert seen["kept"] == pytest.approx(len(want) / len(rows + old))
    assert len({stage.seed for _, stage, _ in fits}) == 6
    assert len(fits[1][0]) > len(fits[2][0])


def test_without_scaling_a_threshold_is_in_the_rewards_own_units_and_strict(fits):
    """τ is one of the rewards: responses with just this reward are left out. A τ below zero is a threshold too."""
    policy = Asked(WORLD.reference.copy())
    scores = WORLD.rewards().flatten().sort().values
    edge, below = float(scores[scores > 0][1]), float(scores[scores < 0][-2])
    rest(policy, WORLD.reward, PROMPTS, ReST(thresholds=(below, edge), samples=64, scale="none"), training())
    rows = [(x, [y]) for x, ys in zip(policy.calls[0][0], policy.calls[0][-1], strict=True) for y in ys]
    for (given, _, _), threshold in zip(fits, (below, edge), strict=True):
        assert any(abs(score(x, y[0]) - threshold) < 1e-12 for x, y in rows), "the case must occur"
        assert given == [row for row in rows if score(row[0], row[1][0]) > threshold + 1e-12]


def test_every_stage_gets_the_evaluation(fits, pair_fits):
    """Two rounds of RAFT and of iterated DPO, two Improve steps of ReST, and RSO's only fit."""
    evaluation = Evaluation(1, lambda rows: (), lambda: (None, {"score": 1.0}), "score")
    policy = Asked(WORLD.reference.copy())
    raft(policy, WORLD.reward, PROMPTS, RAFT(2, rounds=2), training(), evaluation=evaluation)
    rest(policy, WORLD.reward, PROMPTS, ReST(thresholds=(0.0, 0.1), samples=4), training(), evaluation=evaluation)
    assert [found for *_, found in fits] == [evaluation] * 4
    loose, reference = WORLD.reference.copy(), WORLD.reference

    def collect(policy, number, generator):
        return WORLD.preferences(number, generator)

    online(loose, reference, collect, settings=Online(rounds=2, labels=8), training=training(), evaluation=evaluation)
    direct = WORLD.preferences(4, seeded(0))
    rso(loose, reference, None, PROMPTS, RSO("direct"), training(), direct=direct, evaluation=evaluation)
    assert [found for *_, found in pair_fits] == [evaluation] * 3


# RAFT.


def test_each_round_of_raft_keeps_the_best_of_k_of_every_prompt(fits):
    policy = Asked(WORLD.reference.copy())
    settings = RAFT(best_of=5, rounds=2, temperature=0.8, top_k=2, sampling_batch_size=3)
    history = raft(policy, WORLD.reward, PROMPTS, settings, training())
    assert [call[1] for call in policy.calls] == [5] * 4 and [call[3:5] for call in policy.calls] == [(0.8, 2)] * 4
    assert [call[0] for call in policy.calls] == [PROMPTS[:3].tolist(), PROMPTS[3:].tolist()] * 2
    assert len({call[2] for call in policy.calls}) == 4 and len({stage.seed for _, stage, _ in fits}) == 2
    for turn, (given, _, _) in enumerate(fits):
        best, every = [], []
        for asked, *_, drawn in policy.calls[2 * turn : 2 * turn + 2]:
            for x, ys in zip(asked, drawn, strict=True):
                scores = [score(x, y) for y in ys]
                every += scores
                best.append((x, max(scores)))
        assert [x for x, _ in given] == PROMPTS.tolist()
        assert [score(x, y[0]) for x, y in given] == pytest.approx([value for _, value in best])
        assert history[turn]["score"] == pytest.approx(sum(every) / len(every))
        assert history[turn]["kept_score"] == pytest.approx(sum(value for _, value in best) / len(best))


# Online rounds.


@pytest.mark.parametrize("forget", [False, True])
def test_each_online_round_labels_the_policy_as_it_is_and_fits_all_labels_or_its_own(forget, pair_fits):
    """11 labels in 3 rounds are 3, 4 and 4, asked for in blocks of two."""
    policy, asked, made = WORLD.reference.copy(), [], []

    def collect(now, number, generator):
        pairs = WORLD.preferences(number, generator, policy=now)
        asked.append((number, generator.initial_seed(), WORLD.log_probs(now)))
        made.append(list(zip(pairs.prompts.tolist(), pairs.responses.tolist(), strict=True)))
        return pairs

    settings, loss = Online(rounds=3, labels=11, forget=forget, labels_at_once=2), DPO("ipo", 0.3)
    history = online(policy, WORLD.reference, collect, loss, settings, training())
    assert [number for number, *_ in asked] == [2, 1, 2, 2, 2, 2]
    assert len({seed for _, seed, _ in asked}) == 6 and asked[0][1] == seeded(3, 6, 0).initial_seed()
    tables = [log_probs for *_, log_probs in asked]
    assert torch.equal(tables[0], WORLD.log_ref()) and torch.equal(tables[2], tables[3])
    assert not torch.equal(tables[1], tables[2]) and not torch.equal(tables[3], tables[4])
    rounds = [made[0] + made[1], made[2] + made[3], made[4] + made[5]]
    for turn, (pairs, given, stage, *_) in enumerate(pair_fits):
        want = rounds[turn] if forget else [row for rows in rounds[: turn + 1] for row in rows]
        assert list(zip(pairs.prompts.tolist(), pairs.responses.tolist(), strict=True)) == want
        assert given is loss and stage.seed == training().stage("any", turn).seed
    assert [(row["round"], row["labels"]) for row in history] == [(0, 3), (1, 7), (2, 11)]


# RSO.


def test_rso_samples_accepts_and_labels_as_its_settings_say(monkeypatch):
    """What the sampler and the pairing are called with: candidates and β for the one, the accepted scores for the
    other, in blocks of three prompts with numbers of their own."""
    reference, accepted, paired = Asked(WORLD.reference), [], []
    sampler, pairing = rso_room.sampling.rejection_sample, rso_room.preferences.make_pairs

    def accept(scores, number, beta, generator):
        chosen = sampler(scores, number, beta, generator)
        accepted.append((scores, number, beta, chosen))
        return chosen

    def pair(scores, generator, *how):
        paired.append((scores, how))
        return pairing(scores, generator, *how)

    monkeypatch.setattr(rso_room.sampling, "rejection_sample", accept)
    monkeypatch.setattr(rso_room.preferences, "make_pairs", pair)
    settings = RSO(
        beta=0.7, gamma=0.2, candidates=16, accepted=4, temperature=0.8, top_k=2, pairing="tournament",
        labels="hard", sampling_batch_size=3,
    )  # fmt: skip
    pairs, dropped = make_pairs(reference, WORLD.reward, PROMPTS, settings, seed=3)
    assert [call[1] for call in reference.calls] == [16] * 2 and [c[3:5] for c in reference.calls] == [(0.8, 2)] * 2
    assert [call[0] for call in reference.calls] == [PROMPTS[:3].tolist(), PROMPTS[3:].tolist()]
    assert len({call[2] for call in reference.calls}) == 2
    for call, (scores, number, beta, chosen), (seen, how) in zip(reference.calls, accepted, paired, strict=True):
        want = [[score(x, y) for y in ys] for x, ys in zip(call[0], call[-1], strict=True)]
        assert (number, beta) == (4, 0.7) and scores.tolist() == [pytest.approx(row) for row in want]
        assert torch.equal(seen, scores.gather(1, chosen)) and how == ("tournament", "hard")
    assert len(pairs) + dropped == 3 * len(PROMPTS)
    for x, (chosen, rejected) in zip(pairs.prompts.tolist(), pairs.responses.tolist(), strict=True):
        assert score(x, chosen) >= score(x, rejected) and chosen != rejected
    equal = [
        sum(scores[i] == scores[j] for i in range(4) for j in range(i)) for scores, _ in paired for scores in scores
    ]
    assert dropped > 0 and sum(equal) > 0, "some accepted responses must be equal, in the first block too"
    reference.calls.clear()
    make_pairs(reference, WORLD.reward, PROMPTS, RSO("sft-sample-rank", accepted=4, temperature=0.8, top_k=2))
    assert [call[1] for call in reference.calls] == [4] and reference.calls[0][3:5] == (0.8, 2)
    assert len(accepted) == 2, "nothing is accepted by its reward"


@pytest.mark.parametrize("source", ["rso-sample-rank", "direct"])
def test_rso_fits_its_loss_at_gamma_to_the_pairs_of_its_source(source, pair_fits):
    """Reference log-probabilities that were handed in are those of the direct pairs, and of no others. Pairs are drawn
    from the run's seed. Without γ the loss is at β."""
    direct, known = WORLD.preferences(6, seeded(0)), torch.zeros(6, 2)
    sampled = {} if source == "direct" else {"beta": 0.7, "candidates": 16, "accepted": 4}
    for gamma, slope in ((0.2, 0.2), (None, sampled.get("beta", RSO().beta))):
        settings = RSO(source, gamma=gamma, loss="hinge-norm", **sampled)
        rso(WORLD.reference.copy(), WORLD.reference, WORLD.reward, PROMPTS, settings, training(), direct,
            reference_log_probs=known)  # fmt: skip
        pairs, loss, stage, given, _ = pair_fits[-1]
        assert (loss.loss, loss.beta) == ("hinge-norm", slope) and stage == training()
        want = direct if source == "direct" else make_pairs(WORLD.reference, WORLD.reward, PROMPTS, settings, 3)[0]
        assert pairs.responses.tolist() == want.responses.tolist() and pairs.prompts.tolist() == want.prompts.tolist()
        assert given is (known if source == "direct" else None)
