"""What every option of a run does: to the numbers, as the float64 reference computes them, or to what it leaves."""

import dataclasses
import functools
import math
import re
import shutil

import numba
import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.data.conversation_loader import ConversationLoader
from gpt2.data.dataloader import DataLoader
from gpt2.errors import UserError
from gpt2.formats.conversation_file import Conversations, write_conversations
from gpt2.formats.llmc import write_tokens
from gpt2.formats.run import best_steps, steps
from gpt2.machine import available_threads, set_threads
from gpt2.training import loop, setup, state
from gpt2.training.health import OutlierDetector
from gpt2.training.options import FINE_TUNING, FROM_SCRATCH, TrainOptions
from tests import reference
from tests.support.numeric import randomise, relative_error
from tests.support.runs import model_bytes, records, train_losses
from tests.support.vocabulary import shrink_gpt2

CONFIG = GPT2Config(maxT=16, V=50, L=2, NH=2, C=12)
BABY = GPT2Config(maxT=10, V=1, L=1, NH=4, C=16)  # another V: the data's is what counts
SIZES = {"context": "maxT", "layers": "L", "heads": "NH", "channels": "C"}
TOLERANCE = 1e-5
WINDOW = 4  # of the outlier detectors: 128 would take as many steps to fill
BASE = TrainOptions(
    init="tiny.bin",
    train_data="train.bin",
    val_data="val.bin",
    batch_size=2,
    seq_len=8,
    max_steps=10,
    lr_schedule="constant",
    learning_rate=1e-2,
    warmup_steps=0,
    grad_clip=0.0,
    eps=1e-3,
    val_every=0,
    sample_every=0,
    grad_accum_steps=1,
    threads=1,
)

# (option, value, other options under which it matters).
COMPUTED = [
    ("init", "other.bin", {}),
    ("init", "scratch", {}),
    ("size", "baby", {"init": "scratch"}),
    ("layers", 1, {"init": "scratch"}),
    ("heads", 3, {"init": "scratch"}),
    ("channels", 8, {"init": "scratch", "size": "baby"}),
    ("context", 8, {"init": "scratch"}),
    ("context", 5, {"init": "scratch", "seq_len": None}),
    ("seed", 7, {"init": "scratch"}),
    ("seed", 7, {"shuffle": True}),
    ("train_data", ("other-1.bin",), {}),
    ("train_data", ("other-*.bin",), {}),
    ("shuffle", True, {}),
    ("shuffle", "llmc", {}),
    ("batch_size", 3, {}),
    ("seq_len", 5, {}),
    ("grad_accum_steps", 3, {}),
    ("overfit_single_batch", True, {}),
    ("overfit_single_batch", True, {"grad_accum_steps": 2}),
    ("max_steps", 7, {}),
    ("max_steps", 7, {"lr_schedule": "linear"}),
    ("epochs", 2, {"max_steps": None}),
    ("epochs", 2, {"max_steps": None, "grad_accum_steps": 3, "lr_schedule": "linear"}),
    ("learning_rate", 2e-2, {}),
    ("lr_schedule", "linear", {}),
    ("lr_schedule", "cosine", {}),
    ("lr_schedule", "wsd", {}),
    ("warmup_steps", 4, {}),
    ("warmup_steps", 4, {"lr_schedule": "cosine"}),
    ("final_lr_fraction", 0.25, {"lr_schedule": "linear"}),
    ("final_lr_fraction", 0.25, {"lr_schedule": "cosine"}),
    ("final_lr_fraction", 0.25, {"lr_schedule": "wsd"}),
    ("beta1", 0.5, {}),
    ("beta2", 0.9, {}),
    ("eps", 1e-2, {}),
    ("weight_decay", 0.1, {}),
    ("dropout", 0.2, {}),
    ("dropout", 0.2, {"grad_accum_steps": 3}),
    ("seed", 7, {"dropout": 0.2}),
    ("grad_clip", 0.1, {}),
    ("grad_clip", 0.1, {"grad_accum_steps": 2}),
    ("skip_spikes", 1.2, {}),
    ("loss_on", "all", {"train_data": ("talks.bin",)}),
    ("loss_on", "all", {"train_data": ("talks.bin",), "grad_accum_steps": 3}),
    ("grad_accum_steps", 3, {"train_data": ("talks.bin",)}),
    ("epochs", 3, {"train_data": ("talks.bin",), "max_steps": None}),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with two models and random tokens: one file to train on, or two others, and one to validate on."""
    folder, rng = tmp_path_factory.mktemp("options"), np.random.default_rng(0)
    for name in ("tiny.bin", "other.bin"):
        model = GPT2(CONFIG)
        randomise(model, rng)
        model.save(folder / name)
    for name, count in (("train", 170), ("other-1", 90), ("other-2", 60), ("val", 100)):
        write_tokens(folder / f"{name}.bin", rng.integers(0, CONFIG.V, count))
    lengths = rng.integers(2, 10, 19).astype(np.int32)
    counts = rng.random(lengths.sum()) < 0.4
    counts[np.cumsum(lengths) - 1] = True
    talks = Conversations(rng.integers(0, CONFIG.V, lengths.sum()).astype(np.uint16), lengths, counts)
    with open(folder / "talks.bin", "wb") as file:
        write_conversations(file, talks)
    return folder


@pytest.fixture
def folder(files, tmp_path, monkeypatch):
    """A working folder with those files, in which GPT-2 is a tiny model and its vocabulary the first 50 bytes."""
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shrink_gpt2(monkeypatch, CONFIG)
    monkeypatch.setitem(setup.PRESETS, "baby", BABY)
    monkeypatch.setattr(state, "OutlierDetector", functools.partial(OutlierDetector, WINDOW))
    yield tmp_path
    set_threads(available_threads())


LOGGED = ("train_loss", "grad_norm", "lr")


@functools.cache
def train(options):
    """Returns (dict of "train_loss", "grad_norm" and "lr" -> value at each step, dict of the final parameters)."""
    result = loop.train(options)
    logged = [record for record in records(options.out_dir) if record["step"]]
    return {key: [record[key] for record in logged] for key in LOGGED}, result.state.model.params


def expected(options, broken=()):
    """What `train` returns, in float64. broken: steps whose gradient is not finite, and which are skipped."""
    config = model_config(options)
    T = min(64, config.maxT) if options.seq_len is None else options.seq_len
    if options.train_data == ("talks.bin",):
        rest = options.seed, options.loss_on, options.grad_accum_steps
        loader = ConversationLoader(options.train_data, options.batch_size, T, CONFIG.V, *rest)
    else:
        loader = DataLoader(options.train_data, options.batch_size, T, CONFIG.V, shuffle_seed(options))
    model = GPT2(config, options.seed) if options.init == "scratch" else GPT2.load(options.init)
    max_steps = 40 if options.max_steps is None else options.max_steps
    if options.epochs is not None:
        max_steps = math.ceil(options.epochs * loader.num_batches / options.grad_accum_steps)
    params = {name: tensor.astype(np.float64) for name, tensor in model.params.items()}
    moments = {name: (np.zeros(tensor.shape), np.zeros(tensor.shape)) for name, tensor in params.items()}
    logged, updates = {key: [] for key in LOGGED}, 0
    for step in range(1, max_steps + 1):
        loss, grads = mean_gradients(options, params, config, loader, step)
        norm, lr = math.sqrt(sum(np.sum(grad**2) for grad in grads.values())), learning_rate(options, step, max_steps)
        for key, value in zip(LOGGED, (loss, norm, lr), strict=True):
            logged[key].append(value)
        if step in broken or (options.skip_spikes and is_spike(logged, options.skip_spikes)):
            continue
        updates += 1
        scale = min(1, options.grad_clip / norm) if options.grad_clip else 1
        for name, grad in grads.items():
            decay = options.weight_decay if name in reference.DECAYED else 0.0
            settings = lr, options.beta1, options.beta2, options.eps, decay
            params[name], *moments[name] = reference.adamw(
                params[name], scale * grad, *moments[name], updates, *settings
            )
    return logged, params


def model_config(options):
    """The sizes of the model that the options name."""
    given = {SIZES[name]: getattr(options, name) for name in SIZES if getattr(options, name) is not None}
    return dataclasses.replace(BABY if options.size else CONFIG, V=CONFIG.V, **given)


def shuffle_seed(options):
    return options.seed if options.shuffle is True else options.shuffle or None


def mean_gradients(options, params, config, loader, step):
    """Returns (loss, gradients), each the mean over the targets in all micro-batches of a step."""
    parts, weights = [], []
    for micro_step in range(options.grad_accum_steps):
        if options.overfit_single_batch:
            loader.reset()
        mask = reference.dropout_masks(options.dropout, options.seed, step, micro_step)
        tokens, targets = loader.next_batch()
        parts.append(reference.loss_and_gradients(params, config, tokens, targets, mask))
        weights.append(np.count_nonzero(targets >= 0))
    losses, grads = zip(*parts, strict=True)
    mean = functools.partial(np.average, axis=0, weights=weights)
    return mean(losses), {name: mean([grad[name] for grad in grads]) for name in params}


def learning_rate(options, step, max_steps):
    """The learning rate of a step, counted from 1."""
    if step <= options.warmup_steps:
        return options.learning_rate * step / options.warmup_steps
    done = (step - 1 - options.warmup_steps) / (max_steps - options.warmup_steps)
    left = {
        "constant": 1,
        "linear": 1 - done,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * done),
        "wsd": min(1, (max_steps - step + 1) / (max_steps // 5)),
    }[options.lr_schedule]
    final = 1 if options.lr_schedule == "constant" else options.final_lr_fraction
    return options.learning_rate * (final + (1 - final) * left)


def is_spike(logged, limit):
    """Whether the last loss or norm is more than `limit` standard deviations above the mean of its window."""
    windows = [np.array(logged[key][-WINDOW:]) for key in ("train_loss", "grad_norm")]
    full = len(logged["train_loss"]) > WINDOW
    return full and any(window[-1] > window.mean() + limit * window.std() for window in windows)


def difference(params, others):
    if any(params[name].shape != others[name].shape for name in params):
        return math.inf
    return relative_error(*(np.concatenate([tensor.ravel() for tensor in each.values()]) for each in (params, others)))


def assert_equals(run, logged, params):
    for key in LOGGED:
        assert run[0][key] == pytest.approx(logged[key], rel=TOLERANCE), key
    assert difference(run[1], params) < TOLERANCE


@pytest.mark.parametrize(("name", "value", "others"), COMPUTED)
def test_it_changes_the_run_as_the_reference_computes(folder, name, value, others):
    without = dataclasses.replace(BASE, **others)
    options = dataclasses.replace(without, **{name: value})
    assert_equals(train(options), *expected(options))
    assert difference(train(options)[1], train(without)[1]) > 20 * TOLERANCE


@pytest.mark.parametrize("others", [{}, {"grad_clip": 0.1, "grad_accum_steps": 2}])
def test_skip_nonfinite_skips_as_many_updates(folder, monkeypatch, others):
    overwrite, calls = GPT2.overwrite_gradients, []

    def break_some(self, *batch):
        loss = overwrite(self, *batch)
        if self.config == CONFIG:  # not the model that loads the kernels
            calls.append(None)
            if len(calls) in (3, 5):
                self.grads["fcw"][1, 2, 3] = np.nan
        return loss

    monkeypatch.setattr(GPT2, "overwrite_gradients", break_some)
    options = dataclasses.replace(BASE, skip_nonfinite=2, **others)
    result = loop.train(options)
    logged, params = expected(options, broken=(3, 5))
    assert list(result.train_losses.values()) == pytest.approx(logged["train_loss"], rel=TOLERANCE)
    assert difference(result.state.model.params, params) < TOLERANCE
    calls.clear()
    with pytest.raises(UserError, match=r"^step 5: the loss is "):
        loop.train(dataclasses.replace(options, skip_nonfinite=1))


@pytest.mark.parametrize(("init", "recipe"), [("tiny.bin", FINE_TUNING), ("scratch", FROM_SCRATCH)])
def test_the_recipe_of_a_run_that_is_given_none_depends_on_its_weights(folder, init, recipe):
    options = dataclasses.replace(BASE, init=init)
    left_open = dataclasses.replace(options, **dict.fromkeys(recipe))
    assert_equals(train(left_open), *expected(dataclasses.replace(options, **recipe)))
    for name, value in {"learning_rate": 0.0, "warmup_steps": 0, "grad_clip": 0.0}.items():  # 0 is no None
        with_zero = dataclasses.replace(options, **recipe | {name: value})
        assert_equals(train(dataclasses.replace(left_open, **{name: value})), *expected(with_zero))


SHOWN = dataclasses.replace(
    BASE, val_every=5, val_batches=2, sample_every=5, sample_tokens=4, checkpoint_every=4, keep=9
)
# (option, value, what then differs from what `left_by` returns for SHOWN).
NOT_COMPUTED = [
    ("val_data", ("train.bin",), {}),
    ("val_every", 4, {"validated": [0, 4, 8, 10]}),
    ("val_every", 0, {"validated": []}),
    ("val_batches", 3, {}),
    ("val_batches", 0, {}),
    ("sample_every", 3, {"samples": [4] * 4}),
    ("sample_every", 0, {"samples": []}),
    ("sample_tokens", 7, {"samples": [7, 7]}),
    ("prompt", "0//0", {}),
    ("out_dir", "a/b", {}),
    ("checkpoint_every", 3, {"saved": [10, 9, 6, 3]}),
    ("checkpoint_every", 0, {"saved": [10]}),
    ("keep", 2, {"saved": [10, 8]}),
    ("keep", 1, {"saved": [10]}),
    ("keep_best", True, {"best": [0]}),  # validation tokens are random: nothing is learnt for them
    ("threads", 2, {"threads": 2}),
    ("log_every", 4, {"lines": [4, 8, 10]}),
    ("log_every", 0, {"lines": [10]}),
    ("norms_every", 5, {"norms": [5, 10]}),
]


def left_by(options, capsys):
    """Trains; returns what options that change no number decide, with lengths in tokens for the samples."""
    capsys.readouterr()
    loop.train(options)
    printed = capsys.readouterr().out
    texts = re.findall(r"--- sample ---\n(.*?)\n-{14}\n", printed, re.DOTALL)
    written = records(options.out_dir)
    assert [record["sample"] for record in written if "sample" in record] == texts
    texts = [text.replace("<|endoftext|>", "e") for text in texts]  # one character a token
    assert all(text.startswith(options.prompt) for text in texts)
    val_losses = {record["step"]: record["val_loss"] for record in written if "val_loss" in record}
    assert len(written) == options.max_steps + bool(val_losses)  # whatever is printed
    if val_losses:
        assert val_losses[0] == pytest.approx(validation_loss(options), rel=TOLERANCE)
    return {
        "validated": list(val_losses),
        "samples": [len(text) - len(options.prompt) for text in texts],
        "saved": steps(options.out_dir),
        "best": best_steps(options.out_dir),
        "threads": numba.get_num_threads(),
        "lines": [int(step) for step in re.findall(r"^step +(\d+)/10 ", printed, re.MULTILINE)],
        "norms": [record["step"] for record in written if "norms" in record],
    }


def validation_loss(options):
    loader = DataLoader(options.val_data, options.batch_size, options.seq_len, CONFIG.V)
    params = GPT2.load(options.init).params
    batches = [loader.next_batch() for _ in range(options.val_batches or loader.num_batches)]
    return np.mean([reference.loss_and_gradients(params, CONFIG, *batch)[0] for batch in batches])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value", "difference"), NOT_COMPUTED)
def test_it_leaves_the_numbers_as_they_are(folder, capsys, name, value, difference):
    base = {"validated": [0, 5, 10], "samples": [4, 4], "saved": [10, 8, 4], "best": [], "threads": 1}
    base |= {"lines": list(range(1, 11)), "norms": []}
    assert left_by(dataclasses.replace(SHOWN, out_dir="base"), capsys) == base
    options = dataclasses.replace(SHOWN, **{name: value})
    assert left_by(options, capsys) == base | difference
    assert train_losses(options.out_dir) == train_losses("base")
    assert model_bytes(options.out_dir, 10) == model_bytes("base", 10)


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_ends_a_run_after_so_many_validations_without_a_lower_loss(folder, monkeypatch, patience):
    losses = iter([4.0, 3.0, 3.5, 2.0, 2.0, 2.5, *[3.0] * 9])  # of steps 0 to 3, and so on
    monkeypatch.setattr(loop, "_validate", lambda *arguments: next(losses))
    options = dataclasses.replace(BASE, val_every=1, patience=patience)
    assert loop.train(options).state.step == {1: 2, 2: 5, 5: 8}[patience]


def test_validation_drops_nothing(folder):
    options = dataclasses.replace(BASE, val_every=10, val_batches=2, max_steps=0)
    losses = [loop.train(dataclasses.replace(options, dropout=p)).val_losses for p in (0.0, 0.5)]
    assert losses[0] == losses[1] and losses[0][0] == pytest.approx(validation_loss(options), rel=TOLERANCE)


def test_every_option_is_tested_here():
    tested = {name for name, *_ in COMPUTED + NOT_COMPUTED} | {"skip_nonfinite", "patience"}
    tested |= {"precision", "optimizer", "report_to", "timeout"}  # in files of their own
    assert tested == {field.name for field in dataclasses.fields(TrainOptions)}
