"""Evaluation against its definition, token by token in float64; and the command."""

import contextlib
import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.data import hellaswag
from gpt2.data.dataloader import DataLoader
from gpt2.data.hellaswag import read_examples
from gpt2.data.vocabulary import UnknownVocabulary
from gpt2.errors import UserError
from gpt2.evaluate import main
from gpt2.formats.llmc import write_tokens
from gpt2.inference import evaluation
from gpt2.inference.evaluation import (
    completion_losses,
    evaluate_hellaswag,
    evaluate_split,
    llmc_val_loss,
    split_losses,
    standard_error,
    token_lengths,
)
from gpt2.inference.warmup import prepare_kernels
from gpt2.machine import available_threads, set_threads
from gpt2.model import GPT2
from gpt2.training import loop
from gpt2.training.signals import StopSignals
from tests import reference
from tests.support.examples import random_examples, write_examples
from tests.support.foreign import foreign_model, require
from tests.support.numeric import assert_close, randomise
from tests.support.vocabulary import byte_level

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = GPT2Config(maxT=16, V=50, L=2, NH=2, C=12)


def random_model(config=CONFIG, seed=0):
    """A model in which every token's loss depends on all tokens before it."""
    model = GPT2(config)
    randomise(model, np.random.default_rng(seed))
    model.params["wpe"] *= 3
    return model


def reference_losses(model, tokens):
    """The loss of each token but the first, each given all before it, float64 (n - 1,); tokens: integers (n,)."""
    logits, _ = reference.forward(model.params, model.config, tokens[None, :-1])
    return reference.cross_entropy(logits, tokens[None, 1:])[0]


def brute_force(model, tokens, T):
    """The loss of each token but the first, each from its own pass over its intended context, float64 (n - 1,)."""
    N = tokens.size - 1
    T = min(T, N)
    losses = []
    for target in range(1, N + 1):
        end = min(T * math.ceil(target / T), N)
        losses.append(reference_losses(model, tokens[end - T : target + 1])[-1])
    return np.array(losses)


def recipe(mean_loss, tokens, max_length, stride):
    """The loop of Hugging Face's "Perplexity of fixed-length models", on one text of tokens, integers (n,).

    mean_loss(input_ids, target_ids): the model's loss, which shifts the labels and averages those that are not -100.
    Returns for each window (that loss, the number of labels it averages, and what the recipe takes for that number: one
    less if the label that the shift drops was -100 already).
    """
    seq_len, prev_end_loc, found = tokens.size, 0, []
    for begin_loc in range(0, seq_len, stride):
        end_loc = min(begin_loc + max_length, seq_len)
        trg_len = end_loc - prev_end_loc
        input_ids = tokens[begin_loc:end_loc]
        target_ids = input_ids.copy()
        target_ids[:-trg_len] = -100
        num_labels = int((target_ids[1:] != -100).sum())
        if num_labels:  # it would be NaN
            num_loss_tokens = int((target_ids != -100).sum()) - 1
            found.append((float(mean_loss(input_ids, target_ids)), num_labels, num_loss_tokens))
        prev_end_loc = end_loc
        if end_loc == seq_len:
            break
    return np.array(found)


def reference_mean_loss(model):
    def mean_loss(input_ids, target_ids):
        return reference_losses(model, input_ids)[target_ids[1:] != -100].mean()

    return mean_loss


def random_tokens(count, seed=0):
    return np.random.default_rng(seed).integers(0, CONFIG.V, count)


@pytest.mark.parametrize(
    ("n", "T", "B"),
    [
        (65, 16, 1),  # adjacent windows, nothing left over
        (70, 16, 3),  # the last window is moved back
        (66, 16, 2),  # moved back to count a single token
        (12, 1, 5),
        (17, 16, 2),  # a single window
        (9, 16, 2),  # a text shorter than a window
        (2, 16, 1),
    ],
)
def test_every_token_counts_once_with_its_intended_context(n, T, B):
    model, tokens = random_model(), random_tokens(n)
    losses, targets = split_losses(model, [tokens], B, T)
    assert np.array_equal(targets, tokens[1:])
    assert_close(losses, brute_force(model, tokens, T), 2e-5)


RECIPES = [
    (64, 16, 16, 1),  # adjacent windows, nothing left over
    (70, 16, 16, 3),
    (65, 16, 16, 2),  # a last window of one token, which predicts nothing
    (60, 16, 5, 4),
    (58, 16, 8, 3),
    (41, 16, 1, 7),  # as much context as possible
    (40, 7, 3, 2),
    (12, 2, 1, 5),
    (12, 2, 2, 5),
    (17, 16, 4, 2),  # a last window that counts one token
    (16, 16, 4, 2),  # a single window
    (9, 16, 4, 2),  # a text shorter than a window
    (2, 16, 16, 1),
]


@pytest.mark.parametrize(("n", "T", "stride", "B"), RECIPES)
def test_stride_gives_hugging_faces_number(n, T, stride, B):
    model, tokens = random_model(), random_tokens(n)
    losses, labels, counts = recipe(reference_mean_loss(model), tokens, T, stride).T
    result = evaluate_split(model, [tokens], B, T, stride, np.ones(CONFIG.V, int))
    assert result["tokens"] == result["bytes"] == labels.sum()
    assert result["loss"] == pytest.approx(np.average(losses, weights=labels), rel=1e-5)
    if stride == T or n <= T:
        assert np.array_equal(counts, labels)  # so that this is the recipe's number itself
    else:
        assert np.array_equal(counts[1:], labels[1:] - 1)  # it weights windows that overlap by one label too few


def test_windows_of_a_stride_predict_each_token_once_but_the_first_of_adjacent_ones():
    model, tokens = random_model(), random_tokens(50)
    for stride in (1, 4, 15):
        assert np.array_equal(split_losses(model, [tokens], 3, 16, stride)[1], tokens[1:])
    expected = np.delete(tokens, [0, 16, 32, 48])
    assert np.array_equal(split_losses(model, [tokens], 3, 16, 16)[1], expected)


def test_context_matters_to_this_model():
    # The tests above rely on it.
    model, tokens = random_model(), random_tokens(60)
    near, far = split_losses(model, [tokens], 4, 15)[0], split_losses(model, [tokens], 4, 16, 1)[0]
    assert np.abs(near - far)[16:].max() > 0.1
    assert_close(near[:15], far[:15], 1e-5)


def test_stride_sets_the_minimum_context(monkeypatch):
    # Instead of losses, the number of tokens in the window before each target.
    def positions(model, tokens, targets):
        return np.broadcast_to(np.arange(1, tokens.shape[1] + 1), tokens.shape)

    monkeypatch.setattr(evaluation, "token_losses", positions)
    for n, T, stride in ((100, 16, 15), (100, 16, 5), (97, 8, 1)):
        context, _ = split_losses(None, [np.arange(n)], 3, T, stride)
        assert context[: T - 1].tolist() == list(range(1, T))
        assert context[T - 1 :].min() == T - stride and context.max() == T - 1


def test_files_are_independent_texts():
    model, parts = random_model(), [random_tokens(n, seed=n) for n in (30, 2, 45)]
    sizes = np.random.default_rng(1).integers(1, 9, CONFIG.V)
    for stride in (None, 8):
        result = evaluate_split(model, parts, 2, 16, stride, sizes)
        losses = np.concatenate([split_losses(model, [tokens], 2, 16, stride)[0] for tokens in parts]).astype(float)
        size = sum(sizes[token] for tokens in parts for token in tokens[1:])
        assert (result["tokens"], result["bytes"]) == (74, size)
        assert result["loss"] == pytest.approx(losses.mean(), rel=1e-5)
        assert result["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=1e-4)
        deviation = math.sqrt(sum((loss - losses.mean()) ** 2 for loss in losses) / 73)
        assert result["standard_error"] == pytest.approx(deviation / math.sqrt(74), rel=1e-4)
        assert result["bits_per_byte"] == pytest.approx(np.log2(np.exp(losses)).sum() / size, rel=1e-5)


@pytest.mark.crosscheck
@pytest.mark.parametrize(("n", "T", "stride", "B"), RECIPES)
def test_stride_gives_the_number_of_transformers(n, T, stride, B):
    torch = require("torch")
    model, tokens = random_model(), random_tokens(n)
    theirs = foreign_model(model, "float32")

    def mean_loss(input_ids, target_ids):
        with torch.no_grad():
            return theirs(torch.tensor(input_ids[None]), labels=torch.tensor(target_ids[None])).loss

    losses, labels, _ = recipe(mean_loss, tokens, T, stride).T
    loss = evaluate_split(model, [tokens], B, T, stride)["loss"]
    assert loss == pytest.approx(np.average(losses, weights=labels), rel=1e-5)


def test_undefined_metrics_are_none():
    result = evaluate_split(random_model(), [np.array([3, 4])], 1, 16, 16, np.zeros(CONFIG.V, int))
    assert (result["tokens"], result["standard_error"], result["bytes"], result["bits_per_byte"]) == (1, None, 0, None)


def test_standard_error_of_known_values():
    assert standard_error([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3) / 2)
    # For zeros and ones with mean p: sqrt(p (1 - p) / (n - 1)).
    assert standard_error([1] * 30 + [0] * 70) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))


def test_result_does_not_depend_on_threads_or_earlier_batches():
    model, tokens = random_model(), random_tokens(50)
    results = []
    try:
        for threads in (1, 3, 2):
            set_threads(threads)
            results.append(split_losses(model, [tokens], 2, 16, 5)[0].tobytes())
            model.forward(np.full((3, 16), 7))
    finally:
        set_threads(available_threads())
    assert results[0] == results[1] == results[2]


def test_evaluation_allocates_no_gradients(tmp_path):
    model = random_model()
    write_tokens(tmp_path / "x.bin", random_tokens(400))
    evaluate_split(model, [random_tokens(400)], 2, 16, 16)
    llmc_val_loss(model, tmp_path / "x.bin", 4, 16)
    evaluate_hellaswag(model, write_examples(tmp_path / "h.bin", random_examples(3, np.random.default_rng(0), CONFIG)))
    assert not {"grads", "grads_flat"} & vars(model).keys()


def test_llmc_loss_is_the_trainers_validation_loss(tmp_path):
    config = GPT2Config(maxT=64, V=50, L=1, NH=2, C=12)
    model = random_model(config)
    write_tokens(tmp_path / "x.bin", random_tokens(5 * 4 * 64 + 300))
    loss = llmc_val_loss(model, tmp_path / "x.bin")
    assert loss == pytest.approx(
        loop._validate(model, DataLoader(tmp_path / "x.bin", 4, 64, 50), 5, StopSignals()), abs=1e-6
    )
    rows = random_tokens(5 * 4 * 64 + 1)
    starts = range(0, 5 * 4 * 64, 64)
    assert loss == pytest.approx(np.mean([reference_losses(model, rows[i : i + 65]) for i in starts]), rel=1e-5)


def test_llmc_loss_wraps_around_in_a_short_file(tmp_path):
    model, tokens = random_model(), random_tokens(3 * 2 * 8 + 2)
    write_tokens(tmp_path / "x.bin", tokens)
    batches = [np.mean([reference_losses(model, tokens[i : i + 9]) for i in (b, b + 8)]) for b in (0, 16, 32, 0, 16)]
    assert llmc_val_loss(model, tmp_path / "x.bin", 2, 8) == pytest.approx(np.mean(batches), rel=1e-5)


def choices(model, examples):
    """The completions with the largest sum and the largest mean of log-probabilities, int (n, 2)."""
    chosen = []
    for _, context, completions in examples:
        losses = [reference_losses(model, np.concatenate([context, end]))[context.size - 1 :] for end in completions]
        assert [loss.size for loss in losses] == [end.size for end in completions]
        chosen.append((np.argmin([loss.sum() for loss in losses]), np.argmin([loss.mean() for loss in losses])))
    return np.array(chosen)


def test_hellaswag_accuracies(tmp_path):
    model, rng = random_model(), np.random.default_rng(3)
    examples = random_examples(16, rng, CONFIG)
    chosen = choices(model, examples)
    # Labels such that the sum is correct in about 3 of 4, and the mean where it agrees with the sum.
    right = rng.random(16) < 0.75
    examples = [
        (int(best if hit else (best + 1) % 4), *parts)
        for (_, *parts), best, hit in zip(examples, chosen[:, 0], right, strict=True)
    ]
    hits = chosen == np.array([label for label, *_ in examples])[:, None]
    assert 0 < hits[:, 1].mean() < hits[:, 0].mean() < 1
    result = evaluate_hellaswag(model, write_examples(tmp_path / "x.bin", examples))
    assert (result["examples"], result["accuracy"], result["accuracy_norm"]) == (16, *hits.mean(axis=0))
    p, p_norm = hits.mean(axis=0)
    assert result["standard_error"] == pytest.approx(math.sqrt(p * (1 - p) / 15))
    assert result["standard_error_norm"] == pytest.approx(math.sqrt(p_norm * (1 - p_norm) / 15))
    # The order of the examples does not matter.
    assert evaluate_hellaswag(model, write_examples(tmp_path / "y.bin", examples[::-1])) == pytest.approx(result)


def test_an_examples_file_replaced_while_it_is_evaluated(tmp_path, monkeypatch):
    model, rng = random_model(), np.random.default_rng(0)
    path = write_examples(tmp_path / "x.bin", random_examples(5, rng, CONFIG))
    expected = evaluate_hellaswag(model, path)
    really = hellaswag.open_to_read

    @contextlib.contextmanager
    def replace_afterwards(path):
        with really(path) as file:
            yield file
        write_examples(path, random_examples(7, rng, CONFIG))

    monkeypatch.setattr(hellaswag, "open_to_read", replace_afterwards)
    assert evaluate_hellaswag(model, path) == expected


def test_completion_losses_do_not_depend_on_the_other_completions(tmp_path):
    model = random_model()
    ends = [[1], [2, 3, 4], [5, 6], [7, 8]]
    longer = [[1], [2, 3, 4], [5, 6], [9] * 12]
    examples = write_examples(tmp_path / "x.bin", [(0, [10, 11], ends), (0, [10, 11], longer)])
    first, second = (
        [losses.copy() for losses in completion_losses(model, example)] for example in read_examples(examples, CONFIG)
    )
    for n, end in enumerate(ends[:3]):
        expected = reference_losses(model, np.array([10, 11, *end]))[1:]
        for losses in (first[n], second[n]):
            assert_close(losses, expected, 2e-5)


def test_first_of_equal_completions_is_chosen(tmp_path):
    model = random_model()
    for label, accuracy in ((0, 1), (1, 0), (3, 0)):
        path = write_examples(tmp_path / "x.bin", [(label, [1, 2], [[3, 4]] * 4)])
        result = evaluate_hellaswag(model, path)
        assert (result["accuracy"], result["accuracy_norm"], result["standard_error"]) == (accuracy, accuracy, None)


def test_a_token_counts_the_bytes_of_its_text_and_a_control_token_none():
    words = byte_level(b"the", "é".encode())
    lengths = token_lengths(words, 300)  # a model padded beyond its vocabulary
    assert lengths.tolist() == [1] * 256 + [3, 2, 0] + [0] * 41
    assert token_lengths(words, 257).tolist() == [1] * 256 + [3]


def test_the_bytes_of_tokens_take_a_vocabulary_that_is_there(tmp_path):
    with pytest.raises(UserError, match=r"^nowhere to be found$"):
        token_lengths(UnknownVocabulary("nowhere to be found"), CONFIG.V)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with a model, tiny.bin, token files a.bin and b.bin, and examples h.bin; yields the model."""
    monkeypatch.chdir(tmp_path)
    model = random_model()
    model.save("tiny.bin")
    write_tokens("a.bin", random_tokens(500, seed=1))
    write_tokens("b.bin", random_tokens(70, seed=2))
    write_examples(pathlib.Path("h.bin"), random_examples(5, np.random.default_rng(0), CONFIG))
    yield model
    set_threads(available_threads())


def run(arguments):
    main(["--model", "tiny.bin", *arguments.split()])


def test_printed_and_json_results(folder, capsys):
    run("--data a.bin --data b.bin --stride 4 -t 12 -b 3 --hellaswag h.bin --json out.json --threads 2")
    results = json.loads(pathlib.Path("out.json").read_text())
    expected = evaluate_split(folder, [random_tokens(500, seed=1), random_tokens(70, seed=2)], 3, 12, 4)
    assert results == {
        "model": "tiny.bin",
        "data": {"files": ["a.bin", "b.bin"], "T": 12, "stride": 4} | expected,
        "hellaswag": {"file": "h.bin"} | evaluate_hellaswag(folder, "h.bin"),
    }
    out = capsys.readouterr().out
    assert "568 tokens predicted, windows of 12, stride 4\n" in out
    assert f"loss {expected['loss']:.6f} +- {expected['standard_error']:.4f} nats per token\n" in out
    assert f"perplexity {expected['perplexity']:.4f}\n" in out
    assert "no bits per byte: tiny.bin: its vocabulary is not GPT-2's, and not beside it\n" in out
    assert f"HellaSwag, 5 examples\naccuracy {results['hellaswag']['accuracy']:.4f} +- " in out


def test_json_on_stdout_is_alone_there(folder, capsys):
    run("--data b.bin --json -")
    captured = capsys.readouterr()
    results = json.loads(captured.out)
    assert (results["data"]["T"], results["data"]["stride"], results["data"]["tokens"]) == (16, None, 69)
    assert "perplexity" in captured.err


def test_batch_size_affects_only_rounding(folder, capsys):
    losses = []
    for arguments in ("--data a.bin --json -", "--data a.bin -b 1 -t 16 --json -"):
        run(arguments)
        losses.append(json.loads(capsys.readouterr().out)["data"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_compat_llmc_prints_the_trainers_loss(folder, capsys):
    loss = loop._validate(folder, DataLoader("a.bin", 4, 16, CONFIG.V), 5, StopSignals())
    run("--data a.bin --compat llmc -t 16 --json out.json")
    assert capsys.readouterr().out == f"val loss {loss:.6f}\n"
    result = json.loads(pathlib.Path("out.json").read_text())["llmc"]
    assert result.pop("val_loss") == pytest.approx(loss, rel=1e-12)
    assert result == {"files": ["a.bin"], "B": 4, "T": 16, "batches": 5}


BAD = {
    "missing data": ("--data none.bin", "none.bin: no such token file"),
    "empty data": ("--data empty.bin", "empty.bin: empty"),
    "one token": ("--data one.bin", "one.bin: 1 tokens, .* takes at least 2"),
    "a text": ("--data text.md", "text.md: a text, not a token file; .*gpt2 prepare text.md --name text; .*"),
    "wrong data": ("--data tiny.bin", "tiny.bin: "),
    "token above V": ("--data foreign.bin", "foreign.bin: token 50 at position 2 is not in 0 .. 49"),
    "stride 0": ("--data a.bin --stride 0", "--stride 0: expected 1 or more"),
    "negative stride": ("--data a.bin --stride -3", "--stride -3: expected 1 or more"),
    "stride of one token": ("--data a.bin -t 1 --stride 1", "--seq-len 1: --stride takes windows of at least 2 tokens"),
    "stride beyond T": ("--data a.bin -t 8 --stride 9", "--stride 9: expected 1 to 8"),
    "T beyond maxT": ("--data a.bin -t 17", "--seq-len 17: the model's context length is 16"),
    "llm.c's T beyond maxT": ("--data a.bin --compat llmc", "--seq-len 64: the model's context length is 16"),
    "too few tokens for llm.c": ("--data b.bin --compat llmc -t 16 -b 5", "b.bin: 70 tokens, .* at least 81"),
    "T 0": ("--data a.bin -t 0", "--seq-len 0: expected 1 or more"),
    "B 0": ("--data a.bin -b 0", "--batch-size 0: expected 1 or more"),
    "threads": ("--data a.bin --threads 0", "0 threads asked for"),
    "missing folder for JSON": (
        "--data a.bin --json none/out.json",
        "none/out.json: cannot create a file in none",
    ),
    "folder as JSON": ("--data a.bin --json .", r"--json \.: is a folder, expected a file"),
    "missing examples": ("--hellaswag none.bin", "none.bin: No such file"),
    "wrong examples, good data": (
        "--data a.bin --hellaswag b.bin",
        "b.bin: not a multiple-choice evaluation file",
    ),
    "wrong examples": ("--hellaswag a.bin", "a.bin: not a multiple-choice evaluation file"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line_before_any_output(folder, capsys, arguments, message):
    pathlib.Path("empty.bin").touch()
    write_tokens("one.bin", [1])
    pathlib.Path("text.md").write_text("To be, or not to be.")
    write_tokens("foreign.bin", [1, 2, 50])
    before = set(pathlib.Path().iterdir())
    with pytest.raises(UserError, match=message) as caught:
        run(arguments)
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""
    assert set(pathlib.Path().iterdir()) == before


def test_failure_keeps_an_earlier_json_file(folder):
    run("--data a.bin --json out.json")
    before = pathlib.Path("out.json").read_text()
    with pytest.raises(UserError, match="no such token file"):
        run("--data none.bin --json out.json")
    assert pathlib.Path("out.json").read_text() == before
    run("--data b.bin --json out.json")
    assert json.loads(pathlib.Path("out.json").read_text())["data"]["files"] == ["b.bin"]


@pytest.mark.parametrize("name", ["tiny.bin", "a.bin", "h.bin", "checkpoints.json", "config.json"])
def test_results_replace_only_results(folder, name):
    if name.endswith(".json"):
        pathlib.Path(name).write_text('{"model": {"bytes": 1}}')
    before = pathlib.Path(name).read_bytes()
    with pytest.raises(UserError, match=f"^--json {name}: not the results of an evaluation"):
        run(f"--data a.bin --json {name}")
    assert pathlib.Path(name).read_bytes() == before


def test_results_through_a_link(folder):
    pathlib.Path("link.json").symlink_to("out.json")
    for data in ("a.bin", "b.bin"):
        run(f"--data {data} --json link.json")
        assert pathlib.Path("link.json").is_symlink()
        assert json.loads(pathlib.Path("out.json").read_text())["data"]["files"] == [data]


def test_results_into_a_device(folder, monkeypatch):
    with pytest.raises(UserError, match=r"^/dev/full: the disk is full"):
        run("--data b.bin --json /dev/full")
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a device needs no new file beside it
    run("--data b.bin --json /dev/null")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--data a.bin --compat other",
        "--hellaswag h.bin --compat llmc",
        "--data a.bin --wrong",
        "--hellaswag h.bin --stride 3",
        "--hellaswag h.bin -b 3",
        "--chat talks.jsonl -t 8",
        "--chat talks.jsonl --batch-size 3",
    ],
)
def test_usage_errors(folder, capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        run(arguments)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1


def test_nonfinite_loss_is_an_error(folder):
    folder.params["lnfb"][0] = np.nan
    for function, path in ((llmc_val_loss, "a.bin"), (evaluate_hellaswag, "h.bin")):
        with pytest.raises(UserError, match="not finite"):
            function(folder, path, *((2, 8) if path == "a.bin" else ()))
    with pytest.raises(UserError, match="not finite"):
        evaluate_split(folder, [random_tokens(40)], 2, 16, 16)


def test_as_a_command(folder):
    prepare_kernels()  # reports on stderr if it compiles, and so would the command
    command = [sys.executable, "-m", "gpt2.evaluate", "--model", "tiny.bin", "--data"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    good, bad = (
        subprocess.run([*command, name], capture_output=True, text=True, timeout=300, env=environment)
        for name in ("b.bin", "none.bin")
    )
    assert good.returncode == 0, good.stderr
    assert "perplexity" in good.stdout and good.stderr == ""  # no progress bar outside a terminal
    assert bad.returncode == 1
    assert bad.stderr.startswith("error: none.bin: ") and bad.stderr.count("\n") == 1
