"""`gpt2 COMMAND`: the table of commands, how fast they start, their help, and mistakes on the command line."""

import importlib
import os
import pathlib
import shlex
import subprocess
import sys
import tomllib

import numba
import pytest

import gpt2
from gpt2.__main__ import main
from gpt2.arguments import Parser
from gpt2.commands import COMMANDS
from gpt2.errors import UserError, run_command

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def parser_of(name):
    return importlib.import_module(COMMANDS[name].module).make_parser()


def run(words, capsys):
    """Runs a command line; returns (exit status, standard output, standard error)."""
    with pytest.raises(SystemExit) as ended:
        run_command(lambda: main(words))
    return ended.value.code, *capsys.readouterr()


def python(program, *arguments, **env):
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


# What starts.

LOADED = """
import sys
from gpt2.__main__ import main
try:
    main(sys.argv[1:])
finally:
    print("loaded:", *{"numba", "matplotlib", "tiktoken", "numpy"} & sys.modules.keys())
    sys.exit(0)
"""


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]])
def test_the_overview_loads_nothing_heavy(words):
    assert python(LOADED, *words).splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"train"}))  # its options are those of Numba's AdamW, too
def test_the_help_of_a_command_loads_neither_numba_nor_matplotlib(name):
    loaded = python(LOADED, name, "--help").splitlines()[-1].split()
    assert loaded[0] == "loaded:" and not {"numba", "matplotlib"} & set(loaded)


def test_the_package_imports_its_names_when_they_are_used():
    assert python("import sys, gpt2; print({'numba', 'numpy'} & sys.modules.keys(), dir(gpt2))").startswith("set()")
    assert set(gpt2.__all__) <= set(dir(gpt2))
    from gpt2 import GPT2, AdamW, DataLoader, GPT2Config, Tokenizer, TrainOptions, resume, train

    named = {each.__name__ for each in (GPT2, GPT2Config, AdamW, DataLoader, Tokenizer, TrainOptions, resume, train)}
    assert named | {"__version__"} == set(gpt2.__all__)
    assert train.__module__ == "gpt2.training.loop"
    with pytest.raises(AttributeError, match="module 'gpt2' has no attribute 'nonsense'"):
        gpt2.nonsense  # noqa: B018


@pytest.mark.slow
@pytest.mark.skipif(bool(numba.config.DISABLE_JIT), reason="nothing is compiled")
def test_whoever_imports_a_kernel_has_missing_ones_compiled_in_the_child(tmp_path):
    program = """
import numpy as np
from gpt2.kernels.adamw import sum_of_squares
import gpt2.inference.warmup
gpt2.inference.warmup.compile_in_child = lambda folder: print("child")
sum_of_squares(np.ones(8, np.float32))
"""
    assert python(program, NUMBA_CACHE_DIR=str(tmp_path)) == "child\n"


def test_the_version_has_one_place(capsys):
    assert gpt2.__version__ == PROJECT["version"]
    assert run(["--version"], capsys) == (None, f"gpt2 {PROJECT['version']}\n", "")
    for name in COMMANDS:
        assert run([name, "--version"], capsys) == (0, f"gpt2 {PROJECT['version']}\n", "")


def test_the_script_that_is_installed_is_there():
    module, _, function = PROJECT["scripts"]["gpt2"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


MODULES = sorted({each.module.removesuffix(".__main__") for each in COMMANDS.values()})


@pytest.mark.parametrize("module", ["gpt2", *MODULES])
def test_modules_run_as_programs(module):
    command = [sys.executable, "-m", module, "--help"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout
    assert printed.startswith("GPT-2 on the CPU" if module == "gpt2" else "examples:\n  gpt2 ")


# What is shown.


def test_the_overview_has_a_line_and_an_example_for_each_command(capsys):
    status, printed, _ = run([], capsys)
    assert status is None and max(map(len, printed.splitlines())) <= 120
    for name, command in COMMANDS.items():
        assert f"\n  {name:<11} {command.summary}\n" in printed and f" gpt2 {name} {command.examples[0]}\n" in printed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_examples_that_parse(name, capsys):
    status, printed, _ = run([name, "--help"], capsys)
    assert status == 0 and "(default: False)" not in printed and "(default: None)" not in printed
    assert printed.startswith(f"examples:\n  gpt2 {name} ") and printed.count("usage: ") == 1
    for example in COMMANDS[name].examples:
        parser_of(name).parse_args(shlex.split(example))


# Mistakes.

MISTAKES = {
    "trian": "trian: no such command; did you mean train?",
    "frobnicate": "frobnicate: no such command; gpt2 --help lists the commands",
    "train --batchsize 3": "--batchsize: no such option; did you mean --batch-size?",
    "train --frobnicate": "--frobnicate: no such option; gpt2 train --help lists the options",
    "train -q": "-q: no such option; gpt2 train --help lists the options",
    "chat --modle out": "--modle: no such option; did you mean --model?",
    "generate out --max-new 3": "--max-new: no such option; did you mean --max-new-tokens?",
    "generate out --temp=3": "--temp: no such option; did you mean --temperature?",
    "convert --tokeniser a b": "--tokeniser: no such option; did you mean --tokenizer?",
    "checkpoint --bets": "--bets: no such option; gpt2 checkpoint --help lists the options",
    "train --threads abc": "--threads abc: expected a whole number",
    "train --lr fast": "--lr fast: expected a number",
    "profile -b 1.5": "--batch-size 1.5: expected a whole number",
    "generate --weights int4": "--weights int4: expected one of float32, bf16, int8",
    "prepare a --name a --val-at middle": "--val-at middle: expected one of start, end",
    "generate --prompt": "--prompt: expected a value",
    "generate --show-tokens=3": "--show-tokens: takes no value",
    "prepare a": "the following arguments are required: --name",
    "convert a b c": "c: not expected here; gpt2 convert --help shows what is",
    "evaluate --data a": "no model given; name it first: gpt2 evaluate out",
    "generate a --model b": "a and b: give one model, as MODEL or as --model",
    "generate --model b --seed 1 a": "a and b: give one model, as MODEL or as --model",
    "generate a b": "a and b: give one model, as MODEL or as --model",
    "generate -- a b": "a and b: give one model, as MODEL or as --model",
    "completion fish": "SHELL fish: expected one of bash, zsh",
    "train --\x1b[1m": "--\\x1b[1m: no such option; gpt2 train --help lists the options",
}


@pytest.mark.parametrize(("line", "message"), MISTAKES.items(), ids=map(ascii, MISTAKES))
def test_a_mistake_is_one_line_and_status_2(line, message, capsys):
    assert run(line.split(" "), capsys) == (2, "", f"error: {message}\n")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_unknown_option_before_it_misses_anything(name, capsys):
    status, printed, line = run([name, "--no-such-thing"], capsys)
    assert (status, printed) == (2, "") and line.startswith("error: --no-such-thing: no such option; ")
    assert line.count("\n") == 1


@pytest.mark.parametrize("name", ["generate", "chat", "evaluate", "inspect"])
@pytest.mark.parametrize("line", ["out {}", "{} out", "--model out {}", "{} --model=out", "{} -- out"])
def test_a_model_is_named_in_its_place_or_by_its_option(name, line):
    others = {"evaluate": "--stride 3", "inspect": "--text a -o b"}.get(name, "--seed 3")
    options = parser_of(name).parse_args(line.format(others).split())
    assert options.model == "out" and "place" not in options


def test_a_default_model_is_that_of_no_other():
    assert parser_of("generate").parse_args([]).model == "gpt2"


def test_values_that_look_like_options_or_numbers(capsys):
    parser = Parser("tried", "A parser.", [""])
    parser.add_argument("--text")
    parser.add_argument("--number", "-n", type=float)
    parser.add_argument("rest", nargs="*", metavar="REST")
    given = parser.parse_args(["--text=--odd", "-n-1.5", "--", "--text"])
    assert (given.text, given.number, given.rest) == ("--odd", -1.5, ["--text"])
    assert parser.parse_args(["--text", "- a list", "-n", "-2"]).number == -2


# Completion.

COMPLETED = {
    "gpt2 gen": "generate",
    "gpt2 generate --mod": "--model",
    "gpt2 train --lr-": "--lr-schedule",
    "gpt2 generate --weights ": "float32 bf16 int8",
}


@pytest.fixture(scope="module")
def script():
    pytest.importorskip("shtab")
    command = [sys.executable, "-m", "gpt2", "completion", "bash"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize(("line", "words"), COMPLETED.items())
def test_a_shell_completes_commands_options_and_values(script, line, words):
    program = 'COMP_WORDS=("${@:1}"); COMP_CWORD=$(($# - 1)); _shtab_gpt2 2>/dev/null; echo "${COMPREPLY[@]}"'
    command = ["bash", "-c", f"{script}\n{program}", "bash", *line.split(" ")]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip() == words


def test_zsh_has_a_script_too(capsys):
    pytest.importorskip("shtab")
    _, printed, _ = run(["completion", "zsh"], capsys)
    assert printed.startswith("#compdef gpt2\n") and "--lr-schedule" in printed


def test_completion_without_its_package_is_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(UserError, match=r"^completion needs the package shtab: pip install shtab$"):
        main(["completion", "bash"])
