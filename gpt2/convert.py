"""Converts models between Hugging Face folders and llm.c's model files.

Usage: python -m gpt2.convert SRC DST [--dtype float32|bfloat16] [--force]
"""

import argparse
import os
import pathlib
import shutil
import time

from gpt2.data import tokenizer
from gpt2.errors import UserError, run_command
from gpt2.formats import huggingface, llmc
from gpt2.formats.files import atomic_folder, interrupted_replacement, open_to_read
from gpt2.formats.pretrained import has_random_weights, load_weights
from gpt2.output import lossy_output


@lossy_output(then_raise=True)
def convert(source, target, dtype="float32", force=False, data_dir=None):
    """Converts the model `source`, any name that pretrained.load_weights takes, and writes it to `target`, atomically.

    target: a model file if it ends in .bin, else a Hugging Face folder, with GPT-2's vocabulary if the model's has that
    size. dtype: "float32" or "bfloat16". force: replace an existing model. data_dir: folder for GPT-2's weights and
    vocabulary, default files.data_dir(). Reports progress on stdout. Raises UserError.
    """
    target = pathlib.Path(os.path.realpath(target)) if os.path.islink(target) else pathlib.Path(target)
    to_file = target.suffix == ".bin"
    _check_target(target, to_file, dtype, force)
    start = time.perf_counter()
    config, params = load_weights(source, data_dir)
    untrained = has_random_weights(source)
    read = time.perf_counter()
    print(f"read {source}: {config.num_parameters:,} parameters, {read - start:.1f} s", flush=True)
    if to_file:
        llmc.save_model(target, config, params, dtype, untrained)
        kind, size = f"llm.c version {llmc.WRITTEN_VERSIONS[dtype]}", target.stat().st_size
    else:
        if untrained:
            print("the weights are random; the folder does not say so: a run started from it takes them as trained")
        vocabulary = _vocabulary(source, config, data_dir)
        with atomic_folder(target, replace=force) as folder:
            end_of_text = tokenizer.EOT if _has_gpt2_vocabulary(config) else None
            huggingface.save_folder(folder, config, params, dtype, end_of_text)
            for name, path in vocabulary.items():
                shutil.copyfile(path, folder / name)
            if vocabulary and huggingface.TOKENIZER_CONFIG not in vocabulary:
                huggingface.save_tokenizer_config(folder, config)
        kind, size = "Hugging Face folder", sum(file.stat().st_size for file in target.iterdir())
    print(f"wrote {target}: {kind}, {dtype}, {size / 1e6:,.1f} MB, {time.perf_counter() - read:.1f} s")


def _check_target(target, to_file, dtype, force):
    """Raises UserError for anything that would fail after the model has been read, which may take long."""
    if dtype not in llmc.WRITTEN_VERSIONS:
        raise UserError(f"--dtype {dtype}: expected one of {', '.join(llmc.WRITTEN_VERSIONS)}")
    if not target.parent.is_dir():
        raise UserError(f"{target.parent}: no such folder; create it first")
    if old := interrupted_replacement(target):
        print(f"{target}: replacing it was interrupted; what it was is now {old}", flush=True)
    if not target.exists():
        return
    if to_file and target.is_dir():
        raise UserError(f"{target}: a folder, but a name in .bin means a model file; choose another name")
    if not to_file and not target.is_dir():
        raise UserError(f"{target}: a file, but a name not in .bin means a Hugging Face folder; choose another name")
    if not force:
        raise UserError(f"{target}: already exists; choose another name, or replace it with --force")
    if to_file:
        with open_to_read(target) as file:
            if file.read(4) not in (b"", llmc.MODEL_MAGIC.to_bytes(4, "little")):
                raise UserError(f"{target}: not a model file, so --force does not replace it; choose another name")
        return
    ours = {
        huggingface.CONFIG,
        huggingface.GENERATION_CONFIG,
        huggingface.WEIGHTS,
        *huggingface.TOKENIZER_FILES,
    }
    foreign = sorted(entry.name for entry in target.iterdir() if entry.name not in ours or not entry.is_file())
    if foreign:
        raise UserError(
            f"{target}: contains {foreign[0]!r}, which is not part of a model, so --force does not replace it; "
            "choose another name"
        )


def _has_gpt2_vocabulary(config):
    return config.V == tokenizer.EOT + 1


def _vocabulary(source, config, data_dir):
    """Returns a dict of name -> path of the tokenizer files: the source folder's own, or else GPT-2's.

    Prints the reason if there are none.
    """
    own = {name: pathlib.Path(source, name) for name in huggingface.TOKENIZER_FILES}
    own = {name: path for name, path in own.items() if path.is_file()}
    if own:
        return own
    if not _has_gpt2_vocabulary(config):
        print(f"no tokenizer: the model's vocabulary has {config.V} tokens, GPT-2's has {tokenizer.EOT + 1}")
        return {}
    try:
        merges, vocabulary = tokenizer.vocabulary_files(data_dir)
    except UserError as error:
        print(f"no tokenizer: {error}")
        return {}
    return {huggingface.MERGES: merges, huggingface.VOCABULARY: vocabulary}


def main():
    """Converts the model named on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt2.convert",
        description="Convert a model between Hugging Face folders and llm.c's model files.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "source",
        metavar="SRC",
        help="FILE.bin, version 1, 3 or 5; a run folder; a Hugging Face folder; or a model on the Hugging Face hub: "
        "gpt2, gpt2-large, OWNER/NAME",
    )
    parser.add_argument("target", metavar="DST", help="FILE.bin, or the name of the folder to write")
    parser.add_argument("--dtype", default="float32", help="data type in DST: float32 or bfloat16")
    parser.add_argument("--force", action="store_true", help="replace an existing DST")
    options = parser.parse_args()
    convert(options.source, options.target, options.dtype, options.force)


if __name__ == "__main__":
    run_command(main)
