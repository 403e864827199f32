"""Options as values: what each takes, how they are saved, and which of them a resumed run may change."""

import argparse
import dataclasses
import json

import pytest

from gpt2.errors import UserError
from gpt2.training.options import CONTENTS, FIXED, FREE, PROCESS, Resolved, TrainOptions, add_arguments, flag, on_resume

NAMES = [field.name for field in dataclasses.fields(TrainOptions)]
PATHS = {"train_data", "val_data"}
POSITIVE = {"batch_size", "seq_len", "grad_accum_steps", "sample_tokens", "keep"}
COUNTS = {"max_steps", "skip_nonfinite", "val_every", "val_batches", "sample_every", "checkpoint_every", "seed"}
COUNTS |= {"warmup_steps", "patience", "log_every", "norms_every"}
SIZES = {"layers", "heads", "channels", "context"}
POSITIVE |= SIZES | {"epochs"}
NUMBERS = {"learning_rate", "weight_decay", "grad_clip", "skip_spikes"}
# What may be left to the run.
OPEN = {"train_data", "val_data", "learning_rate", "lr_schedule", "warmup_steps", "grad_clip"}
OPEN |= SIZES | {"size", "seq_len", "max_steps", "epochs", "grad_accum_steps", "threads"}
BAD_NUMBERS = ["1", True, [1], float("nan"), float("inf")]
BAD = (
    {name: [(), ("",), ("a", ""), ("a", 1), "", "a\0b", 1, {"a": 1}] for name in PATHS}
    | {name: [0, -1, 1.0, "1", True, 2**31] for name in POSITIVE}
    | {name: [-1, 0.5, "1", False, 10**40] for name in COUNTS}
    | {name: [-0.1, *BAD_NUMBERS] for name in NUMBERS}
    | {name: [-0.1, 1, *BAD_NUMBERS] for name in ("beta1", "beta2", "dropout")}
    | {name: ["", "a\0b", 1, b"a"] for name in ("init", "out_dir")}
    | {name: [0, 1, "yes"] for name in ("shuffle", "overfit_single_batch", "keep_best")}
    | {
        "eps": [0, -1e-8, 1e-60, 1e39, *BAD_NUMBERS],
        "final_lr_fraction": [-0.1, 1.1, *BAD_NUMBERS],
        "lr_schedule": ["", "cosinus", 1],
        "size": ["", "gpt3", 1, ["baby"]],
        "loss_on": ["", "user", 1, ["all"]],
        "precision": ["", "bfloat16", 1, ["bf16"]],
        "prompt": [1, "a lone surrogate \udcff", b"text"],
        "threads": [1.0, "1", True, 2**31],
        "timeout": [0, 10**6 + 1, 1.0, "1", True],
        "optimizer": ["", "sgd", 1],
        "report_to": ["", "mlflow", (), ("wandb", "none"), ("wandb", 1), 1],
    }
)


@pytest.mark.parametrize("name", NAMES)
def test_a_value_that_an_option_does_not_take_is_refused_in_one_line_with_its_flag(name):
    for value in BAD[name] + ([] if name in OPEN else [None]):
        with pytest.raises(UserError, match=rf"^{flag(name)} [^\n]*: expected [^\n]+$"):
            TrainOptions(**{name: value})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("batch_size", [1, 2**31 - 1]),
        ("max_steps", [0]),
        ("learning_rate", [0, 0.0, 1, 1e30, None]),
        ("beta1", [0, 0.999999]),
        ("dropout", [0, 1 - 2**-53]),
        ("eps", [1.2e-38, 1]),
        ("final_lr_fraction", [0, 1, 0.5]),
        ("shuffle", [True, False, "llmc"]),
        ("loss_on", ["assistant", "all"]),
        ("lr_schedule", ["constant", "linear", "cosine", "wsd"]),
        ("prompt", ["", "\0", "caf\u00e9\n"]),
        ("threads", [1, 2**31 - 1]),  # how many there may be is for the machine to say
        ("seed", [0]),
        ("log_every", [0]),
        ("report_to", [("none",), ("wandb", "tensorboard")]),
    ],
)
def test_values_at_the_limits_are_taken(name, values):
    for value in values:
        assert getattr(TrainOptions(**{name: value}), name) == value


@pytest.mark.parametrize("name", sorted(PATHS))
def test_paths_may_be_one_or_several(name):
    for value, stored in (("a", ("a",)), (["a", "b"], ("a", "b")), (("a", "b"), ("a", "b")), (None, None)):
        assert getattr(TrainOptions(**{name: value}), name) == stored


def test_what_depends_on_weights_and_data_is_left_open_by_default():
    options = TrainOptions()
    assert {name for name in NAMES if getattr(options, name) is None} == OPEN


def test_options_are_saved_and_read_as_json_but_for_those_of_the_process():
    options = TrainOptions(train_data=["a", "b"], grad_clip=0.0, prompt="\u00e9", threads=1, out_dir="other", seed=3)
    saved = json.loads(json.dumps(options.to_save()))
    assert saved.keys() == set(NAMES) - {"threads", "out_dir", "timeout"}
    restored = TrainOptions.from_saved(saved)
    assert dataclasses.replace(restored, threads=1, out_dir="other") == options
    assert TrainOptions.from_saved({"batch_size": 7}) == TrainOptions(batch_size=7)
    for bad, error in (({"batch_size": 0}, UserError), ({"no_such_option": 1}, TypeError)):
        with pytest.raises(error):
            TrainOptions.from_saved(bad)


def test_the_length_of_a_run_is_said_once():
    with pytest.raises(UserError, match=r"^--epochs and --max-steps both say [^\n]+$"):
        TrainOptions(epochs=1, max_steps=0)


RESOLVED = {
    "train_data": ["a"],
    "val_data": None,
    "learning_rate": 0.1,
    "lr_schedule": "linear",
    "warmup_steps": 2,
    "grad_clip": 0.0,
}
RESOLVED |= {"seq_len": 8, "max_steps": 0, "precision": "bf16"}


def test_what_a_run_settled_on_is_read_back():
    resolved = Resolved.from_saved({"resolved": RESOLVED, "options": {}})
    assert resolved == Resolved(("a",), None, 0.1, "linear", 2, 0.0, 8, 0, "bf16")
    assert json.loads(json.dumps(dataclasses.asdict(resolved))) == RESOLVED
    for name in RESOLVED.keys() - {"val_data"}:
        with pytest.raises(UserError):
            Resolved.from_saved({"resolved": RESOLVED | {name: None}, "options": {}})
    shorter = {name: RESOLVED[name] for name in RESOLVED if name != "precision"}
    assert Resolved.from_saved({"resolved": shorter, "options": {}}).precision == "float32"
    del shorter["grad_clip"]
    with pytest.raises(UserError):
        Resolved.from_saved({"resolved": shorter, "options": {}})


def test_a_resumed_run_may_change_only_what_leaves_it_the_same_run():
    policies = {policy: {name for name in NAMES if on_resume(name) == policy} for policy in (CONTENTS, FREE, PROCESS)}
    assert policies[CONTENTS] == PATHS
    assert policies[PROCESS] == {"out_dir", "threads", "timeout"}
    length, kept = {"max_steps", "epochs", "patience"}, {"checkpoint_every", "keep", "keep_best"}
    shown = {
        "val_every",
        "val_batches",
        "sample_every",
        "sample_tokens",
        "prompt",
        "log_every",
        "norms_every",
        "report_to",
    }
    assert policies[FREE] == length | kept | shown | {"skip_nonfinite", "skip_spikes"}
    rest = set(NAMES) - set.union(*policies.values())
    assert all(on_resume(name) == FIXED for name in rest)


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("", {}),
        ("-b 3 -t 5 -x 7 -l 1e-3", {"batch_size": 3, "seq_len": 5, "max_steps": 7, "learning_rate": 1e-3}),
        ("--train-data a b --train-data c", {"train_data": ["a", "b", "c"]}),
        ("--train-data a b --val-data c", {"train_data": ["a", "b"], "val_data": ["c"]}),
        ("--shuffle --overfit-single-batch", {"shuffle": True, "overfit_single_batch": True}),
        ("--shuffle llmc", {"shuffle": "llmc"}),
        ("--size baby --layers 2 --epochs 3", {"size": "baby", "layers": 2, "epochs": 3}),
        ("--beta1 0 --prompt 12 --seed 5", {"beta1": 0.0, "prompt": "12", "seed": 5}),
    ],
)
def test_arguments_leave_only_what_was_given(line, given):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    assert vars(parser.parse_args(line.split())) == given
