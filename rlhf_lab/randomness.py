"""Random numbers: the names of all random streams, and uniform numbers from a generator on any device.

This package never uses a global random state. `rlhf_lab.training.seeded(seed, Stream.NAME, …)` makes a generator whose
numbers depend only on the seed, the stream and further indices. One part of a run can therefore change without changing
the random numbers of another part.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Stream:
    """The number of each random stream, the second argument of `seeded` or the stream of an experiment's fit.

    The numbers are fixed, because saved results were made with them. Streams that are never used in the same run may
    have the same number. A new stream takes a number that is not used yet.
    """

    STEP = 0
    """Everything random in one optimiser step: sampled responses, dropout."""
    ROW_ORDER = 1
    """The order of the training rows in each epoch."""
    RAFT_RESPONSES = 2
    """RAFT's responses of each turn."""
    REST_GROW = 3
    """ReST's responses of each Grow step."""
    HELD_OUT_RESPONSES = 4
    """Responses to held-out prompts, whose rewards are measured during training."""
    RSO_CANDIDATES = 5
    """RSO's candidates, their acceptance, pairing and labels."""
    ITERATED_DPO = 6
    """The responses, pairs and labels of each turn of iterated DPO."""
    HELD_OUT_SPLIT = 7
    """The prompts that `rlhf-lab train --eval-fraction` holds out."""
    HELD_OUT_PAIRS = 8
    """Labelled pairs that `rlhf-lab train --eval-data` draws from a text world."""
    DATA_MIXTURE = 18
    """The rows of each of several data that `rlhf-lab train --data-weights` selects."""
    CALIBRATION = 16
    """Outcomes of a calibrated model, with which a calibration error is compared."""
    IMPORTANCE_SAMPLES = 11
    """Responses for importance estimates of the distance to π*."""
    FRONTIER_SAMPLES = 12
    """Responses of π_ref for the sampled frontier."""
    REPORT_RESPONSES = 13
    """The evaluated policy's responses in a report."""
    REPORT_OPPONENT = 14
    """The responses of the policy that a report compares with."""
    COMMAND_PAIRS = 11
    """Labelled pairs that `rlhf-lab train` draws from a text world."""
    COMMAND_SAMPLE = 15
    """Responses of `rlhf-lab sample`."""
    ADAPTER_DROPOUT = 17
    """Dropout of LoRA adapters in a training step."""
    BUDGET_BELIEF = 60
    """`rlhf-lab budget`: draws from the posterior of a pilot's rewards."""
    BUDGET_PLANS = 61
    """`rlhf-lab budget`: simulated purchases of each plan."""
    BUDGET_FEATURES = 62
    """`rlhf-lab budget`: features of a policy class that cannot represent everything."""
    BUDGET_DIRECT = 63
    """`rlhf-lab budget`: labels for DPO on that class."""
    BUDGET_REWARD_MODEL = 64
    """`rlhf-lab budget`: labels for a reward model and the same class."""
    SFT_FIT = 1
    """SFT in an experiment; the next ones are the fits of the other methods of `experiments.methods`."""
    PPO_POLICY_FIT = 2
    """PPO's policy and critic."""
    DPO_FIT = 3
    """DPO."""
    IPO_FIT = 4
    """IPO."""
    HINGE_FIT = 5
    """The loss hinge-norm."""
    SFT_SAMPLE_RANK_FIT = 6
    """RSO's sft-sample-rank."""
    RAFT_FIT = 7
    """RAFT."""
    REST_FIT = 8
    """ReST."""
    ITERATED_DPO_FIT = 9
    """Iterated DPO."""
    RSO_SAMPLE_RANK_FIT = 10
    """RSO's rso-sample-rank."""
    RSO_PAPER_FIT = 11
    """RSO with the paper's γ."""
    TUNED_DPO = 2
    """DPO with a learning rate that a search chose."""
    TUNED_PPO = 3
    """PPO with such a rate."""
    TUNED_PPO_ON_GOLD = 4
    """PPO on the gold reward with the rate of PPO."""
    LABELS = 20
    """The labelled pairs of an experiment."""
    PROMPTS = 21
    """The prompts from which an experiment's methods sample."""
    REWARD_MODEL = 22
    """The fit of an experiment's reward model."""
    TEST_RESPONSES = 30
    """Responses to test prompts, from which a policy is evaluated."""
    BEST_OF_N = 33
    """Draws and ties of best-of-n in the claims on cost and on RSO's table."""
    REWARD_HEAD = 34
    """Weights of an untrained reward head, in the memory measurement."""
    TRAINING_LABELS = 23
    """A transformer's training labels, where `LABELS` are held out."""
    REFERENCE_RESPONSES = 31
    """π_ref's responses for the estimated distance to π*."""
    POLICY_RESPONSES = 32
    """The trained policy's responses for the estimated distance to π*."""
    CANDIDATES = 31
    """Candidates of π_ref that the RSO experiments share."""
    CANDIDATE_PAIRS = 32
    """Acceptance, pairing and labels of those candidates."""
    FRONTIER_TILT = 33
    """Draws of π_ref that are reweighted to estimate the frontier on text."""
    JUDGE_RESPONSES = 1
    """Responses on which a learned judge of texts is trained and tested."""
    JUDGE_LABELS = 2
    """Labels for that judge."""
    RSO_FIT = 1
    """The fit of a policy to RSO's pairs."""
    LABEL_FIT = 3
    """The fit of a policy to labels or targets."""
    REST_FIRST_GROW = 40
    """The first Grow step of the claim on ReST, with its Improve steps."""
    REST_SECOND_GROW = 43
    """Its second Grow step."""
    OTHER_LOSS_FIT = 45
    """The fits of the losses that are compared with ReST's."""
    PPO_FIT = 46
    """PPO in the claim on ReST."""
    TRAJECTORY_FIT = 60
    """Training that is recorded step by step in the claim on over-optimisation, on text."""
    WHY_FEATURES = 51
    """Random features of a limited policy class."""
    WHY_LABELS = 52
    """Labels of the reward model in the claim on why RSO helps."""
    WHY_PAIRS = 53
    """The pairs to which a policy of that claim is fitted."""
    WHY_SOFT_PAIRS = 54
    """The pairs that stand for infinitely many, with label probabilities."""
    MISFIT_WORLD = 55
    """Reference, features and reward of a world whose reward a linear class misses in part."""
    SAMPLER_STEPS = 56
    """Labels of gradient steps on the pairs of a sampler."""
    SAMPLER_ROUNDS = 57
    """Labels of rounds on the pairs of a sampler."""
    COVERAGE_LABELS = 58
    """Labels on pairs from which responses are masked."""
    COVERAGE_WORLD = 66
    """Reference, features and reward of a bandit on which they are labelled."""
    CHOSEN_WORLD = 59
    """Features or the pretraining distribution of a world in which log π of chosen responses is followed."""
    CHOSEN_PAIRS = 65
    """The labelled pair of each of its prompts."""
    OVER_OPTIMISATION_WORLD = 50
    """Features and rewards of the world on which over-optimisation is shown."""
    OVER_OPTIMISATION_BEST_OF_N = 61
    """Draws for best-of-n on text."""
    SFT_TARGETS = 42
    """SFT targets on a finite world, drawn from π_ref."""
    OTHER_LOSS = 44
    """Pairs and labels of the losses that are compared with ReST's."""
    NARROW_FEATURES = 105
    """The random half of the features that a narrow reward model has."""
    SHARED_LABELS = 40
    """Labels on π_ref's responses that several strategies share."""
    ONLINE_LABELS = 41
    """Labels on a strategy's own responses; the strategy's index is added."""
    STEADY_LABELS = 50
    """Labels of the long run under drift."""
    STYLE_RESPONSES = 60
    """Responses of π_ref from which its usual length is measured."""
    ROUND_PROMPTS = 61
    """Prompts and labels of a round, on text."""
    ROUND_RESPONSES = 62
    """Responses of a round, on text."""
    LABELS_AT_START = 0
    """All labels of a deployment at its start; an index after `ROUND_PROMPTS`, as is the next one."""
    LABELS_OF_ROUND = 1
    """The labels of one round."""
    DEPLOYED_FIT = 70
    """The fit of a deployed policy; the number of its round is added."""
    ROUND_TEST_PROMPTS = 63
    """Test prompts of a round, on text."""
    ROUND_TEST_RESPONSES = 64
    """Responses to them."""
    BUDGET_WORLD_FEATURES = 405
    """Features of a policy class that cannot represent everything."""
    BUDGET_LIMIT = 50
    """Simulated labels that are compared with the limit of many labels."""
    BUDGET_SOURCES = 51
    """Simulated labels for each source of pairs."""
    BUDGET_SPLIT = 52
    """Simulated purchases of demonstrations and labels."""
    BUDGET_LEARNERS = 53
    """Simulated labels for each learner."""
    BUDGET_ROUNDS = 54
    """Simulated labels in different numbers of rounds."""
    STRATEGY_PROMPTS = 40
    """The order in which a strategy of the annotation budget uses prompts, on text."""
    STRATEGY_RESPONSES = 41
    """Responses of a strategy."""
    STRATEGY_LABELS = 42
    """Labels of a strategy."""
    STRATEGY_HALVES = 43
    """Division of the labels between two reward models."""
    STRATEGY_REJECTION = 44
    """Rejection sampling of the responses to label."""
    FIRST_PURCHASE = 1
    """The first samples and labels that a strategy buys; an index after the stream, as are the next three."""
    SECOND_PURCHASE = 2
    """The labels that it buys afterwards."""
    DEMONSTRATION_PURCHASE = 3
    """The samples from which demonstrations are drawn."""
    ROUND_PURCHASE = 10
    """The labels of a round; the round's number is added."""
    PURCHASE_FIT = 2
    """The fit of a strategy's policy."""
    ROUND_FIT = 20
    """The fit of a round; the round's number is added."""
    PURCHASE_REWARD = 50
    """The fit of a strategy's reward model; the number of the model is added."""
    PURCHASE_PAIRS = 45
    """RSO's candidates and pairs on a strategy's reward model."""
    STRATEGY_DEMONSTRATIONS = 46
    """Simulated demonstrations."""
    NATURAL_GRADIENT_STARTS = 406
    """Starting points of the search for a limited class's best policy."""
    BUDGET_WORLDS = 404
    """Random worlds for the planning of annotation budgets."""
    TREE_WORLD = 202
    """Rewards and reference of a random token tree."""
    BANDIT_WORLD = 101
    """Rewards and reference of a random bandit."""
    SECOND_REWARD = 103
    """The second reward, towards which a moving bandit's reward turns."""
    PARTITION_DRAWS = 404
    """Draws in the explorer of the partition function."""
    KL_DRAWS = 404
    """Draws in the explorer of the KL estimators."""
    REJECTION_DRAWS = 707
    """Draws in the explorer of rejection sampling."""
    BUDGET_CURVES = 70
    """Simulated labels in the explorer of the annotation budget."""
    SLIDE_RESPONSES = 7
    """Responses in the slides' explorer of over-optimisation."""
    SLIDE_LABELS = 1
    """Labels of its reward models."""


def uniform(
    shape: tuple[int, ...] | torch.Size,
    generator: torch.Generator | None,
    device: torch.device | str,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Uniform random numbers in [0, 1) on `device`.

    A generator can make numbers only on one device, which may differ from `device`, for example that of a reward.
    The numbers are therefore made on the generator's device and then moved.

    Args:
        shape: shape of the result.
        generator: source of randomness; None for the default generator of `device`.
        device: where the numbers are needed.
        dtype: their type.
    """
    where = device if generator is None else generator.device
    return torch.rand(shape, dtype=dtype, generator=generator, device=where).to(device)
