"""Block 3: the preference model in terms of π*. Section of the lecture: "Re-organize Preference Model"."""

from __future__ import annotations

from slides.schema import Block, Bullets, DerivationPart, Equation, Slide, T, Text, question

BLOCK = Block(
    key="preference-model",
    title=T(
        "The preference model in terms of π*",
        "用 π* 表示偏好模型",
    ),
    lecture=1,
    slides=(
        Slide(
            key="preference-reward",
            title=T(
                "The reward can be written in terms of its optimal policy",
                "奖励可以用它的最优策略表示",
            ),
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
                        "Every policy defines an implicit reward, up to a term that depends only on $x$.",
                        "每个策略都定义一个隐式奖励，只差一个仅依赖 $x$ 的项。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "This slide only solves the equation for r, but it changes the direction of the argument. Until "
                "now a reward defined a policy. From here on a policy defines a reward, through its log-ratio to "
                "the reference policy.\n\n"
                "The partition function has not disappeared, because β log Z is the last term of the line.",
                "这一页只是从等式中解出 r，但论证的方向变了：之前是奖励决定策略，从这里起是策略决定奖励，即它对参"
                "考策略的对数比。\n\n"
                "配分函数并没有消失：最后一行的末项就是 β log Z。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, eq. 5",
        ),
        Slide(
            key="preference-z-cancels",
            title=T(
                "Z(x) cancels when two responses to one prompt are compared",
                "比较同一提示的两个回答时，Z(x) 约去",
            ),
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
                "This is the main result of the first lecture. Give the students time to read the long first "
                "line, in which every exponential contains Z. Then show the next line. The fraction has been "
                "divided by its numerator, and Z has cancelled. This works because both responses belong to the "
                "same prompt.\n\n"
                "Mention two common mistakes. One is to cancel the reference policy together with Z. The other "
                "is to drop β. Notebook 04 computes both and shows how large the errors are.",
                "这是第一讲的主要结论。给学生时间读完很长的第一行：每个指数里都有 Z。再显示下一行：分子分母同除以"
                "分子，Z 就约去了。这是因为两个回答属于同一个提示。\n\n"
                "提醒两种常见错误：一是把参考策略随 Z 一起约去，二是丢掉 β。04 号笔记本计算了这两种错误，并给出误"
                "差的大小。",
            ),
            minutes=2.0,
            source="Rafailov et al. 2023, eq. 6 and appendix A.2",
        ),
        *question(
            "preference-question",
            T(
                "A label compares responses to two different prompts. Does Z cancel?",
                "如果标注比较的是两个不同提示下的回答，Z 还会约去吗？",
            ),
            parts=(
                Equation(r"p\big((x_1,y_1) \succ (x_2,y_2)\big) = \;?", big=True),
                Bullets(
                    T(
                        "Yes, Z cancels as before",
                        "会，Z 和刚才一样约去",
                    ),
                    T(
                        "No, because each prompt has a different Z",
                        "不会，因为每个提示的 Z 不同",
                    ),
                    T("Yes, but only if both prompts are equally long", "仅当两个提示一样长时才会"),
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
                "Such labels are common. Absolute ratings and thumbs up or down compare responses to different "
                "prompts. Ask the students to write down the difference of the two rewards.",
                "这样的标注很常见：绝对打分、点赞点踩，都是跨提示的比较。请学生在纸上写出两个奖励之差。",
            ),
            answer_notes=T(
                "The red line uses DPO's formula for two different prompts. On the same random worlds it is "
                "false.\n\n"
                "There is a simple test of whether Z cancels. Add f(x) to the reward and see whether any label "
                "probability changes. Labels with ties pass this test, and absolute scores do not.",
                "红色那行把 DPO 的公式用到两个不同的提示上。在同样的随机世界上计算，它不成立。\n\n"
                "Z 会不会约去，有一个简单的检验：给奖励加上 f(x)，看标注的概率是否改变。允许平局的标注能通过检验"
                "，绝对打分不能。",
            ),
            answer_title=T(
                "Z cancels only between responses to the same prompt",
                "只有同一提示下的回答之间，Z 才约去",
            ),
            minutes=(1.0, 1.0),
        ),
    ),
)
