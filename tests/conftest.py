"""One thread for each test process, and for the commands it starts: the tests run side by side, and the same bits come out."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported, so before anything imports it
