"""Preloaded by the fork server of test_kills.py, so that its children start with everything slow already loaded.

Of Numba's threading layers only workqueue is always available and safe across a fork.
"""

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import numba

numba.config.THREADING_LAYER = "workqueue"

from gpt2.inference.warmup import prepare_kernels  # noqa: E402
from gpt2.training import loop  # noqa: E402, F401

prepare_kernels()
