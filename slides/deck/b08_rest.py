"""Block 8: ReST. Lecture, "Reinforced Self-Training Algorithm", "Experiments: Translation"."""

from __future__ import annotations

from slides.format import Block, Bullets, Derivation, Equation, Explorer, Flow, Slide, Step, T, Table, Text, question

BLOCK = Block(
    key="rest",
    title=T("ReST: grow, filter, improve", "ReST：生成、筛选、改进"),
    lecture=2,
    slides=(
        Slide(
            key="rest-loop",
            title=T("Grow once, improve several times, repeat", "生成一次，改进多次，再重复"),
            parts=(
                Flow(
                    Step(
                        T("Grow", "生成"),
                        T(r"$y\sim\pi_\theta(y\mid x)$ for many $x$", r"对许多 $x$ 抽取 $y\sim\pi_\theta(y\mid x)$"),
                        "policy",
                    ),
                    Step(T("Score", "打分"), T(r"$R(x,y)$", r"$R(x,y)$"), "reward"),
                    Step(
                        T("Improve", "改进"),
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
                        "Sampling is dear, fine-tuning is cheap: so one Grow step serves several Improve steps.",
                        "采样昂贵，微调便宜：所以一次生成供多次改进使用。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Offline within a Grow step, online between them. That is the point: data are reused, as in offline "
                "RL, but the policy gets to see its own new answers.\n\nThe original data stay in the mix, filtered "
                "too.",
                "一次生成之内是离线的，两次生成之间是在线的。这正是要点：像离线强化学习那样重复使用数据，又能看到自己的新回答。"
                "\n\n原始数据一直留在训练集中，同样要过滤。",
            ),
            minutes=3.0,
            source="Gulcehre et al. 2023, figures 1 and 2, algorithm 1",
        ),
        Slide(
            key="rest-filter",
            title=T(
                "The filter is an indicator, and the loss is yours to choose", "过滤器是一个示性函数，损失可以任选"
            ),
            parts=(
                Equation(r"F(x,y;\tau) = \mathbb{1}_{R(x,y) > \tau}", big=True),
                Equation(
                    r"J(\theta) = \mathbb{E}_{(x,y)\sim\mathcal{D}_g}\big[F(x,y;\tau)\;\mathcal{L}(x,y;\theta)\big]",
                    big=True,
                    step=True,
                ),
                Bullets(
                    T(
                        "Behaviour cloning: the loss is −log π; the paper found it best",
                        "行为克隆：损失是 −log π；论文认为它最好",
                    ),
                    T(
                        "Thresholds 0, .7, .8, .9, .95, .99 appear, on rewards scaled to [0, 1]",
                        "阈值取过 0、.7、.8、.9、.95、.99，奖励缩放到 [0, 1]",
                    ),
                    T("The learning rate falls from one Improve step to the next", "每次改进的学习率逐步减小"),
                    steps=True,
                ),
            ),
            notes=T(
                "The indicator throws away how much better an answer is: above the threshold all count the same. Keep "
                "that in mind for the next slide.",
                "示性函数扔掉了“好多少”的信息：过了阈值就一视同仁。记住这一点，下一页要用。",
            ),
            minutes=2.5,
            source="Gulcehre et al. 2023, section 3",
        ),
        Slide(
            key="rest-limit",
            title=T(
                "One filter ends at the filtered reference, not at π*", "一次过滤的终点是过滤后的参考策略，不是 π*"
            ),
            parts=(
                Derivation(
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
                "last one would have ended alone. What the earlier ones buy is data.",
                "阈值以上保持参考策略的比例，阈值以下全部砍掉。π* 两者都不是：它是倾斜。\n\n"
                "数据无限时，一串上升的阈值与只用最后一个的终点相同。前面那些阈值换来的是数据。",
            ),
            minutes=3.0,
        ),
        Slide(
            key="rest-explorer",
            title=T("A step for a tilt: raise τ and compare", "用阶梯代替倾斜：抬高 τ 比一比"),
            parts=(
                Explorer(
                    "rest_filter",
                    advice=T("Raise τ. Which is nearer to π* at the same KL?", "抬高 τ：同样的 KL 下谁更接近 π*？"),
                ),
            ),
            notes=T(
                "Move τ slowly: the policy walks on the map of KL and reward, always below the frontier.\n\nThen "
                "compare with best-of-n: it too is below, but nearer. An exponential tilt is the best use of a nat.",
                "慢慢移动 τ：策略在 KL 与奖励的图上行走，始终在前沿之下。\n\n再与 best-of-n 比较：它也在下面，但更近。"
                "指数倾斜才是对每一纳特的最好使用。",
            ),
            minutes=3.5,
        ),
        Slide(
            key="rest-raft",
            title=T("RAFT keeps the best of K, and ends at best-of-n", "RAFT 保留 K 个中最好的，终点是 best-of-n"),
            parts=(
                Derivation(
                    "raft",
                    reasons=(
                        r"$y^\star$ 是 n 个样本中最好的；表格里 $\nabla\log\pi_\theta(y) = e_y - \pi_\theta$；左边枚举全部样本",
                        "因此终点就是 best-of-n 策略",
                        r"第二轮：$(F^n)^n = F^{n^2}$；无穷多轮后只剩最好的回答",
                    ),
                ),
            ),
            notes=T(
                "The relative of ReST in the table of RSO: a threshold that moves with each prompt.\n\nRounds multiply "
                "the n: two rounds of 8 are a best of 64, at the price of 16 draws. And at the price of diversity.",
                "RSO 表中 ReST 的近亲：阈值随每个提示而变。\n\n轮数使 n 相乘：两轮 8 选 1 相当于 64 选 1，只花 16 次抽样。"
                "代价是多样性。",
            ),
            minutes=2.5,
            source="Dong et al. 2023",
        ),
        Slide(
            key="rest-paper",
            title=T("What the paper reports on translation", "论文在翻译任务上的报告"),
            parts=(
                Table(
                    (T("method (IWSLT)", "方法（IWSLT）"), T("reward", "奖励")),
                    (
                        (T("behaviour cloning", "行为克隆"), "70.9"),
                        (T("one Grow, no filter", "一次生成，不过滤"), "71.9"),
                        (T("one Grow, four Improve steps", "一次生成，四次改进"), "77.8"),
                        (T("a second Grow, three Improve steps", "第二次生成，三次改进"), "83.1"),
                        (T("online RL", "在线强化学习"), "71.6"),
                    ),
                    T("Average reward on the validation set", "验证集上的平均奖励"),
                    source="Gulcehre et al. 2023, table of IWSLT 2014 results",
                    strong=(3,),
                ),
            ),
            notes=T(
                "Note what the reward is: the learned metric that also did the filtering. Our experiment has a gold "
                "reward beside it, because it made the language up.",
                "注意奖励是什么：就是用来过滤的那个学习到的指标。我们的实验旁边还有金标奖励，因为语言是我们自己造的。",
            ),
            minutes=2.5,
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
                Text(
                    T(
                        "The rarer what passes, the more nats are spent: τ sets the KL, as β does. More Grow steps set "
                        "it anew each time, with nothing that pulls back to π_ref.",
                        "能通过的越稀少，花掉的纳特越多：τ 像 β 一样决定 KL。每多一次生成就重新决定一次，没有任何力量把它拉回 π_ref。",
                    )
                ),
            ),
            notes=T(
                "All three answers can be defended. Ask which of them one could write down as a number of nats.",
                "三个回答都能辩护。问：哪一个能写成多少纳特？",
            ),
            answer_notes=T(
                "A conditional distribution's KL to its parent is minus the log of the probability of the condition: "
                "one line on the board.\n\nEarly stopping by learning rate and steps is a third leash, and an "
                "unwritten one.",
                "条件分布对原分布的 KL 等于负的条件概率对数：黑板上一行就能写完。\n\n"
                "学习率和步数造成的提前停止是第三根缰绳，而且没有写出来。",
            ),
            answer_title=T("τ: the price is minus the log of what passes", "是 τ：代价是通过概率的负对数"),
        ),
    ),
)
