"""What holds for all test processes and for the commands that they start.

One thread for each: the tests run side by side, and the same bits come out. And a SIGHUP that is heard, even where the tests
themselves run under `nohup`: an ignored signal stays ignored in the processes that are started.
"""

import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, so before anything imports it
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
