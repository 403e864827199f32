"""docs/change-the-model.md: its changes, made in copies of the package as printed, do what the page says."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from tests.support.foreign import require
from tests.support.numeric import assert_close

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/change-the-model.md").read_text(encoding="utf-8")
PYTEST = """
import sys
import pytest
import tests.conftest
from gpt2 import GPT2
from gpt2.kernels.engine import jit

jit.on_cache_miss(None)
sys.exit(pytest.main(sys.argv[1:]))
"""
# With a model of the copy: what of it is exported, and what is refused.
EXPORT = """
import numpy as np
from gpt2 import GPT2, GPT2Config
from gpt2.convert import convert
from gpt2.errors import UserError

model = GPT2(GPT2Config(maxT=8, V=40, L=2, NH=2, C=32), seed=1)
model.params["wte"][:40] *= 20
model.save("changed.bin")
np.save("logits.npy", model.logits(np.arange(8)[None]))
for source, target in (
    ("changed.bin", "folder"), ("folder", "other.bin"), ("folder", "other.gguf"), ("gelu.bin", "x"), ("gelu", "x")
):
    try:
        convert(source, target)
    except UserError as error:
        print("refused:", error)
"""


def changes(heading):
    """The diffs under a heading: a list of (path, text before, text after)."""
    (section,) = re.findall(rf"^## {heading}$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    found = []
    for block in re.findall(r"^```diff\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
        for path, hunks in re.findall(r"^--- (\S+)\n(.*?)(?=^--- |\Z)", block, re.MULTILINE | re.DOTALL):
            for hunk in hunks.split("@@\n"):
                lines = hunk.splitlines()
                sides = ([line[1:] for line in lines if line[:1] != other] for other in "+-")
                found.append((path, *("".join(f"{line}\n" for line in side) for side in sides)))
    return found


def make_copy(folder, *headings):
    """Copies the package and its tests, and makes the changes under the headings, each in at most two of its files."""
    for name in ("gpt2", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "train_gpt2.py"):
        shutil.copy2(ROOT / name, folder)
    for heading in headings:
        found = changes(heading)
        assert 1 <= len({path for path, _, _ in found if path.startswith("gpt2/")}) <= 2
        for path, before, after in found:
            text = (folder / path).read_text(encoding="utf-8")
            assert text.count(before) == 1, f"{path}: the lines to change are not there, or not once:\n{before}"
            (folder / path).write_text(text.replace(before, after), encoding="utf-8")
    return folder


def run(folder, *arguments, **environment):
    """Returns the output of a Python command in a copy."""
    given = os.environ | {"PYTHONPATH": str(folder)} | environment
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_tests(folder, *arguments, **environment):
    """Runs tests of a copy; returns how many passed. Only the kernels that they call are compiled."""
    out = run(folder, "-c", PYTEST, "-q", "-p", "no:cacheprovider", *arguments, **environment)
    return int(re.search(r"(\d+) passed", out)[1])


def run_tiny(folder):
    """The tests of tiny sizes, uncompiled: gradients by finite differences, and generation's logits."""
    paths = "tests/test_model.py", "tests/inference/test_decoder.py"
    return run_tests(folder, *paths, "-k", "tiny", NUMBA_DISABLE_JIT="1")


@pytest.fixture(scope="module")
def relu2(tmp_path_factory):
    """A copy with another activation, where a model of it and of GPT-2's were converted; and what was printed."""
    folder = make_copy(tmp_path_factory.mktemp("relu2"), "Activation")
    model = GPT2(GPT2Config(maxT=8, V=40, L=2, NH=2, C=32), seed=1)
    model.save(folder / "gelu.bin")
    run(ROOT, "-m", "gpt2.convert", str(folder / "gelu.bin"), str(folder / "gelu"))
    return folder, run(folder, "-c", EXPORT, NUMBA_DISABLE_JIT="1")


@pytest.mark.slow
def test_another_activation(relu2):
    folder, _ = relu2
    assert run_tests(folder, "tests/kernels/test_gelu.py", "-k", "not far_out") > 10
    assert run_tests(folder, "tests/kernels/test_matmul.py", "-k", "gelu") > 3
    assert run_tiny(folder) > 50


@pytest.mark.slow
def test_another_activation_is_not_exported_as_gelu(relu2):
    folder, printed = relu2
    assert json.loads((folder / "folder/config.json").read_text())["activation_function"] == "relu2"
    refused = [line for line in printed.splitlines() if line.startswith("refused: ")]
    changed = "a GPT-2 with gelu_new and layernorm; gpt2/kernels/ computes relu2 and layernorm"
    assert [line.removeprefix("refused: ") for line in refused] == [
        f"other.bin: {changed}",
        f"other.gguf: {changed}",
        f"gelu.bin: {changed}",
        "gelu/config.json: activation_function is 'gelu_new', only 'relu2' is supported",
    ]
    with pytest.raises(UserError, match=r"changed\.bin: made by kernels with another activation or normalisation"):
        GPT2.load(folder / "changed.bin")
    with pytest.raises(UserError, match="activation_function is 'relu2', only 'gelu_new' is supported"):
        GPT2.load(folder / "folder")


@pytest.mark.slow
@pytest.mark.crosscheck
def test_transformers_computes_the_activation_that_the_folder_names(relu2):
    folder, _ = relu2
    torch, transformers = require("torch"), require("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder / "folder")
    with torch.no_grad():
        logits = theirs(torch.arange(8)[None]).logits.numpy()
    assert_close(np.load(folder / "logits.npy"), logits, 1e-5)


@pytest.mark.slow
def test_another_normalisation(tmp_path):
    folder = make_copy(tmp_path, "Normalisation")
    assert run_tests(folder, "tests/kernels/test_layernorm.py", "-k", "backward or gradient") > 5
    assert run_tiny(folder) > 50
    printed = run(folder, "-c", EXPORT, NUMBA_DISABLE_JIT="1")
    assert "folder: a GPT-2 with gelu_new and layernorm; gpt2/kernels/ computes gelu_new and rmsnorm\n" in printed
    assert not (folder / "folder").exists()


@pytest.mark.slow
def test_another_optimizer_schedule_and_metric(tmp_path):
    folder = make_copy(tmp_path, "Optimizer", "Learning-rate schedule", "Metric")
    start = GPT2(GPT2Config(maxT=8, V=40, L=1, NH=1, C=4))
    start.save(folder / "start.bin")
    write_tokens(folder / "a_train.bin", np.arange(300) % 40)
    options = "--init start.bin --train-data a_train.bin -x 4 --val-every 0 --sample-every 0 --optimizer lion -l 1e-3"
    options += " --lr-schedule inverse_sqrt --warmup-steps 1"
    run(folder, "train_gpt2.py", *options.split(), NUMBA_DISABLE_JIT="1")
    run(folder, "train_gpt2.py", *"--resume out -x 5".split(), NUMBA_DISABLE_JIT="1")
    records = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    rates = [record["lr"] for record in records]
    assert rates == pytest.approx([1e-3 * (2 / n) ** 0.5 for n in (2, 2, 3, 4, 5)])
    assert len({record["largest_weight"] for record in records}) == 5
    moved = abs(GPT2.load(folder / "out").params_flat - start.params_flat)
    assert moved.max() == pytest.approx(sum(rates), 0.05)
