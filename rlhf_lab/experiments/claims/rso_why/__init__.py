"""Why should preference pairs from π_r help?"""
