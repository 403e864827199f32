"""Model files in llm.c's format: read in versions 1, 3 and 5, written in version 3 (float32) and 5 (bfloat16)."""

import mmap

import numpy as np

from gpt2.config import GPT2Config
from gpt2.errors import UserError, from_os_error
from gpt2.formats.files import HEADER_BYTES, atomic_write, check_size, open_to_read, read_header, write_header
from gpt2.layout import parameter_layout
from gpt2.memory import allocate

MAGIC = 20240326
VERSION_DTYPES = {1: "float32", 3: "float32", 5: "bfloat16"}
UNPADDED, FLOAT32 = 1, 3
WRITTEN_VERSIONS = {"float32": FLOAT32, "bfloat16": 5}
# How a file holds a number. NumPy has no bfloat16, which is the upper half of a float32.
STORED = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
BFLOAT16_LARGEST = np.float32(3.3895314e38)
CHUNK = 2**16  # elements converted at a time: few enough to stay in the cache


def load_model(path):
    """Reads a model file.

    Returns (GPT2Config, params): params float32 (parameter_layout(config).size,), the rows that pad wte zero.
    Raises UserError for a header or a length that is not a model's, before anything is allocated, then for a tensor
    with a number that is not finite.
    """
    with open_to_read(path) as file:
        config, version = read_sizes(file, path)
        layout, dtype = parameter_layout(config), VERSION_DTYPES[version]
        params = allocate(layout.size, np.float32, f"the model in {path}")
        for name in layout.shapes:
            tensor = params[layout.slice(name)]
            padding = (config.Vp - config.V) * config.C if name == "wte" else 0
            read_floats(file, tensor[: tensor.size - padding], dtype, f"{path}: tensor {name}")
            if version != UNPADDED:
                # Whatever the padding holds, no token reaches it.
                file.seek(padding * STORED[dtype].itemsize, 1)
    return config, params


def map_model(path):
    """Maps a model file of version 3 into memory, which takes no time: what is used is read when it is. Files of other
    versions are read as `load_model` does.

    Returns (GPT2Config, params) as it does, but the numbers are not checked, and the rows that pad wte are the file's.
    A change to params is this process's own and never reaches the file.
    """
    with open_to_read(path) as file:
        config, version = read_sizes(file, path)
        if version != FLOAT32:
            return load_model(path)
        try:
            # Copy on write rather than read-only, for which Numba would compile every kernel once more.
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except OSError as error:
            raise from_os_error(error, path) from error
    return config, np.frombuffer(memory, "<f4", offset=HEADER_BYTES)


def save_model(path, config, params, dtype="float32"):
    """Writes a file of version 3, or of version 5 for the dtype "bfloat16", whole or not at all.

    params: float32 (parameter_layout(config).size,). Raises UserError when the folder or the disk refuses.
    """
    with atomic_write(path) as file:
        write_model(file, config, params, dtype)


def write_model(file, config, params, dtype="float32"):
    """Writes what `save_model` does to an open file; float32 from params itself, of which nothing is copied."""
    assert params.shape == (parameter_layout(config).size,)
    version = WRITTEN_VERSIONS[dtype]
    write_header(file, [MAGIC, version, config.maxT, config.V, config.L, config.NH, config.C, config.Vp])
    write_floats(file, params, dtype)


def read_floats(file, out, dtype, what):
    """Fills `out`, float32 (n,), from the open file, a chunk at a time: another dtype never exists beside its copy.

    dtype: a key of STORED, how the file holds the numbers. Raises UserError that names `what` if one is not finite.
    """
    stored = STORED[dtype]
    for start in range(0, out.size, CHUNK):
        chunk = out[start : start + CHUNK]
        data = file.read(chunk.size * stored.itemsize)
        if len(data) < chunk.size * stored.itemsize:
            raise UserError(f"{what} ends early: the file has been cut off meanwhile")
        data = np.frombuffer(data, stored)
        if dtype == "bfloat16":
            np.left_shift(data, 16, out=chunk.view(np.uint32), dtype=np.uint32)
        else:
            chunk[:] = data
        if not np.isfinite(chunk).all():
            raise UserError(f"{what} holds a number that is not finite (NaN or infinity); take an intact model")


def write_floats(file, values, dtype):
    """Writes `values`, floats (n,), as "float32" or "bfloat16" (rounded to nearest, ties to even), chunk by chunk.

    Raises UserError for a number that is too large.
    """
    for start in range(0, values.size, CHUNK):
        chunk = np.ascontiguousarray(values[start : start + CHUNK], "<f4")
        if dtype == "bfloat16" and (np.abs(chunk) > BFLOAT16_LARGEST).any():
            raise UserError("a number of the model is too large for bfloat16; write it as float32")
        file.write(_bfloat16(chunk) if dtype == "bfloat16" else chunk)


def _bfloat16(values):
    bits = values.view("<u4")
    upper = bits >> 16
    rounded = bits + 0x7FFF
    rounded += upper & 1
    rounded >>= 16
    # A NaN stays one: rounding could carry it over into an infinity or a zero, and cutting could empty its fraction.
    np.copyto(rounded, upper | 0x40, where=np.isnan(values))
    return rounded.astype("<u2")


def read_sizes(file, path):
    """Reads the header of a model file, open for reading at its start, and checks it and the file's length.

    Returns (GPT2Config, version). Raises UserError.
    """
    magic, version, maxT, V, L, NH, C, Vp = (int(value) for value in read_header(file, path, "a model file")[:8])
    if magic != MAGIC:
        raise UserError(
            f"{path}: not a model file in llm.c's format: it starts with {magic}, expected {MAGIC}; "
            "a model in Hugging Face's is named by its folder"
        )
    if version not in VERSION_DTYPES:
        raise UserError(f"{path}: model file of version {version}, expected one of {(*VERSION_DTYPES,)}")
    try:
        config = GPT2Config(maxT, V, L, NH, C)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    padded = version != UNPADDED
    if padded and Vp != config.Vp:
        raise UserError(f"{path}: a vocabulary of {V} is padded to {Vp} rows, expected {config.Vp}")
    body_bytes = parameter_layout(config, padded).size * STORED[VERSION_DTYPES[version]].itemsize
    check_size(file, path, HEADER_BYTES + body_bytes, f"what a version {version} file of these sizes holds: {config}")
    return config, version
