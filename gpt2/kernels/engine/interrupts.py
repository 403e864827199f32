"""Ctrl-C while code is compiled or loaded: LLVM calls back into Python there, and swallows exceptions."""

import contextlib
import signal
import threading

_noted = []


def _note(number, frame):
    _noted.append(number)


@contextlib.contextmanager
def deferred():
    """A context that ends with KeyboardInterrupt if Ctrl-C was pressed inside, instead of being interrupted there."""
    installed = False
    try:
        with _handled_by(signal.default_int_handler, _note) as installed:
            yield
    finally:
        if installed and _noted:
            _noted.clear()
            raise KeyboardInterrupt


@contextlib.contextmanager
def allowed():
    """A context inside `deferred` that Ctrl-C does interrupt; it is not entered if Ctrl-C was pressed before."""
    with _handled_by(_note, signal.default_int_handler) as installed:
        if installed and _noted:
            raise KeyboardInterrupt
        yield


@contextlib.contextmanager
def _handled_by(before, handler):
    """Replaces the handler of SIGINT, if it is `before`, for a time. Only the main thread can do so."""
    installed = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is before
    if installed:
        signal.signal(signal.SIGINT, handler)
    try:
        yield installed
    finally:
        if installed:
            signal.signal(signal.SIGINT, before)
