"""The memory and disk that a run needs, checked before any of it is used."""

import bisect
import resource
import shutil

from gpt2 import machine
from gpt2.errors import UserError, from_os_error
from gpt2.formats.files import HEADER_BYTES
from gpt2.inference.decoder import cache_layout
from gpt2.layout import parameter_layout
from gpt2.memory import readable
from gpt2.model import activations_size

FLOAT = 4  # bytes of a float32
# Bytes that a run takes besides its arrays and what the process holds before it, as measured.
KERNELS, PICTURE = 65_000_000, 42_000_000


def memory_needed(config, B, T, sample_length=0, optimizer_arrays=2):
    """Returns a dict of part -> bytes of a run's flat arrays.

    They are GPT2's and the optimizer's, and with a sample_length those of a Decoder for one sequence of as many tokens.
    """
    return {
        "parameters, gradients and moments": (2 + optimizer_arrays) * FLOAT * parameter_layout(config).size,
        f"activations of {B} x {T}": FLOAT * activations_size(config, B, T),
    } | ({"samples": FLOAT * cache_layout(config, 1, sample_length).size} if sample_length else {})


def program_bytes():
    """Bytes of what is no array of the run's: what the process holds already, compiled kernels, the loss plot."""
    return machine.held_bytes() + KERNELS + PICTURE


def checkpoint_bytes(config, optimizer_arrays=2):
    """Bytes of a checkpoint's two files, without the few kB of metadata about the run."""
    return 2 * HEADER_BYTES + (1 + optimizer_arrays) * FLOAT * parameter_layout(config).size


def require_memory(config, B, T, sample_length=0, data_bytes=0):
    """Prints the memory that a run needs and the memory available, what the process holds already included in both.

    data_bytes: what its DataLoaders will hold. Raises UserError if memory is too little, naming the largest batch and
    the longest sequence that would fit.
    """
    available = machine.held_bytes() + machine.available_bytes()
    others = program_bytes() + data_bytes
    parts = {"the program and its data": others} | memory_needed(config, B, T, sample_length)
    needed = sum(parts.values())
    sums = " + ".join(f"{readable(count)} for {part}" for part, count in parts.items())
    print(f"[memory] {sums} = {readable(needed)} needed | {readable(available)} available", flush=True)
    if needed <= available:
        return

    def largest(below, size):
        """The largest number below `below` for which size(number) = (B, T) fits, 0 if none does."""
        return bisect.bisect(
            range(1, below),
            available,
            key=lambda number: others + sum(memory_needed(config, *size(number), sample_length).values()),
        )

    fitting = []
    if batch := largest(B, lambda batch: (batch, T)):
        fitting.append(f"--batch-size {batch} at this --seq-len")
    if length := largest(T, lambda length: (B, length)):
        fitting.append(f"--seq-len {length} at this --batch-size")
    if not fitting and (length := largest(T, lambda length: (1, length))):
        fitting.append(f"--batch-size 1 with --seq-len {length}")
    advice = f"what fits is {' or '.join(fitting)}" if fitting else "not even 1 x 1 fits: choose a smaller model"
    raise UserError(
        f"not enough memory: training at --batch-size {B} --seq-len {T} needs {readable(needed)}, "
        f"{readable(available)} are available; {advice}, or close other programs"
    )


def require_disk(config, folder, checkpoints, replaced=0):
    """Prints the disk that a run's checkpoints need and what is free.

    Raises UserError if that is too little, or if the process may not write files of that size (`ulimit -f`).

    folder: where they go; it exists. checkpoints: the most that exist at once, one being written included. replaced:
    bytes of those in the folder that will be deleted as new ones are written.
    """
    each = checkpoint_bytes(config)
    needed, what = checkpoints * each, f"{checkpoints} checkpoint{'s' if checkpoints > 1 else ''}"
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise from_os_error(error, folder) from error
    older = f" + {readable(replaced)} of older ones" if replaced else ""
    print(
        f"[disk] {what} of {readable(each)} at most = {readable(needed)} needed | "
        f"{readable(free)} free in {folder}{older}",
        flush=True,
    )
    if needed > free + replaced:
        raise UserError(
            f"{folder}: {what}, {readable(needed)} of disk, would not fit: {readable(free)} are free{older}; "
            "free some, choose another --out-dir, or keep fewer"
        )
    state_bytes = HEADER_BYTES + 2 * FLOAT * parameter_layout(config).size  # the larger of a checkpoint's two files
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and state_bytes > limit:
        raise UserError(
            f"ulimit -f: {readable(limit)} is the most that this process may write to a file; "
            f"a checkpoint's larger file takes {readable(state_bytes)}; raise the limit"
        )
