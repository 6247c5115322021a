"""Block 6: DPO beside PPO. Lecture, "Compared to PPO", "Conclusion"."""

from __future__ import annotations

from slides.format import Block, Bullets, Claim, Columns, Explorer, Slide, T, Table, Text, question

BLOCK = Block(
    key="dpo-ppo",
    title=T("DPO beside PPO", "DPO 与 PPO"),
    lecture=1,
    slides=(
        Slide(
            key="dpo-ppo-map",
            title=T("One map for every method: what it earned, what it spent", "一张图看所有方法：赚到多少，花了多少"),
            parts=(
                Explorer(
                    "roads",
                    advice=T("Move the step. Who leaves the frontier, and when?", "移动步数：谁离开了前沿，何时离开？"),
                ),
            ),
            notes=T(
                "Every method starts at π_ref, the lower left corner. The curve is the exact frontier: nobody can be "
                "above it. Walk the steps slowly.\n\nTwo ways to lose: below the curve (nats paid for nothing), or "
                "on the curve but far from the star (stopped early, or sent too far).",
                "所有方法都从左下角的 π_ref 出发。曲线是精确的前沿，没有策略能在它上面。慢慢移动步数。\n\n"
                "有两种损失：落在曲线下面（白花了纳特），或在曲线上却离星号很远（停得太早，或走得太远）。",
            ),
            minutes=4.0,
        ),
        Slide(
            key="dpo-ppo-paper",
            title=T("What the paper reports on summaries", "论文在摘要任务上的报告"),
            parts=(
                Table(
                    (T("policy", "策略"), T("wins against the reference summaries", "对参考摘要的胜率")),
                    (
                        (T("DPO, temperature 0", "DPO，温度 0"), "61.7%"),
                        (T("PPO, temperature 0", "PPO，温度 0"), "57.0%"),
                    ),
                    T("Reddit TL;DR, judged by GPT-4", "Reddit TL;DR，由 GPT-4 评判"),
                    source="Rafailov et al. 2023, section 6.2 and figure 2",
                    strong=(0,),
                ),
                Bullets(
                    T("x: a forum post; y: a summary of its main points", "x 是论坛帖子；y 是要点摘要"),
                    T(
                        "DPO keeps its rate as the temperature rises; PPO falls towards the base model",
                        "温度升高时 DPO 基本不降；PPO 会掉到基础模型的水平",
                    ),
                ),
            ),
            notes=T(
                "Read the caption with them: a judge that is itself a language model, one model size, one data set, no "
                "intervals over seeds.\n\nWhat would change your mind in either direction?",
                "和大家一起读标题：评判者本身是语言模型，一个模型规模，一个数据集，没有跨种子的区间。\n\n"
                "什么样的结果会让你改变看法？",
            ),
            minutes=2.5,
        ),
        Slide(
            key="dpo-ppo-frontier",
            title=T("DPO's frontier against PPO's, measured here", "DPO 与 PPO 的前沿：我们的测量"),
            parts=(
                Claim(
                    "dpo-frontier",
                    rung="small",
                    paper=T(
                        "DPO's points lie above PPO's at every KL, even where PPO has the true reward",
                        "在每个 KL 上 DPO 的点都高于 PPO，即使 PPO 用的是真实奖励",
                    ),
                    source="Rafailov et al. 2023, section 6.1 and figure 2",
                    alt="情感世界上 DPO 与 PPO 的奖励与 KL 散点及各自的上包络，随 β 变化。",
                    found="按事先写好的规则，判定为：{outcome}。",
                ),
            ),
            notes=T(
                "The paper's experiment in small: reviews, a readable gold reward, a sweep of β, the same search for "
                "both methods. The verdict's rule was written before the run.\n\nWhatever it says, ask how far one "
                "million weights speak for a billion.",
                "论文实验的缩小版：影评、可读的金标奖励、扫描 β、两种方法同样规模的搜索。判定规则在运行之前写好。\n\n"
                "无论结果如何，都要问：一百万参数的结论能代表十亿参数吗？",
            ),
            minutes=3.0,
        ),
        Slide(
            key="dpo-ppo-temperature",
            title=T("Summaries over temperatures, measured here", "不同温度下的摘要：我们的测量"),
            parts=(
                Claim(
                    "temperatures",
                    rung="small",
                    paper=T(
                        "DPO 61.7% at temperature 0, PPO 57.0%; DPO falls less",
                        "温度 0 时 DPO 61.7%，PPO 57.0%；DPO 下降更少",
                    ),
                    source="Rafailov et al. 2023, section 6.2",
                    alt="摘要世界上各策略对目标摘要的胜率随采样温度的变化。",
                    found="按事先写好的规则，判定为：{outcome}。",
                ),
            ),
            notes=T(
                "Look at the width of the intervals first, at the order of the curves second.\n\nTemperature zero "
                "takes the likeliest token each time: for a policy that was sharpened already it changes little.",
                "先看区间的宽度，再看曲线的次序。\n\n温度为零时每次取最可能的词元：对已经很尖锐的策略影响不大。",
            ),
            minutes=2.5,
        ),
        Slide(
            key="dpo-ppo-conclusion",
            title=T("Easy to train, saves memory, mixed results", "训练方便，节省显存，效果褒贬不一"),
            parts=(
                Columns(
                    left=(
                        Text(T("**For DPO**", "**优点**")),
                        Bullets(
                            T("no inference while it trains", "不需要一边推理一边训练"),
                            T(
                                "two models in memory, not four; one, if the reference's numbers are kept",
                                "显存里两个模型而不是四个；若存下参考值则只要一个",
                            ),
                            steps=True,
                        ),
                    ),
                    right=(
                        Text(T("**Against**", "**缺点**")),
                        Bullets(
                            T("it never sees its own answers", "它从不看自己的回答"),
                            T("reports of its quality disagree", "关于效果的报告互相矛盾"),
                            steps=True,
                        ),
                    ),
                ),
                Text(
                    T(
                        "Claim 8 measures all three: seconds, memory, samples, and the spread over seeds at equal reward.",
                        "第八条论断把三点都测了：时间、内存、样本数，以及同等奖励下各种子间的离散程度。",
                    ),
                    step=True,
                    quiet=True,
                ),
            ),
            notes=T(
                "This is the deck's own conclusion. The four models of PPO: policy, reference, reward, critic.\n\n"
                "Mixed results is an honest summary: part of it is the spread over seeds, which few papers print.",
                "这是讲义自己的结论。PPO 的四个模型：策略、参考、奖励、评论家。\n\n"
                "“褒贬不一”是诚实的总结：其中一部分来自种子间的差异，而很少有论文给出它。",
            ),
            minutes=2.5,
            source="Lecture, “Compared to PPO: Conclusion”",
        ),
        *question(
            "dpo-ppo-question",
            T("Same labels, same β. Can PPO beat DPO in principle?", "同样的标注，同样的 β，PPO 原则上能胜过 DPO 吗？"),
            parts=(
                Bullets(
                    T("No: both have the same optimum", "不能：两者的最优点相同"),
                    T("Yes: it may ask the reward model about new answers", "能：它可以拿新回答去问奖励模型"),
                    T("Yes: it has more parameters", "能：它的参数更多"),
                    ordered=True,
                ),
            ),
            answer=(
                Bullets(
                    T(
                        "With a table for both, the optima are the same function of the labels",
                        "若两者都是表格，最优点是标注的同一个函数",
                    ),
                    T(
                        "A reward model with less freedom than a policy generalises otherwise: it can be asked anywhere",
                        "自由度比策略小的奖励模型泛化方式不同：可以拿任何回答去问它",
                    ),
                    T(
                        "The policy's own draws are labelled for nothing. Hold that thought for RSO",
                        "策略自己的样本得到了免费标注。把这个想法留给 RSO",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "A debate of two minutes: one half of the room for each of the first two answers.",
                "两分钟辩论：教室一半支持第一项，一半支持第二项。",
            ),
            answer_notes=T(
                "The first answer is right for tables, the second for real models. That is the end of the first "
                "lecture, and the start of the second.",
                "对表格来说第一项对，对真实模型第二项对。第一讲到此结束，第二讲由此开始。",
            ),
            answer_title=T("On a table, no. With a model that generalises, yes", "对表格不能；对会泛化的模型，可以"),
        ),
    ),
)
