"""Block 6: DPO compared with PPO. Sections of the lecture: "Compared to PPO", "Conclusion"."""

from __future__ import annotations

from slides.results import claim, finding
from slides.schema import Block, Bullets, ExplorerPart, Slide, T, Text, question

BLOCK = Block(
    key="dpo-ppo",
    title=T(
        "DPO compared with PPO",
        "DPO 与 PPO 的比较",
    ),
    lecture=1,
    slides=(
        Slide(
            key="dpo-ppo-map",
            title=T(
                "One map shows the reward and the KL of every method",
                "一张图显示每种方法的期望奖励与 KL",
            ),
            parts=(
                ExplorerPart(
                    "trajectories",
                    advice=T(
                        "Train all methods. Which ones leave the frontier, and when?",
                        "让所有方法训练：哪些离开了前沿，何时离开？",
                    ),
                ),
            ),
            notes=T(
                "Every method starts at π_ref, where the KL is zero. The curve is the exact frontier, and no "
                "policy is above it. Move the slider slowly from 0 to 100 per cent.\n\n"
                "A result can be bad in two ways. If a policy is below the curve, the same KL could have brought "
                "more reward. If it is on the curve but far from the star, it has moved too little or too far "
                "for this β.",
                "所有方法都从 π_ref 出发，那里的 KL 为零。曲线是精确的前沿，没有策略在它上面。把滑块从 0 慢慢移到"
                " 100%。\n\n"
                "结果不好有两种情况：策略在曲线下面，说明同样的 KL 本可以换来更多奖励；策略在曲线上却离星号很远，"
                "说明对这个 β 来说移动得太少或太多。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="dpo-ppo-frontier",
            title=T(
                "DPO's lead over PPO is clear only on the token tree",
                "只有在词元树上，DPO 对 PPO 的领先是明确的",
            ),
            parts=claim(
                "dpo-frontier",
                "tree",
                paper=T(
                    "On sentiment DPO has more reward than PPO at every KL, even if PPO uses the true reward.",
                    "情感任务上，在每个 KL 上 DPO 的奖励都高于 PPO，即使 PPO 用的是真实奖励。",
                ),
                source="Rafailov et al. 2023, fig. 2",
                found=(
                    finding(
                        "dpo-frontier",
                        "tree",
                        "supported",
                        "DPO is ahead at all three KL budgets. At {budget_9:1} nats its lead is {lead_ppo_9}.",
                        "在全部三个 KL 预算上 DPO 都领先。在 {budget_9:1} 纳特处领先 {lead_ppo_9}。",
                    ),
                    finding(
                        "dpo-frontier",
                        "small",
                        "inconclusive",
                        "DPO's lead is {lead_ppo_6} at {budget_6:2} nats and {lead_ppo_9} at {budget_9:2} nats.",
                        "DPO 的领先在 {budget_6:2} 纳特处为 {lead_ppo_6}，在 {budget_9:2} 纳特处为 {lead_ppo_9}。",
                        conditions=("lead_ppo_6 ~ 0", "lead_ppo_9 ~ 0"),
                    ),
                ),
                alt="词元树上，同样的 KL 预算下 DPO 的奖励减去 PPO 的奖励，带区间；另一条线是减去使用真实奖励的 PPO。",
                panels=(1,),
            ),
            notes=T(
                "This is a small version of the paper's experiment. All methods have the same values of β, the "
                "same labels and the same number of trials. The outcome is decided at three KL budgets, whose "
                "intervals are corrected for their number. An earlier rule compared eight budgets without a "
                "correction.\n\n"
                "The tree is computed exactly. On the bandit and on the language model, which has a million "
                "parameters, no budget is decided. Ask which result would change the students' opinion.",
                "这是论文实验的缩小版：各方法的 β 取值、标注和试验次数都相同。判定只看三个 KL 预算，区间按比较的"
                "次数校正；先前的规则比较八个预算而不校正。\n\n"
                "词元树上的结果是精确计算的。在多臂老虎机和语言模型上，三个预算都尚无定论。语言模型有一"
                "百万参数。问学生：什么样的结果会让你改变看法？",
            ),
            minutes=1.5,
        ),
        Slide(
            key="dpo-ppo-temperature",
            title=T(
                "On summaries it is undecided whether DPO beats PPO",
                "摘要任务上，DPO 是否胜过 PPO 尚无定论",
            ),
            parts=claim(
                "temperatures",
                "small",
                paper=T(
                    "The task is to summarise Reddit posts. At temperature 0 DPO wins 61.7% and PPO 57.0%.",
                    "任务是为 Reddit 帖子写摘要。温度 0 时 DPO 胜 61.7%，PPO 胜 57.0%。",
                ),
                source="Rafailov et al. 2023, sec. 6.2",
                found=(
                    finding(
                        "temperatures",
                        "small",
                        "inconclusive",
                        "At its best, DPO's lead is {lead_over_ppo:points,1} points over PPO and "
                        "{lead_over_best_of_n:points,1} over best-of-n. Which falls less is open: {smaller_fall:points,1}.",
                        "在最佳温度下，DPO 领先 PPO {lead_over_ppo:points,1} 个百分点，领先 best-of-n "
                        "{lead_over_best_of_n:points,1} 个。升温时谁降得少尚无定论（{smaller_fall:points,1}）。",
                        conditions=("lead_over_ppo ~ 0", "smaller_fall ~ 0", "lead_over_best_of_n ~ 0"),
                    ),
                ),
                alt="摘要世界上各策略按真实奖励对目标摘要的胜率，随采样温度从 0 到 1 变化，带区间。",
            ),
            notes=T(
                "The paper also reports that DPO's win rate falls less than PPO's as the temperature rises. "
                "First discuss the width of the intervals and then the order of the curves. Even π_ref wins far "
                "more at temperature 0, because a low temperature sharpens a distribution in addition to "
                "training.\n\n"
                "Each of eight seeds has other prompts, and no difference is decided. On the bandit, which is exact, DPO "
                "and PPO tie, and on the tree their difference is undecided. docs/claims.md lists all scales.",
                "论文还说，升温时 DPO 的胜率比 PPO 降得少。先讨论区间的宽度，再看曲线的次序。连 π_ref 在温度 0 时"
                "也胜得多，因为低温在训练之外又使分布更尖锐。\n\n"
                "八个种子各用不同的提示，差异都尚无定论。在可精确计算的多臂老虎机上，DPO 与 PPO 不分胜负；"
                "在词元树上，二者的差别尚无定论。所有规模见 docs/claims.md。",
            ),
            minutes=1.5,
        ),
        *question(
            "dpo-ppo-question",
            T(
                "You have one GPU, a thousand labels and one week. Do you use DPO or PPO?",
                "有一块 GPU、一千个标注、一周时间：用 DPO 还是 PPO？",
            ),
            parts=(
                Bullets(
                    T(
                        "Which models must each method hold in memory?",
                        "各自要在显存里放哪些模型？",
                    ),
                    T(
                        "What does each method compute besides gradients?",
                        "除了梯度，各自还要计算什么？",
                    ),
                    T(
                        "Which result will be better?",
                        "哪一个的结果会更好？",
                    ),
                    ordered=True,
                ),
                Text(
                    T(
                        "If the policy is a table, can PPO be better than DPO in principle?",
                        "如果策略是一张表格，原则上 PPO 能胜过 DPO 吗？",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "Collect three short answers. PPO holds the policy, the reference policy, the reward model and "
                "the critic in memory. DPO holds the first two, or only the policy if the log-probabilities of "
                "the reference are stored. PPO also samples during training. The third question has no general "
                "answer.\n\n"
                "For a tabular policy both optima are the same function of the labels. A reward model that "
                "generalises can label new responses without additional human labels. RSO will use this.",
                "收集三个简短的回答。PPO 要放策略、参考策略、奖励模型和价值网络；DPO 只要前两个，若存下参考策略的"
                "对数概率，则只要策略。PPO 还要边训练边采样。第三问没有普遍的答案。\n\n"
                "对表格策略来说，两者的最优点是标注的同一个函数。会泛化的奖励模型可以标注新回答，不需要更多人工标"
                "注：RSO 会用到这一点。",
            ),
            answer=claim(
                "cost",
                "bandit",
                paper=T(
                    "DPO is easy to train, because it does not sample. It saves GPU memory. Its results are mixed.",
                    "训练方便（不需要一边采样一边训练），节省 GPU 显存，效果褒贬不一。",
                ),
                source="lecture, “Conclusion”",
                found=(
                    finding(
                        "cost",
                        "bandit",
                        "partly supported",
                        "DPO samples {samples_dpo} responses in training and PPO {samples_ppo}. It needs {memory_ratio:2} "
                        "times PPO's memory. Its J ends higher than that of RSO and, by {lead_ppo}, than that of PPO, but "
                        "lower than that of online DPO.",
                        "训练时 DPO 采样 {samples_dpo} 个回答，PPO 采样 {samples_ppo} 个。内存是 PPO 的 {memory_ratio:2} 倍。最终 J 高于 RSO，"
                        "比 PPO 高 {lead_ppo}，但低于在线 DPO。",
                        conditions=(
                            "lead_rso > 0",
                            "lead_online < 0",
                            "lead_ppo > 0",
                        ),
                    ),
                ),
                alt="各方法的真实奖励随处理器时间的变化，横轴为对数；虚线是比较成本所用的同等奖励。",
                size=(5.4, 4.1),
            ),
            answer_notes=T(
                "Each curve shows one method during training. The dashed line is the common reward at which the "
                "costs are compared. PPO's curve begins later, because a reward model must be fitted first.\n\n"
                "“Mixed” means in our rule that DPO is better than one of PPO and RSO and worse than the other, "
                "beyond the variation between seeds. On the bandit DPO is better than both. On the language model its results "
                "are mixed in this sense. "
                "Few papers report the variation between seeds. This is the end of the first lecture.",
                "每条曲线是一种方法的训练过程；虚线是比较成本所用的同等奖励。PPO 要先拟合奖励模型，所以曲线起步较"
                "晚。\n\n"
                "按我们的规则，“褒贬不一”是说：在 PPO 和 RSO 中，DPO 好于一种而差于另一种，而且差异超出种子之间的"
                "波动。在多臂老虎机上 DPO 比两者都好；在语言模型上，结果确实褒贬不一。很少有论文报告种子之间的波动。第一讲到此结束。",
            ),
            answer_title=T(
                "DPO trains without sampling and saves memory",
                "DPO 训练时不采样，并节省显存",
            ),
            minutes=(1.0, 1.5),
        ),
    ),
)
