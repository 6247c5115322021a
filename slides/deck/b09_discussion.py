"""Block 9: the two open questions. Lecture, "Non-static Environment", "Future Direction"."""

from __future__ import annotations

from slides.results import claim, finding, verdict
from slides.schema import Block, Bullets, DerivationPart, ExplorerPart, Slide, T, Text, question

BLOCK = Block(
    key="discussion",
    title=T("Discussion: what moves, and what labels cost", "讨论：什么在变，标注值多少"),
    lecture=2,
    slides=(
        Slide(
            key="discussion-moves",
            title=T("Three things move while we train", "训练期间有三样东西在变"),
            parts=(
                Bullets(
                    T(
                        r"**The policy** leaves the place where $r_\phi$ was fitted",
                        r"**策略**离开了 $r_\phi$ 拟合的地方",
                    ),
                    T(r"**Preferences** drift: $r_t$ is not $r_0$", r"**偏好**在漂移：$r_t$ 不再是 $r_0$"),
                    T("**Prompts** shift: people ask other things", "**提示**在变：人们问别的问题"),
                    steps=True,
                ),
                Text(
                    T(
                        r"The lecture leaves it open. On a finite world $\pi^*_t$ is known at each moment, so the answer "
                        r"can be computed.",
                        r"讲义把它作为开放问题。在有限世界里，每个时刻的 $\pi^*_t$ 都已知，所以答案可以算出来。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "The cited work renewed its preference models and policies about once a week with fresh comparisons. "
                "Ask what made a week right, and not a day or a year.\n\nThe first of the three happens even where "
                "nobody changes his mind: begin with it. A minute and a half.",
                "所引的工作大约每周用新的比较数据更新偏好模型和策略。问：为什么是一周，而不是一天或一年？\n\n"
                "三者中的第一个，即使没有人改变主意也会发生：就从它讲起。一分半钟。",
            ),
            minutes=1.5,
            source="Bai et al. 2022, section 4.5",
        ),
        Slide(
            key="discussion-over-optimisation",
            title=T(
                "Pushed harder, a reward model breaks its promise",
                "越用力优化，奖励模型许诺的越多，兑现的越少",
            ),
            parts=(
                ExplorerPart(
                    "over_optimisation",
                    advice=T(
                        "Lower β: what is promised, what is earned? Then change the model.",
                        "减小 β：许诺多少，赚到多少？再换奖励模型。",
                    ),
                    at={"which": 1},
                ),
            ),
            notes=T(
                "Begin with the model of 250 labels at large β and go left. The promise only rises; gold rises, turns, "
                "and falls. Stop at the turn.\n\nWith 2,000 labels it turns later and falls little. With 60 it does not "
                "turn in this draw: where a model's errors are luck, what it likes best may still be good. Read the "
                "effective samples: far out, few samples carry everything. Two minutes.",
                "从 250 个标注的模型、大的 β 开始往左移。许诺只升不降；金标先升，转折，再降。在转折处停下。\n\n"
                "2000 个标注时转折更晚，降得很少。60 个标注时，在这次抽样里没有转折：当模型的错误只是运气，它最喜欢的回答"
                "可能仍然不错。再读有效样本数：走得远时，少数样本撑起一切。两分钟。",
            ),
            minutes=2.0,
            source="Gao et al. 2023, figure 1",
        ),
        Slide(
            key="discussion-over-optimisation-claim",
            title=T("A broken promise is not yet a fall", "许诺落空，还不等于下降"),
            parts=claim(
                "over-optimisation",
                "bandit",
                paper=T(
                    "the proxy keeps rising, gold turns and falls; more data put it off.",
                    "代理奖励一直上升，金标先升后降；数据越多，转折越晚。",
                ),
                source="Gao et al. 2023, fig. 1",
                found=(
                    finding(
                        "over-optimisation",
                        "bandit",
                        "not supported",
                        "No method turns with {labels_few} or with {labels_many} labels. With more labels the peak of the "
                        "gold reward is later by {peak_shift} in √KL.",
                        "{labels_few} 个标注和 {labels_many} 个标注时都未见转折；标注多时，金标的峰值更晚，√KL 增加 "
                        "{peak_shift}。",
                        conditions=("peak_shift > 0", "fall_best_of_n_3200 ~ 0", "fall_ppo_3200 ~ 0"),
                    ),
                    finding(
                        "over-optimisation",
                        "small",
                        "inconclusive",
                        "DPO's gold reward falls by {fall_dpo_64}, but the proxy is not shown to rise.",
                        "DPO 的金标下降 {fall_dpo_64}，但未见代理奖励上升。",
                        conditions=("fall_dpo_64 > 0", "rise_dpo_64 ~ 0"),
                    ),
                ),
                alt="金标（实线）与代理（虚线）奖励随 √KL 的变化，奖励模型用 50 个标注拟合：虚线远高于实线，实线变平。",
                share=0.45,
            ),
            notes=T(
                "Dashed is promised, solid is earned. The rule asks for both at once: gold falls and the proxy rises, "
                "beyond their intervals.\n\nWhere a reward model's errors know nothing of gold, what it likes best is "
                "still better than most, and gold levels off. It falls where the best-liked answers are worse. A minute "
                "and a half.",
                "虚线是许诺，实线是兑现。规则要求两者同时发生：金标下降，代理上升，且都超出区间。\n\n当奖励模型的错误与金标无关时，"
                "它最喜欢的回答仍比大多数好，金标只是变平。只有它最喜欢的回答反而更差时，金标才下降。一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="discussion-non-static",
            title=T("Old labels are many and stale, new ones few and right", "旧标注多而过时，新标注少而准确"),
            parts=(
                ExplorerPart(
                    "non_static",
                    advice=T("Raise the drift. Which window has the least regret?", "加大漂移：哪个窗口的遗憾最小？"),
                    only=("turn", "window"),
                ),
            ),
            notes=T(
                "Without drift the longest window is best, and fitting once better still: more labels, less noise. "
                "Raise the drift: a long window averages over worlds that are gone.\n\nFind the best window by hand, "
                "then read the formula's below. Notebook 13 derives it: the window shrinks with the cube root of the "
                "drift squared. Two minutes.",
                "没有漂移时窗口越长越好，一次拟合更好：标注多，噪声小。加大漂移：长窗口平均的是已经过去的世界。\n\n"
                "先手动找最佳窗口，再看下面公式给出的值。推导见 13 号笔记本：窗口按漂移平方的立方根缩短。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="discussion-non-static-claim",
            title=T("Retraining pays once preferences turn far enough", "偏好转得够远，重新训练才划算"),
            parts=claim(
                "non-static",
                "bandit",
                paper=T(
                    "weekly renewal improved data and models; no rhythm is derived.",
                    "每周用新反馈更新，数据和模型都有改进；没有推导更新的节奏。",
                ),
                source="Bai et al. 2022, sec. 4.5",
                found=(
                    verdict(
                        "non-static",
                        "bandit",
                        "the preferences turn by at least {} rad over the deployment: there the regret of a round is "
                        "smaller by {}; up to {} rad fitting once is better. With {} times the labels the regret at "
                        "the closed form's best window is {} of the closed form, which is met (within 10%).",
                        "From {0} rad on refitting saves {1} of regret a round; up to {2} rad fitting once is better. Closed form "
                        "met: {4}.",
                        "从 {0} 弧度起，重新拟合使每轮遗憾减少 {1}；{2} 弧度以内，一次拟合更好。与闭式解相符：{4}。",
                    ),
                ),
                alt="每轮平均遗憾随偏好在 24 轮中转过的角度变化，六种策略；点线是闭式解给出的转折点。",
                panels=(1,),
            ),
            notes=T(
                "All strategies spend the same labels. The dotted line is where the closed form says that the sides "
                "change.\n\nAsk for the one quantity a team would have to measure to use this: the rate of drift. The "
                "language model with three seeds decides nothing. A minute and a half.",
                "所有策略花费的标注数相同。点线是闭式解所说的转折点。\n\n问：一个团队要用上它，需要测哪个量？漂移的速度。"
                "三个种子的语言模型得不出结论。一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="discussion-budget",
            title=T(
                "How should a budget of labels be spent?",
                "给定人工标注的预算，如何设计整个训练过程？",
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
                        r"Which pairs? Choose μ: from $\pi_\text{ref}$, from $\pi^*$, or where doubt matters",
                        r"标注哪些对？选择 μ：来自 $\pi_\text{ref}$、来自 $\pi^*$，还是最要紧的不确定之处",
                    ),
                    T("How many demonstrations, in how many rounds?", "多少示范，分几轮？"),
                    T("DPO on the labels, or a reward model first?", "直接用 DPO，还是先训练奖励模型？"),
                    steps=True,
                ),
            ),
            notes=T(
                "The lecture ends with this question. N labels cost a regret of price over N; the price is a trace, "
                "with I(μ) the information of pairs drawn from μ and Σ the covariance of π*. So it is a design "
                "problem: choose μ to make the trace small.\n\nThe best μ depends on the reward, which is what one "
                "wants to learn. Hence active learning. Two and a half minutes.",
                "讲义以这个问题结束。N 个标注留下的遗憾是“价格除以 N”；价格是一个迹，I(μ) 是从 μ 抽取的成对数据的信息量，"
                "Σ 是 π* 的协方差。于是这是一个设计问题：选择 μ，使迹最小。\n\n最优的 μ 依赖于奖励，而奖励正是要学的。"
                "于是需要主动学习。两分半钟。",
            ),
            minutes=2.5,
            source="Lecture, “Future Direction”",
        ),
        Slide(
            key="discussion-budget-explorer",
            title=T("The next label belongs where it changes the policy most", "下一个标注，应放在最能改变策略的地方"),
            parts=(
                ExplorerPart(
                    "annotation_budget",
                    advice=T("Change who stands in the pairs, then add labels.", "换成对数据的来源，再增加标注。"),
                    only=("pairs", "step"),
                    panels=(0, 1),
                ),
            ),
            notes=T(
                "Compare the maps of pairs: the reference spends its labels where answers are frequent, the best "
                "design where they are decisive, and needs about half as many. The active policy begins with "
                "nothing and comes close.\n\nFor your own numbers: `rlhf-lab budget` prints a plan. Two minutes.",
                "比较成对数据的分布：参考策略把标注花在常见的回答上，最优设计花在有决定作用的地方，所需标注约为一半。"
                "主动策略从零开始，却能接近它。\n\n想代入自己的数字：`rlhf-lab budget` 会打印一份方案。两分钟。",
            ),
            minutes=2.0,
        ),
        *question(
            "discussion-question",
            T("A thousand labels are left. Where do they go?", "还剩一千个标注，用在哪里？"),
            parts=(
                Bullets(
                    T("All now, on pairs from π_ref", "现在全部用在来自 π_ref 的成对数据上"),
                    T("All now, on pairs from what looks like π*", "现在全部用在看起来像 π* 的策略的成对数据上"),
                    T(
                        "In rounds, each where the last one leaves most doubt",
                        "分轮进行，每轮放在上一轮之后最不确定的地方",
                    ),
                    T("Keep half: a label ages", "留一半：标注会过期"),
                    ordered=True,
                ),
            ),
            answer=claim(
                "annotation-budget",
                "bandit",
                paper=T(
                    "left open by the lecture; RSO draws pairs from an estimate of π*.",
                    "讲义把它留作开放问题；RSO 从对 π* 的估计中抽取成对数据。",
                ),
                source="Liu et al. 2024",
                found=(
                    finding(
                        "annotation-budget",
                        "bandit",
                        "supported",
                        "N · regret relative to its limit is {limit_reference} for π_ref, {limit_optimal} for π* and "
                        "{limit_design} for the best design. At {labels} labels the active policy needs {ratio_active} "
                        "times the labels of the best design, and π_ref {ratio_reference} times.",
                        "N · 遗憾与极限之比：π_ref {limit_reference}，π* {limit_optimal}，最优设计 {limit_design}。{labels} 个标注时，"
                        "主动标注所需为最优设计的 {ratio_active} 倍，π_ref 为 {ratio_reference} 倍。",
                        conditions=("limit_reference ~ 1", "ratio_active < 1.25", "ratio_reference > ratio_active"),
                    ),
                ),
                alt="各种成对数据来源所需标注数，以最优设计为单位，随标注数变化：来自 π* 的越来越贵，主动标注接近 1。",
                panels=(1,),
                share=0.45,
            ),
            notes=T(
                "No single right answer. Let four people defend the four, with the pictures of this block. A minute "
                "and a half.",
                "没有唯一答案。请四位同学用本节的图分别为四个选项辩护。一分半钟。",
            ),
            answer_notes=T(
                "If nothing moves: in rounds, by doubt that matters. Pairs from the optimum become the dearest, "
                "since it hardly gives what must be ruled out. If preferences drift, keep labels for later. If you know neither, a "
                "pilot of fifty tells the spread of the reward. On the language model six designs at equal money could "
                "not be told apart.\n\nEnd on the line of the title slide: π* is one line, and this course was about "
                "how near one gets, and how one knows. Two and a half minutes.",
                "如果什么都不变：分轮，标注对策略要紧的不确定之处。来自最优策略的成对数据最贵，因为它几乎不给出需要排除的回答。"
                "如果偏好漂移：留一些以后用。如果都不知道：先用五十个标注试点，估计奖励的离散程度。在语言模型上，同样花费的六种设计"
                "分不出高下。\n\n回到标题页那一行结束：π* 只有一行，这门课讲的是能离它多近，以及如何知道。两分半钟。",
            ),
            answer_title=T(
                "If nothing moves: in rounds, where doubt matters", "如果什么都不变：分轮，标注最要紧的不确定之处"
            ),
            minutes=(1.5, 2.5),
        ),
    ),
)
