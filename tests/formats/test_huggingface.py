"""Hugging Face folders: round trip, tensor by tensor, and every kind of unsupported or malformed one."""

import dataclasses
import json
import os
import tracemalloc

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from gpt2.config import PRESETS, GPT2Config
from gpt2.errors import UserError
from gpt2.formats import huggingface, llmc
from gpt2.formats import tensors as formats_tensors
from gpt2.formats.tokenizer_folder import TokenizerFolder
from gpt2.layout import parameter_layout

CONFIG = GPT2Config(maxT=5, V=7, L=2, NH=2, C=4)
FIELDS = {"model_type": "gpt2", "n_positions": 5, "vocab_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 4}


def tensors():
    """Returns Hugging Face's tensors and the flat array they must become, independently of the table under test."""
    random = np.random.default_rng(0)
    foreign = {}
    params = np.zeros(parameter_layout(CONFIG).size, dtype=np.float32)
    views = parameter_layout(CONFIG).views(params)

    def add(name, shape, transpose=False):
        # Multiples of 1/16, exact in float16.
        foreign[name] = (random.integers(-64, 64, shape) / 16).astype(np.float32)
        return foreign[name].T if transpose else foreign[name]

    views["wte"][:7] = add("wte.weight", (7, 4))
    views["wpe"][:] = add("wpe.weight", (5, 4))
    for l in range(2):
        views["ln1w"][l] = add(f"h.{l}.ln_1.weight", (4,))
        views["ln1b"][l] = add(f"h.{l}.ln_1.bias", (4,))
        views["qkvw"][l] = add(f"h.{l}.attn.c_attn.weight", (4, 12), transpose=True)
        views["qkvb"][l] = add(f"h.{l}.attn.c_attn.bias", (12,))
        views["attprojw"][l] = add(f"h.{l}.attn.c_proj.weight", (4, 4), transpose=True)
        views["attprojb"][l] = add(f"h.{l}.attn.c_proj.bias", (4,))
        views["ln2w"][l] = add(f"h.{l}.ln_2.weight", (4,))
        views["ln2b"][l] = add(f"h.{l}.ln_2.bias", (4,))
        views["fcw"][l] = add(f"h.{l}.mlp.c_fc.weight", (4, 16), transpose=True)
        views["fcb"][l] = add(f"h.{l}.mlp.c_fc.bias", (16,))
        views["fcprojw"][l] = add(f"h.{l}.mlp.c_proj.weight", (16, 4), transpose=True)
        views["fcprojb"][l] = add(f"h.{l}.mlp.c_proj.bias", (4,))
    views["lnfw"][:] = add("ln_f.weight", (4,))
    views["lnfb"][:] = add("ln_f.bias", (4,))
    return foreign, params


def write_folder(folder, foreign, **fields):
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    save_file(foreign, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_folder_becomes_the_flat_array(tmp_path, prefix, dtype):
    foreign, params = tensors()
    foreign = {name: array.astype(dtype) for name, array in foreign.items()}
    for l in range(2):
        foreign[f"h.{l}.attn.bias"] = np.tril(np.ones((1, 1, 5, 5), np.bool_))
        foreign[f"h.{l}.attn.masked_bias"] = np.array(-1e4, np.float32)
    foreign = {prefix + name: array for name, array in foreign.items()}
    foreign["lm_head.weight"] = foreign[prefix + "wte.weight"]
    config, read = huggingface.load_folder(write_folder(tmp_path, foreign, n_inner=16))
    assert config == CONFIG
    assert read.dtype == np.float32
    assert np.array_equal(read, params)


def cut(folder, *parts):
    """Replaces a folder's model.safetensors by shards of the named tensors, the last of them of all others."""
    foreign = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    named = {name for part in parts for name in part}
    weight_map = {}
    for number, part in enumerate([*parts, foreign.keys() - named]):
        save_file({name: foreign[name] for name in part}, folder / f"part{number}.safetensors")
        weight_map |= dict.fromkeys(part, f"part{number}.safetensors")
    write_index(folder, weight_map)
    return weight_map


def write_index(folder, weight_map, **fields):
    fields = {"metadata": {"total_size": 1}, "weight_map": weight_map} | fields
    (folder / "model.safetensors.index.json").write_text(json.dumps(fields))


@pytest.mark.parametrize("prefix", ["", "transformer."])
def test_shards_become_the_flat_array(tmp_path, prefix):
    foreign, params = tensors()
    foreign = {prefix + name: array for name, array in foreign.items()}
    foreign["lm_head.weight"] = foreign[prefix + "wte.weight"]
    write_folder(tmp_path, foreign)
    cut(tmp_path, ["lm_head.weight", f"{prefix}h.1.mlp.c_fc.weight"], [f"{prefix}wte.weight", f"{prefix}h.0.ln_1.bias"])
    config, read = huggingface.load_folder(tmp_path)
    assert config == CONFIG
    assert np.array_equal(read, params)


def damaged_index(change):
    """A change of the index's weight_map."""

    def damage(folder, weight_map):
        change(weight_map)
        write_index(folder, weight_map)

    return damage


def index_of(content):
    return lambda folder, weight_map: (folder / "model.safetensors.index.json").write_bytes(content)


def save_twice(folder, weight_map):
    both = {"ln_f.bias": np.zeros(4, np.float32), "wte.weight": np.zeros((7, 4), np.float32)}
    save_file(both, folder / "part0.safetensors")


def save_with_and_without_prefix(folder, weight_map):
    both = {"ln_f.bias": np.zeros(4, np.float32), "transformer.wte.weight": np.zeros((7, 4), np.float32)}
    save_file(both, folder / "part0.safetensors")


OUTSIDE = "expected the name of a .safetensors file in this folder"
WRONG_SHARDS = {
    "not there": (lambda folder, _: (folder / "part0.safetensors").unlink(), "part0.safetensors: No such file"),
    "cut off": (lambda folder, _: os.truncate(folder / "part0.safetensors", 100), "part0.safetensors: corrupt"),
    "outside": (damaged_index(lambda names: names.update({"ln_f.bias": "../part0.safetensors"})), OUTSIDE),
    "absolute": (damaged_index(lambda names: names.update({"ln_f.bias": "/part0.safetensors"})), OUTSIDE),
    "above": (damaged_index(lambda names: names.update({"ln_f.bias": ".."})), OUTSIDE),
    "pickle": (damaged_index(lambda names: names.update({"ln_f.bias": "pytorch_model.bin"})), OUTSIDE),
    "surrogate": (damaged_index(lambda names: names.update({"\ud800\n": "\ud800.safetensors"})), OUTSIDE),
    "endless": (damaged_index(lambda names: names.update({"x" * 5000: "x" * 5000})), OUTSIDE),
    "number": (damaged_index(lambda names: names.update({"ln_f.bias": 0})), OUTSIDE),
    "list": (damaged_index(lambda names: names.update({"ln_f.bias": ["part0.safetensors"]})), OUTSIDE),
    "in two shards": (save_twice, "tensor 'wte.weight' is in both part0.safetensors and part1.safetensors"),
    "with and without prefix": (save_with_and_without_prefix, "a tensor occurs twice"),
    "in another shard": (
        damaged_index(lambda names: names.update({"ln_f.bias": "part1.safetensors"})),
        "tensor 'ln_f.bias' is not in part1.safetensors",
    ),
    "in no shard": (
        damaged_index(lambda names: names.update({"h.7.ln_1.bias": "part1.safetensors"})),
        "tensor 'h.7.ln_1.bias' is not in part1.safetensors",
    ),
    "a shard unnamed": (damaged_index(lambda names: names.pop("ln_f.bias")), "ln_f.bias, which .* is missing"),
    "no weight_map": (index_of(b"{}"), "weight_map is None"),
    "empty weight_map": (index_of(b'{"weight_map": {}}'), "weight_map is {}"),
    "weight_map a list": (index_of(b'{"weight_map": [1]}'), r"weight_map is \[1\]"),
    "a list": (index_of(b"[]"), "expected a JSON object"),
    "empty": (index_of(b""), "not valid JSON"),
    "half": (index_of(b'{"weight_map": {'), "not valid JSON"),
    "deep": (index_of(b"[" * 100_000), "not valid JSON"),
    "large": (index_of(b" " * (2**24 + 1)), "more than 16,777,216 bytes"),
}


@pytest.mark.parametrize(("damage", "message"), WRONG_SHARDS.values(), ids=WRONG_SHARDS.keys())
def test_wrong_shards(tmp_path, damage, message):
    folder = tmp_path / "theirs"
    folder.mkdir()
    write_folder(folder, tensors()[0])
    damage(folder, cut(folder, ["ln_f.bias"]))
    (tmp_path / "part0.safetensors").write_bytes(b"never read")
    with pytest.raises(UserError, match=message) as caught:
        huggingface.load_folder(folder)
    assert str(caught.value).startswith(f"{folder}{os.sep}") and str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_model_safetensors_goes_before_an_index(tmp_path):
    foreign, params = tensors()
    write_folder(tmp_path, foreign)
    (tmp_path / "model.safetensors.index.json").write_text("left behind")
    assert np.array_equal(huggingface.load_folder(tmp_path)[1], params)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_weights_in_another_format(tmp_path, name):
    (write_folder(tmp_path, tensors()[0]) / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(UserError, match=f"has {name}, expected model.safetensors or model.safetensors.index.json"):
        huggingface.load_folder(tmp_path)


def without(name):
    return lambda foreign: foreign.pop(name)


def with_tensor(name, array):
    return lambda foreign: foreign.update({name: array})


WRONG_TENSORS = {
    "one missing": (without("h.1.mlp.c_fc.bias"), "h.1.mlp.c_fc.bias, which config.json implies, is missing"),
    "embedding missing": (without("wte.weight"), "wte.weight, which config.json implies, is missing"),
    "not transposed": (
        with_tensor("h.0.attn.c_attn.weight", np.zeros((12, 4), np.float32)),
        r"h.0.attn.c_attn.weight has shape \(12, 4\), expected \(4, 12\)",
    ),
    "wrong vocabulary": (with_tensor("wte.weight", np.zeros((8, 4), np.float32)), r"\(8, 4\), expected \(7, 4\)"),
    "one layer more": (with_tensor("h.2.ln_1.bias", np.zeros(4, np.float32)), "'h.2.ln_1.bias' does not belong"),
    "unknown": (with_tensor("classifier.weight", np.zeros(4, np.float32)), "'classifier.weight' does not belong"),
    "float64": (with_tensor("ln_f.bias", np.zeros(4)), "'ln_f.bias' is stored as F64, expected F32, F16 or BF16"),
    "whole numbers": (with_tensor("ln_f.bias", np.zeros(4, np.int32)), "'ln_f.bias' is stored as I32"),
    "untied head": (with_tensor("lm_head.weight", np.zeros((7, 4), np.float32)), "lm_head.weight differs"),
    "head of another shape": (
        with_tensor("lm_head.weight", np.zeros((8, 4), np.float32)),
        r"lm_head.weight has .*8, 4",
    ),
    "twice": (with_tensor("transformer.ln_f.bias", np.zeros(4, np.float32)), "a tensor occurs twice"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS.values(), ids=WRONG_TENSORS.keys())
def test_wrong_tensors(tmp_path, change, message):
    foreign, _ = tensors()
    change(foreign)
    write_folder(tmp_path, foreign)
    with pytest.raises(UserError, match=message) as caught:
        huggingface.load_folder(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'model.safetensors'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_pytorch_tanh"])
def test_gelu_by_tanh_has_several_names(tmp_path, name):
    foreign, params = tensors()
    write_folder(tmp_path, foreign, activation_function=name)
    assert np.array_equal(huggingface.load_folder(tmp_path)[1], params)


def test_bfloat16_is_widened(tmp_path):
    foreign, params = tensors()  # exact in bfloat16
    halves = {name: (array.view(np.uint32) >> 16).astype(np.uint16) for name, array in foreign.items()}
    write_folder(tmp_path, {name: half.view(np.float16) for name, half in halves.items()})
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F16"', b'"BF16"')  # of the same width, so the offsets stay valid
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    assert np.array_equal(huggingface.load_folder(tmp_path)[1], params)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["wte.weight", "h.1.attn.c_attn.weight", "ln_f.bias"])
def test_non_finite_values_are_refused(tmp_path, name, value):
    foreign, _ = tensors()
    foreign[name].flat[-1] = value
    with pytest.raises(UserError, match=f"tensor {name} contains a NaN or an infinity"):
        huggingface.load_folder(write_folder(tmp_path, foreign))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("activation_function", "relu"),
        ("activation_function", "gelu"),
        ("activation_function", []),
        ("n_inner", 17),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("add_cross_attention", True),
        ("layer_norm_epsilon", 1e-6),
        ("tie_word_embeddings", False),
        ("n_layer", "2"),
        ("n_layer", 2.0),
        ("n_layer", True),
        ("n_embd", None),
    ],
)
def test_unsupported_architectures(tmp_path, key, value):
    write_folder(tmp_path, tensors()[0], **{key: value})
    with pytest.raises(UserError, match=key) as caught:
        huggingface.load_folder(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 3}, "4 channels.*3 heads"),
        ({"n_layer": 0}, "L=0"),
        ({"n_layer": 2**40}, "L="),
        ({"n_layer": 2**31 - 1}, "h.2.ln_1.weight, .* is missing"),
        ({"n_layer": 1}, "h.1.* does not belong"),
        ({"n_positions": 2**31 - 1}, r"wpe.weight has shape \(5, 4\)"),
    ],
)
def test_sizes_that_do_not_match_the_tensors(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        huggingface.load_folder(write_folder(tmp_path, tensors()[0], **fields))


@pytest.mark.parametrize("key", ["model_type", "activation_function", "n_layer", "n_inner"])
@pytest.mark.parametrize("value", ["\n\u2028\x1b\ud800", "x" * 5000, [[]] * 5000, 10**4000])
def test_whatever_the_configuration_contains_the_message_is_one_short_line(tmp_path, key, value):
    write_folder(tmp_path, tensors()[0], **{key: value})
    with pytest.raises(UserError) as caught:
        huggingface.load_folder(tmp_path)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["\n\u2028\x1b", "x" * 5000])
@pytest.mark.parametrize("old", ["F32", "ln_f.bias", "shape"])
def test_whatever_the_header_contains_the_message_is_one_short_line(tmp_path, old, text):
    # safetensors echoes an unknown dtype in full.
    write_folder(tmp_path, tensors()[0])
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(f'"{old}"'.encode(), json.dumps(text).encode())
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with pytest.raises(UserError) as caught:
        huggingface.load_folder(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'"gpt2"', b"null", b"{}"])
def test_an_invalid_config_json(tmp_path, content):
    write_folder(tmp_path, tensors()[0])
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json: (not valid JSON|expected a JSON object|model_type is None)"):
        huggingface.load_folder(tmp_path)


def test_a_config_json_that_is_too_large_is_not_read(tmp_path):
    write_folder(tmp_path, tensors()[0], padding="x" * 2**20)
    with pytest.raises(UserError, match=r"config\.json: more than 1,048,576 bytes, expected "):
        huggingface.load_folder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(tmp_path, name):
    write_folder(tmp_path, tensors()[0])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: No such file"):
        huggingface.load_folder(tmp_path)


def test_weights_that_cannot_be_mapped_are_named(tmp_path):
    write_folder(tmp_path, tensors()[0])
    (tmp_path / huggingface.WEIGHTS).unlink()
    (tmp_path / huggingface.WEIGHTS).symlink_to("/proc/self/mem")
    with pytest.raises(UserError, match=f"{huggingface.WEIGHTS}: No such device"):
        huggingface.load_folder(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" * 1000,
        lambda data: data[:9],
    ],
)
def test_corrupt_safetensors(tmp_path, damage):
    path = write_folder(tmp_path, tensors()[0]) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model.safetensors: corrupt") as caught:
        huggingface.load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_written_folder_has_hugging_faces_tensors(tmp_path):
    foreign, params = tensors()
    huggingface.save_folder(tmp_path, CONFIG, params, vocabulary=TokenizerFolder({}, begin=5, ends=(6,)))
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.keys() == {f"transformer.{name}" for name in foreign}
    for name, array in foreign.items():
        assert stored[f"transformer.{name}"].dtype == np.float32
        assert np.array_equal(stored[f"transformer.{name}"], array), name
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert file.metadata() == {"format": "pt"}
    fields = json.loads((tmp_path / "config.json").read_text())
    expected = {"architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new", "tie_word_embeddings": True}
    expected |= FIELDS | {"n_ctx": 5, "torch_dtype": "float32", "bos_token_id": 5, "eos_token_id": 6}
    assert fields.items() >= expected.items()
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"bos_token_id": 5, "eos_token_id": 6}


def test_a_written_folder_is_read_back_bit_for_bit(tmp_path):
    rng = np.random.default_rng(1)
    params = tensors()[1]
    params[params != 0] = rng.standard_normal(np.count_nonzero(params))
    huggingface.save_folder(tmp_path, CONFIG, params)
    config, read = huggingface.load_folder(tmp_path)
    assert config == CONFIG
    assert read.tobytes() == params.tobytes()


@pytest.mark.parametrize("name", PRESETS)
def test_every_depth_and_number_of_heads(tmp_path, name):
    config = dataclasses.replace(PRESETS[name], maxT=3, V=5, C=PRESETS[name].NH)
    params = np.random.default_rng(0).standard_normal(parameter_layout(config).size, dtype=np.float32)
    params[config.V * config.C : config.Vp * config.C] = 0
    huggingface.save_folder(tmp_path, config, params)
    assert len(load_file(tmp_path / "model.safetensors")) == 12 * PRESETS[name].L + 4
    read_config, read = huggingface.load_folder(tmp_path)
    assert read_config == config
    assert np.array_equal(read, params)


def test_a_bfloat16_folder_round_trips(tmp_path):
    foreign, params = tensors()
    huggingface.save_folder(tmp_path, CONFIG, params, "bfloat16")
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    with safe_open(tmp_path / "model.safetensors", framework="numpy") as file:
        assert {file.get_slice(name).get_dtype() for name in file.keys()} == {"BF16"}  # noqa: SIM118
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * sum(array.size for array in foreign.values()) + 4096
    assert np.array_equal(huggingface.load_folder(tmp_path)[1], params)


@pytest.mark.parametrize(("dtype", "itemsize"), [("float32", 4), ("bfloat16", 2)])
@pytest.mark.parametrize("limit", [1, 100, 300])  # numbers; a tensor has at most 64
def test_above_the_limit_shards_are_written(tmp_path, monkeypatch, limit, dtype, itemsize):
    foreign, params = tensors()
    monkeypatch.setattr(formats_tensors, "SHARD_BYTES", limit * itemsize)
    huggingface.save_folder(tmp_path, CONFIG, params, dtype)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": itemsize * sum(array.size for array in foreign.values())}
    assert index["weight_map"].keys() == {f"transformer.{name}" for name in foreign}
    names = sorted(set(index["weight_map"].values()))
    assert names == [f"model-{n:05d}-of-{len(names):05d}.safetensors" for n in range(1, len(names) + 1)]
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors.index.json",
        *names,
    }
    stored = {}
    for name in names:
        with safe_open(tmp_path / name, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            sizes = {key: np.prod(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        assert len(sizes) == 1 or sum(sizes.values()) <= limit
        assert {key for key, shard in index["weight_map"].items() if shard == name} == sizes.keys()
        stored[name] = sum(sizes.values())
    if limit > 64:  # no two neighbours would have fitted into one
        assert len(names) <= 2 * sum(stored.values()) / limit + 1
    assert np.array_equal(huggingface.load_folder(tmp_path)[1], params)


def test_at_the_limit_one_file_is_written(tmp_path, monkeypatch):
    foreign, params = tensors()
    size = 4 * sum(array.size for array in foreign.values())
    for limit, expected in ((size, 1), (size - 1, 2)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        monkeypatch.setattr(formats_tensors, "SHARD_BYTES", limit)
        huggingface.save_folder(folder, CONFIG, params)
        assert len(list(folder.glob("*.safetensors"))) == expected
    assert (tmp_path / str(size) / "model.safetensors").exists()


@pytest.mark.parametrize("block", [1, 3, 1000])
def test_blocks_of_any_size_transpose_the_same(tmp_path, monkeypatch, block):
    monkeypatch.setattr(huggingface, "BLOCK", block)
    foreign, params = tensors()
    assert np.array_equal(huggingface.load_folder(write_folder(tmp_path, foreign))[1], params)


def test_the_model_is_in_memory_once_with_one_tensor(tmp_path):
    config = GPT2Config(maxT=8, V=128, L=8, NH=1, C=256)
    size, tensor = parameter_layout(config).size, 4 * 256 * 256
    params = np.full(size, 0.5, np.float32)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        huggingface.save_folder(tmp_path, config, params)
        _, writing = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        before_reading, _ = tracemalloc.get_traced_memory()
        _, read = huggingface.load_folder(tmp_path)
        _, reading = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert np.array_equal(read, params)
    # Plus the table of tensors and a chunk being converted.
    assert writing - before < 4 * tensor + 16 * llmc.CHUNK
    assert reading - before_reading < 4 * size + 4 * tensor + 16 * llmc.CHUNK
    assert 4 * size > 2 * (4 * tensor + 16 * llmc.CHUNK), "too small a model to notice a second copy"
