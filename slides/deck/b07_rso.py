"""Block 7: RSO. Sections of the lecture: "Preference Data Distribution", "How to sample …?", "Experiments"."""

from __future__ import annotations

from slides.results import claim, finding
from slides.schema import (
    Block,
    Bullets,
    Columns,
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
                "Ideal pairs come from π*; real pairs come from other policies",
                "理想的成对数据来自 π*，实际的来自别的策略",
            ),
            parts=(
                Columns(
                    left=(
                        Text(
                            T(
                                "**Ideal data**",
                                "**理想的数据**",
                            )
                        ),
                        Equation(r"\mathcal{D}^* = \{(x,y_w,y_l)\;|\;y_w,y_l\sim\pi^*(y\mid x)\}"),
                        Text(
                            T(
                                r"$\pi_\theta$ is fitted to them by maximum likelihood",
                                r"用最大似然在这些数据上拟合 $\pi_\theta$",
                            )
                        ),
                    ),
                    right=(
                        Text(
                            T(
                                "**Available data**",
                                "**现有的数据**",
                            )
                        ),
                        Equation(r"\mathcal{D}_\text{hf} = \{(x,y_w,y_l)\;|\;y_w,y_l\sim\pi_\text{unk}(y\mid x)\}"),
                        Text(
                            T(
                                r"$\pi_\text{unk}$ is a mixture of the SFT policy, older policies and other models",
                                r"$\pi_\text{unk}$ 是 SFT 策略、旧策略和其他模型的混合",
                            )
                        ),
                    ),
                ),
                Text(
                    T(
                        "An estimate is most accurate where its data are. RSO therefore samples pairs near π*.",
                        "估计在有数据的地方最准，所以 RSO 在 π* 附近采样成对数据。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Explain the intuition, which is reasonable. Then recall a result of the first lecture. If the "
                "policy class contains π*, the limit does not depend on the source of the pairs.\n\n"
                "An improvement must therefore have another reason, such as less noise, faster convergence or "
                "limited capacity. The experiments of this block separate these reasons.",
                "讲清这个直觉，它是有道理的。再回顾第一讲的结论：如果策略类包含 π*，极限与成对数据的来源无关。\n\n"
                "所以改进必须有别的原因，例如噪声更小、收敛更快或能力有限。本节的实验会把这些原因分开。",
            ),
            minutes=1.5,
            source="Liu et al. 2024, sections 1 and 3",
        ),
        Slide(
            key="rso-choices",
            title=T(
                "The three sources differ in the labels and in the policy",
                "三种来源的标注者不同，采样策略也不同",
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
                "The first arrow replaces the labels of people by labels of a reward model, which can label any "
                "number of pairs. It also replaces the unknown policy by π_sft. The second arrow changes the "
                "policy from which the responses are sampled. According to the lecture these responses are then "
                "closer to π*.\n\n"
                "Changes of the labels and of the policy have different effects. A table that compares only the "
                "first and the last source cannot separate them.",
                "第一个箭头用奖励模型的标注代替人工标注，于是可以标注任意多的成对数据；同时用 π_sft 代替未知的策"
                "略。第二个箭头改变采样回答的策略；讲义说这样离 π* 更近。\n\n"
                "改变标注与改变策略有不同的效应。只比较第一种和最后一种来源的表格无法把它们分开。",
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
                        r"Repeat. At first, $M = e^{r_\text{max}/\beta}/Z(x)$ draws are needed per response",
                        r"重复。开始时平均每 $M = e^{r_\text{max}/\beta}/Z(x)$ 次抽样得到一个回答",
                    ),
                    steps=True,
                    ordered=True,
                ),
            ),
            notes=T(
                "Both π_r and M contain Z, which cancels in the ratio, as in DPO. The number r_max is the "
                "maximum reward among the responses that are not yet accepted. A response is accepted with "
                "probability 1/M on average, which is a mean under π_sft and can be estimated from the draws "
                "themselves. With a small β almost all draws are rejected.\n\n"
                "The true maximum is not known, so the algorithm uses the maximum of 64 candidates. If the "
                "maximum is updated after each acceptance, the whole loop is equivalent to one line: add Gumbel "
                "noise to r/β and take the k largest values. Notebook 07 derives this and the acceptance rate, "
                "and it computes the error of the estimated maximum.",
                "π_r 和 M 都含有 Z，作比就约去了，这与 DPO 相同。r_max 是尚未接受的回答中最大的奖励。平均接受概率"
                "是 1/M，它是 π_sft 下的一个期望，可以用抽出的样本估计。β 很小时，几乎所有样本都被拒绝。\n\n"
                "真正的最大值并不知道，算法使用 64 个候选中的最大值。若每次接受后更新最大值，整个循环等价于一行："
                "给 r/β 加 Gumbel 噪声，取最大的 k 个。07 号笔记本推导了这一点和接受率，并计算估计最大值带来的误"
                "差。",
            ),
            minutes=2.0,
            source="Liu et al. 2024, section 3 and algorithm 1",
        ),
        Slide(
            key="rso-rejection-explorer",
            title=T(
                "Accepted samples follow π_r exactly; the rest are the cost",
                "被接受的样本精确服从 π_r，代价是被拒绝的样本",
            ),
            parts=(
                ExplorerPart(
                    "rejection",
                    advice=T(
                        "First show single draws. Then lower β and watch the acceptance rate.",
                        "先看逐次采样，再减小 β，注意接受率。",
                    ),
                    only=("step", "beta"),
                ),
            ),
            notes=T(
                "Show the first ten draws one by one, and explain which were accepted and why. Then go to two "
                "hundred draws. The proportions of the accepted responses converge to π_r.\n\n"
                "Decrease β step by step and read the acceptance rate aloud. As β approaches zero, only the best "
                "candidate is accepted, and the method becomes best-of-n.",
                "先逐个展示前十次采样：哪些被接受，为什么。再移到二百次：被接受回答的比例收敛到 π_r。\n\n"
                "然后逐步减小 β，把接受率念出来。β 趋于零时只有最好的候选被接受，方法就成为 best-of-n。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-best-of-n-claim",
            title=T(
                "Soft best-of-n and RSO converge to π*; best-of-n does not",
                "软 best-of-n 和 RSO 收敛到 π*，best-of-n 则不收敛到 π*",
            ),
            parts=claim(
                "soft-best-of-n",
                "bandit",
                paper=T(
                    "Soft best-of-n converges to π*. Its KL falls at least as fast as 1/n.",
                    "软 best-of-n 收敛到 π*，KL 至少按 1/n 下降。",
                ),
                source="Verdun et al. 2025",
                found=(
                    finding(
                        "soft-best-of-n",
                        "bandit",
                        "supported",
                        "The KL to π* falls with slope {slope:mean}, about as 1/n². With eight draws the regret is "
                        "{soft_over_best} times that of best-of-8.",
                        "到 π* 的 KL 的斜率是 {slope:mean}，约按 1/n² 下降。抽八次时，后悔值是 best-of-8 的 "
                        "{soft_over_best} 倍。",
                        conditions=("slope < -1.9", "soft_over_best < 1", "best_lowest > 0.1"),
                    ),
                    finding(
                        "soft-best-of-n",
                        "tree",
                        "partly supported",
                        "The slope is {slope:mean}, and the regret with eight draws is {soft_over_best} times that of best-of-8.",
                        "斜率是 {slope:mean}。抽八次时，后悔值是 best-of-8 的 {soft_over_best} 倍。",
                        conditions=("slope < -1", "soft_over_best > 1"),
                    ),
                ),
                alt="KL(π‖π*) 随每个回答的抽样次数变化，两轴均为对数。软 best-of-n 和 RSO 沿虚线下降，虚线是与 1/n² 成正比的"
                "首项；best-of-n 先降后升。",
                share=0.46,
            ),
            notes=T(
                "Soft best-of-n takes one of n candidates with a probability proportional to exp(r/β). RSO takes k of them "
                "by the same rule without replacement, so soft best-of-n is the case k = 1. Best-of-n is the limit of a β "
                "that approaches zero. All distributions are computed exactly. The dashed lines are the leading terms of "
                "the KL.\n\n"
                "At equal draws RSO is nearer to π* than soft best-of-n, because its responses are taken from a larger "
                "pool. They are not independent of each other. Best-of-n has no β. From some n on it moves further from "
                "π_ref than the objective allows, and its regret rises.\n\n"
                "Ask how many draws rejection sampling with the true maximum needs for an exact sample. It needs M on "
                "average. On the tree M is far larger than eight, so with eight candidates soft best-of-n moves too "
                "little, and best-of-8 is nearer to π*.",
                "软 best-of-n 从 n 个候选中取一个，概率与 exp(r/β) 成正比。RSO 按同样的规则不放回地取 k 个，所以软 "
                "best-of-n 是 k = 1 的情形；best-of-n 是 β 趋于零的极限。所有分布都精确计算，虚线是 KL 的首项。\n\n"
                "抽样次数相同时，RSO 比软 best-of-n 更接近 π*，因为它的回答取自更大的候选池，但这些回答彼此不独立。"
                "best-of-n 没有 β：n 大到一定程度，它离 π_ref 就比目标所允许的更远，后悔值上升。\n\n"
                "问：用真正的最大值做拒绝采样，得到一个精确样本平均要抽多少次？平均 M 次。在词元树上 M 远大于八，所以只有"
                "八个候选时软 best-of-n 移动得太少，best-of-8 更接近 π*。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-losses",
            title=T(
                "On the same pairs the three losses have different limits",
                "用同样的成对数据，三种损失的极限不同",
            ),
            parts=(
                Table(
                    (T("name", "名称"), T("loss", "损失"), T("what determines the policy", "什么决定策略")),
                    (
                        (
                            "sigmoid-norm",
                            r"$-\log\sigma(\gamma\Delta)$",
                            T(
                                "which response is better, and by how much",
                                "哪个回答更好，好多少",
                            ),
                        ),
                        (
                            "hinge-norm",
                            r"$\max(0,\,1-\gamma\Delta)$",
                            T(
                                "which response is better",
                                "哪个回答更好",
                            ),
                        ),
                        (
                            "hinge",
                            r"$\max(0,\,1-\gamma\,(\log\pi_w-\log\pi_l))$",
                            T(
                                "which response is better, without a reference",
                                "哪个回答更好，没有参考策略",
                            ),
                        ),
                    ),
                    T(
                        r"$\Delta$ is the difference of log-ratios to $\pi_\text{sft}$. “norm” means divided by "
                        r"$\pi_\text{sft}$, not by length.",
                        r"$\Delta$ 是对 $\pi_\text{sft}$ 的对数比之差。“norm”指除以 $\pi_\text{sft}$，不是除以长度。",
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
                "sigmoid-norm is DPO's loss with γ in place of β. Do not confuse the two parameters, the β of "
                "the sampler and the γ of the loss. The paper uses 0.5 and 0.05. In DPO they are equal.\n\n"
                "The gradient of the hinge loss does not depend on how clear a preference is. A preference of "
                "51% leads to the same margin as one of 99%. Notebook 08 derives the limits.",
                "sigmoid-norm 就是把 β 换成 γ 的 DPO 损失。不要混淆两个参数：采样器的 β 和损失的 γ。论文用 0.5 与"
                " 0.05；在 DPO 里两者相等。\n\n"
                "hinge 的梯度与偏好有多明显无关：51% 的偏好与 99% 的偏好得到相同的间隔。极限的推导见 08 号笔记本"
                "。",
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
                        "The table shows win rates in % against the SFT target.",
                        "表中是对 SFT 目标的胜率（%）。",
                    ),
                    source="Liu et al. 2024, table 1",
                    strong=(4,),
                ),
            ),
            notes=T(
                "Compare the rows of one column. On HH the largest step is from direct to sft-sample-rank. This "
                "step replaces the labels of people by those of the reward model, and it does not sample from "
                "π_r yet.\n\n"
                "Ask which result would show which of the two changes helped.",
                "竖着比较一列：HH 上最大的一步是从 direct 到 sft-sample-rank。这一步用奖励模型的标注代替人工标注"
                "，还没有从 π_r 采样。\n\n"
                "问：什么样的结果才能说明是哪一个改变起了作用？",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-table-claim",
            title=T(
                "With the paper's settings π_r's pairs win, but not on text",
                "用论文的设置，π_r 的成对数据胜率更高，但在文本上更低",
            ),
            parts=claim(
                "rso-table",
                "bandit",
                paper=T(
                    "On TL;DR rso wins 72%, sft 69%, direct 68%, RAFT 54% and ReST 34%.",
                    "TL;DR 上的胜率：rso 72%，sft 69%，direct 68%，RAFT 54%，ReST 34%。",
                ),
                source="Liu et al. 2024, table 1",
                found=(
                    finding(
                        "rso-table",
                        "bandit",
                        "partly supported",
                        "Pairs from π_r change the win rate by {rso_over_sft:signed,points} points and J by "
                        "{objective_rso_over_sft:signed}.",
                        "成对数据从 π_sft 换成 π_r，胜率变化 {rso_over_sft:signed,points} 个百分点，J 变化 "
                        "{objective_rso_over_sft:signed}。",
                        conditions=("rso_over_sft > 0", "objective_rso_over_sft < 0"),
                    ),
                    finding(
                        "rso-table",
                        "small",
                        "partly supported",
                        "They change the win rate by {rso_over_sft:signed,points} points and J by "
                        "{objective_rso_over_sft:signed}.",
                        "胜率变化 {rso_over_sft:signed,points} 个百分点，J 变化 {objective_rso_over_sft:signed}。",
                        conditions=(
                            "rso_over_sft < 0",
                            "objective_rso_over_sft < 0",
                            "correct_labels_rso < correct_labels_sft",
                        ),
                    ),
                ),
                alt="γ = 0.05 的八种设置下，成对数据从 π_sft 换成 π_r 时胜率的变化，按标注者、真实奖励和奖励模型计算，带区间。",
                panels=(1,),
                size=(6.2, 5.0),
                rows=8,
                share=0.42,
            ),
            notes=T(
                "Each row of the picture is one setting on the bandit with the paper's γ = 0.05. In the first row "
                "everything is as in the paper: the response with the larger reward is chosen, the reward model has "
                "many labels, and training is short. The points show by how much pairs from π_r change the win rate.\n\n"
                "The explanation has three parts. First, a small γ moves the limit π_sft exp(r/γ) far away from "
                "π_sft. Second, the length of training decides how much of this distance is covered. Pairs from "
                "π_r cover it faster, because they consist of good responses. With γ = β, sampled labels and "
                "long training they win less. Third, the reward model decides whether the wins are real. On the "
                "language model it orders the pairs from π_r less reliably than those from π_sft, because their "
                "responses are more alike.\n\n"
                "On the bandit and on text RAFT wins more than RSO, unlike in the paper. Ask which column of the paper's table would show the lower J.",
                "图中每一行是多臂老虎机上的一种设置，γ 都是论文的 0.05。第一行与论文完全相同：奖励大的回答被选，奖励"
                "模型的标注多，训练短。点表示 π_r 的成对数据使胜率改变多少。\n\n"
                "解释有三点。第一，γ 小时，极限 π_sft exp(r/γ) 离 π_sft 很远。第二，训练长度决定走完这段距离的多"
                "少，而 π_r 的成对数据都是好的回答，所以走得更快。γ = β、标注抽样、训练长时，它们的胜率反而更低。"
                "第三，奖励模型决定胜率是否真实：在语言模型上，π_r 的成对数据中两个回答更相似，奖励模型对它们的排"
                "序不如对 π_sft 的可靠。\n\n"
                "在多臂老虎机和文本上，RAFT 的胜率都高于 RSO，与论文不同。问：论文的表里，哪一列能看出 J 更低？",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rso-hyperparameters-claim",
            title=T(
                "On the bandit β = 0.5 has the most wins but a lower J",
                "在多臂老虎机上，β = 0.5 胜率最高，但 J 较低",
            ),
            parts=claim(
                "rso-hyperparameters",
                "bandit",
                paper=T(
                    "Of β from 0 to 5, 0.5 is best. Of γ from 0.005 to 0.5, 0.05 is best.",
                    "β 在 0 到 5 中 0.5 最好，γ 在 0.005 到 0.5 中 0.05 最好。",
                ),
                source="Liu et al. 2024, fig. 3",
                found=(
                    finding(
                        "rso-hyperparameters",
                        "bandit",
                        "supported",
                        "By the reward model, β = 0.5 wins {beta_over_0:points} points more than β = 0 and {beta_over_5:points} "
                        "more than β = 5, but its J is lower than with β = 5 ({objective_beta_over_5_paper:signed}). "
                        "After long training γ = 0.05 wins {small_gamma:points} points more than γ = β.",
                        "按奖励模型，β = 0.5 的胜率比 β = 0 高 {beta_over_0:points} 个百分点，比 β = 5 高 {beta_over_5:points} 个，但 J 低于 β = 5"
                        "（{objective_beta_over_5_paper:signed}）。长训练后，γ = 0.05 的胜率比 γ = β 高 {small_gamma:points} 个百分点。",
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
                "The left panel shows win rates for each β of the sampler with the paper's other settings. The "
                "right panel shows win rates for each γ after long training on sampled labels.\n\n"
                "A smaller β and a smaller γ both move the policy further from π_ref, which raises the win rate. "
                "At β = 0 only nearly equal responses are compared, so the win rate is lower again. For a "
                "tabular policy with sampled labels the limit depends on γ alone. It is π_ref exp(r/γ). With "
                "hard labels there is no limit, and γ hardly matters. J includes the KL penalty, so it is higher "
                "for policies that move less.\n\n"
                "On the language model the win rate rises up to the largest β. Ask why the paper's figure could "
                "not show the effect on J.",
                "左图是其他设置与论文相同时，胜率随采样器的 β 的变化；右图是标注抽样、长训练后胜率随 γ 的变化。\n\n"
                "β 小、γ 小都使策略离 π_ref 更远，胜率因此更高。β = 0 时只比较几乎相同的回答，胜率又降低。对表格"
                "策略，标注抽样时极限只取决于 γ，即 π_ref exp(r/γ)；硬标注时没有极限，γ 几乎不起作用。J 包含 KL "
                "惩罚，所以移动较小的策略 J 更高。\n\n"
                "在语言模型上，β 越大胜率越高，直到最大的 β。问：论文的图里为什么看不出对 J 的影响？",
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
                        "The reward model can label any number of pairs without additional human labels",
                        "奖励模型可以标注任意多的成对数据，不需要更多人工标注",
                    ),
                    T(
                        "A policy of limited capacity cannot fit all pairs",
                        "能力有限的策略无法拟合所有成对数据",
                    ),
                    T(
                        r"Pairs from $\pi_r$ may be statistically more informative",
                        r"来自 $\pi_r$ 的成对数据在统计上可能信息更多",
                    ),
                    steps=True,
                ),
            ),
            answer=claim(
                "rso-why",
                "tree",
                paper=T(
                    "Estimating π* needs pairs from π*.",
                    "估计 π* 需要来自 π* 的成对数据。",
                ),
                source="Liu et al. 2024, abstract",
                found=(
                    finding(
                        "rso-why",
                        "tree",
                        "not supported",
                        "Pairs from π_r change J by {pi_r_pairs_full:signed}, and additional labels by "
                        "{more_labels_full:signed}. Limited capacity is undecided.",
                        "π_r 的成对数据使 J 变化 {pi_r_pairs_full:signed}，额外标注使 J 变化 "
                        "{more_labels_full:signed}。能力有限的作用尚无定论。",
                        conditions=("pi_r_pairs_full < 0", "more_labels_full > 0", "capacity_limited ~ 0"),
                    ),
                    finding(
                        "rso-why",
                        "bandit",
                        "not supported",
                        "Limited capacity changes J by {capacity_limited:signed}, and additional labels by "
                        "{more_labels_full:signed}.",
                        "能力有限使 J 变化 {capacity_limited:signed}，额外标注使 J 变化 {more_labels_full:signed}。",
                        conditions=("capacity_limited < 0", "more_labels_full < 0"),
                    ),
                ),
                alt="词元树上各个因素使 J 增加多少，完整策略与受限策略，带 95% 区间：额外标注、来自 π_r 的成对数据、其中能力与统计的部分、真实奖励的标注、来自 π* 的成对数据。",
                share=0.44,
            ),
            notes=T(
                "Collect answers on the board before you show the list. Ask which of the reasons can be tested "
                "with the paper's table alone. None can, because two things changed at the same time.",
                "先把回答写在黑板上，再展开列表。问：只用论文的表格能检验其中哪一个？一个也不能，因为同时改变了两"
                "件事。",
            ),
            answer_notes=T(
                "A factorial design switches each reason on and off, and J is computed exactly. On the tree the "
                "reward model has the form of the gold reward, so it generalises beyond a table, and its "
                "additional labels help. On the bandit the reward model is a table too, and its labels only add noise. "
                "Pairs from π_r help on neither.\n\n"
                "With pairs from π_r a limited policy can have a lower J. These pairs hardly compare the "
                "responses that are rare under π_r. But the regret is a mean over the responses of the policy "
                "itself, which may give such responses much probability.",
                "析因设计把每个原因逐一打开和关闭，J 精确计算。在词元树上，奖励模型与真实奖励形式相同，泛化得比表"
                "格好，它的额外标注有用；在多臂老虎机上它本身就是表格，它的标注只增加噪声。π_r 的成对数据在两处都"
                "没有好处。\n\n"
                "用这些数据时受限策略的 J 为什么会更低？它们几乎不比较在 π_r 下很少出现的回答，而后悔值是对策略本"
                "身的回答求平均，策略可能给这些回答很大的概率。",
            ),
            answer_title=T(
                "Additional labels help on the tree; pairs from π_r do not",
                "词元树上额外标注有用，π_r 的成对数据没有用",
            ),
            minutes=(1.5, 2.0),
        ),
        Slide(
            key="rso-phase-claim",
            title=T(
                "If the misfit is small or smooth, pairs from π_r lower regret",
                "误差小或平滑时，π_r 的成对数据降低后悔值",
            ),
            parts=claim(
                "rso-phase",
                "bandit",
                paper=T(
                    "Estimating π* needs pairs from π*.",
                    "估计 π* 需要来自 π* 的成对数据。",
                ),
                source="Liu et al. 2024, abstract",
                found=(
                    finding(
                        "rso-phase",
                        "bandit",
                        "supported",
                        "At a misfit of 10% the regret changes by {r_noise:mean,percent,signed} (noise) or "
                        "{r_saturating:mean,percent,signed} (saturation), at 60% noise by "
                        "{map_r_noise_0.6_0.5:mean,percent,signed}.",
                        "奖励方差的 10% 无法表示时，后悔值变化 {r_noise:mean,percent,signed}（噪声）和 "
                        "{r_saturating:mean,percent,signed}（饱和）；60% 为噪声时变化 "
                        "{map_r_noise_0.6_0.5:mean,percent,signed}。",
                        conditions=("r_noise < 0", "r_saturating < 0", "map_r_noise_0.6_0.5 > 0"),
                    ),
                    finding(
                        "rso-phase",
                        "tree",
                        "supported",
                        "With half of each source, noise never raises it.",
                        "两种来源各取一半时，噪声从不使后悔值上升。",
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
                "Both maps have γ = β and infinitely many labels, so only the restriction of the policy matters. "
                "The share on the horizontal axis is the part of the reward's variance that the policy cannot "
                "represent. To second order DPO's loss on pairs from π* is the quadratic form of the regret, "
                "which explains the blue cells.\n\n"
                "In the red cells the errors are large. Pairs from π_r rarely compare the responses that are "
                "rare under π_r. If the policy overestimates such a response, it gives it a high probability. "
                "docs/claims.md has the intervals.",
                "两张图里 γ = β，标注无限多，所以只有策略受限起作用。横轴是策略无法表示的那部分奖励方差的比例。展"
                "开到二阶，DPO 在 π* 的成对数据上的损失就是后悔值的二次型，这解释了蓝色的格子。\n\n"
                "红色格子里误差很大：来自 π_r 的成对数据很少比较 π_r 下稀有的回答，策略如果高估其中一个，就会给它"
                "很大的概率。区间见 docs/claims.md。",
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
                        "Change what the policy cannot represent. Then lower β.",
                        "换一种策略无法表示的部分，再减小 β。",
                    ),
                    stops=5,
                ),
            ),
            notes=T(
                "The left panel shows two fits in one world, one to pairs from π_ref and one to pairs from π_r. "
                "It compares the implicit reward with the gold reward. The right panel shows regrets relative to "
                "that with pairs from π_ref. One curve is for pairs from π_r, and the other for half of each "
                "source.\n\n"
                "Let the students predict the effect of a saturating reward before you change the control.",
                "左图是一个世界里的两次拟合，成对数据分别来自 π_ref 和 π_r，图中比较隐式奖励与真实奖励。右图是来"
                "源为 π_r 或两种各取一半时的后悔值，以 π_ref 的后悔值为单位。\n\n"
                "改变控件之前，先让学生预测奖励饱和时的结果。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="rso-coverage-claim",
            title=T(
                "If pairs do not cover π*, rounds of labels beat offline DPO",
                "成对数据不覆盖 π* 时，分轮标注优于离线 DPO",
            ),
            parts=claim(
                "coverage",
                "bandit",
                paper=T(
                    "Offline methods need pairs that cover all responses.",
                    "离线方法需要覆盖所有回答的成对数据。",
                ),
                source="Song et al. 2024",
                found=(
                    finding(
                        "coverage",
                        "bandit",
                        "partly supported",
                        "If π*'s likeliest responses are masked, rounds have {rounds_table} times offline DPO's regret "
                        "(table), or {rounds_shared} times (shared features).",
                        "遮住 π* 最可能的回答时，分轮的后悔值是离线 DPO 的 {rounds_table} 倍（表格）和 "
                        "{rounds_shared} 倍（共享特征）。",
                        conditions=("rounds_table < 1", "rounds_shared ~ 1"),
                    ),
                    finding(
                        "coverage",
                        "tree",
                        "partly supported",
                        "These ratios are {rounds_table} and {rounds_shared}.",
                        "这两个比值是 {rounds_table} 和 {rounds_shared}。",
                        conditions=("rounds_table < 1", "rounds_shared < 1", "rlhf_rare > 1"),
                    ),
                ),
                alt="多臂老虎机上，表格策略相对于 π_ref 的后悔值随被遮回答的覆盖程度变化，纵轴为对数：离线 DPO 与 RLHF 随覆盖程度"
                "下降，分轮 DPO 始终低而平。",
                share=0.46,
            ),
            notes=T(
                "The pairs come from π_ref, but some responses are masked. They never occur in the pairs, or they occur more "
                "rarely. The horizontal axis is the share of their frequency that remains. All methods have equally many "
                "labels. The policy of RLHF maximises J exactly for its reward model.\n\n"
                "Explain the picture. With a table, no label says anything about a masked response, so offline DPO does not "
                "change its logit. Rounds label responses of the policy itself, which include the masked ones. With shared "
                "features the other pairs carry information about them. Rounds also win with full coverage, so coverage is "
                "not the only reason.\n\n"
                "The source expects that online RL needs less coverage. With our number of labels this is not found for "
                "tables, and on the tree RLHF has the higher regret. The next block turns to an online method.",
                "成对数据来自 π_ref，但遮住了一部分回答：它们在成对数据里不出现，或更少出现。横轴是它们剩下的出现频率。各种方法的"
                "标注数相同；RLHF 的策略对它的奖励模型精确地最大化 J。\n\n"
                "讲图：用表格时，没有标注涉及被遮的回答，所以离线 DPO 不改变它的 logit。分轮标注的是策略自己的回答，其中包括被遮的"
                "回答。共享特征时，其他成对数据也带来关于它们的信息。完全覆盖时分轮也更好，所以覆盖不是唯一的原因。\n\n"
                "文献预期在线强化学习对覆盖的要求较低。以我们的标注数，表格策略上没有看到这一点，在词元树上 RLHF 的后悔值更高。"
                "下一节讲在线方法。",
            ),
            minutes=1.5,
        ),
    ),
)
