"""Block 8: ReST. Sections of the lecture: "Reinforced Self-Training Algorithm", "Experiments: Translation"."""

from __future__ import annotations

from slides.results import claim, finding
from slides.schema import Block, Bullets, DerivationPart, Equation, ExplorerPart, Flow, Slide, Step, T, Text, question

BLOCK = Block(
    key="rest",
    title=T(
        "ReST: grow, filter, improve",
        "ReST：生成、筛选、改进",
    ),
    lecture=2,
    slides=(
        Slide(
            key="rest-loop",
            title=T(
                "ReST samples once and then fine-tunes several times",
                "ReST：采样一次，微调多次",
            ),
            parts=(
                Flow(
                    Step(
                        T("Grow", "生成 Grow"),
                        T(
                            r"sample many $y\sim\pi_\theta(y\mid x)$, $x\sim\mathcal{D}$",
                            r"大量采样 $y\sim\pi_\theta(y\mid x)$，$x\sim\mathcal{D}$",
                        ),
                        "policy",
                    ),
                    Step(
                        T("Score", "打分"),
                        T(r"compute $R(x,y)$ for all of $\mathcal{D}_g$", r"对 $\mathcal{D}_g$ 全部计算 $R(x,y)$"),
                        "reward",
                    ),
                    Step(
                        T("Improve", "改进 Improve"),
                        T(
                            r"fine-tune on samples above $\tau_1 < \tau_2 < \dots$",
                            r"在高于 $\tau_1 < \tau_2 < \dots$ 的样本上微调",
                        ),
                        "rest",
                    ),
                    back=T(
                        "the improved policy samples the next data set",
                        "改进后的策略采样下一批数据",
                    ),
                    steps=True,
                ),
                Text(
                    T(
                        "Sampling is expensive, so one Grow step serves several Improve steps.",
                        "采样昂贵，所以一次 Grow 供多次 Improve 使用。",
                    ),
                    step=True,
                ),
            ),
            notes=T(
                "ReST is offline within a Grow step and online between Grow steps. It reuses data as offline RL "
                "does, but it also learns from new samples of the current policy.\n\n"
                "The original data stay in the training set and are filtered, too.",
                "ReST 在一次 Grow 之内是离线的，在两次 Grow 之间是在线的。它像离线强化学习那样重复使用数据，同时"
                "又从当前策略的新样本中学习。\n\n"
                "原始数据一直留在训练集中，同样要过滤。",
            ),
            minutes=1.5,
            source="Gulcehre et al. 2023, figures 1 and 2, algorithm 1",
        ),
        Slide(
            key="rest-filter",
            title=T(
                "ReST's filter gives all samples above τ the same weight",
                "ReST 的过滤器给所有高于 τ 的样本相同的权重",
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
                        r"Any loss can be used; $-\log\pi_\theta$ (behaviour cloning) works best in the paper",
                        r"损失可以任选；论文中行为克隆 $-\log\pi_\theta$ 最好",
                    ),
                    T(
                        "RAFT selects the best of K responses, so each prompt has its own threshold",
                        "RAFT 选 K 个回答中最好的，相当于每个提示有不同的阈值",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "The indicator function ignores by how much a response is above the threshold. All samples above "
                "it have the same weight. The next slide uses this.\n\n"
                "RAFT converges to best-of-n, and two rounds of best-of-8 equal best-of-64. Notebook 09 derives "
                "this.",
                "示性函数不看回答比阈值高多少：高于阈值的样本权重都相同。下一页要用到这一点。\n\n"
                "RAFT 收敛到 best-of-n，两轮 best-of-8 相当于 best-of-64：推导见 09 号笔记本。",
            ),
            minutes=1.5,
            source="Gulcehre et al. 2023, section 3; Dong et al. 2023 (RAFT)",
        ),
        Slide(
            key="rest-limit",
            title=T(
                "With one filter the limit is the filtered reference, not π*",
                "一次过滤的极限是过滤后的参考策略，不是 π*",
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
                "Above the threshold the responses have the same proportions as under the reference policy. "
                "Below it their probability is zero. π* differs from this, because it weights responses "
                "exponentially by their reward.\n\n"
                "With unlimited data an increasing sequence of thresholds has the same limit as its last "
                "threshold alone. With finite data the earlier thresholds let more samples through.",
                "阈值以上的回答保持参考策略下的比例，阈值以下概率为零。π* 则不同：它按奖励作指数加权。\n\n"
                "数据无限时，一串上升的阈值与只用最后一个阈值的极限相同。数据有限时，前面的阈值让更多样本通过。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rest-explorer",
            title=T(
                "The filtered reference is below the frontier of π*",
                "过滤后的参考策略在 π* 的前沿之下",
            ),
            parts=(
                ExplorerPart(
                    "rest_filter",
                    advice=T(
                        "Increase τ. What reward would π* have at the same KL?",
                        "增大 τ：同样的 KL 下，π* 的奖励是多少？",
                    ),
                    only=("threshold", "beta"),
                ),
            ),
            notes=T(
                "Move τ slowly. The bars above the threshold keep their proportions. The policy jumps from point "
                "to point on the map and is never above the frontier.\n\n"
                "Then compare it with best-of-n, the dotted line, which is below the frontier too, but nearer to "
                "it. The exponential weights of π* give the highest reward for a given KL. At the highest τ only "
                "the best response remains, and all three coincide.",
                "慢慢移动 τ：阈值以上的柱子保持比例，策略在图上逐点跳动，始终不在前沿之上。\n\n"
                "再与 best-of-n（点线）比较：它也在前沿之下，但更近。KL 给定时，π* 的指数加权得到的奖励最高。τ 最"
                "高时只剩最好的回答，三者重合。",
            ),
            minutes=2.0,
        ),
        Slide(
            key="rest-claim",
            title=T(
                "Rising thresholds raise rewards; other losses do so more",
                "上升的阈值提高奖励，其他损失提高得更多",
            ),
            parts=claim(
                "rest-translation",
                "tree",
                paper=T(
                    "On IWSLT cloning reaches 70.9, four Improve steps 77.8, a second Grow step 83.1 and online RL "
                    "71.6.",
                    "IWSLT 翻译：克隆 70.9，四次 Improve 77.8，第二次 Grow 83.1，在线强化学习 71.6。",
                ),
                source="Gulcehre et al. 2023, sec. 4",
                found=(
                    finding(
                        "rest-translation",
                        "tree",
                        "supported",
                        "Improve steps add {improve_proxy:mean} to r_φ, and a second Grow step adds {grow_proxy:mean}. PPO ends "
                        "{over_ppo_proxy:mean} lower.",
                        "Improve 使 r_φ 增加 {improve_proxy:mean}，第二次 Grow 再加 {grow_proxy:mean}。PPO 低 {over_ppo_proxy:mean}。",
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
                        "supported",
                        "Grow adds {grow_proxy:mean}, but changes the gold reward by {grow_gold:signed,mean}.",
                        "第二次 Grow 加 {grow_proxy:mean}，但真实奖励变化 {grow_gold:signed,mean}。",
                        conditions=("improve_proxy > 0", "grow_proxy > 0", "over_ppo_proxy > 0", "grow_gold < 0"),
                    ),
                ),
                alt="词元树上 ReST 逐步的奖励，代理奖励与真实奖励，带区间；右边是其他损失、PPO 与 best-of-8。",
                share=0.44,
            ),
            notes=T(
                "G1 I0 is cloning without a filter. I1 to I4 are the rising thresholds, and G2 is the second "
                "Grow step. Filled markers show r_φ, the reward that filters, and open markers show the gold "
                "reward. On the same samples weighted cloning, RAFT and DPO all reach a higher reward than the "
                "filter.\n\n"
                "The paper reports the learned metric that also filters. On our language model, with eight "
                "seeds, this reward rises as well, but the second Grow step lowers the gold reward. Ask which of "
                "the two rewards is in the paper's table.",
                "G1 I0 是不过滤的克隆，I1 到 I4 是上升的阈值，G2 是第二次 Grow。实心点是用来过滤的奖励 r_φ，空心"
                "点是真实奖励。在同样的样本上，加权克隆、RAFT 和 DPO 的奖励都高于过滤。\n\n"
                "论文报告的就是用来过滤的那个学习到的指标。在我们八个种子的语言模型上，这个奖励同样上升，但"
                "第二次 Grow 使真实奖励下降。问：论文的表格里是哪一个奖励？",
            ),
            minutes=2.0,
        ),
        *question(
            "rest-question",
            T(
                "ReST has no β. What limits its KL instead?",
                "ReST 没有 β，什么限制它的 KL？",
            ),
            parts=(
                Bullets(
                    T("The threshold τ limits it", "阈值 τ"),
                    T(
                        "The number of Grow steps limits it",
                        "Grow 的次数",
                    ),
                    T("The learning rate limits it", "学习率"),
                    ordered=True,
                ),
            ),
            answer=(
                Equation(r"\mathrm{KL}(\pi_\tau\,\|\,\pi_\text{ref}) = -\log P_{\pi_\text{ref}}(r > \tau)", big=True),
                Bullets(
                    T(
                        "The fewer samples pass, the larger the KL is, so τ determines the KL as β does",
                        "通过的样本越少，KL 越大：τ 像 β 一样决定 KL",
                    ),
                    T(
                        "Each Grow step filters the new policy again, and no term limits the distance from "
                        r"$\pi_\text{ref}$",
                        r"每次 Grow 都对新策略再作过滤，而且没有任何一项限制与 $\pi_\text{ref}$ 的距离",
                    ),
                    T(
                        "Early stopping limits the KL, too, although no formula contains it",
                        "提前停止也限制 KL，虽然公式里没有它",
                    ),
                    steps=True,
                ),
            ),
            notes=T(
                "All three answers can be defended. Ask which of them can be expressed as a number of nats.",
                "三个回答都能辩护。问：哪一个能写成多少纳特？",
            ),
            answer_notes=T(
                "The KL of a conditional distribution to the original one is minus the logarithm of the "
                "probability of the condition. The proof takes one line on the board.",
                "条件分布对原分布的 KL 等于条件概率的负对数，黑板上一行就能证明。",
            ),
            answer_title=T(
                "The share of samples above τ determines the KL",
                "高于 τ 的样本比例决定 KL",
            ),
            minutes=(1.0, 1.0),
        ),
    ),
)
