"""The training state of a checkpoint, a file beside the model's.

A header of 256 int32 (magic, version, bytes of JSON, maxT, V, L, NH, C, Vp, the number of arrays less 2), the JSON, the
optimizer's arrays (AdamW's m and v; float32, laid out as the parameters are) and the SHA-256 of everything before.
"""

import hashlib
import json

import numpy as np
from tqdm import tqdm

from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.formats.files import HEADER_BYTES, check_size, open_to_read, read_header, write_header
from gpt2.formats.llmc import write_floats
from gpt2.layout import parameter_layout

MAGIC, VERSION = 20261121, 1
DIGEST_BYTES = 32
# The arrays are 64-byte aligned, for mmap.
ALIGNMENT = 64
JSON_LIMIT = 2**22
ARRAYS_LIMIT = 64
JSON_GROWTH = 2**16  # bytes that the JSON may take more at a later step
CHUNK = 2**20  # bytes read and hashed at a time


def require_savable(folder, progress):
    """Raises UserError if what a run would save at its start, a dict for JSON, may be too long at a later step."""
    size = len(json.dumps(progress))
    if size > JSON_LIMIT - JSON_GROWTH:
        raise UserError(
            f"{folder}: {size:,} bytes of metadata about the run, more than a checkpoint holds ({JSON_LIMIT:,}): name "
            "fewer files in --train-data and --val-data, by shorter paths, or by a glob in quotes"
        )


def _sizes(config):
    return [config.maxT, config.V, config.L, config.NH, config.C, config.Vp]


def _array_bytes(config):
    return 4 * parameter_layout(config).size


def write_training_state(file, config, arrays, chunks, facts, path):
    """Writes a training state to an open HashedFile.

    arrays: how many the optimizer has, of parameter_layout(config).size elements each. chunks: yields these one after
    the other, in pieces of any size, float32 (n,), which are not copied. facts: a dict for JSON. path: of the file, for
    messages. Raises UserError if the JSON is longer than JSON_LIMIT.
    """
    text = json.dumps(facts).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    if len(text) > JSON_LIMIT:
        raise UserError(f"{path}: {len(text):,} bytes of metadata about the run, at most {JSON_LIMIT:,} fit")
    write_header(file, [MAGIC, VERSION, len(text), *_sizes(config), arrays - 2])
    file.write(text)
    left = arrays * parameter_layout(config).size
    for chunk in chunks:
        assert chunk.dtype == np.float32
        write_floats(file, chunk, "float32")
        left -= chunk.size
    assert left == 0
    file.write(file.digest())


def read_state_sizes(file, path):
    """Reads and checks the header of a state file, open at its start, and the file's length.

    Returns (GPT2Config, number of the optimizer's arrays, bytes of JSON, header). Raises UserError.
    """
    header = read_header(file, path, "a training state")
    magic, version, json_bytes, *sizes, arrays = (int(value) for value in header[:10])
    arrays += 2
    if (magic, version) != (MAGIC, VERSION):
        raise UserError(f"{path}: not a training state: it starts with {magic}, {version}, not {MAGIC}, {VERSION}")
    try:
        config = GPT2Config(*sizes[:5])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if sizes != _sizes(config) or not 0 < json_bytes <= JSON_LIMIT or not 0 <= arrays <= ARRAYS_LIMIT:
        raise UserError(f"{path}: damaged: no state has sizes {sizes}, {json_bytes} bytes of JSON and {arrays} arrays")
    expected = HEADER_BYTES + json_bytes + arrays * _array_bytes(config) + DIGEST_BYTES
    check_size(file, path, expected, f"what a state of {config} holds")
    return config, arrays, json_bytes, header


def read_training_state(path):
    """Verifies a state file.

    Returns (GPT2Config, its JSON in bytes, a dict of the file's "bytes" and "sha256"). Raises UserError, OSError.
    """
    with open_to_read(path) as file:
        config, arrays, json_bytes, header = read_state_sizes(file, path)
        digest = hashlib.sha256(header)
        text = file.read(json_bytes)
        digest.update(text)
        update_digest(digest, file, arrays * _array_bytes(config), path)
        checksum = file.read(DIGEST_BYTES)
        if digest.digest() != checksum:
            raise UserError(f"{path}: damaged: its checksum does not match its contents")
        digest.update(checksum)
        record = {"bytes": file.tell(), "sha256": digest.hexdigest()}
    return config, text, record


def update_digest(digest, file, count, path):
    """Updates `digest` with the next `count` bytes of an open file. Raises UserError if there are fewer."""
    buffer = memoryview(bytearray(min(count, CHUNK)))
    shown = {"desc": f"verifying {path.name}", "unit": "B", "unit_scale": True, "leave": False}
    with tqdm(total=count, disable=None, delay=1, **shown) as bar:
        while count:
            read = file.readinto(buffer[: min(count, CHUNK)])
            if not read:
                raise UserError(f"{path}: ends early: the file was truncated while being read")
            digest.update(buffer[:read])
            bar.update(read)
            count -= read
