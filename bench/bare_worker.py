"""Times only the matrix products of a training step, without attention's, multithreaded in NumPy and in PyTorch.

Outputs are allocated in advance. Layers of the same shape share their arrays.
"""

import numpy as np
import torch

from bench import common

CLASSIFIER_ROWS = 1024  # rows of logits at a time, which limits memory


def products(job):
    """Returns the step's linear layers as a list of (rows, inputs, outputs, times per step)."""
    C, L, V, N = *(job["sizes"][name] for name in "CLV"), job["B"] * job["T"]
    Vp = -(-V // 128) * 128  # padded vocabulary: a faster shape for BLAS libraries than 50257
    shapes = [(N, C, 3 * C, L), (N, C, C, L), (N, C, 4 * C, L), (N, 4 * C, C, L)]
    whole, rest = divmod(N, CLASSIFIER_ROWS)
    shapes += [(CLASSIFIER_ROWS, C, Vp, whole)] if whole else []
    return shapes + ([(rest, C, Vp, 1)] if rest else [])


def layer(rows, inputs, outputs, library):
    """Returns a function that computes a linear layer's output, input gradient and weight gradient in `library`."""
    rng = np.random.default_rng(common.SEED)
    shapes = {"x": (rows, inputs), "w": (outputs, inputs), "dy": (rows, outputs)}
    x, w, dy = (rng.standard_normal(shape, dtype=np.float32) for shape in shapes.values())
    y, dx, dw = (np.empty_like(array) for array in (dy, x, w))
    multiply = np.matmul
    if library == "torch":
        multiply = torch.mm
        x, w, dy, y, dx, dw = map(torch.from_numpy, (x, w, dy, y, dx, dw))

    def run():
        multiply(x, w.T, out=y)
        multiply(dy, w, out=dx)
        multiply(dy.T, x, out=dw)

    return run


def measure(job, library):
    """Returns the milliseconds of each timed step, a list."""
    layers = [(layer(*shape, library), times) for *shape, times in products(job)]

    def step():
        for run, times in layers:
            for _ in range(times):
                run()

    return common.time_steps(step, job)[0]


def main():
    job = common.read_job()
    torch.set_num_threads(job["threads"])
    step_ms = {library: measure(job, library) for library in ("numpy", "torch")}
    common.answer([torch, np], step_ms=step_ms)


if __name__ == "__main__":
    main()
