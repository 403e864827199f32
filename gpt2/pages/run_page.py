"""The page of `gpt2 report`: the curves, options and samples of a run, which may still be going on."""

import array
import math
import pathlib

import numpy as np

from gpt2.errors import UserError
from gpt2.formats.files import open_to_read
from gpt2.formats.run import METRICS, checkpoint_paths, is_step, parse_json_object, steps
from gpt2.formats.training_state import read_state_sizes
from gpt2.pages import page

KIND = "report"
CURVES = ("train_loss", "val_loss", "grad_norm", "lr", "gradients_ms", "update_ms", "tokens_per_s")
MOST_POINTS = 2000  # of a curve: more than a screen has columns
MOST_MAPS = 300  # columns of a map of norms
MOST_SAMPLES = 200


def report(folder):
    """Returns (the page, bytes, and the step it goes up to) of the run in a folder, of which nothing is changed.

    Raises UserError if the folder holds no metrics.
    """
    path = pathlib.Path(folder, METRICS)
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected the folder of a run, which writes it")
    curves, samples, norms = _read(path)
    if not curves["step"].size:
        raise UserError(f"{path}: no records yet; wait for the first step")
    config, progress = _newest_state(folder)
    last = int(curves["step"][-1])
    data = {
        "name": str(folder),
        "curves": _thinned(_with_axes(curves)),
        "validation": _validation(_with_axes(curves)),
        "samples": _spread_out(samples, MOST_SAMPLES),
        "norms": _norm_maps(_spread_out(norms, MOST_MAPS)),
        "facts": _facts(curves, config, progress),
        "options": _options(progress),
    }
    return page.render(KIND, f"{folder}: training run", data), last


def _read(path):
    """Returns (curves, samples, norms) of a metrics.jsonl; of each step the last record counts, damaged lines do not.

    curves: dict of "step" and CURVES -> float64 (n,), NaN where a record has none. samples, norms: lists of (step,
    text), (step, dict of tensor -> list of norms by layer).
    """
    columns = {name: array.array("d") for name in ("step", *CURVES)}
    samples, norms = {}, {}
    with open_to_read(path) as file:
        for line in file:
            record = parse_json_object(line)
            if not is_step(step := record.get("step")):
                continue
            columns["step"].append(step)
            for name in CURVES:
                columns[name].append(_number(record.get(name)))
            if isinstance(sample := record.get("sample"), str):
                samples[step] = sample
            if isinstance(found := record.get("norms"), dict):
                norms[step] = {name: _numbers(values) for name, values in found.items()}
    columns = {name: np.array(values) for name, values in columns.items()}
    _, newest_first = np.unique(columns["step"][::-1], return_index=True)
    order = columns["step"].size - 1 - newest_first
    return {name: values[order] for name, values in columns.items()}, sorted(samples.items()), sorted(norms.items())


def _number(value):
    return float(value) if isinstance(value, int | float) and abs(value) < 1e100 else math.nan


def _numbers(values):
    return [_number(value) for value in (values if isinstance(values, list) else [values])]


def _with_axes(curves):
    """Returns the curves with "tokens" seen and "hours" spent in steps by the end of each, float64 (n,)."""
    ms = curves["gradients_ms"] + curves["update_ms"]
    tokens = np.nan_to_num(np.rint(curves["tokens_per_s"] * ms / 1e3))
    return curves | {"tokens": np.cumsum(tokens), "hours": np.cumsum(np.nan_to_num(ms)) / 3.6e6}


def _thinned(curves):
    """Returns the records of training steps as lists for JSON, "every" of them averaged into a point."""
    trained = np.isfinite(curves["gradients_ms"])
    n = int(np.count_nonzero(trained))
    every = max(1, math.ceil(n / MOST_POINTS))
    starts = np.arange(0, n, every)
    out = {"every": every}
    for name in ("step", "tokens", "hours"):
        values = curves[name][trained]
        out[name] = _listed(values[np.minimum(starts + every, n) - 1])
    for name in CURVES:
        if name != "val_loss" and n:
            out[name] = _listed(_mean_of_finite(curves[name][trained], starts))
    return out


def _mean_of_finite(values, starts):
    finite = np.isfinite(values)
    counts = np.add.reduceat(finite.astype(float), starts)
    sums = np.add.reduceat(np.where(finite, values, 0.0), starts)
    return np.divide(sums, counts, out=np.full(starts.size, np.nan), where=counts > 0)


def _validation(curves):
    """Returns the validations as lists for JSON, at most MOST_POINTS of them."""
    places = _spread_out(np.flatnonzero(np.isfinite(curves["val_loss"])), MOST_POINTS)
    return {name: _listed(curves[name][places]) for name in ("step", "tokens", "hours", "val_loss")}


def _listed(values):
    """Returns an array as a list for JSON: whole numbers exact, others with 6 significant digits, None for NaN."""
    return [None if not math.isfinite(x) else int(x) if x == int(x) else float(f"{x:.6g}") for x in values.tolist()]


def _spread_out(items, most):
    """Returns at most `most` of the items, evenly, the last among them; an array stays one."""
    if len(items) <= most:
        return items
    places = np.linspace(0, len(items) - 1, most).round().astype(int)
    return items[places] if isinstance(items, np.ndarray) else [items[place] for place in places]


def _norm_maps(norms):
    """Returns norms as a dict for JSON: "steps", and "tensors", name -> for each step a list by layer."""
    names = dict.fromkeys(name for _, found in norms for name in found)
    layers = {name: max(len(found.get(name, [])) for _, found in norms) for name in names}
    padded = {
        name: [_listed(np.array((found.get(name, []) + [math.nan] * count)[:count])) for _, found in norms]
        for name, count in layers.items()
    }
    return {"steps": [step for step, _ in norms], "tensors": padded}


def _newest_state(folder):
    """Returns (GPT2Config, progress) of the newest readable training state, (None, {}) if there is none.

    Only its description is read: the arrays are not verified, and a run at work may remove the file.
    """
    for step in steps(folder):
        _, path = checkpoint_paths(folder, step)
        try:
            with open_to_read(path) as file:
                config, _, size, _ = read_state_sizes(file, path)
                progress = parse_json_object(file.read(size)).get("progress")
        except UserError:
            continue
        if isinstance(progress, dict):
            return config, progress
    return None, {}


def _facts(curves, config, progress):
    """Returns what the page says of the run in short, a list of [name, text]."""
    facts, axes = [], _with_axes(curves)
    last, asked = int(curves["step"][-1]), _dict(progress, "resolved").get("max_steps")
    facts.append(["steps", f"{last:,} of {asked:,}" if is_step(asked) else f"{last:,}"])
    if axes["tokens"][-1]:
        facts.append(["tokens", f"{axes['tokens'][-1]:,.0f} in {_duration(axes['hours'][-1])} of training steps"])
    trained, validated = (curves[name][np.isfinite(curves[name])] for name in ("train_loss", "val_loss"))
    if trained.size:
        facts.append(["training loss", f"{trained[-1]:.4f} nats at the last step"])
    if validated.size:
        best = int(np.nanargmin(curves["val_loss"]))
        facts.append(
            ["validation loss", f"{validated[-1]:.4f} at last, lowest {validated.min():.4f} "
             f"after step {curves['step'][best]:,.0f}"]
        )  # fmt: skip
    rates = curves["tokens_per_s"][np.isfinite(curves["tokens_per_s"])]
    if rates.size:
        facts.append(["rate", f"{np.median(rates):,.0f} tokens a second, the median"])
    skipped = {name: count for name, count in _dict(progress, "skipped").items() if count}
    if skipped:
        facts.append(["updates skipped", ", ".join(f"{count} {name}" for name, count in skipped.items())])
    if config:
        facts.append(["model", f"L {config.L}, NH {config.NH}, C {config.C}, maxT {config.maxT}, V {config.V:,}: "
                      f"{config.num_parameters:,} parameters"])  # fmt: skip
    for name, split in (("train_data", "training data"), ("val_data", "validation data")):
        if files := progress.get(name):
            facts.append([split, ", ".join(str(each.get("file")) for each in files if isinstance(each, dict))])
    if versions := _dict(progress, "versions"):
        facts.append(["versions", ", ".join(f"{name} {version}" for name, version in versions.items())])
    return facts


def _options(progress):
    """Returns the run's options, with what they left open resolved, a list of [name, text] in alphabetical order."""
    resolved = {name: value for name, value in _dict(progress, "resolved").items() if value is not None}
    return [[f"--{name.replace('_', '-')}", _shown(value)] for name, value in sorted(
        (_dict(progress, "options") | resolved).items()) if value is not None]  # fmt: skip


def _shown(value):
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _dict(progress, name):
    value = progress.get(name)
    return value if isinstance(value, dict) else {}


def _duration(hours):
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.1f} seconds"
