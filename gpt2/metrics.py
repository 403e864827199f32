"""What a run leaves for whoever looks at it: metrics.jsonl, a line of JSON for each step, and loss.png."""

import json

from gpt2.errors import from_os_error
from gpt2.files import atomic_write


class Metrics:
    """Writes records to `folder`/metrics.jsonl as they come and keeps them for the picture."""

    def __init__(self, folder):
        self.records = []
        self.path = folder / "metrics.jsonl"
        self.picture = folder / "loss.png"
        self._write("", "w")

    def write(self, record):
        """Appends one record, a dict of numbers with "step"."""
        self.records.append(record)
        self._write(json.dumps(record) + "\n", "a")

    def _write(self, text, mode):
        try:
            with open(self.path, mode, encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise from_os_error(error, self.path) from error

    def draw(self):
        """Draws the training and validation losses over the steps."""
        import matplotlib.figure  # takes a second to import, and only the end of a run needs it

        figure = matplotlib.figure.Figure(figsize=(8, 5), layout="constrained")
        axes = figure.add_subplot(xlabel="step", ylabel="cross-entropy (nats per token)")
        for key, label, style in (("train_loss", "training batch", "-"), ("val_loss", "validation", "o-")):
            points = [(record["step"], record[key]) for record in self.records if key in record]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=label)
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
        with atomic_write(self.picture) as file:
            figure.savefig(file, format="png", dpi=120)
