import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import struct
import subprocess
import sys
import threading
import tracemalloc

import numpy as np
import pytest

from gpt2.config import GPT2Config
from gpt2.errors import UserError
from gpt2.formats import training_state
from gpt2.formats.llmc import load_model, write_model
from gpt2.formats.run import newest_model
from gpt2.model import GPT2
from gpt2.optimizer import AdamW
from gpt2.training import checkpoint

CONFIG = GPT2Config(maxT=4, V=5, L=1, NH=1, C=2)
ROOT = pathlib.Path(__file__).resolve().parents[2]


def make_run(seed, config=CONFIG):
    """A model and an optimizer whose moments are random, as training would leave them."""
    rng = np.random.default_rng(seed)
    model = GPT2(config, seed)
    optimizer = AdamW(model)
    rng.standard_normal(out=optimizer.m, dtype=np.float32)
    rng.random(out=optimizer.v, dtype=np.float32)
    optimizer.steps = seed
    return model, optimizer


def save(folder, step, keep=9, **progress):
    """Saves a run of which every number depends on the step; returns (model, optimizer)."""
    model, optimizer = make_run(step)
    checkpoint.save(folder, model, optimizer, {"step": step, **progress}, keep)
    return model, optimizer


def names(folder):
    return sorted(os.listdir(folder))


def pair(step):
    return [f"model_{step:08d}.bin", f"state_{step:08d}.bin"]


def find_with_reports(folder):
    lines = []
    return checkpoint.find(folder, lines.append), lines


def test_what_was_saved_is_found_bit_for_bit(tmp_path):
    progress = {"step": 20, "train_loss": 0.1 + 0.2, "position": {"epoch": 1, "batch": [3, None]}, "text": "ü\udc80"}
    model, optimizer = make_run(20)
    optimizer.v[:2] = np.inf, 1e-45
    saved = checkpoint.save(tmp_path, model, optimizer, progress, keep=1)
    assert names(tmp_path) == ["checkpoints.json", *pair(20)]

    found, reports = find_with_reports(tmp_path)
    assert found == saved and reports == []
    assert (found.folder, found.step, found.progress) == (tmp_path, 20, progress)
    assert [found.model, found.state] == [tmp_path / name for name in pair(20)]
    assert np.array_equal(GPT2.load(found.model).params_flat, model.params_flat)

    fresh = AdamW(GPT2(CONFIG))
    m, v = fresh.m, fresh.v
    found.load_state(fresh)
    assert fresh.m is m and fresh.v is v
    assert m.tobytes() == optimizer.m.tobytes() and v.tobytes() == optimizer.v.tobytes()
    assert fresh.steps == 20


def test_saving_needs_no_thread(tmp_path, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    save(tmp_path, 3)
    assert find_with_reports(tmp_path)[1] == []


def test_saving_needs_no_fsync_where_a_file_system_has_none(tmp_path, monkeypatch):
    def refuse(descriptor):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    save(tmp_path, 3)
    assert find_with_reports(tmp_path)[1] == []


def test_folders_named_like_checkpoints_are_not_taken_for_them(tmp_path):
    for name in (*pair(2), ".model_00000001.bin.abcd_123"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.find(tmp_path, pytest.fail)
    save(tmp_path, 3, keep=1)
    assert find_with_reports(tmp_path)[1] == [] and (tmp_path / pair(2)[0]).is_dir()


def test_the_state_file_is_laid_out_as_described(tmp_path):
    _, optimizer = save(tmp_path, 20, train_loss=1.5)
    model, state = ((tmp_path / name).read_bytes() for name in pair(20))
    header = struct.unpack("<256i", state[:1024])
    json_bytes = header[2]
    assert header[:9] == (20261121, 1, json_bytes, 4, 5, 1, 1, 2, 128) and not any(header[9:])
    assert json_bytes % 64 == 0
    assert json.loads(state[1024 : 1024 + json_bytes]) == {
        "progress": {"step": 20, "train_loss": 1.5},
        "optimizer_steps": 20,
        "model": {"bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()},
    }
    assert state[1024 + json_bytes : -32] == optimizer.m.tobytes() + optimizer.v.tobytes()
    assert state[-32:] == hashlib.sha256(state[:-32]).digest()
    assert json.loads((tmp_path / "checkpoints.json").read_bytes()) == {
        "step": 20,
        "model": {"bytes": len(model), "sha256": hashlib.sha256(model).hexdigest()},
        "state": {"bytes": len(state), "sha256": hashlib.sha256(state).hexdigest()},
    }


def test_saving_doubles_nothing_in_memory(tmp_path):
    model, optimizer = make_run(1, GPT2Config(maxT=4, V=50000, L=1, NH=1, C=32))
    assert model.params_flat.nbytes > 6e6
    tracemalloc.start()
    checkpoint.save(tmp_path, model, optimizer, {"step": 1}, keep=1)
    checkpoint.find(tmp_path).load_state(optimizer)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2.5e6


def test_state_of_another_size_is_refused(tmp_path):
    save(tmp_path, 1)
    _, optimizer = make_run(1, GPT2Config(maxT=5, V=5, L=1, NH=1, C=2))
    with pytest.raises(UserError, match=r"state_00000001.bin: the state of .*maxT=4.* but the model is .*maxT=5"):
        checkpoint.find(tmp_path).load_state(optimizer)


def test_state_cut_off_after_it_was_found(tmp_path):
    _, optimizer = save(tmp_path, 1)
    found = checkpoint.find(tmp_path)
    for size in (0, 100, found.state.stat().st_size - 100):
        os.truncate(found.state, size)
        with pytest.raises(UserError, match=r"state_00000001\.bin"):
            found.load_state(optimizer)


def test_state_cut_off_while_it_is_read(tmp_path, monkeypatch):
    config = GPT2Config(maxT=4, V=5, L=1, NH=1, C=32)
    model, optimizer = make_run(1, config)
    found = checkpoint.save(tmp_path, model, optimizer, {"step": 1}, keep=1)
    really = checkpoint.read_state_sizes

    def read_sizes(file, path):
        sizes = really(file, path)
        os.truncate(path, 20_000)
        return sizes

    monkeypatch.setattr(checkpoint, "read_state_sizes", read_sizes)
    with pytest.raises(UserError, match=r"state_00000001\.bin: ends early"):
        found.load_state(optimizer)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path, keep):
    for step in (1, 2, 3, 123456789):
        save(tmp_path, step, keep)
    kept = [1, 2, 3, 123456789][-keep:]
    assert names(tmp_path) == sorted(["checkpoints.json", *(name for step in kept for name in pair(step))])
    assert checkpoint.steps(tmp_path) == kept[::-1]
    assert checkpoint.find(tmp_path).step == 123456789


def test_what_has_had_its_time_is_removed_and_nothing_else(tmp_path):
    for step in (10, 20, 40):
        save(tmp_path, step)
    foreign = ["model.bin", "model_10.bin", "model_00000010.bin.old", "metrics.jsonl", ".lock", ".model_notes"]
    foreign += ["model_000000010.bin", "xmodel_00000010.bin", "model_0000001x.bin", ".checkpoints.json.a", "loss.png"]
    leftovers = [".model_00000020.bin.abcd_123", ".state_00000020.bin.12345678", ".checkpoints.json.zzzzzzzz"]
    for name in [*foreign, *leftovers, "model_00000015.bin", "state_00000016.bin", "model_00000050.bin"]:
        (tmp_path / name).write_bytes(b"x")
    save(tmp_path, 30, keep=2)
    assert names(tmp_path) == sorted([*foreign, "checkpoints.json", *pair(20), *pair(30)])


def test_nothing_is_removed_before_the_new_pair_is_named(tmp_path, monkeypatch):
    # The state goes first: what is left of a removal that was interrupted is a model file, not a damaged state.
    save(tmp_path, 10)
    removed, unlink = [], pathlib.Path.unlink

    def watched(path, missing_ok=False):
        assert json.loads((tmp_path / "checkpoints.json").read_bytes())["step"] == 20
        removed.append(path.name)
        unlink(path, missing_ok)

    monkeypatch.setattr(pathlib.Path, "unlink", watched)
    save(tmp_path, 20, keep=1)
    assert removed == pair(10)[::-1]


def test_older_checkpoints_are_not_read(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    for name in pair(10):
        (tmp_path / name).write_bytes(b"damaged")
    found, reports = find_with_reports(tmp_path)
    assert found.step == 20 and reports == []


def test_a_pair_newer_than_the_manifest_is_used(tmp_path):
    save(tmp_path, 10)
    manifest = (tmp_path / "checkpoints.json").read_bytes()
    save(tmp_path, 20)
    (tmp_path / "checkpoints.json").write_bytes(manifest)
    found, reports = find_with_reports(tmp_path)
    assert found.step == 20
    assert len(reports) == 1 and "checkpoints.json: names step 10, but step 20 is whole" in reports[0]


def test_none_whole(tmp_path):
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.find(tmp_path)
    with pytest.raises(UserError, match="No such file or directory"):
        checkpoint.find(tmp_path / "missing")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match="Not a directory"):
        checkpoint.find(tmp_path / "file")
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "state_00000010.bin").unlink()
    (tmp_path / "model_00000020.bin").unlink()
    lines = []
    with pytest.raises(UserError, match="no whole checkpoint"):
        checkpoint.find(tmp_path, lines.append)
    assert [line.split(";")[0] for line in lines] == [
        f"{tmp_path / 'model_00000020.bin'}: missing",
        f"{tmp_path / 'state_00000010.bin'}: missing",
    ]


def test_what_is_no_file_neither_hangs_nor_stops_the_search(tmp_path):
    save(tmp_path, 10)
    (tmp_path / "model_00000020.bin").mkdir()
    os.mkfifo(tmp_path / "state_00000020.bin")
    os.mkfifo(tmp_path / "model_00000030.bin")
    (tmp_path / "state_00000030.bin").symlink_to("nowhere")
    found, reports = find_with_reports(tmp_path)
    assert found.step == 10 and len(reports) == 2  # the manifest is right


def state_bytes(facts, json_bytes=None, sizes=(4, 5, 1, 1, 2, 128), floats=None):
    """A state with a checksum that holds, whatever its JSON says."""
    text = facts if isinstance(facts, bytes) else json.dumps(facts).encode()
    floats = 2 * GPT2(CONFIG).params_flat.size if floats is None else floats
    header = [20261121, 1, len(text) if json_bytes is None else json_bytes, *sizes]
    data = struct.pack("<256i", *header, *[0] * (256 - len(header))) + text + bytes(4 * floats)
    return data + hashlib.sha256(data).digest()


def facts(**changed):
    """What the state of step 20 says, but for the changes."""
    file = io.BytesIO()
    write_model(file, CONFIG, GPT2(CONFIG, 20).params_flat, untrained=True)
    model = {"bytes": file.tell(), "sha256": hashlib.sha256(file.getvalue()).hexdigest()}
    return {"progress": {"step": 20}, "optimizer_steps": 1, "model": model} | changed


@pytest.mark.parametrize(
    "state",
    [
        state_bytes(b""),
        state_bytes(b"{"),
        state_bytes(b"\xff"),
        state_bytes(b"[" * 100_000),
        state_bytes(b'{"a":' * 100_000),
        state_bytes(b"1" * 10_000),
        state_bytes([facts()]),
        state_bytes({}),
        state_bytes(facts(progress=None)),
        state_bytes(facts(progress=[])),
        state_bytes(facts(progress={})),
        state_bytes(facts(progress={"step": "20"})),
        state_bytes(facts(progress={"step": 20.0})),
        state_bytes(facts(progress={"step": True})),
        state_bytes(facts(progress={"step": 10})),
        state_bytes(facts(progress={"step": 10**4000})),
        state_bytes(facts(optimizer_steps=-1)),
        state_bytes(facts(optimizer_steps=2**63)),
        state_bytes(facts(optimizer_steps=None)),
        state_bytes(facts(optimizer_steps=True)),
        state_bytes({name: value for name, value in facts().items() if name != "model"}),
        state_bytes(facts(model=None)),
        state_bytes(facts(model={"bytes": 10**30, "sha256": "../../x"})),
        state_bytes(facts(), json_bytes=-1),
        state_bytes(facts(), json_bytes=2**31 - 1),
        state_bytes(facts(), sizes=(4, 5, 1, 1, 2, 256)),
        state_bytes(facts(), sizes=(4, 5, 1, 0, 2, 128)),
        state_bytes(facts(), sizes=(-4, 5, 1, 1, 2, 128)),
        state_bytes(facts(), sizes=(2**31 - 1,) * 6),
        state_bytes(facts(), sizes=(2**31 - 1, 5, 2**31 - 1, 1, 2**31 - 1, 128)),
        state_bytes(facts(), sizes=(3, 5, 1, 1, 2, 128), floats=2 * (GPT2(CONFIG).params_flat.size - 2)),
    ],
    ids=lambda state: f"{len(state)} bytes",
)
def test_a_state_that_was_made_up_is_refused(tmp_path, state):
    save(tmp_path, 10)
    save(tmp_path, 20)
    (tmp_path / "state_00000020.bin").write_bytes(state)
    tracemalloc.start()
    found, reports = find_with_reports(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.step == 10
    assert "state_00000020.bin" in reports[0] and "\n" not in reports[0]
    assert peak < 2**20 + 20 * len(state) + 200_000


def test_the_made_up_state_would_do_if_it_were_right(tmp_path):
    # So that the test above refuses what it names, not the way in which its states are made.
    save(tmp_path, 20)
    (tmp_path / "state_00000020.bin").write_bytes(state_bytes(facts()))
    found, reports = find_with_reports(tmp_path)
    assert found.step == 20 and found.optimizer_steps == 1
    assert len(reports) == 1 and "checkpoints.json: damaged, or of another run" in reports[0]


@pytest.mark.parametrize("version", [1, 5])
def test_a_model_of_another_version_is_refused(tmp_path, version):
    save(tmp_path, 20)
    config, params = load_model(tmp_path / "model_00000020.bin")
    body = np.concatenate([params[:10], params[256:]]) if version == 1 else params.astype(np.uint16)
    header = [20240326, version, 4, 5, 1, 1, 2, config.Vp]
    data = struct.pack("<256i", *header, *[0] * 248) + body.tobytes()
    (tmp_path / "model_00000020.bin").write_bytes(data)
    load_model(tmp_path / "model_00000020.bin")
    lines = []
    with pytest.raises(UserError, match="no whole"):
        checkpoint.find(tmp_path, lines.append)
    assert f"in version {version}, but state_00000020.bin is that of" in lines[0]


def test_too_many_facts_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(training_state, "JSON_LIMIT", 1000)
    with pytest.raises(UserError, match=r"state_00000001.bin: 1,\d\d\d bytes of metadata"):
        save(tmp_path, 1, text="x" * 1000)
    assert names(tmp_path) == ["model_00000001.bin"]


def test_a_state_with_too_many_facts_is_not_read(tmp_path, monkeypatch):
    save(tmp_path, 1, text="x" * 1000)
    monkeypatch.setattr(training_state, "JSON_LIMIT", 1000)
    lines = []
    with pytest.raises(UserError, match="no whole"):
        checkpoint.find(tmp_path, lines.append)
    assert "state_00000001.bin: damaged: no state has sizes" in lines[0]


def test_a_whole_pair_under_the_names_of_another_step_is_refused(tmp_path):
    save(tmp_path, 10)
    save(tmp_path, 20)
    for old, new in zip(pair(10), pair(20), strict=True):
        shutil.copyfile(tmp_path / old, tmp_path / new)
    found, reports = find_with_reports(tmp_path)
    assert found.step == 10
    assert "state_00000020.bin: the state of step 10, not of the step in its name" in reports[0]
    assert "checkpoints.json: names step 20, which is not whole" in reports[1] and len(reports) == 2


def test_newest_model_is_the_one_that_the_manifest_names(tmp_path):
    with pytest.raises(UserError, match=r"checkpoints.json: missing"):
        newest_model(tmp_path)
    save(tmp_path, 10)
    save(tmp_path, 20)
    assert newest_model(str(tmp_path)) == tmp_path / "model_00000020.bin"
    (tmp_path / "model_00000020.bin").unlink()
    with pytest.raises(UserError, match=r"model_00000020.bin: no such file"):
        newest_model(tmp_path)


@pytest.mark.parametrize(
    "manifest",
    [b"", b"{", b"\xff", b"[]", b"{}", b'{"step": "../x"}', b'{"step": -1}', b'{"step": 1e99}', b"[" * 4096, b'{"step'],
)
def test_a_manifest_that_names_nothing(tmp_path, manifest):
    save(tmp_path, 10)
    (tmp_path / "checkpoints.json").write_bytes(manifest)
    with pytest.raises(UserError, match=r"checkpoints.json: damaged"):
        newest_model(tmp_path)
    found, reports = find_with_reports(tmp_path)
    assert found.step == 10 and len(reports) == 1 and "checkpoints.json: damaged" in reports[0]


def listing(folder):
    command = [sys.executable, "-m", "gpt2.checkpoint", str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_listing(tmp_path):
    save(tmp_path, 10, train_loss=4.25, val_loss=None)
    save(tmp_path, 20, train_loss=3.5, val_loss=3.75)
    save(tmp_path, 30, train_loss=[], val_loss=10**400)
    with open(tmp_path / "state_00000030.bin", "r+b") as file:
        file.seek(2000)
        file.write(b"damaged")
    result = listing(tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["step", "train", "loss", "val", "loss", "size"]
    assert rows[0].split() == ["10", "4.250000", "-", "0.0", "MB", "whole"]
    assert rows[1].split() == ["*", "20", "3.500000", "3.750000", "0.0", "MB", "whole"]
    assert "checkpoints.json: names step 30, which is not whole" in rows[2]
    assert rows[3].split()[:6] == ["30", "-", "-", "0.0", "MB", f"{tmp_path / 'state_00000030.bin'}:"]
    assert "checksum" in rows[3] and len(rows) == 4


def test_listing_of_nothing(tmp_path):
    result = listing(tmp_path)
    assert result.returncode == 1 and result.stdout == ""
    assert (
        result.stderr == f"error: {tmp_path}: no whole checkpoint (a model_*.bin with its state_*.bin) to resume from\n"
    )


def test_an_old_checkpoint_that_cannot_be_removed_is_named_and_ends_nothing(tmp_path, monkeypatch, capsys):
    def refuse(path, missing_ok=False):
        raise PermissionError(errno.EPERM, "Operation not permitted", str(path))

    save(tmp_path, 10)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", refuse)
        save(tmp_path, 20, keep=1)
    state = tmp_path / pair(10)[1]
    assert capsys.readouterr().err == f"{state}: Operation not permitted; it should be removed, but stays\n"
    assert names(tmp_path) == sorted(["checkpoints.json", *pair(10), *pair(20)])
    save(tmp_path, 30, keep=1)
    assert names(tmp_path) == ["checkpoints.json", *pair(30)]
