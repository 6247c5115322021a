"""Block 4: DPO's objective and its gradient. Lecture, "DPO Objective Function"."""

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
                "Fit the policy to the labels, as one fits a reward model", "像拟合奖励模型那样，让策略直接拟合标注"
            ),
            parts=(
                Equation(
                    r"\mathcal{L}_\text{DPO}(\pi_\theta;\pi_\text{ref}) = -\,\mathbb{E}_{(x,y_w,y_l)\sim\mathcal{D}}"
                    r"\left[\log\sigma\!\left(\beta\log\frac{\pi_\theta(y_w\mid x)}{\pi_\text{ref}(y_w\mid x)}"
                    r" - \beta\log\frac{\pi_\theta(y_l\mid x)}{\pi_\text{ref}(y_l\mid x)}\right)\right]",
                ),
                Bullets(
                    T(
                        r"The implicit reward $\hat r_\theta(x,y) = \beta\log\frac{\pi_\theta(y|x)}{\pi_\text{ref}(y|x)}$ "
                        r"stands where $r_\phi$ stood",
                        r"隐式奖励 $\hat r_\theta(x,y) = \beta\log\frac{\pi_\theta(y|x)}{\pi_\text{ref}(y|x)}$ 占据了 "
                        r"$r_\phi$ 的位置",
                    ),
                    T("No reward model, no sampling, no critic", "没有奖励模型，没有采样，也没有价值网络"),
                    T(
                        "The reference's log-probabilities are computed once",
                        "参考策略的对数概率只需算一次",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "Put it beside the reward model's loss: the same logistic regression, with another parametrisation of "
                "the reward.\n\nThe log-probabilities are sums over the tokens of the response, the end token "
                "included. A mean in their place is another objective, and it runs without an error. A minute and a "
                "half.",
                "把它和奖励模型的损失放在一起：同一个逻辑回归，只是奖励换了参数化。\n\n对数概率是回答中所有词元之和，"
                "包括结束符。换成平均就是另一个目标了，而且不会报错。一分半钟。",
            ),
            minutes=1.5,
            source="Rafailov et al. 2023, eq. 7",
        ),
        Slide(
            key="dpo-likelihood",
            title=T("It is a likelihood, and π* has the greatest", "它是一个似然，而 π* 使它最大"),
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
                "What labels leave open is the entropy of the coin: no method can get below it. What is left is a KL, "
                "and it is zero at π*: the minimum for data without end.\n\nA training loss far below the "
                "entropy has learned single coins by heart: look at held-out pairs. A minute and a half.",
                "标注留下的不确定性就是硬币的熵，任何方法都降不下去。剩下的是一个 KL，在 π* 处为零：数据无限时，"
                "最小点就在那里。\n\n训练损失若远低于这个熵，就是在背硬币的正反面：要看留出的成对数据。一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-finite",
            title=T("With few labels the optimum of the loss is far from π*", "标注少时，损失的最优点离 π* 很远"),
            parts=(
                ExplorerPart(
                    "finite_preferences",
                    advice=T(
                        "Raise the number of labels, then turn some of them round.",
                        "增加标注数，再把一部分标注反过来。",
                    ),
                    only=("number", "noise"),
                ),
            ),
            notes=T(
                "Start with few labels: where all labels of an answer agree, the loss has no minimum, and the policy "
                "runs to a corner.\n\nRaise the number: the bars settle on π*. Then turn labels round: the loss "
                "settles elsewhere, and cDPO and robust DPO were made for that. Two minutes.",
                "从很少的标注开始：若某个回答的标注全部一致，损失没有最小点，策略会跑到角落。\n\n增加数量：柱子稳定到 π*。"
                "再把一部分标注反过来：损失停在别处，cDPO 和 robust DPO 正是为此设计的。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="dpo-enough-labels",
            title=T("Enough labels do lead to π*", "标注足够多，就能到达 π*"),
            parts=claim(
                "enough-labels",
                "bandit",
                paper=T(
                    "with endless labels the optimum is π*; how many are enough is not said.",
                    "标注无限时的最优点就是 π*；多少才够，没有说。",
                ),
                source="Rafailov et al. 2023, sec. 4, 5",
                found=(
                    finding(
                        "enough-labels",
                        "bandit",
                        "partly supported",
                        "The regret falls from {regret_100:mean} with 100 labels to {regret_100000:mean} with 100,000. The "
                        "slope is {slope}, and the theory predicts −1. At the end the regret is {ratio_100000} times the limit.",
                        "遗憾从 100 个标注时的 {regret_100:mean} 降到 100,000 个时的 {regret_100000:mean}，斜率为 {slope}，理论值为 −1；"
                        "最后是理论极限的 {ratio_100000} 倍。",
                        conditions=("regret_100000 < regret_100", "slope < -0.9", "ratio_100000 > 1"),
                    ),
                ),
                alt="遗憾随标注数下降，两轴均为对数；虚线是理论极限“价格除以 N”。标注少时在虚线之上，多时与虚线重合。",
            ),
            notes=T(
                "Two hundred random worlds, a table as the policy, the fit carried to its end. The dashed line is the "
                "theory, computed before a label was drawn.\n\nLook at the left end: with a few hundred labels the "
                "fitted policy is worse than π_ref, because a fit to the end believes every win. A minute and a half.",
                "两百个随机世界，策略是表格，拟合到底。虚线是理论，在抽取任何标注之前就已算好。\n\n看左端：只有几百个标注时，"
                "拟合出的策略比 π_ref 还差，因为拟合到底就会相信每一次输赢。一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-gradient",
            title=T(
                "The gradient pushes up and pulls down, weighted by how wrong we are",
                "梯度一推一拉，权重取决于错得多离谱",
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
                    r"_{\text{higher when the estimate is wrong}}\Big[\underbrace{\nabla\log\pi(y_w|x)}_{\text{up}}"
                    r"-\underbrace{\nabla\log\pi(y_l|x)}_{\text{down}}\Big]\Big]",
                    step=True,
                ),
            ),
            notes=T(
                "Three factors: how wrong, which way, and β. Without the weight it is unlikelihood training, and the "
                "language goes to pieces: the paper shows samples of that.\n\nA surprise to name: the margin always "
                "rises, but the chosen answer's own log-probability may fall, where the two answers share most of "
                "their tokens. Nothing is broken; notebook 06 derives when. Two minutes.",
                "三个因子：错多少、往哪边、以及 β。没有这个权重就成了 unlikelihood 训练，语言会崩坏：论文附录有样例。\n\n"
                "一个常让人吃惊的现象：差距总是增大，但当两个回答的大部分词元相同时，被选中者自己的对数概率可能下降。"
                "程序没有坏；何时会这样，推导见 06 号笔记本。两分钟。",
            ),
            minutes=2.0,
            source="Rafailov et al. 2023, section 4 and appendix A.4",
        ),
        *question(
            "dpo-question",
            T(
                "A pair is ranked right by 4 nats. How hard does it still pull?",
                "一对回答已经排对，相差 4 纳特。它还用多大的力？",
            ),
            parts=(
                Equation(
                    r"\log\frac{\pi_\theta(y_w\mid x)}{\pi_\text{ref}(y_w\mid x)} = 2,\qquad "
                    r"\log\frac{\pi_\theta(y_l\mid x)}{\pi_\text{ref}(y_l\mid x)} = -2,\qquad \beta = 0.5",
                ),
                Bullets(
                    T("As hard as ever", "和原来一样大"),
                    T("A quarter of what it was at the start", "是开始时的四分之一左右"),
                    T("Not at all: it is done", "不再用力：已经学会了"),
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
                "They have the formula: σ of minus β times the gap. Half a minute on paper. One minute.",
                "公式已经有了：σ（负的 β 乘以差距）。在纸上算半分钟。一分钟。",
            ),
            answer_notes=T(
                "The weight is σ(−0.5 · 4) = 0.12; at the start, where both log-ratios are zero, it is one half, "
                "whatever β is. So about a quarter.\n\nβ has two jobs: it scales the pull, and it decides how soon a "
                "pair is done. Raise β: this pair is finished. Lower it: every pair pulls alike. Two minutes.",
                "权重是 σ(−0.5 · 4) = 0.12；开始时两个对数比都是零，无论 β 是多少，权重都是二分之一。所以大约是四分之一。"
                "\n\nβ 有两个作用：放大拉力，并决定一对多快满足。调大 β，这一对就完成了；调小 β，每一对用力都差不多。两分钟。",
            ),
            answer_title=T("A quarter: a pair that is ranked right hardly pulls", "约四分之一：排对的一对几乎不再用力"),
            minutes=(1.0, 2.0),
        ),
    ),
)
