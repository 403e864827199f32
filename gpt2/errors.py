"""Errors that the user can fix, and how a command exits on one."""

import errno
import os
import reprlib
import sys


class UserError(Exception):
    """Bad input or a failing environment. The message is one line: what is wrong, what was expected, what to do."""


class UnavailableError(UserError):
    """A file that has to be downloaded is not available; everything already on disk is fine."""


def from_os_error(error, path):
    """Returns a one-line UserError for an OSError raised while accessing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space or choose another folder")
    return UserError(f"{path}: {error.strerror or error}")


def safe_repr(value):
    """Printable, truncated repr of an untrusted value."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring = 1, 120
    return shortened.repr(value)


def run_command(main):
    """Calls `main()` and exits with the status it returns.

    A UserError, OSError or MemoryError prints one line on stderr and exits with 1, Ctrl-C exits with 130, and a closed
    output pipe exits silently with 141.
    """
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        _discard_unwritable_output()
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        sys.exit(f"error: {from_os_error(error, error.filename or 'input/output')}")
    except MemoryError:
        sys.exit("error: out of memory; close other programs, or choose a smaller model, batch, sequence or text")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _discard_unwritable_output():
    """Redirects an unwritable stdout to /dev/null.

    Otherwise Python retries the flush at exit and prints a traceback.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
