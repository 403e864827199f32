"""What the fork server of test_kills.py imports, so that its children have all that takes time to load from the start.

Of numba's threading layers only workqueue is sound on both sides of a fork wherever it can be had, so the server and
its children use that one.
"""

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import numba

numba.config.THREADING_LAYER = "workqueue"

from gpt2.inference.warmup import prepare_kernels  # noqa: E402
from gpt2.training import loop  # noqa: E402, F401

prepare_kernels()
