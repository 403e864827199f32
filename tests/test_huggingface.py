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
from safetensors.numpy import save_file

from gpt2 import huggingface
from gpt2.checkpoint import load_model, save_model
from gpt2.config import GPT2Config
from gpt2.errors import UnavailableError, UserError
from gpt2.layout import parameter_layout

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = GPT2Config(maxT=5, V=7, L=2, NH=2, C=4)
FIELDS = {"model_type": "gpt2", "n_positions": 5, "vocab_size": 7, "n_layer": 2, "n_head": 2, "n_embd": 4}


def tensors():
    """Hugging Face's tensors, and the flat array they must become: written out, not by the table under test."""
    random = np.random.default_rng(0)
    foreign = {}
    params = np.zeros(parameter_layout(CONFIG).size, dtype=np.float32)
    views = parameter_layout(CONFIG).views(params)

    def add(name, shape, transpose=False):
        # Multiples of 1/16, so that float16 holds them exactly.
        foreign[name] = (random.integers(-64, 64, shape) / 16).astype(np.float32)
        return foreign[name].T if transpose else foreign[name]

    views["wte"][:7] = add("wte.weight", (7, 4))
    views["wpe"][:] = add("wpe.weight", (5, 4))
    for l in range(2):
        views["ln1w"][l] = add(f"h.{l}.ln_1.weight", (4,))
        views["ln1b"][l] = add(f"h.{l}.ln_1.bias", (4,))
        views["qkvw"][l] = add(f"h.{l}.attn.c_attn.weight", (4, 12), transpose=True)
        views["qkvb"][l] = add(f"h.{l}.attn.c_attn.bias", (12,))
        views["attprojw"][l] = add(f"h.{l}.attn.c_proj.weight", (4, 4), transpose=True)
        views["attprojb"][l] = add(f"h.{l}.attn.c_proj.bias", (4,))
        views["ln2w"][l] = add(f"h.{l}.ln_2.weight", (4,))
        views["ln2b"][l] = add(f"h.{l}.ln_2.bias", (4,))
        views["fcw"][l] = add(f"h.{l}.mlp.c_fc.weight", (4, 16), transpose=True)
        views["fcb"][l] = add(f"h.{l}.mlp.c_fc.bias", (16,))
        views["fcprojw"][l] = add(f"h.{l}.mlp.c_proj.weight", (16, 4), transpose=True)
        views["fcprojb"][l] = add(f"h.{l}.mlp.c_proj.bias", (4,))
    views["lnfw"][:] = add("ln_f.weight", (4,))
    views["lnfb"][:] = add("ln_f.bias", (4,))
    return foreign, params


def write_folder(folder, foreign, **fields):
    (folder / "config.json").write_text(json.dumps(FIELDS | fields))
    save_file(foreign, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("prefix", ["", "transformer."])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_folder_becomes_the_flat_array(tmp_path, prefix, dtype):
    foreign, params = tensors()
    for l in range(2):
        foreign[f"h.{l}.attn.bias"] = np.tril(np.ones((1, 1, 5, 5), np.bool_))
        foreign[f"h.{l}.attn.masked_bias"] = np.array(-1e4, np.float32)
    foreign = {prefix + name: array.astype(dtype) for name, array in foreign.items()}
    foreign["lm_head.weight"] = foreign[prefix + "wte.weight"]
    config, read = huggingface.load_folder(write_folder(tmp_path, foreign, n_inner=16))
    assert config == CONFIG
    assert read.dtype == np.float32
    assert np.array_equal(read, params)


def without(name):
    return lambda foreign: foreign.pop(name)


def with_tensor(name, array):
    return lambda foreign: foreign.update({name: array})


WRONG_TENSORS = {
    "one missing": (without("h.1.mlp.c_fc.bias"), "h.1.mlp.c_fc.bias is missing"),
    "embedding missing": (without("wte.weight"), "wte.weight is missing"),
    "not transposed": (
        with_tensor("h.0.attn.c_attn.weight", np.zeros((12, 4), np.float32)),
        r"h.0.attn.c_attn.weight has shape \(12, 4\), expected \(4, 12\)",
    ),
    "wrong vocabulary": (with_tensor("wte.weight", np.zeros((8, 4), np.float32)), r"\(8, 4\), expected \(7, 4\)"),
    "one layer more": (with_tensor("h.2.ln_1.bias", np.zeros(4, np.float32)), "h.2.ln_1.bias does not belong"),
    "unknown": (with_tensor("classifier.weight", np.zeros(4, np.float32)), "classifier.weight does not belong"),
    "float64": (with_tensor("ln_f.bias", np.zeros(4)), "ln_f.bias is stored as F64, expected F32 or F16"),
    "whole numbers": (with_tensor("ln_f.bias", np.zeros(4, np.int32)), "ln_f.bias is stored as I32"),
    "untied head": (with_tensor("lm_head.weight", np.zeros((7, 4), np.float32)), "lm_head.weight differs"),
    "head of another shape": (with_tensor("lm_head.weight", np.zeros((8, 4), np.float32)), "lm_head.weight differs"),
    "twice": (with_tensor("transformer.ln_f.bias", np.zeros(4, np.float32)), "holds a tensor twice"),
}


@pytest.mark.parametrize(("change", "message"), WRONG_TENSORS.values(), ids=WRONG_TENSORS.keys())
def test_wrong_tensors(tmp_path, change, message):
    foreign, _ = tensors()
    change(foreign)
    write_folder(tmp_path, foreign)
    with pytest.raises(UserError, match=message) as caught:
        huggingface.load_folder(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'model.safetensors'}: ")
    assert "\n" not in str(caught.value)


def test_bfloat16_is_refused(tmp_path):
    write_folder(tmp_path, {name: array.astype(np.float16) for name, array in tensors()[0].items()})
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = data[8 : 8 + length].replace(b'"F16"', b'"BF16"')  # as wide, so the offsets hold
    path.write_bytes(len(header).to_bytes(8, "little") + header + data[8 + length :])
    with pytest.raises(UserError, match="is stored as BF16, expected F32 or F16"):
        huggingface.load_folder(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "llama"),
        ("model_type", None),
        ("activation_function", "relu"),
        ("n_inner", 17),
        ("scale_attn_by_inverse_layer_idx", True),
        ("scale_attn_weights", False),
        ("reorder_and_upcast_attn", True),
        ("add_cross_attention", True),
        ("layer_norm_epsilon", 1e-6),
        ("tie_word_embeddings", False),
        ("n_layer", "2"),
        ("n_layer", 2.0),
        ("n_layer", True),
        ("n_embd", None),
    ],
)
def test_other_architectures(tmp_path, key, value):
    write_folder(tmp_path, tensors()[0], **{key: value})
    with pytest.raises(UserError, match=key) as caught:
        huggingface.load_folder(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'config.json'}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_head": 3}, "4 channels.*3 heads"),
        ({"n_layer": 0}, "L=0"),
        ({"n_layer": 2**40}, "L="),
        ({"n_layer": 2**31 - 1}, "h.2.ln_1.weight is missing"),
        ({"n_layer": 1}, "h.1.* does not belong"),
        ({"n_positions": 2**31 - 1}, r"wpe.weight has shape \(5, 4\)"),
    ],
)
def test_sizes_that_do_not_fit(tmp_path, fields, message):
    with pytest.raises(UserError, match=message):
        huggingface.load_folder(write_folder(tmp_path, tensors()[0], **fields))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[]", b'"gpt2"', b"null", b"{}"])
def test_config_that_is_not_a_configuration(tmp_path, content):
    write_folder(tmp_path, tensors()[0])
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UserError, match=r"config.json: (not valid JSON|expected a JSON object|model_type is None)"):
        huggingface.load_folder(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_file_missing_from_the_folder(tmp_path, name):
    write_folder(tmp_path, tensors()[0])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name}: No such file"):
        huggingface.load_folder(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"x" * 1000,
        lambda data: data[:9],
    ],
)
def test_corrupt_safetensors(tmp_path, damage):
    path = write_folder(tmp_path, tensors()[0]) / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"model.safetensors: corrupt") as caught:
        huggingface.load_folder(tmp_path)
    assert "\n" not in str(caught.value)


def test_published_file_already_converted_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface, "PRESETS", {"gpt2": CONFIG})
    monkeypatch.setattr(huggingface, "fetch_gpt2", lambda: pytest.fail("fetched"))
    _, params = tensors()
    save_model(tmp_path / "gpt2_124M.bin", CONFIG, params)
    config, read = huggingface.load_gpt2(tmp_path)
    assert config == CONFIG
    assert np.array_equal(read, params)


def test_converted_file_of_another_size_is_refused(tmp_path):
    save_model(tmp_path / "gpt2_124M.bin", CONFIG, tensors()[1])
    with pytest.raises(UserError, match=r"gpt2_124M.bin: expected GPT-2 124M.*L=2"):
        huggingface.load_gpt2(tmp_path)


def test_fetched_file_is_converted_and_kept(tmp_path, monkeypatch):
    foreign, params = tensors()
    write_folder(tmp_path, foreign)
    monkeypatch.setattr(huggingface, "PRESETS", {"gpt2": CONFIG})
    monkeypatch.setattr(huggingface, "fetch_gpt2", lambda: tmp_path / "model.safetensors")
    config, read = huggingface.load_gpt2(str(tmp_path))
    assert config == CONFIG
    assert np.array_equal(read, params)
    assert np.array_equal(load_model(tmp_path / "gpt2_124M.bin")[1], params)


def test_nothing_is_kept_when_fetching_fails(tmp_path, monkeypatch):
    def refuse():
        raise UnavailableError("no network")

    monkeypatch.setattr(huggingface, "fetch_gpt2", refuse)
    with pytest.raises(UnavailableError, match="no network"):
        huggingface.load_gpt2(tmp_path)
    assert os.listdir(tmp_path) == []


# The hub: a server on this machine that answers as the hub's "resolve" address does, asked by a process of its own
# because huggingface_hub reads its environment when it is imported.

CONTENT = b"the weights" * 1000
ADDRESS = f"/openai-community/gpt2/resolve/{huggingface.REVISION}/model.safetensors"
FETCH = """
import sys
from gpt2 import huggingface
from gpt2.errors import UserError
huggingface.WEIGHTS_SHA256 = sys.argv[1]
huggingface.PROBE_SECONDS = 1
try:
    print("path:", huggingface.fetch_gpt2())
except UserError as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


class Hub(http.server.BaseHTTPRequestHandler):
    content = CONTENT
    status = 200

    def do_HEAD(self):
        self.server.requests.append(f"{self.command} {self.path}")
        self.send_response(self.status)
        self.send_header("X-Repo-Commit", huggingface.REVISION)
        self.send_header("ETag", '"0123456789abcdef"')
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
    """Runs fetch_gpt2 in a process of its own, expecting `content`, with its cache in `home`."""
    inherited = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HUGGING"))}
    inherited = {key: value for key, value in inherited.items() if not key.upper().endswith("_PROXY")}
    ours = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", FETCH, hashlib.sha256(content).hexdigest()],
        env=inherited | ours | environment,
        capture_output=True,
        text=True,
        timeout=20,  # huggingface_hub by itself goes on for longer
    )


def assert_refused(result, *words):
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    for word in ("UnavailableError: ", *words):
        assert word in result.stderr


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


def test_corrupt_download_is_refused_and_says_which_file_to_delete(tmp_path):
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


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_hub_that_refuses(tmp_path, status):
    with serving(type("Refusing", (Hub,), {"status": status})) as (server, endpoint):
        assert_refused(fetch(tmp_path, endpoint), "cannot fetch model.safetensors", str(status))
        assert server.requests.count(f"HEAD {ADDRESS}") == 1
        assert f"GET {ADDRESS}" not in server.requests


def test_server_that_is_no_hub(tmp_path):
    class Website(Hub):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

    with serving(Website) as (_, endpoint):
        assert_refused(fetch(tmp_path, endpoint), "cannot fetch model.safetensors")


def test_no_server_fails_at_once_and_quietly(tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert_refused(fetch(tmp_path, endpoint), "cannot fetch model.safetensors", "refused")


def test_name_that_does_not_resolve(tmp_path):
    assert_refused(fetch(tmp_path, "http://no-such-host.invalid"), "cannot fetch model.safetensors")


def test_server_that_stalls_is_given_up_within_seconds(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert_refused(fetch(tmp_path, endpoint), "cannot fetch model.safetensors", "timed out")


def test_offline_mode_asks_nobody(tmp_path):
    with serving(Hub) as (server, endpoint):
        assert_refused(fetch(tmp_path, endpoint, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE")
        assert server.requests == []
