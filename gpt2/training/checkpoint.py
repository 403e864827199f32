"""Checkpoints of a run: a model file and its training state, which prove each other whole, and a manifest."""

import dataclasses
import errno
import hashlib
import os
import pathlib
import sys

from gpt2.errors import UserError, from_os_error
from gpt2.formats.files import HashedFile, atomic_write, open_to_read
from gpt2.formats.llmc import FLOAT32, read_sizes, write_model
from gpt2.formats.run import (
    MANIFEST,
    METRICS,
    STEP_LIMIT,
    checkpoint_paths,
    is_step,
    make_manifest,
    manifest_step,
    parse_json_object,
    read_manifest,
    steps,
    temporary_files,
)
from gpt2.formats.training_state import read_state_sizes, read_training_state, update_digest, write_training_state
from gpt2.training.metrics import read_losses
from gpt2.training.run_folder import require_lock


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A model file and a training state on the disk, both verified.

    model, state: paths. progress: the dict that the run saved. manifest: the manifest that describes the two, as bytes.
    """

    folder: pathlib.Path
    step: int
    model: pathlib.Path
    state: pathlib.Path
    progress: dict
    optimizer_steps: int
    manifest: bytes

    def load_state(self, optimizer):
        """Reads an optimizer's arrays, its shard of them, and sets its `steps`.

        Raises UserError if the state belongs to a model of other sizes, or to an optimizer with more or fewer arrays.
        """
        with open_to_read(self.state) as file:
            config, arrays, json_bytes, header = read_state_sizes(file, self.state)
            if config != optimizer.model.config:
                raise UserError(f"{self.state}: the state of {config}, but the model is {optimizer.model.config}")
            if arrays != len(optimizer.STATE):
                raise UserError(
                    f"{self.state}: {arrays} arrays of an optimizer, but {type(optimizer).__name__} has "
                    f"{len(optimizer.STATE)}"
                )
            for i, array in enumerate(optimizer.state):
                first = i * optimizer.layout.size + optimizer.shard.start
                file.seek(header.nbytes + json_bytes + first * array.itemsize)
                if file.readinto(array.data.cast("B")) != array.nbytes:
                    raise UserError(f"{self.state}: ends early: the file was truncated while being read")
        optimizer.steps = self.optimizer_steps


def save(folder, model, optimizer, progress, keep, chunks=None):
    """Writes the checkpoint of progress["step"] as `write` does, then removes older ones. Returns the Checkpoint.

    keep: how many pairs stay, at least 1. Older ones that cannot be removed are named on standard error.
    """
    assert keep >= 1
    written = write(folder, model, optimizer, progress, folder, chunks)
    _prune(written.folder, written.step, keep, steps(folder))
    return written


def write(folder, model, optimizer, progress, locked, chunks=None):
    """Writes the checkpoint of progress["step"], then the manifest. Returns the Checkpoint.

    progress: a dict that JSON can hold; a pair of the same step is replaced. locked: the folder or one that it is in,
    whose lock the caller holds. chunks: yields the optimizer's arrays in pieces, by default its own. Raises UserError
    when writing fails: the newest whole pair is then the one before, or this one if only a later part failed.
    """
    folder, step = pathlib.Path(folder), progress["step"]
    assert 0 <= step < STEP_LIMIT
    chunks = optimizer.state if chunks is None else chunks
    require_lock(locked)
    model_path, state_path = checkpoint_paths(folder, step)
    with atomic_write(model_path) as file, HashedFile(file) as hashed:
        write_model(hashed, model.config, model.params_flat, untrained=model.is_untrained, vocabulary=model.vocabulary)
        model_record = _record(hashed)
        require_lock(locked)  # once more before each file gets its name: writing takes seconds
    facts = {"progress": progress, "optimizer_steps": optimizer.steps, "model": model_record}
    with atomic_write(state_path) as file, HashedFile(file) as hashed:
        write_training_state(hashed, model.config, len(optimizer.STATE), chunks, facts, state_path)
        state_record = _record(hashed)
        require_lock(locked)
    manifest = make_manifest(step, model_record, state_record)
    with atomic_write(folder / MANIFEST) as file:
        file.write(manifest)
        require_lock(locked)
    return Checkpoint(folder, step, model_path, state_path, progress, optimizer.steps, manifest)


def finish_interrupted_save(found, keep):
    """Updates the manifest and prunes, in case saving the Checkpoint `found` was interrupted before that.

    Later ones, which are damaged, stay until the next is saved.
    """
    write_manifest(found.folder, found.manifest)
    _prune(found.folder, found.step, keep, [step for step in steps(found.folder) if step <= found.step])


def write_manifest(folder, manifest):
    """Replaces a folder's manifest by that of a Checkpoint."""
    with atomic_write(pathlib.Path(folder, MANIFEST)) as file:
        file.write(manifest)


def say(line):
    """Prints and flushes, so that the line precedes later output on stderr."""
    print(line, flush=True)


def find(folder, report=say):
    """Returns the newest whole Checkpoint of a folder, verifying pairs from the newest down.

    report: called with a line for each newer pair that is damaged or incomplete, and for a manifest that is missing,
    damaged or does not match the pair. Raises UserError if no pair is whole.
    """
    for step, checkpoint, problem in _survey(folder):
        if checkpoint is not None:
            if complaint := _manifest_complaint(checkpoint):
                report(complaint)
            return checkpoint
        report(f"{problem}; skipping the checkpoint of step {step}")
    raise _none_whole(folder)


def _prune(folder, step, keep, present):
    """Removes old checkpoints, and the temporary files of killed processes.

    present: steps, newest first. Those after `step` go, as damaged or abandoned; so do halves of pairs, and all but the
    `keep` newest of the others. What cannot be removed is named on standard error, and stays.
    """
    pairs = [
        found for found in present if found <= step and all(path.is_file() for path in checkpoint_paths(folder, found))
    ]
    _remove(folder, [found for found in present if found not in pairs[:keep]])


def remove_all_but(folder, kept):
    """Removes the checkpoints of all steps but those in `kept`, and the temporary files of killed processes."""
    _remove(folder, [found for found in steps(folder) if found not in kept])


def _remove(folder, gone):
    # State first: a model file alone is no checkpoint, but a state alone would count as a damaged one.
    outdated = [checkpoint_paths(folder, step)[::-1] for step in gone]
    for paths in [*outdated, *([path] for path in temporary_files(folder))]:
        try:
            for path in paths:
                path.unlink(missing_ok=True)
        except OSError as error:
            print(f"{from_os_error(error, path)}; it should be removed, but stays", file=sys.stderr, flush=True)


def _record(hashed):
    return {"bytes": hashed.size, "sha256": hashed.digest().hex()}


def _survey(folder):
    """Yields (step, Checkpoint, None) or (step, None, what is wrong) for every step in the folder, newest first."""
    for step in steps(folder):
        try:
            yield step, verify(folder, step), None
        except UserError as error:
            # A file that cannot be read now may be whole, so nothing may replace it; but a broken disk stays broken.
            if isinstance(error.__cause__, OSError) and error.__cause__.errno != errno.EIO:
                raise
            yield step, None, str(error)


def verify(folder, step):
    """Returns the Checkpoint of a step. Raises UserError naming the file that is missing or damaged."""
    model_path, state_path = checkpoint_paths(folder, step)
    for path in (model_path, state_path):
        if not path.is_file():
            raise UserError(f"{path}: missing")
    path = state_path
    try:
        config, text, state_record = read_training_state(state_path)
        facts = _parse_facts(text, state_path, step)
        path = model_path
        model_record = _read_model(model_path, config, state_path.name)
    except OSError as error:
        raise from_os_error(error, path) from error
    if facts["model"] != model_record:
        raise UserError(f"{model_path}: damaged, or not the model that {state_path.name} was saved with")
    manifest = make_manifest(step, model_record, state_record)
    progress, optimizer_steps = facts["progress"], facts["optimizer_steps"]
    return Checkpoint(pathlib.Path(folder), step, model_path, state_path, progress, optimizer_steps, manifest)


def _parse_facts(text, path, step):
    facts = parse_json_object(text)
    progress, steps = facts.get("progress"), facts.get("optimizer_steps")
    if not (isinstance(progress, dict) and is_step(progress.get("step")) and is_step(steps) and "model" in facts):
        raise UserError(f"{path}: not a training state that this program wrote: its JSON lacks what one has")
    if progress["step"] != step:
        raise UserError(f"{path}: the state of step {progress['step']}, not of the step in its name")
    return facts


def _read_model(path, config, state):
    """Returns the record of a model file of version 3 and of the sizes of its state. Raises UserError."""
    with open_to_read(path) as file:
        found, version = read_sizes(file, path)
        if (found, version) != (config, FLOAT32):
            raise UserError(f"{path}: {found} in version {version}, but {state} is that of {config}")
        file.seek(0)
        digest = hashlib.sha256()
        size = os.fstat(file.fileno()).st_size
        update_digest(digest, file, size, path)
    return {"bytes": size, "sha256": digest.hexdigest()}


def _manifest_complaint(checkpoint):
    """What is wrong with the manifest beside the newest whole checkpoint, in one line, or None."""
    folder, step = checkpoint.folder, checkpoint.step
    try:
        data = read_manifest(folder)
        if data == checkpoint.manifest:
            return None
        named = manifest_step(data, folder)
    except UserError as error:
        return str(error)
    path = folder / MANIFEST
    if named > step:
        return f"{path}: names step {named}, which is not whole; step {step} is the newest that is"
    if named < step:
        return f"{path}: names step {named}, but step {step} is whole, too: saving it was interrupted at its very end"
    return f"{path}: damaged, or of another run: it does not describe the files of step {step} that are there"


def _none_whole(folder):
    return UserError(f"{folder}: no whole checkpoint (a model_*.bin with its state_*.bin) to resume from")


def list_checkpoints(folder):
    """Prints a line for each checkpoint in a folder. Raises UserError if none is whole."""
    rows = sorted(_survey(folder), key=lambda row: row[0])
    newest = max((step for step, checkpoint, _ in rows if checkpoint), default=None)
    if rows:
        print(f"  {'step':>8}  {'train loss':>10}  {'val loss':>10}  {'size':>10}")
    metrics = pathlib.Path(folder, METRICS)
    # A step is saved before it is validated, so its own validation loss is not in the checkpoint.
    validated = dict(zip(*read_losses(metrics, "val_loss"), strict=True)) if metrics.is_file() else {}
    for step, checkpoint, problem in rows:
        losses = {"train_loss": None, "val_loss": None}
        if checkpoint:
            losses |= checkpoint.progress | ({"val_loss": float(validated[step])} if step in validated else {})
        size = sum(path.stat().st_size for path in checkpoint_paths(folder, step) if path.is_file())
        mark = "*" if step == newest else " "
        print(
            f"{mark} {step:>8}  {_shown(losses['train_loss']):>10}  {_shown(losses['val_loss']):>10}  "
            f"{size / 1e6:>7,.1f} MB  {problem or 'whole'}"
        )
        if step == newest and (complaint := _manifest_complaint(checkpoint)):
            print(f"  {complaint}")
    if newest is None:
        raise _none_whole(folder)


def _shown(loss):
    """A loss as the table shows it; none if no validation came before, or if it is damaged."""
    return f"{loss:.6f}" if isinstance(loss, float) else "-"
