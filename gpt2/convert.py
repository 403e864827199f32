"""Converts models between Hugging Face folders and llm.c's model files, and to GGUF; vocabularies to llm.c's files."""

import os
import pathlib
import re
import shutil
import tempfile
import time

from gpt2.arguments import command_parser
from gpt2.data import tokenizer
from gpt2.data.chat_vocabulary import chat_template
from gpt2.data.vocabulary import held_vocabulary, model_vocabulary, save_vocabulary
from gpt2.errors import UserError, run_command
from gpt2.formats import architecture, gguf_file, huggingface, llmc
from gpt2.formats.files import atomic_folder, interrupted_replacement, open_to_read
from gpt2.formats.pretrained import has_random_weights, load_config, load_weights, vocabulary_path
from gpt2.formats.tensors import INDEX, WEIGHTS, WRITTEN_SHARD
from gpt2.formats.tokenizer_folder import CARRIED, MERGES, TOKENIZER_FILES, VOCABULARY, read_tokenizer_folder
from gpt2.model_card import CARD, model_card
from gpt2.output import lossy_output

LLMC, GGUF = ".bin", ".gguf"
# Suffix of a target -> (the first bytes of such a file, what it is called).
MODEL_FILES = {LLMC: (llmc.MODEL_MAGIC.to_bytes(4, "little"), "model"), GGUF: (gguf_file.MAGIC, "GGUF")}
SUFFIX = re.compile(r"\.[A-Za-z]\w*")  # of a file: a folder's name may end in v1.5
TOKENIZER_FILE = llmc.TOKENIZER_MAGIC.to_bytes(4, "little"), "tokenizer"


@lossy_output(then_raise=True)
def convert(source, target, dtype="float32", force=False, data_dir=None):
    """Converts the model `source`, any name that pretrained.load_weights takes, and writes it to `target`, atomically.

    target: a model file if it ends in .bin, a GGUF file if in .gguf, else a Hugging Face folder. The model's vocabulary
    goes along: into the GGUF file; beside FILE.bin as FILE_vocabulary, with all of a folder but the weights. dtype:
    "float32" or "bfloat16"; for GGUF also "float16" or "q8_0". force: replace an existing model. data_dir: folder for
    GPT-2's weights and vocabulary, default files.data_dir(). Reports progress on stdout. Raises UserError.
    """
    target = _resolved(target)
    _check_dtype(target, dtype)
    # What reads the files takes the model for a GPT-2; only a folder says which activation it has.
    architecture.require(target, architecture.GELU if target.suffix in MODEL_FILES else architecture.layers()[0])
    _check_target(target, MODEL_FILES.get(target.suffix), force)
    start = time.perf_counter()
    vocabulary = model_vocabulary(source, data_dir)
    if target.suffix == GGUF:
        words = _gguf_vocabulary(vocabulary, data_dir)
        _, template = chat_template(vocabulary) or (None, None)
        gguf_file.check_writable(load_config(source), dtype, words)
    elif vocabulary.problem:
        print(f"no tokenizer: {vocabulary.problem}", flush=True)
    if target.suffix == LLMC:
        _check_vocabulary(vocabulary, vocabulary_path(target), force)
    config, params = load_weights(source, data_dir)
    untrained = has_random_weights(source)
    read = time.perf_counter()
    print(f"read {source}: {config.num_parameters:,} parameters, {read - start:.1f} s", flush=True)
    if target.suffix == LLMC:
        llmc.save_model(target, config, params, dtype, untrained, vocabulary.sha256)
        save_vocabulary(vocabulary, vocabulary_path(target))
        kind, size = f"llm.c version {llmc.WRITTEN_VERSIONS[dtype]}", target.stat().st_size
    elif target.suffix == GGUF:
        if untrained:
            print("the weights are random; a GGUF file does not say so")
        gguf_file.save_gguf(target, config, params, dtype, words, template)
        kind, size = "GGUF", target.stat().st_size
    else:
        if untrained:
            print("the weights are random; the folder does not say so: a run started from it takes them as trained")
        with atomic_folder(target, replace=force) as folder:
            huggingface.save_folder(folder, config, params, dtype, vocabulary)
            if not vocabulary.problem and not vocabulary.files.keys() & set(TOKENIZER_FILES):
                _write_gpt2_tokenizer(folder, config, data_dir)
            card = model_card(target.name, source, config, dtype, untrained)
            (folder / CARD).write_text(card, encoding="utf-8")
        kind, size = "Hugging Face folder", sum(file.stat().st_size for file in target.iterdir())
    print(f"wrote {target}: {kind}, {dtype}, {size / 1e6:,.1f} MB, {time.perf_counter() - read:.1f} s")


@lossy_output(then_raise=True)
def convert_tokenizer(source, target, force=False, data_dir=None):
    """Writes the vocabulary of the model `source` to a tokenizer file, with which llm.c decodes, atomically.

    target: ends in .bin. force: replace an existing tokenizer file. source, data_dir, errors: as for `convert`; the
    weights are not read.
    """
    target = _resolved(target)
    if target.suffix != ".bin":
        raise UserError(f"{target}: a tokenizer file's name ends in .bin; llm.c expects gpt2_tokenizer.bin")
    _check_target(target, TOKENIZER_FILE, force)
    vocabulary = model_vocabulary(source)
    if vocabulary.problem or vocabulary.token_bytes is None:
        reason = vocabulary.problem or f"{source}: its tokens are not the bytes of a text"
        raise UserError(f"no tokenizer file: {reason}")
    end = next(iter(vocabulary.ends), vocabulary.begin or 0)
    llmc.save_tokenizer(target, vocabulary.token_bytes, end)
    print(f"wrote {target}: llm.c tokenizer version {llmc.TOKENIZER_VERSION}, {vocabulary.size:,} tokens")


def _resolved(target):
    """Returns the path of a target; of a link, where that leads."""
    target = pathlib.Path(target)
    return pathlib.Path(os.path.realpath(target)) if target.is_symlink() else target


def _check_dtype(target, dtype):
    """Raises UserError unless a target's format has this dtype."""
    dtypes, hint = llmc.WRITTEN_VERSIONS, ""
    if target.suffix == GGUF:
        dtypes = gguf_file.DTYPES
    elif dtype in gguf_file.DTYPES:
        hint = f"; only a DST in {GGUF} can be {dtype}"
    if dtype not in dtypes:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(dtypes)}{hint}")


def _check_target(target, form, force):
    """Raises UserError for anything that would fail after the model has been read, which may take long.

    form: the first bytes and the name of the kind of file that is written, and may be replaced; None for a folder.
    """
    if not form and SUFFIX.fullmatch(target.suffix):
        raise UserError(
            f"{target}: no form that convert writes ends in {target.suffix}; choose a name in {LLMC} or {GGUF}, or, "
            "for a Hugging Face folder, one without a suffix"
        )
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder; create it first")
    if old := interrupted_replacement(target):
        print(f"{target}: replacing it was interrupted; what it was is now {old}", flush=True)
    if not target.exists():
        return
    if form and target.is_dir():
        raise UserError(f"{target}: a folder, but a name in {target.suffix} means a file; choose another name")
    if not form and not target.is_dir():
        raise UserError(
            f"{target}: a file, but a name not in .bin or .gguf means a Hugging Face folder; choose another name"
        )
    if not force:
        raise UserError(f"{target}: already exists; choose another name, or replace it with --force")
    if form:
        magic, kind = form
        with open_to_read(target) as file:
            if file.read(4) not in (b"", magic):
                raise UserError(f"{target}: not a {kind} file, so --force does not replace it; choose another name")
        return
    ours = {WEIGHTS, INDEX, CARD, *CARRIED}
    foreign = sorted(
        entry.name
        for entry in target.iterdir()
        if not entry.is_file() or (entry.name not in ours and not WRITTEN_SHARD.fullmatch(entry.name))
    )
    if foreign:
        raise UserError(
            f"{target}: contains {foreign[0]!r}, which is not part of a model, so --force does not replace it; "
            "choose another name"
        )


def _check_vocabulary(vocabulary, path, force):
    """Raises UserError if there is another vocabulary where a model file's goes; `force`: that may be replaced."""
    if os.path.lexists(path) and held_vocabulary(path) != vocabulary.files and not force:
        raise UserError(f"{path}: holds another vocabulary; choose another name, or replace it with --force")


def _gguf_vocabulary(vocabulary, data_dir):
    """Returns the TokenizerFolder of a model's vocabulary. Raises UserError if that is unknown, or cannot be had."""
    if vocabulary.problem:
        raise UserError(f"a GGUF file needs the model's vocabulary: {vocabulary.problem}")
    if vocabulary.path:
        return read_tokenizer_folder(vocabulary.path)
    with tempfile.TemporaryDirectory() as folder:
        for path, name in zip(tokenizer.vocabulary_files(data_dir), (MERGES, VOCABULARY), strict=True):
            shutil.copyfile(path, pathlib.Path(folder, name))
        return read_tokenizer_folder(folder)


def _write_gpt2_tokenizer(folder, config, data_dir):
    """Writes GPT-2's own vocabulary as transformers reads it; says why if it cannot be had. Raises OSError."""
    try:
        merges, vocabulary = tokenizer.vocabulary_files(data_dir)
    except UserError as error:
        print(f"no tokenizer: {error}")
        return
    shutil.copyfile(merges, folder / MERGES)
    shutil.copyfile(vocabulary, folder / VOCABULARY)
    huggingface.save_tokenizer_config(folder, config)


def make_parser():
    """Returns the Parser."""
    parser = command_parser(
        "convert", "It also writes a vocabulary as the tokenizer file that llm.c reads, gpt2_tokenizer.bin."
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="FILE.bin, version 1, 3 or 5; a run folder; a Hugging Face folder; or a model on the Hugging Face hub: "
        "gpt2, gpt2-large, OWNER/NAME",
    )
    parser.add_argument("target", metavar="DST", help="FILE.bin, FILE.gguf, or the name of the folder to write")
    parser.add_argument(
        "--dtype",
        metavar="TYPE",
        help="data type in DST: float32 or bfloat16; in FILE.gguf also float16 or q8_0 (default: float32)",
    )
    parser.add_argument(
        "--tokenizer",
        action="store_true",
        help="write the model's vocabulary rather than the model: DST is a tokenizer file, gpt2_tokenizer.bin for "
        "llm.c",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing DST")
    return parser


def main(arguments=None):
    """Converts the model named on the command line."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    if not options.tokenizer:
        convert(options.source, options.target, options.dtype or "float32", options.force)
    elif options.dtype is None:
        convert_tokenizer(options.source, options.target, options.force)
    else:
        parser.error("--tokenizer writes no weights and excludes --dtype")


if __name__ == "__main__":
    run_command(main)
