"""Block 5: the steps of DPO. Section of the lecture: "DPO Outline"."""

from __future__ import annotations

from slides.schema import Block, Bullets, DerivationPart, Equation, Flow, Slide, Step, T, question

BLOCK = Block(
    key="dpo-outline",
    title=T(
        "DPO, from data to policy",
        "DPO：从数据到策略",
    ),
    lecture=1,
    slides=(
        Slide(
            key="dpo-outline-steps",
            title=T(
                "DPO has two steps: collect labelled pairs once, then fit",
                "DPO 分两步：先收集一次成对数据，再拟合",
            ),
            parts=(
                Flow(
                    Step(
                        T(
                            "Sample",
                            "采样",
                        ),
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
                    T(
                        "No sampling is needed during training",
                        "训练时不需要采样",
                    ),
                    T(
                        r"If the answers do not come from $\pi_\text{ref}$, first fine-tune $\pi_\text{ref}$ on the "
                        "chosen ones",
                        r"若回答不来自 $\pi_\text{ref}$，先用被选回答微调 $\pi_\text{ref}$",
                    ),
                    T(
                        "Sum over tokens, include the end token, switch dropout off",
                        "对词元求和，包含结束符，关闭 dropout",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "This slide shows the whole procedure. The second bullet is the paper's advice for public data: "
                "the reference policy should be close to the policy that wrote the answers. The third names "
                "mistakes that cause no error message and still lower the loss.\n\n"
                "Expected question: must the reference model stay in memory? No. Its log-probabilities of the "
                "pairs can be computed once and stored.",
                "这一页是整个流程。第二点是论文对公开数据的建议：参考策略应接近写出这些回答的策略。第三点列出那些"
                "不会报错、损失照样下降的错误。\n\n"
                "常见问题：参考模型要一直放在显存里吗？不用。它对这些回答的对数概率可以只算一次并保存下来。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, section 4, “DPO outline”",
        ),
        *question(
            "dpo-outline-question",
            T(
                "The labelled answers come from another model. Does DPO still converge to π*?",
                "标注的回答来自别的模型，DPO 还会收敛到 π* 吗？",
            ),
            parts=(
                Equation(r"(y_1, y_2) \sim \mu \;\neq\; \pi_\text{ref}", big=True),
                Bullets(
                    T(
                        "Yes, for every μ that compares all answers",
                        "会，只要 μ 会比较到所有回答",
                    ),
                    T(
                        "No, only for pairs from the reference policy",
                        "不会，只有来自参考策略的才行",
                    ),
                    T(
                        "No, it converges to the optimum of μ",
                        "不会，会收敛到 μ 的最优策略",
                    ),
                    ordered=True,
                ),
            ),
            answer=(
                DerivationPart(
                    "dpo-minimum",
                    reasons=(
                        r"一对的两种标注合在一起；$e_y$ 是 $y$ 的 logit 的单位向量；左边是自动微分",
                        r"在 $\pi_\theta = \pi^*$ 处，$p_\theta = p^*$",
                        "对任何 μ 成立：标注哪些对只影响噪声，不影响极限",
                    ),
                ),
            ),
            notes=T(
                "This question prepares RSO. Let somebody defend the second answer, because most papers suggest it.",
                "这个问题为 RSO 作准备。请一位同学为第二个选项辩护：多数论文给人的印象就是它。",
            ),
            answer_notes=T(
                "At π* every term of the gradient is zero, whatever the weights μ. The limit therefore "
                "does not depend on μ if the policy class contains π*.\n\n"
                "The noise of the estimate depends on μ. If the policy class does not contain π*, the "
                "limit depends on μ as well. Both are the subject of the second lecture.",
                "在 π* 处，梯度的每一项都为零，与权重 μ 无关。所以只要策略类包含 π*，极限就与 μ 无关。\n\n"
                "估计的噪声与 μ 有关；若策略类不包含 π*，极限也与 μ 有关。这两点是第二讲的主题。",
            ),
            answer_title=T(
                "Yes: the source of pairs affects the noise, not the limit",
                "会：成对数据的来源影响噪声，不影响极限",
            ),
            minutes=(1.0, 1.5),
        ),
    ),
)
