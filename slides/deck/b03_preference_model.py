"""Block 3: the preference model, written by the optimal policy. Lecture, "Re-organize Preference Model"."""

from __future__ import annotations

from slides.schema import Block, Bullets, DerivationPart, Equation, Slide, T, Text, question

BLOCK = Block(
    key="preference-model",
    title=T("The preference model, re-organised", "重组偏好模型"),
    lecture=1,
    slides=(
        Slide(
            key="preference-reward",
            title=T("Turn the line round: the reward, written by its own optimum", "反过来读：由最优策略写出奖励"),
            parts=(
                DerivationPart(
                    "reward-from-optimum",
                    reasons=(
                        r"对 $\pi^* = \pi_\text{ref}\,e^{r/\beta}/Z$ 取对数",
                        r"把 $\log\pi_\text{ref}$ 移过去，乘以 β",
                        r"解出 $r$",
                    ),
                ),
                Text(
                    T(
                        "A policy is a reward in disguise.",
                        "策略是伪装的奖励。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "No new idea, only solving for r. But the direction of thought turns: until now a reward made a "
                "policy, from here on a policy names a reward: how much more often than the reference does it say "
                "this?\n\nThe cost is still there: β log Z stands at the end "
                "of the line. A minute and a half.",
                "没有新的东西，只是解出 r。但思路反过来了：之前是奖励决定策略，从这里起是策略说出奖励：这句话，它比参考策略多说了"
                "多少倍？\n\n"
                "代价还在：行尾仍有 β log Z。一分半钟。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, eq. 5",
        ),
        Slide(
            key="preference-z-cancels",
            title=T("In a comparison the constant cancels", "一作比较，常数就约去了"),
            parts=(
                DerivationPart(
                    "z-cancels",
                    reasons=(
                        r"Bradley–Terry 模型，奖励由 $\pi^*$ 写出",
                        r"同除以分子：$\beta\log Z(x)$ 在两个指数里都有，于是消去",
                        r"$\sigma(u) = 1/(1+e^{-u})$：既没有奖励，也没有 $Z$",
                    ),
                ),
            ),
            notes=T(
                "The heart of the first lecture. Let the long first line stand for a moment: Z is in every exponential. "
                "Then press: one division, and Z is gone. It goes because both answers belong to the same prompt."
                "\n\nTwo slips to name: the reference does not cancel with Z, and β stays. Notebook 04 computes both "
                "and shows by how much they fail. Two minutes.",
                "这是第一讲的核心。让很长的第一行停留片刻：每个指数里都有 Z。再按一下：一次相除，Z 就没了。它能消去，"
                "是因为两个回答属于同一个提示。\n\n提醒两种常见错误：参考策略并没有随 Z 一起消去，β 也还在。04 号笔记本"
                "把两者都算了一遍，并显示差了多少。两分钟。",
            ),
            minutes=2.0,
            source="Rafailov et al. 2023, eq. 6 and appendix A.2",
        ),
        *question(
            "preference-question",
            T(
                "A label compares answers to two different prompts. Does Z cancel?",
                "如果标注比较的是两个不同提示下的回答，Z 还会约去吗？",
            ),
            parts=(
                Equation(r"p\big((x_1,y_1) \succ (x_2,y_2)\big) = \;?", big=True),
                Bullets(
                    T("Yes, as before", "会，和刚才一样"),
                    T("No, each prompt keeps its own", "不会，每个提示留下自己的 Z"),
                    T("Only if both prompts are equally long", "仅当两个提示一样长时"),
                    ordered=True,
                ),
            ),
            answer=(
                DerivationPart(
                    "z-stays",
                    reasons=("Bradley–Terry 可以比较任意两个奖励", r"每个提示带来自己的 $Z$"),
                    wrong=True,
                    mistakes=("把 DPO 的公式用到两个提示之间",),
                ),
            ),
            notes=T(
                "Not an exotic case: ratings on an absolute scale, or thumbs up and down, compare across prompts. Let "
                "them write the difference of two rewards on paper. One minute.",
                "这并不少见：绝对打分、点赞点踩，都是跨提示的比较。让学生在纸上写出两个奖励之差。一分钟。",
            ),
            answer_notes=T(
                "The line in red is DPO's formula used across prompts: computed on the same random worlds, it fails."
                "\n\nThe test to remember: add f(x) to the reward. If no probability changes, Z cancels. Ties pass "
                "this test, scores do not. One minute.",
                "红色那行是把 DPO 的公式用到两个提示之间：在同样的随机世界上计算，它不成立。\n\n"
                "记住这个检验：给奖励加上 f(x)，如果概率都不变，Z 就会约去。平局能通过检验，绝对打分不能。一分钟。",
            ),
            answer_title=T(
                "No: Z cancels only between answers to one prompt", "不会：只有同一提示下的回答之间，Z 才约去"
            ),
            minutes=(1.0, 1.0),
        ),
    ),
)
