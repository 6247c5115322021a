"""Evaluation of policies: exactly in finite worlds, and from samples, with standard errors, elsewhere.

exact                  E_π[r], KL, J and regret in a finite world
sampled                the same numbers from samples, with standard errors over prompts
judges                 which of two texts is better, by a gold reward, a reward model or a model behind a URL
win_rate               how often the texts of one policy are preferred to those of another
language_model_report  a report on a language model: rewards, win rates, KL, length, diversity
reward_report          a report on a reward model or ranker: accuracy, calibration, accuracy by length difference
frontier               reward against KL, from samples
importance             the distance to π* from samples, and whether the estimate can be trusted
"""

from rlhf_lab.evaluation.exact import Exact, evaluate
from rlhf_lab.evaluation.frontier import Point, Tilted, points, tilted_frontier
from rlhf_lab.evaluation.importance import Distance, Draws, distance, distance_to_optimal
from rlhf_lab.evaluation.judges import EndpointJudge, GoldJudge, Judge, RewardJudge
from rlhf_lab.evaluation.language_model_report import TextReport, text_report
from rlhf_lab.evaluation.reward_report import RewardReport, reward_report
from rlhf_lab.evaluation.sampled import Estimate, Sampled, estimate, mean_interval
from rlhf_lab.evaluation.win_rate import WinRate, win_rate

__all__ = [
    "Distance",
    "Draws",
    "EndpointJudge",
    "Estimate",
    "Exact",
    "GoldJudge",
    "Judge",
    "Point",
    "RewardJudge",
    "RewardReport",
    "Sampled",
    "TextReport",
    "Tilted",
    "WinRate",
    "distance",
    "distance_to_optimal",
    "estimate",
    "evaluate",
    "mean_interval",
    "points",
    "reward_report",
    "text_report",
    "tilted_frontier",
    "win_rate",
]
