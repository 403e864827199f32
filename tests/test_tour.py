"""docs/tour.ipynb: runs without network in a folder of its own, and shows what it shows on a reader's machine.

To store new outputs in it (needs nbclient and ipykernel): python -m tests.test_tour
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.support.foreign import require

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs/tour.ipynb"
SECONDS = 400  # three on an idle machine, a minute where the kernels have to be compiled
# Runs the cells one after the other; prints what each printed, as JSON.
RUN = """
import contextlib, io, json, sys
names, printed = {"__name__": "__main__"}, []
for source in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(source, "tour", "exec"), names)
    printed.append(out.getvalue())
print(json.dumps(printed))
"""


def cells():
    """The notebook's code cells."""
    return [cell for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def text_of(cell):
    return "".join("".join(output["text"]) for output in cell["outputs"] if output.get("name") == "stdout")


def pictures(cells):
    return sum("image/png" in output.get("data", ()) for cell in cells for output in cell["outputs"])


def execute():
    """Returns the notebook after a run in Jupyter, as GitHub and a reader's own run would show it."""
    nbformat, nbclient = require("nbformat"), require("nbclient")
    require("ipykernel")
    notebook = nbformat.read(TOUR, as_version=4)
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(TOUR.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def environment(folder):
    """As where there are neither weights nor texts nor a network."""
    return os.environ | {"GPT2_DATA_DIR": str(folder), "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}


@pytest.mark.slow
def test_it_runs_and_prints_what_is_stored_in_it(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(["".join(cell["source"]) for cell in cells()]),
        env=environment(tmp_path),
        cwd=TOUR.parent,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    *printed, written = json.loads(run.stdout)
    *stored, _ = [text_of(cell) for cell in cells()]
    assert printed == stored
    # On another CPU the 600 steps before it may differ in their last bits, and then in more.
    assert written.startswith("The sea was ") and len(written) > 150
    assert not list(tmp_path.iterdir())


def test_its_picture_is_small():
    assert pictures(cells()) == 1 and TOUR.stat().st_size < 150_000


@pytest.mark.crosscheck
def test_jupyter_executes_it(tmp_path, monkeypatch):
    for name, value in environment(tmp_path).items():
        if name != "MPLBACKEND":
            monkeypatch.setenv(name, value)
    executed = [cell for cell in execute().cells if cell.cell_type == "code"]
    assert [text_of(cell) for cell in executed][:-1] == [text_of(cell) for cell in cells()][:-1]
    assert pictures(executed) == pictures(cells()) == 1


if __name__ == "__main__":
    require("nbformat").write(execute(), TOUR)
