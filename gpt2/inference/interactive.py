"""Interactive prompt loop. GPT-2 is not a chat model: the user and the model take turns extending one text."""

import contextlib
import sys

from gpt2.errors import UserError
from gpt2.inference.prompt import encode_prompt
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

    def __init__(self, context, vocabulary, sampling, rng, max_new_tokens, stops=()):
        """context: a Context of one sample. The others: see sampling.generate and textstream.TextStream."""
        self._context, self._vocabulary, self._stops = context, vocabulary, stops
        self._sampling, self._rng, self._max_new_tokens = sampling, rng, max_new_tokens
        self._line_open = False

    def add(self, text):
        """Appends the user's text. Raises UnicodeEncodeError if it has lone surrogates, which stand for bad UTF-8."""
        text.encode()
        tokens = self._vocabulary.encode("\n" + text if self._line_open else text, "the line")
        prefix = [] if self._context.tokens.size else self._vocabulary.prefix
        self._context.add([[*prefix, *tokens]])
        self._shown(text)

    def reply(self):
        """Yields the model's continuation in pieces of text."""
        if not self._context.tokens.size:
            self._context.add([encode_prompt(self._context.config, self._vocabulary, None)])
        stream, shown = TextStream(self._vocabulary, self._stops), ""
        steps = generate(self._context, self._max_new_tokens, self._sampling, [self._rng])
        for count, (token,) in enumerate(steps, start=1):
            piece = stream.feed(token)
            shown += piece
            # Before the yield: the reply may be interrupted there.
            self._shown(piece)
            yield piece
            if stream.done:
                self._context.forget(count)
                self._context.add([self._vocabulary.encode(shown)])
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
            except UserError as error:  # a character that the vocabulary lacks
                print(f"ignored: {error}", file=sys.stderr)
                continue
            print()
            if self._context.slid and not warned:
                warned = True
                print(SLID.format(self._context.length), file=sys.stderr)
