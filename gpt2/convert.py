"""Converts models between Hugging Face folders and llm.c's files.

Usage: python -m gpt2.convert SRC DST [--dtype float32|bfloat16] [--force]
"""

import argparse
import contextlib
import os
import pathlib
import shutil
import tempfile
import time

from gpt2.data import tokenizer
from gpt2.errors import UserError, from_os_error, run_command
from gpt2.formats.files import open_to_read, sync
from gpt2.formats.huggingface import CONFIG, GENERATION_CONFIG, WEIGHTS, save_folder, write_json
from gpt2.formats.llmc import MAGIC, WRITTEN_VERSIONS, save_model
from gpt2.formats.pretrained import load_weights

MERGES, VOCABULARY = "merges.txt", "vocab.json"
TOKENIZER_CONFIG, SPECIAL_TOKENS, TOKENIZER = "tokenizer_config.json", "special_tokens_map.json", "tokenizer.json"
TOKENIZER_FILES = (MERGES, VOCABULARY, TOKENIZER_CONFIG, SPECIAL_TOKENS, TOKENIZER)


def convert(source, target, dtype="float32", force=False, data_dir="data"):
    """Reads the model `source`, whatever weights.load_weights takes, and writes it to `target`, whole or not at all:
    an llm.c file if that ends in .bin, else a Hugging Face folder, with GPT-2's vocabulary if the model has its size.

    dtype: "float32" or "bfloat16". force: replace an older file or model folder. data_dir: where GPT-2's weights and
    vocabulary are kept. Says on standard output what it does. Raises UserError.
    """
    target = pathlib.Path(os.path.realpath(target)) if os.path.islink(target) else pathlib.Path(target)
    to_file = target.suffix == ".bin"
    _check_target(target, to_file, dtype, force)
    start = time.perf_counter()
    config, params = load_weights(source, data_dir)
    read = time.perf_counter()
    print(f"read {source}: {config.num_parameters:,} parameters, {read - start:.1f} s", flush=True)
    if to_file:
        save_model(target, config, params, dtype)
        kind, size = f"llm.c's version {WRITTEN_VERSIONS[dtype]}", target.stat().st_size
    else:
        vocabulary = _vocabulary(source, config, data_dir)
        with _new_folder(target, force) as folder:
            save_folder(folder, config, params, dtype, end_of_text=tokenizer.EOT if _speaks_gpt2(config) else None)
            for name, path in vocabulary.items():
                shutil.copyfile(path, folder / name)
            if vocabulary and TOKENIZER_CONFIG not in vocabulary:
                _describe_vocabulary(folder, config)
        kind, size = "a Hugging Face folder", sum(file.stat().st_size for file in target.iterdir())
    print(f"wrote {target}: {kind}, {dtype}, {size / 1e6:,.1f} MB, {time.perf_counter() - read:.1f} s")


def _check_target(target, to_file, dtype, force):
    """Raises UserError for what would fail after the model has been read, which may take long."""
    if dtype not in WRITTEN_VERSIONS:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(WRITTEN_VERSIONS)}")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder; make it first")
    if not target.exists():
        return
    if to_file and target.is_dir():
        raise UserError(f"{target}: a folder, but a name in .bin means a model file; choose another name")
    if not to_file and not target.is_dir():
        raise UserError(f"{target}: a file, but a name not in .bin means a Hugging Face folder; choose another name")
    if not force:
        raise UserError(f"{target}: already there; choose another name, or replace it with --force")
    if to_file:
        with open_to_read(target) as file:
            if file.read(4) not in (b"", MAGIC.to_bytes(4, "little")):
                raise UserError(f"{target}: not a model file, so --force does not replace it; choose another name")
        return
    ours = {CONFIG, GENERATION_CONFIG, WEIGHTS, *TOKENIZER_FILES}
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in ours or not entry.is_file())
    if foreign:
        raise UserError(
            f"{target}: holds {foreign[0]!r}, which is no part of what is written, so --force does not replace it; "
            "choose another name"
        )


@contextlib.contextmanager
def _new_folder(path, force):
    """Yields a folder beside `path` that takes its name, with `force` also that of a folder there, once on the disk.

    Raises UserError when the disk refuses; whatever stood at `path` before is then untouched.
    """
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as hidden:
            new, old = pathlib.Path(hidden, "new"), pathlib.Path(hidden, "old")
            new.mkdir()
            yield new
            for name in [*new.iterdir(), new]:
                sync(name)
            try:
                if force and path.exists():
                    os.rename(path, old)
                os.rename(new, path)
            except BaseException:
                if old.exists():
                    os.rename(old, path)
                raise
            sync(path.parent)
    except OSError as error:
        raise from_os_error(error, path) from error


def _speaks_gpt2(config):
    return config.V == tokenizer.EOT + 1


def _vocabulary(source, config, data_dir):
    """Returns a dict of name -> path of the tokenizer's files: the source folder's own, or GPT-2's two.

    Says why it is empty, where the model goes without.
    """
    own = {name: pathlib.Path(source, name) for name in TOKENIZER_FILES if pathlib.Path(source, name).is_file()}
    if own:
        return own
    if not _speaks_gpt2(config):
        print(f"the tokenizer is left out: the model has {config.V} tokens, GPT-2's vocabulary has {tokenizer.EOT + 1}")
        return {}
    try:
        return dict(zip((MERGES, VOCABULARY), tokenizer.vocabulary_files(data_dir), strict=True))
    except UserError as error:
        print(f"the tokenizer is left out: {error}")
        return {}


def _describe_vocabulary(folder, config):
    """Writes what Hugging Face's libraries want to know of GPT-2's vocabulary. Raises OSError."""
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    write_json(folder / SPECIAL_TOKENS, special)
    settings = {"tokenizer_class": "GPT2Tokenizer", "model_max_length": config.maxT, "add_prefix_space": False}
    write_json(folder / TOKENIZER_CONFIG, settings | special)


def main():
    """Converts what the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2.convert",
        description="Convert a model between Hugging Face's folders and llm.c's files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="FILE.bin, version 1, 3 or 5; the folder of a training run; a Hugging Face folder; or a name on its hub: "
        "gpt2, gpt2-large, OWNER/NAME",
    )
    parser.add_argument("target", metavar="DST", help="FILE.bin, or the name of the folder to write")
    parser.add_argument("--dtype", default="float32", help="how DST holds the numbers: float32 or bfloat16")
    parser.add_argument("--force", action="store_true", help="replace an older DST")
    options = parser.parse_args()
    convert(options.source, options.target, options.dtype, options.force)


if __name__ == "__main__":
    run_command(main)
