"""Block 1: a review of RLHF, from labels to a policy. Section of the lecture: "Review of RLHF"."""

from __future__ import annotations

from slides.schema import (
    Block,
    Bullets,
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
)

BLOCK = Block(
    key="review",
    title=T(
        "A review of RLHF",
        "RLHF 回顾",
    ),
    lecture=1,
    slides=(
        Slide(
            key="start",
            title=T("Variants of RLHF", "RLHF 的变体"),
            parts=(
                Text(
                    T(
                        "Most methods of this lecture aim at one optimal policy; some converge to another",
                        "这门课的多数方法以同一个最优策略为目标，有些方法则收敛到别的策略",
                    )
                ),
                Equation(r"\pi^*(y\mid x) \;=\; \frac{1}{Z(x)}\;\pi_\text{ref}(y\mid x)\;e^{\,r(x,y)/\beta}", big=True),
                Text(
                    T(
                        "Offline methods: DPO and RSO. Online method: ReST. Open questions follow.",
                        "离线方法：DPO、RSO。在线方法：ReST。最后讨论开放问题。",
                    ),
                    quiet=True,
                ),
            ),
            notes=T(
                "Both lectures are about this formula: where it comes from, why it cannot be computed for a "
                "language model, which methods converge to it, and where the others converge to. The first lecture ends "
                "with a comparison of DPO and PPO. The second begins with RSO.\n\n"
                "Leave this slide on the screen while people take their seats. All sliders work, and the slides "
                "can also be opened on a phone after the lecture. Ask who has trained a reward model and who has "
                "run DPO. The answers decide how fast you can go through this block.",
                "两讲都围绕这个公式：它从哪里来，为什么对语言模型无法直接计算，哪些方法收敛到它，其他方法又收敛到哪里。第一"
                "讲以 DPO 与 PPO 的比较结束，第二讲从 RSO 开始。\n\n"
                "学生入座时先显示这一页。幻灯片里的滑块都可以操作，课后用手机也能打开同一份幻灯片。问问谁训练过奖"
                "励模型、谁跑过 DPO：答案决定本节的快慢。",
            ),
            minutes=1.0,
            kind="title",
        ),
        Slide(
            key="three-phases",
            title=T(
                "RLHF has three phases, and each passes one result on",
                "RLHF 有三个阶段，每个阶段给下一阶段一个结果",
            ),
            parts=(
                Flow(
                    Step(
                        T("Fine-tune", "监督微调"),
                        T(r"demonstrations give $\pi_\text{ref}$", r"示范数据给出 $\pi_\text{ref}$"),
                        "sft",
                    ),
                    Step(
                        T("Model the reward", "奖励建模"),
                        T(r"labelled pairs give $r_\phi$", r"成对标注给出 $r_\phi$"),
                        "reward",
                    ),
                    Step(
                        T("Optimise", "强化学习"),
                        T(
                            r"$r_\phi$ and a KL penalty give $\pi_\theta$",
                            r"$r_\phi$ 加上 KL 惩罚，给出 $\pi_\theta$",
                        ),
                        "ppo",
                    ),
                    back=T(
                        "in training the reward model scores the samples",
                        "训练时由奖励模型打分，而不是由人打分",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        r"People cannot label every sample during training. The model $r_\phi$ replaces them, so RLHF is "
                        "**model-based**. The policy will exploit the errors of this model.",
                        r"训练时无法让人标注每个样本，于是由模型 $r_\phi$ 代替，所以 RLHF 是**基于模型**的方法。策略会利"
                        "用这个模型的错误。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Explain the three boxes: demonstrations, comparisons, optimisation. The first phase gives a "
                "policy, the second a reward, the third a policy again. “Model-based” means here that a model of "
                "the environment gives the reward.\n\n"
                "Ask a question that will be answered later: if labels are all we have and a policy is all we "
                "want, why do we need a reward? DPO answers it. RSO and ReST use the reward model to produce "
                "data, and PPO uses it in every training step.",
                "依次讲三个方框：示范、比较、优化。第一阶段得到策略，第二阶段得到奖励，第三阶段又得到策略。这里的"
                "“基于模型”是指用环境的模型给出奖励。\n\n"
                "先提一个以后回答的问题：手里只有标注，想要的只有策略，为什么还需要奖励？DPO 会回答。RSO 和 ReST "
                "用奖励模型生成数据，PPO 则在每一步训练中使用它。",
            ),
            minutes=1.5,
            source="Ouyang et al. 2022, section 3; lecture, “Overview”",
        ),
        Slide(
            key="bradley-terry",
            title=T(
                "A label depends only on the difference of two rewards",
                "标注的概率只取决于两个奖励之差",
            ),
            parts=(
                DerivationPart(
                    "bradley-terry",
                    reasons=(
                        "Bradley 与 Terry 的二选一模型",
                        r"分子分母同除以 $\exp(r(x,y_1))$",
                        r"$\sigma(u) = 1/(1 + e^{-u})$",
                    ),
                ),
                Equation(
                    r"\mathcal{L}_R(r_\phi,\mathcal{D}) = -\,\mathbb{E}_{(x,y_w,y_l)\sim\mathcal{D}}"
                    r"\big[\log\sigma\big(r_\phi(x,y_w) - r_\phi(x,y_l)\big)\big]",
                    step=True,
                ),
            ),
            notes=T(
                "Show the lines one by one. The tick at each line was computed when these slides were built: both "
                "sides agree in float64 on random rewards. Point at the last line, in which only the difference "
                "of the two rewards remains.\n\n"
                "Then explain the loss. It is maximum likelihood, a logistic regression on differences of "
                "rewards. w denotes the chosen response, l the rejected one, and D the labelled pairs. The reward "
                "model is accurate on the pairs that it was trained on and extrapolates elsewhere. RSO will ask "
                "on which pairs it should be trained.",
                "逐行展开。每行的对勾是生成幻灯片时算出来的：在随机奖励上，等式两边以双精度计算结果一致。指着最后"
                "一行：只剩下两个奖励之差。\n\n"
                "然后讲损失：它是最大似然，也就是对奖励之差做逻辑回归。w 是被选回答，l 是被拒回答，D 是标注好的成"
                "对数据。奖励模型在训练过的成对数据上准确，在其他地方只是外推。RSO 会问：应该用哪些成对数据训练它"
                "。",
            ),
            minutes=2.0,
            source="Bradley & Terry 1952; Rafailov et al. 2023, eqs. 1 and 2",
        ),
        Slide(
            key="rl-objective",
            title=T(
                "The objective is the reward minus β times the KL",
                "目标是奖励减去 β 乘以 KL",
            ),
            parts=(
                Equation(
                    r"\max_{\pi_\theta}\;\;\underbrace{\mathbb{E}_{x\sim\mathcal{D},\,y\sim\pi_\theta(y\mid x)}"
                    r"\big[r_\phi(x,y)\big]}_{\text{expected reward}}\;-\;\beta\,\underbrace{\mathbb{D}_{\mathrm{KL}}"
                    r"\big[\pi_\theta(y\mid x)\,\big\|\,\pi_\text{ref}(y\mid x)\big]}_{\text{distance from the reference}}",
                    big=True,
                ),
                Table(
                    (
                        T("β", "β"),
                        T(
                            "optimal policy",
                            "最优策略",
                        ),
                        T(
                            "problem",
                            "问题",
                        ),
                    ),
                    (
                        (
                            T("small", "小"),
                            T(
                                "always the best answer",
                                "总是给出最好的回答",
                            ),
                            T(
                                "it exploits the reward model's errors",
                                "利用奖励模型的错误",
                            ),
                        ),
                        (
                            T("large", "大"),
                            T(
                                r"almost equal to $\pi_\text{ref}$",
                                r"几乎等于 $\pi_\text{ref}$",
                            ),
                            T(
                                "the labels have almost no effect",
                                "标注几乎不起作用",
                            ),
                        ),
                    ),
                    T(
                        "β is the KL penalty per nat, in units of reward",
                        "β 是每纳特 KL 的惩罚，单位是奖励",
                    ),
                ),
            ),
            notes=T(
                "The first term rewards good responses. The second term penalises distance from the reference "
                "policy, and β weights it.\n\n"
                "Explain the units: the KL is in nats and β is in reward per nat. A value of β from one paper "
                "therefore cannot be used with a reward on another scale.",
                "第一项奖励好的回答，第二项惩罚偏离参考策略，β 是这一项的权重。\n\n"
                "说明单位：KL 的单位是纳特，β 的单位是每纳特的奖励。所以奖励的尺度不同时，别的论文里的 β 不能直接"
                "使用。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, eq. 3",
        ),
        Slide(
            key="kl-estimators",
            title=T(
                "Three KL estimators differ in bias, variance and gradient",
                "KL 的三种估计，偏差、方差和梯度各不相同",
            ),
            parts=(
                ExplorerPart(
                    "kl_estimators",
                    advice=T(
                        "Increase the distance: which variance grows? Then show the gradients.",
                        "增大与参考策略的距离：哪个估计的方差变大？再看梯度。",
                    ),
                    only=("drift", "view"),
                ),
            ),
            notes=T(
                "For samples of π, let k = log π/π_ref. The estimators are k1 = k, k2 = k²/2 and k3 = e⁻ᵏ − 1 + "
                "k. k1 and k3 are unbiased, and k2 is correct only to second order. Near the reference policy k3 "
                "has the smallest variance. When the policies are further apart, its variance exceeds that of k1.\n\n"
                "Then switch to the gradients. If an estimator is used as a loss on fixed samples, k1 has zero "
                "expected gradient, k2 has the gradient of this KL, and k3 has the gradient of the reverse KL. "
                "The estimator with the best value is not the one with the correct gradient.",
                "对 π 的样本，记 k = log π/π_ref。三种估计是 k1 = k，k2 = k²/2，k3 = e⁻ᵏ − 1 + k。k1 和 k3 无偏，"
                "k2 只精确到二阶。靠近参考策略时 k3 的方差最小；距离增大后，它的方差会超过 k1。\n\n"
                "再切换到梯度。若把估计当作固定样本上的损失，k1 的期望梯度为零，k2 给出这个 KL 的梯度，k3 给出反"
                "向 KL 的梯度。数值最好的估计，梯度未必正确。",
            ),
            minutes=2.0,
            source="Schulman 2020, “Approximating KL divergence”",
        ),
        *question(
            "review-question",
            T(
                "Add 1 to every reward, or double every reward: which one changes the labels?",
                "每个奖励都加 1，或者都乘 2：哪一个会改变标注？",
            ),
            parts=(
                Equation(r"r(x,y) + f(x) \qquad\qquad c\cdot r(x,y)", big=True),
                Bullets(
                    T(
                        "Both of them",
                        "两个都会",
                    ),
                    T(
                        "Only the addition",
                        "只有加法",
                    ),
                    T("Only the factor", "只有乘法"),
                    ordered=True,
                ),
            ),
            answer=(
                ExplorerPart(
                    "bradley_terry",
                    advice=T(
                        "Move f, then c. Which one changes the labels, and which one changes π*?",
                        "先动 f，再动 c：哪一个改变标注，哪一个改变 π*？",
                    ),
                    only=("offset", "scale"),
                ),
            ),
            notes=T(
                "Ask for a show of hands for each answer. Let the students discuss in pairs for half a minute. "
                "The sliders on the next slide give the answer.",
                "请学生逐项举手，再两人一组讨论半分钟。下一页的滑块会给出答案。",
            ),
            answer_notes=T(
                "Move f over its whole range. The rewards change, but the label's probability does not, "
                "the loss stays at its minimum, and π* does not change either: f(x) is the same for all "
                "answers, so it factors out of the sum in Z and cancels. Then move c. The labels change "
                "immediately, and so does the policy.\n\n"
                "DPO uses this invariance. Expected question: is an offset per prompt harmless, then? For "
                "π* it is. For comparing answers to different prompts it is not.",
                "把 f 从一端移到另一端：奖励在变，但标注的概率不变，损失保持在最小值，π* 也不变。f(x) 对所"
                "有回答相同，可以从 Z 的求和中提出来约去。再动 c：标注立刻改变，策略也随之改变。\n\n"
                "DPO 利用的正是这种不变性。常见问题：那么每个提示加一个常数就没有影响吗？对 π* 没有；但若"
                "要比较不同提示下的回答，就有影响。",
            ),
            answer_title=T(
                "Only the factor: f(x) cancels in the labels and in π*",
                "只有乘法：f(x) 在标注里约去，在 π* 里也约去",
            ),
            minutes=(1.0, 2.0),
        ),
    ),
)
