"""How a run starts: its folder, its data, its model."""

import errno
import os
import pathlib

from gpt2.config import PRESETS
from gpt2.errors import UnavailableError, UserError, from_os_error
from gpt2.formats import pretrained
from gpt2.formats.files import data_dir
from gpt2.formats.run import steps
from gpt2.model import GPT2
from gpt2.training.run_folder import locked


def locked_folder(path, stack):
    """Makes a run's output folder and locks it until the ExitStack `stack` ends; returns its path.

    Raises UserError if nothing can be written there, or another process is at work there.
    """
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, folder) from error
    stack.enter_context(locked(folder))
    return folder


def make_way(path, stack):
    """Gives a locked folder another name if an earlier run has left checkpoints in it, and makes a new one.

    Raises UserError if that is not possible.
    """
    if not steps(path):
        return
    folder, number = path.resolve(), 1
    while os.path.lexists(aside := folder.with_name(f"{folder.name}-{number}")):
        number += 1
    try:
        if pathlib.Path.cwd().is_relative_to(folder):
            raise OSError(errno.EBUSY, "it is the working folder")
        folder.rename(aside)
    except OSError as error:
        raise UserError(
            f"{path}: holds an earlier run and cannot be given another name ({error.strerror}); "
            "go on with that run by --resume, or choose another --out-dir"
        ) from error
    print(f"{path} held an earlier run, which is in {aside.name} now", flush=True)
    locked_folder(folder, stack)


def data_files(named, split):
    """The files named for a split, or TinyShakespeare's, or those of the plays that stand in for it."""
    if named:
        return named
    tiny, plays = (data_dir() / f"{name}_{split}.bin" for name in ("tiny_shakespeare", "shakespeare"))
    if tiny.exists():
        return [str(tiny)]
    if not plays.exists():
        raise UserError(
            f"{tiny}: no such file; make it with: python prepro_tinyshakespeare.py, or name another with --{split}-data"
        )
    print(f"{tiny} is not there, {plays} (the complete plays) stands in for it: losses are not comparable")
    return [str(plays)]


def initial_config(init):
    """The sizes of the model that --init names."""
    return PRESETS["gpt2"] if init == "scratch" else pretrained.load_config(init)


def initial_model(init, seed):
    """Returns the model that --init names, and whether its weights were trained before."""
    if init == "scratch":
        return GPT2(PRESETS["gpt2"], seed), False
    try:
        return GPT2.from_pretrained(init), True
    except UnavailableError as error:
        if init != "gpt2":
            raise
        print(
            f"GPT-2's released weights cannot be had: {error}. The run starts from random weights instead: "
            "expect a loss of 11 at first and no sensible text. Once the network is there, this command fetches them, "
            f"and the next run starts from them: {pretrained.FETCH_COMMAND}",
            flush=True,
        )
        return GPT2(PRESETS["gpt2"], seed), False
