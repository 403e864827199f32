"""A process of its own in which kernels are compiled, so that others only ever load them.

What Numba runs in the process that compiles a kernel is not what it saves: the loops that it has made functions of are
then optimised once more, after which sums may come out otherwise in their last digits. A first run would not equal the
runs that follow. Besides, the compiler's memory is given back when the process ends.
"""

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys

from numba.core import event, types

_PROGRAM = "import sys; sys.path[:] = {!r}; from gpt2.kernels.engine.compiler import serve; serve()"


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
        described = _describe(signature)
        if self.serving or _understand(described) != signature:
            return
        try:
            if self._process is None:
                command = [sys.executable, "-c", _PROGRAM.format(sys.path)]
                streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
                self._process = subprocess.Popen(command, **streams)
                atexit.register(self.stop)
            _send(self._process.stdin, [dispatcher.py_func.__module__, dispatcher.__name__, described])
            while news := json.loads(self._process.stdout.readline()):
                what, *arguments = news
                for watcher in self.watchers:
                    watcher[what](*arguments)
        except (OSError, ValueError):  # it cannot be started, or has ended
            self.stop()
        except BaseException:
            self.stop()  # its answer would be taken for that to the next request
            raise

    def stop(self):
        """Ends the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(OSError):  # what it was still to be told
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
    """Compiles what standard input asks for, a line of JSON each, until that ends; see Compiler.compile."""
    Compiler.serving = True
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    listener = Listener(lambda name: _send(answers, [0, name]), lambda: _send(answers, [1]))
    with event.install_listener("numba:compile", listener), contextlib.suppress(BrokenPipeError):
        for request in sys.stdin:
            module, name, signature = json.loads(request)
            dispatcher = getattr(importlib.import_module(module), name)
            # Whatever is wrong comes up once more where the kernel is called.
            with contextlib.suppress(Exception):
                dispatcher.compile(_understand(signature))
            _send(answers, [])


def _send(file, message):
    file.write(json.dumps(message) + "\n")
    file.flush()


def _describe(kind):
    """A Numba type, or a tuple of them, in JSON's terms."""
    if isinstance(kind, types.Array):
        return {"array": [str(kind.dtype), kind.ndim, kind.layout, not kind.mutable], "aligned": kind.aligned}
    if isinstance(kind, types.BaseTuple):
        named = getattr(kind, "instance_class", None)
        return {"tuple": _describe(tuple(kind)), "class": named and [named.__module__, named.__name__]}
    return [_describe(each) for each in kind] if isinstance(kind, tuple) else str(kind)


def _understand(described):
    """The inverse of _describe, but for types that kernels are not called with."""
    if isinstance(described, list):
        return tuple(_understand(each) for each in described)
    if isinstance(described, str):
        return getattr(types, described, None)
    if "tuple" in described:
        named = described["class"] and getattr(importlib.import_module(described["class"][0]), described["class"][1])
        return types.BaseTuple.from_types(_understand(described["tuple"]), named)
    dtype, *properties = described["array"]
    return types.Array(_understand(dtype), *properties, aligned=described["aligned"])
