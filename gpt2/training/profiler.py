"""Times a training step kernel by kernel, and the best that the machine can do."""

import bisect
import collections
import statistics
import time

import numpy as np

from gpt2 import model as model_module
from gpt2 import optimizer as optimizer_module
from gpt2.kernels import matmul as matmul_module
from gpt2.kernels.engine.peak import add_scaled, products_in_cache
from gpt2.layout import parameter_layout
from gpt2.machine import available_threads
from gpt2.model import GPT2
from gpt2.optimizer import AdamW

PHASES = ("forward", "backward", "update")
# Elements of the two arrays that measure the memory's bandwidth.
PEAK_NUMBERS = 1 << 27
UPDATE = ("adamw_update", "block_squares")


class Profiler:
    """A context that times every kernel launched by a model's training step.

    Attribute `records`: (phase, kernel, layer) -> [launches, seconds, operations, bytes]. A layer is named by the
    parameters passed to the kernel; operations are counted for matrix products, bytes for all other kernels.
    """

    def __init__(self, model):
        self.model = model
        self.records = collections.defaultdict(lambda: [0, 0.0, 0, 0])
        self._layout = parameter_layout(model.config)
        self._replaced = []
        self._in_backward = False
        self._launches = []

    def __enter__(self):
        self.model._backward_trunk = self._backward
        for module in (model_module, optimizer_module, matmul_module):
            for name, function in list(vars(module).items()):
                if getattr(function, "targetoptions", {}).get("parallel"):  # as jit.kernel compiles them
                    self._replaced.append((module, name, function))
                    setattr(module, name, self._timed(name, function))
        return self

    def __exit__(self, *_):
        del self.model._backward_trunk
        for module, name, function in self._replaced:
            setattr(module, name, function)
        self._replaced.clear()
        for launch in self._launches:
            self._record(*launch)
        self._launches.clear()

    def _backward(self, *arguments):
        self._in_backward = True
        type(self.model)._backward_trunk(self.model, *arguments)
        self._in_backward = False

    def _timed(self, name, function):
        def timed(*arguments):
            start = time.perf_counter()
            result = function(*arguments)
            # Classified afterwards, so that bookkeeping is not timed.
            self._launches.append((name, arguments, self._in_backward, time.perf_counter() - start))
            return result

        return timed

    def _record(self, name, arguments, in_backward, seconds):
        arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
        tensors = [self._tensor(array) for array in arrays]
        record = self.records[_phase(name, in_backward), name, _layer(name, tensors)]
        activations = [array for array, tensor in zip(arrays, tensors, strict=True) if tensor is None]
        operations, traffic = _work(name, arrays, activations)
        for i, amount in enumerate((1, seconds, operations, traffic)):
            record[i] += amount

    def _tensor(self, array):
        """The parameter whose value or gradient the array is part of, or None."""
        offsets = self._layout.offsets
        for flat in (self.model.params_flat, self.model.grads_flat):
            offset = (array.ctypes.data - flat.ctypes.data) // flat.itemsize
            if 0 <= offset < flat.size:
                return list(offsets)[bisect.bisect_right(list(offsets.values()), offset) - 1]
        return None


def _phase(name, in_backward):
    """By purpose: the backward pass recomputes layernorm_forward, and the classifier's backward is done early."""
    if name in UPDATE:
        return "update"
    return "forward" if not in_backward and (name.endswith("_forward") or name == "matmul_nt") else "backward"


def _layer(name, tensors):
    """A layer is named by its parameters, without the w or b; one without parameters by its kernel."""
    if name in UPDATE:
        return "parameters"
    tensor = next((tensor for tensor in tensors if tensor), None)
    if tensor is None:
        return name.rsplit("_", 1)[0]
    return tensor if tensor in ("wte", "wpe") else tensor[:-1]


def _work(name, arrays, activations):
    """Returns (operations, bytes) of a launch: operations for a product, bytes for anything else."""
    if "matmul" in name:
        weight = next(array for array in arrays if array.ndim == 2 and not any(array is other for other in activations))
        return 2 * weight.size * activations[0].shape[0], 0
    if name.startswith("attention"):
        # Two products forward, six backward, for T (T + 1) / 2 pairs of positions each.
        products, (B, T, C) = (2, arrays[0].shape) if name.endswith("forward") else (6, arrays[1].shape)
        return products * B * T * (T + 1) * C, 0
    if name == "adamw_update":  # of its four arrays it writes three back
        return 0, 7 * arrays[0].nbytes
    # Each array once, of an embedding only as much as there are activations.
    most = max(array.nbytes for array in activations or arrays)
    return 0, sum(min(array.nbytes, most) for array in arrays)


def peaks(bf16):
    """Measures the peaks: (floating-point operations per second, bytes per second), on the threads in use.

    bf16: of products whose factors are rounded to bfloat16.
    """
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 2 * available_threads(), 192, 192), dtype=np.float32)
    out, inp = np.ones((2, PEAK_NUMBERS // 2), np.float32)
    flops = [2 * 192 * a.size * 20 / seconds_of(products_in_cache, c, a, b, 20, bf16) for _ in range(20)]
    rates = [3 * out.nbytes / seconds_of(add_scaled, out, inp) for _ in range(6)]
    return max(flops), max(rates)


def seconds_of(function, *arguments):
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def training_step(config, B, T, bf16=False):
    """Returns (a random model, a function that takes a training step of B x T tokens), warmed up."""
    rng = np.random.default_rng(0)
    tokens, targets = rng.integers(0, config.V, (2, B, T), dtype=np.int32)
    model = GPT2(config)
    model.bf16 = bf16
    optimizer = AdamW(model)

    def step():
        model.overwrite_gradients(tokens, targets)
        optimizer.step(1e-5)

    for _ in range(2):
        step()
    return model, step


def profile(config, B, T, steps, bf16=False, print_line=print):
    """Trains a random model for some steps and prints the table: `print_table`."""
    model, step = training_step(config, B, T, bf16)
    peak_flops, peak_bytes = peaks(bf16)
    with Profiler(model) as profiler:
        seconds = [seconds_of(step) for _ in range(steps)]
    print_line(f"B {B} | T {T} | {config.num_parameters:,} parameters | mean of {steps} steps, after 2 to warm up")
    products = f"{peak_flops / 1e9:.0f} GFLOP/s{' of bfloat16' if bf16 else ''} in cache"
    print_line(f"at best, measured now: {products}, {peak_bytes / 1e9:.1f} GB/s from memory")
    print_table(profiler.records, statistics.fmean(seconds), steps, peak_flops, peak_bytes, print_line)


def print_table(records, step_seconds, steps, peak_flops, peak_bytes, print_line):
    """Prints a line for each kernel of each layer, the phases' totals, and the time spent in Python between kernels."""
    print_line(f"{'':10}{'layer':11}{'kernel':25}{'launches':>8}{'ms':>10}{'share':>8}{'rate':>15}{'of the best':>13}")
    kernels = 0.0
    for phase in PHASES:
        rows = {key: record for key, record in records.items() if key[0] == phase}
        for (_, name, layer), (launches, seconds, flops, traffic) in sorted(rows.items(), key=lambda row: -row[1][1]):
            work, peak, unit = (flops, peak_flops, "GFLOP/s") if flops else (traffic, peak_bytes, "GB/s")
            print_line(
                f"{'':10}{layer:11}{name:25}{launches // steps:8}{1e3 * seconds / steps:10.2f}"
                f"{seconds / steps / step_seconds:8.1%}"
                f"{work / seconds / 1e9:7.1f} {unit:7}{work / seconds / peak:13.0%}"
            )
        total = sum(record[1] for record in rows.values()) / steps
        kernels += total
        print_line(f"{phase:54}{1e3 * total:10.2f}{total / step_seconds:8.1%}")
    between = step_seconds - kernels
    print_line(f"{'Python, between the kernels':54}{1e3 * between:10.2f}{between / step_seconds:8.1%}")
    print_line(f"{'step':54}{1e3 * step_seconds:10.2f}{1:8.1%}")
