"""Is DPO easier to train than PPO, and does it save memory, at equal reward?"""
