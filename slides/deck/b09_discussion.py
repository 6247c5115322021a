"""Block 9: the two open questions. Sections of the lecture: "Non-static Environment", "Future Direction"."""

from __future__ import annotations

from slides.results import claim, finding
from slides.schema import Block, Bullets, DerivationPart, ExplorerPart, Slide, T, Text, question

BLOCK = Block(
    key="discussion",
    title=T(
        "Discussion: changing environments and the label budget",
        "讨论：变化的环境与标注预算",
    ),
    lecture=2,
    slides=(
        Slide(
            key="discussion-moves",
            title=T(
                "The policy, the preferences and the prompts change over time",
                "策略、偏好和提示都随时间变化",
            ),
            parts=(
                Bullets(
                    T(
                        r"**The policy** moves away from the data on which $r_\phi$ was fitted",
                        r"**策略**逐渐离开 $r_\phi$ 的训练数据",
                    ),
                    T(
                        "**The preferences** drift, so $r_t$ differs from $r_0$",
                        "**偏好**在漂移，$r_t$ 不再等于 $r_0$",
                    ),
                    T(
                        "**The prompts** shift, because people ask other questions",
                        "**提示**在变，因为人们问别的问题",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        r"The lecture leaves open what to do. In a finite world $\pi^*_t$ is known at each time, so the "
                        "answer can be computed.",
                        r"讲义没有回答该怎么办。在有限世界里，每个时刻的 $\pi^*_t$ 都已知，所以答案可以算出来。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "The cited authors updated their preference models and policies about once a week with new "
                "comparisons. Ask why a week may be a better interval than a day or a year.\n\n"
                "The first of the three changes happens even if no preference changes, so this block begins with "
                "it.",
                "所引的工作大约每周用新的比较数据更新偏好模型和策略。问：间隔为什么是一周，而不是一天或一年？\n\n"
                "三者中的第一个，即使偏好不变也会发生，所以先讲它。",
            ),
            minutes=1.5,
            source="Bai et al. 2022, section 4.5",
        ),
        Slide(
            key="discussion-over-optimisation",
            title=T(
                "Strong optimisation raises the proxy, not the gold reward",
                "优化过强时，代理奖励上升，真实奖励并不上升",
            ),
            parts=(
                ExplorerPart(
                    "over_optimisation",
                    advice=T(
                        "Lower β. How do the proxy and the gold reward change? Then change the model.",
                        "减小 β：代理奖励和真实奖励如何变化？再换奖励模型。",
                    ),
                    at={"which": 1},
                ),
            ),
            notes=T(
                "Begin with the reward model of 250 labels and a large β, and then decrease β. The proxy reward "
                "only rises. The gold reward rises, reaches a maximum and falls. Stop at the maximum.\n\n"
                "With 2,000 labels the maximum comes later and the fall is small. With 60 labels there is no "
                "fall in this sample. If the errors of the reward model are random, the responses with a high "
                "proxy reward may still be good. Also read the effective sample size. At a large KL a few "
                "samples dominate the estimate.",
                "从 250 个标注的奖励模型、大的 β 开始，逐步减小 β。代理奖励只升不降；真实奖励先升，到达最大值，再"
                "降。在最大值处停下。\n\n"
                "2000 个标注时，最大值出现更晚，下降很少。60 个标注时，在这次抽样里没有下降：若奖励模型的误差是随"
                "机的，代理奖励高的回答可能仍然不错。再读有效样本数：KL 很大时，少数样本主导了估计。",
            ),
            minutes=2.0,
            source="Gao et al. 2023, figure 1",
        ),
        Slide(
            key="discussion-over-optimisation-claim",
            title=T(
                "The proxy reward is far too high, but gold need not fall",
                "代理奖励高估很多，但真实奖励不一定下降",
            ),
            parts=claim(
                "over-optimisation",
                "bandit",
                paper=T(
                    "The proxy reward rises throughout. The gold reward rises and then falls, later with more data.",
                    "代理奖励一直上升，真实奖励先升后降；数据越多，下降越晚。",
                ),
                source="Gao et al. 2023, fig. 1",
                found=(
                    finding(
                        "over-optimisation",
                        "bandit",
                        "not supported",
                        "With {labels_few} labels the gold reward of best-of-n falls by {fall_best_of_n_extrapolating_50}, so it "
                        "stays high. PPO's fall is undecided: {fall_ppo_extrapolating_50}.",
                        "{labels_few} 个标注时，best-of-n 的真实奖励下降 {fall_best_of_n_extrapolating_50}，即保持在高处；PPO "
                        "是否下降尚无定论（{fall_ppo_extrapolating_50}）。",
                        conditions=("fall_best_of_n_extrapolating_50 < 0", "fall_ppo_extrapolating_50 ~ 0"),
                    ),
                    finding(
                        "over-optimisation",
                        "tree",
                        "not supported",
                        "The fall is less than a tenth of what the gold reward has gained.",
                        "下降不到真实奖励增益的十分之一。",
                        conditions=(
                            "fall_best_of_n_extrapolating_500 < margin_best_of_n_extrapolating_500",
                            "fall_ppo_extrapolating_500 < margin_ppo_extrapolating_500",
                        ),
                    ),
                ),
                alt="真实奖励（实线）与代理奖励（虚线）随 √KL 的变化，线性奖励模型用 50 个标注拟合：虚线远高于实线，实线变平。",
                share=0.45,
            ),
            notes=T(
                "Dashed lines show the proxy reward and solid lines the gold reward. The gold reward saturates. "
                "The reward model is linear in features, so it extrapolates. By the decision rule the claim is "
                "true if the gold reward falls while the proxy reward rises, both by more than their intervals.\n\n"
                "If the errors of the reward model are independent of the gold reward, the responses with a high "
                "proxy reward are still better than most, and the gold reward levels off. It falls only if these "
                "responses are worse. This happens on the language model, where the gold reward of best-of-n falls "
                "while the proxy reward rises.",
                "虚线是代理奖励，实线是真实奖励。真实奖励会饱和；奖励模型对特征是线性的，会外推。判定规则要求真实"
                "奖励下降的同时代理奖励上升，且都超出区间。\n\n"
                "若奖励模型的误差与真实奖励无关，代理奖励高的回答仍比大多数好，真实奖励只是趋平。只有这些回答反而"
                "更差时，真实奖励才下降。语言模型上正是如此：best-of-n 的真实奖励下降，而代理奖励上升。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="discussion-non-static",
            title=T(
                "A long window has less noise but more outdated labels",
                "窗口长，噪声小，但过时的标注多",
            ),
            parts=(
                ExplorerPart(
                    "non_static",
                    advice=T(
                        "Increase the drift. Which window has the minimum regret?",
                        "加大漂移：哪个窗口的后悔值最小？",
                    ),
                    only=("turn", "window"),
                ),
            ),
            notes=T(
                "Without drift the longest window is best. A single fit to all labels is even better, because "
                "more labels mean less noise. Then increase the drift. A long window now averages over rewards "
                "that are no longer valid.\n\n"
                "Find the best window by hand, and compare it with the formula below. Notebook 13 derives that "
                "the best window is proportional to the drift to the power −2/3.",
                "没有漂移时窗口越长越好，用全部标注拟合一次更好，因为标注多，噪声小。再加大漂移：长窗口平均的是已"
                "经失效的奖励。\n\n"
                "先手动找最佳窗口，再与下面的公式比较。13 号笔记本推导出：最佳窗口与漂移的 −2/3 次方成正比。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="discussion-non-static-claim",
            title=T(
                "Retraining lowers the regret if preferences drift enough",
                "偏好漂移够大时，重新训练才降低后悔值",
            ),
            parts=claim(
                "non-static",
                "bandit",
                paper=T(
                    "Weekly updates improved the data and the models. No interval is derived.",
                    "每周更新使数据和模型都有改进，但没有推导更新的间隔。",
                ),
                source="Bai et al. 2022, sec. 4.5",
                found=(
                    finding(
                        "non-static",
                        "bandit",
                        "partly supported",
                        "From a turn of {turn_from:1} rad on, refitting lowers the regret. If the policy itself moves, labels of "
                        "its responses lower it by {policy_narrow_saving} with a small reward model. With a full one "
                        "the saving is {policy_saving}.",
                        "偏好转过 {turn_from:1} 弧度起，重新拟合能降低后悔值。策略自身变化时，标注它的回答使后悔值减少 "
                        "{policy_narrow_saving}（小奖励模型）；奖励模型完整时，减少量是 {policy_saving}。",
                        conditions=("saving_from > 0", "policy_saving < 0", "policy_narrow_saving > 0"),
                    ),
                ),
                alt="每轮平均后悔值随偏好在 24 轮中转过的角度变化，六种策略；点线是闭式解给出的转折点。",
                panels=(1,),
            ),
            notes=T(
                "All strategies use the same number of labels. The dotted line is the drift above which, by the "
                "closed form, retraining is better than fitting once.\n\n"
                "Ask which quantity a team has to measure before it can use this result. It is the rate of "
                "drift. On the language model both cases are undecided.",
                "所有策略使用的标注数相同。点线是闭式解给出的漂移，超过它时，重新训练优于一次拟合。\n\n"
                "问：一个团队要用上这个结果，先要测哪个量？是漂移的速度。在语言模型上，两种情形都尚无定论。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="discussion-budget",
            title=T(
                "For large N the regret is φ(μ)/N, and we can choose μ",
                "N 大时后悔值是 φ(μ)/N，而 μ 可以选择",
            ),
            parts=(
                DerivationPart(
                    "label-price",
                    reasons=(
                        r"$\sqrt N(\hat r - r) \to \mathcal{N}(0, I(\mu)^+)$，代入二次型；$z$ 为标准正态",
                        r"$\mathbb{E}[z^\top B z] = \mathrm{tr}\,B$，迹内可以轮换",
                    ),
                ),
                Bullets(
                    T(
                        r"Which pairs should be labelled? μ can be $\pi_\text{ref}$, $\pi^*$ or the optimal design",
                        r"标注哪些对？μ 可以是 $\pi_\text{ref}$、$\pi^*$ 或最优设计",
                    ),
                    T(
                        "How many rounds and demonstrations are best, and does a reward model help?",
                        "多少轮、多少示范最好？奖励模型有用吗？",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "The lecture ends with this question: how should a budget of labels be used? For large N the "
                "regret is a constant φ(μ) divided by N. The constant is a trace, where I(μ) is the information "
                "in pairs sampled from μ and Σ is the covariance under π*. Choosing μ to minimise this trace is "
                "a problem of experimental design.\n\n"
                "The optimal μ depends on the reward, which is not known before the labels are collected. This "
                "leads to active learning.",
                "讲义以这个问题结束：给定标注预算，如何设计训练过程？N 很大时，后悔值等于常数 φ(μ) 除以 N；这个常"
                "数是一个迹，其中 I(μ) 是从 μ 抽取的成对数据的信息量，Σ 是 π* 下的协方差。选择 μ 使迹最小，是一个"
                "实验设计问题。\n\n"
                "最优的 μ 依赖于奖励，而奖励在收集标注之前并不知道。于是需要主动学习。",
            ),
            minutes=2.5,
            source="Lecture, “Future Direction”",
        ),
        Slide(
            key="discussion-budget-explorer",
            title=T(
                "Here the optimal design needs half as many labels as π_ref",
                "在这里，最优设计所需标注约为 π_ref 的一半",
            ),
            parts=(
                ExplorerPart(
                    "annotation_budget",
                    advice=T(
                        "Change the source of the pairs, then add labels.",
                        "换成对数据的来源，再增加标注。",
                    ),
                    only=("pairs", "step"),
                    panels=(0, 1),
                ),
            ),
            notes=T(
                "Compare the distributions of pairs. Pairs from the reference policy concentrate on frequent "
                "responses. The optimal design concentrates on the pairs that determine the policy, and it needs "
                "about half as many labels. The active policy begins without knowledge of the reward and comes "
                "close to the optimal design.\n\n"
                "The command `rlhf-lab budget` prints a plan for your own data.",
                "比较成对数据的分布：来自参考策略的标注集中在常见的回答上，最优设计集中在对策略起决定作用的对上，"
                "所需标注约为一半。主动策略开始时不了解奖励，却能接近最优设计。\n\n"
                "命令 `rlhf-lab budget` 会为自己的数据打印一份方案。",
            ),
            minutes=2.0,
        ),
        *question(
            "discussion-question",
            T(
                "A thousand labels are left. How should they be used?",
                "还剩一千个标注，应如何使用？",
            ),
            parts=(
                Bullets(
                    T(
                        "Use all of them now, on pairs from π_ref",
                        "现在全部用在来自 π_ref 的成对数据上",
                    ),
                    T(
                        "Use all of them now, on pairs from an estimate of π*",
                        "现在全部用在来自 π* 的估计的成对数据上",
                    ),
                    T(
                        "Label in rounds, each time the most uncertain pairs",
                        "分轮进行，每轮标注当前最不确定的对",
                    ),
                    T(
                        "Save half for later, because labels become outdated",
                        "留一半以后用，因为标注会过期",
                    ),
                    ordered=True,
                ),
            ),
            answer=claim(
                "annotation-budget",
                "bandit",
                paper=T(
                    "The lecture leaves the question open. RSO samples pairs from an estimate of π*.",
                    "讲义把它留作开放问题；RSO 从对 π* 的估计中采样成对数据。",
                ),
                source="Liu et al. 2024",
                found=(
                    finding(
                        "annotation-budget",
                        "bandit",
                        "answered",
                        "The closed form predicts the regret: N · regret is {limit_design} times its limit for the best design. "
                        "At {labels} labels the active policy needs {ratio_active} times as many labels as the best "
                        "design, and π_ref {ratio_reference} times.",
                        "闭式解预测了后悔值：采用最优设计时，N · 后悔值是极限的 {limit_design} 倍。{labels} 个标注时，"
                        "主动标注所需为最优设计的 {ratio_active} 倍，π_ref 为 {ratio_reference} 倍。",
                        conditions=("limit_design ~ 1", "ratio_active < 1.25", "ratio_reference > ratio_active"),
                    ),
                ),
                alt="各种成对数据来源所需标注数，以最优设计为单位，随标注数变化：来自 π* 的越来越多，主动标注接近 1。",
                panels=(1,),
                share=0.45,
            ),
            notes=T(
                "There is no single correct answer. Let four students defend the four options with the pictures "
                "of this block.",
                "没有唯一答案。请四位同学用本节的图分别为四个选项辩护。",
            ),
            answer_notes=T(
                "If nothing changes, label in rounds, and choose the pairs whose uncertainty matters for the "
                "policy. Pairs from the optimal policy need the most labels, because it rarely gives the "
                "responses that must be ruled out. If preferences drift, save some labels for later. If you know "
                "neither the reward nor the drift, first label fifty pairs to estimate the spread of the reward. "
                "On the language model the three comparisons of strategies at equal cost are undecided.\n\n"
                "Return to the formula of the title slide at the end. The course showed how close each method "
                "comes to π*, and how this is measured.",
                "如果什么都不变，就分轮标注，选择其不确定性对策略最重要的对。来自最优策略的成对数据所需标注最多，"
                "因为它很少给出需要排除的回答。如果偏好漂移，留一些标注以后用。如果奖励和漂移都不知道，先标注五十"
                "对，估计奖励的离散程度。在语言模型上，花费相同时的三项比较都尚无定论。\n\n"
                "最后回到标题页的公式：这门课讲的是各种方法离 π* 有多近，以及如何测量。",
            ),
            answer_title=T(
                "Without drift, label in rounds the pairs that matter most",
                "没有漂移时，分轮标注最重要的对",
            ),
            minutes=(1.5, 2.5),
        ),
    ),
)
