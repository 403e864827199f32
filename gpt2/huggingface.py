"""Hugging Face's GPT-2: model folders read into the flat array, and the published weights fetched from the hub."""

import json
import pathlib
import re
import sys

import huggingface_hub
import numpy as np
from safetensors import SafetensorError, safe_open

from gpt2.checkpoint import load_model, save_model
from gpt2.config import PRESETS, GPT2Config
from gpt2.errors import UnavailableError, UserError
from gpt2.files import open_to_read, sha256
from gpt2.layout import parameter_layout
from gpt2.memory import allocate

REPOSITORY = "openai-community/gpt2"
REVISION = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707"
# The hub's own command, which stands beside the Python that runs this.
FETCH_COMMAND = f"{pathlib.Path(sys.executable).with_name('hf')} download {REPOSITORY} {WEIGHTS} --revision {REVISION}"
PROBE_SECONDS = 5

# Our name -> Hugging Face's; {} is the layer.
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
TRANSPOSED = {"qkvw", "attprojw", "fcw", "fcprojw"}  # stored (in, out), ours are (out, in)
HEAD = "lm_head.weight"
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # constants, not parameters

# Our size -> its key in config.json.
FOREIGN_SIZES = {"maxT": "n_positions", "V": "vocab_size", "L": "n_layer", "NH": "n_head", "C": "n_embd"}
# What this model computes; a key that is absent has this value.
ARCHITECTURE = {
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "reorder_and_upcast_attn": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}


def load_gpt2(data_dir):
    """Loads GPT-2 124M from `data_dir`/gpt2_124M.bin, which is made from the hub's weights if it isn't there.

    Returns (GPT2Config, params) as checkpoint.load_model does. Raises what it and fetch_gpt2 raise.
    """
    path = pathlib.Path(data_dir) / "gpt2_124M.bin"
    if path.exists():
        config, params = load_model(path)
        if config != PRESETS["gpt2"]:
            raise UserError(f"{path}: expected GPT-2 124M, found {config}; delete the file to have it made anew")
        return config, params
    config = PRESETS["gpt2"]
    params = _load_weights(fetch_gpt2(), config)
    save_model(path, config, params)
    return config, params


def fetch_gpt2():
    """Returns the path of GPT-2 124M's model.safetensors in the hub's cache, downloaded if need be and verified.

    Raises UnavailableError, within seconds if there is no network, saying why the file cannot be had.
    Raises UserError for a file that is there but corrupt.
    """
    file = {"repo_id": REPOSITORY, "filename": WEIGHTS, "revision": REVISION}
    path = huggingface_hub.try_to_load_from_cache(**file)
    if not isinstance(path, str):
        try:
            # The download itself would try an unreachable hub again and again, for half a minute and with warnings.
            huggingface_hub.get_hf_file_metadata(huggingface_hub.hf_hub_url(**file), timeout=PROBE_SECONDS)
            path = huggingface_hub.hf_hub_download(**file)
        except Exception as error:  # the hub's, its HTTP library's (which one varies by version), the disk's
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            raise UnavailableError(
                f"{REPOSITORY}: cannot fetch {WEIGHTS} from the Hugging Face hub: {reason}"
            ) from error
    if (found := sha256(path)) != WEIGHTS_SHA256:
        path = pathlib.Path(path).resolve()  # in the cache the name is a link; what must go is the file behind it
        raise UserError(f"{path}: corrupt: SHA-256 {found}, expected {WEIGHTS_SHA256}; delete it and try again")
    return pathlib.Path(path)


def load_folder(path):
    """Reads a Hugging Face GPT-2 model folder: config.json and model.safetensors, stored as float32 or float16.

    Returns (GPT2Config, params) as checkpoint.load_model does. Raises UserError for another architecture, and for a
    tensor that is missing, unexpected or of the wrong shape.
    """
    path = pathlib.Path(path)
    config = _load_config(path / "config.json")
    return config, _load_weights(path / WEIGHTS, config)


def _load_config(path):
    with open_to_read(path) as file:
        try:
            fields = json.load(file)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{path}: expected a JSON object with the model's configuration")
    # Before all else: another architecture may lack the other keys.
    if fields.get("model_type") != "gpt2":
        raise UserError(f"{path}: model_type is {fields.get('model_type')!r}, only 'gpt2' is supported")
    for key, supported in ARCHITECTURE.items():
        if (value := fields.get(key, supported)) != supported:
            raise UserError(f"{path}: {key} is {value!r}, only {supported!r} is supported")
    sizes = {}
    for name, key in FOREIGN_SIZES.items():
        sizes[name] = fields.get(key)
        if type(sizes[name]) is not int:  # isinstance would let true pass
            raise UserError(f"{path}: {key} is {sizes[name]!r}, expected a whole number")
    try:
        config = GPT2Config(**sizes)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if fields.get("n_inner") not in (None, 4 * config.C):
        raise UserError(f"{path}: n_inner is {fields['n_inner']!r}, only null or 4 * n_embd is supported")
    return config


def _load_weights(path, config):
    open_to_read(path).close()  # its errors say more than safetensors' do
    try:
        with safe_open(path, framework="numpy") as file:
            stored = _checked_names(file, path, config)
            layout = parameter_layout(config)
            params = allocate(layout.size, np.float32, f"the model in {path}")
            views = layout.views(params)
            for name, ours, index, _ in _pieces(config):
                tensor = file.get_tensor(stored[name])
                views[ours][index] = tensor.T if ours in TRANSPOSED else tensor
            if HEAD in stored and not np.array_equal(file.get_tensor(stored[HEAD]), views["wte"][: config.V]):
                raise UserError(f"{path}: {HEAD} differs from wte.weight, only tied embeddings are supported")
    except SafetensorError as error:
        raise UserError(f"{path}: corrupt, or not a safetensors file: {error}") from error
    return params


def _checked_names(file, path, config):
    """Returns a dict of the names without prefix -> as stored; every tensor the model needs is there and in shape."""
    stored = {name.removeprefix("transformer."): name for name in file.keys()}  # noqa: SIM118 (it is no dict)
    if len(stored) < len(file.keys()):
        raise UserError(f"{path}: holds a tensor twice, with and without the prefix 'transformer.'")
    unexpected = {name for name in stored if not MASK.fullmatch(name)}
    for name in unexpected:
        if (dtype := file.get_slice(stored[name]).get_dtype()) not in ("F32", "F16"):
            raise UserError(f"{path}: tensor {name} is stored as {dtype}, expected F32 or F16; convert it")
    unexpected.discard(HEAD)
    for name, _, _, shape in _pieces(config):
        if name not in stored:
            raise UserError(f"{path}: tensor {name} is missing, config.json asks for it")
        if (found := tuple(file.get_slice(stored[name]).get_shape())) != shape:
            raise UserError(f"{path}: tensor {name} has shape {found}, expected {shape}")
        unexpected.remove(name)
    if unexpected:
        raise UserError(f"{path}: tensor {min(unexpected)} does not belong to a GPT-2 with the sizes in config.json")
    return stored


def _pieces(config):
    """Yields (foreign name, our name, index into our tensor, foreign shape) for every tensor of the model."""
    shapes = parameter_layout(config, padded=False).shapes
    for ours, foreign in FOREIGN_NAMES.items():
        if "{}" not in foreign:
            # The first V rows of wte, the whole of the others.
            yield foreign, ours, slice(shapes[ours][0]), shapes[ours]
            continue
        shape = shapes[ours][1:]
        for layer in range(config.L):
            yield foreign.format(layer), ours, layer, shape[::-1] if ours in TRANSPOSED else shape
