"""A page in one HTML file: styles and scripts inline, data as JSON, nothing fetched."""

import html
import json
import os
import pathlib

from gpt2.errors import UserError
from gpt2.formats.files import atomic_write, open_to_read

FOLDER = pathlib.Path(__file__).parent
# Kind of page -> its scripts, in order.
SCRIPTS = {
    "inspect": ("common.js", "heatmap.js", "chart.js", "attention.js", "layers.js", "inspect.js"),
    "report": ("common.js", "heatmap.js", "chart.js", "report.js"),
}
# The page may run its own scripts and fetch nothing, so a text that it shows can do no harm.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
TEMPLATE = """{mark}
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main id="page"><noscript>This page is drawn by its script: allow JavaScript to see it.</noscript></main>
<script type="application/json" id="data">{data}</script>
<script>
(function () {{
"use strict";
{script}}})();
</script>
</body>
</html>
"""


def render(kind, title, data):
    """Returns a page as UTF-8 bytes. kind: a key of SCRIPTS. data: what its scripts show, a dict for JSON."""
    # "<" would let a text end the script element; as an escape it is the same JSON.
    embedded = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    script = "".join((FOLDER / name).read_text(encoding="utf-8") for name in SCRIPTS[kind])
    style = (FOLDER / "page.css").read_text(encoding="utf-8")
    page = TEMPLATE.format(
        mark=_mark(kind), policy=POLICY, title=html.escape(title), style=style, data=embedded, script=script
    )
    return page.encode()


def require_free(path, kind, force):
    """Raises UserError if a page cannot be written to `path`: a file that is there is replaced only if it is a page.

    force: whether a page of the same kind may be replaced. To be called before the work that the page shows.
    """
    path = pathlib.Path(path)
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot create a file in {path.parent}; choose another")
    if path.is_dir():
        raise UserError(f"{path}: a folder; expected the name of a file, such as {path / 'page.html'}")
    if not path.exists():
        return
    if not force:
        raise UserError(f"{path}: already exists; choose another name, or replace it with --force")
    mark = _mark(kind).encode()
    with open_to_read(path) as file:
        if file.read(len(mark)) not in (b"", mark):
            raise UserError(f"{path}: not a page of gpt2 {kind}, so it is not replaced; choose another name")


def write(path, page):
    """Writes a page, bytes, atomically; a link at `path` stays one. Raises UserError on an I/O error."""
    with atomic_write(os.path.realpath(path)) as file:
        file.write(page)


def _mark(kind):
    return f"<!doctype html><!-- gpt2 {kind} -->"


def rounded(array):
    """Returns an array as nested lists of floats with 5 significant digits, which take less room in JSON."""
    return [rounded(row) for row in array] if array.ndim else float(f"{array:.5g}")
