"""Where the first number that is not finite came up, once a loss or a gradient's norm has shown that there is one."""

import itertools

import numpy as np

CHUNK = 2**20  # elements looked at a time: the answers of a whole tensor would take a quarter of its memory


def first_nonfinite(model):
    """Names the first tensor that holds a NaN or an infinity, and the first such place in it; None if there is none.

    model: a GPT2 after forward(tokens, targets), before the parameters are updated. Looked at in the order of
    computation: the parameters; the activations that the forward pass keeps, not its scratch; the gradients as
    `first_nonfinite_gradient` does, if there are any yet. Layers, rows, columns and indices are counted from 0; a row
    of an activation is a token of the batch, and an index has the dimensions of the shape after it. An example:
    "fch of layer 3 (row 17, column 5 of (256, 3072))".
    """
    kept = dict(itertools.takewhile(lambda item: item[0] != "dnarrow", model.acts.items()))
    forward = itertools.chain(_in_order(model.params, "ln1w", "lnfw"), _in_order(kept, "ln1_mean", "lnf"))
    return _first_of(forward) or first_nonfinite_gradient(model)


def first_nonfinite_gradient(model):
    """The same for the gradients alone, which an update of the parameters leaves as they were: from that of the final
    layernorm down to those of the embeddings. That of wte is last, though the classifier has a part in it.
    """
    if "grads_flat" not in vars(model):  # where looking at them would allocate them
        return None
    gradients = list(_in_order(model.grads, "ln1w", "lnfw"))
    return _first_of((f"the gradient of {name}", tensor) for name, tensor in reversed(gradients))


def _in_order(tensors, first, after):
    """Yields (name, tensor) of a dict in the order of computation: those from `first` on, as far as `after`, have a
    part for each layer.
    """
    names = list(tensors)
    start, stop = names.index(first), names.index(after)
    yield from ((name, tensors[name]) for name in names[:start])
    for layer, name in itertools.product(range(len(tensors[first])), names[start:stop]):
        yield f"{name} of layer {layer}", tensors[name][layer]
    yield from ((name, tensors[name]) for name in names[stop:])


def _first_of(tensors):
    for name, tensor in tensors:
        flat = tensor.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            finite = np.isfinite(flat[start : start + CHUNK])
            if not finite.all():
                return f"{name} ({_place(start + int(finite.argmin()), tensor.shape)})"
    return None


def _place(position, shape):
    index = [int(i) for i in np.unravel_index(position, shape)]
    if len(index) == 2:
        return f"row {index[0]}, column {index[1]} of {shape}"
    return f"index {', '.join(map(str, index))} of {shape}"
