"""Signals that stop a run after its step, saved. Ctrl-C or SIGTERM once more ends it at once."""

import contextlib
import os
import signal
import sys
import threading

from gpt2.distributed import SERIAL

# A person or a supervisor asks: a second one is meant.
REQUESTS = (signal.SIGINT, signal.SIGTERM)
# The terminal is gone, the CPU time is used up, a batch system gives notice (Slurm, SGE). These repeat by themselves.
NOTICES = (signal.SIGHUP, signal.SIGXCPU, signal.SIGUSR1, signal.SIGUSR2)
FATAL = (signal.SIG_DFL, signal.default_int_handler)


class StopSignals:
    """A context that records the first signal of REQUESTS or NOTICES in `received`: its number, None until it arrives.

    world: a distributed.World. Of several ranks each gets signals at a moment of its own, so `received` is set by
    `agree` only, on all of them.

    It and the first request are acknowledged on standard error. A second request, of either kind, ends the process with
    that signal's status; further notices are ignored. All are handled when the running kernel returns; signals of one
    kind that arrive before that count as one. A signal that would not end the process, because the parent ignores it
    or the caller has a handler of its own, keeps its meaning. Python handles signals in its main thread only: in any
    other thread this context does nothing.
    """

    def __init__(self, world=SERIAL):
        self.received = None
        self._world, self._own = world, None
        self._requested = False
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in REQUESTS + NOTICES:
                if (handler := signal.getsignal(number)) in FATAL:
                    self._previous[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *error):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agree(self):
        """Sets `received` to the signal of the first rank that has got one. All ranks call it at the same point."""
        if self._world.size > 1 and self.received is None:
            self.received = self._world.first_of(self._own)

    def _handle(self, number, frame):
        if number in REQUESTS:
            if self._requested:
                _end(number)
            self._requested = True
        elif self._own is not None:
            return
        self._own = self._own or number
        if self._world.size == 1:
            self.received = self._own
        if self._world.is_first:
            _acknowledge(number)


def _acknowledge(number):
    if sys.__stderr__ is None:
        return  # descriptor 2 was closed; it may belong to a file by now
    more = "; a second Ctrl-C or SIGTERM ends at once" if number in REQUESTS else ""
    # Not print(): the signal may have interrupted one, and streams are not reentrant.
    with contextlib.suppress(OSError):
        os.write(2, f"{signal.Signals(number).name}: finishing this step, then saving{more}\n".encode())


def _end(number):
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)
    os._exit(128 + number)  # PID 1 of a container ignores a signal that has no handler
