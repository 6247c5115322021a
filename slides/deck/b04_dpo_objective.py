"""Block 4: DPO's objective and its gradient. Lecture, "DPO Objective Function"."""

from __future__ import annotations

from slides.format import Block, Bullets, Derivation, Equation, Explorer, Slide, T, Text, question

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
                    big=True,
                ),
                Bullets(
                    T(
                        r"The implicit reward $\hat r_\theta(x,y) = \beta\log\frac{\pi_\theta(y|x)}{\pi_\text{ref}(y|x)}$ "
                        r"stands where $r_\phi$ stood",
                        r"隐式奖励 $\hat r_\theta(x,y) = \beta\log\frac{\pi_\theta(y|x)}{\pi_\text{ref}(y|x)}$ 占据了 "
                        r"$r_\phi$ 的位置",
                    ),
                    T("No reward model, no sampling, no critic", "没有奖励模型，没有采样，没有评论家"),
                    T(
                        "Two forward passes of the policy; the reference's are computed once",
                        "策略做两次前向；参考策略的只需算一次",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "Put it beside the reward model's loss of the first block: the same logistic regression, with another "
                "parametrisation of the reward.\n\nThe log-probabilities are sums over the tokens of the response, "
                "the end token included. A mean in their place is another objective.",
                "把它和第一节奖励模型的损失放在一起：同一个逻辑回归，只是奖励换了参数化。\n\n对数概率是回答中所有词元之和，"
                "包括结束符。换成平均就是另一个目标了。",
            ),
            minutes=3.0,
            source="Rafailov et al. 2023, eq. 7",
        ),
        Slide(
            key="dpo-likelihood",
            title=T("It is a likelihood, and π* has the greatest", "它是一个似然，而 π* 使它最大"),
            parts=(
                Derivation(
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
                "and it is zero at π*.\n\nSo with data without end the minimum is π*. With finite data it is the "
                "maximum-likelihood estimate, with all its variance; claim 1 shows how fast that goes.",
                "标注留下的不确定性就是硬币的熵，任何方法都降不下去。剩下的是一个 KL，在 π* 处为零。\n\n"
                "所以数据无限时最小点就是 π*。数据有限时它是最大似然估计，带着全部方差；论断一展示它收敛得多快。",
            ),
            minutes=3.0,
        ),
        Slide(
            key="dpo-finite",
            title=T("With few labels the optimum of the loss is far from π*", "标注少时，损失的最优点离 π* 很远"),
            parts=(
                Explorer(
                    "finite_preferences",
                    advice=T(
                        "Raise the number of labels. What happens where all labels agree?",
                        "增加标注数：若所有标注一致会怎样？",
                    ),
                ),
            ),
            notes=T(
                "Start with few labels: where every label of a pair says the same, the loss has no minimum, and the "
                "policy runs to a corner.\n\nRaise the number: the bars settle on π*. Then add wrong labels: the "
                "loss settles elsewhere, and cDPO and robust DPO were made for that.",
                "从很少的标注开始：若某一对的标注全部一致，损失没有最小点，策略会跑到角落。\n\n增加数量：柱子稳定到 π*。"
                "再加入错误标注：损失停在别处，cDPO 和 robust DPO 正是为此设计的。",
            ),
            minutes=3.5,
        ),
        Slide(
            key="dpo-gradient",
            title=T(
                "The gradient: push up, pull down, weighted by how wrong we are", "梯度：推高、压低，权重是错得有多离谱"
            ),
            parts=(
                Derivation(
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
                "Three factors: how wrong, which way, and β.\n\nWithout the weight it is unlikelihood training, and "
                "the language goes to pieces: the paper shows samples of that.",
                "三个因子：错多少、往哪边、以及 β。\n\n没有这个权重就成了 unlikelihood 训练，语言会崩坏：论文附录有样例。",
            ),
            minutes=3.0,
            source="Rafailov et al. 2023, section 4 and appendix A.4",
        ),
        Slide(
            key="dpo-gradient-explorer",
            title=T("A pair that is ranked right hardly pulls", "已经排对的一对几乎不再用力"),
            parts=(
                Explorer(
                    "dpo_gradient",
                    advice=T(
                        "Move the two log-ratios, then β. Where is the weight one half?",
                        "移动两个对数比，再动 β：权重何处为二分之一？",
                    ),
                ),
            ),
            notes=T(
                "At equal log-ratios the weight is one half, whatever β is. Move the chosen one up: the weight falls "
                "towards zero, and the pair is done.\n\nβ has two jobs: it scales the pull, and it decides how soon "
                "a pair is done. A large β is satisfied early.",
                "两个对数比相等时，无论 β 是多少，权重都是二分之一。把被选中的调高：权重趋近于零，这一对就完成任务了。\n\n"
                "β 有两个作用：放大拉力，并决定一对多快满足。β 大，很早就满足。",
            ),
            minutes=3.0,
        ),
        Slide(
            key="dpo-chosen-falls",
            title=T(
                "The chosen answer may become less likely, and the loss still falls",
                "被选中的回答可能变得更不可能，而损失仍在下降",
            ),
            parts=(
                Derivation(
                    "chosen-may-fall",
                    first=2,
                    last=4,
                    reasons=(
                        "代入 DPO 的梯度",
                        r"当 $g_w\cdot g_l > \|g_w\|^2$ 时为负：两个回答相像，而被拒绝者的 $g$ 更长",
                        "与此相反，差距总是增大（同样两步，用于差值）",
                    ),
                ),
                Text(
                    T(
                        "Watch the margin *and* the chosen log-probability: one curve alone hides this.",
                        "既要看差距，*也*要看被选中者的对数概率：只看一条曲线就会漏掉。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "A surprise to most people who run DPO for the first time: both log-probabilities go down. Nothing is "
                "broken.\n\nIt happens where the two answers share most of their tokens: what pulls the rejected one "
                "down pulls the chosen one down too. Where does the mass go? To answers nobody compared.",
                "第一次跑 DPO 的人大多会吃惊：两个对数概率都在下降。程序没有坏。\n\n当两个回答的大部分词元相同时就会这样："
                "压低被拒绝者的同时也压低了被选中者。概率去了哪里？去了没人比较过的回答。",
            ),
            minutes=2.5,
        ),
        *question(
            "dpo-question",
            T(
                "Your labels come from another model's answers. Is π* still the limit?",
                "标注的回答来自别的模型，极限还是 π* 吗？",
            ),
            parts=(
                Equation(r"(y_w, y_l) \sim \mu \neq \pi_\text{ref}"),
                Bullets(
                    T("Yes, for every μ that compares all answers", "是，只要 μ 比较到所有回答"),
                    T("No, only for pairs from the reference", "不是，只有来自参考策略的才行"),
                    T("No, it becomes the optimum of μ", "不是，会变成 μ 的最优策略"),
                    ordered=True,
                ),
            ),
            answer=(
                Derivation(
                    "dpo-minimum",
                    reasons=(
                        r"一对的两种标注合在一起；$e_y$ 是 $y$ 的 logit 的单位向量",
                        r"在 $\pi_\theta = \pi^*$ 处，$p_\theta = p^*$",
                        "对任何 μ 成立：问哪些对只决定噪声，不决定极限",
                    ),
                ),
            ),
            notes=T(
                "This question opens the door to RSO. Let somebody defend the second answer: it is what most papers "
                "suggest.",
                "这个问题通向 RSO。让一位同学为第二个选项辩护：多数论文给人的印象就是它。",
            ),
            answer_notes=T(
                "The limit does not depend on μ, if the policy can represent π*. The noise does, and so does what a "
                "policy does that cannot represent it. Both are the subject of the second lecture.",
                "如果策略能表示 π*，极限就与 μ 无关。噪声与 μ 有关，表示能力不足的策略停在哪里也与 μ 有关。"
                "这两点是第二讲的主题。",
            ),
            answer_title=T("Yes: the pairs decide the noise, not the limit", "是：成对数据决定噪声，不决定极限"),
        ),
    ),
)
