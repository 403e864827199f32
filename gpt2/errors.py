"""Errors that are the user's to mend, and how a command ends when one occurs."""

import errno
import os
import reprlib
import sys


class UserError(Exception):
    """Bad input or surroundings. The message is one line: what is wrong, what was expected, what to do."""


class UnavailableError(UserError):
    """Something that would have to be fetched cannot be had, and nothing is wrong with what is there."""


def from_os_error(error, path):
    """Returns the UserError that says in one line what the operating system refused to do with `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"{path}: the disk is full; free some space or choose another folder")
    return UserError(f"{path}: {error.strerror or error}")


def quoted(value):
    """Whatever a file holds in a value's place, as it may stand in a message: printable, and shortened."""
    shortened = reprlib.Repr()
    shortened.maxlevel, shortened.maxstring = 1, 120
    return shortened.repr(value)


def run_command(main):
    """Calls `main()` and exits: 1 with one line on standard error for what the user can mend, 130 for Ctrl-C, 141
    without a word if whoever reads the output has closed it.
    """
    try:
        status = main()
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(status)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        _drop_output_that_cannot_be_written()
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        sys.exit(f"error: {from_os_error(error, error.filename or 'input/output')}")
    except MemoryError:
        sys.exit("error: the system refused memory; close other programs, or choose a smaller model, batch or sequence")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def _drop_output_that_cannot_be_written():
    """Else Python would try once more in the end, and complain in its own words."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
