"""The page of python -m gpt2.inspect holds what the model computes, and no text can break it."""

import json
import os
import pathlib

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.run import checkpoint_paths
from gpt2.inspect import main
from gpt2.pages import MOST_TOKENS
from gpt2.pages.inspection import _packed, inspect
from tests import reference
from tests.support.pages import CONFIG, WORDS, page_data, save_model, unpacked

NASTY = "</script><script>alert(\"1\")</script> '&amp;' \x00\x1b[31m\t\u202e\n<!-- \u2028"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A small model, saved as ours.bin in the current folder."""
    monkeypatch.chdir(tmp_path)
    return save_model("ours.bin")


def test_numbers_equal_the_reference(model):
    text = "Speak, speak."
    page, count, (loss,) = inspect("ours.bin", text)
    data = page_data(page)
    tokens = np.frombuffer(text.encode(), np.uint8).astype(int)
    assert data["tokens"] == tokens.tolist()
    assert count == len(text)
    (shown,) = data["models"]
    logits, trace = reference.forward(model.params, CONFIG, tokens[None])
    for layer, block in enumerate(trace[: CONFIG.L]):
        found = unpacked(shown["attention"][layer], CONFIG.NH, count)
        expected = reference.softmax(reference.attention_scores(block["qkv"], CONFIG.NH))[0]
        assert np.abs(found - expected).max() < 2e-5
    losses = reference.cross_entropy(logits[0, :-1], tokens[1:])
    assert np.abs(np.array(shown["losses"][-1]) - losses).max() < 1e-4
    assert loss == pytest.approx(losses.mean(), abs=1e-5)
    likeliest = np.argsort(-logits[0], axis=-1)[:, :5]
    assert shown["guesses"][-1] == likeliest.tolist()
    probabilities = np.take_along_axis(reference.softmax(logits[0]), likeliest, axis=-1)
    assert np.abs(np.array(shown["probabilities"][-1]) - probabilities).max() < 1e-5


def test_spread_tells_an_even_head_from_one_that_looks_at_a_single_token(model):
    model.params["qkvw"][0] = model.params["qkvb"][0] = 0
    model.params["qkvb"][1, : CONFIG.C] = 100  # the same query everywhere: the largest key of all
    model.save("ours.bin")
    spread = page_data(inspect("ours.bin", "to be or not")[0])["models"][0]["spread"]
    assert np.allclose(spread[0], 1)
    assert np.max(spread[1]) < 0.5


def test_a_text_cannot_leave_its_place(model):
    page = inspect("ours.bin", NASTY)[0].decode()
    assert page.count("<script") == page.count("</script") == 2
    assert "\x00" not in page
    assert "\x1b" not in page
    data = page_data(page.encode())
    ascii_part = "".join(data["labels"][str(id)] for id in data["tokens"] if id < 128)
    assert ascii_part == NASTY.encode().decode("ascii", "ignore")


def test_a_character_of_several_tokens_is_named_at_each(model):
    data = page_data(inspect("ours.bin", "a\u00e9b\U0001f600")[0])
    assert data["divided"] == {"1": "\u00e9", "2": "\u00e9"} | {str(i): "\U0001f600" for i in range(4, 8)}
    assert [data["labels"][str(id)] for id in data["tokens"][:4]] == ["a", "\udcc3", "\udca9", "b"]


def test_two_models(model):
    other = save_model("other.bin", seed=2, config=GPT2Config(maxT=40, V=WORDS.size, L=1, NH=4, C=8))
    data = page_data(inspect("ours.bin", "speak", "other.bin")[0])
    assert [each["name"] for each in data["models"]] == ["ours.bin", "other.bin"]
    tokens = np.array([data["tokens"]])
    for each, expected in zip(data["models"], (model, other), strict=True):
        found = unpacked(each["attention"][-1], expected.config.NH, 5)
        assert np.abs(found - expected.attention(tokens, expected.config.L - 1)).max() < 2e-5
    with pytest.raises(UserError, match="--text: 41 tokens, but the model's context length is 40"):
        inspect("ours.bin", "x" * 41, "other.bin")


def test_a_checkpoint_of_a_run(model):
    os.mkdir("out")
    path, _ = checkpoint_paths("out", 7)
    model.save(path)
    os.rename("ours_vocabulary", "out/vocabulary")
    assert inspect(path, "speak")[1] == 5


def test_one_token(model):
    page, count, losses = inspect("ours.bin", "x")
    assert (count, losses) == (1, [None])
    assert len(page_data(page)["models"][0]["guesses"][-1]) == 1


def test_the_longest_text(model):
    assert inspect("ours.bin", "x" * MOST_TOKENS)[1] == MOST_TOKENS
    with pytest.raises(UserError, match=r"--text: 257 tokens, but a page shows at most 256; give a shorter text$"):
        inspect("ours.bin", "x" * (MOST_TOKENS + 1))


def test_texts_and_models_that_cannot_be_shown(model):
    with pytest.raises(UserError, match="--text: empty"):
        inspect("ours.bin", "")
    with pytest.raises(UserError, match="--text: not UTF-8 at byte 1"):
        inspect("ours.bin", "a\udcff")
    GPT2(GPT2Config(maxT=64, V=50257, L=1, NH=1, C=4)).save("gpt2_sized.bin")
    with pytest.raises(UserError, match=r"--against gpt2_sized.bin: its vocabulary is not that of ours.bin"):
        inspect("ours.bin", "speak", "gpt2_sized.bin")
    GPT2(CONFIG).save("alone.bin")
    with pytest.raises(UserError, match="a text requires the model's vocabulary"):
        inspect("alone.bin", "speak")


def test_the_command_replaces_only_its_own_pages(model, capsys):
    arguments = ["--model", "ours.bin", "--text", "speak", "-o", "page.html", "--threads", "1"]
    main(arguments)
    assert capsys.readouterr().out.startswith("wrote page.html: 5 tokens, loss ")
    before = pathlib.Path("page.html").read_bytes()
    with pytest.raises(UserError, match=r"page.html: already exists; choose another name, or replace it with --force"):
        main(arguments)
    main([*arguments, "--force"])
    assert pathlib.Path("page.html").read_bytes() == before
    pathlib.Path("page.html").write_text("<!doctype html>mine")
    with pytest.raises(UserError, match=r"page.html: not a page of gpt2 inspect, so it is not replaced"):
        main([*arguments, "--force"])
    assert pathlib.Path("page.html").read_text() == "<!doctype html>mine"
    assert sorted(os.listdir(".")) == ["ours.bin", "ours_vocabulary", "page.html"]


@pytest.mark.parametrize(
    ("output", "message"), [(".", r"\.: a folder"), ("nowhere/page.html", "cannot create a file in nowhere")]
)
def test_a_page_that_cannot_be_written_is_refused_before_the_work(model, output, message):
    with pytest.raises(UserError, match=message):
        main(["--model", "missing.bin", "--text", "speak", "-o", output])


def test_attention_that_does_not_compress_leaves_room_below_5_megabytes():
    """128 tokens on GPT-2 124M; the rest of such a page is less than 1 MB."""
    scores = np.random.default_rng(0).random((12, 128, 128), np.float32)
    attention = np.tril(scores) / np.tril(scores).sum(axis=-1, keepdims=True)
    assert 12 * len(_packed(attention)) < 4e6


def test_a_page_fetches_nothing(model):
    page = inspect("ours.bin", "speak")[0].decode()
    assert "default-src 'none'" in page
    for reference_to in ("src=", "href=", "url(", "import ", "fetch("):
        assert reference_to not in page.replace("default-src", "")


def test_a_name_goes_into_the_title_as_text(model):
    os.rename("ours_vocabulary", "<b>_vocabulary")
    os.rename("ours.bin", "<b>.bin")
    page = inspect("<b>.bin", "speak")[0].decode()
    assert "<title>&lt;b&gt;.bin: " in page
    assert json.dumps("<b>.bin").replace("<", "\\u003c") in page
