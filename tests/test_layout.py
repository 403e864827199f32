import math

import numpy as np
import pytest

from gpt2.config import PRESETS, GPT2Config
from gpt2.layout import Layout, parameter_layout


def test_gpt2_has_the_known_parameter_counts():
    assert parameter_layout(PRESETS["gpt2"], padded=False).size == 124_439_808
    assert parameter_layout(PRESETS["gpt2"]).size == 124_475_904


@pytest.mark.parametrize("name", PRESETS)
def test_unpadded_layout_has_the_config_s_parameter_count(name):
    assert parameter_layout(PRESETS[name], padded=False).size == PRESETS[name].num_parameters


def test_the_order_is_that_of_llmc_files():
    expected = "wte wpe ln1w ln1b qkvw qkvb attprojw attprojb ln2w ln2b fcw fcb fcprojw fcprojb lnfw lnfb"
    assert list(parameter_layout(GPT2Config()).shapes) == expected.split()


def test_views_share_memory_and_cover_the_array_in_order():
    layout = parameter_layout(GPT2Config(maxT=5, V=3, L=2, NH=1, C=4))
    flat = np.arange(layout.size)
    views = layout.views(flat)
    assert np.array_equal(np.concatenate([view.ravel() for view in views.values()]), flat)
    for name, view in views.items():
        assert view.shape == layout.shapes[name]
        assert view.size == math.prod(layout.shapes[name])
        view[...] = -1
    assert np.all(flat == -1)


def test_slice_and_offset_agree():
    layout = Layout({"a": (2, 3), "b": (), "c": (4,)})
    assert layout.offsets == {"a": 0, "b": 6, "c": 7}
    assert (layout.slice("a"), layout.slice("b"), layout.slice("c")) == (slice(0, 6), slice(6, 7), slice(7, 11))
    assert layout.size == 11


def test_a_shared_layout_cannot_be_modified():
    layout = parameter_layout(GPT2Config())
    assert parameter_layout(GPT2Config()) is layout
    assert parameter_layout(GPT2Config(V=50000)).shapes["wte"] == (50048, 768)
    with pytest.raises(TypeError):
        layout.shapes["wte"] = (1, 768)
    with pytest.raises(TypeError):
        layout.offsets["wpe"] = 0


def test_a_layout_does_not_follow_its_argument():
    shapes = {"a": (2,)}
    layout = Layout(shapes)
    shapes["b"] = (3,)
    assert list(layout.shapes) == ["a"] and layout.size == 2


@pytest.mark.parametrize("flat", [np.zeros(3), np.zeros((1, 2)), np.zeros(4)[::2]])
def test_views_of_an_array_of_another_form_are_refused(flat):
    with pytest.raises(ValueError, match=r"expected a contiguous one of shape \(2,\)"):
        Layout({"a": (2,)}).views(flat)


def test_a_view_is_changed_in_place_and_not_replaced():
    flat = np.ones(2)
    views = Layout({"a": (2,)}).views(flat)
    views["a"] *= 2
    with pytest.raises(TypeError, match="a is a view of a flat array"):
        views["a"] = np.zeros(2)
    assert flat.tolist() == views["a"].tolist() == [2, 2]
