"""A command on a terminal of its own, for tests to type into."""

import fcntl
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time

SECONDS = 120  # a test waits at most
CONTROL = re.compile(r"\x1b\[[?\d;]*[a-zA-Z]|\r")


class Terminal:
    """A process that runs `python -m ...`; a context that ends it."""

    def __init__(self, *arguments, env=None):
        self._end, other = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env=os.environ | {"TERM": "xterm", "INPUTRC": "/dev/null"} | (env or {}),
        )
        os.close(other)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        os.close(self._end)

    def send(self, text):
        os.write(self._end, text.encode())

    def read_until(self, pattern):
        """Reads on until the pattern is found in what comes; returns that, without a terminal's control sequences."""
        data, limit = b"", time.monotonic() + SECONDS
        while not re.search(pattern, text := CONTROL.sub("", data.decode(errors="replace"))):
            if not select.select([self._end], [], [], max(0, limit - time.monotonic()))[0]:
                raise AssertionError(f"no {pattern!r} in {text!r}")
            try:
                data += os.read(self._end, 4096)
            except OSError as error:  # the process has ended
                raise AssertionError(f"no {pattern!r} in {text!r}") from error
        return text

    def status(self):
        """Returns the exit status, once the process has ended."""
        return self.process.wait(timeout=SECONDS)
