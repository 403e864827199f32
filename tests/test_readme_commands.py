"""The README's first ten commands, run in order as they are printed, in an empty checkout."""

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.support.runs import ROOT

SECTION = re.compile(r"^## Ten commands\n.*?^```bash\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_first_ten_commands_work_as_printed(tmp_path):
    """What they read is shipped, so that nothing stands in for it; `gpt2` is `python -m gpt2` of this checkout."""
    shutil.copytree(ROOT / "data/chat", tmp_path / "data/chat")
    script = tmp_path / "bin/gpt2"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gpt2 "$@"\n')
    script.chmod(0o755)
    # One thread: with more of them than free cores, which wait for each other, a model this small trains slowly.
    env = os.environ | {"PYTHONPATH": str(ROOT), "NUMBA_NUM_THREADS": "1", "GPT2_DATA_DIR": "data"}
    env["PATH"] = f"{script.parent}:{env['PATH']}"
    (block,) = SECTION.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    printed = {}
    for line in block.splitlines():
        streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "timeout": 90}
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=env, **streams)
        assert done.returncode == 0 and "Traceback" not in done.stderr, f"{line}\n{done.stdout}{done.stderr}"
        assert done.stdout, line
        printed[line.split("#")[0].strip()] = done.stdout
    assert len(printed) == 10
    found = re.findall(r"^step +(\d+)/.* train loss ([\d.]+)", "".join(printed.values()), re.MULTILINE)
    steps, losses = zip(*found, strict=True)
    assert list(map(int, steps)) == list(range(1, int(steps[-1]) + 1))  # resumed where it had ended
    assert float(losses[-1]) < 0.7 * float(losses[0])
    assert {"page.html", "my_model", "out"} <= {path.name for path in tmp_path.iterdir()}
