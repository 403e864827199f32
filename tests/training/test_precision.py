"""Runs whose matrix products round their factors to bfloat16."""

import contextlib
import io

import numpy as np
import pytest

import train_gpt2
from gpt2 import GPT2, GPT2Config
from gpt2.errors import UserError
from gpt2.formats.llmc import write_tokens
from gpt2.kernels.engine import target
from gpt2.machine import available_threads, set_threads
from gpt2.training.report import offer_bf16
from tests.support.runs import contents, train_losses

CONFIG = GPT2Config(maxT=16, V=50, L=2, NH=2, C=12)
COMMON = "--init tiny.bin --train-data train.bin --val-data val.bin -b 2 -t 8 -x 6 --val-every 3 --sample-every 0"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of a run. CPUs without AVX512_BF16 compute the portable form."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(target, "bf16_form", lambda: target.AVX512_BF16)
    GPT2(CONFIG, seed=1).save("tiny.bin")
    write_tokens("train.bin", np.random.default_rng(0).integers(0, 50, 200))
    write_tokens("val.bin", np.arange(100) % 50)
    yield tmp_path
    set_threads(available_threads())


def train(*arguments):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert train_gpt2.main([*COMMON.split(), *arguments]) is None
    return printed.getvalue()


def test_a_run_in_bfloat16_computes_other_digits_and_says_so(folder):
    printed = train("--out-dir", "float32")
    assert "| products of bfloat16" not in printed
    printed = train("--out-dir", "bf16", "--precision", "bf16")
    assert "| products of bfloat16 | seed" in printed
    exact, rounded = train_losses("float32"), train_losses("bf16")
    assert len(exact) == 6 and exact != rounded == pytest.approx(exact, rel=2e-3)


def test_it_resumes_bit_for_bit_on_any_number_of_threads(folder):
    train("--out-dir", "whole", "--precision", "bf16", "--threads", "1")
    train("--out-dir", "parts", "--precision", "auto", "--threads", "2", "-x", "3")
    with contextlib.redirect_stdout(io.StringIO()):
        train_gpt2.main(["--resume", "parts", "-x", "6", "--threads", "2"])
    assert contents("whole", 6) == contents("parts", 6)


def test_another_precision_does_not_continue_a_run(folder):
    train("--out-dir", "out", "--precision", "bf16", "-x", "2")
    with pytest.raises(UserError, match="--precision was bf16, not float32; leave them"):
        train_gpt2.main(["--resume", "out", "-x", "6", "--precision", "float32"])


def test_auto_continues_a_run_that_auto_began(folder, monkeypatch):
    train("--out-dir", "out", "--precision", "auto", "-x", "2")
    train_gpt2.main(["--resume", "out", "-x", "3", "--precision", "auto"])
    train_gpt2.main(["--resume", "out", "-x", "4", "--precision", "bf16"])
    monkeypatch.setattr(target, "bf16_form", lambda: None)
    with pytest.raises(UserError, match="--precision was bf16, not float32; leave them"):
        train_gpt2.main(["--resume", "out", "-x", "6", "--precision", "auto"])
    train_gpt2.main(["--resume", "out", "-x", "6", "--precision", "auto", "--resume-anyway"])
    assert len(train_losses("out")) == 6


def test_a_cpu_without_the_instruction_refuses(folder, monkeypatch):
    train("--out-dir", "out", "--precision", "bf16", "-x", "2")
    monkeypatch.setattr(target, "bf16_form", lambda: None)
    message = "--precision bf16: this CPU has no AVX512_BF16; train in float32, or set GPT2_BF16=portable"
    with pytest.raises(UserError, match=message):
        train("--precision", "bf16", "--out-dir", "refused")
    with pytest.raises(UserError, match=message):
        train_gpt2.main(["--resume", "out", "-x", "6"])
    assert "bfloat16" not in train("--precision", "auto", "--out-dir", "auto")
    monkeypatch.setattr(target, "bf16_form", lambda: target.PORTABLE)
    assert "| products of bfloat16" in train("--precision", "bf16", "--out-dir", "portable")


@pytest.mark.parametrize("form", [target.AVX512_BF16, target.AMX])
def test_a_cpu_that_offers_it_is_told_of(folder, monkeypatch, capsys, form):
    monkeypatch.setattr("gpt2.training.report.bf16_form", lambda: form)
    monkeypatch.setattr("gpt2.training.report._WORTH_SAYING", 0)  # the model is too small for a gain to be sure
    line = ": with --precision bf16 the products of this model would be about "
    assert f"this CPU has {form}{line}" in train("--out-dir", "float32", "-x", "2")
    train_gpt2.main(["--resume", "float32", "-x", "6"])  # which could not take it
    assert line not in capsys.readouterr().out
    assert line not in train("--out-dir", "bf16", "--precision", "bf16")
    monkeypatch.setattr("gpt2.training.report._WORTH_SAYING", np.inf)
    assert line not in train("--out-dir", "no-gain", "-x", "2")
    monkeypatch.setattr("gpt2.training.report._WORTH_SAYING", 0)
    monkeypatch.setattr("gpt2.training.report.bf16_form", lambda: target.PORTABLE)
    assert line not in train("--out-dir", "portable")
    monkeypatch.setattr("gpt2.training.report.bf16_form", lambda: None)
    assert line not in train("--out-dir", "elsewhere")


def test_the_offer_is_measured_on_part_of_a_large_batch(monkeypatch):
    monkeypatch.setattr("gpt2.training.report.bf16_form", lambda: target.AVX512_BF16)
    shapes = set()
    monkeypatch.setattr("gpt2.training.report.matmul_nt", lambda out, *arguments: shapes.add(out.shape))
    offer_bf16(GPT2(CONFIG), 16 * 1024)
    assert shapes == {(256, 48)}


def test_another_value_of_the_variable_is_refused(folder, monkeypatch):
    monkeypatch.setenv("GPT2_BF16", "yes")
    with pytest.raises(UserError, match=r"^GPT2_BF16=yes: expected portable, or no such variable$"):
        train("--precision", "auto")
