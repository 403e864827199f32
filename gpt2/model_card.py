"""The model card of a Hugging Face folder: README.md, with what is known of the model and its training."""

import dataclasses
import pathlib
import shlex

import numpy as np

from gpt2.errors import UserError
from gpt2.formats.pretrained import RELEASED
from gpt2.formats.run import MANIFEST, METRICS, is_checkpoint, newest_model

CARD = "README.md"
_TEXT = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- gpt2
---

# {name}

A GPT-2 of {L} layers, {NH} heads, {C} channels and a context of {maxT} tokens: {count:,} parameters, stored as {dtype}.

{training}
## Use

```python
from transformers import pipeline

pipeline("text-generation", model="{name}")("The sea was")
```
"""


def model_card(name, source, config, dtype, untrained):
    """Returns the text of the card of a folder `name` with the model `source`, named as for pretrained.load_weights.

    If that is a run or a checkpoint in one, the card says how it was trained. untrained: the weights are random.
    """
    rows = _training_rows(source)
    training = (
        "The weights are random: the model was not trained.\n" if untrained else f"Made from `{_shown(source)}`.\n"
    )
    if rows:
        lines = [f"| {what} | {_shown(value)} |" for what, value in rows]
        training = "\n".join(["## Training", "", "| | |", "|---|---|", *lines, ""])
    sizes = dataclasses.asdict(config)
    return _TEXT.format(name=_shown(name), dtype=dtype, count=config.num_parameters, training=training, **sizes)


def _training_rows(source):
    """Returns (what, value) pairs, strings; none if the source is no checkpoint, or, said so, if it cannot be read."""
    path = pathlib.Path(source)
    if source in RELEASED:
        return []
    try:
        path = newest_model(path) if (path / MANIFEST).is_file() else path
        return _checkpoint_rows(path) if is_checkpoint(path) else []
    except (UserError, KeyError, TypeError, ValueError) as error:
        print(f"the model card does not say how the model was trained: {error}", flush=True)
        return []


def _checkpoint_rows(model):
    from gpt2.training.checkpoint import verify
    from gpt2.training.metrics import read_losses
    from gpt2.training.options import Resolved, TrainOptions

    found = verify(model.parent, int(model.stem.partition("_")[2]))
    options, resolved = TrainOptions.from_saved(found.progress["options"]), Resolved.from_saved(found.progress)
    files = [f"{pathlib.Path(each['file']).name} ({each['tokens']:,} tokens)" for each in found.progress["train_data"]]
    losses = [f"{found.progress['train_loss']:.4f} in training"]
    metrics = found.folder / METRICS
    steps, validated = read_losses(metrics, "val_loss") if metrics.is_file() else (np.array([]), np.array([]))
    if (steps <= found.step).any():
        losses.append(f"{validated[steps <= found.step][-1]:.4f} in validation")
    accumulated = f" x {options.grad_accum_steps}" if options.grad_accum_steps > 1 else ""
    return [
        ("started from", "random weights" if options.init == "scratch" else options.init),
        ("data", ", ".join(files)),
        ("steps", f"{found.step:,} of {options.batch_size} x {resolved.seq_len}{accumulated} tokens"),
        ("learning rate", f"{resolved.learning_rate:g}, {resolved.lr_schedule}, warm-up {resolved.warmup_steps}"),
        ("loss", ", ".join(losses)),
        ("command", _command(options)),
    ]


def _command(options):
    """The command line of a run, without what concerned its process alone, such as --out-dir."""
    from gpt2.training.options import TrainOptions, flag

    words, default = [], TrainOptions(grad_accum_steps=1).to_save()
    for name, value in options.to_save().items():
        if value != default[name]:
            values = () if value is True else value if isinstance(value, tuple) else (value,)
            words += [flag(name), *map(str, values)]
    return f"gpt2 train {shlex.join(words)}"


def _shown(text):
    """A text from elsewhere as the card shows it, on one line and in one cell."""
    return "".join(each if each.isprintable() and each not in '`|"<>' else "?" for each in str(text))
