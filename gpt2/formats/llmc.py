"""llm.c's binary formats: models (versions 1, 3 and 5), token files, tokenizers, and a training step's reference state.

Each starts with a header of 256 int32: magic number, version, sizes.
"""

import mmap
import os
import typing
import weakref

import numpy as np

from gpt2.config import GPT2Config
from gpt2.errors import UserError, from_os_error
from gpt2.formats import architecture
from gpt2.formats.files import HEADER_BYTES, atomic_write, check_size, open_to_read, read_header, write_header
from gpt2.formats.tokenizer_folder import GPT2_SHA256, GPT2_SIZE
from gpt2.layout import parameter_layout
from gpt2.memory import allocate

MODEL_MAGIC = 20240326
UNPADDED, FLOAT32, BFLOAT16 = 1, 3, 5
VERSION_DTYPES = {UNPADDED: "float32", FLOAT32: "float32", BFLOAT16: "bfloat16"}
# Places in headers that llm.c leaves 0: 1 for random weights, the vocabulary's digest, architecture.mark().
UNTRAINED, MODEL_DIGEST, MODEL_LAYERS, TOKENS_DIGEST = 8, slice(9, 17), 17, slice(3, 11)
UNKNOWN_VOCABULARY = "f" * 64  # in place of a digest
WRITTEN_VERSIONS = {"float32": FLOAT32, "bfloat16": BFLOAT16}
TOKENS_MAGIC, TOKENS_VERSION = 20240520, 1
CONVERSATIONS_VERSION = 2  # of token files, see conversation_file.py
TOKENIZER_MAGIC, TOKENIZER_VERSION = 20240328, 2
STATE_MAGIC, STATE_VERSION = 20240327, 2

# dtype -> how a file stores it. NumPy has no bfloat16, which is the upper half of a float32.
STORED = {"float32": np.dtype("<f4"), "float16": np.dtype("<f2"), "bfloat16": np.dtype("<u2")}
BFLOAT16_LARGEST = np.float32(3.3895314e38)
CHUNK = 2**16  # elements converted at a time: they fit in cache


# Models.


def load_model(path):
    """Reads a model file.

    Returns (GPT2Config, params): params float32 (parameter_layout(config).size,), with the padding rows of wte zero.
    Raises UserError for an invalid header or file size, before anything is allocated, and for a non-finite parameter.
    """
    with open_to_read(path) as file:
        config, version = read_sizes(file, path)
        return config, _read_params(file, path, config, version)


def map_model(path, bfloat16=False):
    """Memory-maps a version 3 model file: it returns at once, and pages are read on first use.

    bfloat16: also map a version 5 file; its params are uint16, the upper halves of float32s. Other versions are read as
    by `load_model`. Returns (GPT2Config, params) as that does, but a mapped file's parameters are not checked, and the
    padding rows of wte are those in the file. The mapping is copy-on-write: changes to params never reach the file. The
    file may be renamed, replaced by a rename or deleted while it is mapped, but not truncated: the process would be
    killed (SIGBUS).
    """
    with open_to_read(path) as file:
        config, version = read_sizes(file, path)
        if version != FLOAT32 and not (bfloat16 and version == BFLOAT16):
            return config, _read_params(file, path, config, version)
        # Copy-on-write rather than read-only: for read-only arrays Numba would compile every kernel again.
        memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    return config, np.frombuffer(memory, STORED[VERSION_DTYPES[version]], offset=HEADER_BYTES)


def save_model(path, config, params, dtype="float32", untrained=False, vocabulary=UNKNOWN_VOCABULARY):
    """Writes a model file atomically: version 3 for dtype "float32", version 5 for "bfloat16".

    params: float32 (parameter_layout(config).size,). untrained: flag them as random. vocabulary: the SHA-256 of its
    tokens, 64 hexadecimal digits, UNKNOWN_VOCABULARY, or None for GPT-2's. Raises UserError on an I/O error, or if a
    parameter is too large for bfloat16.
    """
    with atomic_write(path) as file:
        write_model(file, config, params, dtype, untrained, vocabulary)


def write_model(file, config, params, dtype="float32", untrained=False, vocabulary=UNKNOWN_VOCABULARY):
    """Writes a model to an open file, as `save_model` does; float32 params are not copied."""
    assert params.shape == (parameter_layout(config).size,)
    sizes = config.maxT, config.V, config.L, config.NH, config.C, config.Vp
    implied = None if config.V == GPT2_SIZE else UNKNOWN_VOCABULARY
    # GPT-2's may be in a model of more tokens.
    stated = "0" * 64 if vocabulary == implied else vocabulary or GPT2_SHA256
    digest = np.frombuffer(bytes.fromhex(stated), "<i4")
    write_header(file, [MODEL_MAGIC, WRITTEN_VERSIONS[dtype], *sizes, int(untrained), *digest, architecture.mark()])
    write_floats(file, params, dtype)


def read_sizes(file, path):
    """Reads and checks the header of an open model file, and checks the file's size.

    Returns (GPT2Config, version). Raises UserError.
    """
    header = read_header(file, path, "a model file")
    magic, version, maxT, V, L, NH, C, Vp = (int(value) for value in header[:8])
    if magic != MODEL_MAGIC:
        raise UserError(
            f"{path}: not a model file in llm.c's format: it starts with {magic}, expected {MODEL_MAGIC}; "
            "to load a Hugging Face model, name its folder"
        )
    if version not in VERSION_DTYPES:
        raise UserError(f"{path}: model file version {version}, expected one of {(*VERSION_DTYPES,)}")
    if header[MODEL_LAYERS] == 0:
        architecture.require(path)
    elif header[MODEL_LAYERS] != architecture.mark():
        raise UserError(f"{path}: made by kernels with another activation or normalisation than these have")
    try:
        config = GPT2Config(maxT, V, L, NH, C)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    padded = version != UNPADDED
    if padded and Vp != config.Vp:
        raise UserError(f"{path}: a vocabulary of {V} is padded to {Vp} rows, expected {config.Vp}")
    body_bytes = parameter_layout(config, padded).size * STORED[VERSION_DTYPES[version]].itemsize
    check_size(file, path, HEADER_BYTES + body_bytes, f"a version {version} file with {config}")
    return config, version


def is_untrained(path):
    """Returns whether a model file is flagged as random weights; one without the flag counts as trained.

    Raises UserError if it has no header.
    """
    with open_to_read(path) as file:
        return read_header(file, path, "a model file")[UNTRAINED] == 1


def model_vocabulary(path):
    """Returns the SHA-256 of the vocabulary in a model file's header, 64 hexadecimal digits.

    None stands for GPT-2's, which a header without one means if V is that, UNKNOWN_VOCABULARY for another. Raises
    UserError if the file has no header.
    """
    with open_to_read(path) as file:
        header = read_header(file, path, "a model file")
    digest = header[MODEL_DIGEST].tobytes().hex()
    if digest.strip("0"):
        return None if digest == GPT2_SHA256 else digest
    return None if header[3] == GPT2_SIZE else UNKNOWN_VOCABULARY


def _read_params(file, path, config, version):
    """Reads the parameters that follow the header."""
    layout, dtype = parameter_layout(config), VERSION_DTYPES[version]
    params = allocate(layout.size, np.float32, f"the model in {path}")
    for name in layout.shapes:
        tensor = params[layout.slice(name)]
        padding = (config.Vp - config.V) * config.C if name == "wte" else 0
        read_floats(file, tensor[: tensor.size - padding], dtype, f"{path}: tensor {name}")
        if version != UNPADDED:
            # The padding rows stay zero, whatever the file holds there: no token refers to them.
            file.seek(padding * STORED[dtype].itemsize, 1)
    return params


def read_floats(file, out, dtype, what):
    """Fills `out`, float32 (n,), from an open file, converting chunk by chunk.

    dtype: how the file stores the numbers, a key of STORED. Raises UserError, starting with `what`, if one is not
    finite or the file ends early.
    """
    stored = STORED[dtype]
    for start in range(0, out.size, CHUNK):
        chunk = out[start : start + CHUNK]
        data = file.read(chunk.size * stored.itemsize)
        if len(data) < chunk.size * stored.itemsize:
            raise UserError(f"{what} ends early: the file was truncated while being read")
        data = np.frombuffer(data, stored)
        if dtype == "bfloat16":
            widen_bfloat16(data, chunk)
        else:
            chunk[:] = data
        if not np.isfinite(chunk).all():
            raise UserError(f"{what} contains a NaN or an infinity; use an intact model")


def write_floats(file, values, dtype):
    """Writes `values`, float (n,), as "float32" or "bfloat16" (round to nearest even), chunk by chunk.

    Raises UserError if a value is too large for bfloat16.
    """
    for start in range(0, values.size, CHUNK):
        chunk = np.ascontiguousarray(values[start : start + CHUNK], "<f4")
        file.write(round_to_bfloat16(chunk) if dtype == "bfloat16" else chunk)


def widen_bfloat16(bits, out):
    """Converts bfloat16s, as uint16 bit patterns, to float32, exactly. bits, out: of the same shape."""
    np.left_shift(bits, 16, out=out.view(np.uint32), dtype=np.uint32)


def round_to_bfloat16(values):
    """Rounds float32 to bfloat16, to nearest even, returned as its uint16 bit patterns.

    Raises UserError if a value is too large.
    """
    if (np.abs(values) > BFLOAT16_LARGEST).any():
        raise UserError("a parameter is too large for bfloat16; choose float32")
    return _bfloat16(values)


def _bfloat16(values):
    bits = values.view("<u4")
    upper = bits >> 16
    rounded = bits + 0x7FFF
    rounded += upper & 1
    rounded >>= 16
    # A NaN stays a NaN: rounding could overflow it to infinity or zero, truncation could clear its mantissa.
    np.copyto(rounded, upper | 0x40, where=np.isnan(values))
    return rounded.astype("<u2")


# Token files.


def write_tokens(path, tokens):
    """Writes a token file atomically; tokens: integers (count,) in 0 .. 65535. Raises UserError on an I/O error."""
    with atomic_write(path) as file:
        write_token_file(file, tokens)


def write_token_file(file, tokens, vocabulary=None):
    """Writes a token file to an open file, as `write_tokens` does. Raises UserError if the header can't count them.

    vocabulary: the SHA-256 of the vocabulary, 64 hexadecimal digits, which the header holds after the count; None for
    GPT-2's, as in llm.c's own files.
    """
    if len(tokens) >= 2**31:
        raise UserError(f"{len(tokens):,} tokens are too many for a token file, at most {2**31 - 1:,}; split the text")
    digest = np.frombuffer(bytes.fromhex(vocabulary or ""), "<i4")
    write_header(file, (TOKENS_MAGIC, TOKENS_VERSION, len(tokens), *digest))
    file.write(np.ascontiguousarray(tokens, dtype="<u2").data)


def tokens_vocabulary(path):
    """Returns the SHA-256 of the vocabulary in a token file's header, 64 hexadecimal digits; None for GPT-2's.

    It is UNKNOWN_VOCABULARY for a file without a header. Raises UserError if the file is unreadable.
    """
    with open_to_read(path) as file:
        header = np.frombuffer(file.read(HEADER_BYTES).ljust(HEADER_BYTES, b"\0"), "<i4")
    if header[0] != TOKENS_MAGIC:
        return UNKNOWN_VOCABULARY
    digest = header[TOKENS_DIGEST].tobytes().hex()
    return digest if digest.strip("0") else None


class TokenFile:
    """Token ids that stay in their file: a slice of it is an array, as a slice of one in memory would be.

    The file stays open, so it may be renamed, replaced by a rename, deleted or appended to. A slice raises UserError if
    the file has become too short for it. Attributes: `size`, the number of ids; `dtype`; `nbytes`, of all ids.
    """

    def __init__(self, file, path, dtype, start, nbytes):
        """file: open, may be closed afterwards. dtype: of the ids. start: offset of the first. nbytes: of all."""
        self._descriptor, self._path, self._start = os.dup(file.fileno()), path, start
        weakref.finalize(self, os.close, self._descriptor)
        self.dtype, self.nbytes = np.dtype(dtype), nbytes
        self.size = nbytes // self.dtype.itemsize

    def __getitem__(self, part):
        """Returns the ids in a slice of step 1, integers (count,)."""
        first, end, _ = part.indices(self.size)
        out = np.empty(max(0, end - first), self.dtype)
        left, offset = out.view(np.uint8), self._start + first * self.dtype.itemsize
        while left.size:
            try:
                count = os.preadv(self._descriptor, [left], offset)
            except OSError as error:
                raise from_os_error(error, self._path) from error
            if not count:
                raise UserError(f"{self._path}: truncated while in use, to {offset:,} bytes or fewer; restore the file")
            left, offset = left[count:], offset + count
        return out


def open_tokens(path, room):
    """Opens a token file, with llm.c's header (uint16) or without one (int32).

    Returns integers (count,), read into memory, if they take at most `room` bytes, else a TokenFile. The ids are not
    checked. Raises UserError for an invalid header or file size.
    """
    with open_to_read(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size == 0:
            raise UserError(f"{path}: empty, expected a token file")
        if file.read(4) == np.array(TOKENS_MAGIC, dtype="<i4").tobytes():
            file.seek(0)
            _, version, count = (int(value) for value in read_header(file, path, "a token file")[:3])
            if version == CONVERSATIONS_VERSION:
                raise UserError(f"{path}: conversations, not the tokens of a text")
            if version != TOKENS_VERSION:
                raise UserError(f"{path}: token file version {version}, expected {TOKENS_VERSION}")
            if count < 1:
                raise UserError(f"{path}: the header says {count} tokens, expected at least 1")
            check_size(file, path, HEADER_BYTES + 2 * count, f"a header and {count:,} uint16 tokens")
            dtype, start = "<u2", HEADER_BYTES
        elif size % 4:
            raise UserError(f"{path}: not a token file: {size:,} bytes with neither a header nor whole int32 ids")
        else:
            dtype, start = "<i4", 0
        tokens = TokenFile(file, path, dtype, start, size - start)
        return tokens if tokens.nbytes > room else tokens[:]


# Tokenizers.


def save_tokenizer(path, tokens, end_of_text):
    """Writes a tokenizer file, from which llm.c decodes, atomically.

    tokens: the bytes of each token, a list. end_of_text: the id of <|endoftext|>. Raises UserError on an I/O error, and
    for a token whose length does not fit into the file's byte for it.
    """
    for number, token in enumerate(tokens):
        if not 1 <= len(token) <= 255:
            raise UserError(f"{path}: token {number} has {len(token)} bytes, a tokenizer file takes 1 to 255")
    with atomic_write(path) as file:
        write_header(file, (TOKENIZER_MAGIC, TOKENIZER_VERSION, len(tokens), end_of_text))
        file.write(b"".join(bytes([len(token)]) + token for token in tokens))


# Reference states.


class State(typing.NamedTuple):
    """Results of one forward and backward pass.

    inputs, targets: int32 (B, T). logits: float32 (B, T, V). loss: mean cross-entropy. grads: dict of name -> float32
    gradient, with the names, order and shapes of parameter_layout(config).
    """

    inputs: np.ndarray
    targets: np.ndarray
    logits: np.ndarray
    loss: float
    grads: dict


def read_state(path, config):
    """Reads the reference State of a model with the sizes `config`.

    Raises UserError for an invalid header or file size, before anything is allocated, and for token ids out of range.
    """
    layout = parameter_layout(config)
    with open_to_read(path) as file:
        magic, version, B, T = (int(value) for value in read_header(file, path, "a reference state")[:4])
        if magic != STATE_MAGIC:
            raise UserError(f"{path}: not a reference state: it starts with {magic}, expected {STATE_MAGIC}")
        if version != STATE_VERSION:
            raise UserError(f"{path}: reference state version {version}, expected {STATE_VERSION}")
        if B < 1 or not 1 <= T <= config.maxT:
            raise UserError(f"{path}: batch of {B} x {T} tokens, expected B >= 1 and T in 1 .. {config.maxT}")
        values = 2 * B * T + B * T * config.V + 1 + layout.size
        check_size(file, path, HEADER_BYTES + 4 * values, f"a batch of {B} x {T} with {config}")
        inputs, targets = (np.fromfile(file, "<i4", B * T).reshape(B, T) for _ in range(2))
        for ids in (inputs, targets):
            if ids.min() < 0 or ids.max() >= config.V:
                raise UserError(f"{path}: token ids from {ids.min()} to {ids.max()}, expected 0 .. {config.V - 1}")
        logits = np.fromfile(file, "<f4", B * T * config.V).reshape(B, T, config.V)
        (loss,) = np.fromfile(file, "<f4", 1)
        grads = layout.views(np.fromfile(file, "<f4", layout.size))
    return State(inputs, targets, logits, float(loss), grads)


def write_state(path, config, state):
    """Writes a State atomically. Raises UserError on an I/O error."""
    B, T = state.inputs.shape
    shapes = parameter_layout(config).shapes
    assert state.targets.shape == (B, T) and state.logits.shape == (B, T, config.V)
    assert {name: grad.shape for name, grad in state.grads.items()} == shapes
    with atomic_write(path) as file:
        write_header(file, [STATE_MAGIC, STATE_VERSION, B, T])
        for ids in (state.inputs, state.targets):
            file.write(np.ascontiguousarray(ids, "<i4"))
        for values in (state.logits, state.loss, *(state.grads[name] for name in shapes)):
            file.write(np.ascontiguousarray(values, "<f4"))
