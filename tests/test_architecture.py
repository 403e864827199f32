"""Arrows point one way: what each module may import, read off the sources."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent
KERNEL_LIBRARIES = {"numba", "llvmlite"}

# Module -> what of the package it may know. "kernels" stands for all of its modules.
FILES = {"errors", "files"}
MODEL_FILES = {*FILES, "config", "layout", "memory", "modelfile", "weights"}
MAY_IMPORT = {
    "errors": set(),
    "files": {"errors"},
    "memory": {"errors"},
    "config": {"errors"},
    "layout": {"errors"},
    "kernels": {"kernels", "errors"},
    "modelfile": {*FILES, "config", "layout", "memory"},
    "checkpoint": {*FILES, "config", "layout", "modelfile"},
    "huggingface": {*FILES, "config", "layout", "memory", "modelfile"},
    "weights": {*FILES, "config", "layout", "memory", "modelfile", "checkpoint", "huggingface", "fetch"},
    "convert": {*FILES, "modelfile", "huggingface", "weights", "tokenizer"},
    "model": {*MODEL_FILES, "kernels"},
    "optimizer": {"errors", "config", "layout", "memory", "kernels", "model"},
    "nonfinite": set(),
    "outliers": {"errors"},
    "stop": set(),
    "lock": {"errors"},
    "room": {"errors", "files", "config", "layout", "memory", "model", "decoder"},
    "decoder": {"errors", "config", "layout", "memory", "kernels"},
    "context": {"errors", "decoder"},
    "sampling": {"errors"},
    "progress": {"kernels"},
    "beam": {"sampling"},
    "textstream": {"tokenizer"},
    "interactive": {"sampling", "textstream", "tokenizer"},
    "generate": {
        *FILES,
        *("weights", "kernels", "decoder", "context", "sampling", "beam"),
        *("textstream", "interactive", "tokenizer", "progress"),
    },
    "hellaswag": FILES,
    "evaluate": {*FILES, "kernels", "model", "dataloader", "tokenizer", "hellaswag", "progress"},
    "verify": {*MODEL_FILES, "model"},
    "profile": {"errors", "config", "layout", "memory", "kernels", "model", "optimizer"},
    "fetch": FILES,
    "dataloader": FILES,
    "tokenizer": {*FILES, "fetch"},
    "dataset": {*FILES, "fetch", "tokenizer", "dataloader"},
    "metrics": FILES,
    "sampler": {"errors", "model", "context", "sampling", "tokenizer"},
    "start": {*MODEL_FILES, "checkpoint", "lock", "model"},
    "resume": {"errors", "checkpoint", "dataloader", "kernels"},
    "trainer": {
        *("errors", "config", "checkpoint", "kernels", "model", "optimizer", "decoder", "dataloader", "metrics"),
        *("nonfinite", "outliers", "progress", "resume", "room", "sampler", "start", "stop"),
    },
    "": {"config", "model"},  # gpt2/__init__.py
    # The scripts: arguments in, one call. The two more are for the choices and the default that --help shows.
    "prepro_tinyshakespeare": {"dataset", "errors"},
    "train_gpt2": {"trainer", "errors", "optimizer", "kernels"},
}
SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "gpt2").rglob("*.py")])


def module_of(path):
    """The key of MAY_IMPORT that stands for a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "gpt2":
        return parts[0]
    return "" if parts[1] == "__init__" else parts[1]


def imports_of(source):
    """Yields the dotted names that a source imports, anywhere in it; `from gpt2 import x` gives gpt2.x."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, or this test would not see them"
            yield from ([f"gpt2.{alias.name}" for alias in node.names] if node.module == "gpt2" else [node.module])


def offences(module, source):
    """Returns the imports of a module's source that point the wrong way."""
    wrong = []
    for name in imports_of(source):
        top, _, rest = name.partition(".")
        if top == "gpt2":
            allowed = rest.split(".")[0] in MAY_IMPORT[module]
        elif module == "kernels":
            allowed = top in KERNEL_LIBRARIES | {"numpy"} | set(sys.stdlib_module_names)
        else:
            allowed = top not in KERNEL_LIBRARIES
        if not allowed:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_the_right_way(path):
    module = module_of(path)
    assert module in MAY_IMPORT, f"{path.name} is new: say in MAY_IMPORT what it may know"
    assert offences(module, path.read_text(encoding="utf-8")) == []


def test_a_run_that_downloads_nothing_does_not_load_what_would():
    program = "import sys, gpt2.trainer; print({'requests', 'huggingface_hub'} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"


def test_every_rule_has_its_module():
    assert {module_of(path) for path in SOURCES} == set(MAY_IMPORT)


def test_no_rules_make_a_circle():
    # Taking away modules that know only modules already taken away, none is left.
    left = {module: allowed - {module} for module, allowed in MAY_IMPORT.items()}
    while free := {module for module, allowed in left.items() if not allowed & left.keys()}:
        left = {module: allowed for module, allowed in left.items() if module not in free}
    assert not left


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("model", "import numba"),
        ("trainer", "def f():\n    from numba import njit"),
        ("kernels", "from gpt2.model import GPT2"),
        ("kernels", "import requests"),
        ("config", "from gpt2 import model"),
        ("dataloader", "import gpt2.kernels.threads"),
        ("prepro_tinyshakespeare", "from gpt2 import GPT2Config"),
    ],
)
def test_a_wrong_arrow_is_found(module, source):
    assert len(offences(module, source)) == 1
