"""Block 7: RSO. Lecture, "Preference Data Distribution", "How to sample …? Rejection Sampling!", "Experiments"."""

from __future__ import annotations

from slides.format import (
    Block,
    Bullets,
    Columns,
    Derivation,
    Equation,
    Explorer,
    Flow,
    Slide,
    Step,
    T,
    Table,
    Text,
    question,
)  # fmt: skip

BLOCK = Block(
    key="rso",
    title=T("RSO: whose answers should be compared?", "RSO：该比较谁的回答？"),
    lecture=2,
    slides=(
        Slide(
            key="rso-intuition",
            title=T(
                "We would like pairs from π*, and have pairs from somebody",
                "我们想要来自 π* 的成对数据，手里的却来自别人",
            ),
            parts=(
                Columns(
                    left=(
                        Text(T("**Wished for**", "**想要的**")),
                        Equation(r"\mathcal{D}^* = \{(x,y_w,y_l)\;|\;y_w,y_l\sim\pi^*(y\mid x)\}"),
                        Text(T("fit by maximum likelihood, and be done", "用最大似然拟合即可")),
                    ),
                    right=(
                        Text(T("**At hand**", "**手头的**")),
                        Equation(r"\mathcal{D}_\text{hf} = \{(x,y_w,y_l)\;|\;y_w,y_l\sim\pi_\text{unk}(y\mid x)\}"),
                        Text(
                            T(
                                "the SFT policy, older policies, other agents, mixed",
                                "SFT 策略、旧策略、其他模型，混在一起",
                            )
                        ),
                    ),
                ),
                Text(
                    T(
                        "A density estimate is best where its data are. RSO asks to have them near π*.",
                        "密度估计在有数据的地方最准。RSO 希望数据就在 π* 附近。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "State the intuition fairly, it is a good one. Keep last lecture's question in mind: if the policy can "
                "represent π*, the limit does not depend on where pairs come from.\n\nSo the gain must come from "
                "noise, from capacity, or from somewhere else. We shall measure which.",
                "公平地讲出这个直觉，它是有道理的。别忘了上一讲的问题：如果策略能表示 π*，极限与数据来源无关。\n\n"
                "所以好处只能来自噪声、来自能力不足，或来自别处。后面我们会测出来是哪一个。",
            ),
            minutes=3.0,
            source="Liu et al. 2024, section 3",
        ),
        Slide(
            key="rso-choices",
            title=T("Three sources of pairs", "成对数据的三种来源"),
            parts=(
                Flow(
                    Step(
                        T("direct", "direct"),
                        T(
                            r"$\mathcal{D}_\text{hf}$ as it is, labelled by people",
                            r"直接用人工标注的 $\mathcal{D}_\text{hf}$",
                        ),
                        "rso-direct",
                    ),
                    Step(
                        T("sft-sample-rank", "sft-sample-rank"),
                        T(
                            r"draws of $\pi_\text{sft}$, labelled by $r_\psi$",
                            r"$\pi_\text{sft}$ 的样本，由 $r_\psi$ 标注",
                        ),
                        "rso-sft-sample-rank",
                    ),
                    Step(
                        T("rso-sample-rank", "rso-sample-rank"),
                        T(r"draws of $\pi_{r_\psi}$, labelled by $r_\psi$", r"$\pi_{r_\psi}$ 的样本，由 $r_\psi$ 标注"),
                        "rso-rso-sample-rank",
                    ),
                    steps=True,
                ),
                Equation(
                    r"\pi_{r_\psi}(y\mid x) = \frac{1}{Z(x)}\,\pi_\text{sft}(y\mid x)\,\exp\!\big(\tfrac{1}{\beta}\,r_\psi(x,y)\big)",
                    step=True,
                ),
            ),
            notes=T(
                "The first step to the right brings a reward model back, and with it as many pairs as one likes. The "
                "second step changes whose answers are compared.\n\nTwo changes, two effects. A table that shows only "
                "the ends mixes them.",
                "向右第一步把奖励模型请了回来，于是想要多少成对数据都有。第二步改变的是比较谁的回答。\n\n"
                "两个改变，两种效应。只看两端的表格会把它们混在一起。",
            ),
            minutes=3.0,
            source="Liu et al. 2024, section 3.2",
        ),
        Slide(
            key="rso-algorithm",
            title=T(
                "Rejection sampling needs a ratio, and the ratio needs no Z", "拒绝采样只要一个比值，而比值不需要 Z"
            ),
            parts=(
                Bullets(
                    T(r"start with $\mathcal{Y} = \{\}$", r"从 $\mathcal{Y} = \{\}$ 开始"),
                    T(
                        r"draw $y\sim\pi_\text{sft}(y\mid x)$ that is not in $\mathcal{Y}$, and $u\sim U[0,1]$",
                        r"抽取不在 $\mathcal{Y}$ 中的 $y\sim\pi_\text{sft}(y\mid x)$，以及 $u\sim U[0,1]$",
                    ),
                    T(
                        r"accept $y$ if $u < \dfrac{\pi_{r_\psi}(y\mid x)}{M\,\pi_\text{sft}(y\mid x)} = \exp\!\big((r_\psi(x,y) - r_\text{max})/\beta\big)$",
                        r"若 $u < \dfrac{\pi_{r_\psi}(y\mid x)}{M\,\pi_\text{sft}(y\mid x)} = \exp\!\big((r_\psi(x,y) - r_\text{max})/\beta\big)$ 则接受 $y$",
                    ),
                    T("go on until there are enough", "直到数量足够"),
                    steps=True,
                    ordered=True,
                ),
                Text(
                    T(
                        r"$M$ is the least number with $M\,\pi_\text{sft} \ge \pi_{r_\psi}$ on all $y \notin \mathcal{Y}$; in practice $r_\text{max}$ is that of the candidates.",
                        r"$M$ 是使 $M\,\pi_\text{sft} \ge \pi_{r_\psi}$ 对所有 $y \notin \mathcal{Y}$ 成立的最小数；实践中 $r_\text{max}$ 取候选中的最大值。",
                    ),
                    step=True,
                    quiet=True,
                ),
            ),
            notes=T(
                "Z is in π_r and in M: it cancels in the ratio. That is the same trick as DPO's, in another place.\n\n"
                "The honest remark: the true maximum of r is not known, only that of 64 candidates. Notebook 07 "
                "shows what that costs, and the five traps of the printed loop.",
                "Z 同时在 π_r 和 M 里：作比就约去了。这和 DPO 是同一招，只是换了地方。\n\n"
                "需要诚实说明：r 的真正最大值并不知道，只知道 64 个候选里的最大值。07 号笔记本展示它的代价，以及印刷版循环的五个陷阱。",
            ),
            minutes=3.5,
            source="Liu et al. 2024, section 3.3 and algorithm 1",
        ),
        Slide(
            key="rso-acceptance",
            title=T("How many draws does one accepted answer cost?", "接受一个回答要抽多少次？"),
            parts=(
                Derivation(
                    "acceptance",
                    reasons=(
                        r"先抽，再与 $u \sim U[0,1]$ 比较；左边是 `sampling.acceptance_rate`",
                        r"$\pi_\text{sft}$ 约去，$\pi_r$ 之和为一",
                        r"$\pi_r/\pi_\text{sft} = e^{r/\beta}/Z$ 在 $r$ 最大处最大",
                        r"$Z$ 是 $\pi_\text{sft}$ 下的期望：β 小，接受率就小",
                    ),
                ),
            ),
            notes=T(
                "The last line is the useful one: an average that can be estimated from draws one has anyway.\n\nAt "
                "small β nearly everything is thrown away: there is no free lunch, Z has come back as a waiting time.",
                "最后一行最有用：一个可以用现成样本估计的平均值。\n\nβ 很小时几乎全部被扔掉：没有免费的午餐，"
                "Z 以等待时间的形式回来了。",
            ),
            minutes=2.5,
        ),
        Slide(
            key="rso-rejection-explorer",
            title=T(
                "Accepted draws follow π_r, at the price of the rejected ones",
                "被接受的样本服从 π_r，代价是被拒绝的那些",
            ),
            parts=(
                Explorer(
                    "rejection",
                    advice=T(
                        "Lower β: the shape gets sharper, and the acceptance falls.", "减小 β：形状变尖，接受率下降。"
                    ),
                ),
            ),
            notes=T(
                "Start at large β: almost everything is accepted, and nothing was gained. Lower β step by step and "
                "read the acceptance rate aloud.\n\nAt β near zero this is best-of-n: only the best candidate passes.",
                "从大的 β 开始：几乎全部接受，也就什么都没得到。逐步减小 β，把接受率念出来。\n\n"
                "β 接近零时就是 best-of-n：只有最好的候选能通过。",
            ),
            minutes=3.0,
        ),
        Slide(
            key="rso-gumbel",
            title=T(
                "Taken afresh after each acceptance, it is Gumbel-top-k", "每次接受后重取最大值，就是 Gumbel-top-k"
            ),
            parts=(
                Derivation(
                    "gumbel-top-k",
                    reasons=(
                        "Gumbel-max 技巧；左边对密度做数值积分",
                        "第二大的是其余中最大的，与最大者是谁无关；左边积分得到",
                        r"在剩下的候选里重取 $r_\text{max}$ 的拒绝采样：任何最大值都会约去",
                    ),
                ),
                Text(
                    T(
                        "So the loop has a one-line form: add Gumbel noise to r/β, take the k largest.",
                        "于是整个循环有一行写法：给 r/β 加 Gumbel 噪声，取最大的 k 个。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "The fast path of the package is this line; the printed loop is kept for teaching, and the two are "
                "tested against each other in distribution.",
                "代码包里的快速实现就是这一行；印刷版的循环留作教学，两者在分布上互相检验。",
            ),
            minutes=2.5,
        ),
        Slide(
            key="rso-losses",
            title=T("Three losses on the same pairs", "同样的成对数据，三种损失"),
            parts=(
                Table(
                    (T("name", "名称"), T("loss", "损失"), T("what it learns", "学到什么")),
                    (
                        (
                            "sigmoid-norm",
                            r"$-\log\sigma(\gamma\Delta)$",
                            T("who is better, and by how much", "谁更好，好多少"),
                        ),
                        ("hinge-norm", r"$\max(0,\,1-\gamma\Delta)$", T("who is better", "谁更好")),
                        (
                            "hinge",
                            r"$\max(0,\,1-\gamma\,(\log\pi_w-\log\pi_l))$",
                            T("who is better, without a reference", "谁更好，但没有参考策略"),
                        ),
                    ),
                    T(
                        r"$\Delta$: the difference of log-ratios to $\pi_\text{sft}$. “norm” means divided by $\pi_\text{sft}$, not by length",
                        r"$\Delta$：对 $\pi_\text{sft}$ 的对数比之差。“norm”指除以 $\pi_\text{sft}$，而不是除以长度",
                    ),
                    source="Liu et al. 2024, table 1 and section 3.1; Zhao et al. 2023 (SLiC-HF)",
                ),
            ),
            notes=T(
                "Two numbers are easily confused: β of the sampler and γ of the loss. The paper uses 0.5 and 0.05; DPO "
                "sets them equal.\n\nγ decides where sigmoid-norm ends, β only who is asked: notebook 08 has the "
                "derivation.",
                "两个数容易混：采样器的 β 和损失的 γ。论文用 0.5 与 0.05；DPO 令两者相等。\n\n"
                "γ 决定 sigmoid-norm 的终点，β 只决定问谁：推导在 08 号笔记本。",
            ),
            minutes=3.0,
        ),
        Slide(
            key="rso-paper",
            title=T("What the paper reports", "论文报告的结果"),
            parts=(
                Table(
                    (
                        T("pairs (sigmoid-norm)", "成对数据（sigmoid-norm）"),
                        T("TL;DR proxy %", "TL;DR 代理 %"),
                        T("gold %", "金标 %"),
                        T("judge %", "评判 %"),
                        T("HH proxy %", "HH 代理 %"),
                        T("gold %", "金标 %"),
                        T("judge %", "评判 %"),
                    ),
                    (
                        ("RAFT", "74.84", "68.51", "53.77", "58.21", "40.00", "24.99"),
                        ("ReST", "49.03", "46.17", "34.36", "43.48", "30.33", "15.58"),
                        (T("direct (DPO)", "direct（DPO）"), "84.35", "76.09", "67.72", "51.63", "36.13", "24.01"),
                        ("sft-sample-rank", "88.63", "78.14", "69.02", "85.09", "58.65", "39.56"),
                        ("rso-sample-rank", "92.37", "82.22", "71.86", "86.94", "59.15", "40.98"),
                    ),
                    T(
                        "Wins against the SFT target, Reddit TL;DR and AnthropicHH",
                        "对 SFT 目标的胜率，Reddit TL;DR 与 AnthropicHH",
                    ),
                    source="Liu et al. 2024, table 1",
                    strong=(4,),
                ),
            ),
            notes=T(
                "Read down a column: the largest step on HH is from direct to sft-sample-rank, that is from people's "
                "labels to the reward model's, not from one distribution to the other.\n\nAsk: what would you need "
                "to see, to know which of the two changes helped?",
                "竖着读一列：HH 上最大的一步是从 direct 到 sft-sample-rank，也就是从人的标注到奖励模型的标注，"
                "而不是从一种分布到另一种分布。\n\n问：要看到什么，你才能知道是两个改变中的哪一个起了作用？",
            ),
            minutes=3.0,
        ),
        Slide(
            key="rso-label-price",
            title=T(
                "What a pair teaches can be computed: the price of a label", "一对数据教会多少可以算出来：标注的价格"
            ),
            parts=(
                Derivation(
                    "label-price",
                    reasons=(
                        r"$\sqrt N(\hat r - r) \to \mathcal{N}(0, I(\mu)^+)$，代入二次型；$z$ 为标准正态",
                        r"$\mathbb{E}[z^\top B z] = \mathrm{tr}\,B$，迹内可以轮换",
                    ),
                ),
                Bullets(
                    T(
                        "Pairs near π* compare what matters, but their labels are close to coins, or all the same",
                        "π* 附近的成对数据比较的是要紧的回答，但它们的标注接近抛硬币，或者全都一样",
                    ),
                    T("The best design lies between, and can be certified", "最优设计介于两者之间，并且可以验证"),
                    steps=True,
                ),
            ),
            notes=T(
                "N labels cost the policy a regret of price over N. The price depends on which pairs are labelled, and "
                "it can be written down: a trace.\n\nOn random bandits pairs from π* are not clearly cheaper than "
                "pairs from the reference. The next slide moves β.",
                "N 个标注让策略的遗憾约为“价格除以 N”。价格取决于标注哪些对，并且可以写出来：一个迹。\n\n"
                "在随机老虎机上，来自 π* 的成对数据并不明显更便宜。下一页可以动 β。",
            ),
            minutes=3.0,
        ),
        Slide(
            key="rso-pairs-explorer",
            title=T("Which pairs are cheapest depends on β", "哪种成对数据最便宜，取决于 β"),
            parts=(
                Explorer(
                    "pair_sources",
                    advice=T("Lower β. Which source becomes dear first?", "减小 β：哪种来源先变贵？"),
                ),
            ),
            notes=T(
                "At large β the three curves lie together. As β falls, pairs from π* lose: π* is then a few answers, "
                "and the comparison with all others is never made.",
                "β 大时三条曲线靠在一起。β 变小，来自 π* 的成对数据吃亏：此时 π* 只剩几个回答，与其他回答的比较从未进行。",
            ),
            minutes=3.0,
        ),
        *question(
            "rso-question",
            T(
                "RSO's pairs beat direct ones. Name three possible reasons",
                "RSO 的成对数据胜过 direct，说出三个可能的原因",
            ),
            parts=(
                Bullets(
                    T("More pairs?", "数量更多？"),
                    T("Better labels?", "标注更好？"),
                    T("Pairs in a better place?", "位置更好？"),
                    T("A policy that cannot fit everywhere?", "策略无法处处拟合？"),
                ),
            ),
            answer=(
                Bullets(
                    T(
                        "Free labels: the reward model labels any number of pairs, and averages its labellers' noise",
                        "免费的标注：奖励模型能标注任意多对，并把标注者的噪声平均掉",
                    ),
                    T(
                        "Limited capacity: a policy that cannot be π* is best where it was shown pairs",
                        "能力有限：不能成为 π* 的策略，在看过成对数据的地方最好",
                    ),
                    T(
                        "Statistics of the pairs: by the price of a label, no clear gain",
                        "成对数据的统计：按标注的价格，并无明显好处",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        "The experiment `rso-why` turns each of the three on and off.",
                        "实验 `rso-why` 把三者逐一打开和关闭。",
                    ),
                    quiet=True,
                ),
            ),
            notes=T(
                "Collect answers on the board before showing anything. Which of them could be tested with the table "
                "of the paper alone? None.",
                "先把回答写在黑板上。只用论文的表格能检验其中哪一个？一个也不能。",
            ),
            answer_notes=T(
                "This is how to read any ablation: two things changed at once cannot be told apart afterwards.",
                "读任何消融实验都该如此：同时改变的两件事，事后分不开。",
            ),
            answer_title=T("Labels, capacity, statistics: three different reasons", "标注、能力、统计：三个不同的原因"),
        ),
    ),
)
