"""Reads a prompt and turns it into the tokens that generation starts from."""

import io
import select
import sys

from gpt2.data.tokenizer import decode_text
from gpt2.errors import UserError
from gpt2.formats.files import open_to_read

STDIN = "-"  # as a path
SILENT_SECONDS = 5  # that a pipe may take to say something before there is taken to be no prompt


def read_prompt(text, path, stdin):
    """Returns the prompt as a str, from the first source given, or None if there is none.

    text: a str from the command line. path: a file, or "-" for `stdin`. stdin: a text stream, read unless it is a
    terminal or stays silent for 5 seconds; if it is empty, there is no prompt. Each may be None. Of a file or stream,
    a final line break is dropped. Line ends and byte order marks: see decode_text. Raises UserError if the prompt is
    not UTF-8, or empty in `text` or a file.
    """
    if text is not None:
        source, prompt = "--prompt", decode_text(text.encode("utf-8", "surrogateescape"), "--prompt")
    elif path not in (None, STDIN):
        source = path
        with open_to_read(path, pipe=True) as file:
            prompt = decode_text(file.read(), path).removesuffix("\n")
    elif stdin is None or (path is None and (stdin.isatty() or _stays_silent(stdin))):
        return None
    else:
        return decode_text(stdin.buffer.read(), "standard input").removesuffix("\n") or None
    if not prompt:
        raise UserError(f"{source}: the prompt is empty; omit it to start a new document")
    return prompt


def _stays_silent(stdin):
    """Returns whether nothing arrives on a stream for SILENT_SECONDS, not even its end, and says so on stderr."""
    try:
        if select.select([stdin], [], [], SILENT_SECONDS)[0]:
            return False
    except io.UnsupportedOperation:  # not a file of the system: always ready
        return False
    print(
        f"no prompt on standard input within {SILENT_SECONDS} seconds: starting a new document; "
        "--prompt-file - waits for one",
        file=sys.stderr,
        flush=True,
    )
    return True


def encode_prompt(config, encoding, text):
    """Returns the tokens of a prompt, at most the last maxT, a list of int; prints to stderr if any are dropped.

    Without a prompt (None): the vocabulary's last token, which is GPT-2's end of text.
    """
    if text is None:
        return [config.V - 1]
    tokens = encoding.encode_ordinary(text)
    excess = len(tokens) - config.maxT
    if excess > 0:
        message = f"prompt of {len(tokens)} tokens exceeds the context of {config.maxT}: dropping the first {excess}"
        print(message, file=sys.stderr)
    return tokens[-config.maxT :]
