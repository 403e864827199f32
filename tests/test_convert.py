"""Conversions between formats, and transformers reading the folders written here."""

import errno
import json
import os
import sys

import numpy as np
import pytest
import tokenizers

from gpt2 import GPT2, convert
from gpt2.config import GPT2Config
from gpt2.data import tokenizer
from gpt2.data.vocabulary import Vocabulary, held_vocabulary, save_vocabulary
from gpt2.errors import UserError, run_command
from gpt2.formats import files, tensors
from gpt2.formats.huggingface import load_folder
from gpt2.formats.llmc import load_model, save_model, save_tokenizer
from gpt2.formats.pretrained import load_weights, vocabulary_path
from gpt2.formats.tokenizer_folder import TokenizerFolder
from tests.support.foreign import require
from tests.support.numeric import random_batch, randomise
from tests.support.vocabulary import byte_level, byte_vocabulary, pin_byte_vocabulary, write_vocabulary

CONFIG = GPT2Config(maxT=12, V=50, L=2, NH=2, C=8)
WITHOUT_TOKENIZER = {"README.md", "config.json", "generation_config.json", "model.safetensors"}
TOKENIZER = {"merges.txt", "vocab.json", "special_tokens_map.json", "tokenizer_config.json"}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small model, saved as ours.bin in the current folder."""
    monkeypatch.chdir(tmp_path)
    model = GPT2(CONFIG)
    randomise(model, np.random.default_rng(0))
    model.save("ours.bin")
    return model


@pytest.fixture
def gpt2_sized(tmp_path, monkeypatch):
    """A model with GPT-2's vocabulary size, saved as ours.bin in the current folder, and a byte vocabulary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    pin_byte_vocabulary(monkeypatch)
    (tmp_path / "data").mkdir()
    write_vocabulary(tmp_path / "data")
    GPT2(GPT2Config(maxT=12, L=1, NH=1, C=4)).save("ours.bin")


def save_own(words, path):
    """Saves a model with a vocabulary of its own, which is put beside it."""
    model = GPT2(GPT2Config(maxT=12, V=words.size, L=1, NH=1, C=4))
    model.vocabulary = words.sha256
    model.save(path)
    save_vocabulary(words, vocabulary_path(path))


def entries():
    return set(os.listdir("."))


def test_conversion_there_and_back_is_exact(model, tmp_path):
    convert.convert("ours.bin", "folder")
    convert.convert("folder", "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "ours.bin").read_bytes()
    convert.convert("back.bin", "again")
    for name in WITHOUT_TOKENIZER - {"README.md"}:  # which has the folder's name
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "folder" / name).read_bytes()
    assert entries() == {"ours.bin", "back.bin", "back_vocabulary", "folder", "again"}


def test_version_1_becomes_version_3(model, tmp_path):
    header = np.zeros(256, "<i4")
    header[:7] = 20240326, 1, CONFIG.maxT, CONFIG.V, CONFIG.L, CONFIG.NH, CONFIG.C
    tensors = [model.params["wte"][: CONFIG.V], *list(model.params.values())[1:]]
    (tmp_path / "old.bin").write_bytes(header.tobytes() + b"".join(tensor.tobytes() for tensor in tensors))
    convert.convert("old.bin", "new.bin")
    assert (tmp_path / "new.bin").read_bytes() == (tmp_path / "ours.bin").read_bytes()


@pytest.mark.parametrize("target", ["half.bin", "half"])
def test_bfloat16_halves_the_model_and_further_conversions_are_exact(model, tmp_path, target):
    convert.convert("ours.bin", target, "bfloat16")
    _, rounded = load_weights(target)
    assert 0 < np.max(np.abs(rounded - model.params_flat) / np.maximum(np.abs(model.params_flat), 1e-6)) <= 2**-8
    body = tmp_path / target if target.endswith(".bin") else tmp_path / target / "model.safetensors"
    assert body.stat().st_size < 0.8 * (tmp_path / "ours.bin").stat().st_size  # the headers are large in comparison
    convert.convert(target, "whole.bin")
    assert np.array_equal(load_model("whole.bin")[1], rounded)
    convert.convert("whole.bin", "again.bin", "bfloat16")
    assert np.array_equal(load_model("again.bin")[1], rounded)


def test_it_reports_what_it_read_and_wrote(model, capsys):
    convert.convert("ours.bin", "folder")
    convert.convert("folder", "back.bin", "bfloat16")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "no tokenizer: ours.bin: its vocabulary is not GPT-2's, and not beside it"
    assert lines[1].startswith(f"read ours.bin: {CONFIG.num_parameters:,} parameters, ")
    assert lines[2].startswith("wrote folder: Hugging Face folder, float32, 0.0 MB, ")
    assert lines[3] == "no tokenizer: folder: no tokenizer.json there, nor vocab.json with merges.txt"
    assert lines[5].startswith("wrote back.bin: llm.c version 5, bfloat16, 0.0 MB, ")
    assert set(os.listdir("folder")) == WITHOUT_TOKENIZER


def test_shards_there_and_back_and_replaced_by_force(model, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "SHARD_BYTES", 2000)
        convert.convert("ours.bin", "folder")
        assert len(list((tmp_path / "folder").glob("model-*-of-*.safetensors"))) > 2
        convert.convert("folder", "folder", force=True)
    convert.convert("folder", "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == (tmp_path / "ours.bin").read_bytes()
    convert.convert("back.bin", "folder", force=True)
    assert set(os.listdir("folder")) == WITHOUT_TOKENIZER
    (tmp_path / "folder" / "adapter_model.safetensors").write_bytes(b"")
    refused("^folder: contains 'adapter_model.safetensors'", "ours.bin", "folder", force=True)


def test_an_unavailable_vocabulary_is_left_out(gpt2_sized, monkeypatch, capsys):
    def unavailable(data_dir):
        raise UserError("no vocabulary")

    monkeypatch.setattr(tokenizer, "vocabulary_files", unavailable)
    convert.convert("ours.bin", "folder")
    assert "no tokenizer: no vocabulary\n" in capsys.readouterr().out
    assert set(os.listdir("folder")) == WITHOUT_TOKENIZER


def test_random_weights_stay_flagged_in_model_files_and_are_mentioned_for_a_folder(model, capsys):
    GPT2(CONFIG).save("random.bin")
    convert.convert("random.bin", "half.bin", "bfloat16")
    convert.convert("half.bin", "whole.bin")
    assert [GPT2.load(name).is_untrained for name in ("ours.bin", "half.bin", "whole.bin")] == [False, True, True]
    assert "random" not in capsys.readouterr().out.replace("random.bin", "")
    convert.convert("whole.bin", "folder")
    assert "the weights are random; the folder does not say so" in capsys.readouterr().out
    convert.convert("folder", "back.bin")
    assert not GPT2.load("back.bin").is_untrained and not GPT2.load("folder").is_untrained


def test_the_vocabulary_is_included(gpt2_sized, tmp_path):
    convert.convert("ours.bin", "folder")
    folder = tmp_path / "folder"
    assert set(os.listdir("folder")) == WITHOUT_TOKENIZER | TOKENIZER
    assert (folder / "merges.txt").read_bytes() == byte_vocabulary()["vocab.bpe"]
    assert (folder / "vocab.json").read_bytes() == byte_vocabulary()["encoder.json"]
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    assert (settings["tokenizer_class"], settings["model_max_length"]) == ("GPT2Tokenizer", 12)
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] == 50256


def refused(message, *arguments, **options):
    before = entries()
    with pytest.raises(UserError, match=message) as caught:
        convert.convert(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert entries() == before


def test_an_existing_target_is_refused_before_anything_is_read(model, monkeypatch):
    for target in ("there.bin", "there"):
        convert.convert("ours.bin", target)
    monkeypatch.setattr(convert, "load_weights", lambda *args: pytest.fail("read"))
    for target in ("there.bin", "there"):
        refused(f"^{target}: already exists.*--force", "ours.bin", target)


def test_force_replaces_the_whole_target(model, tmp_path):
    other = GPT2(CONFIG, seed=1)
    other.save("there.bin")
    convert.convert("there.bin", "there")
    (tmp_path / "there" / "tokenizer.json").write_bytes(b"of an older model")
    convert.convert("ours.bin", "there", force=True)
    convert.convert("ours.bin", "there.bin", force=True)
    assert set(os.listdir("there")) == WITHOUT_TOKENIZER
    assert np.array_equal(load_folder("there")[1], model.params_flat)
    assert (tmp_path / "there.bin").read_bytes() == (tmp_path / "ours.bin").read_bytes()
    assert entries() == {"ours.bin", "there", "there.bin"}


def test_a_model_can_replace_itself(model):
    convert.convert("ours.bin", "folder")
    convert.convert("folder", "folder", "bfloat16", force=True)
    assert np.allclose(load_folder("folder")[1], model.params_flat, rtol=2**-8, atol=0)


def test_force_does_not_replace_other_files(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.txt").write_text("years of work")
    refused("^thesis: contains 'chapter1.txt', which is not part of a model", "ours.bin", "thesis", force=True)
    convert.convert("ours.bin", "run")
    (tmp_path / "run" / "checkpoint-500").mkdir()
    refused("^run: contains 'checkpoint-500'", "ours.bin", "run", force=True)
    (tmp_path / "tokens.bin").write_bytes(b"1234567")
    refused("^tokens.bin: not a model file, so --force does not replace it", "ours.bin", "tokens.bin", force=True)


def test_a_folder_s_own_vocabulary_is_copied(model, tmp_path):
    convert.convert("ours.bin", "one")
    (tmp_path / "one" / "vocab.json").write_text("{}")
    (tmp_path / "one" / "merges.txt").write_text("#version: 0.2")
    convert.convert("one", "two")
    assert (tmp_path / "two" / "vocab.json").read_text() == "{}"
    assert (tmp_path / "two" / "merges.txt").read_text() == "#version: 0.2"


@pytest.mark.parametrize("name", ["special_tokens_map.json", "tokenizer_config.json"])
def test_a_folder_s_own_settings_are_kept(model, tmp_path, name):
    convert.convert("ours.bin", "one")
    (tmp_path / "one" / "vocab.json").write_text("{}")
    (tmp_path / "one" / name).write_text('{"eos_token": "[END]"}')
    convert.convert("one", "two")
    assert set(os.listdir("two")) == WITHOUT_TOKENIZER | {"vocab.json", name}
    assert (tmp_path / "two" / name).read_text() == '{"eos_token": "[END]"}'


def test_settings_without_a_vocabulary_are_not_gpt2s(gpt2_sized, tmp_path, capsys):
    convert.convert("ours.bin", "one")
    for name in TOKENIZER - {"tokenizer_config.json"}:
        (tmp_path / "one" / name).unlink()
    convert.convert("one", "two")
    assert "no tokenizer: one: no tokenizer.json there, nor vocab.json with merges.txt\n" in capsys.readouterr().out
    assert set(os.listdir("two")) == WITHOUT_TOKENIZER | {"tokenizer_config.json"}


def test_a_released_model_does_not_take_the_vocabulary_of_a_folder_of_its_name(gpt2_sized, tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    (tmp_path / "gpt2" / "vocab.json").write_text("{}")
    monkeypatch.setattr(convert, "load_weights", lambda *_: load_model("ours.bin"))
    convert.convert("gpt2", "new")
    assert (tmp_path / "new" / "vocab.json").read_bytes() == byte_vocabulary()["encoder.json"]


def test_a_link_to_a_folder_stays(model, tmp_path):
    convert.convert("ours.bin", "folder")
    (tmp_path / "link").symlink_to("folder")
    convert.convert("ours.bin", "link/", force=True)
    assert (tmp_path / "link").is_symlink()


def test_a_parameter_too_large_for_bfloat16_is_refused(model):
    model.params["fcw"][1, 2, 3] = 3.4e38
    save_model("ours.bin", CONFIG, model.params_flat)
    for target in ("new.bin", "new"):
        refused("too large for bfloat16", "ours.bin", target, dtype="bfloat16")


def test_the_target_s_name_determines_the_format(model, tmp_path):
    (tmp_path / "folder.bin").mkdir()
    refused(r"^folder.bin: a folder, but a name in .bin means a file", "ours.bin", "folder.bin", force=True)
    (tmp_path / "model").write_bytes(b"")
    refused(r"^model: a file, but", "ours.bin", "model", force=True)
    advice = "choose a name in .bin or .gguf, or, for a Hugging Face folder, one without a suffix$"
    message = rf"^new\.safetensors: no form that convert writes ends in \.safetensors; {advice}"
    refused(message, "ours.bin", "new.safetensors")
    convert.convert("ours.bin", "small-v1.5")  # no suffix of a file
    assert load_folder("small-v1.5")[0] == CONFIG


def test_other_errors(model):
    refused("^--dtype float64: expected one of float32, bfloat16$", "ours.bin", "new.bin", dtype="float64")
    refused("^missing: no such folder", "ours.bin", "missing/new.bin")
    refused("^missing.bin: No such file", "missing.bin", "new")
    refused("^nothing: no such file or folder", "nothing", "new")


@pytest.mark.parametrize("target", ["new.bin", "new"])
def test_a_model_with_a_non_finite_parameter_is_refused(model, target):
    model.params["fcw"][1, 2, 3] = np.inf
    save_model("ours.bin", CONFIG, model.params_flat)
    refused("^ours.bin: tensor fcw contains a NaN or an infinity", "ours.bin", target)


# Tokenizers.


@pytest.fixture
def small_vocabulary(model):
    """Gives ours.bin a vocabulary of its own: the 256 bytes, " t" and <|endoftext|>; returns that."""
    words = byte_level(b" t")
    save_own(words, "ours.bin")
    return words


def read_tokenizer(path):
    """Returns (header, tokens) as llm.c's tokenizer.h reads them."""
    with open(path, "rb") as file:
        header = np.frombuffer(file.read(1024), "<u4")
        tokens = [file.read(file.read(1)[0]) for _ in range(header[2])]
        assert not file.read()
    return header, tokens


def convert_tokenizer(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["convert", *arguments, "--tokenizer"])
    convert.main()


@pytest.mark.parametrize("source", ["ours.bin", "folder"])
def test_the_tokenizer_file_is_llmcs(small_vocabulary, monkeypatch, capsys, source):
    convert.convert("ours.bin", "folder")
    convert_tokenizer(monkeypatch, source, "gpt2_tokenizer.bin")
    assert "wrote gpt2_tokenizer.bin: llm.c tokenizer version 2, 258 tokens\n" in capsys.readouterr().out
    header, tokens = read_tokenizer("gpt2_tokenizer.bin")
    assert header[:5].tolist() == [20240328, 2, 258, 257, 0] and not header[5:].any()
    assert tokens[256:] == [b" t", b"<|endoftext|>"]
    assert tokens[:256] == [bytes([byte]) for byte in range(256)]
    for text in ("the other, then the end", "Zürich 東京\n"):
        assert b"".join(tokens[token] for token in small_vocabulary.encode(text)) == text.encode()


def test_the_tokenizer_file_of_gpt2(gpt2_sized, tmp_path, monkeypatch):
    pin_byte_vocabulary(monkeypatch, whole=True)
    write_vocabulary(tmp_path / "data", whole=True)
    convert_tokenizer(monkeypatch, "ours.bin", "gpt2_tokenizer.bin")
    header, tokens = read_tokenizer("gpt2_tokenizer.bin")
    assert header[:5].tolist() == [20240328, 2, 50257, 50256, 0]
    assert sorted(tokens[:256]) == [bytes([byte]) for byte in range(256)]
    assert (tokens[256], tokens[50256]) == (b" t", b"<|endoftext|>")


def test_a_tokenizer_file_is_replaced_only_by_force(small_vocabulary, tmp_path, monkeypatch):
    convert_tokenizer(monkeypatch, "ours.bin", "tokenizer.bin")
    whole = (tmp_path / "tokenizer.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(whole[:2000])
    for arguments, message in (
        (["ours.bin", "tokenizer.bin"], "^tokenizer.bin: already exists"),
        (["ours.bin", "ours.bin", "--force"], "^ours.bin: not a tokenizer file, so --force does not replace it"),
        (["ours.bin", "tokenizer"], "^tokenizer: a tokenizer file's name ends in .bin"),
        (["ours.bin", "data", "--force"], "^data: a tokenizer file's name ends in .bin"),
        (["ours.bin", "none/tokenizer.bin"], "^none: no such folder"),
        (["none.bin", "new.bin"], "^none.bin: No such file"),
    ):
        before = entries()
        with pytest.raises(UserError, match=message):
            convert_tokenizer(monkeypatch, *arguments)
        assert entries() == before
    convert_tokenizer(monkeypatch, "ours.bin", "tokenizer.bin", "--force")
    assert (tmp_path / "tokenizer.bin").read_bytes() == whole
    refused("^tokenizer.bin: not a model file, so --force", "ours.bin", "tokenizer.bin", force=True)


def test_a_vocabulary_that_is_unknown_or_not_of_bytes_becomes_no_tokenizer_file(model, monkeypatch):
    with pytest.raises(UserError, match=r"^no tokenizer file: ours.bin: its vocabulary is not GPT-2's"):
        convert_tokenizer(monkeypatch, "ours.bin", "tokenizer.bin")
    own = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    own.decoder = tokenizers.decoders.WordPiece()
    save_own(Vocabulary(TokenizerFolder({"tokenizer.json": own.to_str().encode()}, tokenizer=own)), "ours.bin")
    with pytest.raises(UserError, match=r"^no tokenizer file: ours.bin: its tokens are not the bytes of a text$"):
        convert_tokenizer(monkeypatch, "ours.bin", "tokenizer.bin")
    assert "tokenizer.bin" not in entries()


@pytest.mark.parametrize("length", [0, 256])
def test_a_token_too_long_for_a_tokenizer_file(tmp_path, length):
    with pytest.raises(UserError, match=f"token 1 has {length} bytes, a tokenizer file takes 1 to 255"):
        save_tokenizer(tmp_path / "tokenizer.bin", [b"a", b"b" * length], 0)
    assert not list(tmp_path.iterdir())
    save_tokenizer(tmp_path / "tokenizer.bin", [b"a", b"b" * 255], 0)
    assert read_tokenizer(tmp_path / "tokenizer.bin")[1] == [b"a", b"b" * 255]


def test_tokenizer_excludes_dtype(model, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        convert_tokenizer(monkeypatch, "ours.bin", "tokenizer.bin", "--dtype", "bfloat16")
    assert "excludes --dtype" in capsys.readouterr().err


def no_exchange(*paths):
    raise OSError(errno.EINVAL, "Invalid argument")


def test_a_conversion_killed_between_two_renames_is_named_by_the_next(model, tmp_path, capsys):
    convert.convert("ours.bin", "folder")
    old = tmp_path / ".folder.abcd_123" / "old"
    old.parent.mkdir()
    os.rename("folder", old)
    convert.convert("ours.bin", "folder")
    printed = capsys.readouterr().out
    assert "folder: replacing it was interrupted; what it was is now .folder.abcd_123/old\n" in printed
    assert np.array_equal(load_folder(old)[1], load_folder("folder")[1])


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_the_old_model(model, tmp_path, monkeypatch, call, force):
    rename = os.rename

    def refuse(*arguments):
        if call == "rename" and arguments[0].name != "new":
            return rename(*arguments)
        raise OSError(errno.ENOSPC, "No space left on device")

    if force:
        GPT2(CONFIG, seed=1).save("other.bin")
        convert.convert("other.bin", "folder")
        before = load_folder("folder")[1]
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        patch.setattr(files, "_exchange", no_exchange)
        refused("^folder: the disk is full", "ours.bin", "folder", force=force)
    if force:
        assert np.array_equal(load_folder("folder")[1], before)


def test_a_full_disk_leaves_the_old_model_file_its_vocabulary(model, monkeypatch):
    save_own(byte_level(), "own.bin")
    before = held_vocabulary("own_vocabulary")

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpt2.formats.llmc.write_floats", refuse)
    refused("^own.bin: the disk is full", "ours.bin", "own.bin", force=True)
    assert held_vocabulary("own_vocabulary") == before


def test_a_disk_that_fills_up_during_the_write(model, monkeypatch):
    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("gpt2.formats.tensors.write_floats", refuse)
    refused("^folder: the disk is full", "ours.bin", "folder")


@pytest.mark.skipif(os.name != "posix", reason="permission bits")
def test_a_folder_has_the_permissions_of_any_new_one(model, tmp_path):
    convert.convert("ours.bin", "folder")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "folder").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ours.bin", "new", "--dtype", "int8"], "error: --dtype int8: expected one of float32, bfloat16"),
        (["ours.bin", "ours.bin"], "error: ours.bin: already exists; choose another name, or replace it with --force"),
    ],
)
def test_the_command_s_errors_are_one_line(model, monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["convert", *arguments])
    with pytest.raises(SystemExit) as caught:
        run_command(convert.main)
    assert caught.value.code == message


def test_the_command(model, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["convert", "ours.bin", "new.bin", "--dtype", "bfloat16"])
    convert.main()
    with files.open_to_read("new.bin") as file:
        assert files.read_header(file, "new.bin", "a model file")[1] == 5
    monkeypatch.setattr(sys, "argv", ["convert", "ours.bin", "new.bin", "--force"])
    convert.main()
    assert np.array_equal(load_model("new.bin")[1], model.params_flat)


@pytest.mark.crosscheck
@pytest.mark.parametrize("limit", [None, 2000])
def test_transformers_reads_the_folder(model, monkeypatch, limit):
    torch = require("torch")
    transformers = require("transformers")
    if limit:
        monkeypatch.setattr(tensors, "SHARD_BYTES", limit)
    convert.convert("ours.bin", "folder")
    assert os.path.exists("folder/model.safetensors.index.json") == bool(limit)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained("folder", output_loading_info=True)
    assert not any(report.values()), report
    tokens, _ = random_batch(CONFIG, 3, 12, np.random.default_rng(1))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    assert np.max(np.abs(logits - model.logits(tokens))) < 1e-4


@pytest.mark.crosscheck
@pytest.mark.parametrize("limit", ["50GB", "2KB"])
def test_our_reader_reads_a_folder_of_transformers(model, limit):
    require("torch")
    transformers = require("transformers")
    convert.convert("ours.bin", "folder")
    transformers.GPT2LMHeadModel.from_pretrained("folder").save_pretrained("theirs", max_shard_size=limit)
    assert os.path.exists("theirs/model.safetensors.index.json") == (limit == "2KB")
    assert np.array_equal(load_folder("theirs")[1], model.params_flat)


@pytest.mark.crosscheck
def test_gelu_fast_is_the_same_function_in_transformers(model):
    torch = require("torch")
    transformers = require("transformers")
    convert.convert("ours.bin", "folder")
    theirs = transformers.GPT2LMHeadModel.from_pretrained("folder", activation_function="gelu_fast")
    theirs.save_pretrained("theirs")
    assert np.array_equal(load_folder("theirs")[1], model.params_flat)
    tokens, _ = random_batch(CONFIG, 3, 12, np.random.default_rng(1))
    with torch.no_grad():
        logits = theirs(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    assert np.max(np.abs(logits - model.logits(tokens))) < 1e-4


@pytest.mark.crosscheck
def test_the_tokenizer_of_transformers_gives_the_same_ids(gpt2_sized):
    transformers = require("transformers")
    convert.convert("ours.bin", "folder")
    theirs, ours = transformers.GPT2TokenizerFast.from_pretrained("folder"), tokenizer.load_tokenizer()
    assert theirs.eos_token_id == theirs.bos_token_id == 50256
    for text in ("the other, then the end", " two  spaces\n\n", "Zürich 東京", "don't"):
        ids = ours.encode_ordinary(text)
        assert theirs(text)["input_ids"] == ids
        assert theirs.decode(ids) == text
    assert 256 in ours.encode_ordinary("to the end")  # " t", the only merge
