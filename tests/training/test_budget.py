"""What a run says that it needs, against what it then takes."""

import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest

from gpt2 import machine, memory, model, optimizer
from gpt2.config import PRESETS, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.inference import decoder
from gpt2.inference.warmup import prepare_kernels
from gpt2.layout import parameter_layout
from gpt2.training import budget, checkpoint
from gpt2.training.budget import checkpoint_bytes, memory_needed, require_disk, require_memory

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = GPT2Config(maxT=300, V=700, L=2, NH=2, C=16)
GPT2_SMALL = PRESETS["gpt2"]


@pytest.fixture
def no_program(monkeypatch):
    """The program itself takes no memory."""
    monkeypatch.setattr(machine, "held_bytes", lambda: 0)
    for part in ("KERNELS", "PICTURE"):
        monkeypatch.setattr(budget, part, 0)


@pytest.fixture
def allocated(monkeypatch):
    """Lists the bytes of every flat array as it is made."""
    sizes = []

    def allocate(size, dtype, what):
        sizes.append(size * np.dtype(dtype).itemsize)
        return memory.allocate(size, dtype, what)

    for module in (model, optimizer, decoder):
        monkeypatch.setattr(module, "allocate", allocate)
    return sizes


# Few and many rows of logits, sequences of less and more than a block of attention, scratch above logits and below.
@pytest.mark.parametrize(("B", "T"), [(1, 1), (2, 5), (3, 100), (2, 300)])
@pytest.mark.parametrize("sample_length", [0, 9, 300])
def test_it_takes_what_it_said(allocated, B, T, sample_length):
    tokens = np.zeros((B, T), np.int32)
    run = model.GPT2(CONFIG)
    run.overwrite_gradients(tokens, tokens)
    optimizer.AdamW(run).step(1e-4)
    if sample_length:
        decoder.Decoder(CONFIG, run.params_flat, length=sample_length).forward([[0]])
    needed = memory_needed(CONFIG, B, T, sample_length)
    assert sum(needed.values()) == sum(allocated)
    assert needed["parameters, gradients and moments"] == 4 * run.params_flat.nbytes
    assert ("samples" in needed) == bool(sample_length)


def test_a_checkpoint_takes_what_it_said(tmp_path):
    run = model.GPT2(CONFIG)
    checkpoint.save(tmp_path, run, optimizer.AdamW(run), {"step": 1}, keep=1)
    facts = 1000  # the manifest, the JSON in the state file and its checksum
    assert 0 < sum(file.stat().st_size for file in tmp_path.iterdir()) - checkpoint_bytes(CONFIG) < facts


def test_what_fits_is_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(machine, "held_bytes", lambda: 100_000_000)
    monkeypatch.setattr(machine, "available_bytes", lambda: 21_300_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 80_200_000_000))
    require_memory(GPT2_SMALL, 4, 64)
    require_memory(GPT2_SMALL, 4, 64, sample_length=65, data_bytes=1_000_000_000)
    require_disk(GPT2_SMALL, tmp_path, 3)
    require_disk(GPT2_SMALL, tmp_path, 3, replaced=2_990_000_000)
    require_disk(GPT2_SMALL, tmp_path, 1)
    assert capsys.readouterr().out.splitlines() == [
        "[memory] 0.21 GB for the program and its data + 1.99 GB for parameters, gradients and moments + "
        "0.14 GB for activations of 4 x 64 = 2.34 GB needed | 21.40 GB available",
        "[memory] 1.21 GB for the program and its data + 1.99 GB for parameters, gradients and moments + "
        "0.14 GB for activations of 4 x 64 + 8.23 MB for samples = 3.35 GB needed | 21.40 GB available",
        f"[disk] 3 checkpoints of 1.49 GB at most = 4.48 GB needed | 80.20 GB free in {tmp_path}",
        f"[disk] 3 checkpoints of 1.49 GB at most = 4.48 GB needed | 80.20 GB free in {tmp_path} + "
        "2.99 GB of older ones",
        f"[disk] 1 checkpoint of 1.49 GB at most = 1.49 GB needed | 80.20 GB free in {tmp_path}",
    ]


MEASURED = """
import re, sys, train_gpt2
from gpt2 import GPT2, GPT2Config
GPT2(GPT2Config(maxT=64, V=int(sys.argv[1]), L=2, NH=2, C=32), seed=1).save("tiny.bin")
train_gpt2.main("--init tiny.bin --train-data x_train.bin -b 2 -t 16 -x 2 --sample-every 1 --threads 2".split())
# Not ru_maxrss, which begins with what the parent held.
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("V", [512, 50257])
@pytest.mark.parametrize("tokens", [2000, 2**24])
def test_a_whole_run_takes_what_it_said(tmp_path, V, tokens):
    prepare_kernels()  # compiled in this process, if they have to be
    for split, count in (("train", tokens), ("val", 2000)):
        write_tokens(tmp_path / f"x_{split}.bin", np.arange(count) % 512)
    arguments = [sys.executable, "-c", MEASURED, str(V)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(arguments, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr
    needed = 1e9 * float(re.search(r"= (\d+\.\d\d) GB needed", run.stdout)[1])
    peak = 1024 * int(re.search(r"^peak (\d+)", run.stdout, re.MULTILINE)[1])
    rounding = 5e6
    assert peak <= needed + rounding and needed <= 1.4 * peak


def total(B, T, sample_length=0):
    return sum(memory_needed(CONFIG, B, T, sample_length).values())


def refusal(monkeypatch, available, B, T, sample_length=0):
    """The message when so much memory is available and that is too little, or None."""
    monkeypatch.setattr(machine, "available_bytes", lambda: available)
    try:
        require_memory(CONFIG, B, T, sample_length)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return None


def test_what_is_no_array_counts(monkeypatch, no_program):
    needed = total(5, 50)
    for part in ("KERNELS", "PICTURE"):
        with monkeypatch.context() as patch:
            patch.setattr(budget, part, 1000)
            assert refusal(monkeypatch, needed + 999, 5, 50)
            assert refusal(monkeypatch, needed + 1000, 5, 50) is None
    # What the process holds is neither available nor needed once more.
    monkeypatch.setattr(machine, "held_bytes", lambda: 10**6)
    assert refusal(monkeypatch, needed, 5, 50) is None
    assert refusal(monkeypatch, needed - 1, 5, 50)


def test_exactly_enough_is_enough(monkeypatch, no_program):
    assert refusal(monkeypatch, total(5, 50, 7), 5, 50, 7) is None
    assert refusal(monkeypatch, total(5, 50, 7) - 1, 5, 50, 7).startswith(
        "not enough memory: training at --batch-size 5 --seq-len 50 needs "
    )


@pytest.mark.parametrize("sample_length", [0, 40])
@pytest.mark.parametrize(("B", "T"), [(8, 96), (1, 96), (8, 1), (3, 300), (40, 20)])
@pytest.mark.parametrize("part", [0.001, 0.1, 0.35, 0.8, 0.99])
def test_what_it_says_would_fit_is_the_most_that_does(monkeypatch, no_program, B, T, part, sample_length):
    least = total(1, 1, sample_length)
    available = int(least + part * (total(B, T, sample_length) - least))
    message = refusal(monkeypatch, available, B, T, sample_length)
    batch = max((b for b in range(1, B) if total(b, T, sample_length) <= available), default=None)
    length = max((t for t in range(1, T) if total(B, t, sample_length) <= available), default=None)
    found = re.search(r"--batch-size (\d+) at this --seq-len", message)
    assert (int(found[1]) if found else None) == batch
    found = re.search(r"--seq-len (\d+) at this --batch-size", message)
    assert (int(found[1]) if found else None) == length
    found = re.search(r"--batch-size 1 with --seq-len (\d+)", message)
    if batch is None and length is None:
        assert int(found[1]) == max(t for t in range(1, T) if total(1, t, sample_length) <= available)
    else:
        assert found is None
    assert "not even" not in message


@pytest.mark.parametrize(("B", "T"), [(1, 1), (8, 96)])
def test_a_model_that_does_not_fit_at_all(monkeypatch, no_program, B, T):
    message = refusal(monkeypatch, total(1, 1) - 1, B, T)
    assert "; not even 1 x 1 fits: choose a smaller model" in message and "--batch-size 1 " not in message.split(";")[1]


def test_a_batch_as_large_as_an_option_can_be_is_refused_at_once(monkeypatch):
    message = refusal(monkeypatch, 10**10, 2**40, 2**40)
    assert "--batch-size 1 with --seq-len" in message


def test_too_little_disk(monkeypatch, tmp_path):
    each = checkpoint_bytes(CONFIG)
    usage = {"free": 3 * each}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, usage["free"]))
    require_disk(CONFIG, tmp_path, 3)
    usage["free"] -= 1
    with pytest.raises(
        UserError, match=rf"^{tmp_path}: 3 checkpoints, 0\.\d\d MB of disk, would not fit: .* --out-dir"
    ) as caught:
        require_disk(CONFIG, tmp_path, 3)
    assert "\n" not in str(caught.value)
    require_disk(CONFIG, tmp_path, 3, replaced=1)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="gone: No such file or directory"):
        require_disk(CONFIG, tmp_path / "gone", 1)


def test_a_limit_on_the_size_of_files_is_found_out_before_the_first_step(monkeypatch, tmp_path):
    state_bytes = checkpoint_bytes(CONFIG) - 1024 - 4 * parameter_layout(CONFIG).size  # without the model file
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (state_bytes, resource.RLIM_INFINITY))
    require_disk(CONFIG, tmp_path, 1)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (state_bytes - 1, resource.RLIM_INFINITY))
    with pytest.raises(UserError, match=r"^ulimit -f: [^\n]* raise the limit$"):
        require_disk(CONFIG, tmp_path, 1)
