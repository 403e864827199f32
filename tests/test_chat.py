"""python -m gpt2.chat: on a terminal, from a pipe, with a single question, and with bad input."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.chat import main
from gpt2.data.trained_vocabulary import characters
from gpt2.errors import UserError
from gpt2.inference.sampling import Token
from gpt2.inference.warmup import prepare_kernels
from tests.support.chat import WORDS, endless_model, save, talk, tuned_model
from tests.support.terminal import SECONDS, Terminal
from tests.support.vocabulary import byte_level

ROOT = pathlib.Path(__file__).resolve().parents[1]
CHAT = ("gpt2.chat", "--model", "tuned.bin", "--temperature", "0")
PROMPT = r"(?:^|\n)> $"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a tuned model; prepares the kernels, whose compilation would be reported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    prepare_kernels()
    save(tuned_model(), "tuned.bin")


def run(*arguments, lines=""):
    command, text = [sys.executable, "-m", *arguments], {"text": True, "encoding": "utf-8"}
    return subprocess.run(command, input=lines, capture_output=True, timeout=SECONDS, **text)


def answered(terminal, text):
    """Types a text; returns what follows its last line, up to the next prompt."""
    terminal.send(text)
    shown = terminal.read_until(PROMPT)
    return shown.partition("\n")[2].removesuffix("> ")


@pytest.mark.slow
def test_a_session_on_a_terminal():
    with Terminal(*CHAT) as terminal:
        assert terminal.read_until(PROMPT).startswith("/help lists the commands, Ctrl-C stops an answer")
        assert answered(terminal, "Hi\r") == "Hello.\n"
        assert answered(terminal, "Bye\r") == "So long, friend.\n"  # not "Good bye.": it knows what was said
        assert answered(terminal, "/regen\r") == "So long, friend.\n"
        assert answered(terminal, "/save it.json\r") == "saved to it.json\n"
        assert answered(terminal, "/clear\r") == ""
        assert answered(terminal, "Bye\r") == "Good bye.\n"
        assert answered(terminal, "/load it.json\r") == "2 turns from it.json\n"
        assert answered(terminal, "/regen\r") == "So long, friend.\n"
        assert answered(terminal, "/nonsense\r") == "unknown command '/nonsense'; /help lists them\n"
        assert answered(terminal, "/clear\r") == ""
        assert answered(terminal, "/system Be a pirate.\r") == ""
        assert answered(terminal, "Hi\r") == "Arr!\n"
        assert answered(terminal, "\x1b[A\x1b[D\x08\x08h\x1b[C\x08I\r").endswith("\n")  # history, and editing
        assert answered(terminal, "abc\x03") == ""  # Ctrl-C abandons a line
        terminal.send("\x04")
        assert terminal.status() == 0
    saved = json.loads(pathlib.Path("it.json").read_text())
    assert saved == {"messages": talk("Hi", "Hello.", "Bye", "So long, friend.")}


@pytest.mark.slow
@pytest.mark.parametrize("pasted", ["one\ntwo\n", "\x1b[200~one\ntwo\x1b[201~\r"])
def test_lines_pasted_together_are_one_message(pasted):
    with Terminal(*CHAT) as terminal:
        terminal.read_until(PROMPT)
        terminal.send(pasted)
        assert terminal.read_until(r"\.\n> $").endswith("Two lines.\n> ")
        answered(terminal, "/save it.json\r")
        terminal.send("/quit\r")
        assert terminal.status() == 0
    assert json.loads(pathlib.Path("it.json").read_text())["messages"] == talk("one\ntwo", "Two lines.")


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_which_stays_as_it_is_shown():
    save(endless_model(8192), "endless.bin")
    with Terminal("gpt2.chat", "--model", "endless.bin", "--temperature", "0", "--max-new-tokens", "9000") as terminal:
        terminal.read_until(PROMPT)
        terminal.send("Hi\r")
        shown = terminal.read_until("aaa")
        terminal.send("\x03")
        shown += terminal.read_until(PROMPT)
        answered(terminal, "/save it.json\r")
        assert answered(terminal, "/set max-new-tokens 3\r") == ""
        assert answered(terminal, "Hi\r").startswith("aaa\ncut at 3 tokens: ")
        terminal.send("\x04")
        assert terminal.status() == 0
    (_, answer) = json.loads(pathlib.Path("it.json").read_text())["messages"]
    assert 3 <= len(answer["content"]) == shown.count("a") < 8000


@pytest.mark.slow
@pytest.mark.parametrize("form", ["bf16", "int8"])
def test_narrower_weights_answer_alike(form, monkeypatch, capsys):
    used = []
    monkeypatch.setattr(
        "gpt2.inference.warmup.prepare_kernels", lambda form: used.append(form) or prepare_kernels(form)
    )
    main(["--model", "tuned.bin", "-p", "Hi", "--temperature", "0", "--weights", form])
    assert capsys.readouterr().out == "Hello.\n"
    assert used == [form]


@pytest.mark.slow
def test_from_a_pipe_each_line_is_a_message_and_answers_go_to_stdout():
    lines = "Hi\r\n\nBye\n/save it.json\n/clear\nBye\n"
    done = run(*CHAT, lines=f"\ufeff{lines}")
    assert (done.returncode, done.stdout) == (0, "Hello.\nSo long, friend.\nGood bye.\n")
    assert done.stderr == "saved to it.json\n"
    assert run(*CHAT, lines="/load it.json\n/regen\n/quit\nHi").stdout == "So long, friend.\n"


@pytest.mark.slow
def test_a_single_question_is_answered_once():
    done = run(*CHAT, "-p", "Bye\n", lines="Hi\n")
    assert (done.returncode, done.stdout, done.stderr) == (0, "Good bye.\n", "")
    done = run(*CHAT, "-p", "Bye", "--speed", "--max-new-tokens", "4")
    assert done.stdout == "Good\n" and "\n4 tokens, " in done.stderr and done.stderr.startswith("cut at 4 tokens")


def test_a_single_question_without_an_answer_says_so(monkeypatch, capsys):
    end = max(WORDS.ends)
    monkeypatch.setattr("gpt2.inference.chat.generate", lambda *arguments: iter([[Token(end, 1.0)]]))
    main(["--model", "tuned.bin", "-p", "Bye"])
    assert capsys.readouterr() == ("\n", "nothing was answered; the conversation is as it was before\n")


def test_text_depends_on_the_seed_but_not_on_threads(capsys):
    def text(*options):
        main(["--model", "tuned.bin", "-p", "Hi", "--temperature", "9", "--max-new-tokens", "30", *options])
        return capsys.readouterr().out

    texts = [text("--seed", "5", "--threads", threads) for threads in ("1", "2", "3")]
    assert texts[0] == texts[1] == texts[2] != text("--seed", "6")


@pytest.mark.slow
def test_a_model_that_was_never_tuned_has_the_plain_template():
    words = byte_level()
    model = GPT2(GPT2Config(maxT=64, V=words.size, L=1, NH=1, C=8), seed=1)
    save(model, "plain.bin", words)
    done = run("gpt2.chat", "--model", "plain.bin", "-p", "Hi", "--max-new-tokens", "5", "--seed", "1")
    assert done.returncode == 0 and done.stdout.strip()
    notice, *_ = done.stderr.splitlines()
    assert notice.startswith("plain.bin: has no chat template, so it was not tuned on conversations")


def test_a_vocabulary_that_cannot_write_the_plain_template_is_refused():
    words = characters(["abc"])
    save(GPT2(GPT2Config(maxT=64, V=words.size, L=1, NH=1, C=8), seed=1), "letters.bin", words)
    with pytest.raises(
        UserError, match=r"^letters\.bin: has no chat template, and cannot write User: and Assistant: inst"
    ):
        main(["--model", "letters.bin", "-p", "a"])


BAD_LINES = {
    "/nonsense": "unknown command '/nonsense'; /help lists them",
    "/clear it": "/clear stands alone, without 'it'",
    "/regen": "there is no answer yet to give again",
    "/save it.json": "/save: there is no answer yet to save",
    "/save": "/save FILE: name a file",
    "Hi\n/save talks.txt": "talks.txt: not a saved conversation, so it is not replaced; choose another name",
    "Hi\n/save empty.json": "empty.json: not a saved conversation, so it is not replaced; choose another name",
    "Hi\n/save /dev/null": "/dev/null: not a saved conversation, so it is not replaced; choose another name",
    "Hi\n/save .": ".: not a saved conversation, so it is not replaced; choose another name",
    "Hi\n/save missing/it.json": "missing/it.json: No such file or directory",
    "/load missing.json": "missing.json: no such file",
    "/load tuned.bin": "/load takes one conversation, as /save writes it: tuned.bin: ",
    "/load talks.txt": "/load takes one conversation, as /save writes it: talks.txt: line 1 begins with 'A text.'",
    "/load empty.json": "/load takes one conversation, as /save writes it: empty.json: empty",
    "/load two.jsonl": "two.jsonl: several conversations; /load takes one",
    "/load roles.json": "/load takes one conversation, as /save writes it: roles.json: record 1: message 2 is the user",
    "/load none.json": "/load takes one conversation, as /save writes it: none.json: an empty list",
    "Hi\n/save a.json.gz": "/save 'a.json.gz': what is saved is plain JSON; choose a name such as talk.json",
    "Hi\n/save a\0b": "/save 'a\\x00b': what is saved is plain JSON",
    "/set": None,
    "/set colour red": "/set 'colour': expected one of temperature, top-k, ",
    "/set temperature": "/set temperature '': expected a number",
    "/set temperature -1": "--temperature -1.0: expected 0 (greedy), or ",
    "/set temperature off": "/set temperature 'off': expected a number",
    "/set top-p high": "/set top-p 'high': expected a number, or off",
    "/set top-k 1.5": "/set top-k '1.5': expected an integer, or off",
    "/set seed now": "/set seed 'now': expected an integer, or off",
    "/set max-new-tokens off": "/set max-new-tokens 'off': expected an integer",
    "/set top-k 0": "--top-k 0: expected 1 or more",
    "/set max-new-tokens 0": "max-new-tokens 0: expected 1 to 2147483647",
    "/set seed -1": "seed -1: expected 0 or more",
    "/set speed yes": "/set speed 'yes': expected on or off",
    f"/system {'x' * 80}": "a system message of 86 tokens, with what the template adds, leaves no room for a question",
    "x" * 80: "a message of 84 tokens, with the system's and what the template adds, exceeds the model's window of 64",
    "a\udcff": "the message is not UTF-8",
}


@pytest.mark.parametrize("lines", [line for line, message in BAD_LINES.items() if message])
def test_a_bad_line_from_a_pipe_is_one_line_and_ends_the_session(lines, monkeypatch, capsys):
    pathlib.Path("talks.txt").write_text("A text.\n")
    pathlib.Path("empty.json").write_text("")
    pathlib.Path("none.json").write_text("[]")
    pathlib.Path("two.jsonl").write_text(2 * (json.dumps({"messages": talk("a", "b")}) + "\n"))
    pathlib.Path("roles.json").write_text(json.dumps({"messages": talk("a", "b")[:1] * 2}, indent=1))
    before = {path.name: path.read_bytes() for path in pathlib.Path().iterdir() if path.is_file()}
    pathlib.Path("in").write_bytes(f"{lines}\nBye\n".encode("utf-8", "surrogateescape"))
    with open("in", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(UserError) as error:
            main(["--model", "tuned.bin", "--temperature", "0"])
    os.remove("in")
    assert str(error.value).startswith(BAD_LINES[lines]) or f"/{BAD_LINES[lines]}" in str(error.value)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ("Hello.\n" if lines.startswith("Hi") else "")
    assert {path.name: path.read_bytes() for path in pathlib.Path().iterdir() if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-p=", "--prompt: the question is empty"),
        ("-p a\udce9", "--prompt: not UTF-8 at byte 1"),
        ("-p a --max-new-tokens 0", "--max-new-tokens 0: expected 1 to 2147483647"),
        ("-p a --seed -1", "--seed -1: expected 0 or more"),
        ("-p a --top-p 2", "--top-p 2.0: expected a number above 0, up to 1"),
        ("-p a --model missing.bin", "missing.bin"),
        ("-p a --model unknown.bin", "unknown.bin: its vocabulary is not GPT-2's, and not beside it: a conversation"),
        (f"-p {'x' * 80}", "a message of 84 tokens"),
    ],
)
def test_bad_options_are_one_line(arguments, message):
    GPT2(GPT2Config(maxT=16, V=30, L=1, NH=1, C=8)).save("unknown.bin")
    with pytest.raises(UserError) as error:
        main(["--model", "tuned.bin", *arguments.split(" ")])
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.slow
def test_a_template_that_does_not_parse_ends_the_command_with_status_1():
    pathlib.Path("tuned_vocabulary/chat_template.jinja").write_text("{% for %}")
    done = run(*CHAT, "-p", "Hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ") and "line 1: not a template that parses: " in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_template_that_is_not_text_is_named():
    pathlib.Path("tuned_vocabulary/chat_template.jinja").write_bytes(b"a\xff")
    with pytest.raises(UserError, match=r"^\S*tuned_vocabulary/chat_template\.jinja: not UTF-8 at byte 1"):
        main(["--model", "tuned.bin", "-p", "Hi"])


def test_settings_are_shown_and_changed(monkeypatch, capsys):
    changes = {"top-k": "5", "top-p": "0.5", "min-p": "0.1", "repetition-penalty": "1.5", "max-new-tokens": "9"}
    changes |= {"temperature": "0.25", "seed": "3", "speed": "on"}
    lines = ["/set\n", *(f"/set {name} {value}\n" for name, value in changes.items()), "/set\n"]
    lines += [*(f"/set {name} off\n" for name in ("top-k", "top-p", "min-p", "seed", "speed")), "/set"]
    pathlib.Path("in").write_text("".join(lines))
    with open("in", encoding="utf-8") as file:
        monkeypatch.setattr(sys, "stdin", file)
        main(["--model", "tuned.bin"])
    shown = capsys.readouterr().err.splitlines()
    first, second, third = (dict(line.split() for line in shown[n : n + 8]) for n in (0, 8, 16))
    assert first["temperature"] == "0.6" and first["top-k"] == "50" and first["seed"] == first["speed"] == "off"
    assert second == changes
    assert third == second | dict.fromkeys(("top-k", "top-p", "min-p", "seed", "speed"), "off")
