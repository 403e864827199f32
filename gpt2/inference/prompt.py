"""Reads a prompt and turns it into the tokens that generation starts from."""

import sys

from gpt2.errors import UserError
from gpt2.formats.files import open_to_read


def read_prompt(text, path, stdin):
    """Returns the prompt as a str, from the first source given, or None if there is none.

    text: a str from the command line. path: a file, of which a final line break is dropped. stdin: a text stream,
    read in the same way unless it is a terminal. Each may be None. Raises UserError if the prompt is empty or not
    UTF-8.
    """
    if text is not None:
        source, data = "--prompt", text.encode("utf-8", "surrogateescape")
    elif path is not None:
        source = path
        with open_to_read(source, pipe=True) as file:
            data = _without_final_line_break(file.read())
    elif stdin is None or stdin.isatty():
        return None
    else:
        source, data = "standard input", _without_final_line_break(stdin.buffer.read())
    if not data:
        raise UserError(f"{source}: the prompt is empty; omit it to start a new document")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{source}: not UTF-8 at byte {error.start}; convert it to UTF-8") from error


def _without_final_line_break(data):
    return data.removesuffix(b"\r\n" if data.endswith(b"\r\n") else b"\n")


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
