"""Do ReST's Improve and Grow steps raise the reward on translation?"""
