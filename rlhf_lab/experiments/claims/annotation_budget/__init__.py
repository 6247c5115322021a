"""Given a budget of human labels, how should training be designed?"""
