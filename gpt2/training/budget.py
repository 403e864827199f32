"""The memory and disk that a run needs, checked before any of it is used."""

import bisect
import resource
import shutil

from gpt2 import machine
from gpt2.distributed import SERIAL
from gpt2.errors import UserError, from_os_error
from gpt2.formats.files import HEADER_BYTES
from gpt2.inference.decoder import cache_layout
from gpt2.layout import parameter_layout
from gpt2.memory import readable
from gpt2.model import activations_size
from gpt2.optimizer import shards

FLOAT = 4  # bytes of a float32
# Bytes that a run takes besides its arrays and what the process holds before it, as measured.
KERNELS, PICTURE = 65_000_000, 42_000_000


def memory_needed(config, B, T, sample_length=0, optimizer_arrays=2, ranks=1):
    """Returns a dict of part -> bytes of a run's flat arrays on a rank.

    They are GPT2's and the optimizer's, of which each rank has its share, and with a sample_length those of a Decoder
    for one sequence of as many tokens.
    """
    size = parameter_layout(config).size
    share = max(shard.stop - shard.start for shard in shards(size, ranks))
    return {
        "parameters, gradients and moments": FLOAT * (2 * size + optimizer_arrays * share),
        f"activations of {B} x {T}": FLOAT * activations_size(config, B, T),
    } | ({"samples": FLOAT * cache_layout(config, 1, sample_length).size} if sample_length else {})


def program_bytes():
    """Bytes of what is no array of the run's: what the process holds already, compiled kernels, the loss plot."""
    return machine.held_bytes() + KERNELS + PICTURE


def checkpoint_bytes(config, optimizer_arrays=2):
    """Bytes of a checkpoint's two files, without the few kB of metadata about the run."""
    return 2 * HEADER_BYTES + (1 + optimizer_arrays) * FLOAT * parameter_layout(config).size


def require_memory(config, B, T, sample_length=0, data_bytes=0, optimizer_arrays=2, world=SERIAL):
    """Prints the memory that a run needs and the memory available, what the process holds already included in both.

    data_bytes: what its DataLoaders will hold. world: a distributed.World; of its ranks, those on a host share its
    memory. Raises UserError if memory is too little, naming the largest batch and the longest sequence that would fit.
    """
    held, others = machine.held_bytes(), program_bytes() + data_bytes
    parts = {"the program and its data": others}
    parts |= memory_needed(config, B, T, sample_length, optimizer_arrays, world.size)
    needed = sum(parts.values())
    sums = " + ".join(f"{readable(count)} for {part}" for part, count in parts.items())
    ranks = world.gather((world.host, needed, held))
    on_host = [(needed, held) for host, needed, held in ranks if host == world.host]
    total = sum(needed for needed, _ in on_host)
    available = machine.available_bytes() + sum(held for _, held in on_host)
    of_ranks = f" by a rank, {readable(total)} by the {len(on_host)} on {world.host}" if world.size > 1 else ""
    print(f"[memory] {sums} = {readable(needed)} needed{of_ranks} | {readable(available)} available", flush=True)
    if total <= available:
        return
    available //= len(on_host)  # all have the same batch

    def largest(below, size):
        """The largest number below `below` for which size(number) = (B, T) fits, 0 if none does."""
        return bisect.bisect(
            range(1, below),
            available,
            key=lambda number: (
                others + sum(memory_needed(config, *size(number), sample_length, optimizer_arrays, world.size).values())
            ),
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


def require_disk(config, folder, checkpoints, replaced=0, optimizer_arrays=2):
    """Prints the disk that a run's checkpoints need and what is free.

    Raises UserError if that is too little, or if the process may not write files of that size (`ulimit -f`).

    folder: where they go; it exists. checkpoints: the most that exist at once, one being written included. replaced:
    bytes of those in the folder that will be deleted as new ones are written.
    """
    each = checkpoint_bytes(config, optimizer_arrays)
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
    largest = max(1, optimizer_arrays)  # of a checkpoint's two files
    state_bytes = HEADER_BYTES + largest * FLOAT * parameter_layout(config).size
    limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    if limit != resource.RLIM_INFINITY and state_bytes > limit:
        raise UserError(
            f"ulimit -f: {readable(limit)} is the most that this process may write to a file; "
            f"a checkpoint's larger file takes {readable(state_bytes)}; raise the limit"
        )
