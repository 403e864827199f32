"""The model card that a converted folder gets: what is known of the model's training, and no more."""

import json
import pathlib
import re

import pytest

from gpt2.convert import convert
from gpt2.machine import available_threads, set_threads
from gpt2.training.__main__ import main
from tests.support.runs import SMALL, records, write_small_inputs

OPTIONS = [*SMALL, *"-x 4 --lr 1e-3 --val-every 2 --sample-every 0 --shuffle --threads 1 --out-dir".split()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with tiny.bin of random weights, its token files, and the run "out"."""
    folder = tmp_path_factory.mktemp("trained")
    write_small_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main([*OPTIONS, "out"])
    yield folder
    set_threads(available_threads())


def card(source, target, **options):
    convert(source, target, **options)
    return pathlib.Path(target, "README.md").read_text(encoding="utf-8")


def rows(text):
    return dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", text, re.MULTILINE))


def test_a_run_s_card_has_its_data_steps_losses_and_command(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    text = card("out", tmp_path / "mine", dtype="bfloat16")
    last = records("out")[-1]
    assert rows(text) == {
        "started from": "tiny.bin",
        "data": "train.bin (4,801 tokens)",
        "steps": "4 of 2 x 16 tokens",
        "learning rate": "0.001, constant, warm-up 10",
        "loss": f"{last['train_loss']:.4f} in training, {last['val_loss']:.4f} in validation",
        "command": "gpt2 train --init tiny.bin --train-data train.bin --val-data val.bin --shuffle --batch-size 2 "
        "--seq-len 16 --max-steps 4 --lr 0.001 --val-every 2 --sample-every 0",
    }
    assert text.startswith("---\nlibrary_name: transformers\n") and "\n# mine\n" in text
    assert "2 layers, 2 heads, 32 channels and a context of 64 tokens: " in text and "stored as bfloat16" in text
    assert 'pipeline("text-generation", model="mine")' in text


def test_the_card_of_an_earlier_checkpoint_has_the_losses_of_its_step(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    main([*OPTIONS, str(tmp_path / "two"), "--checkpoint-every", "3"])
    found = rows(card(tmp_path / "two/model_00000003.bin", tmp_path / "early"))
    earlier = {record["step"]: record for record in records(tmp_path / "two")}
    assert found["steps"] == "3 of 2 x 16 tokens"
    assert found["loss"] == f"{earlier[3]['train_loss']:.4f} in training, {earlier[2]['val_loss']:.4f} in validation"


def test_what_is_not_known_is_not_there(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    assert "The weights are random" in card("tiny.bin", tmp_path / "random")
    pathlib.Path("elsewhere.bin").write_bytes(pathlib.Path("out/model_00000004.bin").read_bytes())
    text = card("elsewhere.bin", tmp_path / "copied")
    assert "\nMade from `elsewhere.bin`.\n" in text and rows(text) == {}


def test_a_card_is_replaced_with_its_folder_and_keeps_strange_names_on_their_line(trained, monkeypatch, tmp_path):
    monkeypatch.chdir(trained)
    convert("out", tmp_path / "mine")
    text = card("tiny.bin", tmp_path / "mine", force=True)
    assert "The weights are random" in text and json.loads((tmp_path / "mine/config.json").read_text())["n_layer"] == 2
    copy = pathlib.Path("a`b|\n.bin")
    copy.write_bytes(pathlib.Path("out/model_00000004.bin").read_bytes())
    assert "\nMade from `a?b??.bin`.\n" in card(str(copy), tmp_path / "strange")
