"""The training loop: train, validate, sample, log, save."""

import math
import pathlib
import resource
import shutil
import sys
import time

import numpy as np
from tqdm import tqdm

from gpt2 import tokenizer, weights
from gpt2.config import PRESETS, GPT2Config
from gpt2.context import Context
from gpt2.dataloader import DataLoader
from gpt2.decoder import prepare_kernels
from gpt2.errors import UnavailableError, UserError, from_os_error
from gpt2.kernels.threads import set_threads
from gpt2.memory import require
from gpt2.metrics import Metrics
from gpt2.model import GPT2, activation_layout
from gpt2.optimizer import AdamW, clip_scale, gradient_norm, learning_rate
from gpt2.progress import compilation_shown
from gpt2.sampling import Sampling, generate

DATA = pathlib.Path("data")
# From trained weights: llm.c's. From random ones: of the rates tried from 3e-4 to 2e-3, the higher ones sent the
# validation loss up on the way through 40 steps of the default batch.
FINE_TUNING = {"learning_rate": 1e-4, "warmup_steps": 0}
FROM_SCRATCH = {"learning_rate": 3e-4, "warmup_steps": 10}


def train(options):
    """Runs what the options of train_gpt2.py (see its --help) ask for."""
    started = time.perf_counter()
    set_threads(options.threads)
    out_dir = _output_folder(options.out_dir)
    train_files = _data_files(options.train_data, "train")
    val_files = _data_files(options.val_data, "val") if options.val_every else None
    model, pretrained = _initial_model(options)
    recipe = FINE_TUNING if pretrained else FROM_SCRATCH
    peak_lr = recipe["learning_rate"] if options.learning_rate is None else options.learning_rate
    warmup_steps = recipe["warmup_steps"] if options.warmup_steps is None else options.warmup_steps

    B, T = options.batch_size, options.seq_len
    if model.config.maxT < T:
        raise UserError(f"--seq-len {T}: the model's positions end at {model.config.maxT}")
    train_loader = DataLoader(train_files, B, T, model.config.V)
    val_loader = DataLoader(val_files, B, T, model.config.V) if val_files else None
    _check_room(model, B, T, out_dir)
    _describe(options, model, train_loader, val_loader, peak_lr, warmup_steps)
    _compile_kernels()

    optimizer = AdamW(model, options.beta1, options.beta2, options.eps, options.weight_decay)
    sampler = Sampler(model, options) if options.sample_every else None
    width = len(str(options.max_steps))
    metrics = Metrics(out_dir)
    if val_loader:
        metrics.write({"step": 0, "val_loss": _validate(model, val_loader, options.val_batches)})
    for step in range(1, options.max_steps + 1):
        lr = learning_rate(
            step - 1, options.lr_schedule, peak_lr, warmup_steps, options.max_steps, options.final_lr_fraction
        )
        record = {"step": step} | _train_step(model, optimizer, train_loader, lr, options)
        print(_step_line(record, width, options.max_steps), flush=True)
        if not (math.isfinite(record["train_loss"]) and math.isfinite(record["grad_norm"])):
            raise UserError(f"the loss or the gradient is not finite at step {step}: try a lower --learning-rate")
        if val_loader and _due(step, options.val_every, options.max_steps):
            record["val_loss"] = _validate(model, val_loader, options.val_batches)
        metrics.write(record)
        if _due(step, options.sample_every, options.max_steps):
            sampler.show()
    model.save(out_dir / "model.bin")
    metrics.draw()
    print(f"model saved to {out_dir / 'model.bin'}, losses to {metrics.path} and {metrics.picture}")
    minutes = (time.perf_counter() - started) / 60
    print(f"{options.max_steps} steps in {minutes:.1f} minutes all told, peak memory {_peak_bytes() / 1e9:.2f} GB")


def _train_step(model, optimizer, loader, lr, options):
    """One update of the parameters; returns its record."""
    forward = backward = loss = 0.0
    start = time.perf_counter()
    for micro_step in range(options.grad_accum_steps):
        if options.overfit_single_batch:
            loader.reset()
        tokens, targets = loader.next_batch()
        before = time.perf_counter()
        loss += model.forward(tokens, targets, accumulate=micro_step > 0) / options.grad_accum_steps
        between = time.perf_counter()
        model.backward()
        forward += between - before
        backward += time.perf_counter() - between
    update_start = time.perf_counter()
    scale = 1 / options.grad_accum_steps
    if options.grad_clip:
        scale *= clip_scale(scale * gradient_norm(model), options.grad_clip)
    norm = optimizer.step(lr, scale) / options.grad_accum_steps
    end = time.perf_counter()
    return {
        "train_loss": loss,
        "grad_norm": norm,
        "lr": lr,
        "forward_ms": 1e3 * forward,
        "backward_ms": 1e3 * backward,
        "update_ms": 1e3 * (end - update_start),
        "tokens_per_s": options.batch_size * options.seq_len * options.grad_accum_steps / (end - start),
    }


def _step_line(record, width, max_steps):
    return (
        "step {step:{width}d}/{max_steps} | train loss {train_loss:.6f} | norm {grad_norm:.4f} | lr {lr:.2e} | "
        "forward {forward_ms:.0f} ms | backward {backward_ms:.0f} ms | update {update_ms:.0f} ms | "
        "{tokens_per_s:.0f} tok/s"
    ).format(width=width, max_steps=max_steps, **record)


def _due(step, every, max_steps):
    """Whether what happens every so many steps (0: never) and at the end happens after this one."""
    return every > 0 and (step % every == 0 or step == max_steps)


def _validate(model, loader, batches):
    """Prints and returns the mean loss over the first `batches` of the validation data, 0 for all of them."""
    loader.reset()
    count = min(batches or loader.num_batches, loader.num_batches)
    losses = [
        model.forward(*loader.next_batch())
        for _ in tqdm(range(count), desc="validating", leave=False, disable=None, delay=2)
    ]
    loss = math.fsum(losses) / count
    print(f"val loss {loss:.6f}", flush=True)
    return loss


class Sampler:
    """Shows text that the model writes, from one random stream over the whole run."""

    def __init__(self, model, options):
        self.model, self.count = model, options.sample_tokens
        self.rng = np.random.default_rng(options.seed)
        self.encoding = self._encoding()
        self.prompt_text = options.prompt
        if not options.prompt:
            # The last token of GPT-2's vocabulary is <|endoftext|>, which stands before every document.
            self.prompt = [model.config.V - 1]
        elif self.encoding:
            self.prompt = self.encoding.encode_ordinary(options.prompt)
        else:
            raise UserError("--prompt needs GPT-2's vocabulary, which is not there or not the model's")
        length = min(model.config.maxT, len(self.prompt) + self.count)
        self.context = Context(model.config, model.params_flat, length=length)

    def _encoding(self):
        if self.model.config.V != tokenizer.EOT + 1:
            print("the model's vocabulary is not GPT-2's: samples are shown as token ids")
            return None
        try:
            return tokenizer.load_tokenizer(DATA)
        except UserError as error:
            print(f"samples are shown as token ids: {error}")
            return None

    def show(self):
        """Generates and prints one sample."""
        self.context.forget(self.context.tokens.size)
        self.context.add([self.prompt])
        tokens = [token.id for (token,) in generate(self.context, self.count, Sampling(), [self.rng])]
        text = " ".join(map(str, tokens)) if self.encoding is None else self.encoding.decode(tokens)
        print(f"--- sample ---\n{self.prompt_text}{text}\n--------------", flush=True)


def _initial_model(options):
    """Returns the model to start from, and whether its weights were trained before."""
    if options.init == "scratch":
        return GPT2(PRESETS["gpt2"], options.seed), False
    try:
        return GPT2.from_pretrained(options.init, DATA), True
    except UnavailableError as error:
        if options.init != "gpt2":
            raise
        print(
            f"GPT-2's released weights cannot be had: {error}. The run starts from random weights instead: "
            "expect a loss of 11 at first and no sensible text. Once the network is there, this command fetches them, "
            f"and the next run starts from them: {weights.FETCH_COMMAND}",
            flush=True,
        )
        return GPT2(PRESETS["gpt2"], options.seed), False


def _data_files(named, split):
    """The files named for a split, or TinyShakespeare's, or those of the plays that stand in for it."""
    if named:
        return named
    tiny, plays = (DATA / f"{name}_{split}.bin" for name in ("tiny_shakespeare", "shakespeare"))
    if tiny.exists():
        return tiny
    if not plays.exists():
        raise UserError(
            f"{tiny}: no such file; make it with: python prepro_tinyshakespeare.py, or name another with --{split}-data"
        )
    print(f"{tiny} is not there, {plays} (the complete plays) stands in for it: losses are not comparable")
    return plays


def _output_folder(path):
    """Makes the output folder; raises UserError if nothing can be written there."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise from_os_error(error, folder) from error
    return folder


def _check_room(model, B, T, out_dir):
    """Raises UserError if the run does not fit into memory, or its model not onto the disk."""
    itemsize = model.params_flat.itemsize
    needed = itemsize * (3 * model.params_flat.size + activation_layout(model.config, B, T).size)
    require(needed, f"training at --batch-size {B} --seq-len {T}, beside the parameters,")
    free = shutil.disk_usage(out_dir).free
    if free < model.params_flat.nbytes:
        raise UserError(
            f"{out_dir}: the trained model needs {model.params_flat.nbytes / 1e9:.3g} GB of disk, "
            f"{free / 1e9:.3g} GB are free; free some or choose another --out-dir"
        )


def _describe(options, model, train_loader, val_loader, peak_lr, warmup_steps):
    config = model.config
    print(f"[GPT-2] maxT {config.maxT} | V {config.V} | Vp {config.Vp} | L {config.L} | NH {config.NH} | C {config.C}")
    print(f"number of parameters: {config.num_parameters:,}")
    for name, tensor in model.params.items():
        print(f"  {name:9s}{tensor.size:>12,}  {tensor.shape}")
    print(f"[data] {train_loader.num_tokens:,} tokens, {train_loader.num_batches:,} training batches an epoch")
    if val_loader:
        print(f"[data] {val_loader.num_tokens:,} tokens, {val_loader.num_batches:,} validation batches")
    print(
        f"[run] B {options.batch_size} | T {options.seq_len} | accumulation {options.grad_accum_steps} | "
        f"{options.max_steps} steps | lr {peak_lr:g} {options.lr_schedule}, warm-up {warmup_steps} | "
        f"seed {options.seed} | threads {options.threads}"
    )


def _compile_kernels():
    """Runs every kernel once, on a model of a few numbers: the first run compiles them, later ones read them back."""
    start = time.perf_counter()
    model = GPT2(GPT2Config(maxT=4, V=4, L=1, NH=1, C=4))
    tokens = np.zeros((1, 4), np.int32)
    with compilation_shown():
        model.forward(tokens, tokens)
        model.backward()
        gradient_norm(model)
        AdamW(model).step(1e-4)
        prepare_kernels()
    print(f"kernels ready after {time.perf_counter() - start:.1f} s", flush=True)


def _peak_bytes():
    """The most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
