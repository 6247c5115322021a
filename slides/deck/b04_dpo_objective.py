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
                "DPO fits the policy to labels, as a reward model is fitted",
                "DPO 像拟合奖励模型那样，直接用标注拟合策略",
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
                        "DPO needs no reward model, no sampling and no critic",
                        "不需要奖励模型、采样和价值网络",
                    ),
                    T(
                        "The reference's log-probabilities are computed once",
                        "参考策略的对数概率只需算一次",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "Compare this loss with that of the reward model. It is the same logistic regression with another "
                "parametrisation of the reward.\n\n"
                "The log-probabilities are sums over the tokens of the response, including the end token. A mean "
                "over tokens would be another objective, and the program would run without an error.",
                "把它和奖励模型的损失比较：同一个逻辑回归，只是奖励的参数化不同。\n\n"
                "对数概率是回答中所有词元之和，包括结束符。若换成对词元取平均，就是另一个目标，而程序不会报错。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, eq. 7",
        ),
        Slide(
            key="dpo-likelihood",
            title=T(
                "The DPO loss is a likelihood, and π* maximises it",
                "DPO 损失是一个似然，在 π* 处最大",
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
                "The entropy of the labels is a lower bound of the loss for every method. The remaining term is a "
                "KL, which is zero at π*. With unlimited data π* is therefore the minimum.\n\n"
                "If the training loss is far below this entropy, the model has memorised single labels. Evaluate "
                "it on held-out pairs.",
                "标注本身的熵是损失的下界，对任何方法都成立。剩下的一项是 KL，在 π* 处为零，所以数据无限时，最小"
                "点就是 π*。\n\n"
                "若训练损失远低于这个熵，模型就是记住了个别标注：要在留出的成对数据上评估。",
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
                "Start with few labels. If all labels of an answer agree, the loss has no minimum, and the "
                "probability of this answer converges to 0 or 1.\n\n"
                "Increase the number of labels: the policy converges to π*. Then flip some labels: the loss "
                "converges to another policy. cDPO and robust DPO were designed for this case.",
                "从很少的标注开始：若某个回答的标注全部一致，损失就没有最小点，这个回答的概率会趋向 0 或 1。\n\n"
                "增加标注数：策略收敛到 π*。再翻转一部分标注：策略收敛到别处，cDPO 和 robust DPO 正是为此设计的。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="dpo-enough-labels",
            title=T(
                "With enough labels DPO converges to π*",
                "标注足够多时，DPO 收敛到 π*",
            ),
            parts=claim(
                "enough-labels",
                "bandit",
                paper=T(
                    "with unlimited labels the optimum is π*; it does not say how many are enough.",
                    "标注无限时的最优点就是 π*；没有说明多少才够。",
                ),
                source="Rafailov et al. 2023, sec. 4, 5",
                found=(
                    finding(
                        "enough-labels",
                        "bandit",
                        "supported",
                        "The regret falls from {regret_100:mean} with 100 labels to {regret_100000:mean} with 100,000. The "
                        "slope is {slope}, equal to the predicted −1 within 10%. At the end the regret is {ratio_100000} times the "
                        "limit, equal to 1 within 10%.",
                        "后悔值从 100 个标注时的 {regret_100:mean} 降到 100,000 个时的 {regret_100000:mean}，斜率为 {slope}，与理论值 −1 相差不到 10%；"
                        "最后是理论极限的 {ratio_100000} "
                        "倍，与 1 相差也不到 10%。",
                        conditions=("slope < -0.9", "slope > -1.1", "ratio_100000 > 0.9", "ratio_100000 < 1.1"),
                    ),
                ),
                alt="后悔值随标注数下降，两轴均为对数；虚线是与 1/N 成正比的理论极限。标注少时曲线在虚线之上，标注多时与虚线重合。",
            ),
            notes=T(
                "The experiment uses eight hundred random worlds and a tabular policy, and fits each data set to "
                "convergence. The dashed line is the theoretical limit, computed before any label was sampled.\n\n"
                "Look at the left end. With a few hundred labels the fitted policy is worse than π_ref, because a "
                "fit to convergence trusts every single label.",
                "实验用八百个随机世界和表格策略，每份数据都拟合到收敛。虚线是理论极限，在抽取任何标注之前就已算好"
                "。\n\n"
                "看左端：只有几百个标注时，拟合出的策略比 π_ref 还差，因为拟合到收敛就会相信每一个标注。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-gradient",
            title=T(
                "DPO's gradient weights each pair by how wrong the implicit reward is",
                "DPO 的梯度按隐式奖励的错误程度给每对数据加权",
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
                    r"_{\text{larger when the implicit reward is wrong}}\Big[\underbrace{\nabla\log\pi(y_w|x)}_{\text{raise the chosen}}"
                    r"-\underbrace{\nabla\log\pi(y_l|x)}_{\text{lower the rejected}}\Big]\Big]",
                    step=True,
                ),
            ),
            notes=T(
                "The gradient has three factors: the weight, the direction and β. Without the weight it is "
                "unlikelihood training, with which the generated text degenerates. The paper's appendix shows "
                "such samples.\n\n"
                "Mention a surprising effect. The margin always increases, but the log-probability of the chosen "
                "answer may decrease if the two answers share most of their tokens. This is not a bug; notebook "
                "06 derives when it happens.",
                "梯度有三个因子：权重、方向和 β。没有权重就成了 unlikelihood 训练，生成的文本会退化：论文附录有样"
                "例。\n\n"
                "一个常让人吃惊的现象：差距总是增大，但当两个回答的大部分词元相同时，被选回答的对数概率可能下降。"
                "这不是程序错误；何时会这样，推导见 06 号笔记本。",
            ),
            minutes=2.0,
            source="Rafailov et al. 2023, section 4 and appendix A.4",
        ),
        *question(
            "dpo-question",
            T(
                "A pair is ranked correctly by 4 nats. How large is its weight in the gradient?",
                "一对回答已经排对，相差 4 纳特。它在梯度里的权重有多大？",
            ),
            parts=(
                Equation(
                    r"\log\frac{\pi_\theta(y_w\mid x)}{\pi_\text{ref}(y_w\mid x)} = 2,\qquad "
                    r"\log\frac{\pi_\theta(y_l\mid x)}{\pi_\text{ref}(y_l\mid x)} = -2,\qquad \beta = 0.5",
                ),
                Bullets(
                    T(
                        "As large as at the start",
                        "和开始时一样大",
                    ),
                    T(
                        "About a quarter of the weight at the start",
                        "大约是开始时的四分之一",
                    ),
                    T(
                        "Zero, because the pair is learned",
                        "为零，因为已经学会了",
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
                "The students know the formula: the weight is σ(−β · gap). Give them half a minute to compute it "
                "on paper.",
                "学生已经知道公式：权重是 σ(−β · 差距)。给半分钟在纸上算。",
            ),
            answer_notes=T(
                "The weight is σ(−0.5 · 4) = 0.12. At the start both log-ratios are zero, and the weight "
                "is one half for every β. The answer is therefore about a quarter.\n\n"
                "β has two effects. It scales the gradient, and it determines at which gap the weight "
                "becomes small. With a large β this pair has almost no weight. With a small β all pairs "
                "have almost the same weight.",
                "权重是 σ(−0.5 · 4) = 0.12。开始时两个对数比都是零，无论 β 是多少，权重都是二分之一。所以"
                "答案大约是四分之一。\n\n"
                "β 有两个作用：缩放梯度，并决定差距多大时权重变小。β 大时，这一对几乎没有权重；β 小时，所"
                "有成对数据的权重几乎相同。",
            ),
            answer_title=T(
                "About a quarter: a correctly ranked pair has little weight",
                "约四分之一：排对的一对权重很小",
            ),
            minutes=(1.0, 2.0),
        ),
    ),
)
