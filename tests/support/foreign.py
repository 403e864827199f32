"""transformers' GPT-2 with the parameters of one of our models, for cross-checks."""

import importlib
import os

import numpy as np
import pytest

from gpt2.formats.huggingface import FOREIGN_NAMES, FOREIGN_SIZES, TRANSPOSED
from tests.support.numeric import relative_error


def require(name):
    """Imports a package that only cross-checks need.

    Where it is missing the test is skipped, or fails if GPT2_REQUIRE_CROSSCHECK is 1.
    """
    if os.environ.get("GPT2_REQUIRE_CROSSCHECK") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)


def foreign_model(model, dtype):
    """Returns transformers' GPT-2 with the parameters of `model`, computing in dtype, "float32" or "float64"."""
    torch = require("torch")
    transformers = require("transformers")
    sizes = {foreign: getattr(model.config, ours) for ours, foreign in FOREIGN_SIZES.items()}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    config = transformers.GPT2Config(**sizes, **dropouts, attn_implementation="eager")
    theirs = transformers.GPT2LMHeadModel(config).to(getattr(torch, dtype))
    with torch.no_grad():
        for _, parameter, ours in parameter_pairs(theirs, model.params, model.config):
            parameter.copy_(torch.from_numpy(np.ascontiguousarray(ours)))
    return theirs


def parameter_pairs(theirs, tensors, config):
    """Yields (our name, their parameter, the matching part of our tensor, in their shape)."""
    parameters = dict(theirs.transformer.named_parameters())
    for name, foreign in FOREIGN_NAMES.items():
        ours = tensors[name][: config.V] if name == "wte" else tensors[name]
        if "{}" not in foreign:
            yield name, parameters[foreign], ours
            continue
        for layer in range(config.L):
            part = ours[layer].T if name in TRANSPOSED else ours[layer]
            yield name, parameters[foreign.format(layer)], part


def foreign_forward(theirs, tokens, targets):
    """Returns (logits, mean loss), PyTorch tensors."""
    torch = require("torch")
    logits = theirs(torch.from_numpy(tokens.astype(np.int64))).logits
    rows = logits.reshape(-1, logits.shape[-1])
    return logits, torch.nn.functional.cross_entropy(rows, torch.from_numpy(targets.reshape(-1).astype(np.int64)))


def foreign_optimizer(theirs, lr, weight_decay):
    """Returns PyTorch's AdamW with GPT-2's usual groups: weight decay on matrices and embeddings only."""
    torch = require("torch")
    groups = [
        {"params": [p for p in theirs.parameters() if p.dim() == 2], "weight_decay": weight_decay},
        {"params": [p for p in theirs.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8)


def gradient_differences(theirs, grads, config):
    """Returns a dict of each of the 16 names -> relative difference of the gradient over all layers."""
    parts = {}
    for name, parameter, ours in parameter_pairs(theirs, grads, config):
        parts.setdefault(name, []).append((np.asarray(ours).ravel(), parameter.grad.numpy().ravel()))
    return {name: relative_error(*map(np.concatenate, zip(*pairs, strict=True))) for name, pairs in parts.items()}
