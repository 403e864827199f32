"""Text that the model writes while it is trained."""

import numpy as np

from gpt2.data import tokenizer
from gpt2.errors import UserError
from gpt2.inference.context import Context
from gpt2.inference.sampling import Sampling, generate


class Sampler:
    """Prints samples of a model. That of a step depends on its weights and the seed, not on earlier samples."""

    def __init__(self, model, count, prompt, seed):
        """count: tokens in a sample. prompt: text to continue; empty: a sample begins a new document."""
        self.count, self.seed = count, seed
        self.encoding = _encoding(model.config.V)
        self.prompt = prompt = tokenizer.decode_text(prompt.encode(), "--prompt")
        if not prompt:
            # The last token of GPT-2's vocabulary is <|endoftext|>, which precedes every document.
            self.prompt_tokens = [model.config.V - 1]
        elif self.encoding:
            self.prompt_tokens = self.encoding.encode_ordinary(prompt)
        else:
            raise UserError("--prompt needs GPT-2's vocabulary, which is not there or not the model's")
        length = min(model.config.maxT, len(self.prompt_tokens) + count)
        self.context = Context(model.config, model.params_flat, length=length)

    def show(self, step, stop):
        """Generates and prints the sample of a step. Returns False, with nothing printed, once `stop.received`.

        stop: a signals.StopSignals.
        """
        self.context.forget(self.context.tokens.size)
        self.context.add([self.prompt_tokens])
        rng = np.random.default_rng([self.seed, step])
        tokens = []
        for (token,) in generate(self.context, self.count, Sampling(), [rng]):
            if stop.received:
                return False
            tokens.append(token.id)
        text = " ".join(map(str, tokens)) if self.encoding is None else self.encoding.decode(tokens)
        print(f"--- sample ---\n{self.prompt}{text}\n--------------", flush=True)
        return True


def _encoding(V):
    if tokenizer.EOT + 1 != V:
        print("the model's vocabulary is not GPT-2's: samples are shown as token ids")
        return None
    try:
        return tokenizer.load_tokenizer()
    except UserError as error:
        print(f"samples are shown as token ids: {error}")
        return None
