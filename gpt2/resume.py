"""What a run says about itself in its checkpoints, and whether it may go on with other options or data."""

import argparse
import importlib.metadata
import platform

from gpt2.errors import UserError
from gpt2.kernels.simd import VECTOR_BYTES

# Options that may have other values when a run goes on: nothing that was computed so far depends on them.
MAY_DIFFER = {
    *("max_steps", "checkpoint_every", "keep", "skip_nonfinite", "skip_spikes"),
    *("val_every", "val_batches", "sample_every", "sample_tokens", "prompt"),
}
# Those of one process only.
NOT_SAVED = {"given", "resume", "resume_anyway", "out_dir", "threads"}
# Here it is the files' contents that may not differ, wherever they are.
DATA = {"train_data", "val_data"}


def run_description(options, train_loader, val_loader):
    """What a checkpoint keeps of its run besides numbers: a dict for JSON."""
    return {
        "options": _saved(options),
        "train_data": train_loader.fingerprint,
        "val_data": val_loader.fingerprint if val_loader else None,
        "versions": _versions(),
    }


def resumed_options(options, found):
    """Returns the options of a checkpoint's run, but for those given now.

    options: train_gpt2.py's. found: a checkpoint.Checkpoint. Raises UserError for a given option that may not differ,
    unless --resume-anyway is given too, and for a checkpoint whose options are not this version's.
    """
    saved, now = found.progress.get("options"), _saved(options)
    if (
        not isinstance(saved, dict)
        or saved.keys() != now.keys()
        or not all(_fits(saved[name], now[name]) for name in now)
    ):
        raise not_this_version(found)
    fixed = sorted(options.given - MAY_DIFFER - NOT_SAVED - DATA)
    _refuse(found, [_difference(name, saved[name], now[name]) for name in fixed if saved[name] != now[name]], options)
    return argparse.Namespace(
        **saved | {name: value for name, value in vars(options).items() if name in NOT_SAVED | options.given}
    )


def check_data(found, train_loader, val_loader, options):
    """Raises UserError, unless --resume-anyway is given, if the data are not those of the checkpoint's run."""
    differences = []
    for name, loader in (("train_data", train_loader), ("val_data", val_loader)):
        saved = found.progress.get(name)
        unknown = saved is None and name == "val_data"  # that run did not validate
        if loader and not unknown and (difference := loader.difference(saved)):
            differences.append(f"--{name.replace('_', '-')}: {difference}")
    _refuse(found, differences, options)


def go_to_position(found, loader, options):
    """Sets the loader to the batch that comes next. Other data or batches, under --resume-anyway, may not have it."""
    try:
        loader.position = found.progress.get("position")
    except UserError:
        if not options.resume_anyway:
            raise
        print("the data are read from their beginning", flush=True)


def changed_versions(found):
    """Names what the last bits of a sum can depend on, and is not what it was; an empty string if all is."""
    saved = found.progress.get("versions")
    saved = saved if isinstance(saved, dict) else {}
    changed = [f"{name} {saved.get(name)} -> {now}" for name, now in _versions().items() if saved.get(name) != now]
    return f" (the last digits may come out otherwise than they would have: {', '.join(changed)})" if changed else ""


def not_this_version(found):
    """The UserError for a whole checkpoint in which something is missing or strange."""
    return UserError(f"{found.state}: not what this version of the trainer saves; go on with the version that saved it")


def _saved(options):
    return {name: value for name, value in vars(options).items() if name not in NOT_SAVED}


def _versions():
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "llvmlite")}
    return {"python": platform.python_version(), **packages, "bytes of a vector": VECTOR_BYTES}


def _fits(saved, value):
    """Whether a value from a file can stand for an option whose value is now this one; None is undecided."""
    if saved is None or isinstance(saved, list):
        return value is None or isinstance(value, list)
    if value is None:
        return isinstance(saved, int | float | list)
    return type(saved) is type(value)


def _difference(name, saved, value):
    return f"--{name.replace('_', '-')} was {saved}, not {value}"


def _refuse(found, differences, options):
    if not differences:
        return
    message = f"{found.folder}: the run at step {found.step} was another: {'; '.join(differences)}"
    if not options.resume_anyway:
        raise UserError(f"{message}; leave it as it was, or say --resume-anyway")
    print(f"{message}. It goes on with what is given now", flush=True)
