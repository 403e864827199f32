"""With the KV cache, logits equal those of the whole sequence computed at once."""

import tracemalloc

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.inference import decoder as decoder_module
from gpt2.inference.decoder import Decoder
from gpt2.inference.forms import FLOAT32, FORMS
from gpt2.kernels import decode, small_batch
from gpt2.kernels.matmul import matmul_forward, matmul_gelu_forward, matmul_nt, matmul_residual_forward
from gpt2.machine import set_threads
from tests.support.narrow import narrow, stored, values
from tests.support.numeric import assert_close, randomise, tiny

TINY = {"maxT": 12, "V": 13, "L": 2, "NH": 2, "C": 10}
# Head sizes that are no multiple of a vector (TINY: 5, ODD: 21); ODD has more than one block of 64 queries.
ODD = {"maxT": 150, "V": 131, "L": 2, "NH": 3, "C": 63}
EVEN = {"maxT": 80, "V": 128, "L": 3, "NH": 2, "C": 64}


def make(sizes, B, T):
    """Returns (model, random tokens (B,T), the uncached logits (B,T,V))."""
    model, _, tokens, logits = make_in(FLOAT32, sizes, B, T)
    return model, tokens, logits


def make_in(form, sizes, B, T):
    """Returns (model, its weights in a form, random tokens (B,T), the uncached logits (B,T,V) of the same values)."""
    rng = np.random.default_rng(1)
    model = GPT2(GPT2Config(**sizes))
    randomise(model, rng)
    weights = narrow(model, form)
    tokens = rng.integers(0, model.config.V, (B, T))
    return model, weights, tokens, model.logits(tokens)


def assert_same(logits, expected):
    assert logits.dtype == np.float32
    assert_close(logits, expected, 1e-5)
    assert np.abs(logits - expected).max() <= 1e-4


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("sizes", "B", "T"),
    [
        pytest.param(TINY, 1, 12, id="tiny-1"),
        pytest.param(TINY, 3, 7, id="tiny-3"),
        pytest.param(ODD, 1, 150, id="odd-1"),
        pytest.param(ODD, 3, 70, id="odd-3"),
        # More sequences than the small-batch kernels take.
        pytest.param(EVEN, small_batch.SMALL_BATCH + 1, 9, id="even-many"),
    ],
)
def test_one_token_at_a_time(sizes, B, T, form):
    model, weights, tokens, expected = make_in(form, sizes, B, T)
    decoder = Decoder(model.config, weights, B)
    for t in range(T):
        assert decoder.position == t
        assert_same(decoder.forward(tokens[:, t : t + 1]), expected[:, t])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("sizes", "B", "cuts"),
    [
        pytest.param(TINY, 2, [[], [1], [5], [11], [3, 4, 9]], id="tiny"),
        # Parts of one token, a few, many, and more than a block of queries, with an empty to a long cache.
        (ODD, 1, [[], [1], [4], [9], [64], [65], [149], [70, 71, 75, 84]]),
        (EVEN, 3, [[], [1, 3], [40], [77, 79]]),
    ],
)
def test_prompt_in_parts(sizes, B, cuts, form):
    model, weights, tokens, expected = make_in(form, sizes, B, sizes["maxT"])
    decoder = Decoder(model.config, weights, B)
    for ends in cuts:
        decoder.position = 0
        for part in np.split(tokens, ends, axis=1):
            logits = decoder.forward(part)
            assert_same(logits, expected[:, decoder.position - 1])
        assert decoder.position == sizes["maxT"]


def test_long_prompt_in_chunks_tiny(monkeypatch):
    monkeypatch.setattr(decoder_module, "CHUNK", 5)
    for B in (1, 2, 7):
        model, tokens, expected = make(TINY, B, 12)
        assert_same(Decoder(model.config, model.params_flat, B).forward(tokens), expected[:, -1])


@pytest.mark.parametrize("sizes", [pytest.param(TINY, id="tiny"), EVEN])
def test_shared_prompt(sizes):
    model, tokens, expected = make(sizes, 3, 11)
    tokens[:, :8] = tokens[0, :8]
    expected = model.logits(tokens)
    decoder = Decoder(model.config, model.params_flat, 3, length=11)
    assert_same(decoder.forward(tokens[:1, :8]), expected[:, 7])
    for t in range(8, 11):
        assert_same(decoder.forward(tokens[:, t : t + 1]), expected[:, t])


def test_smaller_position_drops_later_tokens_tiny():
    model, tokens, expected = make(TINY, 2, 12)
    decoder = Decoder(model.config, model.params_flat, 2)
    decoder.forward((tokens + 1) % TINY["V"])
    decoder.position = 0
    decoder.forward(tokens[:, :6])
    decoder.forward((tokens[:, 6:9] + 5) % TINY["V"])
    decoder.position = 6
    assert_same(decoder.forward(tokens[:, 6:10]), expected[:, 9])


@pytest.mark.parametrize("rows", [[2, 0, 2], [0, 1, 2], [1, 2, 0], [1, 1, 1]])
def test_reorder_tiny(rows):
    model, tokens, _ = make(TINY, 3, 9)
    decoder = Decoder(model.config, model.params_flat, 3)
    decoder.forward(tokens[:, :6])
    decoder.reorder(np.array(rows))
    tokens[:, :6] = tokens[rows, :6]
    assert_same(decoder.forward(tokens[:, 6:7]), model.logits(tokens)[:, 6])
    decoder.reorder(rows)
    tokens[:, :7] = tokens[rows, :7]
    assert_same(decoder.forward(tokens[:, 7:]), model.logits(tokens)[:, 8])


def test_parameters_are_shared_and_not_modified_tiny():
    model, tokens, before = make(TINY, 1, 5)
    decoder = Decoder(model.config, model.params_flat)
    decoder.forward(tokens)
    model.params["wte"] *= 2
    kept = model.params_flat.copy()
    decoder.position = 0
    logits = decoder.forward(tokens)
    assert_same(logits, model.logits(tokens)[:, -1])
    assert np.abs(logits - before[:, -1]).max() > 0.1
    assert np.array_equal(model.params_flat, kept)


def test_memory_mapped_parameters(tmp_path):
    model, tokens, expected = make(TINY, 1, 6)
    model.save(tmp_path / "model.bin")
    params = np.memmap(tmp_path / "model.bin", np.float32, mode="c", offset=1024)
    Decoder(model.config, model.params_flat).forward(tokens)
    compiled = list(decode.append.signatures)
    assert_same(Decoder(model.config, params).forward(tokens), expected[:, -1])
    assert decode.append.signatures == compiled, "compiled again for a memory map"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("B", [1, 3])
def test_logits_are_bit_identical_for_any_number_of_threads(B, form):
    model, weights, tokens, _ = make_in(form, ODD, B, 80)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        decoder = Decoder(model.config, weights, B)
        parts = (tokens[:, :70], tokens[:, 70:73], *np.split(tokens[:, 73:], 7, axis=1))
        results.append([decoder.forward(part).copy() for part in parts])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("form", FORMS)
def test_sequence_does_not_depend_on_the_others_in_the_batch(form):
    model, weights, tokens, _ = make_in(form, ODD, 7, 5)
    together = Decoder(model.config, weights, 7)
    logits = [together.forward(tokens[:, t : t + 1]).copy() for t in range(5)]
    for row in range(7):
        alone = Decoder(model.config, weights)
        for t in range(5):
            assert np.array_equal(alone.forward(tokens[row : row + 1, t : t + 1])[0], logits[t][row])


def test_step_does_not_allocate():
    model, tokens, _ = make(EVEN, 3, 30)
    decoder = Decoder(model.config, model.params_flat, 3)
    for part in (tokens[:, :9], tokens[:, 9:10]):
        decoder.forward(part)
    tracemalloc.start()
    try:
        for t in range(10, 30):
            decoder.forward(tokens[:, t : t + 1])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Only the tokens and views of arrays, less than a row of logits per sequence.
    assert peak < 100_000 and peak < decoder._keys.nbytes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("N", "C", "OC"), [tiny(1, 5, 3), tiny(6, 70, 18), (1, 1, 1), (8, 1027, 37), (3, 2500, 16)])
def test_small_batch_products(N, C, OC, form):
    rng = np.random.default_rng(2)
    inp, weight, bias, residual = (
        rng.standard_normal(shape, np.float32) for shape in ((N, C), (OC, C), (OC,), (N, OC))
    )

    def both(few, many, *arguments, outputs=1):
        """Asserts that both kernels overwrite their outputs with the same values."""
        written = [[np.full((N, OC), np.nan, np.float32) for _ in range(outputs)] for _ in range(2)]
        few(*written[0], *(stored(each, form) if each is weight else each for each in arguments))
        many(*written[1], *(values(each, form) if each is weight else each for each in arguments), False)
        for actual, expected in zip(*written, strict=True):
            assert_close(actual, expected, 3e-6, few.__name__)

    both(small_batch.small_batch_forward, matmul_forward, inp, weight, bias)
    both(small_batch.small_batch_residual_forward, matmul_residual_forward, residual, inp, weight, bias)
    both(small_batch.small_batch_gelu_forward, matmul_gelu_forward, inp, weight, bias, outputs=2)
    both(small_batch.small_batch_nt, matmul_nt, inp, weight)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1], [2]], "tokens of 2 sequences: expected 3"),
        ([1, 2, 3], "expected integers (B, n)"),
        ([[]] * 3, "expected integers (B, n)"),
        ([[1.0]] * 3, "expected integers (B, n)"),
        ([[1], [2], [13]], "out of range: expected 0 to 12"),
        ([[1], [-1], [3]], "out of range: expected 0 to 12"),
        ([[1] * 9] * 3, "9 tokens: the cache of 8 has room for 8"),
    ],
)
def test_bad_tokens_are_rejected_and_change_nothing_tiny(tokens, message):
    model, good, expected = make(TINY, 3, 4)
    decoder = Decoder(model.config, model.params_flat, 3, length=8)
    with pytest.raises(UserError) as refused:
        decoder.forward(tokens)
    assert message in str(refused.value)
    assert decoder.position == 0
    assert_same(decoder.forward(good), expected[:, -1])
    with pytest.raises(UserError, match="tokens of 1 sequences: expected 3"):
        decoder.forward(good[:1])
    with pytest.raises(UserError, match="5 tokens: the cache of 8 has room for 4"):
        decoder.forward(np.ones((3, 5), int))


def test_bad_sizes_positions_and_rows_are_rejected_tiny():
    model, tokens, _ = make(TINY, 2, 3)
    for batch_size, length in ((0, 4), (1, 0), (1, 13)):
        with pytest.raises(UserError, match=f"{batch_size} sequences of {length} tokens"):
            Decoder(model.config, model.params_flat, batch_size, length)
    decoder = Decoder(model.config, model.params_flat, 2)
    decoder.forward(tokens)
    for position in (-1, 4):
        with pytest.raises(ValueError, match="expected 0 to 3"):
            decoder.position = position
    for rows in ([0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="expected 2 numbers from 0 to 1"):
            decoder.reorder(rows)
