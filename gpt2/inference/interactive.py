"""Interactive prompt loop. GPT-2 is not a chat model: the user and the model take turns extending one text."""

import contextlib
import sys

from gpt2.data.tokenizer import EOT
from gpt2.inference.sampling import generate
from gpt2.inference.textstream import TextStream

with contextlib.suppress(ImportError):
    import readline  # noqa: F401  gives input() line editing and a history for the session

HELP = (
    "Type text for the model to continue; an empty line lets it carry on. "
    "Ctrl-C stops a reply, Ctrl-D ends the session. Nothing is saved."
)
SLID = "text exceeds the context of {} tokens: the model no longer sees its beginning"


class Conversation:
    """A text that the user and the model extend in turn, and the Context that has read it.

    The context matches the screen: text typed after a reply starts on a new line, and the end of text or stop text that
    ended a reply is removed. (Text held back when a reply is interrupted, an incomplete character or the start of a
    stop text, remains in the context.)
    """

    def __init__(self, context, encoding, sampling, rng, max_new_tokens, stops=()):
        """context: a Context of one sample. The others: see sampling.generate and textstream.TextStream."""
        self._context, self._encoding, self._stops = context, encoding, stops
        self._sampling, self._rng, self._max_new_tokens = sampling, rng, max_new_tokens
        self._line_open = False

    def add(self, text):
        """Appends the user's text. Raises UnicodeEncodeError if it has lone surrogates, which stand for bad UTF-8."""
        text.encode()
        self._context.add([self._encoding.encode_ordinary("\n" + text if self._line_open else text)])
        self._shown(text)

    def reply(self):
        """Yields the model's continuation in pieces of text."""
        if not self._context.tokens.size:
            self._context.add([[EOT]])
        stream, shown = TextStream(self._encoding, self._stops), ""
        steps = generate(self._context, self._max_new_tokens, self._sampling, [self._rng])
        for count, (token,) in enumerate(steps, start=1):
            piece = stream.feed(token)
            shown += piece
            # Before the yield: the reply may be interrupted there.
            self._shown(piece)
            yield piece
            if stream.done:
                self._context.forget(count)
                self._context.add([self._encoding.encode_ordinary(shown)])
                return
        rest = stream.finish()
        self._shown(rest)
        yield rest

    def _shown(self, text):
        if text:
            self._line_open = not text.endswith("\n")

    def run(self):
        """Reads lines and prints replies until Ctrl-D; Ctrl-C abandons the current reply or line."""
        print(HELP, file=sys.stderr)
        warned = False
        while True:
            try:
                line = input("> ")
                if line:
                    self.add(line)
                for piece in self.reply():
                    print(piece, end="", flush=True)
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                pass
            except UnicodeEncodeError:
                print("ignored a line that is not UTF-8", file=sys.stderr)
                continue
            print()
            if self._context.slid and not warned:
                warned = True
                print(SLID.format(self._context.length), file=sys.stderr)
