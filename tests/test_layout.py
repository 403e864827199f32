import math

import numpy as np
import pytest

from gpt2.config import PRESETS, GPT2Config
from gpt2.layout import Layout, parameter_layout


def test_gpt2_has_the_known_sizes():
    assert parameter_layout(PRESETS["gpt2"], padded=False).size == 124_439_808
    assert parameter_layout(PRESETS["gpt2"]).size == 124_475_904


@pytest.mark.parametrize("name", PRESETS)
def test_unpadded_layout_counts_the_parameters(name):
    assert parameter_layout(PRESETS[name], padded=False).size == PRESETS[name].num_parameters


def test_order_is_the_one_of_the_files():
    expected = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb"
    assert list(parameter_layout(GPT2Config()).shapes) == expected.split()


def test_views_share_memory_and_tile_the_array_in_order():
    layout = parameter_layout(GPT2Config(maxT=5, V=3, L=2, NH=1, C=4))
    flat = np.arange(layout.size)
    views = layout.views(flat)
    assert np.array_equal(np.concatenate([view.ravel() for view in views.values()]), flat)
    for name, view in views.items():
        assert view.shape == layout.shapes[name]
        assert view.size == math.prod(layout.shapes[name])
        view[...] = -1
    assert np.all(flat == -1)


def test_slice_and_offset_name_the_same_elements():
    layout = Layout({"a": (2, 3), "b": (), "c": (4,)})
    assert layout.offsets == {"a": 0, "b": 6, "c": 7}
    assert (layout.slice("a"), layout.slice("b"), layout.slice("c")) == (slice(0, 6), slice(6, 7), slice(7, 11))
    assert layout.size == 11


def test_views_of_an_array_of_another_size_are_refused():
    with pytest.raises(AssertionError):
        Layout({"a": (2,)}).views(np.zeros(3))
