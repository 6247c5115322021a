"""Block 4: DPO's objective and its gradient. Section of the lecture: "DPO Objective Function"."""

from __future__ import annotations

from slides.results import claim, finding
from slides.schema import Block, Bullets, DerivationPart, Equation, ExplorerPart, Slide, T, question

BLOCK = Block(
    key="dpo-objective",
    title=T("DPO: objective and gradient", "DPO：目标与梯度"),
    lecture=1,
    slides=(
        Slide(
            key="dpo-loss",
            title=T(
                "DPO fits a policy to labels as one fits a reward model",
                "DPO 像拟合奖励模型那样，用标注拟合策略",
            ),
            parts=(
                Equation(
                    r"\mathcal{L}_\text{DPO}(\pi_\theta;\pi_\text{ref}) = -\,\mathbb{E}_{(x,y_w,y_l)\sim\mathcal{D}}"
                    r"\left[\log\sigma\!\left(\beta\log\frac{\pi_\theta(y_w\mid x)}{\pi_\text{ref}(y_w\mid x)}"
                    r" - \beta\log\frac{\pi_\theta(y_l\mid x)}{\pi_\text{ref}(y_l\mid x)}\right)\right]",
                ),
                Bullets(
                    T(
                        r"The implicit reward $\hat r_\theta(x,y) = "
                        r"\beta\log\frac{\pi_\theta(y|x)}{\pi_\text{ref}(y|x)}$ replaces $r_\phi$",
                        r"隐式奖励 $\hat r_\theta(x,y) = \beta\log\frac{\pi_\theta(y|x)}{\pi_\text{ref}(y|x)}$ 代替了 "
                        r"$r_\phi$",
                    ),
                    T(
                        "DPO needs no reward model, no critic and no sampling",
                        "DPO 不需要奖励模型、价值网络和采样",
                    ),
                    T(
                        "The log-probabilities of the reference are computed only once",
                        "参考策略的对数概率只需算一次",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "Compare this loss with that of the reward model. It is the same logistic regression with "
                "another parametrisation of the reward.\n\n"
                "The log-probabilities are sums over the tokens of the response, including the end token. A mean "
                "over tokens would be another objective, and the program would run without an error message.",
                "把它和奖励模型的损失比较：同一个逻辑回归，只是奖励的参数化不同。\n\n"
                "对数概率是回答中所有词元之和，包括结束符。若换成对词元取平均，就是另一个目标，而程序不会报错。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, eq. 7",
        ),
        Slide(
            key="dpo-likelihood",
            title=T(
                "The expected DPO loss has its minimum at π*",
                "DPO 的期望损失在 π* 处最小",
            ),
            parts=(
                DerivationPart(
                    "dpo-is-likelihood",
                    last=4,
                    reasons=(
                        "课件中的公式，每个标注按其概率出现；左边是 `losses.dpo`",
                        r"$p_\theta$：以 $\hat r_\theta = \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}}$ 为奖励的 Bradley–Terry",
                        r"交叉熵：标注本身的不确定性，加上 $p_\theta$ 的误差",
                        "吉布斯不等式",
                    ),
                ),
            ),
            notes=T(
                "The loss is the negative log-likelihood of the labels, and its expectation is a cross-entropy. "
                "The entropy of the labels is a lower bound for every policy. The remaining term is a KL, which "
                "is zero at π*. With unlimited labels π* therefore minimises the loss. With finitely many labels "
                "the minimum is at another policy, as the next slide shows.\n\n"
                "If the training loss is far below this entropy, the policy has memorised single labels. "
                "Evaluate it on held-out pairs.",
                "损失是标注的负对数似然，它的期望是交叉熵。标注的熵是下界，对任何策略都成立。剩下的一项是 KL，在 "
                "π* 处为零，所以标注无限时，π* 使损失最小。标注有限时，最小点是别的策略，见下一页。\n\n"
                "若训练损失远低于这个熵，策略就是记住了个别标注：要在留出的成对数据上评估。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-finite",
            title=T(
                "With few labels the minimum of the loss is far from π*",
                "标注少时，损失的最小点离 π* 很远",
            ),
            parts=(
                ExplorerPart(
                    "finite_preferences",
                    advice=T(
                        "Increase the number of labels, then flip some of them.",
                        "增加标注数，再翻转一部分标注。",
                    ),
                    only=("number", "noise"),
                ),
            ),
            notes=T(
                "Start with few labels. If a response wins or loses all its comparisons, the loss has no "
                "minimum. The probability of this response then converges to 1 or 0.\n\n"
                "Increase the number of labels. The policy approaches π*. Then flip some of them. The loss now "
                "has its minimum at another policy. cDPO and robust DPO were designed for this case.",
                "从很少的标注开始：若某个回答的比较全胜或全败，损失就没有最小点，这个回答的概率会趋向 1 或 0。\n\n"
                "增加标注数：策略趋近 π*。再翻转一部分标注：损失的最小点变成别的策略，cDPO 和 robust DPO 正是为此"
                "设计的。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-enough-labels",
            title=T(
                "With enough labels DPO's regret falls as 1/N",
                "标注足够多时，DPO 的后悔值按 1/N 下降",
            ),
            parts=claim(
                "enough-labels",
                "bandit",
                paper=T(
                    "With unlimited labels the optimum is π*. The paper does not say how many are enough.",
                    "标注无限时，最优点就是 π*。论文没有说明多少才够。",
                ),
                source="Rafailov et al. 2023, sec. 4, 5",
                found=(
                    finding(
                        "enough-labels",
                        "bandit",
                        "supported",
                        "The regret falls from {regret_100:mean} with 100 labels to {regret_100000:mean} with 100,000. Its "
                        "slope, {slope}, equals the predicted −1 within 10%. At the end it is {ratio_100000} times its limit.",
                        "后悔值从 100 个标注时的 {regret_100:mean} 降到 100,000 个时的 {regret_100000:mean}。斜率 {slope} 与理论值 −1 "
                        "相差不到 10%。最后后悔值是理论极限的 {ratio_100000} 倍。",
                        conditions=("slope < -0.9", "slope > -1.1", "ratio_100000 > 0.9", "ratio_100000 < 1.1"),
                    ),
                ),
                alt="后悔值随标注数下降，两轴均为对数；虚线是与 1/N 成正比的理论极限。标注少时曲线在虚线之上，标注多时与虚线重合。",
            ),
            notes=T(
                "The experiment uses eight hundred random worlds. A tabular policy is fitted to convergence on "
                "each data set. The dashed line is the theoretical limit, which is computed without any label.\n\n"
                "Point at the left end. With a few hundred labels the regret of the fitted policy is higher than "
                "that of π_ref. The reason is that a fit to convergence treats every observed win as certain.",
                "实验用八百个随机世界，在每份数据上把表格策略拟合到收敛。虚线是理论极限，计算时不用任何标注。\n\n"
                "看左端：只有几百个标注时，拟合出的策略的后悔值比 π_ref 还高，因为拟合到收敛就是把每次观察到的胜"
                "出都当成必然。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-gradient",
            title=T(
                "DPO's gradient gives incorrectly ranked pairs more weight",
                "DPO 的梯度给排错的成对数据更大的权重",
            ),
            parts=(
                DerivationPart(
                    "dpo-gradient",
                    last=3,
                    reasons=(
                        "链式法则；左边由自动微分给出",
                        r"$\sigma'(u) = \sigma(u)\,\sigma(-u)$",
                        r"$-u = \hat r_l - \hat r_w$；$\hat r_\theta = \beta\log\tfrac{\pi_\theta}{\pi_\text{ref}}$，参考策略没有梯度",
                    ),
                ),
                Equation(
                    r"-\beta\;\mathbb{E}\Big[\underbrace{\sigma\big(\hat r_\theta(x,y_l)-\hat r_\theta(x,y_w)\big)}"
                    r"_{\text{larger if ranked incorrectly}}\Big[\underbrace{\nabla\log\pi(y_w|x)}_{\text{raise the chosen}}"
                    r"-\underbrace{\nabla\log\pi(y_l|x)}_{\text{lower the rejected}}\Big]\Big]",
                    step=True,
                ),
            ),
            notes=T(
                "The gradient has three factors: the weight, the direction and β. Without the weight it is "
                "unlikelihood training, after which the model generates degenerate text. The paper's appendix "
                "shows such samples.\n\n"
                "Mention a surprising effect. The margin rises, but the log-probability of the chosen response "
                "may fall, in particular if the two responses share most of their tokens. This is not a bug. "
                "Notebook 06 derives when it happens.",
                "梯度有三个因子：权重、方向和 β。没有权重就成了 unlikelihood 训练，模型生成的文本会退化；论文附录"
                "有样例。\n\n"
                "提一个令人吃惊的现象：间隔在增大，被选回答的对数概率却可能下降，两个回答的大部分词元相同时尤其如"
                "此。这不是程序错误；何时会这样，推导见 06 号笔记本。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, section 4 and appendix A.4",
        ),
        Slide(
            key="dpo-chosen-claim",
            title=T(
                "DPO may lower the probability of chosen responses",
                "DPO 可能降低被选回答的概率",
            ),
            parts=claim(
                "chosen-probability",
                "bandit",
                paper=T(
                    "The likelihood of chosen responses often falls. DPOP avoids this.",
                    "被选回答的似然常常下降，DPOP 可以避免。",
                ),
                source="Razin et al. 2024; Pal et al. 2024",
                found=(
                    finding(
                        "chosen-probability",
                        "bandit",
                        "supported",
                        "With shared features DPO changes log π of the chosen responses by {dpo_chosen} nats, and DPOP "
                        "by {dpop_chosen}. With a table it rises.",
                        "共享特征时，DPO 使被选回答的 log π 变化 {dpo_chosen} 纳特，DPOP 使它变化 {dpop_chosen}。"
                        "用表格时它升高。",
                        conditions=("dpo_chosen < 0", "dpop_chosen > 0", "chosen_table_dpo > 0"),
                    ),
                    finding(
                        "chosen-probability",
                        "tree",
                        "partly supported",
                        "It rises by {dpo_chosen}, but it falls for {falling_shared_dpo:percent,mean,0} of them.",
                        "DPO 使它平均升高 {dpo_chosen}，但其中 {falling_shared_dpo:percent,mean,0} 下降。",
                        conditions=("dpo_chosen > 0", "falling_shared_dpo > 0.3"),
                    ),
                ),
                alt="多臂老虎机上，共享特征的策略用五种损失训练后，被选回答与被拒回答的 log π 的变化，带区间：DPO 和 IPO 使两者都"
                "下降，ORPO、DPO + NLL 和 DPOP 使被选回答略微升高。",
                panels=(1,),
                share=0.46,
            ),
            notes=T(
                "The picture shows the change of log π under five losses. The policies share parameters between responses. "
                "Training stops at a fixed margin or after a fixed number of steps. DPOP, ORPO and DPO with NLL do not "
                "reach the margin on the bandit.\n\n"
                "Explain why the probability of a chosen response falls. In a table, a step on a pair raises it. With shared "
                "parameters the gradients of the other pairs matter, too, and probability moves to responses that no pair "
                "contains.\n\n"
                "A fall is not always a failure. With a small β the chosen responses are on average less probable under π* "
                "than under π_ref, because better responses gain the probability. Notebook 06 derives when a fall happens.",
                "图中是五种损失使 log π 变化多少，策略在回答之间共享参数。训练到固定的间隔或固定的步数为止；在多臂老虎机上，"
                "DPOP、ORPO 和 DPO + NLL 没有达到这个间隔。\n\n"
                "解释被选回答的概率为什么下降。用表格时，在一对数据上走一步会提高它；共享参数时，其他成对数据的梯度也起作用，"
                "概率转移到没有出现在任何成对数据里的回答。\n\n"
                "下降不一定是失败。β 小时，被选回答在 π* 下平均也比在 π_ref 下概率低，因为更好的回答得到了概率。何时会下降，"
                "推导见 06 号笔记本。",
            ),
            minutes=1.5,
        ),
        *question(
            "dpo-question",
            T(
                "A pair has a margin of 4 nats. How large is its weight in the gradient?",
                "一对回答的间隔是 4 纳特。它在梯度里的权重有多大？",
            ),
            parts=(
                Equation(
                    r"\log\frac{\pi_\theta(y_w\mid x)}{\pi_\text{ref}(y_w\mid x)} = 2,\qquad "
                    r"\log\frac{\pi_\theta(y_l\mid x)}{\pi_\text{ref}(y_l\mid x)} = -2,\qquad \beta = 0.5",
                ),
                Bullets(
                    T(
                        "It is as large as at the start",
                        "和开始时一样大",
                    ),
                    T(
                        "It is about a quarter of the weight at the start",
                        "大约是开始时的四分之一",
                    ),
                    T(
                        "It is zero, because the pair is learned",
                        "为零，因为这一对已经学会了",
                    ),
                    ordered=True,
                ),
            ),
            answer=(
                ExplorerPart(
                    "dpo_gradient",
                    advice=T(
                        "Move the two log-ratios, then β. Where is the weight one half?",
                        "移动两个对数比，再动 β：权重何处为二分之一？",
                    ),
                    at={"beta": 0.5, "chosen": 2.0, "rejected": -2.0},
                ),
            ),
            notes=T(
                "The students know that the weight is σ(−βΔ). Give them half a minute to compute it on paper.",
                "学生已经知道权重是 σ(−βΔ)。给半分钟在纸上算。",
            ),
            answer_notes=T(
                "The weight is σ(−0.5 · 4) = 0.12. At the start both log-ratios are zero, and the weight is one "
                "half for every β. The weight has therefore fallen to about a quarter.\n\n"
                "β has two effects. It scales the gradient, and it determines at which margin the weight becomes "
                "small. With a large β this pair has almost no weight. With a small β all pairs have almost the "
                "same weight.",
                "权重是 σ(−0.5 · 4) = 0.12。开始时两个对数比都是零，无论 β 是多少，权重都是二分之一。所以权重降到"
                "了大约四分之一。\n\n"
                "β 有两个作用：缩放梯度，并决定间隔多大时权重变小。β 大时，这一对几乎没有权重；β 小时，所有成对数"
                "据的权重几乎相同。",
            ),
            answer_title=T(
                "The weight has fallen to a quarter of its initial value",
                "权重降到开始时的约四分之一",
            ),
            minutes=(1.0, 2.0),
        ),
    ),
)
