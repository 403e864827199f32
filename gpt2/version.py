"""The package's version; the number itself is in pyproject.toml."""

import importlib.metadata
import pathlib
import tomllib

_PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"  # of a checkout, which need not be installed
__version__ = (
    tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["version"]
    if _PROJECT.is_file()
    else importlib.metadata.version("gpt2")
)
