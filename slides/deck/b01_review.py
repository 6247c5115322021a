"""Block 1: RLHF reviewed, from labels to a policy. Lecture, "Review of RLHF"."""

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
    title=T("RLHF, reviewed", "RLHF 回顾"),
    lecture=1,
    slides=(
        Slide(
            key="start",
            title=T("Variants of RLHF", "RLHF 的变体"),
            parts=(
                Text(
                    T(
                        "Many roads from a reference policy to one optimum",
                        "从参考策略出发，许多条路通向同一个最优点",
                    )
                ),
                Equation(r"\pi^*(y\mid x) \;=\; \frac{1}{Z(x)}\;\pi_\text{ref}(y\mid x)\;e^{\,r(x,y)/\beta}", big=True),
                Text(
                    T(
                        "Offline: DPO, RSO. Online: ReST. Then what is open.",
                        "离线：DPO、RSO。在线：ReST。最后是开放问题。",
                    ),
                    quiet=True,
                ),
            ),
            notes=T(
                "Everything in these two lectures is about this one line: where it comes from, why nobody can evaluate "
                "it, and how each method gets near it all the same. The first lecture ends with DPO beside PPO, the "
                "second begins with RSO.\n\nLeave it on the screen while people sit down. Every slider in these "
                "slides is alive, and the same slides open on a phone afterwards. Ask who has trained a reward model "
                "and who has run DPO: it decides how fast this block may go. One minute.",
                "两讲的内容都围绕这一行公式：它从哪里来，为什么没有人能直接算出它，各种方法又如何逼近它。第一讲以 DPO 与 PPO "
                "的比较结束，第二讲从 RSO 开始。\n\n学生入座时让它留在屏幕上。幻灯片里的滑块都能动，课后用手机也能打开"
                "同一份。问问谁训练过奖励模型、谁跑过 DPO：这决定本节可以讲多快。一分钟。",
            ),
            minutes=1.0,
            kind="title",
        ),
        Slide(
            key="three-phases",
            title=T("RLHF has three phases, and each hands one thing on", "RLHF 有三个阶段，每个阶段只交出一样东西"),
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
                        T(r"$r_\phi$ and a leash give $\pi_\theta$", r"$r_\phi$ 加一根缰绳，给出 $\pi_\theta$"),
                        "ppo",
                    ),
                    back=T("asked while training: the model, not a person", "训练时问的是模型，不是人"),
                    steps=True,
                ),
                Text(
                    T(
                        r"People are out of reach while we train, so their model $r_\phi$ is asked: RLHF is "
                        r"**model-based**. The policy will find where the model is wrong.",
                        r"训练时问不到人，只能问模型 $r_\phi$：RLHF 是**基于模型**的方法。策略会钻它的空子。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Walk the boxes: demonstrations, comparisons, optimisation. What is handed on is a policy, then a "
                "reward, then a policy again. Model-based here means a model of the environment that gives the reward."
                "\n\nPlant the question: why is the reward a detour, if labels are all we have and a policy is all "
                "we want? DPO answers it. RSO and ReST use the middle box to make data, PPO lives inside the loop. A "
                "minute and a half.",
                "依次讲三个方框：示范、比较、优化。交出的先是一个策略，再是一个奖励，最后又是一个策略。这里的“模型”指给出奖励的"
                "那个环境的模型。\n\n先埋下一个问题：手里只有标注，想要的只有策略，为什么要绕道奖励？DPO 会回答。RSO 和 ReST "
                "用中间的方框造数据，PPO 就在这个循环里工作。一分半钟。",
            ),
            minutes=1.5,
            source="Ouyang et al. 2022, section 3; lecture, “Overview”",
        ),
        Slide(
            key="bradley-terry",
            title=T(
                "A label is a coin whose bias is a difference of rewards", "一次标注是一枚硬币，偏向由奖励之差决定"
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
                "Reveal line by line. The tick at each line was computed when these slides were built, on random "
                "rewards: both sides, in float64. Point at the last line: two rewards go in, only their difference is "
                "left.\n\nThen the loss: maximum likelihood, a logistic regression on differences. w is the winner, "
                "l the loser, D the labelled pairs. The model knows the pairs it was shown and guesses elsewhere: RSO "
                "will ask which pairs it should be shown. Two minutes.",
                "逐行展开。每行的对勾是生成幻灯片时用随机奖励以双精度算出两边后才打上的。指着最后一行：进去两个奖励，"
                "剩下的只有它们的差。\n\n然后是损失：最大似然，也就是对差值做逻辑回归。w 是赢的，l 是输的，D 是标注好的"
                "成对数据。模型只了解见过的成对数据，其余都是猜测：RSO 会问该给它看哪些。两分钟。",
            ),
            minutes=2.0,
            source="Bradley & Terry 1952; Rafailov et al. 2023, eqs. 1 and 2",
        ),
        Slide(
            key="rl-objective",
            title=T("Reward on a leash: every nat of drift costs β", "拴着缰绳的奖励：每漂移一纳特付出 β"),
            parts=(
                Equation(
                    r"\max_{\pi_\theta}\;\;\underbrace{\mathbb{E}_{x\sim\mathcal{D},\,y\sim\pi_\theta(y\mid x)}"
                    r"\big[r_\phi(x,y)\big]}_{\text{earn reward}}\;-\;\beta\,\underbrace{\mathbb{D}_{\mathrm{KL}}"
                    r"\big[\pi_\theta(y\mid x)\,\big\|\,\pi_\text{ref}(y\mid x)\big]}_{\text{stay near the reference}}",
                    big=True,
                ),
                Table(
                    (T("β", "β"), T("what is best", "最优的做法"), T("what goes wrong", "会出什么问题")),
                    (
                        (
                            T("small", "小"),
                            T("the one best answer, always", "永远只给最好的那个回答"),
                            T("the reward model's errors are found", "奖励模型的错误被钻空子"),
                        ),
                        (
                            T("large", "大"),
                            T(r"nearly $\pi_\text{ref}$", r"几乎就是 $\pi_\text{ref}$"),
                            T("the labels were for nothing", "标注白做了"),
                        ),
                    ),
                    T("β is a price: reward per nat", "β 是价格：每纳特值多少奖励"),
                ),
            ),
            notes=T(
                "Read the formula as a shop: reward is what you earn, KL is what you spend, β is the price.\n\n"
                "Units: KL in nats, β in reward per nat. A β from one paper means nothing for a reward of another "
                "scale. A minute and a half.",
                "把公式读成一家商店：奖励是收入，KL 是花费，β 是单价。\n\n单位：KL 用纳特，β 是每纳特的奖励。"
                "奖励的尺度不同，别的论文里的 β 就没有意义。一分半钟。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, eq. 3",
        ),
        Slide(
            key="kl-estimators",
            title=T(
                "The leash is measured on samples, and three rulers disagree", "缰绳的长度靠样本估计，三把尺子各不相同"
            ),
            parts=(
                ExplorerPart(
                    "kl_estimators",
                    advice=T(
                        "Drift further: whose spread grows? Then show the gradients.",
                        "漂移大一些：谁的波动变大？再看看梯度。",
                    ),
                    only=("drift", "view"),
                ),
            ),
            notes=T(
                "With k = log π/π_ref on samples of π: k1 = k, k2 = k²/2, k3 = e⁻ᵏ − 1 + k. k1 and k3 have the right "
                "mean, k2 only to second order. Near the reference k3 is the steadiest; move the drift outwards: its "
                "spread grows past that of k1.\n\nThen "
                "switch to gradients. Used as a loss on fixed samples, k1 pulls nowhere, k2 has the gradient of this "
                "KL, k3 that of the other KL. The ruler with the best value is not the one with the right pull. Two "
                "minutes.",
                "在 π 的样本上记 k = log π/π_ref：k1 = k，k2 = k²/2，k3 = e⁻ᵏ − 1 + k。k1 和 k3 的均值正确，k2 只精确到二阶。"
                "靠近参考策略时 k3 最稳；把漂移往外移，它的波动会超过 k1。\n\n再切换到梯度。作为固定样本上的损失，k1 没有拉力，k2 给出这个 KL 的"
                "梯度，k3 给出反方向 KL 的梯度。数值最好的尺子，拉的方向未必对。两分钟。",
            ),
            minutes=2.0,
            source="Schulman 2020, “Approximating KL divergence”",
        ),
        *question(
            "review-question",
            T(
                "Add 1 to every reward, or double every reward: which do the labels notice?",
                "每个奖励都加 1，或者都乘 2：标注能察觉哪一个？",
            ),
            parts=(
                Equation(r"r(x,y) + f(x) \qquad\qquad c\cdot r(x,y)", big=True),
                Bullets(
                    T("Both", "两个都能"),
                    T("Only the sum", "只有加法"),
                    T("Only the factor", "只有乘法"),
                    ordered=True,
                ),
            ),
            answer=(
                ExplorerPart(
                    "bradley_terry",
                    advice=T(
                        "Move f, then c. Which one moves the labels, and which moves π*?",
                        "先动 f，再动 c：哪一个改变标注，哪一个改变 π*？",
                    ),
                    only=("offset", "scale"),
                ),
            ),
            notes=T(
                "Ask for a bet, a show of hands for each. Half a minute in pairs. Then go on: the answer is a slider. "
                "One minute.",
                "先打赌，逐项举手；两人一组讨论半分钟。答案就在下一页的滑块里。一分钟。",
            ),
            answer_notes=T(
                "Move f from end to end: the bars move, the label's probability does not, the loss stays at its least, "
                "and π* stays where it is: f(x) is the same for all answers, so it leaves the sum in Z and cancels. "
                "Then move c: the labels part at once, and so does the policy.\n\nThis freedom is what DPO will live "
                "on. Expected question: is an offset per prompt harmless, then? For π* yes; for comparing answers to "
                "different prompts no. Two minutes.",
                "把 f 从一端移到另一端：柱子在动，标注的概率不动，损失停在最小值，π* 也不动。f(x) 对所有回答相同，"
                "在 Z 的求和中提出来就约去了。再动 c：标注立刻改变，策略也随之改变。\n\nDPO 正是靠这份自由。常见问题：那么每个"
                "提示加一个常数就没有影响吗？对 π* 没有；但若要比较不同提示下的回答，就有影响。两分钟。",
            ),
            answer_title=T(
                "Only the factor: f(x) cancels in the labels, and in π*", "只有乘法：f(x) 在标注里约去，在 π* 里也约去"
            ),
            minutes=(1.0, 2.0),
        ),
    ),
)
