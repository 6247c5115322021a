"""Does the proxy reward rise while the gold reward falls, and do more labels delay that?"""
