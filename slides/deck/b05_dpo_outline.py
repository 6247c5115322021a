"""Block 5: the steps of DPO. Section of the lecture: "DPO Outline"."""

from __future__ import annotations

from slides.results import claim, finding
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
                "DPO collects labelled pairs once and then fits the policy",
                "DPO 先收集一次成对数据，再拟合策略",
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
                            r"people choose, which gives $\mathcal{D} = \{(x, y_w, y_l)\}$",
                            r"由人选择，得到 $\mathcal{D} = \{(x, y_w, y_l)\}$",
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
                        r"If the responses do not come from $\pi_\text{ref}$, first fine-tune it on the chosen ones",
                        r"若回答不来自 $\pi_\text{ref}$，先用被选回答微调 $\pi_\text{ref}$",
                    ),
                    T(
                        "The log-probability is summed over all tokens, the end token included, without dropout",
                        "对数概率对所有词元求和，包括结束符，计算时关闭 dropout",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "This slide shows the whole procedure. The second bullet is the paper's advice for public data. "
                "The reference policy should be close to the policy that wrote the responses. The third bullet "
                "names what is often wrong in programs. These mistakes cause no error message, and the loss "
                "still falls.\n\n"
                "Students may ask whether the reference model must stay in memory. It need not, because its "
                "log-probabilities of the pairs can be computed once and stored.",
                "这一页是整个流程。第二点是论文对公开数据的建议：参考策略应接近写出这些回答的策略。第三点是程序里"
                "常出错的地方：这些错误不会报错，损失照样下降。\n\n"
                "学生可能会问：参考模型要一直放在显存里吗？不用。它对这些回答的对数概率可以只算一次并保存下来。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, section 4, “DPO outline”",
        ),
        *question(
            "dpo-outline-question",
            T(
                "The labelled responses come from another model. Does DPO still converge to π*?",
                "标注的回答来自别的模型，DPO 还会收敛到 π* 吗？",
            ),
            parts=(
                Equation(r"(y_1, y_2) \sim \mu \;\neq\; \pi_\text{ref}", big=True),
                Bullets(
                    T(
                        "Yes, for every μ that compares all responses",
                        "会，只要 μ 会比较到所有回答",
                    ),
                    T(
                        "No, this needs pairs from the reference policy",
                        "不会，这需要来自参考策略的成对数据",
                    ),
                    T(
                        "No, it converges to a policy that depends on μ",
                        "不会，会收敛到一个依赖于 μ 的策略",
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
                "This question prepares RSO. Let a student defend the second answer, because many papers suggest it.",
                "这个问题为 RSO 作准备。请一位同学为第二个选项辩护：许多论文给人的印象就是它。",
            ),
            answer_notes=T(
                "At π* every term of the gradient is zero, whatever the weights μ are. If the policy class "
                "contains π* and μ compares all responses, the limit therefore does not depend on μ.\n\n"
                "The noise of the estimate does depend on μ. If the policy class does not contain π*, the limit "
                "depends on μ as well. Both are subjects of the second lecture.",
                "在 π* 处，梯度的每一项都为零，与权重 μ 无关。所以只要策略类包含 π*，且 μ 会比较到所有回答，极限"
                "就与 μ 无关。\n\n"
                "估计的噪声则与 μ 有关；若策略类不包含 π*，极限也与 μ 有关。这两点是第二讲的主题。",
            ),
            answer_title=T(
                "The source of the pairs changes the noise, not the limit",
                "成对数据的来源影响噪声，不影响极限",
            ),
            minutes=(1.0, 1.5),
        ),
        Slide(
            key="dpo-samplers-claim",
            title=T(
                "How fast DPO converges depends on the source of the pairs",
                "DPO 收敛得多快，取决于成对数据的来源",
            ),
            parts=claim(
                "dpo-samplers",
                "bandit",
                paper=T(
                    "DPO converges quadratically on an online mixture. On-policy pairs beat those of π_ref.",
                    "在线混合二阶收敛；当前策略的数据胜过 π_ref 的。",
                ),
                source="Shi et al. 2024; Kim et al. 2026",
                found=(
                    finding(
                        "dpo-samplers",
                        "bandit",
                        "partly supported",
                        "The mixture needs {steps_mixture_mean:mean} steps and uniform pairs {steps_uniform_mean:mean}. In "
                        "rounds of labels the current policy leaves {rounds_current} times π_ref's regret.",
                        "混合需要 {steps_mixture_mean:mean} 步，均匀成对数据 {steps_uniform_mean:mean} 步。"
                        "分轮标注时，用当前策略的后悔值是用 π_ref 的 {rounds_current} 倍。",
                        conditions=("steps_mixture < 1", "rounds_current < 1"),
                    ),
                    finding(
                        "dpo-samplers",
                        "tree",
                        "partly supported",
                        "In rounds the ratio is {rounds_current}.",
                        "分轮标注时，这个比值是 {rounds_current}。",
                        conditions=("steps_mixture ~ 1", "rounds_current < 1"),
                    ),
                ),
                alt="老虎机上相对于 π_ref 的后悔值，两轴均为对数。左图：精确梯度下，混合下降最快，其次是均匀成对数据和 π_ref，"
                "当前策略和 π* 慢得多。右图：分轮标注时，当前策略最低，π* 最高。",
                panels=(0, 2),
                size=(6.4, 4.8),
                share=0.43,
            ),
            notes=T(
                "Five sources of pairs are compared on tables. The tables can represent π*, so all sources have the same "
                "limit, and only the speed differs. The mixture consists of uniform pairs and of pairs reweighted by "
                "exp(±r̂). The left panel shows exact gradient steps. The right panel shows rounds of labels, with a fit "
                "to convergence after each round.\n\n"
                "Explain the left panel. The mixture divides each pair by the slope of its logistic curve, so a step is "
                "nearly a step of Newton's method. Pairs from π* or from the current policy rarely contain bad "
                "responses, so these are unlearned slowly. On the tree the mixture is not clearly faster than uniform "
                "pairs, because there the parameters are logits of tokens.\n\n"
                "Labels cost more than steps, so the right panel matters in practice. The current policy compares the "
                "responses that determine the regret, and its early rounds have compared the others. Ask why pairs from "
                "π* leave the highest regret. They rarely compare the responses that must be ruled out.",
                "这里用表格策略比较五种成对数据的来源。表格能表示 π*，所以各种来源的极限相同，只是快慢不同。混合由均匀的"
                "成对数据和按 exp(±r̂) 重新加权的成对数据组成。左图用精确梯度；右图分轮标注，每轮之后拟合到收敛。\n\n"
                "讲左图：混合使每对数据除以它的逻辑曲线的斜率，所以一步接近牛顿法的一步。π* 或当前策略的成对数据里坏回答"
                "很少，所以排除得慢。在词元树上参数是词元的 logit，混合并不明显快于均匀成对数据。\n\n"
                "标注比训练步数贵，所以实践中看右图。当前策略比较的是决定后悔值的回答，其余回答在前几轮已经比较过。"
                "问：π* 的成对数据为什么后悔值最高？因为它们很少比较需要排除的回答。",
            ),
            minutes=1.5,
        ),
    ),
)
