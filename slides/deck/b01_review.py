"""Block 1: RLHF reviewed, from labels to a policy. Lecture, "Review of RLHF"."""

from __future__ import annotations

from slides.format import (
    Block,
    Bullets,
    Columns,
    Derivation,
    Equation,
    Explorer,
    Flow,
    Slide,
    Step,
    T,
    Table,
    Text,
    question,
)  # fmt: skip

CONTENTS = (
    T("RLHF in three phases, and what it can never see", "RLHF 的三个阶段，以及它永远看不到的东西"),
    T("The optimal policy: one line, one constant nobody can compute", "最优策略：一行公式，一个算不出的常数"),
    T("**Offline**: DPO turns that line round; RSO asks whose answers to label", "**离线**：DPO 把公式反过来用；RSO 追问该标注谁的回答"),
    T("**Online**: ReST writes, filters, and learns from itself", "**在线**：ReST 自己生成、筛选、再学习"),
    T("What moves under our feet, and where a label budget should go", "会移动的环境，与有限的标注预算"),
)  # fmt: skip

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
            ),
            notes=T(
                "Everything today is about this one line: where it comes from, why nobody can evaluate it, and how "
                "five methods get near it all the same.\n\nLeave it on the screen while people sit down. Say that "
                "every slider in these slides is live, and that the same slides open on a phone afterwards.",
                "今天的一切都围绕这一行公式：它从哪里来，为什么没有人能直接算出它，五种方法又如何各自逼近它。\n\n"
                "学生入座时让它留在屏幕上。说明幻灯片里的滑块都是活的，课后用手机也能打开同一份幻灯片。",
            ),
            minutes=1.5,
            kind="title",
        ),
        Slide(
            key="contents",
            title=T("Two lectures, five questions", "两讲，五个问题"),
            parts=(Bullets(*CONTENTS, ordered=True),),
            notes=T(
                "The first lecture ends with DPO against PPO, the second starts with RSO.\n\nAsk who has trained a "
                "reward model, and who has run DPO: it decides how fast the first half can go.",
                "第一讲讲到 DPO 与 PPO 的比较，第二讲从 RSO 开始。\n\n问一问谁训练过奖励模型、谁跑过 DPO："
                "这决定前半部分可以讲多快。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="three-phases",
            title=T("RLHF has three phases, and each hands one thing on", "RLHF 三个阶段，每一步只交出一样东西"),
            parts=(
                Flow(
                    Step(
                        T("Fine-tune", "监督微调"),
                        T(r"demonstrations give $\pi_\text{ref}$", r"示范数据得到 $\pi_\text{ref}$"),
                        "sft",
                    ),
                    Step(
                        T("Model the reward", "奖励建模"),
                        T(r"labelled pairs give $r_\phi$", r"成对偏好得到 $r_\phi$"),
                        "reward",
                    ),
                    Step(
                        T("Optimise", "强化学习"),
                        T(r"$r_\phi$ and a leash give $\pi_\theta$", r"$r_\phi$ 加一根缰绳得到 $\pi_\theta$"),
                        "ppo",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        "A person speaks twice: by writing answers, and by choosing between two. Everything after "
                        "that is computed.",
                        "人只说两次话：写下示范，和在两个回答中选一个。其余都是计算。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Walk the boxes: demonstrations, comparisons, optimisation. What is handed on is a policy, then a "
                "reward, then a policy again.\n\nThe question to plant: why is the reward a detour, if labels are "
                "all we have and a policy is all we want? DPO is the answer, half an hour from now.",
                "依次讲三个方框：示范、比较、优化。交出的先是一个策略，再是一个奖励，最后又是一个策略。\n\n"
                "先埋下一个问题：手里只有标注，想要的只有策略，为什么要绕道奖励？半小时后的 DPO 就是回答。",
            ),
            minutes=2.5,
            source="Ouyang et al. 2022, section 3; Rafailov et al. 2023, section 3",
        ),
        Slide(
            key="bradley-terry",
            title=T(
                "A label is a coin whose bias is a difference of rewards", "一次标注是一枚硬币，偏向由奖励之差决定"
            ),
            parts=(
                Derivation(
                    "bradley-terry",
                    reasons=(
                        "Bradley 与 Terry 关于二选一的模型",
                        r"分子分母同除以 $\exp(r(x,y_1))$",
                        r"$\sigma(u) = 1/(1 + e^{-u})$",
                    ),
                ),
            ),
            notes=T(
                "Reveal line by line. The tick at each line was computed when these slides were built, on random "
                "rewards: both sides, in float64.\n\nPoint at the last line: two rewards go in, only their "
                "difference is left. Whatever is added to both has vanished.",
                "逐行展开。每行的对勾是在生成幻灯片时用随机奖励以双精度算出两边后才打上的。\n\n"
                "指着最后一行：进去两个奖励，剩下的只有它们的差。同时加在两边的东西消失了。",
            ),
            minutes=3.0,
            source="Bradley & Terry 1952; Rafailov et al. 2023, eq. 1",
        ),
        Slide(
            key="bradley-terry-explorer",
            title=T("What labels can see of a reward, and what they cannot", "标注能看到奖励的什么，看不到什么"),
            parts=(
                Explorer(
                    "bradley_terry",
                    advice=T("Move f, then c. Which of the two changes a label?", "先动 f，再动 c：哪一个会改变标注？"),
                ),
            ),
            notes=T(
                "Ask for a bet before moving anything: which slider will the labels feel?\n\nMove f from end to end: "
                "the bars on the left move, the two points on the right stay on one another, the loss stays at its "
                "least. Then move c: the points part at once, and the model's best policy leaves π*.\n\nExpected "
                "question: is an offset per prompt harmless, then? For π* yes; for comparing answers to different "
                "prompts no.",
                "动滑块之前先让大家打赌：标注会感觉到哪一个？\n\n把 f 从一端移到另一端：左边的柱子在动，右边两个点"
                "始终重合，损失停在最小值。再动 c：两个点立刻分开，模型的最优策略也离开了 π*。\n\n"
                "常见问题：那么每个提示加一个常数就没有影响吗？对 π* 没有；但若要比较不同提示下的回答，就有影响。",
            ),
            minutes=4.0,
        ),
        Slide(
            key="reward-loss",
            title=T("The reward model is fitted by maximum likelihood", "奖励模型由最大似然拟合"),
            parts=(
                Equation(
                    r"\mathcal{L}_R(r_\phi,\mathcal{D}) = -\,\mathbb{E}_{(x,y_w,y_l)\sim\mathcal{D}}"
                    r"\Big[\log\sigma\big(r_\phi(x,y_w) - r_\phi(x,y_l)\big)\Big]",
                    big=True,
                ),
                Bullets(
                    T(
                        r"A logistic regression on differences: $y_w$ won, $y_l$ lost",
                        r"对差值做逻辑回归：$y_w$ 赢，$y_l$ 输",
                    ),
                    T(
                        r"Any $f(x)$ may be added to $r_\phi$: the loss is the same",
                        r"给 $r_\phi$ 加上任意 $f(x)$，损失不变",
                    ),
                    T(
                        "It knows the pairs it was shown, and guesses elsewhere",
                        "它只了解见过的成对数据，其余都是猜测",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "Name the three letters: w for the winner, l for the loser, D for the labelled pairs.\n\nThe last "
                "point returns twice today: RSO asks which pairs it should be shown, and the discussion asks what "
                "happens when the policy walks to where it only guesses.",
                "解释三个字母：w 是赢的，l 是输的，D 是标注好的成对数据。\n\n最后一点今天会回来两次："
                "RSO 问应该给它看哪些成对数据；讨论部分问策略走到它只能猜的地方会怎样。",
            ),
            minutes=2.5,
            source="Rafailov et al. 2023, eq. 2",
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
                "scale.",
                "把公式读成一家商店：奖励是收入，KL 是花费，β 是单价。\n\n单位：KL 用纳特，β 是每纳特的奖励。"
                "奖励的尺度不同，别的论文里的 β 就没有意义。",
            ),
            minutes=3.0,
            source="Rafailov et al. 2023, eq. 3",
        ),
        Slide(
            key="model-based",
            title=T("Seen from reinforcement learning, this is model-based", "用强化学习的眼光看，这是基于模型的方法"),
            parts=(
                Columns(
                    left=(
                        Bullets(
                            T(
                                "The environment is a person: slow, dear, never asked twice the same",
                                "环境是人：慢、贵，而且每次回答不同",
                            ),
                            T(
                                r"So a model $r_\phi$ of it is learned once, and asked instead",
                                r"于是先学一个模型 $r_\phi$，之后只问它",
                            ),
                            T("The policy is trained against the model", "策略对着这个模型训练"),
                            steps=True,
                        ),
                    ),
                    right=(
                        Flow(
                            Step(T("policy", "策略"), T(r"$\pi_\theta$", r"$\pi_\theta$"), "policy"),
                            Step(T("model", "模型"), T(r"$r_\phi$", r"$r_\phi$"), "reward"),
                            back=T("a score, not a person", "一个分数，而不是一个人"),
                        ),
                    ),
                    share=0.52,
                ),
                Text(
                    T(
                        "What every model-based method fears: the policy finds where the model is wrong.",
                        "所有基于模型的方法都怕同一件事：策略找到模型出错的地方。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "The picture is worth keeping: DPO removes the box on the right, RSO and ReST use it to make data, "
                "PPO lives inside the loop.\n\nExpected question: is a language model not itself a model of the "
                "world? Here model means model of the environment that gives the reward.",
                "这张图值得记住：DPO 去掉右边的方框，RSO 和 ReST 用它造数据，PPO 就住在这个循环里。\n\n"
                "常见问题：语言模型不也是世界的模型吗？这里的模型指给出奖励的那个环境的模型。",
            ),
            minutes=2.5,
        ),
        *question(
            "review-question",
            T("Two reward models differ by f(x). Whose policy is better?", "两个奖励模型相差 f(x)，谁的策略更好？"),
            parts=(
                Equation(r"r_2(x,y) = r_1(x,y) + f(x)"),
                Bullets(
                    T(r"The one of $r_2$, if $f$ is positive", r"若 $f$ 为正，则 $r_2$ 的更好"),
                    T("It depends on β", "取决于 β"),
                    T("They have the same policy", "两者的最优策略相同"),
                    ordered=True,
                ),
            ),
            answer=(
                Equation(
                    r"\frac{\pi_\text{ref}\,e^{(r_1+f)/\beta}}{\sum_y \pi_\text{ref}\,e^{(r_1+f)/\beta}}"
                    r" = \frac{e^{f/\beta}\;\pi_\text{ref}\,e^{r_1/\beta}}{e^{f/\beta}\,\sum_y \pi_\text{ref}\,"
                    r"e^{r_1/\beta}} = \pi^*_{1}",
                    big=True,
                ),
                Text(
                    T(
                        r"$f(x)$ is the same for every answer, so it cancels: in the labels, in the loss, and in "
                        r"$\pi^*$. This freedom is what DPO will live on.",
                        r"$f(x)$ 对每个回答都一样，于是被约去：在标注里、在损失里、在 $\pi^*$ 里。DPO 正是靠这份自由。",
                    )
                ),
            ),
            notes=T(
                "Show of hands for each. Most choose the second: it sounds safest.\n\nIf nobody argues, go back two "
                "slides to the explorer and move f.",
                "逐项举手。多数人会选第二个：听起来最稳妥。\n\n如果没有人争论，就回到前面的滑块页，动一动 f。",
            ),
            answer_notes=T(
                "The sum runs over y, and f does not depend on y: it leaves the sum and meets itself.\n\nThat is the "
                "whole secret of the next blocks: Z(x) too depends on x alone.",
                "求和是对 y 的，而 f 与 y 无关：它走出求和号，与自己约去。\n\n这就是后面几节的全部秘密："
                "Z(x) 也只依赖 x。",
            ),
            answer_title=T("The same: no label and no policy can see f(x)", "相同：标注看不见 f(x)，策略也看不见"),
        ),
    ),
)
