"""Model files in llm.c's format: read in versions 1, 3 and 5, written in version 3."""

import numpy as np

from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.files import HEADER_BYTES, atomic_write, check_size, open_to_read, read_header, write_header
from gpt2.layout import parameter_layout
from gpt2.memory import allocate

MAGIC = 20240326
FLOAT32_UNPADDED, FLOAT32, BFLOAT16 = VERSIONS = 1, 3, 5
CHUNK = 2**20  # elements converted at a time


def load_model(path):
    """Reads a model file.

    Returns (GPT2Config, params): params float32 (parameter_layout(config).size,), the rows that pad wte zero.
    Raises UserError, before anything is allocated, for a header or a length that is not a model's.
    """
    with open_to_read(path) as file:
        config, version = _read_sizes(file, path)
        layout = parameter_layout(config)
        params = allocate(layout.size, np.float32, f"the model in {path}")
        vocabulary_end, padding_end = config.V * config.C, config.Vp * config.C
        _read_floats(file, params[:vocabulary_end], version)
        if version != FLOAT32_UNPADDED:
            # Whatever the padding holds, no token reaches it.
            file.seek((padding_end - vocabulary_end) * _item_bytes(version), 1)
        _read_floats(file, params[padding_end:], version)
    return config, params


def save_model(path, config, params):
    """Writes a version 3 file, whole or not at all.

    params: float32 (parameter_layout(config).size,). Raises UserError when the folder or the disk refuses.
    """
    assert params.shape == (parameter_layout(config).size,)
    with atomic_write(path) as file:
        write_header(file, [MAGIC, FLOAT32, config.maxT, config.V, config.L, config.NH, config.C, config.Vp])
        # On a little-endian machine this is the array itself: no copy of the model is made.
        file.write(np.ascontiguousarray(params, dtype="<f4"))


def _read_sizes(file, path):
    magic, version, maxT, V, L, NH, C, Vp = (int(value) for value in read_header(file, path, "a model file")[:8])
    if magic != MAGIC:
        raise UserError(f"{path}: not a model file: it starts with {magic}, expected {MAGIC}")
    if version not in VERSIONS:
        raise UserError(f"{path}: model file of version {version}, expected one of {VERSIONS}")
    try:
        config = GPT2Config(maxT, V, L, NH, C)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    padded = version != FLOAT32_UNPADDED
    if padded and Vp != config.Vp:
        raise UserError(f"{path}: a vocabulary of {V} is padded to {Vp} rows, expected {config.Vp}")
    body_bytes = parameter_layout(config, padded).size * _item_bytes(version)
    check_size(file, path, HEADER_BYTES + body_bytes, f"what a version {version} file of these sizes holds: {config}")
    return config, version


def _item_bytes(version):
    return 2 if version == BFLOAT16 else 4


def _read_floats(file, out, version):
    """Fills `out` from the file, a chunk at a time, so that a bfloat16 model never exists beside its float32 copy."""
    for start in range(0, out.size, CHUNK):
        chunk = out[start : start + CHUNK]
        data = file.read(chunk.size * _item_bytes(version))
        if version == BFLOAT16:
            # bfloat16 is the upper half of a float32.
            chunk.view(np.uint32)[:] = np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16
        else:
            chunk[:] = np.frombuffer(data, dtype="<f4")
