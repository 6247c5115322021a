"""What do static preference labels cost when the environment is not static?"""
