"""A run and its vocabulary: it stands in the run's folder, goes along on resume, and another's data are refused."""

import contextlib
import io
import json
import pathlib
import re
import shutil

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, prepare
from gpt2.convert import convert
from gpt2.data.vocabulary import load_vocabulary, model_vocabulary
from gpt2.errors import UserError
from gpt2.formats.llmc import UNKNOWN_VOCABULARY, write_tokens
from gpt2.formats.llmc import model_vocabulary as stated_vocabulary
from gpt2.machine import available_threads, set_threads
from gpt2.training import loop
from gpt2.training.options import TrainOptions
from tests.support.vocabulary import byte_level, files_of, grown_by, write_foreign_folder, write_tokens_of

TEXT = "To be, or not to be: that is the question.\nWhether 'tis nobler in the mind to suffer\n" * 30
VOCABULARIES = {"chars": "chars", "pairs": "bpe:280"}
SIZES = {"layers": 1, "heads": 2, "channels": 16, "context": 16}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with the data of two vocabularies, and a run from scratch on each, of its name."""
    folder = tmp_path_factory.mktemp("vocabulary")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        pathlib.Path("text.txt").write_text(TEXT)
        for name, vocabulary in VOCABULARIES.items():
            prepare.main(["text.txt", "--name", name, "--vocab", vocabulary, "--data-dir", "."])
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                train(name, init="scratch", keep_best=True, out_dir=f"{name}_run", **SIZES)
            pathlib.Path(f"{name}.txt").write_text(printed.getvalue())
    return folder


@pytest.fixture(autouse=True)
def folder(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    set_threads(available_threads())


def train(data, **changes):
    """Trains for 4 steps on the data of that name."""
    settings = {"train_data": f"{data}_train.bin", "val_data": f"{data}_val.bin", "batch_size": 2, "seq_len": 8}
    settings |= {"max_steps": 4, "val_every": 2, "sample_every": 4, "sample_tokens": 8, "threads": 1}
    return loop.train(TrainOptions(**settings | changes))


def has_ids(printed):
    """Whether a run's last sample is token ids rather than text."""
    sample = re.findall(r"^--- sample ---\n(.*?)\n-{14}$", printed, re.DOTALL | re.MULTILINE)[-1]
    return re.fullmatch(r"\d+( \d+)*", sample) is not None


def refused(message, function, *arguments, **named):
    with pytest.raises(UserError, match=message) as caught:
        function(*arguments, **named)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_run_from_scratch_leaves_the_datas_vocabulary_and_writes_text(name):
    words = load_vocabulary(f"{name}_vocabulary")
    for run in (f"{name}_run", f"{name}_run/best"):
        assert files_of(f"{run}/vocabulary") == files_of(f"{name}_vocabulary")
        assert model_vocabulary(run).sha256 == words.sha256 == GPT2.load(run).vocabulary
    assert not has_ids(pathlib.Path(f"{name}.txt").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("place", ["chars_run", "elsewhere"])
def test_a_resumed_run_takes_its_vocabulary_along(place, capsys):
    shutil.rmtree("chars_vocabulary")
    (pathlib.Path("chars_run") / ".vocabulary.abcd").mkdir()  # left by a killed process
    loop.resume("chars_run", {"max_steps": 8, "out_dir": place})
    assert "token ids" not in capsys.readouterr().out
    for run in (place, f"{place}/best"):
        assert model_vocabulary(run).sha256 == load_vocabulary("chars_run/vocabulary").sha256
    assert not list(pathlib.Path(place).glob(".vocabulary.*"))


@pytest.mark.slow
def test_a_lost_vocabulary_comes_back_from_the_data(capsys):
    before = files_of("chars_run/vocabulary")
    shutil.rmtree("chars_run/vocabulary")
    loop.resume("chars_run", {"max_steps": 8})
    assert files_of("chars_run/vocabulary") == before
    printed = capsys.readouterr().out
    assert "its vocabulary is not GPT-2's, and not beside it: it is taken to be that of chars_train.bin\n" in printed
    assert not has_ids(printed)


@pytest.mark.slow
def test_a_vocabulary_lost_everywhere_leaves_ids_with_the_reason(capsys):
    for path in ("chars_run/vocabulary", "chars_vocabulary"):
        shutil.rmtree(path)
    stated = GPT2.load("chars_run").vocabulary
    loop.resume("chars_run", {"max_steps": 8})
    printed = capsys.readouterr().out
    assert "samples are shown as token ids: chars_run/model_00000004.bin: its vocabulary is not GPT-2's" in printed
    assert has_ids(printed)
    assert GPT2.load("chars_run").vocabulary == stated != UNKNOWN_VOCABULARY


def test_data_of_another_vocabulary_are_refused_by_name():
    expected = r"^pairs_train\.bin: tokens of another vocabulary than the model's, which has \d+ tokens; "
    command = r"prepare the text with that: gpt2 prepare TEXT --name NAME --vocab chars_run/vocabulary$"
    refused(expected + command, train, "pairs", init="chars_run")
    refused(expected, loop.resume, "chars_run", {"max_steps": 8, "train_data": "pairs_train.bin"}, anyway=True)
    mixed = {"train_data": "chars_train.bin", "val_data": "pairs_val.bin"}
    refused(r"^pairs_val\.bin: tokens of another vocabulary", train, "chars", init="chars_run", **mixed)
    shutil.rmtree("chars_run/vocabulary")  # its SHA-256 is still known
    digest = r"^pairs_train\.bin: .* the model's, which has the SHA-256 [0-9a-f]{12}\.\.\.; .* --vocab FOLDER$"
    refused(digest, train, "pairs", init="chars_run")
    write_tokens("gpt2_train.bin", np.arange(100) % 30)
    refused(r"^gpt2_train\.bin: tokens of another vocabulary", train, "gpt2", init="pairs_run", val_every=0)


def test_a_model_that_does_not_fit_the_vocabulary_beside_it_is_refused():
    shutil.rmtree("chars_run/vocabulary")
    shutil.copytree("pairs_vocabulary", "chars_run/vocabulary")
    message = "^chars_run: was made with another vocabulary than the one beside it, chars_run/vocabulary; restore that$"
    refused(message, train, "chars", init="chars_run")
    refused(message.replace("_run:", r"_run/model_00000004\.bin:"), loop.resume, "chars_run", {"max_steps": 8})


def test_a_folder_left_by_a_run_that_saved_nothing_does_not_become_the_next_ones(capsys):
    for place in ("out", "out/best"):
        shutil.copytree("pairs_vocabulary", f"{place}/vocabulary")
    train("chars", init="scratch", keep_best=True, **SIZES)
    for run in ("out", "out/best"):
        assert model_vocabulary(run).sha256 == load_vocabulary("chars_vocabulary").sha256
    GPT2(GPT2Config(maxT=16, V=300, L=1, NH=2, C=8)).save("unknown.bin")
    for place in ("new", "new/best"):
        shutil.copytree("pairs_vocabulary", f"{place}/vocabulary")
    write_tokens("ids_train.bin", np.arange(100))
    train("ids", init="unknown.bin", val_data="ids_train.bin", keep_best=True, out_dir="new")
    assert not pathlib.Path("new/vocabulary").exists() and not pathlib.Path("new/best/vocabulary").exists()


def test_a_file_of_another_kind_in_the_place_of_the_vocabulary_stays():
    pathlib.Path("out/vocabulary").mkdir(parents=True)
    pathlib.Path("out/vocabulary/thesis.txt").write_text("years of work")
    refused(r"^out/vocabulary: 'thesis\.txt' is no part of a vocabulary", train, "chars", init="scratch", **SIZES)
    assert pathlib.Path("out/vocabulary/thesis.txt").read_text() == "years of work"
    assert not list(pathlib.Path("out").glob("model_*"))


def test_a_run_from_a_hugging_face_folder_gives_its_files_back():
    words = write_foreign_folder("theirs", GPT2Config(maxT=16, V=260, L=1, NH=2, C=8))
    write_tokens_of(words, pathlib.Path("own_train.bin"), words.encode(TEXT))
    train("own", init="theirs", val_data="own_train.bin", keep_best=True)
    files = files_of("theirs")
    assert files_of("out/vocabulary") == {name: files[name] for name in files if "tensors" not in name}
    for source in ("out", "out/best"):
        convert(source, "back", force=True)
        theirs, back = files_of("theirs"), files_of("back")
        assert theirs.keys() == back.keys()
        configs = [json.loads(files.pop("config.json")) for files in (theirs, back)]
        assert all(theirs[name] == back[name] for name in theirs if "tensors" not in name)
        assert configs[1] == configs[0] | {"n_ctx": 16, "n_inner": None}


def test_a_damaged_tokenizer_is_an_unknown_one_and_training_goes_on(capsys):
    words = write_foreign_folder("theirs", GPT2Config(maxT=16, V=260, L=1, NH=2, C=8))
    pathlib.Path("theirs/tokenizer.json").write_text("{")
    write_tokens("ids_train.bin", np.arange(100))
    train("ids", init="theirs", val_data="ids_train.bin")
    printed = capsys.readouterr().out
    assert "samples are shown as token ids: theirs: not a tokenizer that the tokenizers library can read: " in printed
    assert words.size == 259 and files_of("out/vocabulary")["tokenizer.json"] == b"{"


def test_data_of_a_smaller_vocabulary_that_the_models_extends_are_accepted():
    small = byte_level()
    write_tokens_of(small, pathlib.Path("small_train.bin"), small.encode(TEXT))
    grown = write_foreign_folder("grown", GPT2Config(maxT=16, V=320, L=1, NH=2, C=8), grown_by(small, "<|user|>"))
    train("small", init="grown", val_data="small_train.bin")  # V is padded beyond both
    assert GPT2.load("out").vocabulary == grown.sha256 != small.sha256
    refused(r"^small_train\.bin: tokens of another", train, "small", init="chars_run", val_data="small_train.bin")


def test_an_untrained_model_takes_the_vocabulary_of_the_data(capsys):
    words = load_vocabulary("chars_vocabulary")
    model = GPT2(GPT2Config(maxT=16, V=words.size, L=1, NH=2, C=8))
    model.save("mine.bin")
    train("chars", init="mine.bin")
    line = "mine.bin: its vocabulary is not GPT-2's, and not beside it: it is taken to be that of chars_train.bin\n"
    assert line in capsys.readouterr().out
    assert stated_vocabulary("out/model_00000004.bin") == words.sha256 == model_vocabulary("out").sha256
    GPT2(GPT2Config(maxT=16, V=words.size - 1, L=1, NH=2, C=8)).save("smaller.bin")
    with contextlib.suppress(UserError):  # a token may be out of range
        train("chars", init="smaller.bin", out_dir="new")
    assert "taken to be" not in capsys.readouterr().out
