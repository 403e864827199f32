"""Cross-checks of gpt2.inspect's page with transformers: attention, probabilities, the logit lens."""

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.layout import MATRICES
from gpt2.pages.inspection import inspect
from tests.support.foreign import foreign_model, require
from tests.support.pages import CONFIG, WORDS, page_data, save_model, unpacked

pytestmark = pytest.mark.crosscheck

TEXT = 3 * "Before we proceed any further, hear me speak. You are all resolved rather to die than famish? "
LARGE = GPT2Config(maxT=256, V=WORDS.size, L=12, NH=12, C=768)  # GPT-2 124M's layers


@pytest.mark.parametrize(
    ("config", "T", "scales"),  # scales: of tensors, so that attention is far from even, and float32 resolves the rest
    [
        (CONFIG, 220, {"qkvw": 4}),
        pytest.param(LARGE, 128, dict.fromkeys(MATRICES, 0.2), marks=pytest.mark.slow),
    ],
)
def test_the_page_holds_what_transformers_computes(config, T, scales, tmp_path):
    torch = require("torch")
    model = save_model(tmp_path / "ours.bin", config=config)
    for name, scale in scales.items():
        model.params[name] *= scale
    model.save(tmp_path / "ours.bin")
    data = page_data(inspect(str(tmp_path / "ours.bin"), TEXT[:T])[0])
    tokens = torch.tensor([data["tokens"]])
    assert tokens.shape == (1, T)
    with torch.no_grad():
        theirs = foreign_model(model, "float32")
        found = theirs(tokens, output_attentions=True, output_hidden_states=True)
        probabilities = torch.softmax(found.logits[0], dim=-1)
        # transformers' last hidden state has been through the final layernorm; the others have not.
        stream = found.hidden_states[1:-1]
        lens = [torch.softmax(theirs.lm_head(theirs.transformer.ln_f(each))[0], dim=-1) for each in stream]
    (shown,) = data["models"]
    for layer, attention in enumerate(found.attentions):
        assert np.abs(unpacked(shown["attention"][layer], config.NH, T) - attention[0].numpy()).max() < 1e-4
        assert attention[:, :, 20:].max() > 0.2
    for l, expected in enumerate([*lens, probabilities], start=1):
        followed = expected[torch.arange(T - 1), tokens[0, 1:]].numpy()
        assert np.abs(np.exp(-np.array(shown["losses"][l])) - followed).max() < 1e-4
        guesses = np.array(shown["guesses"][l])
        likeliest = np.take_along_axis(expected.numpy(), guesses, axis=-1)
        assert np.abs(np.array(shown["probabilities"][l]) - likeliest).max() < 1e-4
        assert np.abs(likeliest - np.sort(expected.numpy(), axis=-1)[:, : -1 - guesses.shape[1] : -1]).max() < 1e-4
    for row, each in zip(shown["norms"][1:-1], stream, strict=True):
        assert np.allclose(row, each[0].norm(dim=-1).numpy(), rtol=1e-4)
