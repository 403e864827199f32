"""Errors that the user can fix, and how a command exits on one."""

import contextlib
import errno
import io
import os
import reprlib
import signal
import sys

from gpt2.output import LossyStream


class UserError(Exception):
    """Bad input or a failing environment. The message is one line: what is wrong, what was expected, what to do.

    is_reported: whether another process prints it.
    """

    is_reported = False


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


def run_command(main, output_required=True):
    """Calls `main()` and exits with the status it returns.

    A UserError, OSError or MemoryError prints one line on stderr and exits with 1, Ctrl-C exits with 130, and a closed
    output pipe exits silently with 141. output_required: False drops what stdout cannot take instead. stderr is always
    lossy, and characters that cannot be encoded are escaped.
    """
    try:
        _open_standard_descriptors()
    except OSError as error:
        sys.exit(error_line(from_os_error(error, os.devnull)))
    sys.stderr = LossyStream(sys.stderr)
    if not output_required:
        sys.stdout = LossyStream(sys.stdout)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
        with contextlib.suppress(OSError):  # unbuffered, Python loses what a non-blocking pipe does not take
            os.set_blocking(sys.stdout.fileno(), True)
    try:
        try:
            status = main()
        except SystemExit as ended:  # argparse, after --help
            status = ended.code
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        sys.exit(1 if error.is_reported else error_line(error))
    except BrokenPipeError:
        sys.exit(141)
    except OSError as error:
        sys.exit(error_line(from_os_error(error, error.filename or "input/output")))
    except MemoryError:
        sys.exit("error: out of memory; close other programs, or choose a smaller model, batch, sequence or text")
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would print a traceback
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    finally:
        sys.stdout = LossyStream(sys.stdout)  # Python's own flush at exit would change the status to 120


def error_line(error):
    """The line that reports an error or a message; control characters, which a file's name may contain, are escaped."""
    message = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(error))
    return f"error: {message}"


def _open_standard_descriptors():
    """Opens those of the descriptors 0 to 2 that are closed: a file that got one would receive what is printed."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
