"""Block 9: the two open questions. Lecture, "Non-static Environment", "Future Direction"."""

from __future__ import annotations

from slides.format import Block, Bullets, Claim, Equation, Explorer, Flow, Slide, Step, T, Text, question

BLOCK = Block(
    key="discussion",
    title=T("Discussion: what moves, and what labels cost", "讨论：什么在变，标注值多少"),
    lecture=2,
    slides=(
        Slide(
            key="discussion-moves",
            title=T("Three things move while we train", "训练期间有三样东西在变"),
            parts=(
                Flow(
                    Step(T("preferences drift", "偏好漂移"), T(r"$r_t$ is not $r_0$", r"$r_t$ 不再是 $r_0$"), "reward"),
                    Step(T("prompts shift", "提示变化"), T("people ask other things", "人们问别的问题")),
                    Step(
                        T("the policy leaves", "策略走远"),
                        T(r"from where $r_\phi$ was fitted", r"离开了 $r_\phi$ 拟合的地方"),
                        "policy",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        "The lecture asks it as an open question. On a finite world π*_t is known at each moment, so the answer can be computed.",
                        "讲义把它作为开放问题。在有限世界里，每个时刻的 π*_t 都已知，所以答案可以算出来。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "The cited work renewed its reward models and policies about every week with fresh comparisons. Ask "
                "what made a week right, and not a day or a year.",
                "所引的工作大约每周用新的比较数据更新奖励模型和策略。问：为什么是一周，而不是一天或一年？",
            ),
            minutes=3.0,
            source="Bai et al. 2022, section 4.5",
        ),
        Slide(
            key="discussion-non-static",
            title=T("Old labels are many and stale, new ones few and right", "旧标注多而过时，新标注少而准确"),
            parts=(
                Explorer(
                    "non_static",
                    advice=T("Raise the drift. Which window has the least regret?", "加大漂移：哪个窗口的遗憾最小？"),
                ),
            ),
            notes=T(
                "Without drift the longest window is best: more labels, less noise. Raise the drift: a long window "
                "averages over worlds that are gone.\n\nThe best window balances the two; notebook 13 derives it.",
                "没有漂移时窗口越长越好：标注多，噪声小。加大漂移：长窗口平均的是已经过去的世界。\n\n"
                "最佳窗口在两者间平衡；推导见 13 号笔记本。",
            ),
            minutes=4.0,
        ),
        Slide(
            key="discussion-non-static-found",
            title=T("When does retraining pay?", "何时值得重新训练？"),
            parts=(
                Claim(
                    "non-static",
                    rung="bandit",
                    paper=T(
                        "Weekly renewal improved both data and models; no rhythm was derived",
                        "每周更新同时改进了数据和模型；没有推导更新的节奏",
                    ),
                    source="Bai et al. 2022, section 4.5",
                    alt="老虎机世界中离线、重新拟合与在线策略的遗憾随时间和漂移的变化。",
                    found="按事先写好的规则，判定为：{outcome}。",
                ),
            ),
            notes=T(
                "Read the sentence under the picture aloud, with its numbers. Then ask for the one quantity that a "
                "team would have to measure to use it: the rate of drift.",
                "把图下那句话连同数字念出来。然后问：一个团队要用上它，需要测哪个量？漂移的速度。",
            ),
            minutes=3.0,
        ),
        Slide(
            key="discussion-budget",
            title=T(
                "Given a budget of labels, how should all of training be designed?",
                "给定人工标注的预算，如何设计整个训练过程？",
            ),
            parts=(
                Equation(
                    r"N\cdot\mathbb{E}\big[J(\pi^*) - J(\hat\pi)\big] \;\longrightarrow\; \frac{1}{2\beta}\,\mathrm{tr}\big(\Sigma_{\pi^*}\,I(\mu)^+\big)",
                    big=True,
                ),
                Bullets(
                    T(
                        "How many demonstrations, how many comparisons, in how many rounds?",
                        "多少示范、多少比较、分几轮？",
                    ),
                    T(
                        "Which pairs: from π_ref, from π*, by the best design, by what has been learned so far?",
                        "标注哪些对：来自 π_ref、来自 π*、按最优设计，还是按目前所学？",
                    ),
                    T("DPO on the labels, or a reward model first?", "直接用 DPO，还是先训练奖励模型？"),
                    steps=True,
                ),
            ),
            notes=T(
                "The deck ends with this sentence. The formula turns it into a design problem: choose μ, the "
                "distribution over pairs, to make the trace small.\n\nThe best μ depends on the reward, which is what "
                "one wants to learn. Hence active learning.",
                "讲义以这句话结束。公式把它变成设计问题：选择成对数据的分布 μ，使迹最小。\n\n"
                "最优的 μ 依赖于奖励，而奖励正是要学的。于是需要主动学习。",
            ),
            minutes=3.0,
            source="Lecture, “Future Direction”",
        ),
        Slide(
            key="discussion-budget-explorer",
            title=T("Where the next label teaches most", "下一个标注放在哪里最有用"),
            parts=(
                Explorer(
                    "annotation_budget",
                    advice=T("Lower β, and change the source of pairs.", "减小 β，再换成对数据的来源。"),
                ),
            ),
            notes=T(
                "Compare the map of pairs: the reference spends its labels where answers are frequent, the best design "
                "where they are decisive.",
                "比较成对数据的分布图：参考策略把标注花在常见的回答上，最优设计花在有决定作用的地方。",
            ),
            minutes=3.5,
        ),
        Slide(
            key="discussion-budget-found",
            title=T("An active labeller comes close to the best design", "主动标注能接近最优设计"),
            parts=(
                Claim(
                    "annotation-budget",
                    rung="bandit",
                    paper=T(
                        "An open question in the lecture: no number to compare with", "讲义中的开放问题：没有可比的数字"
                    ),
                    source="Lecture, “Future Direction”",
                    alt="老虎机上不同成对数据来源的遗憾随标注数的变化，与闭式极限比较。",
                    found="按事先写好的规则，判定为：{outcome}。",
                ),
            ),
            notes=T(
                "The dashed lines are the closed form: simulation has to meet them as N grows, or one of the two is "
                "wrong.\n\nFor your own numbers: `rlhf-lab budget` prints a plan.",
                "虚线是闭式极限：N 增大时模拟必须与之相合，否则两者之一有错。\n\n"
                "想代入自己的数字：`rlhf-lab budget` 会打印一份方案。",
            ),
            minutes=3.0,
        ),
        *question(
            "discussion-question",
            T("A thousand labels are left. Where do they go?", "还剩一千个标注，用在哪里？"),
            parts=(
                Bullets(
                    T("All now, on pairs from π_ref", "现在全部用在来自 π_ref 的成对数据上"),
                    T("Half now, half after the policy has moved", "一半现在用，一半等策略移动后再用"),
                    T(
                        "In rounds, each where the last one leaves most doubt",
                        "分轮进行，每轮放在上一轮之后最不确定的地方",
                    ),
                    ordered=True,
                ),
            ),
            answer=(
                Bullets(
                    T(
                        "If nothing moves: in rounds, by doubt that matters to the policy",
                        "如果什么都不变：分轮，按对策略重要的不确定性",
                    ),
                    T(
                        "If preferences drift: keep some for later, a label ages",
                        "如果偏好漂移：留一些以后用，标注会过期",
                    ),
                    T(
                        "If you know neither: a pilot of fifty tells you the spread of the reward",
                        "如果都不知道：先用五十个标注试点，估计奖励的离散程度",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        "And then measure: regret, with its interval.",
                        "然后去测量：遗憾，连同它的区间。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "The last question has no single right answer. Let three people defend the three, with the pictures "
                "of this block.",
                "最后一个问题没有唯一答案。请三位同学用本节的图分别为三个选项辩护。",
            ),
            answer_notes=T(
                "End on the line of the title slide: π* is one line, and this course was about how near one gets, and "
                "how one knows.",
                "回到标题页那一行结束：π* 只有一行，这门课讲的是能离它多近，以及如何知道。",
            ),
            answer_title=T("It depends on what moves, and that can be measured", "取决于什么在变，而这可以测量"),
        ),
    ),
)
