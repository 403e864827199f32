"""Weights by name: files, folders, and a local server that acts as the Hugging Face hub."""

import contextlib
import hashlib
import http.server
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from gpt2.config import PRESETS, GPT2Config
from gpt2.errors import UnavailableError, UserError
from gpt2.formats import huggingface, llmc, pretrained, tensors
from gpt2.formats.llmc import load_model, save_model
from gpt2.formats.pretrained import load_config, load_weights
from gpt2.layout import parameter_layout
from gpt2.training import checkpoint
from tests.support.vocabulary import byte_level

ROOT = pathlib.Path(__file__).resolve().parents[2]
CONFIG = GPT2Config(maxT=5, V=7, L=2, NH=2, C=4)


def parameters(config=CONFIG):
    params = np.random.default_rng(0).standard_normal(parameter_layout(config).size, dtype=np.float32)
    params[config.V * config.C : config.Vp * config.C] = 0
    return params


@pytest.fixture
def folder(tmp_path):
    """A small model in a Hugging Face folder."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    huggingface.save_folder(folder, CONFIG, parameters())
    return folder


def assert_is_the_model(loaded):
    config, params = loaded
    assert config == CONFIG
    assert params.dtype == np.float32 and np.array_equal(params, parameters())


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_files_and_folders(tmp_path, folder, kind, writable):
    save_model(tmp_path / "x.bin", CONFIG, parameters())
    os.link(tmp_path / "x.bin", tmp_path / "any name")
    for name in ("x.bin", "any name", "theirs"):
        assert_is_the_model(load_weights(kind(tmp_path / name), writable=writable))


def test_a_file_is_mapped_unless_writable(tmp_path, monkeypatch):
    save_model(tmp_path / "x.bin", CONFIG, np.full(parameters().size, np.nan, np.float32))
    with pytest.raises(UserError, match="NaN or an infinity"):
        load_weights(tmp_path / "x.bin")
    monkeypatch.setattr(llmc, "allocate", lambda *args: pytest.fail("read"))
    assert np.isnan(load_weights(tmp_path / "x.bin", writable=False)[1]).all()


@pytest.mark.parametrize("name", ["missing.bin", "folder/missing.bin"])
def test_a_missing_file_is_not_looked_for_on_the_hub(monkeypatch, name):
    monkeypatch.setattr(pretrained, "fetch", lambda *args: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match=rf"^{name}: No such file or directory$"):
        load_weights(name)


@pytest.mark.parametrize("name", ["gpt5", "a/b/c", "./a", "../a", "/a", "a/", "a b/c"])
def test_invalid_names(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "fetch", lambda *args: pytest.fail("asked the hub"))
    with pytest.raises(
        UserError, match=f"^{name}: no such file or folder; expected .*distilgpt2, or OWNER/NAME"
    ) as caught:
        load_weights(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_a_hugging_face_model_is_named_by_its_folder(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\3\4" + bytes(2000))
    with pytest.raises(UserError, match=f"{name}: not a model file in llm.c's format.*name its folder"):
        load_weights(tmp_path / name)


def test_released_names_and_their_full_names(monkeypatch):
    assert pretrained.RELEASED.keys() == PRESETS.keys() - {"baby"}
    fetched = []
    monkeypatch.setattr(pretrained, "fetch", lambda *args: fetched.append(args))
    monkeypatch.setattr(pretrained, "read_weights", lambda path, config: config)
    for name, repository in pretrained.RELEASED.items():
        if name != "gpt2":
            assert load_weights(name) == load_weights(repository) == (PRESETS[name], PRESETS[name])
            assert fetched[-2:] == [(repository, "model.safetensors", None)] * 2
    assert fetched[2] == ("openai-community/gpt2-large", "model.safetensors", None)


def test_a_released_name_means_the_hub_even_if_there_is_such_a_folder(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder.rename("gpt2-xl")
    monkeypatch.setattr(pretrained, "fetch", lambda *args: pytest.fail("asked the hub"))
    with pytest.raises(pytest.fail.Exception, match="asked the hub"):
        load_weights("gpt2-xl")
    assert_is_the_model(load_weights("./gpt2-xl"))


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("name", ["gpt2", "openai-community/gpt2"])
def test_a_converted_gpt2_is_used(tmp_path, monkeypatch, name, writable):
    monkeypatch.setitem(PRESETS, "gpt2", CONFIG)
    monkeypatch.setattr(pretrained, "fetch_gpt2", lambda: pytest.fail("fetched"))
    save_model(tmp_path / "gpt2_124M.bin", CONFIG, parameters())
    assert_is_the_model(load_weights(name, tmp_path, writable))


def test_a_converted_file_of_another_size_is_refused(tmp_path):
    save_model(tmp_path / "gpt2_124M.bin", CONFIG, parameters())
    with pytest.raises(UserError, match=r"gpt2_124M.bin: expected GPT-2 124M.*L=2"):
        load_weights("gpt2", tmp_path)


def test_a_downloaded_gpt2_is_converted_and_kept(tmp_path, folder, monkeypatch):
    monkeypatch.setitem(PRESETS, "gpt2", CONFIG)
    monkeypatch.setattr(pretrained, "fetch_gpt2", lambda: folder / "model.safetensors")
    assert_is_the_model(load_weights("gpt2", str(tmp_path / "new")))
    assert_is_the_model(load_model(tmp_path / "new" / "gpt2_124M.bin"))
    monkeypatch.setenv("GPT2_DATA_DIR", str(tmp_path / "default"))
    assert_is_the_model(load_weights("gpt2"))
    assert_is_the_model(load_model(tmp_path / "default" / "gpt2_124M.bin"))


def test_nothing_is_kept_when_the_download_fails(tmp_path, monkeypatch):
    def refuse():
        raise UnavailableError("no network")

    monkeypatch.setattr(pretrained, "fetch_gpt2", refuse)
    with pytest.raises(UnavailableError, match="no network"):
        load_weights("gpt2", tmp_path)
    assert os.listdir(tmp_path) == []


# Run folders.


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with the models of two steps; the manifest names the second."""
    folder = tmp_path / "out"
    folder.mkdir()
    save_model(folder / "model_00000040.bin", CONFIG, parameters())
    save_model(folder / "model_00000020.bin", CONFIG, 2 * parameters())
    (folder / checkpoint.MANIFEST).write_text(json.dumps({"step": 40}))
    return folder


@pytest.mark.parametrize("writable", [True, False])
@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_a_run_folder_means_its_newest_model(run_folder, kind, writable):
    assert_is_the_model(load_weights(kind(run_folder), writable=writable))
    assert_is_the_model(pretrained.load_path(kind(run_folder), writable))
    assert load_config(kind(run_folder)) == CONFIG


def test_a_hugging_face_folder_with_a_manifest_is_a_hugging_face_folder(folder):
    (folder / checkpoint.MANIFEST).write_text("{}")
    assert_is_the_model(load_weights(folder))
    assert load_config(folder) == CONFIG


@pytest.mark.parametrize("load", [load_weights, load_config])
def test_a_run_folder_without_its_model(run_folder, load):
    (run_folder / "model_00000040.bin").unlink()
    with pytest.raises(UserError, match=r"model_00000040.bin: no such file, although checkpoints.json names it"):
        load(run_folder)


# Configs without weights.


@pytest.fixture
def no_weights(monkeypatch):
    """Fails the test on any call that reads or downloads weights."""
    for name in ("load_model", "map_model", "load_folder", "read_weights", "fetch", "fetch_gpt2"):
        monkeypatch.setattr(pretrained, name, lambda *args, name=name: pytest.fail(name))


@pytest.mark.parametrize("kind", [str, pathlib.Path])
def test_sizes_of_files_and_folders(tmp_path, folder, kind, no_weights):
    save_model(tmp_path / "x.bin", CONFIG, parameters())
    save_model(tmp_path / "half.bin", CONFIG, parameters(), "bfloat16")
    (folder / "model.safetensors").unlink()
    for name in ("x.bin", "half.bin", "theirs"):
        assert load_config(kind(tmp_path / name)) == CONFIG


def test_sizes_of_released_models_are_known(no_weights):
    for name, repository in pretrained.RELEASED.items():
        assert load_config(name) == load_config(repository) == PRESETS[name]


def test_sizes_of_a_model_on_the_hub(tmp_path, folder, monkeypatch):
    fetched = []
    monkeypatch.setattr(pretrained, "fetch", lambda *args: fetched.append(args) or folder / args[1])
    assert load_config("someone/theirs") == CONFIG
    assert fetched == [("someone/theirs", "config.json")]


@pytest.mark.parametrize("load", [load_weights, load_config])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gpt5", "no such file or folder; expected FILE.bin, a run folder, a Hugging Face folder"),
        ("missing.bin", "missing.bin: No such file or directory"),
        ("short.bin", "short.bin: 5 bytes, but a model file starts with"),
        ("cut.bin", "cut.bin: truncated"),
        ("empty", "empty/config.json: No such file or directory"),
    ],
)
def test_invalid_names_have_no_config_either(tmp_path, monkeypatch, load, name, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    pathlib.Path("short.bin").write_bytes(b"short")
    save_model("cut.bin", CONFIG, parameters())
    os.truncate("cut.bin", 2000)
    with pytest.raises(UserError, match=message):
        load(name)


# The hub: a local server that implements the hub's "resolve" URL, used from a subprocess because huggingface_hub reads
# its environment on import.

CONTENT = b"the weights" * 1000
ADDRESS = f"/openai-community/gpt2/resolve/{pretrained.GPT2_REVISION}/model.safetensors"
# The package without its __init__, which imports the model and so the compiler: that would take most of a test.
BEGINNING = f"""
import sys, types
sys.modules["gpt2"] = types.ModuleType("gpt2")
sys.modules["gpt2"].__path__ = [{str(ROOT / "gpt2")!r}]
from gpt2.formats import pretrained
from gpt2.errors import UserError
pretrained.PROBE_SECONDS = 1
"""
FETCH = """
pretrained.GPT2_SHA256 = sys.argv[1]
try:
    print("path:", pretrained.fetch_gpt2())
except UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
LOAD = """
try:
    config, params = pretrained.load_weights(sys.argv[1])
except UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(config, params.sum(dtype=float))
"""


class Hub(http.server.BaseHTTPRequestHandler):
    content = CONTENT
    status = 200

    def do_HEAD(self):
        self.server.requests.append(f"{self.command} {self.path}")
        self.send_response(self.status)
        self.send_header("X-Repo-Commit", pretrained.GPT2_REVISION)
        self.send_header("ETag", f'"{hashlib.sha256(self.path.encode()).hexdigest()}"')
        self.send_header("X-Linked-Size", str(len(self.content)))
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(handler):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.requests = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def fetch(home, endpoint, content=CONTENT, **environment):
    """Runs fetch_gpt2 in a subprocess, expecting `content`, with the hub's cache in `home`."""
    return run(FETCH, hashlib.sha256(content).hexdigest(), home, endpoint, **environment)


def run(program, argument, home, endpoint, **environment):
    inherited = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    inherited = {key: value for key, value in inherited.items() if not key.upper().endswith("_PROXY")}
    ours = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run(
        [sys.executable, "-c", BEGINNING + program, argument],
        env=inherited | ours | environment,
        capture_output=True,
        text=True,
        timeout=20,  # huggingface_hub by itself would retry for longer
    )


def assert_refused(result, *words):
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for word in ("UnavailableError: ", *words):
        assert word in result.stderr


@pytest.mark.slow
def test_weights_are_downloaded_once(tmp_path):
    with serving(Hub) as (server, endpoint):
        first = fetch(tmp_path, endpoint)
        assert first.returncode == 0, first.stderr
        path = pathlib.Path(first.stdout.removeprefix("path: ").strip())
        assert path.read_bytes() == CONTENT
        assert tmp_path in path.parents
        assert server.requests.count(f"GET {ADDRESS}") == 1

        server.requests.clear()
        assert fetch(tmp_path, endpoint).stdout == first.stdout
        assert server.requests == []
    offline = fetch(tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, first.stdout)


@pytest.mark.slow
def test_a_corrupt_download_is_refused_and_the_file_to_delete_named(tmp_path):
    class Corrupt(Hub):
        content = CONTENT[:-1] + b"X"

    with serving(Corrupt) as (_, endpoint):
        result = fetch(tmp_path, endpoint)
    assert result.returncode == 1
    assert "corrupt: SHA-256" in result.stderr
    message = result.stderr.splitlines()[-1]
    pathlib.Path(message.removeprefix("UserError: ").split(": corrupt")[0]).unlink()
    with serving(Hub) as (_, endpoint):
        assert fetch(tmp_path, endpoint).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_a_hub_that_refuses(tmp_path, status):
    with serving(type("Refusing", (Hub,), {"status": status})) as (server, endpoint):
        assert_refused(fetch(tmp_path, endpoint), "cannot download model.safetensors", str(status))
        assert server.requests.count(f"HEAD {ADDRESS}") == 1
        assert f"GET {ADDRESS}" not in server.requests


@pytest.mark.slow
def test_a_server_that_is_not_a_hub(tmp_path):
    class Website(Hub):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(Website) as (_, endpoint):
        assert_refused(fetch(tmp_path, endpoint), "cannot download model.safetensors")


@pytest.mark.slow
def test_without_a_server_it_fails_at_once_and_quietly(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert_refused(fetch(tmp_path, endpoint), "cannot download model.safetensors", "refused")


@pytest.mark.slow
def test_a_host_name_that_does_not_resolve(tmp_path):
    assert_refused(fetch(tmp_path, "http://no-such-host.invalid"), "cannot download model.safetensors")


@pytest.mark.slow
def test_a_stalling_server_times_out_within_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert_refused(fetch(tmp_path, endpoint), "cannot download model.safetensors", "timed out")


@pytest.mark.slow
def test_offline_mode_sends_no_request(tmp_path):
    with serving(Hub) as (server, endpoint):
        assert_refused(fetch(tmp_path, endpoint, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE")
        assert server.requests == []


# Other models.


def serving_folder(folder, **fields):
    """A hub with one model, someone/theirs: the files of `folder`, with `fields` changed in its config.json."""

    class OneModel(Hub):
        def do_HEAD(self):
            path = folder / self.path.rpartition("/")[2]
            if not self.path.startswith("/someone/theirs/resolve/"):
                return self.refuse(401, "RepoNotFound")
            if not path.exists():
                return self.refuse(404, "EntryNotFound")
            self.content = path.read_bytes()
            if path.suffix == ".json":
                self.content = json.dumps(json.loads(self.content) | fields).encode()
            super().do_HEAD()

        def refuse(self, status, code):
            self.content = b""
            self.server.requests.append(f"{self.command} {self.path}")
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Repo-Commit", pretrained.GPT2_REVISION)
            self.send_header("Content-Length", "0")
            self.end_headers()

    return serving(OneModel)


@pytest.mark.slow
def test_a_model_on_the_hub_is_downloaded_once(tmp_path, folder):
    expected = f"{CONFIG} {parameters().sum(dtype=float)}\n"
    with serving_folder(folder) as (server, endpoint):
        first = run(LOAD, "someone/theirs", tmp_path, endpoint)
        assert (first.returncode, first.stdout) == (0, expected), first.stderr
        assert sum(request.startswith("GET") for request in server.requests) == 2
        server.requests.clear()
        assert run(LOAD, "someone/theirs", tmp_path, endpoint).stdout == expected
        assert server.requests == []


FIND = """
try:
    sha256, folder = pretrained.find_vocabulary(sys.argv[1])
except UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(sha256, folder.ends, folder.problem, *sorted(folder.files))
"""


@pytest.mark.slow
def test_the_tokenizer_of_a_model_on_the_hub_is_downloaded_once(tmp_path, folder):
    words = byte_level(b"the")
    for name, data in words.files.items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("not part of the model")
    with serving_folder(folder) as (server, endpoint):
        first = run(FIND, "someone/theirs", tmp_path, endpoint)
        names = "config.json generation_config.json tokenizer.json tokenizer_config.json"
        assert (first.returncode, first.stderr) == (0, "")
        assert first.stdout == f"{words.sha256} () None {names}\n"
        assert not any("safetensors" in request or "README" in request for request in server.requests)
        server.requests.clear()
        assert run(FIND, "someone/theirs", tmp_path, endpoint).stdout == first.stdout
        assert server.requests == []
    offline = run(FIND, "someone/theirs", tmp_path, "http://127.0.0.1:9")
    assert (offline.returncode, offline.stdout, offline.stderr) == (0, first.stdout, "")


@pytest.mark.slow
def test_without_a_network_what_is_cached_of_a_tokenizer_counts_within_seconds(tmp_path, folder):
    (folder / "vocab.json").write_text("{}")
    with serving_folder(folder) as (_, endpoint):
        assert run(LOAD, "someone/theirs", tmp_path, endpoint).returncode == 0  # config.json and the weights
    with socket.create_server(("127.0.0.1", 0)) as silent:
        result = run(FIND, "someone/theirs", tmp_path, f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert result.returncode == 0 and result.stdout.endswith(
        "no tokenizer.json there, nor vocab.json with merges.txt config.json\n"
    )
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("someone/theirs: no such file or folder, and cannot download tokenizer.json ")
    assert result.stderr.endswith("; what is in the cache of its tokenizer counts\n")


@pytest.mark.slow
def test_a_model_in_shards_on_the_hub_is_downloaded_once(tmp_path, monkeypatch):
    monkeypatch.setattr(tensors, "SHARD_BYTES", 1000)
    (tmp_path / "theirs").mkdir()
    huggingface.save_folder(tmp_path / "theirs", CONFIG, parameters())
    shards = list((tmp_path / "theirs").glob("model-*-of-*.safetensors"))
    expected = f"{CONFIG} {parameters().sum(dtype=float)}\n"
    with serving_folder(tmp_path / "theirs") as (server, endpoint):
        first = run(LOAD, "someone/theirs", tmp_path, endpoint)
        assert (first.returncode, first.stdout) == (0, expected), first.stderr
        gets = [request.rpartition("/")[2] for request in server.requests if request.startswith("GET")]
        assert sorted(gets) == sorted(["config.json", "model.safetensors.index.json", *(path.name for path in shards)])
        server.requests.clear()
        assert run(LOAD, "someone/theirs", tmp_path, endpoint).stdout == expected
        assert server.requests == []
    offline = run(LOAD, "someone/theirs", tmp_path, endpoint, HF_HUB_OFFLINE="1")
    assert (offline.returncode, offline.stdout) == (0, expected)


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["../model-00001-of-00002.safetensors", "model-00009-of-00009.safetensors"])
def test_an_index_on_the_hub_that_names_what_is_not_there(tmp_path, folder, shard):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"wte.weight": shard}}))
    with serving_folder(folder) as (server, endpoint):
        result = run(LOAD, "someone/theirs", tmp_path, endpoint)
        assert not any(request.startswith("GET") and "model-" in request for request in server.requests)
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
    expected = "expected the name of a .safetensors file" if ".." in shard else f"the model has no {shard}"
    assert expected in result.stderr


@pytest.mark.slow
def test_a_model_that_is_not_on_the_hub(tmp_path, folder):
    with serving_folder(folder) as (_, endpoint):
        result = run(LOAD, "someone/else", tmp_path, endpoint)
    assert_refused(
        result, "someone/else: no such file or folder, and cannot download config.json", "no such model", "hf auth"
    )


@pytest.mark.slow
def test_a_configuration_of_any_length_is_not_downloaded(tmp_path, folder):
    with serving_folder(folder, padding="x" * 2**20) as (server, endpoint):
        result = run(LOAD, "someone/theirs", tmp_path, endpoint)
        assert not any(request.startswith("GET") for request in server.requests)
    assert_refused(result, "cannot download config.json", "expected at most 1,048,576")


@pytest.mark.slow
def test_a_model_in_other_files(tmp_path, folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with serving_folder(folder) as (_, endpoint):
        result = run(LOAD, "someone/theirs", tmp_path, endpoint)
    assert_refused(result, "cannot download model.safetensors.index.json", "the model has no model.safetensors")


@pytest.mark.slow
def test_a_model_that_asks_for_a_token(tmp_path):
    class Gated(Hub):
        status = 403

        def send_response(self, status):
            super().send_response(status)
            self.send_header("X-Error-Code", "GatedRepo")

    with serving(Gated) as (_, endpoint):
        assert_refused(run(LOAD, "someone/theirs", tmp_path, endpoint), "accept the model's terms", "hf auth login")


@pytest.mark.slow
def test_another_architecture_is_refused_before_its_weights_are_downloaded(tmp_path, folder):
    with serving_folder(folder, model_type="llama") as (server, endpoint):
        result = run(LOAD, "someone/theirs", tmp_path, endpoint)
        assert not any("safetensors" in request for request in server.requests)
    assert result.returncode == 1
    assert "config.json: model_type is 'llama', only 'gpt2' is supported" in result.stderr


@pytest.mark.slow
def test_a_model_on_the_hub_without_a_network(tmp_path):
    result = run(LOAD, "gpt2-xl", tmp_path, "http://no-such-host.invalid")
    assert_refused(result, "openai-community/gpt2-xl: cannot download model.safetensors")
