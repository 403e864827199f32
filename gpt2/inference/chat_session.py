"""A session of chat: messages and commands in, answers out."""

import dataclasses
import itertools
import json
import os
import sys
import time

from gpt2.data import texts
from gpt2.data.conversations import ASSISTANT, USER, read_conversations
from gpt2.errors import UserError, safe_repr
from gpt2.formats.files import atomic_write, read_json
from gpt2.inference.chat import CUT, FULL
from gpt2.inference.sampling import check_count, check_seed
from gpt2.inference.terminal import noticed_interrupts, read_message

HELP = """/clear            forget the conversation, all but the system message
/regen            answer the last message again
/save FILE        save the conversation
/load FILE        go on from a saved conversation
/system TEXT      set the system message; without TEXT, remove it
/set              show the settings
/set NAME VALUE   set one; "off" turns off top-k, top-p, min-p, seed and speed
/help             show this
/quit             end the session, as Ctrl-D does
Ctrl-C stops an answer. Lines that are pasted together are one message. A message may begin with / after a space."""
WELCOME = "/help lists the commands, Ctrl-C stops an answer, Ctrl-D ends the session. Nothing is saved but by /save."
LIMIT = 2**26  # bytes of a saved conversation
OFF, ON = "off", "on"
MAY_BE_OFF = ("top-k", "top-p", "min-p", "seed")
SAMPLING = {"temperature": float, "top_k": int, "top_p": float, "min_p": float, "repetition_penalty": float}


class Session:
    """Takes the lines of a session; answers go to stdout, all else to stderr."""

    def __init__(self, chat, seed=None, speed=False):
        """chat: a chat.Chat. seed: its seed. speed: whether to show how fast an answer came."""
        self._chat, self._seed, self._speed = chat, seed, speed
        self._dropped = 0  # of the chat's, as it was last said
        self._on_terminal = False

    def run_terminal(self):
        """Reads messages and commands from the terminal until Ctrl-D or /quit; says what is wrong with one."""
        self._on_terminal = True
        _say(WELCOME)
        while True:
            try:
                if not self.handle(read_message("> ")):
                    return
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
            except UserError as error:
                _say(error)

    def run_lines(self, lines):
        """Takes lines, an iterable of str, up to /quit. Raises UserError for the first that is wrong."""
        for line in lines:
            if not self.handle(line):
                return

    def handle(self, line):
        """Runs a command, or answers a message, which may have several lines. Returns False after /quit."""
        if not line.startswith("/"):
            self.answer(line)
            return True
        name, _, argument = line.strip().partition(" ")
        commands = {
            "/clear": self._clear,
            "/regen": self._regenerate,
            "/save": self._save,
            "/load": self._load,
            "/system": self._instruct,
            "/set": self._set,
            "/help": lambda argument: _say(HELP),
            "/quit": lambda argument: None,
        }
        if name not in commands:
            raise UserError(f"unknown command {safe_repr(name)}; /help lists them")
        if argument and name in ("/clear", "/regen", "/help", "/quit"):
            raise UserError(f"{name} stands alone, without {safe_repr(argument)}")
        if not argument and name in ("/save", "/load"):
            raise UserError(f"{name} FILE: name a file")
        commands[name](argument.strip())
        return name != "/quit"

    def answer(self, text):
        """Prints the answer to a message, unless that is blank. Raises UserError."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError("the message is not UTF-8") from error
        if text.strip():
            self._show(self._chat.ask(text.strip()))

    def _show(self, pieces):
        """Prints an answer piece by piece; on a terminal Ctrl-C stops it."""
        start, shown, chat = time.perf_counter(), "", self._chat
        with noticed_interrupts(self._on_terminal) as interrupted:
            for piece in pieces:
                print(piece, end="", flush=True)
                shown += piece
                if interrupted():
                    pieces.close()
        seconds = time.perf_counter() - start
        print(flush=True)
        if not shown.strip():
            _say("nothing was answered; the conversation is as it was before")
        if chat.ended == CUT:
            _say(f"cut at {chat.max_new_tokens:,} tokens: /set max-new-tokens N, or --max-new-tokens, allows more")
        if chat.ended == FULL:
            _say(f"cut at the end of the model's window of {chat.window:,} tokens")
        if self._speed:
            _say(f"{chat.count:,} token{'' if chat.count == 1 else 's'}, {chat.count / seconds:.1f} tokens/s")
        if chat.dropped > self._dropped:
            turns = f"{chat.dropped // 2:,} oldest turn{'s' if chat.dropped > 2 else ''}"
            _say(f"the model's window of {chat.window:,} tokens is full: it no longer sees the {turns}")
        self._dropped = chat.dropped

    def _clear(self, argument):
        self._chat.clear()
        self._dropped = 0

    def _regenerate(self, argument):
        self._show(self._chat.ask_again())

    def _instruct(self, text):
        self._chat.instruct(text)

    def _save(self, name):
        messages = self._chat.messages
        if not messages or messages[-1]["role"] != ASSISTANT:
            raise UserError("/save: there is no answer yet to save")
        if "\0" in name or name.endswith(texts.COMPRESSED):
            raise UserError(f"/save {safe_repr(name)}: what is saved is plain JSON; choose a name such as talk.json")
        path = os.path.realpath(os.path.expanduser(name))  # a link stays
        if os.path.exists(path) and not _is_saved(path):
            raise UserError(f"{name}: not a saved conversation, so it is not replaced; choose another name")
        with atomic_write(path) as file:
            file.write((json.dumps({"messages": messages}, ensure_ascii=False) + "\n").encode())
        _say(f"saved to {name}")

    def _load(self, name):
        path = os.path.expanduser(name)
        if not os.path.isfile(path):
            raise UserError(f"{name}: no such file")
        try:
            found = list(itertools.islice(read_conversations(f"./{path}" if path == texts.STDIN else path), 2))
        except UserError as error:
            raise UserError(f"/load takes one conversation, as /save writes it: {error}") from error
        if len(found) > 1:
            raise UserError(f"{name}: several conversations; /load takes one")
        ((place, messages),) = found
        self._chat.replace(messages, place)
        self._dropped = 0
        count = sum(message["role"] == USER for message in messages)
        _say(f"{count:,} turn{'' if count == 1 else 's'} from {name}")

    def _set(self, argument):
        name, _, value = argument.partition(" ")
        settings = self._settings()
        if not argument:
            _say("\n".join(f"{name} {value}" for name, value in settings.items()))
            return
        if name not in settings:
            raise UserError(f"/set {safe_repr(name)}: expected one of {', '.join(settings)}")
        try:
            self._change(name.replace("-", "_"), value.strip())
        except ValueError as error:
            raise UserError(f"/set {name} {safe_repr(value.strip())}: expected {_expected(name)}") from error

    def _settings(self):
        """Returns a dict of each setting's name and value, a str."""
        chat = self._chat
        values = {name: getattr(chat.sampling, name) for name in SAMPLING}
        values |= {"max_new_tokens": chat.max_new_tokens, "seed": self._seed, "speed": ON if self._speed else OFF}
        return {name.replace("_", "-"): OFF if value is None else f"{value}" for name, value in values.items()}

    def _change(self, name, value):
        """Sets a setting to a text. Raises ValueError, or UserError for a number that is out of range."""
        chat = self._chat
        if name == "speed":
            self._speed = (OFF, ON).index(value) == 1
        elif name == "seed":
            seed = None if value == OFF else int(value)
            check_seed("seed", seed)
            chat.seed(seed)
            self._seed = seed
        elif name == "max_new_tokens":
            check_count("max-new-tokens", int(value))
            chat.max_new_tokens = int(value)
        else:
            off = value == OFF and name.replace("_", "-") in MAY_BE_OFF
            number = None if off else SAMPLING[name](value)
            chat.sampling = dataclasses.replace(chat.sampling, **{name: number})


def _expected(name):
    """Returns what a setting's value may be, for an error message."""
    if name == "speed":
        return f"{ON} or {OFF}"
    number = "a number" if SAMPLING.get(name.replace("-", "_")) is float else "an integer"
    return f"{number}, or {OFF}" if name in MAY_BE_OFF else number


def _is_saved(path):
    try:
        return os.path.isfile(path) and read_json(path, LIMIT, "a conversation").keys() == {"messages"}
    except UserError:
        return False


def _say(text):
    print(text, file=sys.stderr, flush=True)
