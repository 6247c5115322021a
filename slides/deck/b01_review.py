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
                        "Some methods converge to the optimal policy π*, and others do not",
                        "有些方法收敛到最优策略 π*，有些方法收敛到别的策略",
                    )
                ),
                Equation(r"\pi^*(y\mid x) \;=\; \frac{1}{Z(x)}\;\pi_\text{ref}(y\mid x)\;e^{\,r(x,y)/\beta}", big=True),
                Text(
                    T(
                        "DPO and RSO are offline, and ReST is online. Two open questions follow.",
                        "DPO 和 RSO 是离线方法，ReST 是在线方法。最后讨论两个开放问题。",
                    ),
                    quiet=True,
                ),
            ),
            notes=T(
                "Both lectures are about this formula. They show where it comes from, why it cannot be computed "
                "for a language model, and which methods converge to it. Some methods converge to another "
                "policy, and the lectures derive which one. The first lecture ends with a comparison of DPO and "
                "PPO, and the second begins with RSO.\n\n"
                "Leave this slide on the screen while the students take their seats. All sliders work, and the "
                "slides can also be opened on a phone after the lecture. Ask who has trained a reward model and "
                "who has run DPO. Go through this block faster if many have.",
                "两讲都围绕这个公式：它从哪里来，为什么对语言模型无法直接计算，哪些方法收敛到它。有些方法收敛到别"
                "的策略，课上会推导是哪一个。第一讲以 DPO 与 PPO 的比较结束，第二讲从 RSO 开始。\n\n"
                "学生入座时先显示这一页。所有滑块都可以操作，课后用手机也能打开同一份幻灯片。问问谁训练过奖励模型"
                "、谁跑过 DPO。如果多数人做过，这一节可以讲快一些。",
            ),
            minutes=1.0,
            kind="title",
        ),
        Slide(
            key="three-phases",
            title=T(
                "RLHF has three phases; each produces the input of the next",
                "RLHF 有三个阶段，每个阶段的结果交给下一阶段",
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
                        "the reward model scores each new sample",
                        "奖励模型给每个新样本打分",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        r"People cannot label every sample during training. A model $r_\phi$ gives the rewards instead, "
                        r"so RLHF is **model-based**. A policy that is trained on $r_\phi$ exploits the errors of this "
                        "model.",
                        r"训练时无法让人标注每个样本，奖励由模型 $r_\phi$ 给出，所以 RLHF 是**基于模型**的方法。用 "
                        r"$r_\phi$ 训练的策略会利用这个模型的误差。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Explain the three boxes. The first phase imitates demonstrations and gives a policy. The second "
                "phase fits a reward to comparisons. The third phase optimises the policy for this reward. "
                "“Model-based” means here that the reward comes from a model of the environment.\n\n"
                "Ask a question that will be answered later. We have only labels and we want only a policy, so "
                "why do we need a reward? DPO answers this question. RSO and ReST use the reward model to "
                "produce data, and PPO uses it in every training step.",
                "依次讲三个方框。第一阶段模仿示范，得到策略；第二阶段用比较数据拟合奖励；第三阶段针对这个奖励优化"
                "策略。这里的“基于模型”是指奖励来自环境的一个模型。\n\n"
                "先提一个以后回答的问题：手里只有标注，想要的只有策略，为什么还需要奖励？DPO 会回答。RSO 和 ReST "
                "用奖励模型生成数据，PPO 则在每一步训练中使用它。",
            ),
            minutes=1.5,
            source="Ouyang et al. 2022, section 3; lecture, “Overview”",
        ),
        Slide(
            key="bradley-terry",
            title=T(
                "Label probabilities depend only on reward differences",
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
                "Show the lines one by one. The tick at each line was computed when these slides were built. It "
                "means that both sides agree in float64 on random rewards. In the last line only the difference "
                "of the two rewards remains.\n\n"
                "Then explain the loss. It is the negative log-likelihood of a logistic regression on "
                "differences of rewards. The index w denotes the chosen response, l the rejected one, and D the "
                "labelled pairs. The reward model is accurate near the pairs on which it was trained, and it "
                "extrapolates elsewhere. The second lecture asks from which policy these pairs should come.",
                "逐行展开。每行的对勾是生成幻灯片时算出来的，表示在随机奖励上等式两边以双精度计算结果一致。最后一"
                "行只剩下两个奖励之差。\n\n"
                "然后讲损失：它是一个逻辑回归的负对数似然，自变量是奖励之差。下标 w 表示被选回答，l 表示被拒回答"
                "，D 是标注好的成对数据。奖励模型在训练数据附近准确，在其他地方只是外推。第二讲会问：这些成对数据"
                "应来自哪个策略？",
            ),
            minutes=2.0,
            source="Bradley & Terry 1952; Rafailov et al. 2023, eqs. 1 and 2",
        ),
        Slide(
            key="rl-objective",
            title=T(
                "The objective is the expected reward minus β times the KL",
                "目标是期望奖励减去 β 乘以 KL",
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
                            "what the optimal policy does",
                            "最优策略的行为",
                        ),
                        T(
                            "what goes wrong",
                            "出现的问题",
                        ),
                    ),
                    (
                        (
                            T("small", "小"),
                            T(
                                "it always gives the best response",
                                "总是给出最好的回答",
                            ),
                            T(
                                "it exploits errors of the reward model",
                                "利用奖励模型的误差",
                            ),
                        ),
                        (
                            T("large", "大"),
                            T(
                                r"it is almost equal to $\pi_\text{ref}$",
                                r"几乎等于 $\pi_\text{ref}$",
                            ),
                            T(
                                "the labels have almost no effect",
                                "标注几乎不起作用",
                            ),
                        ),
                    ),
                    T(
                        "β is the KL penalty per nat, so its unit is reward per nat",
                        "β 是每纳特 KL 的惩罚，单位是“奖励/纳特”",
                    ),
                ),
            ),
            notes=T(
                "The first term is high if the policy gives good responses. The second term penalises the "
                "distance from the reference policy, and β is its weight.\n\n"
                "Explain the units. The KL is in nats, and β is in reward per nat. A value of β from one paper "
                "therefore cannot be used with a reward on another scale.",
                "第一项在策略给出好回答时较大，第二项惩罚偏离参考策略，β 是这一项的权重。\n\n"
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
                        "Increase the distance. Which variance grows fastest? Then show the gradients.",
                        "增大与参考策略的距离：哪个估计的方差增长最快？再看梯度。",
                    ),
                    only=("drift", "view"),
                ),
            ),
            notes=T(
                "For a sample of π, let k = log π/π_ref. The estimators are k1 = k, k2 = k²/2 and k3 = e⁻ᵏ − 1 + "
                "k. The means of k1 and k3 are the KL. The mean of k2 equals the KL only to second order. Near "
                "the reference policy k3 has the smallest variance. When the policies are further apart, its "
                "variance exceeds that of k1.\n\n"
                "Then switch to the gradients. Each estimator can be used as a loss on fixed samples. The "
                "expected gradient of k1 is then zero, that of k2 is the gradient of this KL, and that of k3 is "
                "the gradient of the KL with its arguments exchanged. The estimator with the most accurate value "
                "is therefore not the one with the correct gradient.",
                "对 π 的样本，记 k = log π/π_ref。三种估计是 k1 = k，k2 = k²/2，k3 = e⁻ᵏ − 1 + k。k1 和 k3 的均值"
                "等于 KL，k2 的均值只精确到二阶。靠近参考策略时 k3 的方差最小；距离增大后，它的方差会超过 k1。\n\n"
                "再切换到梯度。每种估计都可以当作固定样本上的损失。这时 k1 的期望梯度为零，k2 给出这个 KL 的梯度"
                "，k3 给出两个参数交换后的 KL 的梯度。所以数值最准的估计，梯度未必正确。",
            ),
            minutes=2.0,
            source="Schulman 2020, “Approximating KL divergence”",
        ),
        *question(
            "review-question",
            T(
                "Does adding 1 to every reward change the labels? Does doubling every reward?",
                "每个奖励都加 1 会改变标注吗？都乘 2 呢？",
            ),
            parts=(
                Equation(r"r(x,y) + f(x) \qquad\qquad c\cdot r(x,y)", big=True),
                Bullets(
                    T(
                        "Both change the labels",
                        "两个都会改变标注",
                    ),
                    T(
                        "Only the addition changes the labels",
                        "只有加 1 会改变标注",
                    ),
                    T("Only the factor changes the labels", "只有乘 2 会改变标注"),
                    ordered=True,
                ),
            ),
            answer=(
                ExplorerPart(
                    "bradley_terry",
                    advice=T(
                        "Move f, then c. Which one changes the labels? Which one changes π*?",
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
                "Move f over its whole range. The rewards change, but the probability of the label does not. The "
                "loss stays at its minimum, and π* does not change either. The reason is that f(x) is the same "
                "for all responses to a prompt, so it factors out of the sum in Z and cancels. Then move c. Now "
                "the labels and the policy change.\n\n"
                "DPO uses this invariance. Students may ask whether an offset for each prompt is harmless. It is "
                "harmless for π*, but not for comparing responses to different prompts.",
                "把 f 从一端移到另一端：奖励在变，但标注的概率不变，损失保持在最小值，π* 也不变。原因是 f(x) 对同"
                "一提示的所有回答都相同，可以从 Z 的求和中提出来约去。再动 c：标注和策略都改变。\n\n"
                "DPO 利用的正是这种不变性。学生可能会问：每个提示加一个常数有没有影响？对 π* 没有；但若要比较不同"
                "提示下的回答，就有影响。",
            ),
            answer_title=T(
                "Only the factor changes the labels; f(x) cancels",
                "只有乘法会改变标注；f(x) 会约去",
            ),
            minutes=(1.0, 2.0),
        ),
    ),
)
