"""Downloads from a server that does everything wrong, and package archives through pip."""

import hashlib
import importlib.util
import io
import socket
import subprocess
import tarfile
import zipfile

import pytest

from gpt2.data import download as fetch
from gpt2.errors import UserError
from tests.http_server import serve

CONTENT = bytes(range(256)) * 1000
HALF = CONTENT[: len(CONTENT) // 2]
needs_pip = pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="this Python has no pip")


def digest_of(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture(autouse=True)
def short_patience(monkeypatch):
    monkeypatch.setattr(fetch, "READ_SECONDS", 0.3)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def target(tmp_path):
    return tmp_path / "file"


@pytest.fixture
def part(tmp_path):
    return tmp_path / "file.part"


def download(target, server):
    fetch.download(target, digest_of(CONTENT), server.url)


def check_complete(target, part):
    assert target.read_bytes() == CONTENT
    assert not part.exists()


def test_download(target, part):
    with serve(CONTENT) as server:
        download(target, server)
        assert server.ranges == [None]
    check_complete(target, part)


@pytest.mark.parametrize(
    "behaviour, message", [("truncate", "the connection broke off"), ("stall", "nothing came for 0.3 seconds")]
)
def test_a_broken_download_is_resumed(target, part, behaviour, message):
    with serve(CONTENT, behaviour) as server:
        with pytest.raises(fetch.UnavailableError, match=f"{message}; [0-9,]+ bytes are kept, run again to resume$"):
            download(target, server)
        kept = part.read_bytes()
        assert kept and HALF.startswith(kept) and not target.exists()
        download(target, server)
        assert server.ranges == [None, f"bytes={len(kept)}-"]
    check_complete(target, part)


def test_a_server_that_ignores_the_range_starts_again(target, part):
    part.write_bytes(HALF)
    with serve(CONTENT, "ignore range") as server:
        download(target, server)
        assert server.ranges == [f"bytes={len(HALF)}-"]
    check_complete(target, part)


@pytest.mark.parametrize("behaviour", ["shift range", "refuse range"])
def test_a_server_that_cannot_resume_is_asked_for_the_whole_once(target, part, behaviour):
    part.write_bytes(HALF)
    with serve(CONTENT, behaviour) as server:
        download(target, server)
        assert server.ranges == [f"bytes={len(HALF)}-", None]
    check_complete(target, part)


def test_a_complete_part_is_taken(target, part):
    part.write_bytes(CONTENT)
    with serve(CONTENT) as server:  # answers 416, as nothing is left
        download(target, server)
        assert server.ranges == [f"bytes={len(CONTENT)}-"]
    check_complete(target, part)


def test_a_part_that_is_too_long_is_thrown_away(target, part):
    part.write_bytes(CONTENT + b"more")
    with serve(CONTENT) as server:
        download(target, server)
        assert server.ranges == [f"bytes={len(CONTENT) + 4}-", None]
    check_complete(target, part)


def test_a_corrupt_download_is_deleted_and_reported(target, part):
    with (
        serve(CONTENT, "corrupt") as server,
        pytest.raises(fetch.UnavailableError, match="corrupt download deleted"),
    ):
        download(target, server)
    assert not target.exists() and not part.exists()


def test_a_corrupt_beginning_does_not_survive_its_resumption(target, part):
    part.write_bytes(bytes(1000))
    with serve(CONTENT) as server:
        with pytest.raises(fetch.UnavailableError, match="corrupt download deleted"):
            download(target, server)
        download(target, server)
    check_complete(target, part)


def test_a_missing_file_is_reported_and_leaves_nothing(target, part):
    with (
        serve(CONTENT, "not found") as server,
        pytest.raises(fetch.UnavailableError, match="the server answers 404"),
    ):
        download(target, server)
    assert not target.exists() and not part.exists()


def test_a_refused_connection_is_one_line(target):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # not listening
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(fetch.UnavailableError) as error:
            fetch.download(target, digest_of(CONTENT), url)
    assert str(error.value) == f"{url}: the server cannot be reached"


def test_an_unwritable_folder_is_no_reason_to_try_another_source(tmp_path):
    with serve(CONTENT) as server, pytest.raises(UserError, match="No such file or directory") as error:
        fetch.download(tmp_path / "missing" / "file", digest_of(CONTENT), server.url)
    assert not isinstance(error.value, fetch.UnavailableError)


def test_is_verified(target):
    assert not fetch.is_verified(target, digest_of(CONTENT))
    target.write_bytes(CONTENT)
    assert fetch.is_verified(target, digest_of(CONTENT))
    assert not fetch.is_verified(target, digest_of(HALF))


def test_save_verified_refuses_other_bytes(target):
    with pytest.raises(fetch.UnavailableError, match="archive: not the file expected"):
        fetch.save_verified(target, HALF, digest_of(CONTENT), "archive")
    assert not target.exists()


def test_first_source_asks_in_order_and_says_why(capsys):
    asked = []

    def failing(name):
        asked.append(name)
        raise fetch.UnavailableError(f"{name} is down")

    assert fetch.first_source("no x; buy one", lambda: failing("a"), lambda: "found", lambda: failing("c")) == "found"
    assert asked == ["a"]
    assert capsys.readouterr().out == "a is down\n"
    with pytest.raises(fetch.UnavailableError, match=r"^no x; buy one \(a is down; b is down\)$"):
        fetch.first_source("no x; buy one", lambda: failing("a"), lambda: failing("b"))


def make_wheel(folder):
    """A wheel with one data file; returns its path."""
    info = "tiny_data-1.0.dist-info"
    path = folder / "tiny_data-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("tiny_data/data/a.txt", "text a")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny_data\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
    return path


def make_requirements(path, digest):
    path.write_text(f"# a comment\ntiny_data==1.0 --hash=sha256:{digest}\n")
    return path


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    folder = tmp_path / "links"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setattr(fetch, "READ_SECONDS", 5)
    return make_wheel(folder)


@needs_pip
def test_a_package_archive_comes_through_pip_and_its_settings(tmp_path, wheel):
    requirements = make_requirements(tmp_path / "x.requirements.txt", digest_of(wheel.read_bytes()))
    fetch.save_package(tmp_path / "saved.whl", requirements)
    assert fetch.read_members(tmp_path / "saved.whl", "tiny_data/data/*") == {"a.txt": b"text a"}


@needs_pip
def test_pip_refuses_an_archive_with_another_hash(tmp_path, wheel):
    requirements = make_requirements(tmp_path / "x.requirements.txt", digest_of(b"other"))
    with pytest.raises(fetch.UnavailableError, match=r"^x.requirements.txt: pip cannot download it: .+") as error:
        fetch.save_package(tmp_path / "saved.whl", requirements)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "saved.whl").exists()


def test_a_python_without_pip_is_said_to_be_one(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(fetch.UnavailableError, match="has no pip; add it with python -m ensurepip"):
        fetch.download_package("x.requirements.txt", tmp_path)


@needs_pip
def test_pip_is_given_up_after_a_while(tmp_path, monkeypatch):
    def run(command, timeout, **options):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(fetch.UnavailableError, match="pip did not finish within 300 seconds"):
        fetch.download_package("x.requirements.txt", tmp_path)


def test_members_of_a_source_archive(tmp_path):
    path = tmp_path / "x-1.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name in ("x-1/texts/a_gut.txt", "x-1/texts/a_gut_f.txt", "x-1/setup.py"):
            member = tarfile.TarInfo(name)
            member.size = len(name)
            archive.addfile(member, io.BytesIO(name.encode()))
    assert fetch.read_members(path, "*/texts/*_gut.txt") == {"a_gut.txt": b"x-1/texts/a_gut.txt"}


def test_pinned_digest(tmp_path):
    assert fetch.pinned_digest(make_requirements(tmp_path / "x", "ab" * 32)) == "ab" * 32
