"""Warm-up: has all kernels compiled into the cache by a child process, once, then loads them."""

import os
import pathlib
import subprocess
import sys

import numpy as np
from tqdm import tqdm

from gpt2.config import GPT2Config
from gpt2.inference.decoder import Decoder
from gpt2.inference.forms import FORMS
from gpt2.inference.weights import converted
from gpt2.kernels.adamw import sum_of_squares
from gpt2.kernels.dropout import Dropout
from gpt2.kernels.engine import jit
from gpt2.kernels.engine.target import code_key
from gpt2.model import GPT2
from gpt2.optimizer import OPTIMIZERS, AdamW
from gpt2.output import lossy_output

# The child imports the parent's modules, wherever the parent found them.
_CHILD = (
    "import sys; sys.path[:] = {!r}; "
    "from gpt2.inference.warmup import compile_kernels; compile_kernels({!r}, {!r}, {!r})"
)
_form = FORMS[0]  # of the weights that a child prepares for


def prepare_kernels(form=FORMS[0], optimizer=AdamW):
    """Loads all kernels, so that no later call has to; the first time, a child process compiles them (a minute).

    form: that of the weights which text is generated from, one of FORMS. optimizer: a subclass of Optimizer. The child
    knows those of the package's OPTIMIZERS; what another one needs is compiled in this process.
    """
    global _form
    _form = form
    model = GPT2(GPT2Config(maxT=4, V=4, L=1, NH=1, C=4))
    tokens = np.zeros((1, 4), np.int32)
    model.overwrite_gradients(tokens, tokens)
    model.overwrite_gradients(tokens, np.array([[0, -1, 0, 0]]), Dropout(0.5, 0, 0, 0))
    sum_of_squares(model.params_flat)
    for each in {AdamW, optimizer}:
        made = each(model)
        made.measure()
        made.step(1e-4)
    decoder = Decoder(model.config, converted(model.config, model.params_flat, form), batch_size=2)
    decoder.forward([[0, 0]])
    decoder.forward([[0], [0]])
    decoder.reorder([1, 0])


def prepare_kernels_on_all(world, **arguments):
    """Does prepare_kernels(**arguments) on all ranks of a distributed.World.

    The first rank of each host compiles; the others find the kernels in its cache.
    """
    if is_first := world.hosts.index(world.host) == world.rank:
        prepare_kernels(**arguments)
    world.gather(None)
    if not is_first:
        prepare_kernels(**arguments)


@lossy_output()
def compile_in_child(folder):
    """Runs prepare_kernels() in a child process, which leaves the compiled kernels in the folder.

    Reports on stderr if anything is compiled: a progress bar on a terminal, otherwise a line. If there can be no child,
    or it dies, says so and returns.
    """
    # In a process group of its own the child gets no Ctrl-C; the parent kills it.
    command = [sys.executable, "-c", _CHILD.format([str(path) for path in sys.path], str(folder), _form, code_key())]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "text": True, "process_group": 0}
    bar = tqdm(desc="compiling the kernels", unit=" functions", leave=False, disable=None, delay=0.5)
    try:
        with bar, subprocess.Popen(command, **pipes) as child:
            try:
                for count, name in enumerate(child.stdout):
                    if bar.disable and count == 0:
                        print("compiling the kernels: a minute, in the first run only", file=sys.stderr, flush=True)
                    bar.update()
                    bar.set_postfix_str(name.strip())
            except BaseException:
                child.kill()
                raise
        failure = f"exit status {child.returncode}" if child.returncode else None
    except OSError as error:
        failure = error.strerror
    if failure:
        print(
            f"the kernels' compiler process failed ({failure}); compiling in this process instead: "
            "results may differ from other runs' in their last digits",
            file=sys.stderr,
            flush=True,
        )


def compile_kernels(folder, form, key):
    """The child: compiles what is missing into the folder, and prints a line for each function that it compiles.

    form: as for prepare_kernels. key: the parent's code_key(), which the folder is for.
    """
    if code_key() != key:
        sys.exit("it would compile other kernels than its parent runs: perhaps only one of the two may use AMX")
    jit.compile_into(pathlib.Path(folder))
    with jit.watch_compilation(_report):
        try:
            for optimizer in OPTIMIZERS.values():
                prepare_kernels(form, optimizer)
        except OSError as error:
            sys.exit(f"{folder}: {error.strerror}")


def _report(name):
    try:
        os.write(1, f"{name}\n".encode())
    except OSError:  # the parent is gone
        os._exit(1)
