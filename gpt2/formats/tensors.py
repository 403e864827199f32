"""Tensors in safetensors files: one file, or several, the shards, and the index that names them.

Both are read and written tensor by tensor: the library maps or copies all of a file at once, and NumPy has no bfloat16.
"""

import json
import math
import pathlib
import re
import typing

from safetensors import SafetensorError, safe_open

from gpt2.errors import UserError, safe_repr
from gpt2.formats.files import open_to_read, read_json, write_json
from gpt2.formats.llmc import STORED, read_floats, write_floats

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
INDEX_LIMIT = 2**24  # bytes
SHARD_BYTES = 5 * 10**9  # of tensors in a file that is written
SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
WRITTEN_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors", re.ASCII)
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class Tensor(typing.NamedTuple):
    """A stored tensor: the path of its file, its name there, dtype, shape, and the offset of its data in bytes."""

    path: pathlib.Path
    name: str
    dtype: str
    shape: tuple
    offset: int


def read_headers(path):
    """Returns the tensors of a safetensors file, or of the shards in an index, a dict of name -> Tensor.

    Raises UserError for a corrupt file, a tensor in two shards, and one that is not in the shard that the index names.
    """
    if path.name != INDEX:
        return _read_header(path)
    weight_map, tensors = _read_index(path), {}
    for name in sorted(set(weight_map.values())):
        for tensor in _read_header(path.with_name(name)).values():
            if tensor.name in tensors:
                other = tensors[tensor.name].path.name
                raise UserError(f"{path}: tensor {safe_repr(tensor.name)} is in both {other} and {name}")
            tensors[tensor.name] = tensor
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].path.name != shard:
            raise UserError(f"{path}: tensor {safe_repr(name)} is not in {shard}; use an intact model")
    return tensors


def shard_names(path):
    """Returns the names of the files in an index, sorted; all lie beside it. Raises UserError for an invalid index."""
    return sorted(set(_read_index(path).values()))


def read_tensor(file, tensor, out, what):
    """Reads a Tensor, of a dtype in DTYPES, from its open file into `out`, float32 of its shape, and returns `out`.

    what: names it in error messages. Raises UserError if a number is not finite.
    """
    file.seek(tensor.offset)
    read_floats(file, out.reshape(-1), DTYPES[tensor.dtype], f"{tensor.path}: tensor {what}")
    return out


def write_tensors(folder, shapes, values, dtype):
    """Writes model.safetensors, or above SHARD_BYTES shards and their index, into an existing folder.

    shapes: a dict of name -> shape. values: a function that returns a tensor by name, float32. dtype: "float32" or
    "bfloat16". Raises OSError, and UserError for a number too large for bfloat16.
    """
    sizes = {name: STORED[dtype].itemsize * math.prod(shape) for name, shape in shapes.items()}
    shards = _split(sizes)
    if len(shards) == 1:
        return _write_file(folder / WEIGHTS, shapes, sizes, values, dtype)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, {name: shapes[name] for name in names}, sizes, values, dtype)
        weight_map |= dict.fromkeys(names, file)
    write_json(folder / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})


def _read_index(path):
    """Returns the weight_map of an index, a dict of tensor name -> file name."""
    weight_map = read_json(path, INDEX_LIMIT, "an index of a model's files").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{path}: weight_map is {safe_repr(weight_map)}, expected an object of tensor: file")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not SHARD.fullmatch(shard):
            place = f"tensor {safe_repr(name)} is in {safe_repr(shard)}"
            raise UserError(f"{path}: {place}, expected the name of a .safetensors file in this folder")
    return weight_map


def _read_header(path):
    """Returns the tensors of one file, a dict of name -> Tensor."""
    with open_to_read(path) as file:
        try:
            safe_open(path, framework="numpy")  # validates the header
        except SafetensorError as error:
            raise UserError(f"{path}: corrupt, or not a safetensors file: {safe_repr(str(error))}") from error
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
    entries.pop("__metadata__", None)
    return {
        name: Tensor(path, name, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in entries.items()
    }


def _split(sizes):
    """Splits tensors, a dict of name -> bytes, into lists of names, each of at most SHARD_BYTES or a single tensor."""
    shards, filled = [], math.inf
    for name, size in sizes.items():
        if filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_file(path, shapes, sizes, values, dtype):
    (code,) = (code for code, name in DTYPES.items() if name == dtype)
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes.items():
        start, end = end, end + sizes[name]
        header[name] = {"dtype": code, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors to 8 bytes
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in shapes:
            write_floats(file, values(name).reshape(-1), dtype)
