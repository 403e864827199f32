"""Text that the model writes while it is trained."""

import numpy as np

from gpt2.data.tokenizer import decode_text
from gpt2.data.vocabulary import UnknownVocabulary
from gpt2.errors import UserError
from gpt2.inference.context import Context
from gpt2.inference.prompt import encode_prompt
from gpt2.inference.sampling import Sampling, generate

SAMPLE_LIMIT = 1 << 16  # characters of a sample in a record, of at most 12 bytes each: a line has metrics.LINE_LIMIT


class Sampler:
    """Prints samples of a model. That of a step depends on its weights and the seed, not on earlier samples."""

    def __init__(self, model, vocabulary, count, prompt, seed):
        """vocabulary: from `readable`. count: tokens in a sample. prompt: text to continue, or empty."""
        self.count, self.seed = count, seed
        self.vocabulary = vocabulary
        self.prompt = prompt = decode_text(prompt.encode(), "--prompt")
        if prompt and vocabulary.problem:
            raise UserError(f"--prompt needs the model's vocabulary, but {vocabulary.problem}")
        self.prompt_tokens = encode_prompt(model.config, vocabulary, prompt or None)
        length = min(model.config.maxT, len(self.prompt_tokens) + count)
        self.context = Context(model.config, model.params_flat, length=length)

    def show(self, step, stop):
        """Generates, prints and returns the sample of a step; None, with nothing printed, once `stop.received`.

        stop: a signals.StopSignals.
        """
        self.context.forget(self.context.tokens.size)
        self.context.add([self.prompt_tokens])
        rng = np.random.default_rng([self.seed, step])
        tokens = []
        for (token,) in generate(self.context, self.count, Sampling(), [rng]):
            if stop.received:
                return None
            tokens.append(token.id)
        text = " ".join(map(str, tokens)) if self.vocabulary.problem else self.vocabulary.decode(tokens)
        text = self.prompt + text
        print(f"--- sample ---\n{text}\n--------------", flush=True)
        return text


def readable(vocabulary):
    """Returns a model's vocabulary, or an unknown one if texts cannot be decoded with it; says so then."""
    if not vocabulary.problem:
        try:
            vocabulary.encode("")  # GPT-2's is read now, or downloaded
        except UserError as error:
            vocabulary = UnknownVocabulary(str(error), vocabulary.sha256, vocabulary)
    if vocabulary.problem:
        print(f"samples are shown as token ids: {vocabulary.problem}")
    return vocabulary
