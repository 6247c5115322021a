"""Block 2: the optimal policy, and the constant in it. Lecture, "Optimal Solution to the KL-constrained …"."""

from __future__ import annotations

from slides.format import Block, Bullets, Derivation, Equation, Explorer, Slide, T, Table, Text, question

BLOCK = Block(
    key="optimum",
    title=T("The optimal solution", "最优解"),
    lecture=1,
    slides=(
        Slide(
            key="optimum-objective",
            title=T("Two terms under one expectation", "把两项放进同一个期望"),
            parts=(
                Derivation(
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
                "Three small steps, nothing clever yet. Ask the room which of them needs the KL to be taken in this "
                "direction and not in the other: the second, because the expectation must be under the same π.\n\n"
                "The ticks were computed when the slides were built, on two hundred random worlds in float64.",
                "三个小步骤，还没有用到任何技巧。问问大家哪一步要求 KL 必须是这个方向：第二步，因为期望必须在同一个 π "
                "下取。\n\n对勾是在生成幻灯片时、用两百个随机世界以双精度算出来的。",
            ),
            minutes=3.0,
            source="Rafailov et al. 2023, appendix A.1",
        ),
        Slide(
            key="optimum-partition",
            title=T("Make the denominator a distribution, and pay with log Z", "让分母成为分布，代价是 log Z"),
            parts=(
                Derivation(
                    "objective-to-optimum",
                    first=4,
                    last=6,
                    reasons=(
                        r"$r/\beta = \log e^{r/\beta}$ 放进分式；放入 $1/Z$，再以 $\log Z$ 取出",
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
                "Line four is the one to slow down for: the reward goes inside the logarithm as an exponential, below "
                "the fraction line. Then 1/Z is put in and taken out again, which changes nothing.\n\nWhy bother? "
                "Because with it the denominator sums to one, and the bracket becomes a KL.",
                "第四行要讲慢一点：奖励以指数的形式进入对数，位置在分数线下面。然后放进 1/Z 又取出来，等式不变。\n\n"
                "为什么要多此一举？因为这样分母之和为一，括号里就成了 KL。",
            ),
            minutes=3.5,
            source="Rafailov et al. 2023, appendix A.1",
        ),
        Slide(
            key="optimum-gibbs",
            title=T("A KL is never negative, so the best policy is known", "KL 非负，于是最优策略就知道了"),
            parts=(
                Derivation(
                    "gibbs",
                    reasons=(
                        "把分式倒过来，符号作为代价",
                        r"$\log u \le u - 1$，仅当 $u = 1$ 时取等号",
                        r"$\pi\cdot\pi^*/\pi = \pi^*$，而 $\pi$ 之和为一",
                        r"$\pi^*$ 之和也为一：这正是 $Z$ 的用处",
                    ),
                ),
                Equation(r"\pi = \pi^* = \frac{1}{Z(x)}\,\pi_\text{ref}(y\mid x)\,e^{r(x,y)/\beta}", step=True),
            ),
            notes=T(
                "The whole inequality is one line of school analysis: log u lies below its tangent at one.\n\nEquality "
                "only where π*/π is one everywhere: that is where the unique optimum comes from. If somebody asks "
                "about responses that π never gives: the bound holds there too, with less on the right.",
                "整个不等式只是一行中学分析：log u 在 u=1 处的切线之下。\n\n等号只在 π*/π 处处为一时成立：最优解的唯一性"
                "就从这里来。若有人问 π 从不给出的回答：不等式仍成立，右边只会更小。",
            ),
            minutes=3.0,
            source="Gibbs' inequality; Rafailov et al. 2023, eq. 4",
        ),
        Slide(
            key="optimum-explorer",
            title=T("π* tilts the reference towards reward; β says how far", "π* 把参考策略推向奖励，β 决定推多远"),
            parts=(
                Explorer(
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
                "the curve, and no policy is above it. An answer that π_ref never gives stays at zero for every β.",
                "从大的 β 开始：π* 的柱子就是 π_ref 的。慢慢左移，让大家在最好的回答超过最可能的回答时喊停。\n\n"
                "再指右边的前沿：星号沿曲线走，没有策略在曲线之上。π_ref 从不给出的回答，无论 β 多小都保持为零。",
            ),
            minutes=4.0,
        ),
        Slide(
            key="optimum-regret",
            title=T("What a policy still lacks is β times a KL", "策略还差多少：β 乘以一个 KL"),
            parts=(
                Derivation(
                    "regret-is-a-kl",
                    reasons=(r"把 $\pi^*$ 的推导用两次", r"昂贵的 $Z$ 被约去"),
                    wrong=True,
                    mistakes=(
                        "忘了 β：纳特不是奖励的单位",
                        "KL 的方向反了",
                        "只看奖励：KL 的代价也是 J 的一部分",
                    ),
                ),
                Text(
                    T(
                        r"So every method of this course can be given one number: its regret, in units of reward.",
                        r"于是这门课的每种方法都可以得到一个数：它的遗憾，单位是奖励。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "This line is the course's measuring rod. On the bandit and on the token tree it is computed exactly "
                "for every method.\n\nRead the crossed-out lines aloud: each is a mistake that has been made in "
                "print or in code, and each visibly fails.",
                "这一行是整门课的尺子。在老虎机和词元树上，每种方法的遗憾都能精确算出。\n\n把打叉的几行念一遍："
                "每一个都是真有人犯过的错误，每一个都明显不成立。",
            ),
            minutes=2.5,
        ),
        Slide(
            key="optimum-z-dear",
            title=T("One line, and one constant that nobody can afford", "一行公式，和一个谁也算不起的常数"),
            parts=(
                Explorer(
                    "partition",
                    advice=T("Lower β: how many samples does an estimate of Z need?", "减小 β：估计 Z 需要多少样本？"),
                ),
            ),
            notes=T(
                "Z(x) is an average over all responses. With n draws from the reference its relative error grows like "
                "the exponential of the reward's range over β: the good answers are rare, and they carry the sum.\n\n"
                "Two ways out are the next two hours: let Z cancel (DPO), or never need it (rejection sampling).",
                "Z(x) 是对所有回答的平均。用参考策略抽 n 个样本，相对误差随“奖励范围除以 β”的指数增长：好回答很少，"
                "却撑起了整个和。\n\n两条出路就是后面两讲：让 Z 约去（DPO），或者根本不需要它（拒绝采样）。",
            ),
            minutes=3.0,
            source=r"Lecture: “it is still expensive to estimate the partition function Z(x)”",
        ),
        *question(
            "optimum-question",
            T("Double the reward and double β. What happens to π*?", "奖励加倍，β 也加倍，π* 会怎样？"),
            parts=(
                Equation(r"r \to 2r, \qquad \beta \to 2\beta"),
                Bullets(
                    T("It becomes greedier", "变得更贪心"),
                    T("Nothing happens", "没有变化"),
                    T("Only Z changes", "只有 Z 变化"),
                    ordered=True,
                ),
            ),
            answer=(
                Equation(r"\frac{2\,r(x,y)}{2\,\beta} = \frac{r(x,y)}{\beta}", big=True),
                Table(
                    (T("what stays", "不变的"), T("what doubles", "加倍的")),
                    ((T("π*, Z, KL(π*‖π_ref)", "π*、Z、KL(π*‖π_ref)"), T("J, regret, β log Z", "J、遗憾、β log Z")),),
                    T("Only the ratio r/β is in π*", "π* 里只有比值 r/β"),
                ),
                Text(
                    T(
                        "A β quoted without the scale of its reward says nothing.",
                        "不说明奖励的尺度，β 的数值就没有意义。",
                    )
                ),
            ),
            notes=T(
                "Give them half a minute in pairs. The third answer is tempting, because Z is the part that looks "
                "complicated.",
                "让学生两人一组讨论半分钟。第三个选项很有诱惑力，因为 Z 看起来最复杂。",
            ),
            answer_notes=T(
                "Z is a sum of exponentials of r/β, so it stays as well. What doubles is measured in units of reward."
                "\n\nThis is why tables that compare β's across papers compare nothing.",
                "Z 是 r/β 的指数之和，所以也不变。加倍的是以奖励为单位的量。\n\n所以跨论文比较 β 的表格什么也没比较。",
            ),
            answer_title=T("Nothing: only the ratio r/β is in it", "没有变化：其中只有比值 r/β"),
        ),
    ),
)
