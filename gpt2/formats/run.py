"""The layout of a run folder: checkpoint file names, and the manifest that names the newest checkpoint."""

import json
import os
import pathlib
import re

from gpt2.errors import UserError, from_os_error
from gpt2.formats.files import open_to_read

MANIFEST = "checkpoints.json"
METRICS = "metrics.jsonl"
METRICS_BEFORE = "metrics_before.jsonl"  # those of the run whose model this one started from
LOSS_CURVE = "loss.png"
REPORT = "report.html"  # gpt2 report's page, unless it is given another name
NORMS = "norms.png"
TENSORBOARD, WANDB = "tensorboard", "wandb"  # folders, see training.reporters
BEST = "best"  # the folder of the best checkpoint
RUN_VOCABULARY = "vocabulary"  # the folder of the model's vocabulary
STEP_LIMIT = 10**15  # at most 15 digits
_MANIFEST_LIMIT = 2**12  # bytes
_PAIR = re.compile(r"(?:model|state)_([0-9]{8,15})\.bin")
# Temporary files that files.atomic_write leaves behind when the process is killed.
_TEMPORARY = re.compile(
    r"\.(?:(?:model|state)_[0-9]{8,15}\.bin|checkpoints\.json|metrics(?:_before)?\.jsonl|(?:loss|norms)\.png"
    r"|report\.html)\.[a-z0-9_]{8}"
)


def checkpoint_paths(folder, step):
    """Returns the paths of the model file and the training state of the checkpoint at `step`."""
    return pathlib.Path(folder, f"model_{step:08d}.bin"), pathlib.Path(folder, f"state_{step:08d}.bin")


def is_checkpoint(path):
    """Returns whether a path's name is one that `checkpoint_paths` gives."""
    return _PAIR.fullmatch(pathlib.Path(path).name) is not None


def steps(folder):
    """Returns the steps that have a model file or a training state in the folder, newest first.

    Raises UserError if the folder is unreadable.
    """
    names = set(_names(folder))
    found = {int(match[1]) for match in map(_PAIR.fullmatch, names) if match}
    # Only names as written by checkpoint_paths, without extra leading zeros.
    return sorted(
        (step for step in found if {path.name for path in checkpoint_paths(folder, step)} & names), reverse=True
    )


def best_steps(folder):
    """Returns the steps in the folder of the best checkpoint, as `steps` does; none if there is no such folder."""
    path = pathlib.Path(folder, BEST)
    return steps(path) if path.is_dir() else []


def is_best(folder):
    """Returns whether a folder is that of a run's best checkpoint."""
    path = pathlib.Path(folder).resolve()
    return path.name == BEST and bool(steps(path.parent))


def require_no_folders(folder):
    """Raises UserError if a folder in `folder` has a name that a run gives to a file, or `folder` is unreadable."""
    for name in sorted(_names(folder, folders=True)):
        if name in (MANIFEST, METRICS, METRICS_BEFORE, LOSS_CURVE, NORMS, REPORT) or _PAIR.fullmatch(name):
            raise UserError(f"{pathlib.Path(folder, name)}: a folder, but a run writes a file of that name; rename it")


def temporary_files(folder):
    """Returns the paths of temporary files left by killed processes. Raises UserError if the folder is unreadable."""
    return [pathlib.Path(folder, name) for name in _names(folder) if _TEMPORARY.fullmatch(name)]


def newest_model(folder):
    """Returns the path of the model file named by the folder's manifest; its contents are not checked.

    Raises UserError if the manifest or the model file is missing.
    """
    path, _ = checkpoint_paths(folder, manifest_step(read_manifest(folder), folder))
    if not path.is_file():
        raise UserError(f"{path}: no such file, although {MANIFEST} names it; {_advice(folder)}")
    return path


def make_manifest(step, model_record, state_record):
    """Returns a checkpoint's manifest, as JSON bytes; a record is a dict with a file's "bytes" and "sha256"."""
    return json.dumps({"step": step, "model": model_record, "state": state_record}, indent=1).encode()


def read_manifest(folder):
    """Returns the folder's manifest as bytes. Raises UserError if it is missing or unreadable."""
    path = pathlib.Path(folder, MANIFEST)
    if not path.is_file():
        raise UserError(f"{path}: missing; {_advice(folder)}")
    with open_to_read(path) as file:
        return file.read(_MANIFEST_LIMIT)


def manifest_step(data, folder):
    """Returns the step in a manifest, given as bytes. Raises UserError if there is none."""
    step = parse_json_object(data).get("step")
    if not is_step(step):
        raise UserError(f"{pathlib.Path(folder, MANIFEST)}: damaged: no valid step in it; {_advice(folder)}")
    return step


def parse_json_object(data):
    """Parses a UTF-8 JSON object into a dict; an empty one if it is not valid JSON or not an object."""
    try:
        value = json.loads(data.decode())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def is_step(value):
    """Returns whether the value is a valid step number."""
    return type(value) is int and 0 <= value < STEP_LIMIT


def _names(folder, folders=False):
    """Returns the names of all but folders, or of folders alone."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False) == folders]
    except OSError as error:
        raise from_os_error(error, folder) from error


def _advice(folder):
    return f"gpt2 checkpoint {folder} lists the intact checkpoints"
