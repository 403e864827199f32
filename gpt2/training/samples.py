"""Text that the model writes while it is trained."""

import numpy as np

from gpt2.data import tokenizer
from gpt2.errors import UserError
from gpt2.inference.context import Context
from gpt2.inference.sampling import Sampling, generate


class Sampler:
    """Shows samples. The one after a step depends on that step's weights and the seed, not on the samples before."""

    def __init__(self, model, count, prompt, seed, data_dir):
        """count: tokens in a sample. prompt: text; empty: a new document. data_dir: where the vocabulary is kept."""
        self.model, self.count, self.seed = model, count, seed
        self.encoding = _encoding(model.config.V, data_dir)
        self.prompt_text = prompt
        if not prompt:
            # The last token of GPT-2's vocabulary is <|endoftext|>, which stands before every document.
            self.prompt = [model.config.V - 1]
        elif self.encoding:
            self.prompt = self.encoding.encode_ordinary(prompt)
        else:
            raise UserError("--prompt needs GPT-2's vocabulary, which is not there or not the model's")
        length = min(model.config.maxT, len(self.prompt) + count)
        self.context = Context(model.config, model.params_flat, length=length)

    def show(self, step):
        """Generates and prints the sample that belongs to a step."""
        self.context.forget(self.context.tokens.size)
        self.context.add([self.prompt])
        rng = np.random.default_rng([self.seed, step])
        tokens = [token.id for (token,) in generate(self.context, self.count, Sampling(), [rng])]
        text = " ".join(map(str, tokens)) if self.encoding is None else self.encoding.decode(tokens)
        print(f"--- sample ---\n{self.prompt_text}{text}\n--------------", flush=True)


def _encoding(V, data_dir):
    if tokenizer.EOT + 1 != V:
        print("the model's vocabulary is not GPT-2's: samples are shown as token ids")
        return None
    try:
        return tokenizer.load_tokenizer(data_dir)
    except UserError as error:
        print(f"samples are shown as token ids: {error}")
        return None
