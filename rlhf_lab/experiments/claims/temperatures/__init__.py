"""Is DPO more robust to the sampling temperature than PPO and best-of-n?"""
