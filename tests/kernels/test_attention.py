import numpy as np
import pytest

from gpt2.kernels.attention import attention_backward, attention_forward, attention_scratch_shape
from gpt2.kernels.dropout import KEEP_ALL, Dropout
from tests import reference
from tests.support.numeric import assert_close, assert_gradient, both_precisions, tiny, to_bfloat16

# Around the kernels' block of 32 query rows.
SIZES = pytest.mark.parametrize(
    ("B", "T", "NH", "HS"),
    [
        tiny(2, 5, 2, 5),
        tiny(1, 1, 2, 3),
        tiny(1, 34, 1, 1),
        (1, 31, 3, 17),
        (1, 32, 2, 16),
        (2, 33, 3, 17),
        (1, 130, 2, 8),
    ],
)


DROPOUTS = pytest.mark.parametrize("p", [0.0, 0.3])
DEPENDS_ON = (5, 7, 1)  # seed, step, micro-step


def masks(p, B, NH, T):
    """Returns a mask as the kernels take it, and as an array (B,NH,T,T)."""
    mask = Dropout(p, *DEPENDS_ON).mask(2, 1) if p else KEEP_ALL
    return mask, reference.dropout_masks(p, *DEPENDS_ON)(2, 1, B, NH, T, T)


def run_forward(qkv, NH, mask=KEEP_ALL):
    """Returns (atty, lse, scratch), all filled with NaN beforehand: the kernel must not read them."""
    B, T, channels = qkv.shape
    atty, lse = np.full((B, T, channels // 3), np.nan, qkv.dtype), np.full((B, NH, T), np.nan, qkv.dtype)
    scratch = np.full(attention_scratch_shape(B, T, NH), np.nan, qkv.dtype)
    attention_forward(atty, lse, qkv, scratch, mask, False)
    return atty, lse, scratch


def run_backward(datty, qkv, NH, mask=KEEP_ALL):
    """Runs a forward pass, then the backward pass; returns dqkv. The backward pass must recompute the output."""
    expected, lse, scratch = run_forward(qkv, NH, mask)
    dqkv, atty = np.full_like(qkv, np.nan), np.full_like(expected, np.nan)
    scratch.fill(np.nan)
    attention_backward(dqkv, datty, qkv, atty, lse, scratch, mask, False)
    assert_close(atty, expected, 1e-6, "atty")
    return dqkv


@SIZES
@DROPOUTS
@both_precisions(1e-6, 1e-13)
def test_forward(B, T, NH, HS, p, dtype, tolerance):
    qkv = np.random.default_rng(1).standard_normal((B, T, 3 * NH * HS)).astype(dtype)
    mask, mask_array = masks(p, B, NH, T)
    atty, lse, _ = run_forward(qkv, NH, mask)
    assert_close(atty, reference.attention(qkv.astype(float), NH, mask_array), tolerance, "atty")
    scores = reference.attention_scores(qkv.astype(float), NH)
    assert_close(lse, reference.log_sum_exp(scores), tolerance, "lse")


@SIZES
@DROPOUTS
@both_precisions(2e-6, 1e-13)
def test_backward(B, T, NH, HS, p, dtype, tolerance):
    rng = np.random.default_rng(2)
    qkv = rng.standard_normal((B, T, 3 * NH * HS)).astype(dtype)
    datty = rng.standard_normal((B, T, NH * HS)).astype(dtype)
    mask, mask_array = masks(p, B, NH, T)
    dqkv = run_backward(datty, qkv, NH, mask)
    expected = reference.attention_backward(datty.astype(float), qkv.astype(float), NH, mask_array)
    for part, name in enumerate(("dq", "dk", "dv")):
        channels = slice(part * NH * HS, (part + 1) * NH * HS)
        if T == 1 and name != "dv":
            # Softmax over one key is constant; only the rounding error of datty . v - datty . atty remains.
            assert np.abs(dqkv[..., channels]).max() <= 10 * tolerance
        else:
            assert_close(dqkv[..., channels], expected[..., channels], tolerance, name)


@pytest.mark.parametrize(("T", "NH", "HS"), [tiny(3, 2, 2), (67, 1, 5)])
def test_gradient(T, NH, HS):
    rng = np.random.default_rng(3)
    qkv, datty = rng.standard_normal((1, T, 3 * NH * HS)), rng.standard_normal((1, T, NH * HS))
    dqkv = run_backward(datty, qkv, NH)
    assert_gradient(lambda: float(np.sum(datty * run_forward(qkv, NH)[0])), qkv, dqkv, rng)


@pytest.mark.parametrize("T", [tiny(4), 70])
def test_the_future_changes_nothing(T):
    rng = np.random.default_rng(4)
    qkv = rng.standard_normal((1, T, 3 * 6)).astype(np.float32)
    before = run_forward(qkv, 2)[0]
    qkv[:, T - 2 :] = 1e4
    after = run_forward(qkv, 2)[0]
    assert np.array_equal(after[:, : T - 2], before[:, : T - 2])
    assert not np.any(after[:, T - 2 :] == before[:, T - 2 :])


def test_large_scores_neither_overflow_nor_lose_the_sum_tiny():
    # Scores up to about 10^4, whose exponentials overflow.
    qkv = 60 * np.random.default_rng(5).standard_normal((1, 6, 3 * 8))
    atty, lse, _ = run_forward(qkv.astype(np.float32), 2)
    exact = qkv.astype(np.float32).astype(float)
    assert np.abs(reference.attention_scores(exact, 2)[0, 0, -1]).max() > 1000
    assert_close(atty, reference.attention(exact, 2), 1e-3)
    assert_close(lse, reference.log_sum_exp(reference.attention_scores(exact, 2)), 1e-6)


def test_products_round_their_factors():
    T, HS = 40, 16
    rng = np.random.default_rng(4)
    qkv, datty = rng.standard_normal((1, T, 3 * HS), np.float32), rng.standard_normal((1, T, HS), np.float32)
    q, k, v, dout = map(to_bfloat16, (*np.split(qkv[0], 3, axis=1), datty[0]))
    scores = np.where(np.tri(T, dtype=bool), q @ k.T / np.sqrt(HS), -np.inf)
    exponentials = np.exp(scores)
    p = exponentials / exponentials.sum(axis=1, keepdims=True)
    rounded_p = to_bfloat16(p.astype(np.float32))
    out, dp = rounded_p @ v, dout @ v.T
    ds = p * (dp - (p * dp).sum(axis=1, keepdims=True))
    rounded_ds = to_bfloat16(ds.astype(np.float32))
    dq, dk, dv = rounded_ds @ k / np.sqrt(HS), rounded_ds.T @ q / np.sqrt(HS), rounded_p.T @ dout
    atty, lse, dqkv = np.empty_like(datty), np.empty((1, 1, T), np.float32), np.empty_like(qkv)
    scratch = np.empty(attention_scratch_shape(1, T, 1), np.float32)
    attention_forward(atty, lse, qkv, scratch, KEEP_ALL, True)
    # A few factors at the middle of two bfloat16 go the other way; without rounding the difference is above 1e-3.
    assert_close(atty[0], out, 2e-4)
    atty.fill(np.nan)
    attention_backward(dqkv, datty, qkv, atty, lse, scratch, KEEP_ALL, True)
    assert_close(atty[0], out, 2e-4)
    for name, found, expected in zip("qkv", np.split(dqkv[0], 3, axis=1), (dq, dk, dv), strict=True):
        assert_close(found, expected, 2e-4, f"d{name}")
