"""Block 7: RSO. Lecture, "Preference Data Distribution", "How to sample …? Rejection Sampling!", "Experiments"."""

from __future__ import annotations

from slides.results import claim, finding, verdict
from slides.schema import (
    Block,
    Bullets,
    Columns,
    DerivationPart,
    Equation,
    ExplorerPart,
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
    title=T("RSO: whose answers?", "RSO：比较谁的回答？"),
    lecture=2,
    slides=(
        Slide(
            key="rso-intuition",
            title=T(
                "We wish for pairs from π*, and have pairs from somebody", "想要来自 π* 的成对数据，手里的却来自别人"
            ),
            parts=(
                Columns(
                    left=(
                        Text(T("**Wished for**", "**想要的**")),
                        Equation(r"\mathcal{D}^* = \{(x,y_w,y_l)\;|\;y_w,y_l\sim\pi^*(y\mid x)\}"),
                        Text(T("fit by maximum likelihood", "用最大似然拟合即可")),
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
                        "An estimate is best where its data are. RSO wants them near π*.",
                        "估计在有数据的地方最准。RSO 希望数据就在 π* 附近。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "State the intuition fairly, it is a good one. Keep last lecture's answer in mind: if the policy can "
                "be π*, the limit does not depend on where pairs come from.\n\nSo a gain must come from noise, from "
                "capacity, or from somewhere else. We shall measure which. A minute and a half.",
                "公平地讲出这个直觉，它是有道理的。别忘了上一讲的答案：如果策略能表示 π*，极限与数据来源无关。\n\n"
                "所以好处只能来自噪声、来自能力不足，或来自别处。后面我们会测出来是哪一个。一分半钟。",
            ),
            minutes=1.5,
            source="Liu et al. 2024, sections 1 and 3",
        ),
        Slide(
            key="rso-choices",
            title=T(
                "Pairs have three sources, and two things change between them", "成对数据有三种来源，其间改变了两件事"
            ),
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
                "second changes whose answers are compared; the lecture says that they are then closer to π*.\n\nTwo "
                "changes, two effects. A table that shows only the ends mixes them. A minute and a half.",
                "向右第一步把奖励模型请了回来，于是想要多少成对数据都有。第二步改变的是比较谁的回答；讲义说这样离 π* 更近。"
                "\n\n两个改变，两种效应。只看两端的表格会把它们混在一起。一分半钟。",
            ),
            minutes=1.5,
            source="Liu et al. 2024, section 3; lecture, “Choices”",
        ),
        Slide(
            key="rso-algorithm",
            title=T("Rejection sampling needs a ratio, and that no Z", "拒绝采样只要一个比值，而比值不需要 Z"),
            parts=(
                Bullets(
                    T(r"Start with $\mathcal{Y} = \{\}$", r"从 $\mathcal{Y} = \{\}$ 开始"),
                    T(
                        r"Draw $y\sim\pi_\text{sft}(y\mid x)$ that is not in $\mathcal{Y}$, and $u\sim U[0,1]$",
                        r"抽取不在 $\mathcal{Y}$ 中的 $y\sim\pi_\text{sft}(y\mid x)$，以及 $u\sim U[0,1]$",
                    ),
                    T(
                        r"$M = \min\{m \mid m\,\pi_\text{sft}(y\mid x)\ge\pi_{r_\psi}(y\mid x)\;\text{ for all } y\notin\mathcal{Y}\}$",
                        r"$M = \min\{m \mid m\,\pi_\text{sft}(y\mid x)\ge\pi_{r_\psi}(y\mid x),\;\forall\, y\notin\mathcal{Y}\}$",
                    ),
                    T(
                        r"Accept $y$ if $u < \dfrac{\pi_{r_\psi}(y\mid x)}{M\,\pi_\text{sft}(y\mid x)} = \exp\!\big((r_\psi(x,y) - r_\text{max})/\beta\big)$",
                        r"若 $u < \dfrac{\pi_{r_\psi}(y\mid x)}{M\,\pi_\text{sft}(y\mid x)} = \exp\!\big((r_\psi(x,y) - r_\text{max})/\beta\big)$ 则接受 $y$",
                    ),
                    T("Go on until there are enough", "重复，直到数量足够"),
                    steps=True,
                    ordered=True,
                ),
            ),
            notes=T(
                "Z is in π_r and in M: it cancels in the ratio. The same trick as DPO's, in another place. r_max is "
                "the largest reward not yet accepted.\n\nThe honest remark: the true maximum is not known, only that "
                "of the 64 candidates. Taken afresh after each acceptance the loop has a one-line form: add Gumbel "
                "noise to r/β and take the k largest. Notebook 07 derives it and counts what the estimate costs. Two "
                "minutes.",
                "Z 同时在 π_r 和 M 里：作比就约去了。这和 DPO 是同一招，只是换了地方。r_max 是尚未接受的回答中最大的奖励。"
                "\n\n需要诚实说明：真正的最大值并不知道，只知道 64 个候选里的最大值。每次接受后重取最大值，整个循环就有一行写法："
                "给 r/β 加 Gumbel 噪声，取最大的 k 个。07 号笔记本给出推导，并算出这个估计的代价。两分钟。",
            ),
            minutes=2.0,
            source="Liu et al. 2024, section 3 and algorithm 1",
        ),
        Slide(
            key="rso-acceptance",
            title=T("Z comes back as a waiting time", "Z 以等待时间的形式回来了"),
            parts=(
                DerivationPart(
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
                "How many draws does one accepted answer cost? One over this probability. The last line is the useful "
                "one: an average that can be estimated from draws one has anyway.\n\nAt small β nearly everything is "
                "thrown away: no free lunch. A minute and a half.",
                "接受一个回答要抽多少次？这个概率的倒数。最后一行最有用：一个可以用现成样本估计的平均值。\n\n"
                "β 很小时几乎全部被扔掉：没有免费的午餐。一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-rejection-explorer",
            title=T(
                "Accepted draws are exact; the rejected pay for it",
                "被接受的样本分布精确，代价是被拒绝的那些",
            ),
            parts=(
                ExplorerPart(
                    "rejection",
                    advice=T(
                        "Let the draws come, then lower β: sharper, and dearer.",
                        "先看逐次抽样，再减小 β：更尖，也更贵。",
                    ),
                    only=("step", "beta"),
                ),
            ),
            notes=T(
                "Walk through the first ten draws one by one: which was accepted, and why. Then go to two hundred: the "
                "accepted shares settle on π_r.\n\nLower β step by step and read the acceptance rate aloud. At β near "
                "zero this is best-of-n: only the best candidate passes. Two minutes.",
                "先一次一次走过前十次抽样：哪些被接受，为什么。再移到二百次：被接受的比例稳定到 π_r。\n\n"
                "然后逐步减小 β，把接受率念出来。β 接近零时就是 best-of-n：只有最好的候选能通过。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-losses",
            title=T("On the same pairs, three losses learn three things", "同样的成对数据，三种损失学到三样东西"),
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
                        r"$\Delta$: difference of log-ratios to $\pi_\text{sft}$; “norm”: divided by $\pi_\text{sft}$, not by length",
                        r"$\Delta$：对 $\pi_\text{sft}$ 的对数比之差；“norm”指除以 $\pi_\text{sft}$，不是除以长度",
                    ),
                    source="Liu et al. 2024, table 1; Zhao et al. 2023 (SLiC-HF)",
                ),
                Text(
                    T(
                        r"γ sets where sigmoid-norm ends, $\pi_\text{sft}\,e^{r/\gamma}/Z$; β of the sampler only whom it asks.",
                        r"γ 决定 sigmoid-norm 的终点 $\pi_\text{sft}\,e^{r/\gamma}/Z$；采样器的 β 只决定问谁。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "sigmoid-norm is DPO's loss with γ for β. Two numbers are easily confused: β of the sampler and γ of "
                "the loss. The paper uses 0.5 and 0.05; DPO has only one.\n\nThe hinge's pull does not change with "
                "how clear a preference is: a 51% preference gets the margin of a 99% one. Notebook 08 derives both. A "
                "minute and a half.",
                "sigmoid-norm 就是把 β 换成 γ 的 DPO 损失。两个数容易混：采样器的 β 和损失的 γ。论文用 0.5 与 0.05；DPO 只有一个。"
                "\n\nhinge 的拉力与偏好有多明显无关：51% 的偏好得到与 99% 相同的间隔。两者的推导见 08 号笔记本。一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-paper",
            title=T("In the paper each step to the right wins more", "论文里，每往右一步都赢得更多"),
            parts=(
                Table(
                    (
                        T("pairs (sigmoid-norm)", "成对数据（sigmoid-norm）"),
                        T("TL;DR proxy", "TL;DR 代理"),
                        T("gold", "金标"),
                        T("AutoSxS", "AutoSxS"),
                        T("HH proxy", "HH 代理"),
                        T("gold", "金标"),
                        T("AutoSxS", "AutoSxS"),
                    ),
                    (
                        ("RAFT", "74.84", "68.51", "53.77", "58.21", "40.00", "24.99"),
                        ("ReST", "49.03", "46.17", "34.36", "43.48", "30.33", "15.58"),
                        (T("direct (DPO)", "direct（DPO）"), "84.35", "76.09", "67.72", "51.63", "36.13", "24.01"),
                        ("sft-sample-rank", "88.63", "78.14", "69.02", "85.09", "58.65", "39.56"),
                        ("rso-sample-rank", "92.37", "82.22", "71.86", "86.94", "59.15", "40.98"),
                    ),
                    T(
                        "Wins in % against the SFT target, Reddit TL;DR and AnthropicHH",
                        "对 SFT 目标的胜率（%），Reddit TL;DR 与 AnthropicHH",
                    ),
                    source="Liu et al. 2024, table 1",
                    strong=(4,),
                ),
            ),
            notes=T(
                "Read down a column: the largest step on HH is from direct to sft-sample-rank, that is from people's "
                "labels to the reward model's, not from one distribution to the other.\n\nAsk: what would you need "
                "to see, to know which of the two changes helped? A minute and a half.",
                "竖着读一列：HH 上最大的一步是从 direct 到 sft-sample-rank，也就是从人的标注到奖励模型的标注，"
                "而不是从一种分布到另一种分布。\n\n问：要看到什么，你才能知道是哪一个改变起了作用？一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-table-claim",
            title=T("Rerun in small, the order turns round", "缩小重做一遍，次序反了过来"),
            parts=claim(
                "rso-table",
                "small",
                paper=T(
                    "wins on TL;DR: rso 71.86%, sft 69.02%, direct 67.72%, RAFT 53.77%, ReST 34.36%.",
                    "TL;DR 胜率：rso 71.86%，sft 69.02%，direct 67.72%，RAFT 53.77%，ReST 34.36%。",
                ),
                source="Liu et al. 2024, table 1",
                found=(
                    finding(
                        "rso-table",
                        "small",
                        "not supported",
                        "On both tasks pairs from π_r win less than pairs from π_sft (summaries: "
                        "{rso_over_sft_sigmoid_norm_summaries:signed,points} points), and RAFT and ReST win more than RSO. "
                        "Two responses that π_r accepts are so similar that only {correct_labels_rso_summaries:percent,mean,0} "
                        "of their labels are correct.",
                        "两个任务上，π_r 的成对数据胜率都低于 π_sft 的（摘要：{rso_over_sft_sigmoid_norm_summaries:signed,points} "
                        "个百分点），RAFT 和 ReST 胜过 RSO。π_r 接受的回答彼此太像，只有 "
                        "{correct_labels_rso_summaries:percent,mean,0} 的标注是对的。",
                        conditions=(
                            "rso_over_sft_sigmoid_norm_summaries < 0",
                            "rso_over_sft_sigmoid_norm_dialogue < 0",
                            "rso_over_raft_summaries < 0",
                            "rso_over_rest_summaries < 0",
                            "rso_over_raft_dialogue < 0",
                            "rso_over_rest_dialogue < 0",
                            "correct_labels_rso_summaries < 0.65",
                        ),
                    ),
                ),
                alt="摘要任务十一行方法的胜率：实心点是本课程的评判与区间，空心菱形是金标奖励，叉是论文的数字。",
                size=(5.8, 4.9),
                share=0.42,
            ),
            notes=T(
                "Crosses are the paper's numbers. Do not read this as a refutation: a million weights, a few dozen "
                "steps, a reward model no larger than the policy, which labels twice as many pairs as people did. It "
                "says that the order is not a law, and shows a way in which it fails: the label is drawn from the "
                "reward model's own probability, and two answers that π_r both accepts have nearly the same "
                "reward.\n\nThe exact bandit and tree say the same. What differs from the paper is listed in "
                "docs/claims.md. Ask which difference they suspect. Two minutes.",
                "叉是论文的数字。不要把它当成反驳：一百万参数，几十步训练，奖励模型不比策略大，它标注的对数是人的两倍。"
                "它说明这个次序不是定律，也显示了一种失效的方式：标注按奖励模型自己的概率抽取，而 π_r 都接受的两个回答"
                "奖励几乎相同。\n\n精确的老虎机和词元树结论相同。与论文的不同之处列在 docs/claims.md 里。"
                "问问大家怀疑是哪一点。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-pairs-explorer",
            title=T("What a pair teaches can be computed, and β decides", "一对数据教会多少可以算出来，取决于 β"),
            parts=(
                ExplorerPart(
                    "pair_sources",
                    advice=T("Change the source, then lower β.", "换一种来源，再减小 β。"),
                    only=("source", "beta"),
                ),
            ),
            notes=T(
                "The price of a label is exact: N labels leave a regret of price over N. At the left who stands in the "
                "pairs, at the right the labels needed, as a multiple of the best design's.\n\nIn this world of four "
                "answers pairs of π_r are cheapest at small β, and at large β the sources come together. Do not "
                "generalise: on worlds of more answers pairs from π* are the dearest of all, as the last block shows. "
                "The price does not ask who labels, so free labels are another matter. Two minutes.",
                "标注的价格可以精确计算：N 个标注留下的遗憾约为“价格除以 N”。左边是哪些回答成对，右边是所需标注数，"
                "以最优设计为单位。\n\n在这个只有四个回答的世界里，β 小时 π_r 的成对数据最便宜，β 大时几种来源趋于一致。"
                "不要推广：回答更多时，来自 π* 的成对数据最贵，最后一节会看到。价格不问由谁标注，免费标注是另一回事。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-settings-claim",
            title=T(
                "A small β of the sampler hurts, in our runs",
                "在我们的实验里，采样器的 β 太小有害",
            ),
            parts=claim(
                "rso-settings",
                "bandit",
                paper=T(
                    "best are β = 0.5 of 0 to 5, γ = 0.05 of 0.005 to 0.5.",
                    "β 在 0 到 5 中 0.5 最好，γ 在 0.005 到 0.5 中 0.05 最好。",
                ),
                source="Liu et al. 2024, fig. 3",
                found=(
                    verdict(
                        "rso-settings",
                        "bandit",
                        "Borne out: the paper's small γ above γ = β. In part: pairs at the paper's β above both ends, "
                        "β = 0 (top 8 of 64) and no rejection. Contradicted: rso-8 above sft-8 and sft-64. Not "
                        "decided: tournament above first-round by the reward model.",
                        "Wins at β = 0.5: {0} points against β = {1}, {2} against no rejection. The small γ wins more; "
                        "rso-8 does not.",
                        "β = 0.5 的胜率与 β = {1} 相差 {0} 个百分点，与不拒绝相差 {2}。小的 γ 胜得更多；rso-8 并不更好。",
                        also="at β = 0.5 differ by {} points from those of β = {} and by {} points from those of no "
                        "rejection",
                    ),
                ),
                alt="上：胜率之差，下：J 之差，都相对于 β = γ = 0.5，横轴是采样器的 β，从 0 到不拒绝。",
                panels=(0, 3),
                stacked=True,
                share=0.44,
            ),
            notes=T(
                "Above: wins against those at β = 0.5. Below: J, which also counts the price of KL. Both rise to the "
                "right.\n\nFor a table the limit does not depend on the sampler's β at all: this picture is about "
                "noise alone. A small γ goes far from π_ref: more wins, less J. "
                "The paper's table 2 has rso-8 above sft-8 and sft-64, and tournaments above first rounds by the reward "
                "model; here the first is contradicted, the second not decided. A minute and a half.",
                "上图：相对 β = 0.5 的胜率。下图：J，把 KL 的代价也算进去。两者都是越往右越高。\n\n对表格来说，极限与采样器的 β "
                "完全无关：这张图只反映噪声。小的 γ 走得离 π_ref 很远：胜率高，J 却低。论文表 2 中 rso-8 胜过 sft-8 和 sft-64，"
                "按奖励模型锦标赛胜过首轮；这里前者被否定，后者尚无定论。一分半钟。",
            ),
            minutes=1.5,
        ),
        *question(
            "rso-question",
            T(
                "In the paper RSO's pairs beat direct ones. Name three possible reasons",
                "论文里 RSO 的成对数据胜过 direct，说出三个可能的原因",
            ),
            parts=(
                Bullets(
                    T("Free labels: any number of pairs, by a reward model?", "免费的标注：奖励模型想标多少就标多少？"),
                    T("Limited capacity: a policy that cannot fit everywhere?", "能力有限：策略无法处处拟合？"),
                    T("Statistics: pairs in a better place?", "统计：成对数据的位置更好？"),
                    steps=True,
                ),
            ),
            answer=claim(
                "rso-why",
                "tree",
                paper=T(
                    "to estimate π* by likelihood one needs pairs drawn from it.",
                    "对 π* 做最大似然估计，需要从它抽取的成对数据。",
                ),
                source="Liu et al. 2024, abstract",
                found=(
                    verdict(
                        "rso-why",
                        "tree",
                        "Gain of J by pairs from π_r in place of π_ref: full policy {}, limited policy {}. "
                        "Explanations: free labels helps the full policy (full {}, limited {}); limited capacity is "
                        "not decided (limited {}); statistics hurts (full {}, limited {}).",
                        "Pairs from π_r change J by {0}, free labels by {2}. Capacity: open.",
                        "π_r 的成对数据使 J 变化 {0}，免费标注使 J 变化 {2}。能力：尚无定论。",
                    ),
                    verdict(
                        "rso-why",
                        "bandit",
                        "Gain of J by pairs from π_r in place of π_ref: full policy {}, limited policy {}. "
                        "Explanations: free labels hurts (full {}, limited {}); limited capacity hurts (limited {}); "
                        "statistics is not decided (full {}, limited {}).",
                        "Limited capacity: {4}; free labels: {2}.",
                        "能力有限：{4}；免费标注：{2}。",
                    ),
                ),
                alt="词元树上各个因素使 J 增加多少，完整策略与受限策略，带 95% 区间：免费标注、来自 π_r 的成对数据、其中能力与统计的部分、金标标注、来自 π* 的成对数据。",
                share=0.44,
            ),
            notes=T(
                "Collect answers on the board before showing the list. Which of them could be tested with the paper's "
                "table alone? None: two things changed at once. A minute and a half.",
                "先把回答写在黑板上，再展开列表。只用论文的表格能检验其中哪一个？一个也不能：同时改变了两件事。一分半钟。",
            ),
            answer_notes=T(
                "A factorial design turns each reason on and off; J is exact. Where the reward model knows more than a "
                "table of the labels, on the tree, its free labels help; where it knows the same, on the bandit, they "
                "only blur. Pairs of π_r help on neither.\n\nWhy can a limited policy be worse with them? They are "
                "silent on what π_r hardly gives, and the regret is a mean over the policy's own answers. Two minutes.",
                "析因设计把每个原因逐一打开和关闭，J 是精确的。在词元树上奖励模型比标注表格知道得多，免费标注有用；在老虎机上"
                "两者知道的一样多，免费标注只会变模糊。π_r 的成对数据在两处都没有好处。\n\n受限策略为什么会更差？π_r 几乎不给出的"
                "回答从未被比较，而遗憾是对策略自己的回答求平均。两分钟。",
            ),
            answer_title=T(
                "Free labels may help; RSO's pairs do not, here",
                "免费标注可能有用；RSO 的成对数据在这里没有用",
            ),
            minutes=(1.5, 2.0),
        ),
    ),
)
