"""Block 3: the preference model, written by the optimal policy. Lecture, "Re-organize Preference Model"."""

from __future__ import annotations

from slides.format import Block, Bullets, Derivation, Equation, Slide, T, Text, question

BLOCK = Block(
    key="preference-model",
    title=T("The preference model, re-organised", "重组偏好模型"),
    lecture=1,
    slides=(
        Slide(
            key="preference-reward",
            title=T("Turn the line round: the reward, written by its own optimum", "反过来读：由最优策略写出奖励"),
            parts=(
                Derivation(
                    "reward-from-optimum",
                    reasons=(
                        r"对 $\pi^* = \pi_\text{ref}\,e^{r/\beta}/Z$ 取对数",
                        r"把 $\log\pi_\text{ref}$ 移过去，乘以 β",
                        r"解出 $r$",
                    ),
                ),
                Text(
                    T(
                        "A policy is a reward in disguise: how much more often than the reference does it say this?",
                        "策略是伪装的奖励：它比参考策略多说了多少次这句话？",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "No new idea, only solving for r. But the direction of thought turns: until now a reward made a "
                "policy, from here on a policy names a reward.\n\nThe cost is still there: β log Z stands at the end "
                "of the line.",
                "没有新的东西，只是解出 r。但思路反过来了：之前是奖励决定策略，从这里起是策略说出奖励。\n\n"
                "代价还在：行尾仍有 β log Z。",
            ),
            minutes=2.5,
            source="Rafailov et al. 2023, eq. 5",
        ),
        Slide(
            key="preference-z-cancels",
            title=T("In a comparison the constant cancels", "一作比较，常数就约去了"),
            parts=(
                Derivation(
                    "z-cancels",
                    reasons=(
                        r"Bradley–Terry 模型，奖励由 $\pi^*$ 写出",
                        r"同除以分子：$\beta\log Z(x)$ 在两个指数里都有，于是消去",
                        r"$\sigma(u) = 1/(1+e^{-u})$：既没有奖励，也没有 $Z$",
                    ),
                ),
            ),
            notes=T(
                "This is the heart of the first lecture. Let the long first line stand for a moment: four exponentials "
                "and Z in each of them.\n\nThen press: one division, and Z is gone. It goes because both answers "
                "belong to the same prompt.",
                "这是第一讲的核心。让很长的第一行停留片刻：四个指数，每个里面都有 Z。\n\n再按一下：一次相除，Z 就没了。"
                "它能消去，是因为两个回答属于同一个提示。",
            ),
            minutes=3.0,
            source="Rafailov et al. 2023, eq. 6 and appendix A.2",
        ),
        Slide(
            key="preference-wrong",
            title=T("Three ways to lose it on the way", "途中容易出的三种错"),
            parts=(
                Derivation(
                    "z-cancels",
                    first=3,
                    last=3,
                    reasons=(r"$\sigma(u) = 1/(1+e^{-u})$",),
                    wrong=True,
                    mistakes=(
                        "代入 σ 时把两个回答换了位置",
                        "忘了 β",
                        "匆忙的读者说参考策略也随 $Z$ 消去了；并没有",
                    ),
                ),
            ),
            notes=T(
                "Each wrong line is computed on the same random worlds, and the number says by how much it fails.\n\n"
                "The third is the one that hides in code: SLiC's hinge drops the reference on purpose, and then it "
                "answers another question.",
                "每个错误的式子都在同样的随机世界上算过，数字说明差了多少。\n\n第三种错误最会藏在代码里：SLiC 的 hinge "
                "有意去掉参考策略，于是回答的是另一个问题。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="preference-z-stays",
            title=T("Between answers to two prompts it does not cancel", "换成两个提示，它就不会约去"),
            parts=(
                Derivation(
                    "z-stays",
                    reasons=("Bradley–Terry 可以比较任意两个奖励", r"每个提示带来自己的 $Z$"),
                    wrong=True,
                    mistakes=("把 DPO 的公式用到两个提示之间",),
                ),
            ),
            notes=T(
                "A limit worth knowing: data that compare answers to different prompts, or scores on an absolute "
                "scale, bring Z back.\n\nExpected question: what about prompts that differ by a space? Two prompts.",
                "值得记住的界限：如果数据比较的是不同提示下的回答，或者是绝对打分，Z 就会回来。\n\n"
                "常见问题：提示只差一个空格呢？那也是两个提示。",
            ),
            minutes=2.0,
        ),
        *question(
            "preference-question",
            T(
                "A labeller may also say “both equally good”. Does Z still cancel?",
                "标注者也可以说“一样好”，Z 还会约去吗？",
            ),
            parts=(
                Equation(
                    r"p(\text{tie}) \;\propto\; \nu\,\sqrt{e^{r(x,y_1)}\,e^{r(x,y_2)}}",
                    note=T("Davidson's model of ties", "Davidson 的平局模型"),
                ),
                Bullets(
                    T("Yes", "会"),
                    T("No, the square root breaks it", "不会，平方根破坏了它"),
                    T("Only if ν = 1", "仅当 ν = 1 时"),
                    ordered=True,
                ),
            ),
            answer=(
                Equation(
                    r"\sqrt{e^{r_1}e^{r_2}} = Z^{\beta}\sqrt{\Big(\tfrac{\pi^*_1}{\pi_{\text{ref},1}}\Big)^{\!\beta}"
                    r"\Big(\tfrac{\pi^*_2}{\pi_{\text{ref},2}}\Big)^{\!\beta}}",
                    big=True,
                ),
                Text(
                    T(
                        r"Each of the three cases carries the same factor $Z(x)^\beta$, and a ratio of them loses it. "
                        r"Whatever depends on differences of rewards alone can be written by the policy.",
                        r"三种情形都带着同一个因子 $Z(x)^\beta$，作比就消去了。凡是只依赖奖励之差的模型，都能由策略写出。",
                    )
                ),
            ),
            notes=T(
                "A real question: many label forms have the third button. Let them try the square root on paper.",
                "这是个实际问题：很多标注界面有第三个按钮。让学生在纸上试试那个平方根。",
            ),
            answer_notes=T(
                "The test to remember: add a constant to both rewards. If no probability changes, Z cancels.",
                "记住这个检验：两个奖励同加一个常数，如果概率都不变，Z 就会约去。",
            ),
            answer_title=T("Yes: a tie too depends on differences alone", "会：平局也只取决于奖励之差"),
        ),
    ),
)
