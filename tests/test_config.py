import dataclasses
import math

import numpy as np
import pytest

from gpt2.config import PRESETS, GPT2Config
from gpt2.errors import UserError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("distilgpt2", 81_912_576),
    ],
)
def test_presets_have_the_published_parameter_counts(name, parameters):
    assert PRESETS[name].num_parameters == parameters
    assert PRESETS[name].HS == 64


@pytest.mark.parametrize(("V", "Vp"), [(1, 128), (127, 128), (128, 128), (129, 256), (50257, 50304)])
def test_vocabulary_is_padded_to_a_multiple_of_128(V, Vp):
    assert GPT2Config(V=V).Vp == Vp


@pytest.mark.parametrize("size", [field.name for field in dataclasses.fields(GPT2Config)])
@pytest.mark.parametrize(
    "value", [0, -1, 2**31, 10**999, 1.5, 2.0, math.nan, True, "12", None, [1], np.float32(2), np.bool_(True)]
)
def test_invalid_sizes(size, value):
    with pytest.raises(UserError, match=rf"^model size {size}=.*: expected a whole number from 1 to 2\^31 - 1$"):
        GPT2Config(**{size: value})


def test_numpys_integers_are_taken_as_pythons():
    config = GPT2Config(*np.array([2**31 - 1, 2**31 - 1, 1, 2, 2**31 - 2]))
    assert all(type(size) is int for size in dataclasses.astuple(config))
    assert config.num_parameters == (2**31 - 1) * 2 * config.C + 12 * config.C**2 + 15 * config.C


def test_the_heads_must_divide_the_channels():
    with pytest.raises(UserError, match=r"10 channels.*3 heads"):
        GPT2Config(NH=3, C=10)
