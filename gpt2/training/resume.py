"""What a run says about itself in its checkpoints, and whether it may go on with other options or data."""

import contextlib
import importlib.metadata
import io
import platform

from gpt2.errors import UserError, safe_repr
from gpt2.kernels.engine.simd import VECTOR_BYTES

# Options that may have other values when a run goes on. Some change what comes after, none what has been.
MAY_DIFFER = {
    *("max_steps", "checkpoint_every", "keep", "skip_nonfinite", "skip_spikes"),
    *("val_every", "val_batches", "sample_every", "sample_tokens", "prompt"),
}
# Those of one process only.
NOT_SAVED = {"arguments", "given", "parse", "resume", "resume_anyway", "out_dir", "threads"}
# Here it is the files' contents that may not differ, wherever they are.
CONTENTS_COUNT = {"train_data", "val_data"}


def run_description(options, train_loader, val_loader, found):
    """What a checkpoint keeps of its run besides numbers: a dict for JSON.

    found: the checkpoint that the run has come from, or None.
    """
    val_data = found.progress.get("val_data") if found else None
    return {
        "options": {name: value for name, value in vars(options).items() if name not in NOT_SAVED},
        "train_data": train_loader.fingerprint,
        "val_data": val_loader.fingerprint if val_loader else val_data,
        "versions": _versions(),
    }


def resumed_options(options, found):
    """Returns the options of a checkpoint's run, but for those given now.

    options: train_gpt2.py's. found: a checkpoint.Checkpoint. Raises UserError for a given option that may not differ,
    unless --resume-anyway is given too, and for a checkpoint whose options are not this version's.
    """
    arguments = _as_arguments(found.progress.get("options"))
    try:
        # As they were given once, so they are checked.
        with contextlib.redirect_stderr(io.StringIO()):
            before = vars(options.parse(arguments))
    except SystemExit as error:
        raise not_this_version(found) from error
    merged = options.parse([*arguments, *options.arguments])
    merged.given = options.given
    now, fixed = vars(merged), sorted(options.given - MAY_DIFFER - NOT_SAVED - CONTENTS_COUNT)
    if now["init"] != before["init"]:
        raise UserError(f"{found.folder}: --init {now['init']}: a run that goes on does so with its own model")
    _refuse(found, [_difference(name, before[name], now[name]) for name in fixed if before[name] != now[name]], options)
    if now["max_steps"] != before["max_steps"] and now["lr_schedule"] != "constant":
        print(f"the learning rate goes on as if the run had been one of {now['max_steps']} steps", flush=True)
    return merged


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
    changed = [
        f"{name} {safe_repr(saved.get(name))} -> {now}" for name, now in _versions().items() if saved.get(name) != now
    ]
    return f" (the last digits may come out otherwise than they would have: {', '.join(changed)})" if changed else ""


def not_this_version(found):
    """The UserError for a whole checkpoint in which something is missing or strange."""
    return UserError(f"{found.state}: not what this version of the trainer saves; go on with the version that saved it")


def _as_arguments(saved):
    """The command-line arguments that saved options stand for; some that no parser takes if they are none."""
    arguments = []
    for name, value in saved.items() if isinstance(saved, dict) else [("options", "none")]:
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, list):
            arguments += [option, *map(str, value)]
        elif value is True:
            arguments.append(option)
        elif value is not None and value is not False:
            arguments.append(f"{option}={value}")
    return arguments


def _versions():
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "llvmlite")}
    return {"python": platform.python_version(), **packages, "bytes of a vector": VECTOR_BYTES}


def _difference(name, saved, value):
    return f"--{name.replace('_', '-')} was {saved}, not {value}"


def _refuse(found, differences, options):
    if not differences:
        return
    message = f"{found.folder}: the run at step {found.step} was another: {'; '.join(differences)}"
    if not options.resume_anyway:
        raise UserError(f"{message}; leave it as it was, or say --resume-anyway")
    print(f"{message}. It goes on with what is given now", flush=True)
