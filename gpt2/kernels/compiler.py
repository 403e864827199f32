"""A process of its own in which kernels are compiled, so that others only ever load them.

What Numba runs in the process that compiles a kernel is not what it saves: the loops that it has made functions of are
then optimised once more, after which sums may come out otherwise in their last digits. A first run would not equal the
runs that follow. Besides, the compiler's memory is given back when the process ends.
"""

import atexit
import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys

from numba.core import event

_PROGRAM = "import sys; sys.path[:] = {!r}; from gpt2.kernels.compiler import serve; serve()"


class Compiler:
    """The process, which is started when it is first needed. Where it cannot be, nothing is compiled.

    Attributes: `watchers`, pairs of functions (see jit.watch_compilation); `serving`, whether this is that process.
    """

    serving = False

    def __init__(self):
        self._process = None
        self.watchers = []

    def compile(self, dispatcher, signature):
        """Has a dispatcher of this package compiled into the cache, for a tuple of Numba types."""
        if self.serving:
            return
        with contextlib.suppress(OSError, EOFError, pickle.UnpicklingError):
            if self._process is None:
                command = [sys.executable, "-c", _PROGRAM.format(sys.path)]
                self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                atexit.register(self.stop)
            pickle.dump((dispatcher.py_func.__module__, dispatcher.__name__, signature), self._process.stdin)
            self._process.stdin.flush()
            while news := pickle.load(self._process.stdout):
                what, *arguments = news
                for watcher in self.watchers:
                    watcher[what](*arguments)

    def stop(self):
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None
            atexit.unregister(self.stop)


class Listener(event.Listener):
    """Calls started(name) and ended() around each compilation of a function in this process."""

    def __init__(self, started, ended):
        self.started, self.ended = started, ended

    def on_start(self, compilation):
        self.started(compilation.data["dispatcher"].__name__)

    def on_end(self, compilation):
        self.ended()


def serve():
    """Compiles what standard input asks for, until that ends; see Compiler.compile."""
    Compiler.serving = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    def answer(*news):
        pickle.dump(news, answers)
        answers.flush()

    listener = Listener(lambda name: answer(0, name), lambda: answer(1))
    with event.install_listener("numba:compile", listener), contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            module, name, signature = pickle.load(requests)
            dispatcher = getattr(importlib.import_module(module), name)
            # Whatever is wrong comes up once more where the kernel is called.
            with contextlib.suppress(Exception):
                dispatcher.compile(signature)
            answer()
