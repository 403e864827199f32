"""Output that cannot be shown: dropped or escaped, while the work behind it goes on."""

import contextlib
import errno
import io
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, evaluate
from gpt2.convert import convert
from gpt2.data.dataset import prepare
from gpt2.formats.llmc import write_tokens
from gpt2.output import LossyStream, lossy_output
from tests.support.vocabulary import pin_byte_vocabulary, write_vocabulary


class Broken(io.StringIO):
    """A stream that fails from the second write on."""

    def __init__(self, error):
        super().__init__()
        self.raised = error

    def write(self, text):
        if self.getvalue():
            raise self.raised
        return super().write(text)

    def flush(self):
        if self.getvalue():
            raise self.raised


@pytest.mark.parametrize(
    "error", [BrokenPipeError(), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "gone"), ValueError("closed")]
)
def test_what_cannot_be_written_is_dropped_and_the_first_error_kept(error):
    target = Broken(error)
    stream = LossyStream(target)
    for text in ("first", "second", "third"):
        print(text, end="", file=stream, flush=True)
    assert target.getvalue() == "first" and stream.error is error


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("utf-8", "é\u2019世\\udce9\n"),
        ("latin-1", "é\\u2019\\u4e16\\udce9\n"),
        ("ascii", "\\xe9\\u2019\\u4e16\\udce9\n"),
    ],
)
def test_what_cannot_be_encoded_is_escaped(encoding, shown):
    target = io.TextIOWrapper(io.BytesIO(), encoding)
    stream = LossyStream(target)
    print("é\u2019世\udce9", file=stream, flush=True)
    assert target.buffer.getvalue().decode(encoding) == shown and stream.error is None


def test_a_closed_descriptor_takes_everything_and_is_no_terminal():
    stream = LossyStream(None)
    print("text", file=stream, flush=True)
    assert stream.error is None and not stream.isatty()


def test_the_callers_streams_come_back_whatever_happens():
    before = sys.stdout, sys.stderr
    with pytest.raises(ZeroDivisionError), lossy_output():
        assert sys.stdout is not before[0] and sys.stderr is not before[1]
        1 / 0  # noqa: B018
    assert (sys.stdout, sys.stderr) == before


def test_the_first_error_is_raised_at_the_end_if_asked_for():
    done = []

    @lossy_output(then_raise=True)
    def work():
        print("first")
        print("second")
        done.append(True)

    with contextlib.redirect_stdout(Broken(BrokenPipeError())), pytest.raises(BrokenPipeError):
        work()
    assert done


def convert_model(folder):
    convert(folder / "model.bin", folder / "written.bin")


def prepare_data(folder):
    (folder / "text.txt").write_text("to be, or not to be " * 50)
    prepare(folder / "text.txt", folder)


def evaluate_model(folder):
    write_tokens(folder / "val.bin", np.arange(100) % 50)
    arguments = {"--model": folder / "model.bin", "--data": folder / "val.bin", "--json": folder / "results.json"}
    evaluate.main([str(word) for pair in arguments.items() for word in pair])


@pytest.mark.parametrize(
    ("work", "written"),
    [
        (convert_model, ["written.bin"]),
        (prepare_data, ["text_train.bin", "text_val.bin"]),
        (evaluate_model, ["results.json"]),
    ],
)
def test_files_are_written_before_a_failing_print_is_an_error(tmp_path, monkeypatch, work, written):
    pin_byte_vocabulary(monkeypatch)
    write_vocabulary(tmp_path)
    GPT2(GPT2Config(maxT=8, V=50, L=1, NH=2, C=12)).save(tmp_path / "model.bin")
    with contextlib.redirect_stdout(Broken(BrokenPipeError())), pytest.raises(BrokenPipeError):
        work(tmp_path)
    assert all((tmp_path / name).stat().st_size for name in written)


def test_the_streams_come_back_when_threads_end_in_the_order_they_began():
    before = sys.stdout, sys.stderr
    first, second = lossy_output(), lossy_output()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert isinstance(sys.stdout, LossyStream)
    second.__exit__(None, None, None)
    assert (sys.stdout, sys.stderr) == before
