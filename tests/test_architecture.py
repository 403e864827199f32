"""Imports point one way: what each layer may import, read off the sources."""

import ast
import pathlib
import subprocess
import sys

import pytest

from gpt2.commands import COMMANDS as TABLE

ROOT = pathlib.Path(__file__).resolve().parents[1]
# From the bottom up: a layer imports itself and the layers before it.
LAYERS = ("kernels", "core", "formats", "data", "inference", "training", "pages", "commands")
COMMANDS = {"__main__", "arguments", "commands", "model_card", "training.__main__", *TABLE}
KERNEL_LIBRARIES = {"numba", "llvmlite"}
# GPT2.load, GPT2.from_pretrained and GPT2.generate stand where a reader looks for them; missing kernels are compiled by
# their warm-up.
EXCEPTIONS = {
    ("gpt2.model", "gpt2.formats"),
    ("gpt2.model", "gpt2.inference.completion"),
    ("gpt2.kernels", "gpt2.inference.warmup"),
}
SOURCES = sorted([*ROOT.glob("*.py"), *(ROOT / "gpt2").rglob("*.py")])


def module_of(path):
    """The dotted name of a source file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module):
    """The layer of a module or of a name in one."""
    package, _, rest = module.partition(".")
    name = rest.partition(".")[0]
    if package != "gpt2" or COMMANDS & {name, rest}:
        return "commands"
    return name if name in LAYERS else "core"


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
    return [name for name in imports_of(source) if not may_import(module, name)]


def may_import(module, name):
    layer = layer_of(module)
    if name.partition(".")[0] == "gpt2":
        if any(module == importer and name.startswith(imported) for importer, imported in EXCEPTIONS):
            return True
        return LAYERS.index(layer_of(name)) <= LAYERS.index(layer)
    top = name.partition(".")[0]
    if layer == "kernels":
        return top in KERNEL_LIBRARIES | {"numpy"} | set(sys.stdlib_module_names)
    return top not in KERNEL_LIBRARIES


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_the_right_way(path):
    assert offences(module_of(path), path.read_text(encoding="utf-8")) == []


def test_a_run_that_downloads_nothing_does_not_load_what_would():
    program = "import sys, gpt2.training.loop; print({'requests', 'huggingface_hub'} & sys.modules.keys())"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gpt2.optimizer", "import numba"),
        ("gpt2.training.loop", "def f():\n    from numba import njit"),
        ("gpt2.kernels.gelu", "from gpt2.model import GPT2"),
        ("gpt2.kernels.engine.gemm", "import requests"),
        ("gpt2.config", "from gpt2.formats import files"),
        ("gpt2.formats.llmc", "from gpt2.data.dataloader import DataLoader"),
        ("gpt2.data.dataset", "import gpt2.inference.decoder"),
        ("gpt2.inference.sampling", "from gpt2.training import loop"),
        ("gpt2.training.loop", "from gpt2 import generate"),
        ("gpt2.training.loop", "from gpt2.pages import page"),
        ("gpt2.pages.page", "from gpt2 import inspect"),
    ],
)
def test_a_wrong_arrow_is_found(module, source):
    assert len(offences(module, source)) == 1
