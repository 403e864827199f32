"""The commands on a model with a vocabulary of its own, wherever the model is, and on models that lack theirs."""

import contextlib
import io
import json
import os
import pathlib
import shutil
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, chat, convert, evaluate, generate
from gpt2.data.vocabulary import GPT2Vocabulary, load_vocabulary, model_vocabulary, save_vocabulary
from gpt2.errors import UserError, run_command
from gpt2.formats import tokenizer_folder
from gpt2.formats.llmc import UNKNOWN_VOCABULARY, write_tokens
from gpt2.formats.tokenizer_folder import CARRIED, END_OF_TEXT, token_digest
from gpt2.inference.warmup import prepare_kernels
from gpt2.machine import available_threads, set_threads
from gpt2.training import loop
from gpt2.training.options import TrainOptions
from tests.support.examples import random_examples, write_examples
from tests.support.numeric import randomise
from tests.support.vocabulary import byte_level, byte_vocabulary, files_of, write_foreign_folder, write_tokens_of

CONFIG = GPT2Config(maxT=32, V=264, L=1, NH=2, C=8)  # padded beyond the vocabulary
PLACES = ("theirs", "mine.bin", "out", "out/best")
LOST = "its vocabulary is not GPT-2's, and not beside it"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with one model in four places, and token files of its vocabulary."""
    folder = tmp_path_factory.mktemp("vocabulary")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        words = write_foreign_folder("theirs", CONFIG)
        model = GPT2.load("theirs")
        randomise(model, np.random.default_rng(1))
        model.params["wpe"] *= 10
        model.params["lnfw"][0], model.params["lnfb"][0] = 0, 10
        model.params["wte"][128:, 0] = -3  # ASCII is preferred
        model.params["wte"][:128, 0] = 0
        model.save("mine.bin")
        shutil.copytree("theirs", "mine_vocabulary", ignore=shutil.ignore_patterns("*.safetensors"))
        shutil.rmtree("theirs")
        convert.convert("mine.bin", "theirs")
        text = words.encode("To be, or not to be: that is the question, Zürich 東京\n")
        write_tokens_of(words, pathlib.Path("own_train.bin"), [*words.ends, *text] * 4)
        own = {"init": "mine.bin", "train_data": "own_train.bin", "val_data": "own_train.bin", "seq_len": 8}
        loop.train(TrainOptions(**own, max_steps=0, batch_size=1, keep_best=True, threads=1))
        write_examples(pathlib.Path("h.bin"), random_examples(5, np.random.default_rng(0), CONFIG))
    return folder


@pytest.fixture(autouse=True)
def folder(inputs, tmp_path, monkeypatch):
    shutil.copytree(inputs, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    prepare_kernels()
    yield tmp_path
    set_threads(available_threads())


def continuation(*arguments, capsys):
    generate.main([*arguments, "--temperature", "0", "--max-new-tokens", "20", "--threads", "1"])
    return capsys.readouterr()


def refused(command, *arguments):
    """Returns the line with which a command ends, with status 1."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["command", *arguments])
        run_command(command.main)
    assert isinstance(end.value.code, str) and "\n" not in end.value.code
    return end.value.code.removeprefix("error: ")


@pytest.mark.parametrize("place", PLACES)
def test_a_models_text_is_that_of_its_vocabulary_wherever_it_is(place, capsys):
    words, model = load_vocabulary("own_vocabulary"), GPT2.load("mine.bin")
    window = words.encode("to be")
    for _ in range(20):
        window.append(int(model.last_logits([window])[0].argmax()))
    text = words.decode(window)
    assert len(set(text)) > 6
    assert continuation("--model", place, "--prompt", "to be", capsys=capsys) == (f"{text[5:]}\n", "")


@pytest.mark.parametrize("place", PLACES)
def test_every_id_that_ends_a_text_does(place, capsys):
    path = {"theirs": "theirs/model.safetensors", "mine.bin": "mine.bin"}.get(place, f"{place}/model_00000000.bin")
    assert model_vocabulary(place).ends == (257, 258)
    model = GPT2.load("mine.bin")
    model.params["wte"][258, 0] = 5
    model.save("ending.bin")
    if place == "theirs":
        convert.convert("ending.bin", "new")
        path, source = pathlib.Path("theirs/model.safetensors"), pathlib.Path("new/model.safetensors")
        path.write_bytes(source.read_bytes())
    else:
        pathlib.Path(path).write_bytes(pathlib.Path("ending.bin").read_bytes())
    for more in ([], ["--num-beams", "2"]):
        arguments = ["--model", place, "--prompt", "to be", "--max-new-tokens", "20", *more]
        capsys.readouterr()
        generate.main(arguments)
        assert capsys.readouterr().out == "\n"


@pytest.mark.parametrize("place", PLACES)
def test_bits_are_counted_per_byte_of_its_tokens(place, capsys):
    tokens = np.fromfile("own_train.bin", "<u2")[512:]
    words = load_vocabulary("own_vocabulary")
    texts = [words.token_bytes[id] for id in tokens[1:] if id not in (257, 258)]
    evaluate.main(["--model", place, "--data", "own_train.bin", "--json", "-"])
    result = json.loads(capsys.readouterr().out)["data"]
    assert result["bytes"] == len(b"".join(texts)) < len(tokens) - 1
    assert result["bits_per_byte"] == pytest.approx(result["loss"] * result["tokens"] / np.log(2) / result["bytes"])


def test_the_header_holds_the_vocabularys_digest():
    header, words = np.fromfile("mine.bin", "<i4", 256), load_vocabulary("own_vocabulary")
    assert header[9:17].tobytes().hex() == words.sha256 and not header[17:].any()
    GPT2(CONFIG).save("none.bin")
    assert not np.fromfile("none.bin", "<i4", 256)[9:].any()
    GPT2(GPT2Config(maxT=4, V=50257, L=1, NH=1, C=4)).save("gpt2.bin")  # llm.c's
    assert not np.fromfile("gpt2.bin", "<i4", 256)[9:].any() and model_vocabulary("gpt2.bin").sha256 is None


def test_a_model_of_gpt2s_size_may_have_another_vocabulary():
    os.rename("theirs/tokenizer.json", "tokenizer.json")
    model = GPT2(GPT2Config(maxT=4, V=50257, L=1, NH=1, C=4))
    model.vocabulary = model_vocabulary("theirs").sha256
    model.save("other.bin")
    assert model.vocabulary == UNKNOWN_VOCABULARY == GPT2.load("other.bin").vocabulary
    assert model_vocabulary("other.bin").problem == f"other.bin: {LOST}"


def test_a_model_of_more_tokens_may_have_gpt2s_vocabulary():
    model = GPT2(GPT2Config(maxT=4, V=50304, L=1, NH=1, C=4))
    model.vocabulary = None
    model.save("padded.bin")
    assert GPT2.load("padded.bin").vocabulary is None
    assert isinstance(model_vocabulary("padded.bin"), GPT2Vocabulary)


def test_a_folder_comes_back_whole():
    shutil.copytree("theirs", "whole")
    config = json.loads(pathlib.Path("whole/config.json").read_text())
    assert config["task_specific_params"] == {"a": 1} and config["pad_token_id"] == 3
    convert.convert("whole", "whole.bin")
    assert files_of("whole_vocabulary").keys() == CARRIED_HERE
    convert.convert("whole.bin", "back")
    assert files_of("back") == files_of("whole")
    convert.convert("back", "back.bin")
    assert pathlib.Path("back.bin").read_bytes() == pathlib.Path("whole.bin").read_bytes()
    assert model_vocabulary("back").ends == (257, 258)


CARRIED_HERE = set(CARRIED) - {"vocab.json", "merges.txt"}


@pytest.mark.parametrize("name", ["spiece.model", "merges.txt"])
def test_a_tokenizer_that_cannot_be_read_goes_along_too(name, capsys):
    shutil.copytree("theirs", "whole")
    os.rename("whole/tokenizer.json", f"whole/{name}")
    convert.convert("whole", "whole.bin")
    assert "no tokenizer: whole: " in capsys.readouterr().out
    convert.convert("whole.bin", "back")
    assert files_of("back") == files_of("whole")


def test_another_vocabulary_is_replaced_only_by_force(capsys):
    save_vocabulary(byte_level(), "new_vocabulary")
    line = refused(convert, "theirs", "new.bin")
    assert line == "new_vocabulary: holds another vocabulary; choose another name, or replace it with --force"
    assert load_vocabulary("new_vocabulary").size == 257 and not os.path.exists("new.bin")
    convert.convert("theirs", "new.bin", force=True)
    assert files_of("new_vocabulary") == files_of("mine_vocabulary")
    pathlib.Path("new_vocabulary/thesis.txt").write_text("years of work")
    for model in ("theirs", "mine.bin"):
        line = refused(convert, model, "new.bin", "--force")
        assert line.startswith("new_vocabulary: 'thesis.txt' is no part of a vocabulary")
    assert pathlib.Path("new_vocabulary/thesis.txt").exists()


@pytest.mark.parametrize("place", ["mine.bin", "out"])
def test_a_model_and_the_vocabulary_beside_it_must_belong_together(place):
    beside = {"mine.bin": "mine_vocabulary", "out": "out/vocabulary"}[place]
    shutil.rmtree(beside)
    save_vocabulary(byte_level(b"other"), beside)
    expected = f"{place}: was made with another vocabulary than the one beside it, {beside}; restore that"
    assert refused(generate, "--model", place) == expected
    assert refused(evaluate, "--model", place, "--data", "own_train.bin") == expected
    assert refused(convert, place, "new") == expected
    assert not os.path.exists("new")


def test_evaluating_on_another_vocabulary_is_refused():
    other = byte_level(b"other")
    write_tokens_of(other, pathlib.Path("other_val.bin"), other.encode("some text" * 9))
    for place in PLACES:
        line = refused(evaluate, "--model", place, "--data", "other_val.bin")
        assert line.startswith("other_val.bin: tokens of another vocabulary than the model's, which has 259 tokens; ")
        line = refused(evaluate, "--model", place, "--hellaswag", "h.bin")
        assert line == "h.bin: tokens of GPT-2's vocabulary, but the model has another"


def test_a_model_without_its_vocabulary_still_does_what_it_can(capsys):
    shutil.rmtree("mine_vocabulary")
    printed = continuation("--model", "mine.bin", capsys=capsys)
    assert printed.err == f"mine.bin: {LOST}: printing token ids\n"
    assert len(printed.out.split()) == 20 and printed.out.replace(" ", "").strip().isdigit()
    for more in (["--prompt", "a"], ["--stop", "a"]):
        assert refused(generate, "--model", "mine.bin", *more).startswith(f"mine.bin: {LOST}: ")
    assert refused(chat, "--model", "mine.bin", "-p", "a").startswith(f"mine.bin: {LOST}: ")
    evaluate.main(["--model", "mine.bin", "--data", "own_train.bin"])  # it takes the data's
    assert f"mine.bin: {LOST}: it is taken to be that of own_train.bin\n" in (out := capsys.readouterr().out)
    assert "bits per byte" in out and "no bits per byte" not in out
    shutil.rmtree("own_vocabulary")
    evaluate.main(["--model", "mine.bin", "--data", "own_train.bin"])
    assert f"no bits per byte: mine.bin: {LOST}\n" in capsys.readouterr().out
    convert.convert("mine.bin", "new")
    assert f"no tokenizer: mine.bin: {LOST}\n" in capsys.readouterr().out
    assert files_of("new").keys() == {"config.json", "generation_config.json", "model.safetensors"}


def test_tokens_that_the_model_lacks_are_no_prompt():
    words, model = byte_level(), GPT2(GPT2Config(maxT=4, V=190, L=1, NH=1, C=4))
    model.vocabulary = words.sha256
    model.save("small.bin")
    save_vocabulary(words, "small_vocabulary")
    for more, token in ((["--prompt", "é"], 195), ([], 256)):
        line = refused(generate, "--model", "small.bin", *more)
        assert line == f"the prompt: token {token} of the vocabulary, but the model has 190 tokens"


@pytest.mark.slow
def test_gpt2_with_added_tokens_takes_gpt2s_data(monkeypatch, capsys):
    files = {"vocab.json": byte_vocabulary(True)["encoder.json"], "merges.txt": byte_vocabulary(True)["vocab.bpe"]}
    tokens = sorted(json.loads(files["vocab.json"]), key=json.loads(files["vocab.json"]).get)
    monkeypatch.setattr(tokenizer_folder, "GPT2_SHA256", token_digest(tokens))
    GPT2(GPT2Config(maxT=32, V=50258, L=1, NH=1, C=4)).save("large.bin")
    convert.convert("large.bin", "large")
    for name, data in files.items():
        pathlib.Path("large", name).write_bytes(data)
    pathlib.Path("large/added_tokens.json").write_text(json.dumps({"<|user|>": 50257}))
    write_tokens("gpt2_val.bin", np.arange(100) * 500)
    words = model_vocabulary("large")
    assert words.problem is None and words.sha256 is not None
    assert (words.size, words.tokens[50256:]) == (50258, [END_OF_TEXT, "<|user|>"])
    evaluate.main(["--model", "large", "--data", "gpt2_val.bin", "--hellaswag", "h.bin"])
    assert "bits per byte" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^gpt2_val\.bin: tokens of another vocabulary"):
        evaluate.main(["--model", "theirs", "--data", "gpt2_val.bin"])


def test_the_vocabulary_beside_a_model_file_that_says_nothing_is_its():
    model, words = GPT2.load("mine.bin"), load_vocabulary("mine_vocabulary")
    model.vocabulary = UNKNOWN_VOCABULARY
    model.save("silent.bin")
    assert model_vocabulary("silent.bin").problem
    shutil.copytree("mine_vocabulary", "silent_vocabulary")
    assert model_vocabulary("silent.bin").sha256 == GPT2.load("silent.bin").vocabulary == words.sha256
