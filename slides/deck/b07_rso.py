"""Block 7: RSO. Sections of the lecture: "Preference Data Distribution", "How to sample …?", "Experiments"."""

from __future__ import annotations

from slides.results import claim, finding
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
    title=T(
        "RSO: from which policy should the pairs come?",
        "RSO：成对数据应来自哪个策略？",
    ),
    lecture=2,
    slides=(
        Slide(
            key="rso-intuition",
            title=T(
                "RSO would like pairs from π*; the available ones differ",
                "RSO 希望成对数据来自 π*，手头的却另有来源",
            ),
            parts=(
                Columns(
                    left=(
                        Text(
                            T(
                                "**Wanted**",
                                "**想要的**",
                            )
                        ),
                        Equation(r"\mathcal{D}^* = \{(x,y_w,y_l)\;|\;y_w,y_l\sim\pi^*(y\mid x)\}"),
                        Text(
                            T(
                                "fit by maximum likelihood",
                                "用最大似然拟合",
                            )
                        ),
                    ),
                    right=(
                        Text(
                            T(
                                "**Available**",
                                "**现有的**",
                            )
                        ),
                        Equation(r"\mathcal{D}_\text{hf} = \{(x,y_w,y_l)\;|\;y_w,y_l\sim\pi_\text{unk}(y\mid x)\}"),
                        Text(
                            T(
                                "a mixture of the SFT policy, older policies and other models",
                                "SFT 策略、旧策略和其他模型的混合",
                            )
                        ),
                    ),
                ),
                Text(
                    T(
                        "An estimate is most accurate where its data are. RSO wants data near π*.",
                        "估计在有数据的地方最准。RSO 希望数据在 π* 附近。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Explain the intuition, which is a reasonable one. Remember the answer of the last lecture: if "
                "the policy class contains π*, the limit does not depend on the source of the pairs.\n\n"
                "An improvement must therefore come from less noise, from limited capacity, or from something "
                "else. We shall measure which one it is.",
                "讲清这个直觉，它是有道理的。回顾上一讲的答案：如果策略类包含 π*，极限与成对数据的来源无关。\n\n"
                "所以改进只能来自更小的噪声、有限的能力或其他原因。后面会测出来是哪一个。",
            ),
            minutes=1.5,
            source="Liu et al. 2024, sections 1 and 3",
        ),
        Slide(
            key="rso-choices",
            title=T(
                "The three sources of pairs differ in two respects",
                "成对数据有三种来源，它们有两点不同",
            ),
            parts=(
                Flow(
                    Step(
                        T("direct", "direct"),
                        T(
                            r"$\mathcal{D}_\text{hf}$, labelled by people",
                            r"人工标注的 $\mathcal{D}_\text{hf}$",
                        ),
                        "rso-direct",
                    ),
                    Step(
                        T("sft-sample-rank", "sft-sample-rank"),
                        T(
                            r"samples of $\pi_\text{sft}$, labelled by $r_\psi$",
                            r"$\pi_\text{sft}$ 的样本，由 $r_\psi$ 标注",
                        ),
                        "rso-sft-sample-rank",
                    ),
                    Step(
                        T("rso-sample-rank", "rso-sample-rank"),
                        T(
                            r"samples of $\pi_{r_\psi}$, labelled by $r_\psi$",
                            r"$\pi_{r_\psi}$ 的样本，由 $r_\psi$ 标注",
                        ),
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
                "The first step to the right uses a reward model again, which can label any number of pairs. The "
                "second step changes the policy from which the answers are sampled. According to the lecture "
                "these answers are then closer to π*.\n\n"
                "These are two changes with two effects. A table that compares only the first and the last column "
                "cannot separate them.",
                "向右第一步重新使用奖励模型，于是可以标注任意多的成对数据。第二步改变采样回答的策略；讲义说这样离 "
                "π* 更近。\n\n"
                "这是两个改变，有两种效应。只比较两端的表格无法把它们分开。",
            ),
            minutes=1.5,
            source="Liu et al. 2024, section 3; lecture, “Choices”",
        ),
        Slide(
            key="rso-algorithm",
            title=T(
                "Rejection sampling needs only a ratio, so Z cancels",
                "拒绝采样只需要一个比值，所以 Z 约去",
            ),
            parts=(
                Bullets(
                    T(r"Start with $\mathcal{Y} = \{\}$", r"从 $\mathcal{Y} = \{\}$ 开始"),
                    T(
                        r"Sample $y\sim\pi_\text{sft}(y\mid x)$ that is not in $\mathcal{Y}$, and $u\sim U[0,1]$",
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
                    T(
                        "Repeat until there are enough answers",
                        "重复，直到数量足够",
                    ),
                    steps=True,
                    ordered=True,
                ),
            ),
            notes=T(
                "Both π_r and M contain Z, which cancels in the ratio, as in DPO. r_max is the maximum reward "
                "among the answers not yet accepted.\n\n"
                "The true maximum is not known. The algorithm uses the maximum of 64 candidates. If the maximum "
                "is updated after each acceptance, the whole loop is equivalent to one line: add Gumbel noise to "
                "r/β and take the k largest. Notebook 07 derives this and computes the error of the estimated "
                "maximum.",
                "π_r 和 M 都含有 Z，作比就约去了，这与 DPO 相同。r_max 是尚未接受的回答中最大的奖励。\n\n"
                "真正的最大值并不知道，算法使用 64 个候选中的最大值。若每次接受后更新最大值，整个循环等价于一行："
                "给 r/β 加 Gumbel 噪声，取最大的 k 个。07 号笔记本给出推导，并计算估计最大值带来的误差。",
            ),
            minutes=2.0,
            source="Liu et al. 2024, section 3 and algorithm 1",
        ),
        Slide(
            key="rso-acceptance",
            title=T(
                "The acceptance rate depends on Z",
                "接受率取决于 Z",
            ),
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
                "One accepted answer needs on average the inverse of this probability in samples. The last line "
                "is useful in practice, because its mean can be estimated from the samples that are drawn anyway.\n\n"
                "With a small β almost all samples are rejected.",
                "接受一个回答平均需要的样本数，是这个概率的倒数。最后一行在实践中有用：这个平均值可以用已有的样本"
                "估计。\n\n"
                "β 很小时，几乎所有样本都被拒绝。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-rejection-explorer",
            title=T(
                "Accepted samples follow π_r; the rejected ones are the cost",
                "被接受的样本精确服从 π_r，代价是被拒绝的样本",
            ),
            parts=(
                ExplorerPart(
                    "rejection",
                    advice=T(
                        "Show single samples, then lower β: more samples are rejected.",
                        "先看逐次采样，再减小 β：更多样本被拒绝。",
                    ),
                    only=("step", "beta"),
                ),
            ),
            notes=T(
                "Show the first ten samples one by one, and explain which were accepted and why. Then go to two "
                "hundred samples: the proportions of the accepted ones converge to π_r.\n\n"
                "Decrease β step by step and read the acceptance rate aloud. As β approaches zero, this becomes "
                "best-of-n, because only the best candidate is accepted.",
                "先逐个展示前十个样本：哪些被接受，为什么。再移到二百个：被接受样本的比例收敛到 π_r。\n\n"
                "然后逐步减小 β，把接受率念出来。β 趋于零时就是 best-of-n：只有最好的候选被接受。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-losses",
            title=T(
                "Three losses learn different things from the same pairs",
                "同样的成对数据，三种损失学到的东西不同",
            ),
            parts=(
                Table(
                    (T("name", "名称"), T("loss", "损失"), T("what it learns", "学到什么")),
                    (
                        (
                            "sigmoid-norm",
                            r"$-\log\sigma(\gamma\Delta)$",
                            T(
                                "which answer is better, and by how much",
                                "哪个回答更好，好多少",
                            ),
                        ),
                        (
                            "hinge-norm",
                            r"$\max(0,\,1-\gamma\Delta)$",
                            T(
                                "which answer is better",
                                "哪个回答更好",
                            ),
                        ),
                        (
                            "hinge",
                            r"$\max(0,\,1-\gamma\,(\log\pi_w-\log\pi_l))$",
                            T(
                                "which answer is better, without a reference",
                                "哪个回答更好，没有参考策略",
                            ),
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
                        r"sigmoid-norm converges to $\pi_\text{sft}\,e^{r/\gamma}/Z$. The sampler's β only selects the "
                        "pairs.",
                        r"sigmoid-norm 收敛到 $\pi_\text{sft}\,e^{r/\gamma}/Z$；采样器的 β 只决定用哪些成对数据。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "sigmoid-norm is DPO's loss with γ in place of β. Two parameters are easily confused: the "
                "sampler's β and the loss's γ. The paper uses 0.5 and 0.05. DPO has only one of them.\n\n"
                "The gradient of the hinge loss does not depend on how clear a preference is: a preference of 51% "
                "leads to the same margin as one of 99%. Notebook 08 derives both limits.",
                "sigmoid-norm 就是把 β 换成 γ 的 DPO 损失。两个参数容易混：采样器的 β 和损失的 γ。论文用 0.5 与 "
                "0.05；DPO 只有其中一个。\n\n"
                "hinge 的梯度与偏好有多明显无关：51% 的偏好与 99% 的偏好得到相同的间隔。两者的极限见 08 号笔记本"
                "的推导。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-paper",
            title=T(
                "In the paper each change of source increases the win rate",
                "论文里，每改变一次来源，胜率都提高",
            ),
            parts=(
                Table(
                    (
                        T("pairs (sigmoid-norm)", "成对数据（sigmoid-norm）"),
                        T(
                            "TL;DR proxy",
                            "TL;DR 代理",
                        ),
                        T(
                            "gold",
                            "真实",
                        ),
                        T("AutoSxS", "AutoSxS"),
                        T("HH proxy", "HH 代理"),
                        T(
                            "gold",
                            "真实",
                        ),
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
                        "Win rates in % against the SFT target, Reddit TL;DR and AnthropicHH",
                        "对 SFT 目标的胜率（%），Reddit TL;DR 与 AnthropicHH",
                    ),
                    source="Liu et al. 2024, table 1",
                    strong=(4,),
                ),
            ),
            notes=T(
                "Compare the rows of one column. On HH the largest step is from direct to sft-sample-rank. This "
                "step replaces human labels by the reward model's labels. It does not change the distribution "
                "towards π_r.\n\n"
                "Ask which result would show which of the two changes helped.",
                "竖着比较一列：HH 上最大的一步是从 direct 到 sft-sample-rank。这一步用奖励模型的标注代替人工标注"
                "，而没有把分布变为 π_r。\n\n"
                "问：什么样的结果才能说明是哪一个改变起了作用？",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-table-claim",
            title=T(
                "At the paper's settings pairs from π_r win more, and their J is lower",
                "在论文的设置下，π_r 的成对数据胜率更高，J 更低",
            ),
            parts=claim(
                "rso-table",
                "bandit",
                paper=T(
                    "TL;DR wins: rso 72%, sft 69%, direct 68%, RAFT 54%, ReST 34%.",
                    "TL;DR 胜率：rso 72%，sft 69%，direct 68%，RAFT 54%，ReST 34%。",
                ),
                source="Liu et al. 2024, table 1",
                found=(
                    finding(
                        "rso-table",
                        "bandit",
                        "partly supported",
                        "Pairs from π_r instead of π_sft change the wins by {rso_over_sft:signed,points} points and J "
                        "by {objective_rso_over_sft:signed}. With γ = β, sampled labels and long training they change "
                        "the wins by {judge_rso_over_sft_equal_sampled_long:signed,points}. RAFT beats RSO.",
                        "与 π_sft 的成对数据相比，π_r 的胜率差 {rso_over_sft:signed,points} 个百分点，J 变化 "
                        "{objective_rso_over_sft:signed}。γ = β、标注抽样、训练长时，胜率差 "
                        "{judge_rso_over_sft_equal_sampled_long:signed,points} 个百分点。RAFT 胜过 RSO。",
                        conditions=(
                            "rso_over_sft > 0",
                            "objective_rso_over_sft < 0",
                            "judge_rso_over_sft_equal_sampled_long < 0",
                            "rso_over_raft < 0",
                        ),
                    ),
                ),
                alt="十六种设置下，π_r 的成对数据减去 π_sft 的：按标注者、真实奖励和奖励模型计算的胜率之差与区间。",
                panels=(1,),
                size=(7.4, 5.0),
                share=0.42,
            ),
            notes=T(
                "Each row of the picture is one setting. The first row is the paper's: γ = 0.05, labels by the larger "
                "reward, a reward model with many labels, short training. The points show by how much pairs from π_r "
                "change the wins.\n\n"
                "The explanation has three parts. A small γ moves the limit π_sft exp(r/γ) far away. The length of training "
                "decides how much of this distance is reached, and pairs from π_r go faster because they consist of good "
                "answers. The reward model decides whether the wins are real: with few labels the wins by the reward model "
                "rise, and those by the gold labeller hardly do.\n\n"
                "Our first run had γ = β and sampled labels and came out the other way. Ask which column of the paper's "
                "table would show the lower J.",
                "图中每一行是一种设置。第一行是论文的：γ = 0.05，奖励大的一方为优，奖励模型的标注多，训练短。点表示 π_r "
                "的成对数据使胜率改变多少。\n\n"
                "解释有三点。γ 小时，极限 π_sft exp(r/γ) 很远。训练长度决定走到多远，而 π_r 的成对数据都是好的回答，所以走得"
                "更快。奖励模型决定胜率是否真实：标注少时，按奖励模型的胜率上升，按真实标注者的几乎不变。\n\n"
                "我们的第一次实验用 γ = β 和抽样标注，结论相反。问：论文的表里，哪一列能看出 J 更低？",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-pairs-explorer",
            title=T(
                "The labels needed per pair source can be computed exactly",
                "每种来源需要多少标注，可以精确计算",
            ),
            parts=(
                ExplorerPart(
                    "pair_sources",
                    advice=T(
                        "Change the source, then lower β.",
                        "换一种来源，再减小 β。",
                    ),
                    only=("source", "beta"),
                ),
            ),
            notes=T(
                "With N labels the regret is a constant divided by N, and this constant can be computed exactly "
                "for each source. The left panel shows the distribution of the pairs. The right panel shows the "
                "number of labels needed, as a multiple of that of the best design.\n\n"
                "In this world of four answers, pairs from π_r need the fewest labels at small β, and at large β "
                "the sources hardly differ. This does not hold in general: in worlds with more answers, pairs "
                "from π* need the most labels, as the last block shows. The constant does not depend on who "
                "labels, so labels by a reward model are another question.",
                "N 个标注时，后悔值等于一个常数除以 N，每种来源的常数都可以精确计算。左图是成对数据的分布，右图是"
                "所需标注数，以最优设计为单位。\n\n"
                "在这个只有四个回答的世界里，β 小时来自 π_r 的成对数据所需标注最少，β 大时几种来源差别很小。这并"
                "不普遍：回答更多时，来自 π* 的成对数据所需标注最多，最后一节会看到。这个常数与由谁标注无关，所以"
                "由奖励模型标注是另一个问题。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-hyperparameters-claim",
            title=T(
                "The paper's Figure 3 returns on the bandit, by wins and not by J",
                "按胜率，老虎机重现了论文的图 3；按 J 则没有",
            ),
            parts=claim(
                "rso-hyperparameters",
                "bandit",
                paper=T(
                    "β = 0.5 of 0 to 5 and γ = 0.05 of 0.005 to 0.5 are best.",
                    "β 在 0 到 5 中 0.5 最好，γ 在 0.005 到 0.5 中 0.05 最好。",
                ),
                source="Liu et al. 2024, fig. 3",
                found=(
                    finding(
                        "rso-hyperparameters",
                        "bandit",
                        "supported",
                        "By the reward model, β = 0.5 wins {beta_over_0:signed,points} points more than β = 0 and {beta_over_5:signed,points} more than β = 5. With sampled labels and long training γ = 0.05 wins {small_gamma:signed,points} more than γ = β. By J, β = 0.5 loses against β = 5 ({objective_beta_over_5_paper:signed}).",
                        "按奖励模型，β = 0.5 的胜率比 β = 0 高 {beta_over_0:signed,points} 个百分点，比 β = 5 高 {beta_over_5:signed,points}。标注抽样、训练长时，γ = 0.05 比 γ = β 高 {small_gamma:signed,points}。按 J，β = 0.5 不如 β = 5（{objective_beta_over_5_paper:signed}）。",
                        conditions=(
                            "beta_over_0 > 0",
                            "beta_over_5 > 0",
                            "small_gamma > 0",
                            "objective_beta_over_5_paper < 0",
                        ),
                    ),
                ),
                alt="左：采样器的 β 取不同值时的胜率；右：损失的 γ 取不同值时的胜率。按奖励模型、标注者和真实奖励计算。",
                panels=(0, 1),
                size=(7.0, 4.8),
                share=0.42,
            ),
            notes=T(
                "The left panel shows wins by the sampler's β in the paper's cell, the right one wins by γ after long training on sampled labels.\n\nA smaller β and a smaller γ both take the policy further from π_ref, which adds wins. At β = 0 only nearly equal answers are compared, so the wins are lower again. For a tabular policy with sampled labels the limit depends on γ alone: it is π_ref exp(r/γ). With hard labels there is no limit, and γ hardly matters. J, which includes the KL penalty, prefers less movement.\n\nAsk why the paper could not see this in its figure.",
                "左图是论文设置下胜率随采样器的 β 的变化，右图是标注抽样、长训练后胜率随 γ 的变化。\n\nβ 小、γ 小都使策略离 π_ref 更远，胜率因此更高。β = 0 时只比较几乎相同的回答，胜率又降低。对表格策略，标注抽样时极限只取决于 γ，即 π_ref exp(r/γ)；硬标注时没有极限，γ 几乎不起作用。包含 KL 惩罚的 J 偏好更小的移动。\n\n问：论文的图里为什么看不出这一点？",
            ),
            minutes=1.5,
        ),
        *question(
            "rso-question",
            T(
                "In the paper RSO's pairs beat direct ones. What are three possible reasons?",
                "论文里 RSO 的成对数据胜过 direct，可能的三个原因是什么？",
            ),
            parts=(
                Bullets(
                    T(
                        "Free labels: does the reward model label any number of pairs?",
                        "免费标注：奖励模型可以标注任意多的成对数据？",
                    ),
                    T(
                        "Limited capacity: can the policy not fit all pairs?",
                        "能力有限：策略无法拟合所有成对数据？",
                    ),
                    T(
                        "Statistics: are these pairs more informative?",
                        "统计：这些成对数据的信息更多？",
                    ),
                    steps=True,
                ),
            ),
            answer=claim(
                "rso-why",
                "tree",
                paper=T(
                    "fitting π* needs pairs from π*.",
                    "对 π* 做最大似然估计，需要从 π* 采样的成对数据。",
                ),
                source="Liu et al. 2024, abstract",
                found=(
                    finding(
                        "rso-why",
                        "tree",
                        "not supported",
                        "Pairs from π_r change J by {pi_r_pairs_full:signed}, additional labels of r_φ by "
                        "{more_labels_full:signed}. Limited capacity is undecided.",
                        "对完整策略，π_r 的成对数据使 J 变化 {pi_r_pairs_full:signed}，r_φ 的额外标注使 J 变化 "
                        "{more_labels_full:signed}。能力有限的作用尚无定论。",
                        conditions=("pi_r_pairs_full < 0", "more_labels_full > 0", "capacity_limited ~ 0"),
                    ),
                    finding(
                        "rso-why",
                        "bandit",
                        "not supported",
                        "Limited capacity has an effect of {capacity_limited:signed}, additional labels of {more_labels_full:signed}.",
                        "能力有限时，π_r 的成对数据使 J 变化 {capacity_limited:signed}；额外标注：{more_labels_full:signed}。",
                        conditions=("capacity_limited < 0", "more_labels_full < 0"),
                    ),
                ),
                alt="词元树上各个因素使 J 增加多少，完整策略与受限策略，带 95% 区间：免费标注、来自 π_r 的成对数据、其中能力与统计的部分、真实奖励的标注、来自 π* 的成对数据。",
                share=0.44,
            ),
            notes=T(
                "Collect answers on the board before you show the list. Ask which of them can be tested with the "
                "paper's table alone. The answer is none, because two things changed at the same time.",
                "先把回答写在黑板上，再展开列表。问：只用论文的表格能检验其中哪一个？一个也不能，因为同时改变了两"
                "件事。",
            ),
            answer_notes=T(
                "A factorial design switches each reason on and off, and J is computed exactly. On the "
                "tree the reward model generalises beyond a table of the labels, and its additional labels "
                "help. On the bandit it does not, and its labels only add noise. Pairs from π_r help on "
                "neither.\n\n"
                "A limited policy can be worse with them for the following reason. They do not compare the "
                "answers that are rare under π_r, but the regret is a mean over the answers of the policy "
                "itself.",
                "析因设计把每个原因逐一打开和关闭，J 精确计算。在词元树上，奖励模型比标注表格泛化得更好，"
                "它的额外标注有用；在老虎机上它没有更多信息，它的标注只增加噪声。π_r 的成对数据在两处都没"
                "有好处。\n\n"
                "受限策略为什么会更差？这些数据不比较在 π_r 下很少出现的回答，而后悔值是对策略本身的回答求"
                "平均。",
            ),
            answer_title=T(
                "Free labels may help; in our runs RSO's pairs do not",
                "免费标注可能有用；在我们的实验里 RSO 的成对数据没有用",
            ),
            minutes=(1.5, 2.0),
        ),
        Slide(
            key="rso-phase-claim",
            title=T(
                "Pairs from π_r help a restricted policy where it misses little, or misses smoothly",
                "策略受限时，若缺失的奖励很少或变化平滑，来自 π_r 的成对数据有用",
            ),
            parts=claim(
                "rso-phase",
                "bandit",
                paper=T(
                    "fitting π* needs pairs from π*.",
                    "对 π* 做最大似然估计，需要从 π* 采样的成对数据。",
                ),
                source="Liu et al. 2024, abstract",
                found=(
                    finding(
                        "rso-phase",
                        "bandit",
                        "supported",
                        "Regret changes by {r_noise:mean,percent,signed} (noise) or "
                        "{r_saturating:mean,percent,signed} (saturating) if 10% is missed, and by "
                        "{map_r_noise_0.6_0.5:mean,percent,signed} if 60% is missed as noise.",
                        "缺失奖励方差的十分之一时，后悔值变化 {r_noise:mean,percent,signed}（噪声）和 "
                        "{r_saturating:mean,percent,signed}（饱和）。60% 作为噪声缺失时，变化 "
                        "{map_r_noise_0.6_0.5:mean,percent,signed}。",
                        conditions=("r_noise < 0", "r_saturating < 0", "map_r_noise_0.6_0.5 > 0"),
                    ),
                    finding(
                        "rso-phase",
                        "tree",
                        "supported",
                        "With half of each, noise never raises the regret.",
                        "两种来源各取一半时，噪声情形下后悔值从不上升。",
                        conditions=("higher_mixture_noise < 1",),
                    ),
                ),
                alt="两张热力图：横轴是策略无法表示的奖励方差比例，纵轴是 β。左图缺失的是独立噪声，右图奖励饱和。"
                "每格是用 π_r 代替 π_ref 采样成对数据时后悔值变化的百分比，蓝色为下降，红色为上升。",
                panels=(0, 1),
                size=(7.0, 4.4),
                share=0.39,
            ),
            notes=T(
                "Both maps have γ = β and infinitely many labels, so only the restriction of the policy matters. To "
                "second order DPO's loss on pairs from π* is the regret's own quadratic form, which explains the blue "
                "cells.\n\n"
                "The red cells are large errors: pairs from π_r compare few of the answers that π_r makes rare, and a "
                "policy that overrates one of them gives it much probability. docs/claims.md has the intervals.",
                "两张图里 γ = β，标注无限多，所以只有策略受限起作用。展开到二阶，DPO 在 π* 的成对数据上的损失就是"
                "后悔值的二次型，这解释了蓝色的格子。\n\n"
                "红色的格子是大误差：来自 π_r 的成对数据很少比较 π_r 下稀有的回答，策略如果高估其中一个，就会给它很大"
                "的概率。区间见 docs/claims.md。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-phase-explorer",
            title=T(
                "Errors at rare responses decide whether pairs from π_r help",
                "稀有回答上的误差决定 π_r 的成对数据是否有用",
            ),
            parts=(
                ExplorerPart(
                    "pair_misfit",
                    advice=T(
                        "Change what the policy misses, then lower β.",
                        "换一种缺失，再减小 β。",
                    ),
                    stops=5,
                ),
            ),
            notes=T(
                "The left panel shows the fits in one world: the implicit reward against the reward, for pairs from "
                "π_ref and from π_r. The right panel shows the regret relative to that with pairs from π_ref, for pairs "
                "from π_r and for half of each.\n\n"
                "Let the students predict the effect of a saturating reward before you change the control.",
                "左图是一个世界里的拟合：隐式奖励对奖励，成对数据来自 π_ref 或 π_r。右图是相对于 π_ref 成对数据的后悔值"
                "，来源为 π_r，或两种各取一半。\n\n"
                "改变控件之前，先让学生预测奖励饱和时的结果。",
            ),
            minutes=1.5,
        ),
    ),
)
