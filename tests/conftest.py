"""Settings that must stand before Numba is imported."""

import os

# Three threads even on a machine with fewer cores: results must not depend on how many there are.
os.environ.setdefault("NUMBA_NUM_THREADS", "3")
