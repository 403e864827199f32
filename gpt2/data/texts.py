"""Texts as people have them: files, folders and globs of plain text, JSON and CSV, compressed or not, as documents.

Everything is read in pieces, so that memory does not depend on the size of a text.
"""

import codecs
import collections
import contextlib
import csv
import dataclasses
import glob
import gzip
import io
import json
import os
import pathlib
import re
import shlex
import sys
import zlib

from gpt2.data.tokenizer import cut_points, decode_chunks
from gpt2.errors import UserError, safe_repr
from gpt2.formats.files import HEADER_BYTES, data_dir, open_to_read
from gpt2.formats.llmc import TOKENS_MAGIC

PLAIN, RECORDS = (".txt", ".md"), (".jsonl", ".json", ".csv")
COMPRESSED = (".gz", ".zst")
STDIN = "-"
CHUNK = 2**20  # bytes read at a time
PIECE = 2**18  # characters, or a little more, of which a long document's pieces consist
SHOWN = 4  # files in a message
LONGEST_WORD = 2**20  # characters; tokenising takes up to 400 times its bytes of memory


@dataclasses.dataclass(frozen=True)
class Form:
    """How texts are cut into documents.

    documents: "file", "line", "paragraph" or a separator, None for each kind's own: a file of plain text, a record of
    the others. field, column: where a JSON record or a CSV row has its text.
    """

    documents: str | None = None
    field: str = "text"
    column: str | None = None


def expand(inputs):
    """Returns the files that paths, folders and globs name, a list of str in order; "-" stays. Raises UserError."""
    found = []
    for each in inputs:
        if each == STDIN or os.path.isfile(each):
            found.append(each)
        elif os.path.isdir(each):
            paths = sorted(
                str(path)
                for path in pathlib.Path(each).rglob("*")
                if _has_text_name(path) and path.is_file() and not _is_hidden(path.relative_to(each))
            )
            if not paths:
                raise UserError(f"{each}: no texts in this folder; expected files named *{', *'.join(PLAIN + RECORDS)}")
            found += paths
        elif paths := sorted(path for path in glob.glob(each, recursive=True) if os.path.isfile(path)):
            found += paths
        else:
            raise UserError(f"{each}: no such file or folder")
    counts = collections.Counter(map(os.path.abspath, found))
    if twice := [path for path in found if counts[os.path.abspath(path)] > 1]:
        raise UserError(f"{twice[-1]}: given twice")
    return found


def _has_text_name(path):
    path = path.with_suffix("") if path.suffix in COMPRESSED else path
    return path.suffix in PLAIN + RECORDS


def _is_hidden(path):
    return any(part.startswith(".") for part in path.parts)


def refuse_texts(paths):
    """Raises UserError, with the command to give, if there are texts among files in which tokens are expected."""
    if not (found := [path for path in paths if _is_text(path)]):
        return
    name = re.sub(r"[^\w.-]+", "_", pathlib.Path(found[0]).name.partition(".")[0]) or "mine"
    command = f"gpt2 prepare {shlex.join(found[:SHOWN])}{' ...' if found[SHOWN:] else ''} --name {name}"
    train, val = (shlex.quote(str(data_dir() / f"{name}_{split}.bin")) for split in ("train", "val"))
    raise UserError(
        f"{found[0]}: a text, not a token file; make token files of it with: {command}; "
        f"then train with --train-data {train}, or evaluate with --data {val}"
    )


def _is_text(path):
    """Whether a file has no token file's magic number, but a text's suffix, or the bytes of a UTF-8 text."""
    if os.path.isdir(path):
        return False
    with open_to_read(path) as file:
        start = file.read(HEADER_BYTES)
    if not start or start.startswith(TOKENS_MAGIC.to_bytes(4, "little")):
        return False
    if _has_text_name(pathlib.Path(path)):
        return True
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)  # its last character may be cut off
    except UnicodeDecodeError:
        return False
    return b"\0" not in start  # as ids in int32 have


def documents(path, form, progress=lambda count: None):
    """Yields (begins, text) for a file's documents, the longer ones in pieces; begins: whether it is a first piece.

    Texts lose a byte order mark, lines end in "\\n". progress: called with numbers of bytes read. Raises UserError for
    what cannot be read: not UTF-8, not JSON, a field or column that is not there.
    """
    suffix = pathlib.Path(path.removesuffix(".gz").removesuffix(".zst")).suffix
    with _opened(path, progress) as file:
        chunks = decode_chunks(_chunks(file), "standard input" if path == STDIN else path)
        if suffix not in RECORDS:
            yield from plain(chunks, form.documents or "file", path)
            return
        if form.documents is not None:
            raise UserError(f"{path}: --documents is for plain text; a record of {suffix} is a document")
        read = {".jsonl": _json_lines, ".json": _json, ".csv": _csv}[suffix]
        for text in read(chunks, path, form):
            yield from _pieces(text, True, path)


def plain_chunks(path):
    """Yields the text in a file, whatever its suffix, or a pipe, as decode_chunks does. Raises UserError."""
    with open_to_read(path, pipe=True) as file:
        yield from decode_chunks(_chunks(file), path)


def _chunks(file):
    return iter(lambda: file.read(CHUNK), b"")


def lines(path, progress=lambda count: None):
    """Yields (number, line) for a file's lines, numbered from 1, without their ends; progress, errors: as above."""
    with _opened(path, progress) as file:
        yield from _lines(decode_chunks(_chunks(file), path))


@contextlib.contextmanager
def _opened(path, progress):
    """Opens a file, decompressing it, as a binary stream; errors while it is read become UserErrors."""
    with contextlib.ExitStack() as stack:
        raw = sys.stdin.buffer if path == STDIN else stack.enter_context(open_to_read(path, pipe=True))
        file, damaged = io.BufferedReader(_Counted(raw, progress), CHUNK), (EOFError, zlib.error, gzip.BadGzipFile)
        if path.endswith(".gz"):
            file = stack.enter_context(gzip.open(file))
        elif path.endswith(".zst"):
            zstandard = _zstandard(path)
            file = stack.enter_context(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
            damaged = (zstandard.ZstdError,)
        try:
            yield file
        except damaged as error:
            raise UserError(f"{path}: damaged, or not compressed as its name says: {error}") from error


def _zstandard(path):
    try:
        import zstandard
    except ImportError as error:
        raise UserError(f"{path}: needs the zstandard package: pip install zstandard") from error
    return zstandard


class _Counted(io.RawIOBase):
    """A raw stream that tells how much of another is read."""

    def __init__(self, file, progress):
        self._file, self._progress = file, progress

    def readable(self):
        return True

    def readinto(self, buffer):
        data = self._file.read1(len(buffer)) if hasattr(self._file, "read1") else self._file.read(len(buffer))
        buffer[: len(data)] = data
        self._progress(len(data))
        return len(data)


def plain(chunks, kind, path, keep_blank=False):
    """Yields (begins, text) as `documents` does, for plain text in chunks, str.

    kind: Form.documents. keep_blank: blank documents count, too. Raises UserError, naming the path, for a word that is
    too long.
    """
    separator = {"file": None, "line": "\n", "paragraph": "\n\n"}.get(kind, kind)
    ending, reserve = (separator if kind == "paragraph" else ""), len(separator or "")
    buffer, begins = "", True
    for chunk in chunks:
        *whole, buffer = (buffer + chunk).split(separator) if separator else [buffer + chunk]
        for text in whole:
            if keep_blank or not begins or text.strip():
                yield from _pieces(text + ending, begins, path)
            begins = True
        if len(buffer) > 2 * PIECE + reserve:
            end = len(buffer) - reserve  # a separator may have begun after that
            *pieces, (_, rest) = _pieces(buffer[:end], begins, path)
            yield from pieces
            buffer, begins = rest + buffer[end:], begins and not pieces
    if buffer.strip() or (buffer and not begins):
        yield from _pieces(buffer, begins, path)
    elif keep_blank and begins:
        yield True, buffer


def _pieces(text, begins, path):
    """Yields (begins, piece) for a text, cut where no token spans the cut. Raises UserError for a very long word."""
    start = 0
    for end in cut_points(text, PIECE):
        if end - start > PIECE + LONGEST_WORD:
            raise UserError(f"{path}: {end - start:,} characters or more without a break between words; break them up")
        yield begins, text[start:end]
        start, begins = end, False


def _lines(chunks):
    """Yields (number, line) for a text's lines, without their ends."""
    number, buffer = 0, []
    for chunk in chunks:
        *whole, rest = chunk.split("\n")
        for line in whole:
            number += 1
            yield number, "".join(buffer) + line
            buffer = []
        buffer.append(rest)
    if last := "".join(buffer):
        yield number + 1, last


def _json_lines(chunks, path, form):
    for number, line in _lines(chunks):
        if line.strip():
            yield _field(_parsed(line, f"{path}: line {number:,}"), form.field, f"{path}: line {number:,}")


def _json(chunks, path, form):
    """Yields the texts of a JSON file: one record, or an array of them."""
    value = _parsed("".join(chunks), path)
    for number, record in enumerate(value if isinstance(value, list) else [value], 1):
        yield _field(record, form.field, f"{path}: record {number:,}")


def _parsed(text, place):
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{place}: not JSON: {error}") from error
    except RecursionError as error:
        raise UserError(f"{place}: JSON nested too deeply") from error


def _field(record, field, place):
    """Returns the text of a JSON record: a string, or an object's field."""
    text = record.get(field) if isinstance(record, dict) else record
    if isinstance(text, str):
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError(f"{place}: half of a surrogate pair, which is no text")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(record, dict) and field not in record:
        there = safe_repr(list(record))
        chat = record.keys() & {"messages", "conversations"}
        advice = "prepare conversations with --chat" if chat else "name it with --text-field"
        raise UserError(f"{place}: no field {safe_repr(field)}, but {there}; {advice}")
    raise UserError(f"{place}: {safe_repr(text)}, expected a text")


def _csv(chunks, path, form):
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader((f"{line}\n" for _, line in _lines(chunks)), strict=True)
    try:
        header = next(reader, [])
        column = form.column or (header[0] if len(header) == 1 else "text")
        if column not in header:
            there = safe_repr(header)
            raise UserError(f"{path}: no column {safe_repr(column)}, but {there}; name it with --text-column")
        index = header.index(column)
        for row in reader:
            if len(row) != len(header):
                expected = f"{len(row)} values, the header has {len(header)}"
                raise UserError(f"{path}: line {reader.line_num:,}: {expected}")
            yield row[index]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num:,}: {error}") from error
