"""How a command exits: one line and a status for errors that the user can fix, a traceback for bugs."""

import errno
import pathlib
import subprocess
import sys

import pytest

from gpt2.errors import UserError, from_os_error, run_command, safe_repr


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("x.bin: empty"), "error: x.bin: empty"),
        (OSError(errno.EIO, "Input/output error", "x.bin"), "error: x.bin: Input/output error"),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), "error: x.bin: the disk is full"),
        (MemoryError(), "error: out of memory"),
    ],
)
def test_errors_that_the_user_can_fix_are_one_line(error, message):
    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code.startswith(message) and "\n" not in ended.value.code


@pytest.mark.parametrize(
    "value", ["a\nb\x1b[2J\u2028\ud800", "x" * 5000, [[["y"] * 99] * 99] * 99, 10**4000, {"\n": 1}]
)
def test_the_safe_repr_of_any_value_is_one_short_line(value):
    assert safe_repr(value).isprintable() and len(safe_repr(value)) <= 1000


@pytest.mark.parametrize("value", ["gpt2", None, True, 1e-5, 12, [1, 2], "h.11.attn.c_attn.weight"])
def test_the_safe_repr_of_a_short_value_is_its_repr(value):
    assert safe_repr(value) == repr(value)


def test_the_status_is_that_of_main_and_a_bug_keeps_its_traceback(capsys):
    for result, status in ((None, None), (0, 0), (1, 1)):
        with pytest.raises(SystemExit) as ended:
            run_command(lambda result=result: result)
        assert ended.value.code == status
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_ctrl_c_exits_with_130(capsys):
    def main():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        run_command(main)
    assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"


def test_an_os_error_without_a_message_still_names_the_path():
    assert str(from_os_error(OSError("odd"), "a/b")) == "a/b: odd"


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize(
    ("output", "status", "message"),
    [("closed pipe", 141, ""), ("/dev/full", 1, "error: input/output: the disk is full; free some space")],
)
def test_unwritable_output(output, status, message, flush):
    script = f"from gpt2.errors import run_command\nrun_command(lambda: print('text', flush={flush}))"
    root = pathlib.Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", script]
    if output == "closed pipe":
        process = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        process.stdout.close()
        errors, ended = process.stderr.read(), process.wait(60)
        process.stderr.close()
    else:
        with open(output, "w") as full:
            run = subprocess.run(command, cwd=root, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
        errors, ended = run.stderr, run.returncode
    assert ended == status
    assert errors.startswith(message) and errors.count("\n") == bool(message)
