"""A prompt loop. GPT-2 is no chat model: what is typed and what it replies are one text that both continue."""

import contextlib
import sys

from gpt2.data.tokenizer import EOT
from gpt2.inference.sampling import generate
from gpt2.inference.textstream import TextStream

with contextlib.suppress(ImportError):
    import readline  # noqa: F401  gives input() line editing and a history, which is not kept after the session

HELP = (
    "Type text, and the model continues it; an empty line lets it go on. "
    "Ctrl-C stops a reply, Ctrl-D ends. Nothing is kept after the session."
)
SLID = "past {} tokens the window slides: the beginning of the text is let go"


class Conversation:
    """A text that the user and the model write in turn, and the context that has read it.

    The context holds what stands on the screen: a line that is typed after a reply starts a new line, and a reply that
    an end of text or a stop text ended is without it. (What was held back when a reply is interrupted, part of a
    character or of a stop text, stays in it unseen.)
    """

    def __init__(self, context, encoding, sampling, rng, max_new_tokens, stops=()):
        """context: gpt2.inference.context.Context of one sample. The others: see `generate` and `TextStream`."""
        self._context, self._encoding, self._stops = context, encoding, stops
        self._sampling, self._rng, self._max_new_tokens = sampling, rng, max_new_tokens
        self._line_open = False

    def add(self, text):
        """Puts the user's text at the end."""
        text.encode()  # what is not UTF-8 was decoded to lone surrogates, which the vocabulary would replace
        self._context.add([self._encoding.encode_ordinary("\n" + text if self._line_open else text)])
        self._shown(text)

    def reply(self):
        """Yields the model's continuation, piece by piece."""
        if not self._context.tokens.size:
            self._context.add([[EOT]])
        stream, shown = TextStream(self._encoding, self._stops), ""
        steps = generate(self._context, self._max_new_tokens, self._sampling, [self._rng])
        for count, (token,) in enumerate(steps, start=1):
            piece = stream.feed(token)
            shown += piece
            # Before the piece is shown, which is where the reply may be interrupted.
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
        """Reads lines and prints replies until Ctrl-D; Ctrl-C ends a reply or a line."""
        print(HELP, file=sys.stderr)
        said = False
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
                print("that line is not UTF-8: it is left out", file=sys.stderr)
                continue
            print()
            if self._context.slid and not said:
                said = True
                print(SLID.format(self._context.length), file=sys.stderr)
