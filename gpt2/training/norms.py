"""Gradient norms by tensor and layer: measured in a step, and drawn at the end of a run."""

import math

import numpy as np

from gpt2.formats import files
from gpt2.kernels.adamw import sum_of_squares
from gpt2.layout import LAYER_PARAMETERS
from gpt2.training.metrics import number, read_records
from gpt2.training.run_folder import require_lock

_COLUMNS = 1000  # of more steps than twice as many, the picture shows every second, fourth ...


def layer_norms(state, scale):
    """Returns the norms of the gradients times `scale`: a dict of tensor -> list of float, one a layer.

    The list of a tensor that layers do not have has one. state: a TrainState whose gradients are summed up, on each
    rank in its own shard; all ranks call this.
    """
    world = state.world
    shard, grads = state.shards[world.rank], state.model.grads_flat
    pieces, squares, norms = list(_pieces(state.optimizer.layout)), [], {}
    for _, piece in pieces:
        own = grads[max(piece.start, shard.start) : min(piece.stop, shard.stop)]
        squares.append(sum_of_squares(own) if own.size else 0.0)
    for (name, _), parts in zip(pieces, zip(*world.gather(squares), strict=True), strict=True):
        norms.setdefault(name, []).append(scale * math.sqrt(sum(parts)))
    return norms


def _pieces(layout):
    """Yields (tensor, slice of the flat array): all of the tensor, or that of one layer after the other."""
    for name, shape in layout.shapes.items():
        whole, count = layout.slice(name), shape[0] if name in LAYER_PARAMETERS else 1
        size = (whole.stop - whole.start) // count
        for start in range(whole.start, whole.stop, size):
            yield name, slice(start, start + size)


def draw_norms(path, picture):
    """Draws the norms in the records at `path`, if there are any: by layer over the steps; of the last by tensor, too.

    path, picture: of metrics.jsonl and of a PNG file in a run's folder. That is removed if there is nothing to draw.
    """
    require_lock(picture.parent)
    steps, columns, last, stride = [], [], None, 1
    for count, record in enumerate(record for record in read_records(path) if "norms" in record):
        last = record
        if count % stride == 0:
            steps.append(record["step"])
            columns.append([norm for _, norm, _ in _rows(record["norms"])])
        if len(steps) == 2 * _COLUMNS:
            steps, columns, stride = steps[::2], columns[::2], 2 * stride
    if last is None:
        picture.unlink(missing_ok=True)
        return
    figure = _figure(np.array(steps), np.array(columns).T, last)
    with files.atomic_write(picture) as file:
        figure.savefig(file, format="png", dpi=120)


def _rows(norms):
    """Yields (label, norm, norms of its tensors) of each row: a layer, or a tensor that layers do not have."""
    names = _layer_tensors(norms)
    for name, values in norms.items():
        if name not in names:
            yield name, number(values[0]), len(names) * [math.nan]
        elif name == names[0]:
            for layer, parts in enumerate(zip(*(norms[each] for each in names), strict=True)):
                parts = list(map(number, parts))
                yield f"layer {layer}", math.hypot(*parts), parts


def _layer_tensors(norms):
    return [name for name in norms if name in LAYER_PARAMETERS]


def _figure(steps, columns, last):
    """steps (n,), columns (rows, n): the norms of the rows at these steps. last: the last record."""
    import matplotlib.colors  # takes a second to import, and only the end of a run needs it
    import matplotlib.figure

    labels, _, tensors = zip(*_rows(last["norms"]), strict=True)
    names = _layer_tensors(last["norms"])
    figure = matplotlib.figure.Figure(figsize=(13, 2 + 0.22 * len(labels)), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    edges = [steps[0] - 0.5, *(steps[1:] + steps[:-1]) / 2, steps[-1] + 0.5]
    for axes, values, x in ((left, columns, edges), (right, np.array(tensors), np.arange(len(names) + 1) - 0.5)):
        values = np.ma.masked_invalid(np.where(values > 0, values, np.nan))  # the colours are of a logarithmic scale
        limits = (values.min(), values.max()) if values.count() else (0.1, 1)
        mesh = axes.pcolormesh(x, np.arange(len(labels) + 1) - 0.5, values, norm=matplotlib.colors.LogNorm(*limits))
        figure.colorbar(mesh, ax=axes, pad=0.02)
    left.invert_yaxis()
    left.set(title="gradient norm by layer, over the steps", xlabel="step")
    left.set_yticks(range(len(labels)), labels)
    right.set(title=f"by tensor, at step {last['step']}")
    right.set_xticks(range(len(names)), names, rotation=60)
    return figure
