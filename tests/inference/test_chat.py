"""A chat computes what is new only, keeps what it has shown, and drops whole turns when its window is full."""

import itertools
import os
import signal

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data.chat_template import ChatTemplate
from gpt2.errors import UserError
from gpt2.inference.chat import CUT, ENDED, FULL, STOPPED, Chat
from gpt2.inference.chat_session import Session
from gpt2.inference.context import Context
from gpt2.inference.sampling import Sampling, Token, generate
from gpt2.inference.terminal import noticed_interrupts
from tests.support.chat import WORDS, endless_model, talk, tuned_model
from tests.support.numeric import randomise
from tests.support.vocabulary import byte_level

GREEDY = Sampling(temperature=0)


def make(model, most=32, words=WORDS, sampling=GREEDY, seed=None):
    return Chat(Context(model.config, model.params_flat), words, sampling, most, seed)


def said(pieces):
    return "".join(pieces)


@pytest.fixture
def read(monkeypatch):
    """The number of tokens in each pass through a model."""
    counts = []

    def watched(self, tokens, rows=None):
        counts.append(np.shape(tokens)[1])
        return forward(self, tokens, rows)

    forward = Context.__init__.__globals__["Decoder"].forward
    monkeypatch.setattr("gpt2.inference.context.Decoder.forward", watched)
    return counts


def test_a_second_turn_computes_its_new_tokens_only(read):
    chat = make(tuned_model())
    assert said(chat.ask("Hi")) == "Hello."
    # <|endoftext|><|user|>Hi<|end|><|assistant|>, then a token at a time; of <|end|> nothing follows.
    assert read == [6, *[1] * len("Hello.")]
    read.clear()
    assert said(chat.ask("Bye")) == "So long, friend."
    assert read == [len("<Bye>") + 1 + 1, *[1] * len("So long, friend.")]  # the first <|end|> is read, too
    assert chat.messages == talk("Hi", "Hello.", "Bye", "So long, friend.") and chat.ended == ENDED
    read.clear()
    assert said(chat.ask_again()) == "So long, friend."
    assert read == [1] * (1 + len("So long, friend."))


def test_answers_are_those_of_the_model_without_a_cache():
    model, template = GPT2(GPT2Config(maxT=96, V=WORDS.size, L=2, NH=2, C=16)), ChatTemplate(WORDS)
    randomise(model, np.random.default_rng(1))
    model.params["wte"][128:] = 0  # ASCII: what is said is what its text is encoded to
    model.params["wpe"] *= 5
    chat, messages = make(model, most=10), []
    for question in ("Hi", "How are you?", "Bye"):
        messages += talk(question)
        ids = template.encode(messages, reply=True)[0]
        start = len(ids)
        for _ in range(10):
            ids.append(int(model.last_logits([ids])[0].argmax()))
        messages.append({"role": "assistant", "content": WORDS.decode(ids[start:])})
        assert said(chat.ask(question)) == messages[-1]["content"] and chat.ended == CUT
    assert chat.messages == messages


def test_a_stopped_answer_stays_as_it_was_yielded_and_its_turn_is_closed(read):
    chat = make(endless_model(64))
    pieces = chat.ask("Hi")
    assert said(itertools.islice(pieces, 5)) == "aaaaa"
    pieces.close()
    assert chat.messages == talk("Hi", "aaaaa") and (chat.ended, chat.count) == (STOPPED, 5)
    read.clear()
    said(chat.ask("Bye"))
    assert read[0] == len("a<><Bye><>") - 2 and "Bye" in chat.messages[2]["content"]
    assert chat.messages[:2] == talk("Hi", "aaaaa")


def test_what_ctrl_c_leaves_of_an_answer_is_what_was_shown(monkeypatch, capsys):
    chat = make(endless_model(64))
    session, lines = Session(chat), iter(["Hi", "/quit"])
    monkeypatch.setattr("gpt2.inference.chat_session.read_message", lambda prompt: next(lines))

    def interrupted(*arguments):
        if chat.count == 4:
            os.kill(os.getpid(), signal.SIGINT)
        return generate(*arguments)

    monkeypatch.setattr("gpt2.inference.chat.generate", interrupted)
    session.run_terminal()
    assert capsys.readouterr().out == "aaaaa\n" and chat.messages == talk("Hi", "aaaaa")


def test_the_first_ctrl_c_is_noticed_and_the_second_interrupts():
    before = signal.getsignal(signal.SIGINT)
    with noticed_interrupts() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_nothing_is_kept_of_an_answer_without_text(monkeypatch, capsys):
    chat = make(tuned_model())
    said(chat.ask("Hi"))
    before = chat.messages
    (end,) = set(WORDS.ends) - {WORDS.begin}
    monkeypatch.setattr("gpt2.inference.chat.generate", lambda *arguments: iter([[Token(end, 1.0)]]))
    Session(chat).handle("Bye")
    assert capsys.readouterr() == ("\n", "nothing was answered; the conversation is as it was before\n")
    assert chat.messages == before == talk("Hi", "Hello.")
    assert said(chat.ask_again()) == "" and chat.messages == before


def test_a_control_token_ends_an_answer_and_is_no_text(monkeypatch):
    chat = make(tuned_model())
    steps = iter([[[Token(ord("a"), 1.0)]], [[Token(WORDS.tokens.index("<|user|>"), 1.0)]]])
    monkeypatch.setattr("gpt2.inference.chat.generate", lambda *arguments: iter(next(steps)))
    assert said(chat.ask("Hi")) == "a" and chat.messages == talk("Hi", "a")


def test_whole_oldest_turns_go_when_the_window_is_full_and_the_system_message_stays(capsys):
    """Ten times the window, in turns of all lengths."""
    model, template = endless_model(64), ChatTemplate(WORDS)
    chat = make(model, most=7)
    chat.instruct("Be.")
    session, seen = Session(chat), []
    for number in range(60):
        session.handle("abcdefghijklm"[: 1 + number % 13])
        assert chat.messages[-1]["content"] == "aaaaaaa"
        window = WORDS.decode(chat._context.tokens[0].tolist())
        kept = [chat.messages[0], *chat.messages[1 + chat.dropped :]]
        assert window == WORDS.decode(template.encode(kept)[0]).removesuffix("<|end|>") and chat.dropped % 2 == 0
        assert chat._context.tokens.size <= 65 and not chat._context.slid
        seen.append(chat.dropped)
    assert seen[0] == 0 and seen[-1] > 100 and seen == sorted(seen) and len(chat.messages) == 121
    notices = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("cut at 7 tokens")]
    assert len(notices) == len(set(seen)) - 1
    assert notices[0].startswith("the model's window of 64 tokens is full: it no longer sees the ")


def test_turns_go_in_the_middle_of_an_answer_which_goes_on(capsys):
    chat = make(endless_model(64), most=40)
    session = Session(chat)
    session.handle("Hi")
    session.handle("Bye")
    assert chat.messages == talk("Hi", "a" * 40, "Bye", "a" * 40) and chat.dropped == 2
    assert capsys.readouterr().err.endswith("tokens is full: it no longer sees the 1 oldest turn\n")


def test_turns_go_before_an_answer_that_takes_up_to_a_quarter_of_the_window_rather_than_in_it():
    chat, seen = make(endless_model(64), most=16), []
    for number in range(60):
        pieces = chat.ask("abcdefghijklm"[: 1 + number % 13])
        assert next(pieces) == "a"
        seen.append(chat.dropped)
        assert said(pieces) == "a" * 15 and chat.dropped == seen[-1]
    assert seen[0] == 0 and seen[-1] > 100


def test_an_answer_that_fills_the_window_by_itself_ends_there(capsys):
    chat = make(endless_model(64), most=100)
    Session(chat).handle("Hi")
    assert chat.ended == FULL and chat.messages == talk("Hi", "a" * 59)
    assert capsys.readouterr().err == "cut at the end of the model's window of 64 tokens\n"


def test_a_message_longer_than_the_window_changes_nothing():
    chat = make(tuned_model())
    said(chat.ask("Hi"))
    before = chat.messages
    with pytest.raises(UserError, match=r"a message of 65 tokens, .* exceeds the model's window of 64; shorten it"):
        said(chat.ask("x" * 61))
    assert said(chat.ask("x" * 60)) == ""  # this one fits, and the model has nothing to say
    assert (chat.messages, chat.dropped) == (before, 0)
    assert said(chat.ask("Bye")) == "So long, friend."
    chat = make(endless_model(64))
    said(chat.ask("x" * 60))
    assert chat.messages == talk("x" * 60, "a") and chat.ended == FULL


def test_a_loaded_conversation_goes_on_as_it_would_have():
    chat, other = make(tuned_model()), make(tuned_model())
    said(chat.ask("Hi"))
    other.replace(chat.messages, "it.json")
    assert said(other.ask("Bye")) == said(chat.ask("Bye")) == "So long, friend."
    other.clear()
    assert said(other.ask("Bye")) == "Good bye."


def test_a_long_conversation_is_loaded_and_its_oldest_turns_go_at_once():
    chat = make(endless_model(64), most=3)
    chat.replace(talk(*["a"] * 3000), "it.json")
    assert said(chat.ask("Hi")) == "aaa" and chat.dropped > 2900


def test_the_system_message_is_set_changed_and_removed():
    chat = make(tuned_model())
    chat.instruct("Be a pirate.")
    assert said(chat.ask("Hi")) == "Arr!"
    chat.instruct("")
    assert chat.messages == talk("Hi", "Arr!")
    chat.clear()
    assert said(chat.ask("Hi")) == "Hello."
    chat.instruct("Be a pirate.")
    chat.clear()
    assert chat.messages == talk(system="Be a pirate.") and said(chat.ask("Hi")) == "Arr!"
    with pytest.raises(UserError, match=r"^a system message of 64 tokens, .* in the model's window of 64; shorten it$"):
        chat.instruct("x" * 58)
    chat.clear()
    assert said(chat.ask("Hi")) == "Arr!"
    chat.instruct("x" * 57)
    said(chat.ask("?"))


def test_the_plain_template_ends_an_answer_where_the_user_would_speak(monkeypatch):
    words = byte_level()
    model = GPT2(GPT2Config(maxT=64, V=words.size, L=1, NH=1, C=8), seed=1)
    chat = make(model, words=words)
    asked, written = [], iter(b" Hello.\n\nUser: Bye")

    def scripted(context, *arguments):
        asked.append(words.decode(context.tokens[0].tolist()))
        token = next(written)
        context.add([[token]])
        return iter([[Token(token, 0.5)]])

    monkeypatch.setattr("gpt2.inference.chat.generate", scripted)
    assert said(chat.ask("Hi")) == "Hello.\n"
    assert asked[0] == "<|endoftext|>User: Hi\nAssistant:" and chat.messages == talk("Hi", "Hello.")


def test_a_seed_gives_the_same_conversation():
    def texts(seed):
        chat = make(tuned_model(), sampling=Sampling(temperature=5.0), seed=seed, most=12)
        return [said(chat.ask("Hi")), said(chat.ask_again())]

    first, again = texts(1)
    assert texts(1) == [first, again] and first != again and texts(2) != [first, again]
