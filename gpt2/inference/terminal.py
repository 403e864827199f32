"""Reads messages from a terminal, and notices Ctrl-C without being interrupted."""

import contextlib
import select
import signal
import sys

with contextlib.suppress(ImportError):
    import readline  # noqa: F401  gives input() line editing and a history for the session

PASTE_SECONDS = 0.05  # within which lines that follow one another were pasted, as nobody types that fast


def read_message(prompt):
    """Returns what is typed up to Enter, or all the lines pasted; a line that begins with "/" stands alone.

    Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C.
    """
    text = input(prompt)
    with contextlib.suppress(EOFError):
        while not text.startswith("/") and select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
            text += f"\n{input()}"
    return text


@contextlib.contextmanager
def noticed_interrupts(notices=True):
    """Yields a function that returns whether Ctrl-C was pressed; the second one raises KeyboardInterrupt as usual.

    notices: False leaves the first one, too, to raise it.
    """
    if not notices:
        yield lambda: False
        return
    seen, before = [], signal.getsignal(signal.SIGINT)

    def notice(number, frame):
        seen.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, notice)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
