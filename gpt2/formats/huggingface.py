"""GPT-2 in Hugging Face's format: a folder with config.json, the weights and, optionally, tokenizer files."""

import json
import pathlib
import re

import numpy as np

from gpt2.config import GPT2Config
from gpt2.errors import UserError, safe_repr
from gpt2.formats.architecture import GELU, layers, require
from gpt2.formats.files import open_to_read, read_json, write_json
from gpt2.formats.tensors import DTYPES, INDEX, WEIGHTS, read_headers, read_tensor, write_tensors
from gpt2.formats.tokenizer_folder import (
    CONFIG,
    END_OF_TEXT,
    GENERATION_CONFIG,
    SETTINGS,
    SPECIAL_TOKENS,
    TokenizerFolder,
)
from gpt2.layout import parameter_layout
from gpt2.memory import allocate

CONFIG_LIMIT = 2**20  # bytes
# Where other folders keep their weights, in formats that are not supported.
UNSUPPORTED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")

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
PREFIX = "transformer."  # of the names in a model with a head; optional when reading
HEAD = "lm_head.weight"
BLOCK = 256  # rows and columns of a transposed block
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # causal masks: constants, not parameters

# Our size -> its key in config.json.
FOREIGN_SIZES = {"maxT": "n_positions", "V": "vocab_size", "L": "n_layer", "NH": "n_head", "C": "n_embd"}
LAYER_NORM_EPSILON = 1e-5
# Other names of gelu_new, GELU by tanh, in transformers' activations.py.
GELU_SYNONYMS = ("gelu_pytorch_tanh", "gelu_fast")


def required_fields():
    """Returns what config.json must say, a dict. A missing key means this value, but for the activation GPT-2's."""
    return {
        "activation_function": layers()[0],
        "layer_norm_epsilon": LAYER_NORM_EPSILON,
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
        "tie_word_embeddings": True,
    }


def load_folder(path):
    """Reads a GPT-2 folder: config.json, and model.safetensors or its shards, in float32, float16 or bfloat16.

    Returns (GPT2Config, params) as llmc.load_model does. Raises UserError for an unsupported architecture, and for a
    tensor that is missing, unexpected, of the wrong shape, or not finite.
    """
    path = pathlib.Path(path)
    config = read_config(path / CONFIG)
    weights = path / INDEX if (path / INDEX).exists() and not (path / WEIGHTS).exists() else path / WEIGHTS
    for name in UNSUPPORTED_WEIGHTS:
        if (path / name).exists() and not weights.exists():
            raise UserError(f"{path}: has {name}, expected {WEIGHTS} or {INDEX}; convert it with transformers")
    return config, read_weights(weights, config)


def save_folder(path, config, params, dtype="float32", vocabulary=None):
    """Writes config.json, generation_config.json, the weights and a vocabulary's files into the existing folder `path`.

    The weights are model.safetensors, or shards (see tensors.py). params: float32 (parameter_layout(config).size,).
    dtype: "float32" or "bfloat16". vocabulary: a TokenizerFolder, or what has its `files`, `begin` and `ends`. What
    else it says in its config.json stays. Raises OSError, and UserError for a parameter too large for bfloat16.
    """
    path = pathlib.Path(path)
    vocabulary = vocabulary or TokenizerFolder({})
    ends = vocabulary.ends[0] if len(vocabulary.ends) == 1 else list(vocabulary.ends) or None
    controls = {"bos_token_id": vocabulary.begin, "eos_token_id": ends}
    known = json.loads(vocabulary.files[CONFIG]) if CONFIG in vocabulary.files else controls
    sizes = {key: getattr(config, name) for name, key in FOREIGN_SIZES.items()}
    sizes["n_ctx"] = config.maxT  # for llama.cpp's converter; transformers does without
    model = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_inner": None}
    stored_as = dict.fromkeys({"torch_dtype", "dtype"} & known.keys() or {"torch_dtype"}, dtype)
    write_json(path / CONFIG, known | model | stored_as | sizes | required_fields())
    write_json(path / GENERATION_CONFIG, controls)
    for name, data in vocabulary.files.items():
        if name != CONFIG:
            (path / name).write_bytes(data)
    views = parameter_layout(config).views(params)
    pieces = {PREFIX + name: piece for name, *piece in _pieces(config)}

    def stored(name):
        ours, index, shape = pieces[name]
        tensor = views[ours][index]
        return _transpose(np.empty(shape, np.float32), tensor) if ours in TRANSPOSED else tensor

    write_tensors(path, {name: shape for name, (_, _, shape) in pieces.items()}, stored, dtype)


def save_tokenizer_config(path, config):
    """Writes tokenizer_config.json and special_tokens_map.json for GPT-2's vocabulary into the existing folder `path`.

    Raises OSError.
    """
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.maxT, "add_prefix_space": False}
    write_json(pathlib.Path(path, SPECIAL_TOKENS), special)
    write_json(pathlib.Path(path, SETTINGS), settings | special)


def read_config(path):
    """Reads a config.json. Returns its GPT2Config. Raises UserError unless it is a supported GPT-2."""
    fields = read_json(path, CONFIG_LIMIT, "a model's configuration")
    # Checked first: other architectures lack some of the other keys.
    if fields.get("model_type") != "gpt2":
        raise UserError(f"{path}: model_type is {safe_repr(fields.get('model_type'))}, only 'gpt2' is supported")
    if fields.setdefault("activation_function", GELU) in GELU_SYNONYMS:
        fields["activation_function"] = GELU
    for key, supported in required_fields().items():
        if (value := fields.get(key, supported)) != supported:
            raise UserError(f"{path}: {key} is {safe_repr(value)}, only {supported!r} is supported")
    require(path, layers()[0])
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
    """Reads a model.safetensors, or the shards in a model.safetensors.index.json, tensor by tensor.

    Returns params; raises UserError as `load_folder` does.
    """
    stored = _checked_tensors(path, config)
    layout = parameter_layout(config)
    params = allocate(layout.size, np.float32, f"the model in {path}")
    views = layout.views(params)
    for shard in sorted({tensor.path for tensor in stored.values()}):
        with open_to_read(shard) as file:
            for name, ours, index, shape in _pieces(config):
                if stored[name].path != shard:
                    continue
                if ours in TRANSPOSED:
                    _transpose(views[ours][index], read_tensor(file, stored[name], np.empty(shape, np.float32), name))
                else:
                    read_tensor(file, stored[name], views[ours][index], name)
    if HEAD in stored:
        wte = views["wte"][: config.V]
        with open_to_read(stored[HEAD].path) as file:
            head = read_tensor(file, stored[HEAD], np.empty_like(wte), HEAD)
        if not np.array_equal(head, wte):
            raise UserError(f"{path}: {HEAD} differs from wte.weight, only tied embeddings are supported")
    return params


def _transpose(out, matrix):
    """Copies the transpose of a matrix into `out`, in cache-sized blocks. Returns `out`."""
    for row in range(0, out.shape[0], BLOCK):
        for column in range(0, out.shape[1], BLOCK):
            rows, columns = slice(row, row + BLOCK), slice(column, column + BLOCK)
            out[rows, columns] = matrix[columns, rows].T
    return out


def _checked_tensors(path, config):
    """Checks tensor names, dtypes and shapes. Returns a dict of name without prefix -> tensors.Tensor."""
    headers = read_headers(path)
    stored = {name.removeprefix(PREFIX): tensor for name, tensor in headers.items()}
    if len(stored) < len(headers):
        raise UserError(f"{path}: a tensor occurs twice, with and without the prefix {PREFIX!r}")
    unexpected = {name: tensor for name, tensor in stored.items() if not MASK.fullmatch(name)}
    for name, tensor in unexpected.items():
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"{tensor.path}: tensor {safe_repr(name)} is stored as {tensor.dtype}, expected F32, F16 or BF16; "
                "convert it"
            )
    if (head := unexpected.pop(HEAD, None)) and head.shape != (config.V, config.C):
        raise UserError(f"{head.path}: tensor {HEAD} has shape {safe_repr(head.shape)}, expected that of wte.weight")
    for name, _, _, shape in _pieces(config):
        if (tensor := unexpected.pop(name, None)) is None:
            raise UserError(f"{path}: tensor {name}, which config.json implies, is missing")
        if tensor.shape != shape:
            raise UserError(f"{tensor.path}: tensor {name} has shape {safe_repr(tensor.shape)}, expected {shape}")
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
