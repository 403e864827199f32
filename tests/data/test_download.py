"""Downloads from a server that fails in every way, and package archives through pip."""

import hashlib
import importlib.util
import io
import os
import socket
import subprocess
import tarfile
import time
import zipfile

import pytest

from gpt2.data import download
from gpt2.data.download import Pin, UnavailableError
from gpt2.errors import UserError
from tests.support.http_server import serve

CONTENT = bytes(range(256)) * 1000
needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")


def sha256(data):
    return hashlib.sha256(data).hexdigest()


PIN = Pin(len(CONTENT), sha256(CONTENT))


@pytest.fixture(autouse=True)
def short_timeouts(monkeypatch):
    monkeypatch.setattr(download, "READ_SECONDS", 0.3)
    monkeypatch.setattr(download, "TOTAL_SECONDS", 1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file"


def test_download(target, capsys):
    with serve(CONTENT) as server:
        download.download(target, PIN, server.url)
        assert server.requests == 1
    assert target.read_bytes() == CONTENT
    assert capsys.readouterr().out == f"downloading {target} from {server.url}\n"


def test_a_corrupt_file_is_replaced(target, capsys):
    target.write_bytes(b"corrupt")
    with serve(CONTENT) as server:
        download.download(target, PIN, server.url)
    assert target.read_bytes() == CONTENT
    assert f"{target}: wrong SHA-256, so it is downloaded again\n" in capsys.readouterr().out


def test_a_content_length_that_is_no_number_does_not_matter(target):
    with serve(CONTENT, "bad length") as server:
        download.download(target, PIN, server.url)
    assert target.read_bytes() == CONTENT


FAILURES = {
    "corrupt": r"corrupt download discarded \(its SHA-256 is not that of file\)",
    "bad length, corrupt": "corrupt download discarded",
    "truncated": "the connection was lost",
    "stalled": "no data for 0.3 seconds",
    "silent": "no data for 0.3 seconds",
    "hangs up": "the server is unreachable",
    "endless": "longer than the 256,000 bytes expected; download aborted",
    "too long": "longer than the 256,000 bytes expected; download aborted",
    "gzip bomb": "the response is compressed, which was not asked for",
    "not found": "the server responds with status 404",
    "control characters": "the server responds with status 503",
    "two lengths": "malformed address or response",
    "length twice": "malformed address or response",
    "trickling headers": "not complete after 1 seconds",
    "trickling body": "not complete after 1 seconds",
    "redirect to a long label": "the server redirects elsewhere, which is not followed",
    "redirect with an endless body": "the server redirects elsewhere, which is not followed",
    "bad status": "the server is unreachable",
    "not http": "the server is unreachable",
    "endless header": "the server is unreachable",
    "redirect to nonsense": "the server redirects elsewhere, which is not followed",
    "redirect to a bad port": "the server redirects elsewhere, which is not followed",
    "redirect to no host": "the server redirects elsewhere, which is not followed",
    "redirect to a file": "the server redirects elsewhere, which is not followed",
    "redirect to itself": "the server redirects elsewhere, which is not followed",
}


@pytest.mark.parametrize(("behaviour", "message"), FAILURES.items(), ids=FAILURES)
def test_a_failed_download_is_one_line_and_leaves_nothing(target, capsys, behaviour, message):
    start = time.monotonic()
    with serve(CONTENT, behaviour) as server, pytest.raises(UnavailableError, match=message) as caught:
        download.download(target, PIN, server.url)
    assert time.monotonic() - start < 5
    assert str(caught.value).startswith(f"{server.url}: ") and str(caught.value).isprintable()
    assert len(str(caught.value)) < 150
    assert capsys.readouterr().out == f"downloading {target} from {server.url}\n"
    assert os.listdir(target.parent) == []


def test_a_failed_download_leaves_the_old_file(target):
    target.write_bytes(b"old")
    with serve(CONTENT, "truncated") as server, pytest.raises(UnavailableError):
        download.download(target, PIN, server.url)
    assert target.read_bytes() == b"old"


def test_a_refused_connection_is_one_line(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(UnavailableError) as caught:
            download.download(target, PIN, url)
    assert str(caught.value) == f"{url}: the server is unreachable"


@pytest.mark.parametrize("proxy", ["http://[", f"http://{'a' * 70}:80", "socks5://x", "\x1b[31m"])
def test_a_malformed_proxy_is_one_line(target, monkeypatch, proxy):
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(UnavailableError, match=r"^http://example.test/file: malformed address or response \(\w+\)$"):
        download.download(target, PIN, "http://example.test/file")


def test_an_unwritable_folder_is_no_reason_to_try_another_source(tmp_path):
    with serve(CONTENT) as server, pytest.raises(UserError, match="No such file or directory") as caught:
        download.download(tmp_path / "missing" / "file", PIN, server.url)
    assert not isinstance(caught.value, UnavailableError)


def test_is_verified(target):
    assert not download.is_verified(target, PIN.sha256)
    target.write_bytes(CONTENT)
    assert download.is_verified(target, PIN.sha256)
    assert not download.is_verified(target, sha256(b"other"))


def test_save_verified_refuses_other_bytes(target):
    with pytest.raises(UnavailableError, match=r"^archive: corrupt download discarded"):
        download.save_verified(target, CONTENT[1:], PIN.sha256, "archive")
    assert not target.exists()


def test_first_source_asks_in_order_and_says_why(capsys):
    asked = []

    def failing(name):
        asked.append(name)
        raise UnavailableError(f"{name} is down")

    found = download.first_source("no x; buy one", lambda: failing("a"), lambda: "found", lambda: failing("c"))
    assert (found, asked) == ("found", ["a"])
    assert capsys.readouterr().out == "a is down\n"
    with pytest.raises(UnavailableError, match=r"^no x; buy one \(a is down; b is down\)$"):
        download.first_source("no x; buy one", lambda: failing("a"), lambda: failing("b"))


def make_wheel(path):
    """Makes a wheel with one data file."""
    info = "tiny_data-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_data/data/a.txt", "text a")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny_data\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def requirements(tmp_path):
    """Returns a function that makes a requirements file for the wheel, pinned to the SHA-256 given."""

    def make(sha256):
        path = tmp_path / "x.requirements.txt"
        path.write_text(f"# a comment\ntiny_data==1.0 --hash=sha256:{sha256}\n")
        return path

    return make


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel in the only folder that pip searches."""
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(download, "READ_SECONDS", 5)
    monkeypatch.setattr(download, "TOTAL_SECONDS", 60)
    return make_wheel(folder / "tiny_data-1.0-py3-none-any.whl")


@needs_pip
def test_a_package_archive_comes_through_pip_and_its_settings(wheel, requirements):
    archive = download.download_package(requirements(sha256(wheel.read_bytes())))
    assert archive == wheel.read_bytes()
    assert download.read_members(archive, "tiny_data/data/*") == {"a.txt": b"text a"}


@needs_pip
def test_pip_refuses_an_archive_with_another_hash(wheel, requirements):
    with pytest.raises(UnavailableError, match=r"^x.requirements.txt: pip cannot download it: .+") as caught:
        download.download_package(requirements(sha256(b"other")))
    assert str(caught.value).isprintable()


@needs_pip
def test_pip_writes_no_file_beyond_the_limit(wheel, requirements, monkeypatch):
    monkeypatch.setattr(download, "ARCHIVE_BYTES", 100)
    with pytest.raises(UnavailableError, match=r"pip cannot download it: .*File too large") as caught:
        download.download_package(requirements(sha256(wheel.read_bytes())))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("errors", "reason"),
    [("", "no output"), ("note\n\x1b[31mbroken\n", r"\[31mbroken"), ("ERROR: first\nERROR: last\nnote\n", "last")],
)
def test_why_pip_fails_is_one_line_without_control_characters(requirements, monkeypatch, errors, reason):
    pip = subprocess.CompletedProcess([], 1, stderr=errors)
    monkeypatch.setattr(subprocess, "run", lambda command, **options: pip)
    with pytest.raises(UnavailableError, match=f"pip cannot download it: {reason}$"):
        download.download_package(requirements(PIN.sha256))


def test_a_python_without_pip(requirements, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="has no pip; add it with python -m ensurepip"):
        download.download_package(requirements(PIN.sha256))


@needs_pip
def test_pip_has_a_timeout(requirements, monkeypatch):
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UnavailableError, match="pip did not finish within 1 seconds"):
        download.download_package(requirements(PIN.sha256))


def test_members_of_a_source_archive():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in ("x-1/texts/a_gut.txt", "x-1/texts/a_gut_f.txt", "x-1/setup.py"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    assert download.read_members(file.getvalue(), "*/texts/*_gut.txt") == {"a_gut.txt": b"x-1/texts/a_gut.txt"}


def test_pinned_sha256(requirements):
    assert download.pinned_sha256(requirements("ab" * 32)) == "ab" * 32
