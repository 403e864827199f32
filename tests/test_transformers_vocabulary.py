"""Cross-checks of vocabularies with transformers: ids, texts and generation, for each form of a tokenizer's folder.

Where transformers is known to be wrong, the tests keep clear of it: it decodes an added token "café" as "caf\\ufffd",
and of tokens that are bytes, it takes good ones before a bad one for bad, too.
"""

import io
import json
import random
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, convert, generate
from gpt2.data import download, tokenizer
from gpt2.data.trained_vocabulary import byte_pairs, characters
from gpt2.data.vocabulary import GPT2Vocabulary, load_vocabulary, save_vocabulary
from gpt2.formats import files
from tests.support.foreign import require
from tests.support.numeric import randomise
from tests.support.tokenizer_forms import (
    CONTROL,
    CORPUS,
    FORMS,
    NAMES,
    byte_level,
    complete,
    pairs_of_bytes,
    some_texts,
    write,
    write_vocab_and_merges,
)

pytestmark = pytest.mark.crosscheck

TEXTS = some_texts(1000)
LENGTH, PASSED, ENDING = 30, 9, 20  # of a continuation; places in the context, see `save_model`


def their_tokenizer(folder):
    return require("transformers").AutoTokenizer.from_pretrained(folder)


def check_same(folder):
    """Checks that we read a folder's vocabulary as transformers does. Returns ours."""
    theirs, ours = their_tokenizer(folder), load_vocabulary(folder)
    assert {token: id for id, token in enumerate(ours.tokens) if token is not None} == theirs.get_vocab()
    encoded = theirs(TEXTS, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    for text, ids in zip(TEXTS, encoded, strict=True):
        assert ours.encode(text) == ids, text
    assert ours.encode_all(TEXTS) == encoded
    whole = theirs("the", split_special_tokens=True)["input_ids"]
    start = [*ours.prefix, *ours.encode("the")]
    assert whole[: len(start)] == start and set(whole[len(start) :]) <= {theirs.sep_token_id}
    rng = random.Random(2)
    drawn = [[rng.randrange(ours.size + 3) for _ in range(rng.randint(1, 12))] for _ in range(300)]
    is_fallback = "<0x00>" in ours.tokens
    for ids in encoded if is_fallback else encoded + drawn:
        text, decoder = theirs.decode(ids), ours.decoder()
        assert ours.decode(ids) == text, ids
        assert "".join([*map(decoder.feed, ids), decoder.finish()]) == text, ids
    return ours


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_ids_and_texts(name, tmp_path):
    FORMS[name](tmp_path)
    write(tmp_path, "config.json", {"model_type": "gpt2", "vocab_size": 70_000})
    ours = check_same(tmp_path)
    again = tmp_path / "again"
    their_tokenizer(tmp_path).save_pretrained(again)
    write(again, "config.json", {"model_type": "gpt2", "vocab_size": 70_000})
    assert check_same(again).sha256 == ours.sha256 and ours.sha256 is not None


def save_model(folder, V, end, passed, config=None, generation=None):
    """Saves a random model of transformers', which predicts `end` at the place ENDING of any text, `passed` at PASSED.

    config, generation: what config.json says besides, what generation_config.json says; None: there is none.
    """
    torch, transformers = require("torch"), require("transformers")
    torch.manual_seed(V)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=V, n_embd=32, n_layer=1, n_head=2, n_positions=64)
    )
    parts = model.transformer
    with torch.no_grad():
        for embedding, scale in ((parts.wte, 1), (parts.wpe, 3)):
            embedding.weight.normal_(0, scale)
        for place, id in ((ENDING, end), (PASSED, passed)):
            parts.wpe.weight[place] = 100 * parts.wte.weight[id]
    model.save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())
    fields = {key: value for key, value in fields.items() if key not in ("bos_token_id", "eos_token_id")}
    write(folder, "config.json", fields | (config or {}))
    (folder / "generation_config.json").unlink()
    if generation is not None:
        write(folder, "generation_config.json", generation)


def their_text(folder, prompt, **options):
    """Returns (text, ids) of generate()'s greedy continuation; the text is without the id that ends it."""
    torch, transformers = require("torch"), require("transformers")
    torch.set_num_threads(1)  # more are slower, for so small a model
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = their_tokenizer(folder)
    start = {} if prompt is None else {"input_ids": torch.tensor([tokenizer(prompt)["input_ids"]])}
    ids = model.generate(**start, do_sample=False, max_new_tokens=LENGTH, pad_token_id=0, **options)[0].tolist()
    ids = ids[start["input_ids"].shape[1] if start else 1 :]
    ends = model.generation_config.eos_token_id
    ended = ids[-1] in (ends if isinstance(ends, list) else [ends])
    return tokenizer.decode(ids[:-1] if ended else ids), ids


def our_text(folder, prompt, capsys, *options):
    """Returns what python -m gpt2.generate prints, without the end of the line."""
    capsys.readouterr()
    start = [] if prompt is None else ["--prompt", prompt]
    sampling = options or ["--temperature", "0"]
    generate.main(["--model", str(folder), "--max-new-tokens", str(LENGTH), *start, *sampling])
    out = capsys.readouterr().out
    assert out.endswith("\n")
    return out[:-1]


def check_generation(folder, capsys, ends=True, starts=True):
    """Checks that the same continuations come out, with a prompt and without one, and by beam search.

    ends: whether they do within LENGTH ids. starts: whether generate() does without a prompt.
    """
    for prompt in ["the thing", None] if starts else ["the thing"]:
        text, ids = their_text(folder, prompt)
        assert our_text(folder, prompt, capsys) == text, prompt
        assert len(set(ids)) > 5 and (len(ids) < LENGTH) == ends, ids
        text, _ = their_text(folder, prompt, num_beams=3, early_stopping=False)
        assert our_text(folder, prompt, capsys, "--num-beams", "3") == text, prompt


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder. Nothing is in the standard input, or in the data folder."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


GPT2_FILES = {"vocab.bpe": "merges.txt", "encoder.json": "vocab.json"}
GPT2_IDS = {"bos_token_id": 50256, "eos_token_id": 50256}


def test_gpt2s_own(folder, capsys):
    for ours, theirs in GPT2_FILES.items():
        if not (files.data_dir() / ours).is_file():
            pytest.skip("GPT-2's vocabulary files are not in the data folder")
        write(folder, theirs, (files.data_dir() / ours).read_text())
    save_model(folder, 50257, 50256, 13, GPT2_IDS)
    assert check_same(folder).sha256 is None
    check_generation(folder, capsys)
    their_tokenizer(folder).save_pretrained(folder / "again")
    assert load_vocabulary(folder / "again").sha256 is None


def test_another_language_with_as_many_tokens_as_gpt2s(folder, capsys):
    assert write_vocab_and_merges(folder, *pairs_of_bytes(50257)) == 50257
    save_model(folder, 50257, 50256, 13, GPT2_IDS)
    assert check_same(folder).sha256 is not None
    check_generation(folder, capsys)


@pytest.mark.parametrize("added", [["<pad>"], ["<start of turn>", "New York", "日本", "New Yorker"]])
def test_added_tokens(folder, capsys, added):
    tokenizer = byte_level()
    size = tokenizer.get_vocab_size()
    tokenizer.add_special_tokens(added[:1])
    tokenizer.add_tokens(added[1:])
    complete(tokenizer, "GPT2Tokenizer")(folder)
    ids = {"bos_token_id": size - 1, "eos_token_id": size - 1}
    for last in added:
        save_model(folder, size + len(added), size - 1, tokenizer.token_to_id(last), ids)
        assert last in our_text(folder, "the thing", capsys)
    check_generation(folder, capsys)
    assert check_same(folder).size == size + len(added)


def test_padded_vocabulary(folder, capsys):
    complete(byte_level(), "GPT2Tokenizer")(folder)
    size = load_vocabulary(folder).size
    ids = {"bos_token_id": size - 1, "eos_token_id": size - 1}
    save_model(folder, size + 47, size - 1, size + 20, ids)  # an id without a token among the others
    check_same(folder)
    check_generation(folder, capsys)


BOTH = {"bos_token_id": 0, "eos_token_id": 2}
OTHER = {"bos_token_id": 1, "eos_token_id": 5}


@pytest.mark.parametrize(
    ("config", "generation", "end", "passed"),
    [
        (BOTH, None, 2, 5),
        (OTHER, BOTH, 2, 5),
        (OTHER, {"bos_token_id": 0, "eos_token_id": [7, 2]}, 2, 5),
        ({"bos_token_id": 0, "eos_token_id": [2, 7]}, None, 7, 5),
        ({}, BOTH, 2, 5),
        (BOTH, {"bos_token_id": 0}, None, 2),
        (BOTH, {"bos_token_id": 0, "eos_token_id": None}, None, 2),
        ({"bos_token_id": 0, "eos_token_id": None}, None, None, 2),
        ({"eos_token_id": 2}, None, 2, 5),
        (BOTH, {"eos_token_id": 2}, 2, 5),
    ],
)
def test_begin_and_end_at_other_ids(folder, capsys, config, generation, end, passed):
    complete(byte_level(first=CONTROL, last=()), "GPT2Tokenizer", **NAMES)(folder)
    save_model(folder, 600, 9 if end is None else end, passed, config, generation)
    check_generation(
        folder, capsys, ends=end is not None, starts="bos_token_id" in (config if generation is None else generation)
    )
    if end == 2:
        assert load_vocabulary(folder).begin == 0  # without an id, the tokenizer's


def stand_in_for_gpt2s(folder, monkeypatch):
    """Makes `folder` the data folder, with another vocabulary of GPT-2's size in place of its."""
    vocab, merges = pairs_of_bytes(50257, first="")
    write(folder, "encoder.json", vocab)
    write(folder, "vocab.bpe", "\n".join(["#version: 0.2", *merges, ""]))
    pins = {name: download.Pin((folder / name).stat().st_size, files.sha256(folder / name)) for name in GPT2_FILES}
    monkeypatch.setattr(tokenizer, "VOCAB_FILES", pins)
    monkeypatch.setenv("GPT2_DATA_DIR", str(folder))


def characters_and_pairs():
    text = "".join(dict.fromkeys("the thing is being\n" + CORPUS))
    return {"chars": characters([text]), "bpe:300": byte_pairs([CORPUS], 300)}


@pytest.mark.parametrize("name", ["chars", "bpe:300", "gpt2"])
def test_a_folder_written_here_is_read_alike(folder, capsys, monkeypatch, name):
    monkeypatch.chdir(folder)
    if name == "gpt2":
        stand_in_for_gpt2s(folder, monkeypatch)
    words = characters_and_pairs().get(name) or GPT2Vocabulary()
    model = GPT2(GPT2Config(maxT=64, V=words.size, L=1, NH=2, C=32))
    randomise(model, np.random.default_rng(3))
    for tensor, scale in (("wte", 10), ("wpe", 30)):
        model.params[tensor] *= scale
    model.params["wpe"][ENDING] = 100 * model.params["wte"][words.begin]
    model.vocabulary = words.sha256
    model.save("ours.bin")
    save_vocabulary(words, "ours_vocabulary")
    convert.convert("ours.bin", "theirs")
    theirs = their_tokenizer("theirs")
    known = set(words.tokens) if name == "chars" else None
    for text in TEXTS[:300]:
        text = "".join(filter(known.__contains__, text)) if known else text
        assert theirs(text, split_special_tokens=True)["input_ids"] == words.encode(text), text
        assert theirs.decode(words.encode(text)) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, len(theirs)) == (
        words.begin,
        words.begin,
        words.size,
    )
    check_generation(folder / "theirs", capsys)
    for prompt in ("the thing", None):
        assert our_text("ours.bin", prompt, capsys) == our_text("theirs", prompt, capsys)


SAID_ANEW = ("dtype", "activation_function")
THERE_AND_BACK = ("2020", "2021", "2023", "vocab, merges, settings", "BPE with byte fallback", "WordPiece")


@pytest.mark.parametrize("name", THERE_AND_BACK)
def test_there_and_back_a_folder_is_the_same_to_transformers(folder, monkeypatch, name):
    monkeypatch.chdir(folder)
    (folder / "theirs").mkdir()
    FORMS[name](folder / "theirs")
    size = load_vocabulary("theirs").size
    save_model(folder / "theirs", size, 3, 4, {"bos_token_id": 2, "x": 1}, {"eos_token_id": [3, 7], "top_k": 5})
    convert.convert("theirs", "ours.bin")
    convert.convert("ours.bin", "back")
    before, after = (their_tokenizer(name) for name in ("theirs", "back"))
    assert before.get_vocab() == after.get_vocab() and before.special_tokens_map == after.special_tokens_map
    assert before.added_tokens_decoder == after.added_tokens_decoder
    for options in ({}, {"split_special_tokens": True}):
        assert before(TEXTS, **options)["input_ids"] == after(TEXTS, **options)["input_ids"]
    configs = [json.loads((folder / each / "config.json").read_text()) for each in ("theirs", "back")]
    assert configs[1] == configs[0] | {"n_ctx": 64} | {key: configs[1][key] for key in SAID_ANEW}
    generation = "generation_config.json"
    assert (folder / "back" / generation).read_bytes() == (folder / "theirs" / generation).read_bytes()
