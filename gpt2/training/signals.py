"""Signals that stop a run: the first lets it finish its step and save, the second ends it at once."""

import contextlib
import os
import signal
import threading

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """A context that records SIGINT and SIGTERM in `received`: the signal's number, None until one arrives.

    The first is acknowledged on standard error. The second, of either kind, ends the process with that signal's status.
    Both are handled when the running kernel returns; signals of one kind that arrive before that count as one. Python
    handles signals in its main thread only: in any other thread this context does nothing.
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
        # Not print(): the signal may have interrupted one, and streams are not reentrant.
        with contextlib.suppress(OSError):
            message = f"{signal.Signals(number).name}: finishing this step, then saving; a second signal ends at once\n"
            os.write(2, message.encode())
