"""Block 2: the optimal policy, and the constant in it. Lecture, "Optimal Solution to the KL-constrained …"."""

from __future__ import annotations

from slides.schema import Block, Bullets, DerivationPart, Equation, ExplorerPart, Slide, T, question

BLOCK = Block(
    key="optimum",
    title=T("The optimal solution", "最优解"),
    lecture=1,
    slides=(
        Slide(
            key="optimum-objective",
            title=T("Reward and price belong under one expectation", "奖励与代价可以写进同一个期望"),
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
                "Three small steps, nothing clever yet. Which of them needs the KL in this direction and not in the "
                "other? The second: the expectation must be under the same π.\n\nThe ticks were computed when the "
                "slides were built, on two hundred random worlds in float64. A minute and a half.",
                "三个小步骤，还没有用到任何技巧。哪一步要求 KL 必须是这个方向？第二步：期望必须在同一个 π 下取。\n\n"
                "对勾是生成幻灯片时、在两百个随机世界上以双精度算出来的。一分半钟。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, appendix A.1",
        ),
        Slide(
            key="optimum-partition",
            title=T("Make the denominator a distribution, and pay with log Z", "让分母成为分布，代价是 log Z"),
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
                "Slow down at line four: the reward goes inside the logarithm as an exponential, below the fraction "
                "line. Then 1/Z is put in and taken out again, which changes nothing.\n\nWhy bother? Because now the "
                "denominator sums to one, and the bracket becomes a KL. Two minutes.",
                "第四行要讲慢一点：奖励以指数的形式进入对数，位置在分数线下面。然后放进 1/Z 又取出来，等式不变。\n\n"
                "为什么要多此一举？因为这样分母之和为一，括号里就成了 KL。两分钟。",
            ),
            minutes=2.0,
            source="Rafailov et al. 2023, appendix A.1",
        ),
        Slide(
            key="optimum-gibbs",
            title=T("A KL is never negative, so the best policy is known", "KL 非负，于是最优策略就知道了"),
            parts=(
                DerivationPart(
                    "gibbs",
                    reasons=(
                        "把分式倒过来，符号作为代价",
                        r"$\log u \le u - 1$，仅当 $u = 1$ 时取等号",
                        r"$\pi\cdot\pi^*/\pi = \pi^*$，而 $\pi$ 之和为一",
                        r"$\pi^*$ 之和也为一：这正是 $Z$ 的用处",
                    ),
                ),
                Equation(
                    r"\pi = \pi^* = \pi_\text{ref}(y\mid x)\,e^{r(x,y)/\beta}/Z(x),\qquad "
                    r"J(\pi^*) - J(\pi) = \beta\,\mathbb{D}_{\mathrm{KL}}(\pi\,\|\,\pi^*)",
                    step=True,
                ),
            ),
            notes=T(
                "Gibbs' inequality is one line of school analysis: log u lies below its tangent at one. Equality only "
                "where π*/π is one everywhere: so the optimum is unique.\n\nThe second half of the last line follows "
                "from the slide before, and is the course's measuring rod: what a policy still lacks, its regret, is β "
                "times a KL, in units of reward. On the bandit and the token tree it is computed exactly for every "
                "method. Two minutes.",
                "吉布斯不等式只是一行中学分析：log u 在 u=1 处的切线之下。等号只在 π*/π 处处为一时成立，所以最优解唯一。"
                "\n\n最后一行的后半句由上一页直接得出，是整门课的尺子：一个策略还差多少，即它的遗憾，等于 β 乘以一个 KL，"
                "单位是奖励。在老虎机和词元树上，每种方法的遗憾都能精确算出。两分钟。",
            ),
            minutes=2.0,
            source="Gibbs' inequality; Rafailov et al. 2023, eq. 4",
        ),
        Slide(
            key="optimum-explorer",
            title=T("π* tilts the reference towards reward; β says how far", "π* 把参考策略推向奖励，β 决定推多远"),
            parts=(
                ExplorerPart(
                    "optimal_policy",
                    advice=T(
                        "Move β from right to left. When does the best answer win?",
                        "把 β 从右往左移：最好的回答何时胜出？",
                    ),
                ),
            ),
            notes=T(
                "Begin at large β: the bars of π* are those of π_ref. Go left slowly and let the room say stop when "
                "the best answer overtakes the likeliest one.\n\nThen point at the frontier: the star walks along "
                "the curve, and no policy is above it. Double the reward and β together: nothing happens, only r/β is "
                "in π*. Two minutes.",
                "从大的 β 开始：π* 的柱子就是 π_ref 的。慢慢左移，让大家在最好的回答超过最可能的回答时喊停。\n\n"
                "再指前沿：星号沿曲线走，没有策略在曲线之上。奖励与 β 同时加倍：什么都不变，π* 里只有 r/β。两分钟。",
            ),
            minutes=2.0,
        ),
        *question(
            "optimum-question",
            T("We know π*. Why not simply sample from it?", "π* 已经知道了，为什么不直接从它采样？"),
            parts=(
                Equation(
                    r"\pi^*(y\mid x) = \frac{1}{Z(x)}\,\pi_\text{ref}(y\mid x)\,\exp\!\big(\tfrac{1}{\beta}\,r(x,y)\big)",
                    big=True,
                ),
                Bullets(
                    T(r"$\pi_\text{ref}$ cannot be evaluated", r"$\pi_\text{ref}$ 算不出来"),
                    T("$Z(x)$ is a sum over every possible answer", "$Z(x)$ 要对所有可能的回答求和"),
                    T("Nothing stops us: a thousand samples will do", "完全可以：一千个样本就够了"),
                    ordered=True,
                ),
            ),
            answer=(
                ExplorerPart(
                    "partition",
                    advice=T("Lower β: how many samples does an estimate of Z need?", "减小 β：估计 Z 需要多少样本？"),
                    only=("doublings", "beta"),
                ),
            ),
            notes=T(
                "Show of hands. The third answer is the interesting one: let somebody defend it. It depends on β. One "
                "minute.",
                "举手。第三项最有意思：请一位同学为它辩护。取决于 β。一分钟。",
            ),
            answer_notes=T(
                "Z(x) is an average of exp(r/β) over the reference's answers. At worst its relative variance grows "
                "like the exponential of the reward's range over β: the good answers are rare, and they carry the sum."
                "\n\nThe two ways out are the rest of the course: let Z cancel (DPO), or never need it (rejection "
                "sampling). Two minutes.",
                "Z(x) 是 exp(r/β) 对参考策略所有回答的平均。最坏情况下，相对方差随“奖励范围除以 β”的指数增长：好回答很少，"
                "却撑起了整个和。\n\n两条出路就是后面的课：让 Z 约去（DPO），或者根本不需要它（拒绝采样）。两分钟。",
            ),
            answer_title=T("One line, and one constant that nobody can afford", "一行公式，和一个谁也算不起的常数"),
            minutes=(1.0, 2.0),
        ),
    ),
)
