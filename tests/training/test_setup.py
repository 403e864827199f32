"""How a run starts: which data it takes if none is named, which weights, and what it checks first."""

import dataclasses
import pathlib
import shutil

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config, machine
from gpt2.data.trained_vocabulary import characters
from gpt2.distributed import SERIAL
from gpt2.errors import UserError
from gpt2.formats import training_state
from gpt2.formats.llmc import save_model, write_tokens
from gpt2.machine import available_threads, set_threads
from gpt2.optimizer import OPTIMIZERS, Optimizer
from gpt2.training import checkpoint, setup
from gpt2.training.loop import resume, train
from gpt2.training.options import FINE_TUNING, FROM_SCRATCH, TrainOptions
from tests.support.runs import records
from tests.support.vocabulary import shrink_gpt2, write_tokens_of

CONFIG = GPT2Config(maxT=16, V=50, L=1, NH=2, C=12)
OPTIONS = TrainOptions(init="tiny.bin", train_data="train.bin", val_data="val.bin", batch_size=2, seq_len=8)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A working folder with a tiny model, a training file of 100 tokens and a validation file of 50."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GPT2_DATA_DIR", "data")
    shrink_gpt2(monkeypatch, CONFIG)
    save_model("tiny.bin", CONFIG, GPT2(CONFIG, seed=1).params_flat)
    for folder in ("data", "out"):
        pathlib.Path(folder).mkdir()
    for name, count in (("train", 100), ("val", 50)):
        write_tokens(f"{name}.bin", np.arange(count) % 50)
    yield
    set_threads(available_threads())


def start(**changes):
    return setup.start_run(dataclasses.replace(OPTIONS, **changes).among(SERIAL), pathlib.Path("out"))


def write_data(name, count):
    for split in ("train", "val"):
        write_tokens(f"data/{name}_{split}.bin", np.arange(count) % 50)


def test_default_data_are_tiny_shakespeare_or_else_the_plays(capsys):
    with pytest.raises(UserError, match=r"^data/tiny_shakespeare_val\.bin: no such file; .* or .*--val-data$"):
        setup.default_data("val")
    write_data("shakespeare", 200)
    run = start(train_data=None, val_data=None)
    assert run.state.loader.num_tokens == run.val_loader.num_tokens == 200
    assert run.state.resolved.train_data == ("data/shakespeare_train.bin",)
    assert capsys.readouterr().out.count("losses are not comparable") == 2
    write_data("tiny_shakespeare", 300)
    run = start(train_data=None, val_data=None)
    assert run.state.loader.num_tokens == run.val_loader.num_tokens == 300
    assert run.state.resolved.val_data == ("data/tiny_shakespeare_val.bin",)
    assert "not comparable" not in capsys.readouterr().out


def test_data_that_are_named_are_taken():
    write_data("tiny_shakespeare", 300)
    run = start()
    assert (run.state.loader.num_tokens, run.val_loader.num_tokens) == (100, 50)
    assert (run.state.resolved.train_data, run.state.resolved.val_data) == (("train.bin",), ("val.bin",))


@pytest.mark.parametrize(
    ("train_data", "val_data"),
    [
        ("my_train.bin", ("my_val.bin",)),
        ("train_train.bin", ("train_val.bin",)),
        ("sub/train.bin", ("sub/val.bin",)),
        ("sub/train_*.bin", ("sub/val_*.bin",)),
        ("big_train_*.bin", ("big_val.bin",)),
        (["big_train_0000.bin", "big_train_0001.bin"], ("big_val.bin",)),
        (["my_train.bin", "sub/train.bin"], ("my_val.bin", "sub/val.bin")),
    ],
)
def test_training_files_bring_the_validation_files_beside_them(capsys, train_data, val_data):
    write_data("tiny_shakespeare", 300)
    pathlib.Path("sub").mkdir()
    names = "my_train", "my_val", "sub/train", "sub/val", "sub/train_1", "sub/train_2", "sub/val_9"
    for name in (*names, "train_train", "train_val", "val_val", "big_train_0000", "big_train_0001", "big_val"):
        write_tokens(f"{name}.bin", np.arange(70) % 50)
    run = start(train_data=train_data, val_data=None)
    assert run.state.resolved.val_data == val_data
    assert [entry["file"] for entry in run.val_loader.fingerprint] == sorted(
        name.replace("*", "9") for name in val_data
    )


@pytest.mark.parametrize(
    ("train_data", "beside"),
    [
        ("my_train.bin", r" \(my_val\.bin\)"),
        ("my_train_*.bin", r" \(my_val_\*\.bin\)"),
        ("restrained.bin", ""),
        (["train.bin", "my_train.bin"], r" \(my_val\.bin\)"),
    ],
)
def test_training_files_without_validation_files_are_refused(train_data, beside):
    write_data("tiny_shakespeare", 300)
    for name in ("my_train", "my_train_1", "restrained"):
        write_tokens(f"{name}.bin", np.arange(100) % 50)
    with pytest.raises(UserError, match=rf"^--train-data \S+: no validation data beside it{beside}; name some with "):
        start(train_data=train_data, val_data=None)
    assert start(train_data="my_train.bin", val_data=None, val_every=0).val_loader is None


@pytest.mark.parametrize("changes", [{}, {"init": "scratch"}, {"val_data": "val.bin"}, {"val_every": 0}])
def test_a_text_is_refused_with_the_command_that_makes_token_files(changes):
    pathlib.Path("novel.txt").write_text("It was a dark night. " * 4)
    with pytest.raises(UserError, match=r"^novel\.txt: a text, .*: gpt2 prepare novel\.txt --name novel; "):
        start(**{"train_data": "novel.txt", "val_data": None} | changes)
    with pytest.raises(UserError, match=r"^novel\.txt: a text, .* --train-data data/novel_train\.bin"):
        start(val_data="novel.txt")


def test_a_validation_split_shorter_than_a_batch_is_taken_in_smaller_ones(capsys):
    write_tokens("short.bin", np.arange(7))
    run = start(val_data="short.bin")
    assert (run.val_loader.B, run.val_loader.T, run.val_loader.num_batches) == (1, 6, 1)
    assert "short.bin: 7 tokens, a batch of 2 x 8 takes at least 17; its batches are 1 x 6\n" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"^short\.bin: .*; choose --batch-size 1 --seq-len 6$"):
        start(train_data="short.bin")


def test_a_run_without_its_short_files_is_resumed(capsys):
    for name, count in (("my_train_0", 10), ("my_train_1", 100), ("my_val_0", 20), ("my_val_1", 3)):
        write_tokens(f"{name}.bin", np.arange(count) % 50)
    options = dataclasses.replace(OPTIONS, train_data="my_train_*.bin", val_data=None, max_steps=2, sample_every=0)
    train(options)
    result = resume("out", {"max_steps": 4})
    assert result.state.step == 4
    printed = capsys.readouterr().out
    for line in ("my_train_0.bin, 10 tokens in all", "my_val_1.bin, 3 tokens in all"):
        assert printed.count(f"left out, too short for a batch of 2 x 8: {line}\n") == 2


def test_a_run_that_never_validates_needs_no_data_for_it():
    run = start(val_data=None, val_every=0)
    assert run.val_loader is None and run.state.resolved.val_data is None


def test_the_model_is_the_one_named_and_the_recipe_its_own():
    GPT2(CONFIG, seed=2).save("random.bin")
    trained, scratch, random = (start(init=init, seed=3).state for init in ("tiny.bin", "scratch", "random.bin"))
    assert np.array_equal(random.model.params_flat, GPT2(CONFIG, seed=2).params_flat)
    assert np.array_equal(trained.model.params_flat, GPT2.load("tiny.bin").params_flat)
    assert np.array_equal(scratch.model.params_flat, GPT2(CONFIG, seed=3).params_flat)
    for state, recipe in ((trained, FINE_TUNING), (scratch, FROM_SCRATCH), (random, FROM_SCRATCH)):
        assert {name: getattr(state.resolved, name) for name in recipe} == recipe
        assert state.step == state.optimizer.steps == 0 and state.loader.position == (0, 0)
    given = {"learning_rate": 0.0, "warmup_steps": 3, "grad_clip": 2.5}
    assert dataclasses.asdict(start(**given).state.resolved).items() >= given.items()


def test_the_optimizer_is_the_one_named_with_the_settings_given(monkeypatch):
    class Lion(Optimizer):
        pass

    monkeypatch.setitem(OPTIMIZERS, "lion", Lion)
    optimizer = start(optimizer="lion", beta1=0.1, beta2=0.2, eps=0.3, weight_decay=0.4).state.optimizer
    assert type(optimizer) is Lion
    assert (optimizer.beta1, optimizer.beta2, optimizer.eps, optimizer.weight_decay) == (0.1, 0.2, 0.3, 0.4)


def test_memory_is_checked_before_data_are_read_and_includes_what_samples_take(monkeypatch, capsys):
    pathlib.Path("bad.bin").write_bytes(b"\xff: no tokens")
    start()
    needed = capsys.readouterr().out
    start(sample_every=0)
    assert "for samples" in needed and "for samples" not in capsys.readouterr().out
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    with pytest.raises(UserError, match="not enough memory"):
        start(train_data="bad.bin")


@pytest.mark.parametrize(
    ("changes", "checkpoints"),
    [
        ({"max_steps": 0}, 1),
        ({"checkpoint_every": 0}, 1),
        ({"max_steps": 10, "checkpoint_every": 10}, 1),
        ({"max_steps": 11, "checkpoint_every": 10}, 2),
        ({"max_steps": 1000, "checkpoint_every": 10}, 3),  # the two that stay, and the one being written
        ({"max_steps": 1000, "checkpoint_every": 10, "keep": 1}, 2),
        ({"max_steps": 1000, "checkpoint_every": 10, "keep_best": True}, 6),
    ],
)
def test_disk_is_asked_for_as_many_checkpoints_as_there_are_at_once(capsys, changes, checkpoints):
    start(**changes)
    assert f"[disk] {checkpoints} checkpoint" in capsys.readouterr().out


def test_a_sequence_longer_than_the_models_positions_is_refused():
    with pytest.raises(UserError, match=r"^--seq-len 17: the model's positions end at 16$"):
        start(seq_len=17)


@pytest.mark.parametrize(("context", "seq_len"), [(12, 12), (64, 64), (100, 64)])
def test_the_default_sequence_is_as_long_as_the_model_takes(context, seq_len):
    write_tokens("long.bin", np.arange(200) % 50)
    run = start(init="scratch", context=context, seq_len=None, train_data="long.bin", val_data="long.bin")
    assert run.state.model.config == dataclasses.replace(CONFIG, maxT=context)
    assert run.state.resolved.seq_len == seq_len
    assert run.state.loader.next_batch()[0].shape == (2, seq_len)


@pytest.mark.parametrize(
    ("sizes", "config"),
    [
        ({"layers": 2, "heads": 5, "channels": 20, "context": 8}, GPT2Config(8, 50, 2, 5, 20)),
        ({"heads": 3}, GPT2Config(16, 50, 1, 3, 12)),
        ({"size": "baby"}, GPT2Config(64, 50, 4, 4, 128)),
        ({"size": "baby", "layers": 1, "channels": 64}, GPT2Config(64, 50, 1, 4, 64)),
    ],
)
def test_random_weights_come_in_any_size(sizes, config):
    model = start(init="scratch", **sizes).state.model
    assert model.config == config
    assert np.array_equal(model.params_flat, GPT2(config, OPTIONS.seed).params_flat)


def test_the_size_of_the_vocabulary_comes_with_the_training_data():
    text = "to be or not to be" * 10
    words = characters([text])
    for name in ("mine_train.bin", "other_train.bin"):
        write_tokens_of(words, pathlib.Path(name), words.encode(text))
    shutil.rmtree("other_vocabulary")
    assert start(init="scratch").state.model.config == CONFIG
    run = start(init="scratch", train_data="mine_*.bin", size="baby", layers=1, seq_len=8, val_every=0, val_data=None)
    assert run.state.model.config.V == words.size == 12
    with pytest.raises(UserError, match=r"^other_train\.bin: its tokens are not GPT-2's"):
        start(init="scratch", train_data="other_train.bin", val_every=0)
    with pytest.raises(
        UserError, match=r"^train\.bin: tokens of another vocabulary than the model's, which has 12 tokens"
    ):
        start(init="scratch", train_data=["mine_train.bin", "train.bin"], val_every=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"init": "scratch", "heads": 5}, r"--init scratch: C=12 channels: expected a multiple of NH=5 heads; .*"),
        ({"init": "scratch", "layers": 2**31 - 1}, "not enough memory: .*choose a smaller model.*"),
        ({"size": "baby"}, "--size: only with --init scratch: .*"),
        ({"heads": 2, "context": 16}, "--heads, --context: only with --init scratch: .*"),
    ],
)
def test_sizes_that_no_model_can_have_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=rf"^{message}$"):
        start(**changes)
    assert list(pathlib.Path("out").iterdir()) == []


@pytest.mark.parametrize(("accumulation", "max_steps"), [(1, 12), (4, 3), (5, 3), (13, 1)])
def test_epochs_are_counted_in_steps(accumulation, max_steps):
    run = start(max_steps=None, epochs=2, grad_accum_steps=accumulation)  # of 6 batches
    assert run.max_steps == run.state.resolved.max_steps == max_steps


def test_more_files_than_a_checkpoint_can_name_are_refused_at_once(monkeypatch):
    names = tuple(f"data/{number:03}{'x' * 100}.bin" for number in range(40))
    for name in names:
        write_tokens(name, np.arange(100) % 50)
    monkeypatch.setattr(training_state, "JSON_LIMIT", training_state.JSON_GROWTH + 10_600)
    with pytest.raises(UserError, match=r"^out: .* bytes of metadata about the run, .* name fewer files .* a glob"):
        start(train_data=names)
    assert start(train_data="data/*.bin").state.loader.num_tokens == 40 * 100
    assert start(train_data=names[:10]).state.loader.num_tokens == 10 * 100


def resumed_with_spikes(steps):
    """Records of a run of some steps without --skip-spikes, which is resumed for ten more with it."""
    train(dataclasses.replace(OPTIONS, max_steps=steps, val_every=0, sample_every=0, threads=1))
    resume("out", {"max_steps": steps + 10, "skip_spikes": 1e-9, "threads": 1})
    return records()


def test_skip_spikes_given_on_resume_acts_at_once_on_the_losses_recorded(capsys):
    written = resumed_with_spikes(130)
    assert any(record.get("skipped") == "spike" for record in written if record["step"] > 130)
    window = [record["train_loss"] for record in written][-128:]
    assert checkpoint.find("out").progress["outliers"]["train_loss"] == window
    assert "--skip-spikes acts from" not in capsys.readouterr().out


def test_skip_spikes_given_on_resume_says_when_it_acts_if_there_are_too_few_losses(capsys):
    written = resumed_with_spikes(20)
    assert not any("skipped" in record for record in written)
    assert "--skip-spikes acts from step 129 on: metrics.jsonl has too few" in capsys.readouterr().out
