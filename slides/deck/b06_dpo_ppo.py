"""Block 6: DPO beside PPO. Lecture, "Compared to PPO", "Conclusion"."""

from __future__ import annotations

from slides.results import claim, finding, verdict
from slides.schema import Block, Bullets, ExplorerPart, Slide, T, Text, question

BLOCK = Block(
    key="dpo-ppo",
    title=T("DPO beside PPO", "DPO 与 PPO"),
    lecture=1,
    slides=(
        Slide(
            key="dpo-ppo-map",
            title=T("One map for all: what was earned, what was spent", "一张图看所有方法：赚到多少，花了多少"),
            parts=(
                ExplorerPart(
                    "trajectories",
                    advice=T(
                        "Let them train. Who leaves the frontier, and when?", "让它们训练：谁离开了前沿，何时离开？"
                    ),
                ),
            ),
            notes=T(
                "Every method starts at π_ref, where nothing is earned and nothing spent. The curve is the exact "
                "frontier: nobody can be above it. Walk from 0 to 100 per cent slowly.\n\nTwo ways to lose: below the "
                "curve, nats paid for nothing; or on the curve but far from the star, stopped early or sent too far. "
                "Two minutes.",
                "所有方法都从 π_ref 出发，那里既无收入也无花费。曲线是精确的前沿，没有策略能在它上面。从 0 慢慢移到 100%。"
                "\n\n有两种损失：落在曲线下面，白花了纳特；或在曲线上却离星号很远，停得太早或走得太远。两分钟。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="dpo-ppo-frontier",
            title=T(
                "DPO's frontier is not always the higher one",
                "DPO 的前沿并不总是更高",
            ),
            parts=claim(
                "dpo-frontier",
                "tree",
                paper=T(
                    "on sentiment DPO has more reward at every KL, even than PPO on the true one.",
                    "情感任务上，DPO 在每个 KL 都有更高的奖励，即使 PPO 用的是真实奖励。",
                ),
                source="Rafailov et al. 2023, fig. 2",
                found=(
                    finding(
                        "dpo-frontier",
                        "tree",
                        "supported",
                        "DPO is ahead at all {budgets} KL budgets, by {lead_ppo_7} at {budget_7:1} nats.",
                        "在全部 {budgets} 个 KL 预算上 DPO 领先；{budget_7:1} 纳特处领先 {lead_ppo_7}。",
                    ),
                    finding(
                        "dpo-frontier",
                        "small",
                        "not supported",
                        "PPO is ahead at {behind_ppo} of {budgets} budgets ({budget_4:2} and {budget_5:2} nats), DPO at "
                        "none.",
                        "在 {budgets} 个预算中的 {behind_ppo} 个上 PPO 领先（{budget_4:2} 和 {budget_5:2} 纳特），DPO 无一领先。",
                        conditions=("behind_ppo ~ 2", "lead_ppo_4 < 0", "lead_ppo_5 < 0"),
                    ),
                ),
                alt="词元树上 DPO 在同样的 KL 预算下比 PPO 多得的奖励，带区间：处处大于零；虚线是与使用真实奖励的 PPO 之差。",
                panels=(1,),
            ),
            notes=T(
                "The paper's experiment in small, with the same sweep of β, the same labels and the same search for "
                "every method; the verdict's rule was written before the run. On the bandit the two cross.\n\nThe "
                "tree is exact; the language model has three seeds and a million weights. Ask what would change your "
                "mind in either direction. A minute and a half.",
                "论文实验的缩小版：同样扫描 β，同样的标注，各方法同样规模的搜索；判定规则在运行之前写好。在老虎机上两条前沿相交。"
                "\n\n词元树是精确的；语言模型只有三个种子、一百万参数。问：什么样的结果会让你改变看法？一分半钟。",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-ppo-temperature",
            title=T("Cold, DPO wins on summaries; the rest is open", "摘要任务：低温时 DPO 胜出，其余尚无定论"),
            parts=claim(
                "temperatures",
                "small",
                paper=T(
                    "x a Reddit post, y its summary. At temperature 0 DPO wins 61.7%, PPO 57.0%.",
                    "x 是 Reddit 帖子，y 是摘要。温度 0 时 DPO 胜 61.7%，PPO 57.0%。",
                ),
                source="Rafailov et al. 2023, sec. 6.2",
                found=(
                    finding(
                        "temperatures",
                        "small",
                        "partly supported",
                        "DPO at temperature 0 wins {lead_over_ppo:points,1} points more than PPO at its best temperature. "
                        "The other two parts are open: a smaller fall than PPO's ({smaller_fall:points,1}), and more wins "
                        "than best-of-n ({lead_over_best_of_n:points,1}).",
                        "温度 0 的 DPO 比最佳温度下的 PPO 多胜 {lead_over_ppo:points,1} 个百分点。另外两点尚无定论：升温时是否"
                        "比 PPO 降得少（{smaller_fall:points,1}），是否胜过 best-of-n（{lead_over_best_of_n:points,1}）。",
                        conditions=("lead_over_ppo > 0", "smaller_fall ~ 0", "lead_over_best_of_n ~ 0"),
                    ),
                ),
                alt="摘要世界上各策略按金标奖励对目标摘要的胜率，随采样温度从 0 到 1 变化，带区间。",
            ),
            notes=T(
                "The paper adds that DPO falls less as the temperature rises. Look at the width of the intervals first, at "
                "the order of the curves second. Even π_ref wins far more "
                "when it is cold: a low temperature is a second sharpening, on top of the one that was trained."
                "\n\nOn the exact bandit and tree the three parts come out otherwise: docs/claims.md has all scales. A "
                "minute and a half.",
                "论文还说升温时 DPO 降得较少。先看区间的宽度，再看曲线的次序。连 π_ref 在低温下也胜得多：低温是训练之外的第二次锐化。\n\n"
                "在精确的老虎机和词元树上，三部分的结论各不相同：所有规模见 docs/claims.md。一分半钟。",
            ),
            minutes=1.5,
        ),
        *question(
            "dpo-ppo-question",
            T("One GPU, a thousand labels, one week: DPO or PPO?", "一块 GPU，一千个标注，一周时间：用 DPO 还是 PPO？"),
            parts=(
                Bullets(
                    T("What does each keep in memory?", "各自要在显存里放什么？"),
                    T("What does each do besides gradients?", "除了算梯度，各自还要做什么？"),
                    T("Whose result will be better?", "谁的结果会更好？"),
                    ordered=True,
                ),
                Text(
                    T(
                        "And with a table for a policy: can PPO beat DPO in principle?",
                        "如果策略是一张表：原则上 PPO 能胜过 DPO 吗？",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Three short answers from the room: PPO keeps policy, reference, reward model and critic, DPO the first "
                "two, or one if the reference's numbers are kept; PPO samples while it trains; nobody knows the third."
                "\n\nFor a table both optima are the same function of the labels. A reward model that generalises can "
                "label new answers for nothing: hold that thought for RSO. One minute.",
                "三个简短的回答：PPO 要放策略、参考、奖励模型和价值网络，DPO 只要前两个，存下参考值则只要一个；PPO 边训练边采样；"
                "第三问没有人知道。\n\n对表格来说，两者的最优点是标注的同一个函数。会泛化的奖励模型可以免费标注新回答：把这个"
                "想法留给 RSO。一分钟。",
            ),
            answer=claim(
                "cost",
                "bandit",
                paper=T(
                    "easy to train, no inference while training; saves GPU memory; mixed results.",
                    "训练方便（不需要一边 inference 一边 train）；节省 GPU memory；效果褒贬不一。",
                ),
                source="lecture, “Conclusion”",
                found=(
                    verdict(
                        "cost",
                        "bandit",
                        "DPO draws {} responses while it trains, PPO {}, and holds {} of PPO's memory; its J ends "
                        "clearly above SFT, RSO, rso-sample-rank, RAFT and ReST and clearly below online DPO.",
                        "DPO draws {0} responses in training, PPO {1}; it holds {2:value} of PPO's memory. Its J ends above SFT, "
                        "RSO, RAFT and ReST, below online DPO.",
                        "训练时 DPO 采样 {0} 个回答，PPO 采样 {1} 个；内存是 PPO 的 {2:value}。最终 J 高于 SFT、RSO、RAFT 和 "
                        "ReST，低于在线 DPO。",
                    ),
                ),
                alt="各方法的金标奖励随处理器时间的变化，横轴为对数；虚线是比较成本所用的同等奖励。",
            ),
            answer_notes=T(
                "Each curve is a method on its way; the dashed line is the equal reward at which costs are read. A "
                "reward model must be fitted before PPO starts: its curve begins later.\n\nMixed means: above some "
                "trained methods and below another, beyond the noise of seeds. Few papers print that noise. End of the "
                "first lecture. A minute and a half.",
                "每条曲线是一种方法的训练过程；虚线是比较成本所用的同等奖励。PPO 开始前要先拟合奖励模型，所以曲线起步较晚。"
                "\n\n“褒贬不一”是说：超出种子噪声地高于一些方法，又低于另一种。很少有论文给出这种噪声。第一讲到此结束。一分半钟。",
            ),
            answer_title=T(
                "Easy to train, saves memory, mixed results",
                "训练方便、节省显存、效果褒贬不一",
            ),
            minutes=(1.0, 1.5),
        ),
    ),
)
