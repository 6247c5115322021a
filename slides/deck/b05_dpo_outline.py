"""Block 5: what one does to run DPO. Lecture, "DPO Outline"."""

from __future__ import annotations

from slides.format import Block, Bullets, Flow, Slide, Step, T, Table, Text, question

BLOCK = Block(
    key="dpo-outline",
    title=T("DPO, from data to policy", "DPO 流程"),
    lecture=1,
    slides=(
        Slide(
            key="dpo-outline-steps",
            title=T("Two steps: collect pairs once, then fit", "两步：先收集一次成对数据，再拟合"),
            parts=(
                Flow(
                    Step(
                        T("Ask", "提问"),
                        T(
                            r"$y_1, y_2 \sim \pi_\text{ref}(\cdot\mid x)$",
                            r"$y_1, y_2 \sim \pi_\text{ref}(\cdot\mid x)$",
                        ),
                        "reference",
                    ),
                    Step(
                        T("Label", "标注"),
                        T(
                            r"people say which: $\mathcal{D} = \{(x, y_w, y_l)\}$",
                            r"人来选择：$\mathcal{D} = \{(x, y_w, y_l)\}$",
                        ),
                    ),
                    Step(
                        T("Fit", "拟合"),
                        T(
                            r"minimise $\mathcal{L}_\text{DPO}(\pi_\theta;\pi_\text{ref})$",
                            r"最小化 $\mathcal{L}_\text{DPO}(\pi_\theta;\pi_\text{ref})$",
                        ),
                        "dpo",
                    ),
                    steps=True,
                ),
                Bullets(
                    T("Nothing is sampled while it trains", "训练时不需要采样"),
                    T(
                        r"If the labelled answers are not $\pi_\text{ref}$'s, first fit $\pi_\text{ref}$ to the chosen ones",
                        r"若标注的回答不来自 $\pi_\text{ref}$，先用被选中的回答微调出 $\pi_\text{ref}$",
                    ),
                    T("β is the only knob of the objective", "目标里唯一的旋钮是 β"),
                    steps=True,
                ),
            ),
            notes=T(
                "This is the deck's outline in one picture. The second bullet is the paper's advice for public data: "
                "make the reference close to whoever wrote the answers.\n\nExpected question: do we keep the "
                "reference in memory? Its log-probabilities of the pairs are numbers; compute them once and drop it.",
                "这就是讲义中的流程，一张图。第二条是论文对公开数据的建议：让参考策略接近写回答的人。\n\n"
                "常见问题：参考模型要一直放在显存里吗？它对这些回答的对数概率只是一些数，算一次就可以丢掉它。",
            ),
            minutes=3.0,
            source="Rafailov et al. 2023, section 4, “DPO outline”",
        ),
        Slide(
            key="dpo-traps",
            title=T("Four mistakes that run without an error", "四个不会报错的错误"),
            parts=(
                Table(
                    (T("in code", "代码里"), T("what is trained instead", "实际训练的是")),
                    (
                        (
                            T("mean over tokens, not sum", "对词元取平均而非求和"),
                            T("another target for every length", "每种长度各有一个目标"),
                        ),
                        (
                            T("end token left out", "漏掉结束符"),
                            T("a policy that does not know when to stop", "不知道何时停下的策略"),
                        ),
                        (
                            T("mask made from pad = end token", "用 pad = 结束符 生成掩码"),
                            T("the same, silently", "同上，而且悄无声息"),
                        ),
                        (T("dropout left on", "没有关 dropout"), T("noise in every log-ratio", "每个对数比里都有噪声")),
                    ),
                    T("All four lower the loss", "四种情形下损失都会下降"),
                ),
            ),
            notes=T(
                "Each of these is a test in the package, and each appears in somebody's public code.\n\nThe first is "
                "the subject of notebook 06: the mean's optimum is a policy in which a long answer's reward counts "
                "more.",
                "这四条在我们的代码包里都有测试，也都在某个公开代码里出现过。\n\n第一条是 06 号笔记本的内容：取平均时，"
                "最优策略里长回答的奖励被放大。",
            ),
            minutes=2.5,
        ),
        *question(
            "dpo-outline-question",
            T("The loss is near zero after an hour. Are you glad?", "一小时后损失接近零，你高兴吗？"),
            parts=(
                Bullets(
                    T("Yes: the labels are fitted", "高兴：标注拟合好了"),
                    T("No: the entropy of the labels is missing", "不高兴：标注的熵不见了"),
                    T("It depends on β", "取决于 β"),
                    ordered=True,
                ),
            ),
            answer=(
                Bullets(
                    T(
                        r"At $\pi^*$ the loss is the labels' entropy, and people do disagree",
                        r"在 $\pi^*$ 处损失等于标注的熵，而人确实会有分歧",
                    ),
                    T("A loss below it has learned single coins by heart", "低于它的损失是在背硬币的正反面"),
                    T(
                        "Held-out pairs show it: their loss turns up while the training loss still falls",
                        "看留出的成对数据：训练损失还在下降，它却已经回升",
                    ),
                ),
                Text(
                    T(
                        "Notebook 10 shows it on the token tree, where the distance to π* is exact.",
                        "10 号笔记本在词元树上展示了这一点，那里与 π* 的距离是精确的。",
                    ),
                    quiet=True,
                ),
            ),
            notes=T(
                "A practical question with a theoretical answer. Remind them of the likelihood slide: entropy plus KL.",
                "一个实际问题，理论给出回答。提醒他们回想似然那一页：熵加 KL。",
            ),
            answer_notes=T(
                "If labels were certain, the loss could go to zero, and then DPO has no minimum at all: the margin "
                "runs to infinity. IPO and cDPO stop it.",
                "如果标注毫无噪声，损失可以到零，但那时 DPO 根本没有最小点：差距会跑向无穷。IPO 和 cDPO 能让它停下。",
            ),
            answer_title=T("No: below the labels' entropy there is only memory", "不：低于标注的熵，就只剩记忆"),
        ),
    ),
)
