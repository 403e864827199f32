"""A conversation with a model, as its vocabulary's chat template writes it."""

import bisect

from gpt2.data.chat_template import ChatTemplate
from gpt2.data.conversations import ASSISTANT, SYSTEM, USER
from gpt2.errors import UserError
from gpt2.inference.sampling import generate, random_streams
from gpt2.inference.textstream import TextStream

# How an answer ended: by a token that ends it or a stop text; at max_new_tokens; at the end of the window; by the user.
ENDED, CUT, FULL, STOPPED = "ended", "cut", "full", "stopped"


class Chat:
    """A conversation, and the Context that has read it.

    The texts are all there is to it: for each answer the template turns them into tokens, of which those are computed
    that do not begin what the Context has read. So a saved conversation goes on as it would have.

    Attributes: `messages`, a list of dicts of "role" and "content", which never ends with the user's; `dropped`, how
    many of them, after the system's, no longer fit the model's window; `template`; `sampling`, a Sampling, `rng` and
    `max_new_tokens`, for the next answer; of the last one `ended` and `count`, the number of its tokens.
    """

    def __init__(self, context, words, sampling, max_new_tokens, seed=None):
        """context: a Context of one sample. words: its model's vocabulary. seed: as for random_streams.

        Raises UserError if the vocabulary is unknown or its template does not parse.
        """
        self.template = ChatTemplate(words)
        self._context, self._words, self._ends = context, words, words.control_tokens
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        self.messages, self.dropped, self.ended, self.count = [], 0, None, 0
        self.seed(seed)

    def seed(self, seed):
        """Draws what follows from a seed, a nonnegative integer or None."""
        (self.rng,) = random_streams(seed, 1)

    @property
    def window(self):
        """The number of tokens that the model sees at most."""
        return self._context.length

    @property
    def system(self):
        """The system's message, in a list; an empty list without one."""
        return [message for message in self.messages[:1] if message["role"] == SYSTEM]

    def replace(self, messages, source):
        """Goes on from another conversation. source: its name. Raises UserError, unchanged, if it has no tokens."""
        self.template.encode(messages, source=source)
        self.messages, self.dropped = messages, 0

    def clear(self):
        """Forgets all but the system's message."""
        self.messages, self.dropped = self.system, 0

    def instruct(self, text):
        """Sets the system's message, or with an empty text removes it.

        Raises UserError, with the earlier one kept, if text has no tokens or leaves no room for a question.
        """
        system = [{"role": SYSTEM, "content": text}] if text else []
        self._words.encode(text, "the system message")
        size = len(self._encode([*system, {"role": USER, "content": ""}]))
        if size >= self.window:
            raise UserError(
                f"a system message of {size:,} tokens, with what the template adds, leaves no room for a question in "
                f"the model's window of {self.window:,}; shorten it"
            )
        self.messages, self.dropped = [*system, *self.messages[len(self.system) :]], 0

    def ask(self, text):
        """Yields the answer to a text in pieces; closing the generator stops it, and keeps what was yielded.

        Question and answer are then part of the conversation, unless nothing was answered. Raises UserError, with
        nothing yielded, if the text does not fit the window or the vocabulary.
        """
        return self._answer([*self.messages, {"role": USER, "content": text}])

    def ask_again(self):
        """Yields another answer to the last question, which takes the place of the one that there is."""
        if not self.messages or self.messages[-1]["role"] != ASSISTANT:
            raise UserError("there is no answer yet to give again")
        return self._answer(self.messages[:-1])

    def _answer(self, messages):
        """Yields the answer to messages that end with the user's, and adds it to them."""
        stream, shown = TextStream(self._words, self.template.stops, self._ends), ""
        self.ended, self.count, dropped = STOPPED, 0, self.dropped
        try:
            for token in self._tokens(messages):
                self.count += 1
                piece = stream.feed(token)
                piece = piece.lstrip() if self.template.is_plain and not shown else piece
                shown += piece  # before the yield, at which the answer may be stopped
                yield piece
                if stream.done:
                    self.ended = ENDED
                    break
            rest = stream.finish()
            shown += rest
            yield rest
        finally:
            answer = shown.strip() if self.template.is_plain else shown
            if answer.strip():
                self.messages = [*messages, {"role": ASSISTANT, "content": answer}]
            else:
                self.dropped = dropped

    def _tokens(self, messages):
        """Yields the Tokens of an answer, until there are max_new_tokens or there is no room for another."""
        prompt, reply = self._prompt(messages), []
        if prompt is None:
            size = len(self._encode([*self.system, messages[-1]]))
            raise UserError(
                f"a message of {size:,} tokens, with the system's and what the template adds, exceeds the model's "
                f"window of {self.window:,}; shorten it"
            )
        self._context.become(prompt)
        while len(reply) < self.max_new_tokens:
            if len(prompt) + len(reply) > self.window:
                prompt = self._prompt(messages, len(reply))
                if prompt is None:
                    self.ended = FULL
                    return
                self._context.become(prompt + reply)
            (token,) = next(generate(self._context, 1, self.sampling, [self.rng]))
            reply.append(token.id)
            yield token
        self.ended = CUT

    def _prompt(self, messages, more=0):
        """Returns the tokens that an answer follows, of which `more` are there already, or None if they do not fit.

        A new answer takes a quarter of the window free, the rest of one a token. If there is less, the oldest turns are
        dropped, until half is free or none is left. Models that were tuned on whole conversations have hardly seen an
        answer of some length begin near the end of the window, and none that lost what it began after.
        """
        start, length = len(self.system), self.window

        def tokens(dropped):
            return self._encode([*self.system, *messages[start + dropped :]])

        prompt = tokens(self.dropped)
        if len(prompt) + more <= length - (0 if more else length // 4):
            return prompt
        choices = range(self.dropped, len(messages) - start, 2)  # the last leaves the question alone
        found = bisect.bisect_left(choices, True, key=lambda dropped: len(tokens(dropped)) + more <= length // 2)
        dropped = choices[min(found, len(choices) - 1)]
        prompt = tokens(dropped)
        if len(prompt) + more > length:
            return None
        self.dropped = dropped
        return prompt

    def _encode(self, messages):
        return self.template.encode(messages, reply=True)[0]
