"""What a checkpoint says about its run, and whether other options or data may continue it."""

import dataclasses
import hashlib
import importlib.metadata
import pathlib
import platform

from gpt2.errors import UserError, safe_repr
from gpt2.kernels.engine.jit import code_identity
from gpt2.machine import chosen_precision
from gpt2.optimizer import OPTIMIZERS, SCHEDULES
from gpt2.training.options import FIXED, SIZES, Resolved, TrainOptions, flag, on_resume


def run_description(options, train_loader, val_loader, found):
    """What a checkpoint keeps of its run besides the state: a dict for JSON.

    found: the checkpoint.Checkpoint that the run was resumed from, or None.
    """
    val_data = found.progress.get("val_data") if found else None
    return {
        "options": options.to_save(),
        "train_data": train_loader.fingerprint,
        "val_data": val_loader.fingerprint if val_loader else val_data,
        "versions": _versions(),
    }


def resumed_options(found, changes, anyway):
    """Returns the TrainOptions and the Resolved of a checkpoint's run, with `changes` applied.

    changes: a dict of options by name, none of them None. anyway: accept those that make it another run, and say so.
    Raises UserError for those otherwise, for another model in any case, for an unknown schedule, and for a checkpoint
    whose options are not this version's.
    """
    saved = found.progress.get("options")
    for name, known, where in (("lr_schedule", SCHEDULES, "SCHEDULES"), ("optimizer", OPTIMIZERS, "OPTIMIZERS")):
        value = saved.get(name) if isinstance(saved, dict) else None
        if isinstance(value, str) and value not in known:
            raise UserError(
                f"{found.folder}: the run's {flag(name)} {safe_repr(value)} is not in gpt2.optimizer.{where}; "
                "add it there before resuming"
            )
    try:
        before, resolved = TrainOptions.from_saved(saved), Resolved.from_saved(found.progress)
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise incompatible_checkpoint(found) from error
    length = {"max_steps": None, "epochs": None} if changes.keys() & {"max_steps", "epochs"} else {}
    now = dataclasses.replace(before, **length | changes)
    for name in ("init", "size", *SIZES):
        if getattr(now, name) != getattr(before, name):
            raise UserError(
                f"{found.folder}: {flag(name)} {getattr(now, name)}: a resumed run continues with its own model"
            )
    in_force = dataclasses.asdict(before) | dataclasses.asdict(resolved)
    fixed = sorted(name for name in changes if on_resume(name) == FIXED)
    given = {name: getattr(now, name) for name in changes}
    if "precision" in given:
        given["precision"] = chosen_precision(given["precision"])
    differences = [
        f"{flag(name)} was {in_force[name]}, not {given[name]}" for name in fixed if given[name] != in_force[name]
    ]
    _refuse(found, differences, anyway)
    resolved = dataclasses.replace(
        resolved, **{name: given[name] for name in dataclasses.asdict(resolved) if name in given}
    )
    return now, resolved


def say_if_length_changed(found, resolved):
    """Says what a schedule makes of a number of steps that is not that of the checkpoint's run."""
    if resolved.max_steps != Resolved.from_saved(found.progress).max_steps and resolved.lr_schedule != "constant":
        print(f"the learning rate continues as if the run had been one of {resolved.max_steps} steps", flush=True)


def check_data(found, train_loader, val_loader, anyway):
    """Raises UserError, unless `anyway`, if the data are not those of the checkpoint's run."""
    differences = []
    for name, loader in (("train_data", train_loader), ("val_data", val_loader)):
        saved = found.progress.get(name)
        unknown = saved is None and name == "val_data"  # that run did not validate
        if loader and not unknown and (difference := loader.difference(saved)):
            differences.append(f"{flag(name)}: {difference}")
    _refuse(found, differences, anyway)


def validates_alike(found, options, val_loader):
    """Returns whether a run's validation losses are comparable to those of the checkpoint's run."""
    if val_loader is None:
        return True
    saved = found.progress
    same_data = saved.get("val_data") is None or not val_loader.difference(saved["val_data"])
    return same_data and saved["options"].get("val_batches") == options.val_batches


def restore_position(found, loader, anyway):
    """Sets the loader to the batch that comes next. Other data or batches, if accepted `anyway`, may not have it."""
    try:
        loader.position = found.progress.get("position")
    except UserError:
        if not anyway:
            raise
        print("the training data are read from their beginning", flush=True)


def changed_versions(found):
    """Lists version changes that may alter low-order bits; an empty string if there are none."""
    saved = found.progress.get("versions")
    saved = saved if isinstance(saved, dict) else {}
    changed = [
        f"{name} {safe_repr(saved.get(name))} -> {now}" for name, now in _versions().items() if saved.get(name) != now
    ]
    return f" (low-order digits may differ from those of an unbroken run: {', '.join(changed)})" if changed else ""


def incompatible_checkpoint(found):
    """The UserError for a whole checkpoint in which something is missing or malformed."""
    return UserError(
        f"{found.state}: not what this version of the trainer saves; resume with the version that saved it"
    )


def code_versions():
    """What must be alike on all ranks of a run: versions, and a hash of the package's sources, whatever the CPU."""
    digest = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    packages = {name: version for name, version in _versions().items() if name != "kernels"}
    return {f"the version of {name}": version for name, version in packages.items()} | {
        "the source code of gpt2": digest.hexdigest()[:16]
    }


def _versions():
    packages = {name: importlib.metadata.version(name) for name in ("numpy", "numba", "llvmlite")}
    return {"python": platform.python_version(), **packages, "kernels": code_identity()}


def _refuse(found, differences, anyway):
    if not differences:
        return
    message = f"{found.folder}: these options do not match the run at step {found.step}: {'; '.join(differences)}"
    if not anyway:
        raise UserError(f"{message}; leave them as they were, or add --resume-anyway")
    print(f"{message}. It continues with what is given now", flush=True)
