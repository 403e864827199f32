"""With the keys and values kept, the logits are those of the whole sequence computed at once."""

import tracemalloc

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.inference import decoder as decoder_module
from gpt2.inference.decoder import Decoder
from gpt2.kernels import decode
from gpt2.kernels.matmul import matmul_forward, matmul_gelu_forward, matmul_nt, matmul_residual_forward
from gpt2.machine import set_threads
from tests.numeric import assert_close, randomise, tiny

TINY = {"maxT": 12, "V": 13, "L": 2, "NH": 2, "C": 10}
# Heads of 5 and of 21 channels: no multiple of a vector. More than one block of 64 queries.
ODD = {"maxT": 150, "V": 131, "L": 2, "NH": 3, "C": 63}
EVEN = {"maxT": 80, "V": 128, "L": 3, "NH": 2, "C": 64}


def make(sizes, B, T):
    """Returns (model, tokens (B,T), the logits at every position, (B,T,V))."""
    rng = np.random.default_rng(1)
    model = GPT2(GPT2Config(**sizes))
    randomise(model, rng)
    tokens = rng.integers(0, model.config.V, (B, T))
    return model, tokens, model.logits(tokens)


def assert_same(logits, expected):
    assert logits.dtype == np.float32
    assert_close(logits, expected, 1e-5)
    assert np.abs(logits - expected).max() <= 1e-4


@pytest.mark.parametrize(
    ("sizes", "B", "T"),
    [
        pytest.param(TINY, 1, 12, id="tiny-1"),
        pytest.param(TINY, 3, 7, id="tiny-3"),
        pytest.param(ODD, 1, 150, id="odd-1"),
        pytest.param(ODD, 3, 70, id="odd-3"),
        # More sequences than a small batch.
        pytest.param(EVEN, decode.SMALL_BATCH + 1, 9, id="even-many"),
    ],
)
def test_one_token_at_a_time_gives_the_logits_of_every_position(sizes, B, T):
    model, tokens, expected = make(sizes, B, T)
    decoder = Decoder(model.config, model.params_flat, B)
    for t in range(T):
        assert decoder.position == t
        assert_same(decoder.forward(tokens[:, t : t + 1]), expected[:, t])


@pytest.mark.parametrize(
    ("sizes", "B", "cuts"),
    [
        pytest.param(TINY, 2, [[], [1], [5], [11], [3, 4, 9]], id="tiny"),
        # One token, few queries, many, and more than a block of them, after none, few and many.
        (ODD, 1, [[], [1], [4], [9], [64], [65], [149], [70, 71, 75, 84]]),
        (EVEN, 3, [[], [1, 3], [40], [77, 79]]),
    ],
)
def test_a_prompt_may_come_in_parts(sizes, B, cuts):
    model, tokens, expected = make(sizes, B, sizes["maxT"])
    decoder = Decoder(model.config, model.params_flat, B)
    for ends in cuts:
        decoder.position = 0
        for part in np.split(tokens, ends, axis=1):
            logits = decoder.forward(part)
            assert_same(logits, expected[:, decoder.position - 1])
        assert decoder.position == sizes["maxT"]


def test_a_long_prompt_goes_in_chunks_tiny(monkeypatch):
    monkeypatch.setattr(decoder_module, "CHUNK", 5)
    for B in (1, 2, 7):
        model, tokens, expected = make(TINY, B, 12)
        assert_same(Decoder(model.config, model.params_flat, B).forward(tokens), expected[:, -1])


@pytest.mark.parametrize("sizes", [pytest.param(TINY, id="tiny"), EVEN])
def test_one_prompt_begins_all_sequences(sizes):
    model, tokens, expected = make(sizes, 3, 11)
    tokens[:, :8] = tokens[0, :8]
    expected = model.logits(tokens)
    decoder = Decoder(model.config, model.params_flat, 3, length=11)
    assert_same(decoder.forward(tokens[:1, :8]), expected[:, 7])
    for t in range(8, 11):
        assert_same(decoder.forward(tokens[:, t : t + 1]), expected[:, t])


def test_a_smaller_position_forgets_the_rest_tiny():
    model, tokens, expected = make(TINY, 2, 12)
    decoder = Decoder(model.config, model.params_flat, 2)
    decoder.forward((tokens + 1) % TINY["V"])
    decoder.position = 0
    decoder.forward(tokens[:, :6])
    decoder.forward((tokens[:, 6:9] + 5) % TINY["V"])
    decoder.position = 6
    assert_same(decoder.forward(tokens[:, 6:10]), expected[:, 9])


@pytest.mark.parametrize("rows", [[2, 0, 2], [0, 1, 2], [1, 2, 0], [1, 1, 1]])
def test_sequences_go_on_from_each_other_tiny(rows):
    model, tokens, _ = make(TINY, 3, 9)
    decoder = Decoder(model.config, model.params_flat, 3)
    decoder.forward(tokens[:, :6])
    decoder.reorder(np.array(rows))
    tokens[:, :6] = tokens[rows, :6]
    assert_same(decoder.forward(tokens[:, 6:7]), model.logits(tokens)[:, 6])
    decoder.reorder(rows)
    tokens[:, :7] = tokens[rows, :7]
    assert_same(decoder.forward(tokens[:, 7:]), model.logits(tokens)[:, 8])


def test_parameters_are_shared_and_not_changed_tiny():
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


def test_parameters_may_be_a_map_of_a_file(tmp_path):
    model, tokens, expected = make(TINY, 1, 6)
    model.save(tmp_path / "model.bin")
    params = np.memmap(tmp_path / "model.bin", np.float32, mode="c", offset=1024)
    Decoder(model.config, model.params_flat).forward(tokens)
    compiled = list(decode.append.signatures)
    assert_same(Decoder(model.config, params).forward(tokens), expected[:, -1])
    assert decode.append.signatures == compiled, "compiled once more for a map"


@pytest.mark.parametrize("B", [1, 3])
def test_the_number_of_threads_changes_no_bit(B):
    model, tokens, _ = make(ODD, B, 80)
    results = []
    for threads in (1, 2, 3):
        set_threads(threads)
        decoder = Decoder(model.config, model.params_flat, B)
        parts = (tokens[:, :70], tokens[:, 70:73], *np.split(tokens[:, 73:], 7, axis=1))
        results.append([decoder.forward(part).copy() for part in parts])
    for other in results[1:]:
        assert all(np.array_equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_sequence_does_not_depend_on_those_beside_it():
    model, tokens, _ = make(ODD, 3, 5)
    alone, together = Decoder(model.config, model.params_flat), Decoder(model.config, model.params_flat, 3)
    for t in range(5):
        part = tokens[:, t : t + 1]
        assert np.array_equal(alone.forward(part[1:2])[0], together.forward(part)[1])


def test_a_step_allocates_nothing():
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
    # Not so much as a row of logits for each sequence: the tokens, and the views that kernels are given.
    assert peak < 100_000 and peak < decoder._keys.nbytes


@pytest.mark.parametrize(("N", "C", "OC"), [tiny(1, 5, 3), tiny(2, 3, 18), (1, 1, 1), (8, 1027, 37), (3, 2500, 16)])
def test_products_of_few_rows(N, C, OC):
    rng = np.random.default_rng(2)
    inp, weight, bias, residual = (
        rng.standard_normal(shape, np.float32) for shape in ((N, C), (OC, C), (OC,), (N, OC))
    )

    def both(few, many, *arguments, outputs=1):
        """Asserts that both kernels write the same, over what was there before."""
        written = [[np.full((N, OC), np.nan, np.float32) for _ in range(outputs)] for _ in range(2)]
        few(*written[0], *arguments)
        many(*written[1], *arguments)
        for actual, expected in zip(*written, strict=True):
            assert_close(actual, expected, 3e-6, few.__name__)

    both(decode.small_batch_forward, matmul_forward, inp, weight, bias)
    both(decode.small_batch_residual_forward, matmul_residual_forward, residual, inp, weight, bias)
    both(decode.small_batch_gelu_forward, matmul_gelu_forward, inp, weight, bias, outputs=2)
    both(decode.small_batch_nt, matmul_nt, inp, weight)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([[1], [2]], "tokens of 2 sequences, but 3"),
        ([1, 2, 3], "integers (B, n) expected"),
        ([[]] * 3, "integers (B, n) expected"),
        ([[1.0]] * 3, "integers (B, n) expected"),
        ([[1], [2], [13]], "between 0 and the vocabulary's last, 12"),
        ([[1], [-1], [3]], "between 0 and the vocabulary's last, 12"),
        ([[1] * 9] * 3, "9 tokens, but the cache of 8 has room for 8"),
    ],
)
def test_bad_tokens_are_refused_and_change_nothing_tiny(tokens, message):
    model, good, expected = make(TINY, 3, 4)
    decoder = Decoder(model.config, model.params_flat, 3, length=8)
    with pytest.raises(UserError) as refused:
        decoder.forward(tokens)
    assert message in str(refused.value)
    assert decoder.position == 0
    assert_same(decoder.forward(good), expected[:, -1])
    with pytest.raises(UserError, match="tokens of 1 sequences, but 3 are in the cache"):
        decoder.forward(good[:1])
    with pytest.raises(UserError, match="5 tokens, but the cache of 8 has room for 4"):
        decoder.forward(np.ones((3, 5), int))


def test_bad_sizes_positions_and_rows_are_refused_tiny():
    model, tokens, _ = make(TINY, 2, 3)
    for batch_size, length in ((0, 4), (1, 0), (1, 13)):
        with pytest.raises(UserError, match=f"{batch_size} sequences of {length} tokens"):
            Decoder(model.config, model.params_flat, batch_size, length)
    decoder = Decoder(model.config, model.params_flat, 2)
    decoder.forward(tokens)
    for position in (-1, 4):
        with pytest.raises(ValueError, match="only the first 3 tokens"):
            decoder.position = position
    for rows in ([0], [0, 2], [-1, 0]):
        with pytest.raises(ValueError, match="2 numbers below 2"):
            decoder.reorder(rows)
