"""How a command exits: one line and a status for errors that the user can fix, a traceback for bugs."""

import errno
import os
import pathlib
import subprocess
import sys
import time

import pytest

from gpt2.errors import UserError, from_os_error, run_command, safe_repr

ROOT = pathlib.Path(__file__).resolve().parents[1]


BEGINNING = f"""
import os, sys, types
sys.modules["gpt2"] = types.ModuleType("gpt2")  # without its model, whose import takes most of a test
sys.modules["gpt2"].__path__ = [{str(ROOT / "gpt2")!r}]
from gpt2.errors import UserError, run_command
"""


def command(main, redirection="", **environment):
    """Runs a command whose `main` is the body of a function; returns the CompletedProcess, outputs in bytes."""
    body = "".join(f"    {line}\n" for line in main.splitlines())
    script = f"{BEGINNING}def main():\n{body}run_command(main)"
    shell = ["bash", "-c", f'"$@" {redirection}; exit ${{PIPESTATUS[0]}}', "bash", sys.executable, "-c", script]
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run(shell, cwd=ROOT, env=inherited | environment, capture_output=True, timeout=60)


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


def test_ctrl_c_exits_with_130_however_often_it_is_pressed():
    # The second while the first unwinds, the third while Python ends.
    ctrl_c = "import atexit, signal\natexit.register(signal.raise_signal, signal.SIGINT)\n"
    ended = command(f"{ctrl_c}try: signal.raise_signal(signal.SIGINT)\nfinally: signal.raise_signal(signal.SIGINT)")
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, b"", b"interrupted\n")


def test_an_os_error_without_a_message_still_names_the_path():
    assert str(from_os_error(OSError("odd"), "a/b")) == "a/b: odd"


@pytest.mark.parametrize("flush", [True, False])
@pytest.mark.parametrize(
    ("redirection", "status", "message"),
    [
        (">(exit 0)", 141, b""),
        ("/dev/full", 1, b"error: input/output: the disk is full; free some space or choose another folder\n"),
    ],
)
def test_unwritable_output(redirection, status, message, flush):
    wait = "import time; time.sleep(0.3)\n"  # until nobody reads
    ended = command(f"{wait}print('text', flush={flush})", f"> {redirection}")
    assert (ended.returncode, ended.stderr) == (status, message)


@pytest.mark.parametrize(
    ("main", "status"),
    [
        ("return 3", 3),
        ("raise UserError('x.bin: empty')", 1),
        ("raise KeyboardInterrupt", 130),
        ("import argparse; argparse.ArgumentParser().parse_args(['--no'])", 2),
    ],
)
@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-", "2>&1 | true", "2>/dev/full >&-"])
def test_the_status_stands_although_the_message_cannot_be_shown(main, status, redirection):
    ended = command(f"print('some text', file=sys.stderr)\n{main}", redirection)
    assert (ended.returncode, ended.stdout) == (status, b"")


@pytest.mark.parametrize("redirection", ["> /dev/full", "| true"])
def test_an_error_is_not_lost_with_the_output_before_it(redirection):
    ended = command("import time; time.sleep(0.3)\nprint('text')\nraise UserError('x.bin: empty')", redirection)
    assert (ended.returncode, ended.stderr) == (1, b"error: x.bin: empty\n")


def test_help_that_nobody_reads_ends_quietly():
    parser = "import argparse, time; time.sleep(0.3)\nargparse.ArgumentParser().parse_args(['--help'])"
    ended = command(parser, "| true")
    assert ended.returncode in (0, 141) and ended.stderr == b""


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "latin-1"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_characters_that_cannot_be_encoded_are_escaped(environment):
    main = r"print('\u2019'); print('\udce9', file=sys.stderr); raise UserError('\u4e16')"
    ended = command(main, **environment)
    assert (ended.returncode, ended.stdout) == (1, b"\\u2019\n")
    assert ended.stderr == b"\\udce9\nerror: \\u4e16\n"


def test_no_file_gets_the_descriptor_of_a_closed_stream():
    main = "file = open(os.devnull)\nreturn file.fileno() if os.write(1, b'1') + os.write(2, b'2') == 2 else 0"
    assert command(main, "<&- >&- 2>&-").returncode > 2


def test_a_message_stays_one_line_whatever_a_file_is_called():
    ended = command(r"raise UserError('a\n\x1b[2Jb: empty')")
    assert ended.stderr == b"error: a\\n\\x1b[2Jb: empty\n"


def test_no_null_device_is_an_error():
    script = f"{BEGINNING}os.devnull = '/nowhere/null'\nrun_command(lambda: print('text'))"
    ended = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (1, b"")
    assert ended.stderr == b"error: /nowhere/null: No such file or directory\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_slow_reader_of_a_non_blocking_pipe_gets_everything(unbuffered):
    script = f"{BEGINNING}run_command(lambda: [print('x' * 999) for _ in range(200)] and None)"
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stdout=writer) as process:
        os.close(writer)
        with open(reader, "rb") as pipe:
            time.sleep(1)  # by now the pipe is full
            assert len(pipe.read()) == 200_000
        assert process.wait(60) == 0
