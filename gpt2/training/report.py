"""The lines that a run prints about itself."""

import collections
import contextlib
import datetime
import itertools
import resource
import sys
import time

import numpy as np

from gpt2.data.conversation_loader import ConversationLoader
from gpt2.kernels.engine.target import PORTABLE, bf16_form
from gpt2.kernels.matmul import matmul_nt

_OFFER_ROWS = 256
_WORTH_SAYING = 1.1
_HOSTS_SHOWN = 8


def describe(options, state, val_loader):
    """Prints the model's sizes, the data and the options that matter most."""
    config, resolved = state.model.config, state.resolved
    print(f"[GPT-2] maxT {config.maxT} | V {config.V} | Vp {config.Vp} | L {config.L} | NH {config.NH} | C {config.C}")
    print(f"number of parameters: {config.num_parameters:,}")
    for name, tensor in state.model.params.items():
        print(f"  {name:9s}{tensor.size:>12,}  {tensor.shape}")
    for name, loader in (("training", state.loader), ("validation", val_loader)):
        if loader:
            talks = ""
            if isinstance(loader, ConversationLoader):
                talks = f"{loader.num_conversations:,} conversations, {loader.num_targets:,} targets, "
            print(
                f"[data] {name}: {talks}{loader.num_tokens:,} tokens, {loader.num_batches:,} batches an epoch, "
                f"from {loader.file_names()}"
            )
    steps = f"{resolved.max_steps} steps"
    if options.epochs:
        steps = f"{options.epochs} epoch{'s' if options.epochs > 1 else ''} = {steps}"
    dropout = f" | dropout {options.dropout:g}" if options.dropout else ""
    bf16 = " | products of bfloat16" if state.model.bf16 else ""
    clip = f"clip {resolved.grad_clip:g}" if resolved.grad_clip else "no clipping"
    print(
        f"[run] B {options.batch_size} | T {resolved.seq_len} | accumulation {options.grad_accum_steps} | "
        f"{steps} | lr {resolved.learning_rate:g} {resolved.lr_schedule}, "
        f"warm-up {resolved.warmup_steps}, {clip}{dropout}{bf16} | seed {options.seed} | threads {options.threads}",
        flush=True,
    )
    world = state.world
    if world.size > 1:
        counts = collections.Counter(world.hosts)
        hosts = ", ".join(f"{count} on {host}" for host, count in itertools.islice(counts.items(), _HOSTS_SHOWN))
        more = f" and {len(counts) - _HOSTS_SHOWN} more hosts" if len(counts) > _HOSTS_SHOWN else ""
        tokens = options.grad_accum_steps * options.batch_size * resolved.seq_len
        print(
            f"[ranks] {world.size}: {hosts}{more} | threads {options.threads} a rank | "
            f"{options.grad_accum_steps // world.size} micro-batches a rank, {tokens:,} tokens a step over all ranks",
            flush=True,
        )


def offer_bf16(model, N):
    """Measures and prints what --precision bf16 would gain, if the CPU has it and the model does not use it.

    N: rows of a batch, B*T, of which it takes _OFFER_ROWS at most: less than a second and 40 MB for gpt2-xl.
    """
    if model.bf16 or (form := bf16_form()) in (None, PORTABLE):
        return
    rng, C, N = np.random.default_rng(0), model.config.C, min(N, _OFFER_ROWS)
    inp, weight = (rng.standard_normal((rows, C), np.float32) for rows in (N, 4 * C))
    out = np.empty((N, 4 * C), np.float32)
    seconds = {False: [], True: []}
    for bf16 in 3 * [False, True]:
        start = time.perf_counter()
        matmul_nt(out, inp, weight, bf16)
        seconds[bf16].append(time.perf_counter() - start)
    slow, fast = min(seconds[False]), min(seconds[True])
    if fast > 0 and slow / fast >= _WORTH_SAYING:  # a clock may stand still
        print(
            f"this CPU has {form}: with --precision bf16 the products of this model would be about "
            f"{slow / fast:.1f} times as fast",
            flush=True,
        )


def show_end_by_patience(state):
    """Says that --patience ended a run."""
    validations = state.validations
    best = "none had a finite loss" if validations.best is None else f"that of step {validations.best} is the best"
    since = f"{validations.since} validation{'s' if validations.since > 1 else ''} without a new best"
    print(f"--patience ends the run after step {state.step}: {since}, {best}", flush=True)


class StepLines:
    """Prints a line for each step."""

    def __init__(self, first_step, max_steps):
        """first_step: steps that were taken before."""
        self._first_step, self._max_steps, self._started = first_step, max_steps, time.perf_counter()

    def show(self, record):
        line = (
            "step {step:{width}d}/{max_steps} | train loss {train_loss:.6f} | norm {grad_norm:.4f} | lr {lr:.2e} | "
            "gradients {gradients_ms:.0f} ms | update {update_ms:.0f} ms | {exchange}{tokens_per_s:.0f} tok/s"
        ).format(
            width=len(str(self._max_steps)),
            max_steps=self._max_steps,
            exchange=f"exchange {record['exchange_ms']:.0f} ms | " if "exchange_ms" in record else "",
            **record,
        )
        if "skipped" in record:
            line += " | skipped: {skipped}, number {skipped_so_far}".format(**record)
        print(f"{line} | {self._time_left(record['step'])} left", flush=True)

    def _time_left(self, step):
        seconds = (time.perf_counter() - self._started) / (step - self._first_step)
        # A timedelta holds at most 8e13 s.
        return datetime.timedelta(seconds=round(min(seconds * (self._max_steps - step), 1e13)))


def peak_bytes():
    """The most memory that this process has held."""
    # Where /proc has it: the other figure of a new process is that of its parent, if that held more.
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:
        return 1024 * int(next(line for line in status if line.startswith("VmHWM:")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
