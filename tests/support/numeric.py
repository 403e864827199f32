"""How the numeric tests compare: relative differences, and gradients by finite differences."""

import numpy as np
import pytest


def relative_error(actual, expected):
    """||actual - expected|| / ||expected||, in float64; infinite where zeros were expected and are not there."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    difference, size = np.linalg.norm(actual - expected), np.linalg.norm(expected)
    if size == 0:
        return 0.0 if difference == 0 else np.inf
    return difference / size


def assert_close(actual, expected, tolerance, what="result"):
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{what}: relative error {error:.2e}, allowed {tolerance:.0e}"


def assert_gradient(loss, x, gradient, rng, samples=12, what="gradient"):
    """Compares `gradient` with central differences of `loss()` along single elements of x and along one direction.

    loss: a function without arguments that reads the float64 array x, which is changed in place and restored. The
    elements are drawn at random, the direction is a random one through all elements.
    """
    assert x.dtype == np.float64 and x.flags.c_contiguous and gradient.shape == x.shape
    directions = [rng.standard_normal(x.shape)]
    for index in rng.choice(x.size, min(samples, x.size), replace=False):
        direction = np.zeros(x.size)
        direction[index] = 1.0
        directions.append(direction.reshape(x.shape))
    original, step = x.copy(), 1e-5
    for direction in directions:
        x[...] = original + step * direction
        above = loss()
        x[...] = original - step * direction
        below = loss()
        x[...] = original
        slope, expected = (above - below) / (2 * step), float(np.sum(gradient * direction))
        # Rounding of the loss itself is about 1e-16 / step; the rest is relative to the slope.
        allowed = 1e-6 * abs(slope) + 1e-9 * max(1.0, abs(above))
        assert abs(slope - expected) <= allowed, f"{what}: {expected:.9g}, but finite differences give {slope:.9g}"


def randomise(model, rng):
    """Gives every parameter of a model a value that matters: initial biases of 0 would hide mistakes."""
    for name, tensor in model.params.items():
        tensor[...] = 0.2 * rng.standard_normal(tensor.shape)
        if name in ("ln1w", "ln2w", "lnfw"):
            tensor += 1
    model.params["wte"][model.config.V :] = 0


def to_bfloat16(x):
    """Rounds float32 to the nearest bfloat16, ties to even; returns float64."""
    low, high = x.view(np.uint32) & np.uint32(0xFFFF0000), x.view(np.uint32) | np.uint32(0xFFFF)
    low, high = (
        low.view(np.float32).astype(float),
        np.nextafter(high.view(np.float32), np.copysign(np.inf, x)).astype(float),
    )
    below, above = np.abs(x - low), np.abs(high - x)
    is_odd = (x.view(np.uint32) >> np.uint32(16)) & np.uint32(1) == 1
    return np.where((above < below) | ((above == below) & is_odd), high, low)


def random_batch(config, B, T, rng):
    """Returns (tokens, targets), int32 (B,T)."""
    return tuple(rng.integers(0, config.V, (B, T), dtype=np.int32) for _ in range(2))


def both_precisions(float32, float64):
    """Parametrises a test over (dtype, tolerance): float32, which trains, and float64, where only a mistake is far off.

    In the names of their tests "tiny" marks sizes that also run uncompiled, see test_disable_jit.py.
    """
    return pytest.mark.parametrize(
        ("dtype", "tolerance"),
        [pytest.param(np.float32, float32, id="float32"), pytest.param(np.float64, float64, id="float64")],
    )


def tiny(*values):
    """Sizes small enough for a kernel that runs uncompiled."""
    return pytest.param(*values, id="tiny-" + "x".join(map(str, values)))
