"""Several processes, perhaps on several machines, that work as one: the ranks of an MPI job.

Once all ranks are there, nothing blocks inside MPI: whatever has to be waited for is polled, so that signals are
handled, a lost rank is noticed, and waiting takes no CPU time from a rank beside. Sums have an order of their own,
whatever the MPI library: a binary tree over ranks.
"""

import collections
import contextlib
import functools
import importlib
import io
import os
import pickle
import signal
import socket
import sys
import time
import traceback
import warnings

import numpy as np

from gpt2.errors import UserError, error_line, safe_repr

CHUNK = 1 << 18  # elements of a message of a large array
DEPTH = 4  # messages in flight to and from each rank; over TCP, fewer leave the link idle
TIMEOUT = 600.0  # seconds after which a rank that waits gives up
GRACE = 5.0  # seconds that rank 0, which knows whom it waits for, gives up before the others
SPIN = 5e-2  # seconds for which a rank polls without pause after a message arrived: TCP advances only in polls
PAUSE = 2e-4  # seconds between polls later
LAUNCHERS = "mpirun of the MPI library that mpi4py uses, or srun --mpi=pmi2"
# What launchers tell their processes: (ranks, rank).
VARIABLES = (
    ("PMI_SIZE", "PMI_RANK"),
    ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("SLURM_NTASKS", "SLURM_PROCID"),
)
LOCAL_RANKS = "MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "SLURM_LOCALID"
START = 120  # seconds after which a rank that the others do not join is ended
_OBJECT, _ARRAY = 1, 2  # tags of messages


class AgreedError(UserError):
    """A UserError that all ranks raise, and the first one reports."""

    def __init__(self, message, rank):
        super().__init__(message)
        self.is_reported = rank != 0


class World:
    """The ranks of a run; this class itself is a world of one, which needs no MPI.

    Attributes: `rank`, from 0; `size`; `host`; `hosts`, that of each rank; `sharers`, the ranks on this host with a CPU
    in common with this one, itself among them; `exchanged`, the seconds spent in exchanges so far; `timeout`, the
    seconds after which one that does not finish is given up.
    """

    def __init__(self):
        self.rank, self.size, self.sharers = 0, 1, 1
        self.host = socket.gethostname()
        self.hosts = [self.host]
        self.exchanged, self.timeout = 0.0, TIMEOUT

    @property
    def is_first(self):
        """Whether this is rank 0, which prints and writes."""
        return self.rank == 0

    def gather(self, value):
        """Returns, on all ranks, the list of every rank's value. Values are small, and can be pickled."""
        return [value]

    def to_first(self, value):
        """Returns what `gather` does on rank 0, None on the others. Values may be larger."""
        return [value]

    def of_first(self, value=None):
        """Returns rank 0's value on all ranks."""
        return self.gather(value if self.is_first else None)[0]

    def first_of(self, value):
        """Returns the value of the lowest rank that has one, None if none has."""
        return next((each for each in self.gather(value) if each is not None), None)

    def require_same(self, values):
        """Raises UserError unless a dict of what is compared -> value is the same on all ranks."""
        everywhere = self.gather(values)
        for what, value in everywhere[0].items():
            for rank, others in enumerate(everywhere):
                if others.get(what) != value:
                    raise AgreedError(
                        f"{what} differs between ranks: {safe_repr(value)} on {self.name(0)}, "
                        f"{safe_repr(others.get(what))} on {self.name(rank)}; start all with the same",
                        self.rank,
                    )

    def name(self, rank):
        """A rank and its host, for people."""
        return f"rank {rank} on {self.hosts[rank] if rank < len(self.hosts) else 'another host'}"

    def reduce_scatter(self, flat, shards):
        """Adds up an array of all ranks: flat[shards[rank]] becomes the sum, what else is in flat stays.

        flat: float (n,), contiguous. shards: as from optimizer.shards. The order of the sum is that of `add_as_tree`.
        """

    def all_gather(self, flat, shards):
        """The reverse: each rank's flat[shards[rank]] is copied to all others."""

    def stream(self, arrays, shards):
        """Yields, on rank 0, arrays that lie in shards on all ranks, one after the other, in pieces; others yield none.

        arrays: a list of float32 arrays, each rank's of the size of its shard.
        """
        yield from arrays

    @contextlib.contextmanager
    def together(self):
        """A context in which a rank may raise a UserError: all ranks raise it then, an AgreedError, at its end."""
        yield

    @contextlib.contextmanager
    def as_one(self):
        """A context in which only rank 0 prints to stdout, and an exception of one rank ends the processes of all.

        Not an AgreedError, which all ranks raise.
        """
        yield


SERIAL = World()


class MpiWorld(World):
    """The world that an MPI communicator spans."""

    def __init__(self, mpi):
        super().__init__()
        self._mpi, self._comm = mpi, mpi.COMM_WORLD.Dup()
        self.rank, self.size = self._comm.rank, self._comm.size
        cpus = frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()
        places = self.gather((self.host, cpus))
        self.hosts = [host for host, _ in places]
        self.sharers = sum(host == self.host and (not cpus or bool(others & cpus)) for host, others in places)

    def gather(self, value):
        return self._agreed(None, value)

    def _agreed(self, failure, value=None):
        """Does what `gather` does, but raises an AgreedError on all ranks if one has a failure, a message."""
        found = self._gathered((failure, value))
        failures = [failure for failure, _ in found]
        if any(failures):
            rank = next(rank for rank, failure in enumerate(failures) if failure)
            message = failures[rank] if len(set(failures)) == 1 else f"{self.name(rank)}: {failures[rank]}"
            raise AgreedError(message, self.rank)
        return [value for _, value in found]

    def _gathered(self, value):
        """Exchanges small objects by way of rank 0, which sends each rank the list of all."""
        start, everyone = time.perf_counter(), range(1, self.size)
        if self.is_first:
            values = [value] + [pickle.loads(data) for data in self._receive(everyone)]
            self._send(pickle.dumps(values), everyone)
        else:
            self._send(pickle.dumps(value), [0])
            values = pickle.loads(self._receive([0])[0])
        self.exchanged += time.perf_counter() - start
        return values

    def to_first(self, value):
        start = time.perf_counter()
        if self.is_first:
            values = [value] + [pickle.loads(data) for data in self._receive(range(1, self.size))]
        else:
            values = self._send(pickle.dumps(value), [0])
        self.exchanged += time.perf_counter() - start
        return values

    def _send(self, data, ranks):
        size = np.array([len(data)], np.int64)
        data = np.frombuffer(data, np.uint8)
        requests = [self._comm.Isend(part, rank, _OBJECT) for rank in ranks for part in (size, data)]
        self._wait(requests, [rank for rank in ranks for _ in range(2)])

    def _receive(self, ranks):
        sizes = [np.empty(1, np.int64) for _ in ranks]
        self._wait([self._comm.Irecv(size, rank, _OBJECT) for size, rank in zip(sizes, ranks, strict=True)], ranks)
        parts = [np.empty(size[0], np.uint8) for size in sizes]
        self._wait([self._comm.Irecv(part, rank, _OBJECT) for part, rank in zip(parts, ranks, strict=True)], ranks)
        return [part.tobytes() for part in parts]

    def _wait(self, requests, ranks):
        """Polls until all requests, each with the rank in the same place, are complete; ends all ranks on time-out."""
        ranks, started = list(ranks), time.monotonic()
        limit = self.timeout + (0 if self.is_first else GRACE)
        arrived, left = started, list(range(len(requests)))
        while True:
            done = self._mpi.Request.Testsome(requests)
            now = time.monotonic()
            if done is None or not (left := [i for i in left if i not in done] if done else left):
                return
            if done:
                arrived = now
            elif now - started > limit:
                waited = sorted({ranks[i] for i in left})
                names = ", ".join(map(self.name, waited[:4])) + (f" and {len(waited) - 4} more" if waited[4:] else "")
                self._abort(UserError(f"nothing came from {names} for {limit:.0f} s (--timeout)"))
            elif now - arrived > SPIN:
                time.sleep(PAUSE)
            else:
                os.sched_yield()  # time.sleep(0) sleeps for 50 microseconds

    def reduce_scatter(self, flat, shards):
        start = time.perf_counter()
        own, others = flat[shards[self.rank]], self._others()
        size = self._chunk()
        parts = np.empty((DEPTH, self.size, size), flat.dtype)

        def post(k):
            k = slice(k * size, (k + 1) * size)
            into = parts[k.start // size % DEPTH, :, : own[k].size]
            requests = [self._comm.Irecv(into[rank], rank, _ARRAY) for rank in others]
            requests += [self._comm.Isend(flat[shards[rank]][k], rank, _ARRAY) for rank in others]
            return requests, into, k

        for requests, into, k in self._pipelined(post, shards):
            self._wait(requests, 2 * others)
            into[self.rank] = own[k]
            own[k] = add_as_tree(into)
        self.exchanged += time.perf_counter() - start

    def all_gather(self, flat, shards):
        start = time.perf_counter()
        own, others, size = flat[shards[self.rank]], self._others(), self._chunk()

        def post(k):
            k = slice(k * size, (k + 1) * size)
            requests = [self._comm.Irecv(flat[shards[rank]][k], rank, _ARRAY) for rank in others]
            return requests + [self._comm.Isend(own[k], rank, _ARRAY) for rank in others]

        for requests in self._pipelined(post, shards):
            self._wait(requests, 2 * others)
        self.exchanged += time.perf_counter() - start

    def _pipelined(self, post, shards):
        """Yields post(k) for every chunk k of the largest shard, those up to k + DEPTH - 1 posted before."""
        count = -(-max(shard.stop - shard.start for shard in shards) // self._chunk())
        posted = collections.deque(post(k) for k in range(min(DEPTH - 1, count)))
        for k in range(count):
            if k + DEPTH - 1 < count:
                posted.append(post(k + DEPTH - 1))
            yield posted.popleft()

    def _others(self):
        """The other ranks, from the next one on, so that not all send to one."""
        return [(self.rank + i) % self.size for i in range(1, self.size)]

    def _chunk(self):
        """Elements of a message: fewer for many ranks, as there are DEPTH buffers for each."""
        return max(1 << 12, CHUNK * 8 // max(8, self.size))

    def stream(self, arrays, shards):
        for array in arrays:
            if not self.is_first:
                for k in range(0, array.size, CHUNK):
                    self._wait([self._comm.Isend(array[k : k + CHUNK], 0, _ARRAY)], [0])
                continue
            yield array
            for rank, shard in enumerate(shards[1:], 1):
                size = shard.stop - shard.start
                for k in range(0, size, CHUNK):
                    part = np.empty(min(CHUNK, size - k), array.dtype)
                    self._wait([self._comm.Irecv(part, rank, _ARRAY)], [rank])
                    yield part

    @contextlib.contextmanager
    def together(self):
        try:
            yield
        except AgreedError:
            raise
        except UserError as error:
            self._agreed(str(error))
        self.gather(None)

    @contextlib.contextmanager
    def as_one(self):
        with contextlib.ExitStack() as stack:
            if not self.is_first:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            try:
                yield
            except AgreedError:
                raise
            except BaseException as error:
                self._abort(error)

    def _abort(self, error):
        """Reports an exception and ends the processes of all ranks."""
        sys.stdout.flush()
        if not self.is_first and isinstance(error, UserError | KeyboardInterrupt):
            time.sleep(1)  # if all have it, rank 0 says so
        if not isinstance(error, UserError | OSError | MemoryError | SystemExit | KeyboardInterrupt):
            traceback.print_exception(error)
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__} {error}".strip()
        print(error_line(f"{self.name(self.rank)}: {reason}; all ranks end"), file=sys.stderr, flush=True)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
        # A lost link can keep Abort from returning, and no other thread runs meanwhile.
        with contextlib.suppress(ValueError):  # not the main thread; then nothing has set another handler
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(3)
        self._comm.Abort(status)
        os._exit(status)


def add_as_tree(parts):
    """Returns the sum of the n rows of an array (n, size), which it overwrites, in the order of a binary tree.

    Of neighbours, row 0 and 1, 2 and 3, ..., the sums take their place; then the same of these, until one is left. A
    last one without a neighbour goes on unchanged.
    """
    stride = 1
    while stride < len(parts):
        for i in range(0, len(parts) - stride, 2 * stride):
            parts[i] += parts[i + stride]
        stride *= 2
    return parts[0]


def parsed_on_all(world, parse, arguments):
    """Returns parse(arguments) on all ranks; if it ends a process, ends all with what the first of those prints."""
    parsed, status, output, errors = None, None, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            parsed = parse(arguments)
        except SystemExit as ended:
            status = ended.code or 0
    ended = world.first_of(None if status is None else (status, output.getvalue(), errors.getvalue()))
    if ended is None:
        return parsed
    if world.is_first:
        sys.stdout.write(ended[1])
        sys.stderr.write(ended[2])
    sys.exit(ended[0])


def launched():
    """Returns what the launcher of several ranks says to its processes, (ranks, this one's rank), or None."""
    for size, rank in VARIABLES:
        if os.environ.get(size, "").isdecimal() and os.environ.get(rank, "").isdecimal():
            if size == "SLURM_NTASKS" and "SLURM_JOB_ID" in os.environ and "SLURM_STEP_NUM_TASKS" not in os.environ:
                continue  # the batch script itself, not a task that srun started
            found = int(os.environ[size]), int(os.environ[rank])
            return found if found[0] > 1 else None  # one rank needs no MPI
    return None


@functools.cache
def world():
    """Returns the World that this process was started in, of one rank unless a launcher says otherwise.

    Raises AgreedError if mpi4py is missing, or if the launcher started more processes than MPI finds.
    """
    job = launched()
    if job is None:
        return SERIAL
    size, rank = job
    try:
        mpi4py = importlib.import_module("mpi4py")
    except ImportError as error:
        raise _alone(
            f"started as one of {size} ranks, but mpi4py is not installed: pip install '.[mpi]'", rank
        ) from error
    mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
    os.environ.setdefault("UCX_TCP_TX_SEG_SIZE", "64k")  # what a poll sends; by UCX's default of 8k TCP is slower
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mpi = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        reason = "; ".join(str(error).splitlines())
        raise _alone(f"mpi4py cannot load an MPI library: {reason}", rank) from error
    library, found = " ".join(mpi.Get_library_version().split(",")[0].split("\n")[0].split()), 1
    # MPICH would end the process itself, under the launcher of Open MPI.
    if "OMPI_COMM_WORLD_SIZE" not in os.environ or "Open MPI" in library:
        signal.alarm(START)  # Init_thread waits for all ranks, and some may have ended
        mpi.Init_thread(mpi.THREAD_FUNNELED)  # no kernel calls MPI
        signal.alarm(0)
        found = mpi.COMM_WORLD.size
    if found != size:
        raise AgreedError(
            f"started as one of {size} ranks, but {library} finds {found}: start it with {LAUNCHERS}", rank
        )
    return MpiWorld(mpi)


def _alone(message, rank):
    """Returns the error of a rank that has no MPI to reach the others by: the first one of a host reports it."""
    on_host = next((os.environ[name] for name in LOCAL_RANKS if name in os.environ), str(rank))
    return AgreedError(f"{socket.gethostname()}: {message}", int(on_host))
