"""GGUF files, read back with the gguf package and, where it is installed, by llama.cpp."""

import itertools
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from gpt2 import GPT2, convert
from gpt2.config import GPT2Config
from gpt2.data.chat_vocabulary import OWN_TEMPLATE, chat_vocabulary
from gpt2.data.trained_vocabulary import byte_pairs, characters
from gpt2.data.vocabulary import Vocabulary, save_vocabulary
from gpt2.errors import UserError
from gpt2.formats import gguf_file
from gpt2.formats.llmc import save_model
from gpt2.formats.pretrained import vocabulary_path
from gpt2.formats.tokenizer_folder import TokenizerFolder
from gpt2.inference import sampling
from gpt2.inference.context import Context
from tests.support.numeric import randomise
from tests.support.tokenizer_forms import CORPUS, some_texts
from tests.support.vocabulary import byte_level, pin_byte_vocabulary, write_vocabulary

gguf = pytest.importorskip("gguf")  # the cross-checks' environment does without

SIZES = {"maxT": 160, "L": 2, "NH": 2, "C": 32}
TEXT = CORPUS + "\u00ff\u0101\u4e2d\U0001f600 \t\n"
STORED = {"float32": np.float32, "bfloat16": None, "float16": np.float16, "q8_0": None}


def make(words, path="ours.bin", extra=0, **sizes):
    """Saves a random model of a vocabulary and `extra` unused tokens; returns it."""
    model = GPT2(GPT2Config(**(SIZES | {"V": words.size + extra} | sizes)))
    randomise(model, np.random.default_rng(0))
    save_model(path, model.config, model.params_flat, vocabulary=words.sha256)
    save_vocabulary(words, vocabulary_path(path))
    return model


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def words():
    return byte_pairs([CORPUS], 300)


def fields_of(path):
    """Returns the metadata of a GGUF file, a dict."""
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def expected_tensors(model):
    """Yields (llama.cpp's name, array) of a model, independently of gguf_file."""
    p, V = model.params, model.config.V
    yield from (("token_embd.weight", p["wte"][:V]), ("position_embd.weight", p["wpe"]))
    yield from (("output_norm.weight", p["lnfw"]), ("output_norm.bias", p["lnfb"]))
    layers = {"ln1": "attn_norm", "qkv": "attn_qkv", "attproj": "attn_output", "ln2": "ffn_norm", "fc": "ffn_up"}
    for ours, theirs in (layers | {"fcproj": "ffn_down"}).items():
        for layer in range(model.config.L):
            yield f"blk.{layer}.{theirs}.weight", p[f"{ours}w"][layer]
            yield f"blk.{layer}.{theirs}.bias", p[f"{ours}b"][layer]


def rounded(array, dtype):
    """Returns what a reader makes of an array that was stored as dtype."""
    if dtype == "bfloat16":
        bits = array.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)
    if dtype == "q8_0":
        blocks = array.reshape(-1, 32)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
        steps = np.where(scale > 0, blocks / np.where(scale > 0, scale, 1), 0)
        steps = np.trunc(steps + np.copysign(np.float32(0.5), steps))  # halves away from zero
        return (scale.astype(np.float16).astype(np.float32) * steps).reshape(array.shape)
    return array.astype(STORED[dtype]).astype(np.float32)


@pytest.mark.parametrize("dtype", STORED)
def test_every_tensor_is_the_model_s(folder, words, dtype):
    model = make(words, extra=3)
    convert.convert("ours.bin", "new.gguf", dtype)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader("new.gguf").tensors}
    expected = dict(expected_tensors(model))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        kind = found[name].tensor_type
        assert found[name].shape.tolist() == list(array.shape[::-1])
        stored_float32 = array.ndim == 1 or name == "position_embd.weight"
        assert kind.name == ("F32" if stored_float32 else gguf_file.DTYPES[dtype][0])
        values = gguf.quants.dequantize(found[name].data, kind).reshape(array.shape)
        same = array if stored_float32 else rounded(array, dtype)
        if kind.name == "Q8_0":  # a quotient near a half may go either way
            step = np.abs(array.reshape(-1, 32)).max(axis=1).repeat(32).reshape(array.shape) / 127
            assert np.all(np.abs(values - same) <= 1.001 * step) and np.mean(values != same) < 1e-3
        else:
            assert np.array_equal(values, same)


def test_the_metadata_is_what_llama_cpp_asks_for(folder, words):
    make(words)
    convert.convert("ours.bin", "new.gguf", "q8_0")
    fields = fields_of("new.gguf")
    end = words.ends[0]
    expected = {
        "general.architecture": "gpt2",
        "general.file_type": 7,
        "gpt2.block_count": 2,
        "gpt2.context_length": 160,
        "gpt2.embedding_length": 32,
        "gpt2.feed_forward_length": 128,
        "gpt2.attention.head_count": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": end,
        "tokenizer.ggml.eos_token_id": end,
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: fields[name] for name in expected} == expected
    assert fields["gpt2.attention.layer_norm_epsilon"] == np.float32(1e-5)
    assert fields["tokenizer.ggml.tokens"] == words.tokens
    assert fields["tokenizer.ggml.token_type"] == [1] * 295 + [3] * 5
    merges = json.loads(words.files["tokenizer.json"])["model"]["merges"]
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in merges]
    assert "tokenizer.chat_template" not in fields


def test_a_chat_model_has_its_template_and_both_ends(folder, words):
    chat = chat_vocabulary(words)
    make(chat, extra=2)
    convert.convert("ours.bin", "new.gguf")
    fields = fields_of("new.gguf")
    assert fields["tokenizer.chat_template"] == OWN_TEMPLATE.read_text()
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("eos", "eot")] == list(chat.ends)
    assert len(set(chat.ends)) == 2
    assert fields["tokenizer.ggml.tokens"][-3:] == [chat.tokens[-1], "[PAD300]", "[PAD301]"]
    assert fields["tokenizer.ggml.token_type"][-3:] == [3, 5, 5]


@pytest.mark.slow
def test_gpt2s_own_vocabulary(folder, monkeypatch):
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    pin_byte_vocabulary(monkeypatch, whole=True)
    (folder / "data").mkdir()
    GPT2(GPT2Config(maxT=12, L=1, NH=1, C=4)).save("ours.bin")
    before = set(os.listdir("."))
    with pytest.raises(UserError, match=r"vocab.bpe"):
        convert.convert("ours.bin", "new.gguf")
    assert set(os.listdir(".")) == before
    write_vocabulary(folder / "data", whole=True)
    convert.convert("ours.bin", "new.gguf", "bfloat16")
    fields = fields_of("new.gguf")
    tokens = fields["tokenizer.ggml.tokens"]
    assert (len(tokens), tokens[256], tokens[50256]) == (50257, "\u0120t", "<|endoftext|>")
    assert fields["tokenizer.ggml.merges"][0] == "\u0120 t"
    assert fields["tokenizer.ggml.bos_token_id"] == fields["tokenizer.ggml.eos_token_id"] == 50256


def merged(text, tokens, merges):
    """Returns the ids of a text by byte pairs, the first merge in the list first, as llama.cpp does."""
    pieces = [gguf_file._in_byte_level(character) for character in text]
    symbols, ranks = list("".join(pieces)), {tuple(merge.split(" ")): rank for rank, merge in enumerate(merges)}
    while found := [(ranks[pair], at) for at, pair in enumerate(itertools.pairwise(symbols)) if pair in ranks]:
        _, at = min(found)
        symbols[at : at + 2] = ["".join(symbols[at : at + 2])]
    return [tokens.index(symbol) for symbol in symbols]


def test_characters_become_byte_pairs_of_the_same_ids(folder):
    words = characters([TEXT])
    make(words)
    convert.convert("ours.bin", "new.gguf")
    fields = fields_of("new.gguf")
    tokens, merges = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.merges"]
    assert merged(TEXT, tokens, merges) == words.encode(TEXT)
    assert tokens[-5:] == words.tokens[-5:]  # control tokens, as they are
    assert fields_of_ascii(folder)["tokenizer.ggml.merges"] == [gguf_file.NO_MERGE]


def fields_of_ascii(folder):
    make(characters(["abc"]), "ascii.bin")
    convert.convert("ascii.bin", "ascii.gguf")
    return fields_of("ascii.gguf")


def refused(message, *arguments, **options):
    before = set(os.listdir("."))
    with pytest.raises(UserError, match=message) as caught:
        convert.convert(*arguments, **options)
    assert "\n" not in str(caught.value)
    assert set(os.listdir(".")) == before


def test_dtypes_of_other_targets_stay_refused(folder, words):
    make(words)
    for target in ("new.bin", "new"):
        for dtype in ("float16", "q8_0"):
            message = rf"^--dtype {dtype}: expected one of float32, bfloat16; only a DST in .gguf can be {dtype}$"
            refused(message, "ours.bin", target, dtype)
    refused("^--dtype int4: expected one of float32, bfloat16, float16, q8_0$", "ours.bin", "new.gguf", "int4")


@pytest.mark.parametrize(("dtype", "value"), [("float16", 65600), ("bfloat16", -3.4e38), ("q8_0", 8.4e6)])
def test_a_parameter_too_large_is_refused_by_its_tensor_s_name(folder, words, dtype, value):
    model = make(words)
    model.params["fcw"][1, 2, 3] = value
    save_model("ours.bin", model.config, model.params_flat, vocabulary=words.sha256)
    refused(f"^tensor fcw of layer 1 has a parameter too large for {dtype}; ", "ours.bin", "new.gguf", dtype)
    convert.convert("ours.bin", "new.gguf")


def test_random_weights_are_mentioned(folder, words, capsys):
    model = make(words)
    convert.convert("ours.bin", "new.gguf")
    assert "random" not in capsys.readouterr().out
    save_model("ours.bin", model.config, model.params_flat, untrained=True, vocabulary=words.sha256)
    convert.convert("ours.bin", "new.gguf", force=True)
    assert "the weights are random; a GGUF file does not say so\n" in capsys.readouterr().out


def test_a_chat_template_that_is_not_text_is_refused_before_the_weights_are_read(folder, words, monkeypatch):
    make(chat_vocabulary(words))
    (folder / "ours_vocabulary/chat_template.jinja").write_bytes(b"a\xff")
    monkeypatch.setattr(convert, "load_weights", lambda *_: pytest.fail("read"))
    refused("chat_template.jinja: not UTF-8 at byte 1", "ours.bin", "new.gguf")


def test_q8_0_needs_whole_blocks(folder, words):
    make(words, C=48)
    refused("^--dtype q8_0: it has blocks of 32 channels, the model 48 channels", "ours.bin", "new.gguf", "q8_0")


def test_vocabularies_that_a_gguf_file_cannot_express(folder, monkeypatch):
    make(byte_level(), V=256)
    refused("^ours_vocabulary: its vocabulary has 257 tokens, more than the model's 256$", "ours.bin", "new.gguf")
    GPT2(GPT2Config(**SIZES, V=50)).save("none.bin")
    refused("^a GGUF file needs the model's vocabulary: none.bin: its vocabulary is not", "none.bin", "new.gguf")
    end = "<|endoftext|>"
    foreign = tokenizers.Tokenizer(models.WordLevel({"a": 0, "bc": 1, "[UNK]": 2}, unk_token="[UNK]"))
    foreign.pre_tokenizer = pre_tokenizers.Whitespace()
    digits = tokenizers.Tokenizer.from_str(byte_level().files["tokenizer.json"].decode())
    digits.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(), digits.pre_tokenizer])
    spaced = tokenizers.Tokenizer.from_str(byte_level().files["tokenizer.json"].decode())
    spaced.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for own in (foreign, digits, spaced):
        own.add_special_tokens([end])
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
        files = {"tokenizer.json": own.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
        id = own.token_to_id(end)
        make(Vocabulary(TokenizerFolder(files, tokenizer=own, begin=id, ends=(id,))))
        message = "^ours_vocabulary: a GGUF file cannot express its tokenizer, only a byte-level BPE"
        monkeypatch.setattr(convert, "load_weights", lambda *_: pytest.fail("read"))
        refused(message, "ours.bin", "new.gguf")


def test_without_the_package_nothing_is_written(folder, words, monkeypatch):
    make(words)
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused("^writing GGUF needs the gguf package: pip install gguf$", "ours.bin", "new.gguf")


def test_only_a_gguf_file_is_replaced_and_only_by_force(folder, words):
    make(words)
    convert.convert("ours.bin", "new.gguf", "bfloat16")
    refused("^new.gguf: already exists.*--force", "ours.bin", "new.gguf")
    convert.convert("ours.bin", "new.gguf", force=True)
    assert fields_of("new.gguf")["general.file_type"] == 0
    (folder / "thesis.gguf").write_bytes(b"years of work")
    refused("^thesis.gguf: not a GGUF file, so --force does not replace it", "ours.bin", "thesis.gguf", force=True)
    (folder / "folder.gguf").mkdir()
    refused("^folder.gguf: a folder, but a name in .gguf means a file", "ours.bin", "folder.gguf", force=True)
    assert (folder / "thesis.gguf").read_bytes() == b"years of work"


def test_a_disk_that_fills_up_leaves_the_old_file(folder, words, monkeypatch):
    make(words)
    convert.convert("ours.bin", "new.gguf", "q8_0")
    before = (folder / "new.gguf").read_bytes()

    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", refuse)
    refused("^new.gguf: the disk is full", "ours.bin", "new.gguf", force=True)
    assert (folder / "new.gguf").read_bytes() == before


# llama.cpp itself. GPT2_LLAMA_DIR is the folder in which npm has installed node-llama-cpp, see bench/README.md.
LLAMA = os.environ.get("GPT2_LLAMA_DIR")
LLAMA = LLAMA and os.path.abspath(LLAMA)  # the tests change the working directory
WORKER = pathlib.Path(__file__).parents[2] / "bench/llama_worker.mjs"


def llama(path, prompt, new, texts):
    """Returns what llama.cpp makes of a GGUF file: (greedy tokens, tokens of each of the texts)."""
    module = os.path.join(LLAMA, "node_modules/node-llama-cpp/dist/index.js")
    case = {"name": "text", "prompt": prompt, "new": new, "times": 1}
    job = {"module": module, "gguf": path, "threads": 1, "warmup_tokens": 1, "cases": [case], "texts": texts}
    run = subprocess.run(["node", WORKER, json.dumps(job)], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    answer = json.loads(run.stdout.splitlines()[-1])
    return answer["tokens"]["text"][0], answer["texts"]


@pytest.mark.skipif(not LLAMA, reason="set GPT2_LLAMA_DIR, see bench/README.md")
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bpe", "chat", "chars"])
def test_llama_cpp_generates_the_same_tokens(folder, words, kind):
    words = {"bpe": lambda: words, "chat": lambda: chat_vocabulary(words), "chars": lambda: characters([TEXT])}[kind]()
    texts = ["the thing", TEXT[:200], "\u4e2d\U0001f600\u0101\n\n"] if kind == "chars" else some_texts(100)
    model, prompt = make(words), words.encode("the new")
    context = Context(model.config, model.params_flat, 1, 120)
    context.add([prompt])
    ours = [step[0].id for step in sampling.generate(context, 100, sampling.Sampling(temperature=0), [None])]
    for dtype in gguf_file.DTYPES:
        convert.convert("ours.bin", f"{dtype}.gguf", dtype)
        theirs, ids = llama(f"{dtype}.gguf", prompt, 100, texts)
        assert ids == [words.encode(text) for text in texts]
        assert len(theirs) == 100
        if dtype == "float32":
            assert theirs == ours
    assert len(set(ours)) > 10
