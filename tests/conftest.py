"""Shared settings of the tests: how hard hypothesis tries, and how many threads torch takes."""

import os
import signal
import threading

import torch
from hypothesis import settings

# A shared machine makes single examples slow at random, so no example has a deadline. In CI the examples are
# the same in every run: a red run there can be repeated here with CI=1.
settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile("ci", deadline=None, max_examples=50, derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Tests are small and run on two workers: a second thread each only waits.
torch.set_num_threads(1)

# A shell that starts the tests in the background has them ignore SIGINT; tests of Ctrl-C need Python's own answer.
if threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
