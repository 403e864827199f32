"""Settings that must stand before Numba is imported, and before a test starts a process."""

import os
import signal

# Three threads even on a machine with fewer cores: results must not depend on how many there are.
os.environ.setdefault("NUMBA_NUM_THREADS", "3")

# Under nohup, or in the background of a script, the tests' processes would inherit that these are ignored.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, usual)
