"""Standard output and error: what cannot be shown must not end the work behind it."""

import contextlib
import os
import sys


class LossyStream:
    """A text stream that drops what its target cannot take and escapes characters that it cannot encode.

    The target may be a closed pipe, a full disk, a terminal that hung up, or None (a closed descriptor).
    `error` is the first error of the target, or None.
    """

    def __init__(self, target):
        self.error = None
        self.ended, self.replaced = False, target  # see _replaced
        self._target = open(os.devnull, "w") if target is None else target  # noqa: SIM115

    def __getattr__(self, name):
        return getattr(self._target, name)

    def write(self, text):
        try:
            self._target.write(text)
        except UnicodeEncodeError:
            encoding = getattr(self._target, "encoding", None) or "ascii"
            self.write(text.encode(encoding, "backslashreplace").decode(encoding))
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            self.error = self.error or error
        return len(text)

    def flush(self):
        try:
            self._target.flush()
        except (OSError, ValueError) as error:
            self.error = self.error or error


@contextlib.contextmanager
def _replaced(name):
    """Replaces sys.stdout or sys.stderr by a LossyStream, which it yields.

    Threads may do so at once, and end in any order: a stream that ends below another is removed with that.
    """
    stream = LossyStream(getattr(sys, name))
    setattr(sys, name, stream)
    try:
        yield stream
    finally:
        stream.ended = True
        while isinstance(top := getattr(sys, name), LossyStream) and top.ended:
            setattr(sys, name, top.replaced)


@contextlib.contextmanager
def lossy_output(then_raise=False):
    """A context or decorator in which a print to sys.stdout or sys.stderr that fails is dropped.

    Both are replaced by LossyStreams and restored at the end. then_raise: the first error of stdout is raised then.
    """
    with _replaced("stdout") as output, _replaced("stderr"):
        yield
        output.flush()
    if then_raise and output.error is not None:
        raise output.error
