"""Block 5: what one does to run DPO. Lecture, "DPO Outline"."""

from __future__ import annotations

from slides.schema import Block, Bullets, DerivationPart, Equation, Flow, Slide, Step, T, question

BLOCK = Block(
    key="dpo-outline",
    title=T("DPO, from data to policy", "DPO 流程"),
    lecture=1,
    slides=(
        Slide(
            key="dpo-outline-steps",
            title=T("DPO is two steps: collect pairs once, then fit", "DPO 只有两步：收集一次成对数据，然后拟合"),
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
                            r"people choose: $\mathcal{D} = \{(x, y_w, y_l)\}$",
                            r"由人选择：$\mathcal{D} = \{(x, y_w, y_l)\}$",
                        ),
                    ),
                    Step(
                        T("Fit", "拟合"),
                        T(
                            r"minimise $\mathcal{L}_\text{DPO}(\pi_\theta;\pi_\text{ref})$ at this β",
                            r"在给定的 β 下最小化 $\mathcal{L}_\text{DPO}(\pi_\theta;\pi_\text{ref})$",
                        ),
                        "dpo",
                    ),
                    steps=True,
                ),
                Bullets(
                    T("Nothing is sampled while it trains", "训练时不需要采样"),
                    T(
                        r"If the answers are not $\pi_\text{ref}$'s, fit $\pi_\text{ref}$ to the chosen ones first",
                        r"若回答不来自 $\pi_\text{ref}$，先用被选中的回答微调出 $\pi_\text{ref}$",
                    ),
                    T(
                        "Sum over tokens, keep the end token, switch dropout off",
                        "对词元求和，保留结束符，关掉 dropout",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "The whole outline in one picture. The second point is the paper's advice for public data: bring the "
                "reference close to whoever wrote the answers. The third names the mistakes that run without an error "
                "and still lower the loss.\n\nExpected question: must the reference stay in memory? Its "
                "log-probabilities of the pairs are numbers; compute them once and drop it. A minute and a half.",
                "整个流程，一张图。第二点是论文对公开数据的建议：让参考策略接近写回答的人。第三点列出那些不会报错、"
                "损失照样下降的错误。\n\n常见问题：参考模型要一直放在显存里吗？它对这些回答的对数概率只是一些数，"
                "算一次就可以丢掉它。一分半钟。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, section 4, “DPO outline”",
        ),
        *question(
            "dpo-outline-question",
            T(
                "The labelled answers are another model's. Is π* still the limit?",
                "标注的回答来自别的模型，极限还是 π* 吗？",
            ),
            parts=(
                Equation(r"(y_1, y_2) \sim \mu \;\neq\; \pi_\text{ref}", big=True),
                Bullets(
                    T("Yes, for every μ that compares all answers", "是，只要 μ 会比较到所有回答"),
                    T("No, only for pairs from the reference", "不是，只有来自参考策略的才行"),
                    T("No, it becomes the optimum of μ", "不是，会变成 μ 的最优策略"),
                    ordered=True,
                ),
            ),
            answer=(
                DerivationPart(
                    "dpo-minimum",
                    reasons=(
                        r"一对的两种标注合在一起；$e_y$ 是 $y$ 的 logit 的单位向量；左边是自动微分",
                        r"在 $\pi_\theta = \pi^*$ 处，$p_\theta = p^*$",
                        "对任何 μ 成立：问哪些对只决定噪声，不决定极限",
                    ),
                ),
            ),
            notes=T(
                "This question opens the door to RSO. Let somebody defend the second answer: it is what most papers "
                "suggest. One minute.",
                "这个问题通向 RSO。让一位同学为第二个选项辩护：多数论文给人的印象就是它。一分钟。",
            ),
            answer_notes=T(
                "At π* every term of the gradient is zero by itself, whatever the weights μ: the limit does not depend "
                "on μ, if the policy can get there.\n\nThe noise does, and so does where a policy ends that cannot be π*. "
                "Both are the subject of the second lecture. A minute and a half.",
                "在 π* 处，梯度的每一项本身就是零，与权重 μ 无关：只要策略能到达那里，极限就与 μ 无关。\n\n"
                "噪声与 μ 有关，到不了那里的策略停在何处也与 μ 有关。这两点是第二讲的主题。一分半钟。",
            ),
            answer_title=T("Yes: the pairs decide the noise, not the limit", "是：成对数据决定噪声，不决定极限"),
            minutes=(1.0, 1.5),
        ),
    ),
)
