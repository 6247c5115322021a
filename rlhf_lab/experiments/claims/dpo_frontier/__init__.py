"""Does DPO's frontier of gold reward against KL dominate PPO's?"""
