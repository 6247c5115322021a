"""Does DPO converge to π* as the number of labels grows, and how fast?"""
