"""Block 2: the optimal policy and its partition function. Section of the lecture: "Optimal Solution to the KL-constrained …"."""

from __future__ import annotations

from slides.schema import Block, Bullets, DerivationPart, Equation, ExplorerPart, Slide, T, question

BLOCK = Block(
    key="optimum",
    title=T("The optimal solution", "最优解"),
    lecture=1,
    slides=(
        Slide(
            key="optimum-objective",
            title=T(
                "Reward and KL penalty can be written as one expectation",
                "奖励与 KL 惩罚可以写成同一个期望",
            ),
            parts=(
                DerivationPart(
                    "objective-to-optimum",
                    last=3,
                    reasons=(
                        r"要对 $\pi$ 最大化的目标",
                        r"KL 也是 $\pi$ 下的期望",
                        r"提出 $-\beta$：$J$ 最大就是括号最小（课件写成 min，并略去这个因子）",
                    ),
                ),
            ),
            notes=T(
                "The three steps are short. Ask which of them needs the KL in this direction. It is the second "
                "step, because the expectation of the KL must be under the same π as that of the reward.\n\n"
                "The ticks were computed when the slides were built, on two hundred random worlds in float64.",
                "这三个步骤都很短。提问：哪一步要求 KL 必须是这个方向？是第二步，因为 KL 的期望必须和奖励的期望在"
                "同一个 π 下取。\n\n"
                "对勾是生成幻灯片时，在两百个随机世界上以双精度算出来的。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, appendix A.1",
        ),
        Slide(
            key="optimum-partition",
            title=T(
                "Dividing by Z makes the denominator a distribution",
                "除以 Z 使分母成为一个分布",
            ),
            parts=(
                DerivationPart(
                    "objective-to-optimum",
                    first=4,
                    last=6,
                    reasons=(
                        r"$r/\beta = \log e^{r/\beta}$ 放进分式；乘上 $1/Z$，再以 $\log Z$ 取出",
                        r"分母是一个分布，记作 $\pi^*$；$Z(x)$ 与 $y$ 无关",
                        r"对数比在分子分布下的期望就是 KL",
                    ),
                ),
                Equation(
                    r"Z(x) = \sum_y \pi_\text{ref}(y\mid x)\,\exp\!\big(\tfrac{1}{\beta}\,r(x,y)\big)",
                    step=True,
                ),
            ),
            notes=T(
                "Explain line four slowly. The reward is written as an exponential in the denominator of the "
                "logarithm. Then 1/Z is inserted there, and log Z is subtracted, so the value does not change.\n\n"
                "Z is chosen so that the denominator sums to one. The bracket therefore becomes a KL.",
                "第四行要讲慢一点：奖励以指数的形式写进对数里的分母。然后在分母中放入 1/Z，再减去 log Z，所以值不"
                "变。\n\n"
                "Z 的取法使分母之和为一，于是括号里成为一个 KL。",
            ),
            minutes=2.0,
            source="Rafailov et al. 2023, appendix A.1",
        ),
        Slide(
            key="optimum-gibbs",
            title=T(
                "The KL is never negative, so π* is the unique maximum",
                "KL 非负，所以 π* 是唯一的最优策略",
            ),
            parts=(
                DerivationPart(
                    "gibbs",
                    reasons=(
                        "把分式倒过来，前面变号",
                        r"$\log u \le u - 1$，仅当 $u = 1$ 时取等号",
                        r"$\pi\cdot\pi^*/\pi = \pi^*$，而 $\pi$ 之和为一",
                        r"因为有 $Z$，$\pi^*$ 之和也为一",
                    ),
                ),
                Equation(
                    r"\pi = \pi^* = \pi_\text{ref}(y\mid x)\,e^{r(x,y)/\beta}/Z(x),\qquad "
                    r"J(\pi^*) - J(\pi) = \beta\,\mathbb{D}_{\mathrm{KL}}(\pi\,\|\,\pi^*)",
                    step=True,
                ),
            ),
            notes=T(
                "Gibbs' inequality follows from elementary analysis, because log u is below its tangent at u = "
                "1. Equality holds only if π*/π is one everywhere, so the optimum is unique.\n\n"
                "The second half of the last line follows from the previous slide. It defines the measure that "
                "this course uses for all methods. The regret of a policy is β times a KL, in units of reward. "
                "On the bandit and on the token tree the regret of every method is computed exactly.",
                "吉布斯不等式只需要初等分析：log u 的图像在它 u = 1 处的切线之下。仅当 π*/π 处处为一时取等号，所"
                "以最优解唯一。\n\n"
                "最后一行的后半部分由上一页直接得出。本课程用它衡量所有方法：策略的后悔值等于 β 乘以一个 KL，单位"
                "是奖励。在多臂老虎机和词元树上，每种方法的后悔值都能精确算出。",
            ),
            minutes=2.0,
            source="Gibbs' inequality; Rafailov et al. 2023, eq. 4",
        ),
        Slide(
            key="optimum-explorer",
            title=T(
                "A smaller β moves π* further from π_ref, towards reward",
                "β 越小，π* 离参考策略越远，奖励越高",
            ),
            parts=(
                ExplorerPart(
                    "optimal_policy",
                    advice=T(
                        "Move β from right to left. When does the best response become the most probable?",
                        "把 β 从右往左移：最好的回答何时成为概率最大的？",
                    ),
                ),
            ),
            notes=T(
                "Begin with a large β, where the bars of π* equal those of π_ref. Decrease β slowly. Ask the "
                "students to say stop when the best response becomes more probable than the response that is "
                "most probable under π_ref.\n\n"
                "Then point at the frontier. The star moves along the curve, and no policy is above it. If the "
                "reward and β are both doubled, nothing changes, because π* depends only on r/β.",
                "从大的 β 开始：π* 的柱子与 π_ref 相同。慢慢减小 β，请学生在最好的回答超过 π_ref 下概率最大的回答"
                "时喊停。\n\n"
                "再指前沿：星号沿曲线移动，没有策略在曲线之上。奖励与 β 同时加倍，什么都不变，因为 π* 只取决于 r/"
                "β。",
            ),
            minutes=2.0,
        ),
        *question(
            "optimum-question",
            T(
                "We know the formula of π*. Why do we not sample from it?",
                "π* 的公式已经知道了，为什么不直接从它采样？",
            ),
            parts=(
                Equation(
                    r"\pi^*(y\mid x) = \frac{1}{Z(x)}\,\pi_\text{ref}(y\mid x)\,\exp\!\big(\tfrac{1}{\beta}\,r(x,y)\big)",
                    big=True,
                ),
                Bullets(
                    T(r"$\pi_\text{ref}$ cannot be evaluated", r"$\pi_\text{ref}$ 算不出来"),
                    T("$Z(x)$ is a sum over every possible response", "$Z(x)$ 要对所有可能的回答求和"),
                    T(
                        "We can, because a thousand samples are enough",
                        "可以采样，因为一千个样本就够了",
                    ),
                    ordered=True,
                ),
            ),
            answer=(
                ExplorerPart(
                    "partition",
                    advice=T("Lower β. How many samples does an estimate of Z need?", "减小 β：估计 Z 需要多少样本？"),
                    only=("doublings", "beta"),
                ),
            ),
            notes=T(
                "Ask for a show of hands. The third answer is the most interesting one, so let a student defend "
                "it. Whether it is correct depends on β.",
                "请学生举手。第三项最有意思，请一位同学为它辩护。它是否正确取决于 β。",
            ),
            answer_notes=T(
                "Z(x) is the mean of exp(r/β) over responses that are sampled from the reference policy. In the "
                "worst case its relative variance grows exponentially with the range of the reward divided by β. "
                "The reason is that the good responses are rare and contribute most of the sum.\n\n"
                "The remaining methods avoid Z in two ways. In DPO it cancels. Rejection sampling needs only a "
                "ratio, in which it cancels too.",
                "Z(x) 是 exp(r/β) 对参考策略所采回答的平均。最坏情况下，相对方差随“奖励范围除以 β”指数增长，因为"
                "好回答很少，却贡献了和的大部分。\n\n"
                "后面的方法用两种方式避开 Z：在 DPO 里它会约去；拒绝采样只需要一个比值，Z 在比值中也约去。",
            ),
            answer_title=T(
                "With a small β, estimating Z(x) needs too many samples",
                "β 小时，估计配分函数 Z(x) 需要太多样本",
            ),
            minutes=(1.0, 2.0),
        ),
    ),
)
