"""Reads a prompt and turns it into the tokens that generation starts from."""

import io
import json
import select
import sys

from gpt2.data import texts
from gpt2.data.tokenizer import decode_text
from gpt2.errors import UserError, from_os_error, safe_repr
from gpt2.formats.files import open_to_read

STDIN = "-"  # as a path
MOST_BYTES = 2**26  # of a prompt: a pipe or a device may never end
SILENT_SECONDS = 5  # that a pipe may take to say something before there is taken to be no prompt


def has_prompts(path):
    """Whether --prompt-file, a path or None, names a file of many prompts rather than of one."""
    return path is not None and path.endswith(".jsonl")


def read_prompt(text, path, stdin):
    """Returns the prompt as a str, from the first source given, or None if there is none.

    text: a str from the command line. path: a file, or "-" for `stdin`. stdin: a text stream, read unless it is a
    terminal or stays silent for 5 seconds; if it is empty, there is no prompt. Each may be None. Of a file or stream,
    a final line break is dropped. Line ends and byte order marks: see decode_text. Raises UserError if the prompt is
    not UTF-8, too long, or empty in `text` or a file.
    """
    if text is not None:
        source, prompt = "--prompt", decode_text(text.encode("utf-8", "surrogateescape"), "--prompt")
    elif path not in (None, STDIN):
        source = path
        with open_to_read(path, pipe=True) as file:
            prompt = _read(file, path)
    elif stdin is None or (path is None and (stdin.isatty() or _stays_silent(stdin))):
        return None
    else:
        return _read(stdin.buffer, "standard input") or None
    if not prompt:
        raise UserError(f"{source}: the prompt is empty; omit it to start a new document")
    return prompt


def read_prompts(path):
    """Returns a list of (place, prompt), str, for the lines of a JSON Lines file: strings, or objects with a "prompt".

    place: the file and line, for error messages. Raises UserError for a line that is neither, and for no lines.
    """
    found = []
    for number, line in texts.lines(path):
        if not line.strip():
            continue
        place = f"{path}: line {number:,}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not JSON: {error}") from error
        prompt = value.get("prompt") if isinstance(value, dict) else value
        if not isinstance(prompt, str):
            raise UserError(f'{place}: {safe_repr(value)}, expected a text or {{"prompt": a text}}')
        if not prompt:
            raise UserError(f"{place}: the prompt is empty")
        found.append((place, decode_text(prompt.encode("utf-8", "surrogatepass"), place)))
    if not found:
        raise UserError(f"{path}: empty, expected a prompt in each line")
    return found


def _read(file, source):
    """Returns the text of a binary file without its final line break; `source` names it in errors."""
    try:
        data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise from_os_error(error, source) from error
    if len(data) > MOST_BYTES:
        raise UserError(f"{source}: a prompt of more than {MOST_BYTES:,} bytes; keep its end, all that the model reads")
    return decode_text(data, source).removesuffix("\n")


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


def encode_prompt(config, vocabulary, text, source="the prompt"):
    """Returns the tokens of a prompt, at most the last maxT, a list of int; prints to stderr if any are dropped.

    Without a prompt (None): the token that begins a text; of an unknown vocabulary, if the model does not say, the
    last. Raises UserError if a known one has none.
    """
    if text is None:
        if vocabulary.begin is None and not vocabulary.problem:
            raise UserError("the vocabulary has no token that begins a text; give a prompt")
        tokens = [config.V - 1 if vocabulary.begin is None else vocabulary.begin]
    else:
        tokens = [*vocabulary.prefix, *vocabulary.encode(text, source)]
    if beyond := [token for token in tokens if token >= config.V]:
        raise UserError(f"{source}: token {beyond[0]} of the vocabulary, but the model has {config.V} tokens")
    excess = len(tokens) - config.maxT
    if excess > 0:
        message = f"prompt of {len(tokens)} tokens exceeds the context of {config.maxT}: dropping the first {excess}"
        print(message, file=sys.stderr)
    return tokens[-config.maxT :]
