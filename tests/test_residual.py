import numpy as np
import pytest

from gpt2.kernels.residual import residual_forward
from tests.numeric import tiny


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("N", "C"), [tiny(3, 10), tiny(1, 1), (300, 51)])
def test_adds_in_place(N, C, dtype):
    out, inp = np.random.default_rng(1).standard_normal((2, N, C)).astype(dtype)
    expected, before = out + inp, inp.copy()
    residual_forward(out, inp)
    assert np.array_equal(out, expected)
    assert np.array_equal(inp, before)
