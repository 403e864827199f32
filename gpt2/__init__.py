"""GPT-2 on the CPU: flat float32 buffers, Numba kernels, no framework.

The names in `__all__` are imported when they are first used, so that `import gpt2` takes milliseconds.
"""

import importlib

# Name -> the module that it comes from.
_HOMES = {
    "GPT2": "gpt2.model",
    "GPT2Config": "gpt2.config",
    "AdamW": "gpt2.optimizer",
    "DataLoader": "gpt2.data.dataloader",
    "Tokenizer": "gpt2.data.vocabulary",
    "train": "gpt2.training.loop",
    "resume": "gpt2.training.loop",
    "TrainOptions": "gpt2.training.options",
    "__version__": "gpt2.version",
}
__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module 'gpt2' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__():
    return sorted({*globals(), *__all__})
