"""A text continued in one call: GPT2.generate."""

import numpy as np

from gpt2.data.tokenizer import decode_text
from gpt2.data.vocabulary import Tokenizer, found_vocabulary
from gpt2.errors import UserError
from gpt2.inference.context import Context
from gpt2.inference.prompt import encode_prompt
from gpt2.inference.sampling import Sampling, check_count, check_seed, generate, random_streams
from gpt2.inference.textstream import TextStream, text_pieces


def complete(model, prompt, max_new_tokens, seed, tokenizer, **sampling):
    """Returns the prompt and its continuation, a str; see GPT2.generate."""
    check_count("max_new_tokens", max_new_tokens)
    check_seed("seed", seed)
    sampling = Sampling(**sampling)
    if model.params_flat.dtype != np.float32:
        raise ValueError(f"a model in {model.params_flat.dtype} generates no text: float32 expected")
    words = tokenizer or model.tokenizer
    if not isinstance(words, Tokenizer):
        words = found_vocabulary("the model", model.vocabulary, words)
    if words.problem:
        raise UserError(f"{words.problem}; name one: generate(..., tokenizer=Tokenizer.from_pretrained(FOLDER))")
    text = decode_text(prompt.encode(errors="surrogatepass"), "the prompt")
    tokens = encode_prompt(model.config, words, text or None)
    context = Context(model.config, model.params_flat, length=min(model.config.maxT, len(tokens) + max_new_tokens))
    context.add([tokens])
    steps = generate(context, max_new_tokens, sampling, random_streams(seed, 1))
    return text + "".join(piece for (piece,) in text_pieces(steps, [TextStream(words)]))
