"""Signals that ask a run to end: the first one waits for the step to be finished, the second one does not."""

import contextlib
import os
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """A context in which SIGINT and SIGTERM are noted in `received`, the signal's number, which is None until then.

    The first one says so on standard error. The second one, of either kind, ends the process with the signal's exit
    status. Both are seen when the kernel that is running returns; signals of one kind that come meanwhile count as one.
    Python handles signals in its main thread only: in another one this context does nothing.
    """

    def __init__(self):
        self.received = None
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number, frame):
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number
        # Not print: the signal may have come in the middle of one, and streams refuse to be entered again.
        with contextlib.suppress(OSError):
            message = f"{signal.Signals(number).name}: finishing this step, then saving; once more ends at once\n"
            os.write(2, message.encode())
