"""Interactive loop: one shared text, replies that Ctrl-C stops, and Ctrl-D to end."""

import builtins

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data.vocabulary import characters
from gpt2.inference.context import Context
from gpt2.inference.interactive import HELP, SLID, Conversation
from gpt2.inference.sampling import Sampling, Token
from tests.support.numeric import randomise
from tests.support.vocabulary import BYTES, byte_level

CONFIG = GPT2Config(maxT=64, V=258, L=1, NH=2, C=8)
(EOT,) = BYTES.ends


class Script:
    """A scripted model: gives the replies in turn, and records in `asked` the text it was to continue."""

    def __init__(self, monkeypatch, *replies):
        self.asked, self.replies = [], list(replies)
        monkeypatch.setattr("gpt2.inference.interactive.generate", self.generate)

    def generate(self, context, max_new_tokens, sampling, rngs):
        self.asked.append(bytes(min(token, 255) for token in context.tokens[0]).decode(errors="replace"))
        for token in self.replies.pop(0):
            if token is KeyboardInterrupt:
                raise KeyboardInterrupt
            context.add([[token]])
            yield [Token(token, 0.5)]


def converse(monkeypatch, lines, stops=(), words=BYTES):
    """Runs a session with these lines as input, exceptions among them as keys; then Ctrl-D. Returns its Context."""
    lines = [*lines, EOFError]

    def typed(prompt):
        line = lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(builtins, "input", typed)
    context = Context(CONFIG, GPT2(CONFIG).params_flat)
    Conversation(context, words, Sampling(), np.random.default_rng(0), 8, stops).run()
    assert not lines
    return context


def test_conversation_is_kept_and_input_starts_a_new_line(monkeypatch, capsys):
    script = Script(monkeypatch, b" there", b"well\n", b"!")
    converse(monkeypatch, ["hello", "how are you? ", "good"])
    assert script.asked == ["hello", "hello there\nhow are you? ", "hello there\nhow are you? well\ngood"]
    printed = capsys.readouterr()
    assert printed.out == " there\nwell\n\n!\n\n" and printed.err == HELP + "\n"


def test_empty_line_lets_the_model_carry_on(monkeypatch):
    script = Script(monkeypatch, b"b", b"c")
    converse(monkeypatch, ["a", ""])
    assert script.asked == ["a", "ab"]


def test_empty_first_line_starts_a_new_document(monkeypatch):
    script = Script(monkeypatch, b"b")
    context = converse(monkeypatch, [""])
    assert context.tokens.tolist() == [[EOT, ord("b")]] and script.asked == ["�"]


def test_ctrl_c_stops_the_reply_but_not_the_session(monkeypatch, capsys):
    script = Script(monkeypatch, [*b"bc", KeyboardInterrupt, *b"de"], b"f")
    converse(monkeypatch, ["a", KeyboardInterrupt, "x"])
    assert script.asked == ["a", "abc\nx"]
    assert capsys.readouterr().out == "bc\n\nf\n\n"


@pytest.mark.parametrize(("reply", "kept"), [(b"one\nYou: two", "aone"), ([*b"one", EOT, *b"two"], "aone")])
def test_stop_text_and_end_of_text_are_removed_from_the_context(monkeypatch, capsys, reply, kept):
    script = Script(monkeypatch, reply, b"z")
    converse(monkeypatch, ["a", "b"], stops=["\nYou:"])
    assert script.asked == ["a", f"{kept}\nb"]
    assert capsys.readouterr().out == "one\nz\n\n"


def test_line_that_is_not_utf8_is_ignored(monkeypatch, capsys):
    script = Script(monkeypatch, b"b")
    converse(monkeypatch, ["\udcff", "a"])
    assert script.asked == ["a"] and "not UTF-8" in capsys.readouterr().err


def test_line_with_a_character_that_the_vocabulary_lacks_is_ignored(monkeypatch, capsys):
    script = Script(monkeypatch, [2], [2])
    context = converse(monkeypatch, ["abx", "ab", "a"], words=characters(["\nab"]))
    assert len(script.asked) == 2 and context.tokens.tolist() == [[1, 2, 2, 0, 1, 2]]
    assert "ignored: the line: the vocabulary has no 'x' (U+0078, line 1, character 3" in capsys.readouterr().err


def test_what_precedes_every_prompt_does_so_once(monkeypatch):
    words = byte_level()
    words.prefix = (7, 9)
    script = Script(monkeypatch, b"b", b"d")
    context = converse(monkeypatch, ["a", "c"], words=words)
    assert not script.replies and context.tokens.tolist() == [[7, 9, *b"ab\ncd"]]


def test_replies_are_those_of_the_uncached_model(monkeypatch, capsys):
    model = GPT2(CONFIG)
    randomise(model, np.random.default_rng(1))
    model.params["wpe"] *= 5
    typed = iter(["hello", "again"])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed, None) or (_ for _ in ()).throw(EOFError))
    context = Context(CONFIG, model.params_flat)
    Conversation(context, BYTES, Sampling(temperature=0), None, 6).run()
    tokens = list(b"hello")
    for line in (b"\nagain", b""):
        for _ in range(6):
            tokens.append(int(model.last_logits([tokens])[0].argmax()))
        tokens.extend(line)
    assert context.tokens.tolist() == [tokens]


def test_sliding_window_is_reported_once(monkeypatch, capsys):
    model = GPT2(CONFIG)
    typed = iter(["x" * 50, "y" * 50, "z" * 50])
    monkeypatch.setattr(builtins, "input", lambda prompt: next(typed, None) or (_ for _ in ()).throw(EOFError))
    context = Context(CONFIG, model.params_flat)
    Conversation(context, BYTES, Sampling(), np.random.default_rng(0), 5).run()
    assert capsys.readouterr().err == f"{HELP}\n{SLID.format(64)}\n"
    assert context.tokens.shape[1] <= 64
