"""GPT-2 in Hugging Face's format: a folder with config.json, model.safetensors and, optionally, tokenizer files."""

import json
import math
import os
import pathlib
import re

import numpy as np
from safetensors import SafetensorError, safe_open

from gpt2.config import GPT2Config
from gpt2.errors import UserError, safe_repr
from gpt2.formats.files import open_to_read
from gpt2.formats.llmc import STORED, read_floats, write_floats
from gpt2.layout import parameter_layout
from gpt2.memory import allocate

CONFIG = "config.json"
CONFIG_LIMIT = 2**20  # bytes
GENERATION_CONFIG = "generation_config.json"
WEIGHTS = "model.safetensors"
# Where other folders keep their weights, in formats that are not supported.
UNSUPPORTED_WEIGHTS = ("model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MERGES, VOCABULARY = "merges.txt", "vocab.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS, TOKENIZER = "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"
TOKENIZER_FILES = (MERGES, VOCABULARY, TOKENIZER_CONFIG, SPECIAL_TOKENS, TOKENIZER)

# Our tensor name -> Hugging Face's; {} is the layer.
FOREIGN_NAMES = {
    "wte": "wte.weight",
    "wpe": "wpe.weight",
    "ln1w": "h.{}.ln_1.weight",
    "ln1b": "h.{}.ln_1.bias",
    "qkvw": "h.{}.attn.c_attn.weight",
    "qkvb": "h.{}.attn.c_attn.bias",
    "attprojw": "h.{}.attn.c_proj.weight",
    "attprojb": "h.{}.attn.c_proj.bias",
    "ln2w": "h.{}.ln_2.weight",
    "ln2b": "h.{}.ln_2.bias",
    "fcw": "h.{}.mlp.c_fc.weight",
    "fcb": "h.{}.mlp.c_fc.bias",
    "fcprojw": "h.{}.mlp.c_proj.weight",
    "fcprojb": "h.{}.mlp.c_proj.bias",
    "lnfw": "ln_f.weight",
    "lnfb": "ln_f.bias",
}
TRANSPOSED = {"qkvw", "attprojw", "fcw", "fcprojw"}  # stored as (in, out); ours are (out, in)
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
PREFIX = "transformer."  # of the names in a model with a head; optional when reading
HEAD = "lm_head.weight"
BLOCK = 256  # rows and columns of a transposed block
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks: constants, not parameters

# Our size -> its key in config.json.
FOREIGN_SIZES = {"maxT": "n_positions", "V": "vocab_size", "L": "n_layer", "NH": "n_head", "C": "n_embd"}
# The only architecture supported; a missing key has this value.
ARCHITECTURE = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def load_folder(path):
    """Reads a GPT-2 folder: config.json and model.safetensors, in float32, float16 or bfloat16.

    Returns (GPT2Config, params) as llmc.load_model does. Raises UserError for an unsupported architecture, and for a
    tensor that is missing, unexpected, of the wrong shape, or not finite.
    """
    path = pathlib.Path(path)
    config = read_config(path / CONFIG)
    for name in UNSUPPORTED_WEIGHTS:
        if (path / name).exists() and not (path / WEIGHTS).exists():
            raise UserError(f"{path}: has {name}, expected a single {WEIGHTS}; convert it with transformers")
    return config, read_weights(path / WEIGHTS, config)


def save_folder(path, config, params, dtype="float32", end_of_text=None):
    """Writes config.json, generation_config.json and model.safetensors into the existing folder `path`.

    params: float32 (parameter_layout(config).size,). dtype: "float32" or "bfloat16". end_of_text: the id of the
    <|endoftext|> token, None if unknown. Raises OSError, and UserError for a parameter too large for bfloat16.
    """
    path = pathlib.Path(path)
    ends = dict.fromkeys(("bos_token_id", "eos_token_id"), end_of_text)
    sizes = {key: getattr(config, name) for name, key in FOREIGN_SIZES.items()}
    model = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "torch_dtype": dtype, "n_inner": None}
    _write_json(path / CONFIG, model | sizes | ARCHITECTURE | ends)
    _write_json(path / GENERATION_CONFIG, ends)
    _write_weights(path / WEIGHTS, config, params, dtype)


def save_tokenizer_config(path, config):
    """Writes tokenizer_config.json and special_tokens_map.json for GPT-2's vocabulary into the existing folder `path`.

    Raises OSError.
    """
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.maxT, "add_prefix_space": False}
    _write_json(pathlib.Path(path, SPECIAL_TOKENS), special)
    _write_json(pathlib.Path(path, TOKENIZER_CONFIG), settings | special)


def _write_json(path, fields):
    """Writes a JSON object, formatted as by Hugging Face's libraries."""
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def read_config(path):
    """Reads a config.json. Returns its GPT2Config. Raises UserError unless it is a supported GPT-2."""
    with open_to_read(path) as file:
        if os.fstat(file.fileno()).st_size > CONFIG_LIMIT:
            raise UserError(f"{path}: more than {CONFIG_LIMIT:,} bytes, expected the few of a model's configuration")
        try:
            fields = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected a JSON object with the model's configuration")
    # Checked first: other architectures lack some of the other keys.
    if fields.get("model_type") != "gpt2":
        raise UserError(f"{path}: model_type is {safe_repr(fields.get('model_type'))}, only 'gpt2' is supported")
    if fields.get("activation_function") == "gelu_pytorch_tanh":  # a synonym
        fields["activation_function"] = ARCHITECTURE["activation_function"]
    for key, supported in ARCHITECTURE.items():
        if (value := fields.get(key, supported)) != supported:
            raise UserError(f"{path}: {key} is {safe_repr(value)}, only {supported!r} is supported")
    sizes = {}
    for name, key in FOREIGN_SIZES.items():
        sizes[name] = fields.get(key)
        if type(sizes[name]) is not int:  # bool is a subclass of int
            raise UserError(f"{path}: {key} is {safe_repr(sizes[name])}, expected a whole number")
    try:
        config = GPT2Config(**sizes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if fields.get("n_inner") not in (None, 4 * config.C):
        raise UserError(f"{path}: n_inner is {safe_repr(fields['n_inner'])}, only null or 4 * n_embd is supported")
    return config


def read_weights(path, config):
    """Reads a model.safetensors, tensor by tensor. Returns params; raises UserError as `load_folder` does."""
    try:
        # Opened first for clearer error messages than safetensors'.
        with open_to_read(path), safe_open(path, framework="numpy") as file:
            stored = _checked_names(file, path, config)
    except SafetensorError as error:
        raise UserError(f"{path}: corrupt, or not a safetensors file: {safe_repr(str(error))}") from error
    layout = parameter_layout(config)
    params = allocate(layout.size, np.float32, f"the model in {path}")
    views = layout.views(params)
    with open_to_read(path) as file:
        read = _reader(file, path, stored)
        for name, ours, index, shape in _pieces(config):
            if ours in TRANSPOSED:
                _transpose(views[ours][index], read(name, np.empty(shape, np.float32)))
            else:
                read(name, views[ours][index])
        wte = views["wte"][: config.V]
        if HEAD in stored and not np.array_equal(read(HEAD, np.empty_like(wte)), wte):
            raise UserError(f"{path}: {HEAD} differs from wte.weight, only tied embeddings are supported")
    return params


def _reader(file, path, stored):
    """Returns a function (name, out) that reads a tensor into the float32 array `out` and returns it.

    safetensors validates the header but does not read the tensors: NumPy has no bfloat16, and the library's mapping of
    the whole file would count as a second model in memory.
    """
    length = int.from_bytes(file.read(8), "little")
    entries = json.loads(file.read(length))

    def read(name, out):
        entry = entries[stored[name]]
        file.seek(8 + length + entry["data_offsets"][0])
        read_floats(file, out.reshape(-1), DTYPES[entry["dtype"]], f"{path}: tensor {name}")
        return out

    return read


def _write_weights(path, config, params, dtype):
    """Writes a model.safetensors tensor by tensor: the library's writer needs all of them in memory at once."""
    (code,) = (code for code, name in DTYPES.items() if name == dtype)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, _, _, shape in _pieces(config):
        start, end = end, end + STORED[dtype].itemsize * math.prod(shape)
        header[PREFIX + name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    views = parameter_layout(config).views(params)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, ours, index, shape in _pieces(config):
            tensor = views[ours][index]
            if ours in TRANSPOSED:
                tensor = _transpose(np.empty(shape, np.float32), tensor)
            write_floats(file, tensor.reshape(-1), dtype)


def _transpose(out, matrix):
    """Copies the transpose of a matrix into `out`, in cache-sized blocks. Returns `out`."""
    for row in range(0, out.shape[0], BLOCK):
        for column in range(0, out.shape[1], BLOCK):
            rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
            out[rows, columns] = matrix[columns, rows].T
    return out


def _checked_names(file, path, config):
    """Checks tensor names, dtypes and shapes. Returns a dict of name without prefix -> stored name."""
    stored = {name.removeprefix(PREFIX): name for name in file.keys()}  # noqa: SIM118 (not a dict)
    if len(stored) < len(file.keys()):
        raise UserError(f"{path}: a tensor occurs twice, with and without the prefix {PREFIX!r}")
    unexpected = {name for name in stored if not MASK.fullmatch(name)}
    for name in unexpected:
        if (dtype := file.get_slice(stored[name]).get_dtype()) not in DTYPES:
            raise UserError(
                f"{path}: tensor {safe_repr(name)} is stored as {dtype}, expected F32, F16 or BF16; convert it"
            )
    if HEAD in unexpected:
        unexpected.remove(HEAD)
        if (found := tuple(file.get_slice(stored[HEAD]).get_shape())) != (config.V, config.C):
            raise UserError(f"{path}: tensor {HEAD} has shape {safe_repr(found)}, expected that of wte.weight")
    for name, _, _, shape in _pieces(config):
        if name not in stored:
            raise UserError(f"{path}: tensor {name}, which config.json implies, is missing")
        if (found := tuple(file.get_slice(stored[name]).get_shape())) != shape:
            raise UserError(f"{path}: tensor {name} has shape {safe_repr(found)}, expected {shape}")
        unexpected.remove(name)
    if unexpected:
        raise UserError(
            f"{path}: tensor {safe_repr(min(unexpected))} does not belong to a GPT-2 with the sizes in config.json"
        )
    return stored


def _pieces(config):
    """Yields (Hugging Face's name, our name, index into our tensor, Hugging Face's shape) for every stored tensor."""
    shapes = parameter_layout(config, padded=False).shapes
    for ours, foreign in FOREIGN_NAMES.items():
        if "{}" not in foreign:
            # wte without its padding rows; the whole of the others.
            yield foreign, ours, slice(shapes[ours][0]), shapes[ours]
            continue
        shape = shapes[ours][1:]
        for layer in range(config.L):
            yield foreign.format(layer), ours, layer, shape[::-1] if ours in TRANSPOSED else shape
