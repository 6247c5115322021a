"""Block 8: ReST. Lecture, "Reinforced Self-Training Algorithm", "Experiments: Translation"."""

from __future__ import annotations

from slides.results import claim, finding
from slides.schema import Block, Bullets, DerivationPart, Equation, ExplorerPart, Flow, Slide, Step, T, Text, question

BLOCK = Block(
    key="rest",
    title=T("ReST: grow, filter, improve", "ReST：生成、筛选、改进"),
    lecture=2,
    slides=(
        Slide(
            key="rest-loop",
            title=T("ReST grows once and improves several times", "ReST：生成一次，改进多次，再重复"),
            parts=(
                Flow(
                    Step(
                        T("Grow", "生成 Grow"),
                        T(
                            r"$y\sim\pi_\theta(y\mid x)$, $x\sim\mathcal{D}$: many",
                            r"大量抽取 $y\sim\pi_\theta(y\mid x)$，$x\sim\mathcal{D}$",
                        ),
                        "policy",
                    ),
                    Step(
                        T("Score", "打分"),
                        T(r"$R(x,y)$ for all of $\mathcal{D}_g$", r"对 $\mathcal{D}_g$ 全部计算 $R(x,y)$"),
                        "reward",
                    ),
                    Step(
                        T("Improve", "改进 Improve"),
                        T(
                            r"fine-tune on what passes $\tau_1 < \tau_2 < \dots$",
                            r"在通过 $\tau_1 < \tau_2 < \dots$ 的样本上微调",
                        ),
                        "rest",
                    ),
                    back=T("the improved policy grows the next data", "改进后的策略生成下一批数据"),
                    steps=True,
                ),
                Text(
                    T(
                        "Sampling is dear, fine-tuning cheap: one Grow for several Improves.",
                        "采样昂贵，微调便宜：一次生成供多次改进使用。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Offline within a Grow step, online between them. That is the point: data are reused, as in offline "
                "RL, but the policy gets to see its own new answers.\n\nThe original data stay in the mix, filtered "
                "too. A minute and a half.",
                "一次生成之内是离线的，两次生成之间是在线的。这正是要点：像离线强化学习那样重复使用数据，又能看到自己的新回答。"
                "\n\n原始数据一直留在训练集中，同样要过滤。一分半钟。",
            ),
            minutes=1.5,
            source="Gulcehre et al. 2023, figures 1 and 2, algorithm 1",
        ),
        Slide(
            key="rest-filter",
            title=T("The filter asks whether, never by how much", "过滤器只问过没过，不问好多少"),
            parts=(
                Equation(r"F(x,y;\tau) = \mathbb{1}_{R(x,y) > \tau}", big=True),
                Equation(
                    r"J(\theta) = \mathbb{E}_{(x,y)\sim\mathcal{D}_g}\big[F(x,y;\tau)\;\mathcal{L}(x,y;\theta)\big]",
                    big=True,
                    step=True,
                ),
                Bullets(
                    T(
                        r"The loss is yours to choose; the paper found cloning, $-\log\pi_\theta$, best",
                        r"损失可以任选；论文认为行为克隆 $-\log\pi_\theta$ 最好",
                    ),
                    T(
                        "RAFT, its relative, keeps the best of K instead: a threshold for each prompt",
                        "近亲 RAFT 保留 K 个中最好的：每个提示有自己的阈值",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "The indicator throws away how much better an answer is: above the threshold all count the same. Keep "
                "that in mind for the next slide.\n\nRAFT ends at best-of-n, and two rounds of best of 8 are a best of "
                "64: notebook 09 derives it. A minute and a half.",
                "示性函数扔掉了“好多少”的信息：过了阈值就一视同仁。记住这一点，下一页要用。\n\n"
                "RAFT 的终点是 best-of-n，两轮 8 选 1 相当于 64 选 1：推导见 09 号笔记本。一分半钟。",
            ),
            minutes=1.5,
            source="Gulcehre et al. 2023, section 3; Dong et al. 2023 (RAFT)",
        ),
        Slide(
            key="rest-limit",
            title=T(
                "One filter ends at the filtered reference, not at π*", "一次过滤的终点是过滤后的参考策略，不是 π*"
            ),
            parts=(
                DerivationPart(
                    "filter-limit",
                    reasons=(
                        "带示性函数的期望等于概率乘以条件期望",
                        r"交叉熵 = 熵 + KL；右边用 `exact.filtered`",
                        r"吉布斯不等式：仅在 $\pi_\theta = \pi_\tau$ 处达到",
                        "用表格的 logit 梯度再验证一次；左边是自动微分",
                    ),
                ),
            ),
            notes=T(
                "Above the threshold the reference's proportions stay as they were; below it everything is cut. π* "
                "does neither: it tilts.\n\nWith data without end a rising sequence of thresholds ends where its "
                "last one would have ended alone. What the earlier ones buy is data. Two minutes.",
                "阈值以上保持参考策略的比例，阈值以下全部砍掉。π* 两者都不是：它是倾斜。\n\n"
                "数据无限时，一串上升的阈值与只用最后一个的终点相同。前面那些阈值换来的是数据。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rest-explorer",
            title=T("A step is no tilt: raise τ and compare", "阶梯不是倾斜：抬高 τ 比一比"),
            parts=(
                ExplorerPart(
                    "rest_filter",
                    advice=T("Raise τ. What would π* earn for the same nats?", "抬高 τ：同样的纳特，π* 能赚多少？"),
                    only=("threshold", "beta"),
                ),
            ),
            notes=T(
                "Move τ slowly: the bars above the threshold keep their proportions, and the policy jumps from point to "
                "point on the map, never above the frontier.\n\nThen compare with best-of-n, the dotted line: it too "
                "is below, but nearer. An exponential tilt is the best use of a nat. At the highest τ only the best "
                "answer is left, and all meet. Two minutes.",
                "慢慢移动 τ：阈值以上的柱子保持比例，策略在图上一跳一跳地走，始终不在前沿之上。\n\n再与 best-of-n（点线）比较："
                "它也在下面，但更近。指数倾斜才是对每一纳特的最好使用。τ 最高时只剩最好的回答，三者重合。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rest-claim",
            title=T(
                "Rising thresholds work; cloning is not best",
                "上升的阈值有效，但克隆不是最好的损失",
            ),
            parts=claim(
                "rest-translation",
                "tree",
                paper=T(
                    "IWSLT: cloning 70.9, four Improves 77.8, second Grow 83.1, online RL 71.6.",
                    "翻译，IWSLT：克隆 70.9，四次改进 77.8，第二次生成 83.1，在线强化学习 71.6。",
                ),
                source="Gulcehre et al. 2023, sec. 4",
                found=(
                    finding(
                        "rest-translation",
                        "tree",
                        "partly supported",
                        "Improve adds {improve_proxy:mean}, a second Grow {grow_proxy:mean}. PPO is {over_ppo_proxy:mean} lower. Other losses beat the filter.",
                        "改进使奖励增加 {improve_proxy:mean}，第二次生成再加 {grow_proxy:mean}；PPO 低 {over_ppo_proxy:mean}。其他损失胜过过滤后克隆。",
                        conditions=(
                            "improve_proxy > 0",
                            "grow_proxy > 0",
                            "over_ppo_proxy > 0",
                            "over_weighted_proxy < 0",
                            "over_raft_proxy < 0",
                            "over_dpo_proxy < 0",
                        ),
                    ),
                    finding(
                        "rest-translation",
                        "small",
                        "partly supported",
                        "Translation: r_φ changes by {improve_proxy:mean,signed}, the gold reward by {improve_gold:signed}.",
                        "翻译：代理奖励变化 {improve_proxy:mean,signed}，真实奖励变化 {improve_gold:signed}。",
                        conditions=("improve_proxy > 0", "improve_gold ~ 0"),
                    ),
                ),
                alt="词元树上 ReST 逐步的奖励，代理奖励与真实奖励，带区间；右边是其他损失、PPO 与 best of 8。",
                share=0.44,
            ),
            notes=T(
                "G1 I0 is the grown set cloned without a filter; I1 to I4 the rising thresholds, G2 the second Grow. "
                "Full marks: the reward that does the filtering; open marks: gold. "
                "Weighted cloning, RAFT and DPO, on the same grown samples, all end above the filter.\n\nThe paper's reward is the "
                "learned metric that also did the filtering. On our language model of three seeds the proxy rises and "
                "gold is not seen to. Which of the two does the paper's table show? Two minutes.",
                "G1 I0 是不过滤直接克隆；I1 到 I4 是上升的阈值，G2 是第二次生成。实心是用来过滤的奖励，空心是金标。在同样的生成样本上，"
                "加权克隆、RAFT 和 DPO 都高于过滤。\n\n"
                "论文里的奖励就是用来过滤的那个学习到的指标。在我们三个种子的语言模型上，代理奖励上升，金标却看不出上升。"
                "论文的表格展示的是哪一个？两分钟。",
            ),
            minutes=2.0,
        ),
        *question(
            "rest-question",
            T("ReST has no β. What plays its part?", "ReST 没有 β，什么代替了它？"),
            parts=(
                Bullets(
                    T("The threshold τ", "阈值 τ"),
                    T("The number of Grow steps", "生成的次数"),
                    T("The learning rate", "学习率"),
                    ordered=True,
                ),
            ),
            answer=(
                Equation(r"\mathrm{KL}(\pi_\tau\,\|\,\pi_\text{ref}) = -\log P_{\pi_\text{ref}}(r > \tau)", big=True),
                Bullets(
                    T(
                        "The rarer what passes, the more nats are spent: τ sets the KL, as β does",
                        "能通过的越稀少，花掉的纳特越多：τ 像 β 一样决定 KL",
                    ),
                    T(
                        r"Each Grow step sets it anew, and nothing pulls back to $\pi_\text{ref}$",
                        r"每次生成都重新决定一次，没有任何力量拉回 $\pi_\text{ref}$",
                    ),
                    T("Stopping early is a third leash, and an unwritten one", "提前停止是第三根缰绳，而且没有写出来"),
                    steps=True,
                ),
            ),
            notes=T(
                "All three answers can be defended. Ask which of them one could write down as a number of nats. One "
                "minute.",
                "三个回答都能辩护。问：哪一个能写成多少纳特？一分钟。",
            ),
            answer_notes=T(
                "A conditional distribution's KL to its parent is minus the log of the probability of the condition: "
                "one line on the board. One minute.",
                "条件分布对原分布的 KL 等于条件概率的负对数：黑板上一行就能写完。一分钟。",
            ),
            answer_title=T("τ: the price is minus the log of what passes", "是 τ：代价是通过概率的负对数"),
            minutes=(1.0, 1.0),
        ),
    ),
)
