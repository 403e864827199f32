"""Fuzz tests of every reader: a damaged file is read as a valid one, or refused with a one-line error.

Valid files are damaged at random, the same way in every run. A reader may raise no other error and no warning, must not
hang, needs little memory beyond the file's size, and leaves no file open.
"""

import contextlib
import hashlib
import io
import json
import math
import pathlib
import re
import signal
import tempfile
import tracemalloc
import types
import typing
import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from gpt2.config import GPT2Config
from gpt2.data import dataloader, download, tokenizer
from gpt2.data.conversation_loader import ConversationLoader
from gpt2.data.hellaswag import read_examples
from gpt2.errors import UnavailableError, UserError
from gpt2.formats import huggingface, llmc, tensors
from gpt2.formats.files import HEADER_BYTES
from gpt2.formats.run import newest_model
from gpt2.formats.training_state import DIGEST_BYTES
from gpt2.layout import parameter_layout
from gpt2.optimizer import AdamW
from gpt2.training import checkpoint
from gpt2.training.metrics import Metrics
from tests.support.examples import example_numbers, file_bytes, random_examples
from tests.support.vocabulary import byte_vocabulary, pin_byte_vocabulary

CONFIG = GPT2Config(maxT=5, V=7, L=1, NH=2, C=4)
LAYOUT = parameter_layout(CONFIG)
SEEDS, EXAMPLES = 8, 35  # damaged folders per reader; those of one seed are similar
SECONDS = 60  # per folder: only a hang takes that long
SPARE_BYTES = 300_000  # what a reader may allocate beyond 4 times the files' size
LONGEST_MESSAGE = 1000  # characters

# What replaces a number in a damaged file: as int32, and as JSON.
NUMBERS = (0, 1, -1, 2, 3, 5, 127, 128, 2**15, 2**16 - 1, 2**16, 46341, 2**24, 2**30, 2**31 - 1, -(2**31))
TEXTS = (
    *(b"0", b"-1", b"1e999", b"0.5", b"NaN", b"9" * 20, b"9" * 5000, b"null", b"true", b"{}", b"[[]]", b"[" * 5000),
    *(b'""', b'"../x"', b'"/"', b'"\\n\\u2028\\u001b"', b'"\\ud800"', b'"\n"', b'"%s"' % (b"x" * 5000), b"\xff", b","),
)
WORD = re.compile(rb'"[^"]*"|[\w.+-]+')  # a JSON key or value


class Reader(typing.NamedTuple):
    """A reader under test.

    folders: valid ones, each a dict of part -> bytes. read: a function of the folder's path that asserts that what it
    reads is valid. assemble: turns the parts into a dict of file name -> bytes. accepts: the outcomes for damaged
    files, each of which must occur.
    """

    folders: list
    read: typing.Callable
    assemble: typing.Callable = dict
    accepts: tuple = (True, False)


def parameters():
    params = np.random.default_rng(0).standard_normal(LAYOUT.size).astype(np.float32)
    params[CONFIG.V * CONFIG.C : CONFIG.Vp * CONFIG.C] = 0
    return params


def header(*values):
    return np.array([*values, *[0] * (256 - len(values))], "<i4").tobytes()


def model_folders():
    sizes, params = (CONFIG.maxT, CONFIG.V, CONFIG.L, CONFIG.NH, CONFIG.C), parameters()
    bodies = {
        1: np.concatenate([params[: CONFIG.V * CONFIG.C], params[CONFIG.Vp * CONFIG.C :]]),
        3: params,
        5: (params.view(np.uint32) >> 16).astype("<u2"),
    }
    return [
        {"model.bin": header(llmc.MODEL_MAGIC, version, *sizes, 0 if version == 1 else CONFIG.Vp) + body.tobytes()}
        for version, body in bodies.items()
    ]


def read_model(folder):
    config, params = llmc.load_model(folder / "model.bin")
    check_model(config, params)
    assert not params[config.V * config.C : config.Vp * config.C].any()


def check_model(config, params):
    assert params.dtype == np.float32 and params.shape == (parameter_layout(config).size,)
    assert np.isfinite(params).all()


def map_model(folder):
    config, params = llmc.map_model(folder / "model.bin")
    assert params.dtype == np.float32 and params.shape == (parameter_layout(config).size,)


def token_folders():
    tokens = np.arange(30) % CONFIG.V
    return [
        {"tokens.bin": header(20240520, 1, 30) + tokens.astype("<u2").tobytes()},
        {"tokens.bin": tokens.astype("<i4").tobytes()},
    ]


def read_tokens(folder):
    loader = dataloader.DataLoader(folder / "tokens.bin", 2, 3, CONFIG.V)
    for _ in range(loader.num_batches):
        for ids in loader.next_batch():
            assert ids.shape == (2, 3) and ids.min() >= 0 and ids.max() < CONFIG.V


def map_tokens(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataloader, "READ_BYTES", 0)
        read_tokens(folder)


def conversation_folders():
    lengths, counts = np.array([9, 2, 12, 7], "<i4"), np.arange(30) % 3 > 0
    body = (np.arange(30) % CONFIG.V).astype("<u2").tobytes() + lengths.tobytes() + np.packbits(counts).tobytes()
    return [{"talks.bin": header(20240520, 2, 30, *[0] * 8, 4) + body}]


def read_conversations(folder):
    with contextlib.redirect_stdout(io.StringIO()):  # says which conversations are too long
        loader = ConversationLoader(folder / "talks.bin", 2, 10, CONFIG.V, 1)
    for _ in range(loader.num_batches):
        tokens, targets = loader.next_batch()
        assert tokens.shape == targets.shape and 0 < tokens.shape[0] <= 2 and 0 < tokens.shape[1] <= 10
        assert tokens.min() >= 0 and tokens.max() < CONFIG.V
        assert targets.min() >= -1 and targets.max() < CONFIG.V and (targets >= 0).any(axis=1).all()


def state_folders():
    rng = np.random.default_rng(0)
    ids = rng.integers(0, CONFIG.V, 12).astype("<i4")
    numbers = rng.standard_normal(6 * CONFIG.V + 1 + LAYOUT.size).astype("<f4")
    return [{"state.bin": header(llmc.STATE_MAGIC, llmc.STATE_VERSION, 2, 3) + ids.tobytes() + numbers.tobytes()}]


def read_state(folder):
    state = llmc.read_state(folder / "state.bin", CONFIG)
    B, T = state.inputs.shape
    assert state.targets.shape == (B, T) and state.logits.shape == (B, T, CONFIG.V) and type(state.loss) is float
    assert {name: grad.shape for name, grad in state.grads.items()} == LAYOUT.shapes
    for ids in (state.inputs, state.targets):
        assert ids.min() >= 0 and ids.max() < CONFIG.V


def foreign_folders():
    """Hugging Face folders, with model.safetensors in two parts: one per dtype, one of them with a head."""
    sizes = {key: getattr(CONFIG, name) for name, key in huggingface.FOREIGN_SIZES.items()}
    config = json.dumps({"model_type": "gpt2", "n_inner": None} | sizes | huggingface.required_fields()).encode()
    shapes = {name: shape for name, _, _, shape in huggingface._pieces(CONFIG)}
    with_head = {f"transformer.{name}": shape for name, shape in shapes.items()}
    with_head |= {"transformer.h.0.attn.bias": (5, 5), huggingface.HEAD: shapes["wte.weight"]}
    folders = []
    for (code, dtype), names in zip(tensors.DTYPES.items(), (shapes, with_head, shapes), strict=True):
        entries, body = {"__metadata__": {"format": "pt"}}, b""
        for name, shape in names.items():
            numbers = np.random.default_rng(len(shape)).standard_normal(math.prod(shape)).astype(np.float32)
            part = numbers.view("<u2")[1::2] if dtype == "bfloat16" else numbers.astype(dtype)
            offsets = [len(body), len(body) + part.nbytes]
            entries[name] = {"dtype": code, "shape": shape, "data_offsets": offsets}
            body += part.tobytes()
        folders.append({"config.json": config, "header": json.dumps(entries).encode(), "tensors": body})
    return folders


def with_length(parts):
    """Assembles a Hugging Face folder whose header length is right, however damaged the header."""
    head = parts["header"]
    weights = len(head).to_bytes(8, "little") + head + parts["tensors"]
    return {"config.json": parts["config.json"], "model.safetensors": weights}


def read_foreign(folder):
    check_model(*huggingface.load_folder(folder))


def evaluation_folders():
    rng = np.random.default_rng(0)
    examples = enumerate(random_examples(5, rng, CONFIG))
    return [{"eval.bin": file_bytes([example_numbers(i, *each) for i, each in examples])}]


def read_evaluation(folder):
    for example in read_examples(folder / "eval.bin", CONFIG):
        assert len(example.completions) == 4 and 0 <= example.label < 4
        for tokens in (example.context, *example.completions):
            assert 0 < tokens.size <= CONFIG.maxT and tokens.max() < CONFIG.V


def read_vocabulary(folder):
    def refuse(*args):
        raise UnavailableError("no network")

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(None):
        pin_byte_vocabulary(patch)
        patch.setenv("TIKTOKEN_CACHE_DIR", "")
        patch.setattr(download, "download", refuse)
        patch.setattr(download, "download_package", refuse)
        assert tokenizer.load_tokenizer(folder).encode_ordinary("a t") == [ord("a") - 33, 256]


def optimizer():
    """An optimizer of a stub of a model, to save in a checkpoint and to load one into."""
    model = types.SimpleNamespace(config=CONFIG, params_flat=parameters(), is_untrained=False, vocabulary=None)
    adamw = AdamW(model)
    adamw.m, adamw.v = np.arange(2 * LAYOUT.size, dtype=np.float32).reshape(2, -1)
    adamw.steps = 7
    return adamw


def checkpoint_folders():
    """Run folders with one checkpoint and with two."""
    folders = []
    for steps in ((3,), (3, 5)):
        with tempfile.TemporaryDirectory() as folder:
            for step in steps:
                saved = optimizer()
                saved.m += step
                saved.model.params_flat[0] = step
                progress = {"step": step, "position": [0, 2], "train_loss": 2.5, "options": {"max_steps": 9}}
                checkpoint.save(folder, saved.model, saved, progress, keep=2)
            folders.append({path.name: path.read_bytes() for path in pathlib.Path(folder).iterdir()})
    return folders


def read_checkpoint(folder):
    """Whatever is damaged, the checkpoint found is one that was saved."""
    reports = []
    found = checkpoint.find(folder, reports.append)
    for report in reports:
        check_message(report, folder)
    files = CHECKPOINTS[1]
    assert found.model.read_bytes() == files[found.model.name] and found.state.read_bytes() == files[found.state.name]
    assert found.progress["step"] == found.step and found.progress["position"] == [0, 2]
    target = optimizer()
    found.load_state(target)
    assert np.array_equal(target.m, optimizer().m + found.step) and np.array_equal(target.v, optimizer().v)


def sealed_folders():
    """One checkpoint, its state in parts."""
    state = CHECKPOINTS[0]["state_00000003.bin"]
    start, end = HEADER_BYTES, len(state) - DIGEST_BYTES
    middle = end - 2 * 4 * LAYOUT.size
    parts = {"header": state[:start], "facts": state[start:middle], "moments": state[middle:end]}
    return [parts | {"model": CHECKPOINTS[0]["model_00000003.bin"]}]


def sealed(parts):
    """Assembles a checkpoint whose length and checksum are right, however damaged its contents."""
    length = len(parts["facts"]).to_bytes(4, "little")
    body = parts["header"][:8] + length + parts["header"][12:] + parts["facts"] + parts["moments"]
    return {"model_00000003.bin": parts["model"], "state_00000003.bin": body + hashlib.sha256(body).digest()}


def read_sealed(folder):
    found = checkpoint.find(folder, lambda report: check_message(report, folder))
    assert found.step == found.progress["step"] == 3 and found.optimizer_steps >= 0
    found.load_state(optimizer())


def read_manifest(folder):
    path = newest_model(folder)
    assert path.parent == folder and path.is_file()


def metrics_folders():
    records = [{"step": step, "train_loss": 3.0 - step / 8, "val_loss": None, "ms": 1} for step in (*range(8), 5, 6)]
    return [{"metrics.jsonl": "".join(json.dumps(record) + "\n" for record in records).encode()}]


def read_metrics(folder):
    with contextlib.redirect_stdout(None):
        metrics = Metrics.resume(folder, folder, 6)
    *lines, rest = metrics.path.read_bytes().split(b"\n")
    assert rest == b""
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps)) and (not steps or 0 <= steps[0] <= steps[-1] <= 6)
    drawn, losses = metrics.losses("train_loss")
    assert drawn.shape == losses.shape and set(drawn) <= set(steps)


CHECKPOINTS = checkpoint_folders()
READERS = {
    "model": Reader(model_folders(), read_model),
    "mapped model": Reader(model_folders(), map_model),
    "tokens": Reader(token_folders(), read_tokens),
    "mapped tokens": Reader(token_folders(), map_tokens),
    "conversations": Reader(conversation_folders(), read_conversations),
    "reference state": Reader(state_folders(), read_state),
    "safetensors folder": Reader([with_length(parts) for parts in foreign_folders()], read_foreign),
    "safetensors header": Reader(foreign_folders(), read_foreign, with_length),
    "evaluation": Reader(evaluation_folders(), read_evaluation),
    "vocabulary": Reader([byte_vocabulary()], read_vocabulary, accepts=(False,)),
    "checkpoint": Reader(CHECKPOINTS, read_checkpoint),
    "sealed checkpoint": Reader(sealed_folders(), read_sealed, sealed),
    "manifest": Reader(
        [{checkpoint.MANIFEST: CHECKPOINTS[1][checkpoint.MANIFEST]}],
        read_manifest,
        lambda parts: parts | {"model_00000003.bin": b"", "model_00000005.bin": b""},
    ),
    "metrics": Reader(metrics_folders(), read_metrics, accepts=(True,)),
}
DONORS = [part for reader in READERS.values() for part in reader.folders[0].values()]


@st.composite
def positions(draw, data):
    """Any position, but mostly in the first header fields, just after the header, or near the end."""
    end = len(data)
    first, last = draw(st.sampled_from(((0, 40), (1024, 1064), (end * 3 // 4, end), (0, end))))
    return draw(st.integers(min(first, end), min(last, end)))


@st.composite
def flip(draw, data):
    position, bit = draw(positions(data)), draw(st.integers(0, 7))
    return data[:position] + bytes(byte ^ 1 << bit for byte in data[position : position + 1]) + data[position + 1 :]


@st.composite
def overwrite_number(draw, data):
    size = draw(st.sampled_from((2, 4)))
    position = draw(positions(data)) // size * size
    number = draw(st.sampled_from(NUMBERS) | st.integers(-(2**31), 2**31 - 1))
    return data[:position] + np.int32(number).tobytes()[:size] + data[position + size :]


@st.composite
def overwrite_word(draw, data):
    words = [match.span() for match in WORD.finditer(data)] or [(0, 0)]
    (start, end), (other, its_end) = draw(st.sampled_from(words)), draw(st.sampled_from(words))
    return data[:start] + draw(st.sampled_from((*TEXTS, data[other:its_end]))) + data[end:]


@st.composite
def truncate(draw, data):
    return data[: draw(positions(data))]


@st.composite
def extend(draw, data):
    return data + draw(st.binary(min_size=1, max_size=16))


@st.composite
def duplicate(draw, data):
    start, end = sorted((draw(positions(data)), draw(positions(data))))
    return data[:end] + data[start:]


@st.composite
def delete(draw, data):
    start, end = sorted((draw(positions(data)), draw(positions(data))))
    return data[:start] + data[end:]


@st.composite
def randomise(draw, data):
    start, new = draw(positions(data)), draw(st.binary(max_size=16))
    return data[:start] + new + data[start + len(new) :]


@st.composite
def splice(draw, data):
    donor = draw(st.sampled_from(DONORS))
    return data[: draw(positions(data))] + donor[draw(positions(donor)) :]


def replace(data):
    return st.sampled_from(TEXTS) | st.binary(max_size=64)


@st.composite
def damaged(draw, folders):
    """One of the folders, with one to three damages, each to one part."""
    parts = dict(draw(st.sampled_from(folders)))
    for _ in range(draw(st.sampled_from((1, 1, 2, 3)))):
        name = draw(st.sampled_from(sorted(parts)))
        overwrite = overwrite_word if parts[name][:1] == b"{" else overwrite_number
        others = (flip, truncate, extend, duplicate, delete, randomise, splice, replace)
        parts[name] = draw(draw(st.sampled_from((*[overwrite] * 5, *others)))(parts[name]))
    return parts


@contextlib.contextmanager
def limits(bytes):
    """Fails if the block hangs, allocates more than `bytes`, or warns, for example of a file left open."""

    def hang(*args):
        pytest.fail(f"still reading after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    tracemalloc.start()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert [str(each.message) for each in caught] == []
    assert peak <= bytes


def check_message(message, folder):
    """Asserts that a message is one line that starts with a path in the folder or names one of its files."""
    assert message.isprintable() and len(message) <= LONGEST_MESSAGE
    assert message.startswith(str(folder)) or any(path.name in message for path in folder.iterdir())


def put(files, folder):
    """Makes these the folder's only files. Returns their total size in bytes."""
    for path in folder.iterdir():
        path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return sum(map(len, files.values()))


def is_accepted(read, folder):
    try:
        read(folder)
    except UserError as error:
        check_message(str(error), folder)
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_damaged_files_are_read_or_refused_in_one_line(tmp_path, reader):
    reached = set()

    @hypothesis.settings(
        max_examples=EXAMPLES, database=None, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
    )
    @hypothesis.given(damaged(reader.folders))
    def check(parts):
        size = put(reader.assemble(parts), tmp_path)
        with limits(4 * size + SPARE_BYTES):
            accepted = is_accepted(reader.read, tmp_path)
        if parts not in reader.folders:
            assert accepted in reader.accepts
            reached.add(accepted)

    # Without limits first, because of one-time costs such as imports.
    for parts in reader.folders:
        put(reader.assemble(parts), tmp_path)
        assert is_accepted(reader.read, tmp_path)
    for seed in range(SEEDS):
        hypothesis.seed(seed)(check)()
    assert reached == set(reader.accepts), "the damage never led to one of the outcomes"
