"""What is shown of the kernels' compilation, which a user waits for once."""

import contextlib
import sys

from tqdm import tqdm

from gpt2.kernels.engine.jit import watch_compilation


@contextlib.contextmanager
def compilation_shown():
    """Says on standard error if functions are compiled in the meantime rather than loaded; a terminal counts them."""
    bar = tqdm(desc="compiling the kernels", unit=" functions", leave=False, disable=None, delay=0.5)
    names = []

    def started(name):
        if bar.disable and not names:
            print("compiling the kernels: a minute, in the first run only", file=sys.stderr, flush=True)
        names.append(name)
        bar.set_postfix_str(name)

    with bar, watch_compilation(started, bar.update):
        yield
