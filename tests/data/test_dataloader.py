"""Batches in sequence and shuffled, saved positions, comparison with an earlier run's files, malformed files."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from gpt2.data import dataloader
from gpt2.data.dataloader import DataLoader, bytes_in_memory
from gpt2.errors import UserError
from gpt2.formats.llmc import TokenFile

V = 50257


def new_format(tokens, count=None, version=1, magic=20240520):
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) if count is None else count
    return header.tobytes() + np.asarray(tokens, dtype="<u2").tobytes()


def old_format(tokens):
    return np.asarray(tokens, dtype="<i4").tobytes()


def write_range(path, start, stop, encode=new_format):
    path.write_bytes(encode(np.arange(start, stop)))
    return path


def assert_batch(loader, start):
    """Asserts that the next batch consists of the B*T+1 consecutive numbers from `start` on."""
    tokens, targets = loader.next_batch()
    expected = start + np.arange(loader.B * loader.T).reshape(loader.B, loader.T)
    for array, values in ((tokens, expected), (targets, expected + 1)):
        assert array.dtype == np.int32 and array.flags.c_contiguous
        assert np.array_equal(array, values)


@pytest.mark.parametrize("encode", [new_format, old_format])
def test_batches_follow_each_other_and_wrap_around(tmp_path, encode):
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 20, encode), B=2, T=3, V=V)
    assert (loader.num_tokens, loader.num_batches) == (20, 3)
    for epoch in range(3):
        for batch in range(3):
            assert (loader.position, loader.epoch) == ((epoch, batch), epoch)
            assert_batch(loader, 6 * batch)


@pytest.mark.parametrize(("count", "batches"), [(7, 1), (12, 1), (13, 2), (18, 2), (19, 3)])
def test_a_batch_needs_one_more_token_for_the_last_target(tmp_path, count, batches):
    assert DataLoader(write_range(tmp_path / "x.bin", 0, count), B=2, T=3, V=V).num_batches == batches


def test_files_are_read_in_order_of_their_names(tmp_path):
    write_range(tmp_path / "b.bin", 1000, 1014)
    write_range(tmp_path / "a.bin", 0, 7)
    write_range(tmp_path / "c.bin", 2000, 2010, old_format)
    loader = DataLoader(str(tmp_path / "*.bin"), B=2, T=3, V=V)
    assert (loader.num_tokens, loader.num_batches) == (31, 4)
    for _ in range(2):
        for start in (0, 1000, 1006, 2000):
            assert_batch(loader, start)
    assert loader.position == (2, 0)


def test_paths_and_globs_take_each_file_once(tmp_path):
    a, b = write_range(tmp_path / "a.bin", 0, 7), write_range(tmp_path / "b.bin", 1000, 1007)
    loader = DataLoader([str(b), a, str(tmp_path / "?.bin")], B=2, T=3, V=V)
    assert loader.num_tokens == 14
    assert_batch(loader, 0)
    assert_batch(loader, 1000)


def test_one_file_by_several_paths_is_taken_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_range(tmp_path / "a.bin", 0, 7)
    assert DataLoader(["a.bin", "./a.bin", tmp_path / "a.bin", b"a.bin"], B=2, T=3, V=V).num_tokens == 7


def test_brackets_are_part_of_a_file_name_or_a_glob(tmp_path):
    path = write_range(tmp_path / "a[1].bin", 0, 7)
    assert DataLoader(path, B=2, T=3, V=V).num_tokens == 7
    for name in ("a1.bin", "a2.bin", "a3.bin"):
        write_range(tmp_path / name, 0, 8)
    assert DataLoader(str(path), B=2, T=3, V=V).num_tokens == 7
    assert DataLoader(str(tmp_path / "a[12].bin"), B=2, T=3, V=V).num_tokens == 16


def test_the_files_are_named_in_a_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in range(6):
        write_range(tmp_path / f"{n}\n.bin", 0, 7)
    assert DataLoader("[0-3]*", B=2, T=3, V=V).file_names() == "'0\\n.bin', '1\\n.bin', '2\\n.bin', '3\\n.bin'"
    assert DataLoader("[0-5]*", B=2, T=3, V=V).file_names().endswith("'3\\n.bin' and 2 more")


def test_another_loader_continues_at_a_saved_position(tmp_path):
    for start in (0, 1000):
        write_range(tmp_path / f"{start:04}.bin", start, start + 15)
    first, second = (DataLoader(str(tmp_path / "*.bin"), B=2, T=3, V=V) for _ in range(2))
    for _ in range(7):
        first.next_batch()
    second.position = list(first.position)
    assert second.position == (1, 3)
    for start in (1006, 0, 6, 1000):
        assert_batch(first, start)
        assert_batch(second, start)


def test_reset_returns_to_the_start(tmp_path):
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 20), B=2, T=3, V=V)
    for _ in range(4):
        loader.next_batch()
    loader.reset()
    assert loader.position == (0, 0)
    assert_batch(loader, 0)


@pytest.mark.parametrize(
    "position",
    [(-1, 0), (0, -1), (0, 3), (0, 1.0), (True, 0), (0, 0, 0), (0,), (), None, 7, "00", {"epoch": 0}, [[0], [0]]],
)
def test_an_invalid_position(tmp_path, position):
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 20), B=2, T=3, V=V)
    for use in (loader.where, lambda value: setattr(loader, "position", value)):
        with pytest.raises(UserError, match=r"position .* has 3 batches of 2 x 3"):
            use(position)
    assert loader.position == (0, 0)


def test_ids_above_the_range_of_int16(tmp_path):
    loader = DataLoader(write_range(tmp_path / "x.bin", 50250, 50257), B=2, T=3, V=V)
    assert_batch(loader, 50250)


def test_files_in_memory_and_on_disk_give_the_same_tokens(tmp_path, monkeypatch):
    for name, start in (("a", 0), ("b", 100), ("c", 200)):
        write_range(tmp_path / f"{name}.bin", start, start + 13)
    monkeypatch.setattr(dataloader, "READ_BYTES", 2 * 13 * 2)  # enough for two of them
    loader = DataLoader(str(tmp_path / "*.bin"), B=2, T=3, V=V)
    assert [isinstance(tokens, TokenFile) for tokens in loader.shards] == [False, False, True]
    for start in (0, 6, 100, 106, 200, 206):
        assert_batch(loader, start)


def test_a_small_file_may_change_during_the_run(tmp_path):
    path = write_range(tmp_path / "x.bin", 0, 13)
    loader = DataLoader(path, B=2, T=3, V=V)
    path.write_bytes(b"")
    assert_batch(loader, 0)
    assert_batch(loader, 6)


def test_the_bytes_read_into_memory_are_known_before(tmp_path, monkeypatch):
    for name, count in (("a", 10), ("b", 5000), ("c", 40)):
        write_range(tmp_path / f"{name}.bin", 0, count)
    monkeypatch.setattr(dataloader, "READ_BYTES", 2200)
    assert bytes_in_memory(str(tmp_path / "*.bin")) == 2 * 1024 + 2 * 50
    shards = DataLoader(str(tmp_path / "*.bin"), B=1, T=1, V=V).shards
    assert [isinstance(tokens, TokenFile) for tokens in shards] == [False, True, False]


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that is read row by row, and its loader: 22 tokens, three batches of 2 x 3."""
    monkeypatch.setattr(dataloader, "READ_BYTES", 0)
    path = write_range(tmp_path / "x.bin", 0, 22)
    return path, DataLoader(path, B=2, T=3, V=V)


def test_a_file_truncated_while_in_use_is_one_line(large):
    path, loader = large
    os.truncate(path, 1024 + 2 * 7)
    assert_batch(loader, 0)
    for _ in range(2):
        with pytest.raises(UserError, match=rf"^{path}: truncated while in use, to 1,038 bytes or fewer; restore the"):
            loader.next_batch()
    assert loader.position == (0, 1)
    write_range(path, 0, 22)
    assert_batch(loader, 6)


def append(path):
    path.write_bytes(path.read_bytes() + bytes(100))


def replace(path):
    os.replace(write_range(path.with_name("new"), 100, 107), path)


@pytest.mark.parametrize("change", [append, replace, os.unlink])
def test_a_file_may_grow_be_replaced_or_deleted(large, change):
    path, loader = large
    change(path)
    for start in (0, 6, 12, 0):
        assert_batch(loader, start)


def test_a_file_that_can_no_longer_be_read_is_one_line(large, monkeypatch):
    def stale(*arguments):
        raise OSError(errno.ESTALE, "Stale file handle")

    path, loader = large
    monkeypatch.setattr(os, "preadv", stale)
    with pytest.raises(UserError, match=rf"^{path}: Stale file handle$"):
        loader.next_batch()


def test_a_batch_may_be_overwritten(tmp_path):
    path = write_range(tmp_path / "x.bin", 0, 7)
    loader = DataLoader(path, B=2, T=3, V=V)
    loader.next_batch()[0][:] = 99
    assert_batch(loader, 0)


def three_files(folder):
    """Writes files of 13, 22 and 8 tokens: with B=2, T=3, 2, 3 and 1 batches, 12 rows; a row of b.bin is left over."""
    for name, start, count in (("a", 0, 13), ("b", 100, 22), ("c", 200, 8)):
        write_range(folder / f"{name}.bin", start, start + count)
    return str(folder / "*.bin")


def epoch_of(loader):
    """Returns the tokens of an epoch in order, (rows, T); asserts that each target is the token that follows."""
    rows = []
    for _ in range(loader.num_batches):
        tokens, targets = loader.next_batch()
        assert tokens.dtype == targets.dtype == np.int32 and tokens.flags.c_contiguous and targets.flags.c_contiguous
        assert np.array_equal(targets, tokens + 1)
        rows.append(tokens)
    return np.concatenate(rows)


def test_a_shuffled_epoch_has_every_row_once(tmp_path):
    files = three_files(tmp_path)
    in_sequence = epoch_of(DataLoader(files, B=2, T=3, V=V))
    assert in_sequence[:, 0].tolist() == [0, 3, 6, 9, 100, 103, 106, 109, 112, 115, 200, 203]
    loader = DataLoader(files, B=2, T=3, V=V, shuffle_seed=7)
    assert loader.num_batches == 6
    epochs = [epoch_of(loader) for _ in range(3)]
    assert loader.position == (3, 0)
    for rows in epochs:
        assert not np.array_equal(rows, in_sequence)
        assert np.array_equal(rows[np.argsort(rows[:, 0])], in_sequence)
    assert not np.array_equal(epochs[0], epochs[1]) and not np.array_equal(epochs[1], epochs[2])
    assert not np.array_equal(epoch_of(DataLoader(files, B=2, T=3, V=V, shuffle_seed=8)), epochs[0])
    loader.reset()
    assert np.array_equal(epoch_of(loader), epochs[0])


def test_the_shuffled_order_depends_only_on_seed_and_epoch(tmp_path):
    """A checkpoint therefore needs only the position."""
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 25), B=2, T=3, V=V, shuffle_seed=7)
    for epoch in range(3):
        expected = 3 * np.random.default_rng([7, epoch]).permutation(8)
        assert epoch_of(loader)[:, 0].tolist() == expected.tolist()


def test_another_process_continues_with_the_same_shuffled_batches(tmp_path):
    files = three_files(tmp_path)
    loader = DataLoader(files, B=2, T=3, V=V, shuffle_seed=7)
    for _ in range(9):
        loader.next_batch()
    script = """
import json, sys
from gpt2.data.dataloader import DataLoader
loader = DataLoader(sys.argv[1], B=2, T=3, V=50257, shuffle_seed=7)
loader.position = json.loads(sys.argv[2])
print(json.dumps([loader.next_batch()[0].tolist() for _ in range(10)]))
"""
    arguments = [sys.executable, "-c", script, files, json.dumps(loader.position)]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert json.loads(output) == [loader.next_batch()[0].tolist() for _ in range(10)]


def test_another_loader_continues_within_a_shuffled_epoch(tmp_path):
    files = three_files(tmp_path)
    first = DataLoader(files, B=1, T=5, V=V, shuffle_seed=7)
    second = DataLoader(files, B=1, T=5, V=V, shuffle_seed=7)
    batches, positions = [], []
    for _ in range(3 * first.num_batches):
        positions.append(first.position)
        batches.append(first.next_batch()[0])
    for i in (0, 1, first.num_batches - 1, first.num_batches, 2 * first.num_batches + 2, 3):
        second.position = positions[i]
        for expected in batches[i:]:
            assert np.array_equal(second.next_batch()[0], expected)


def test_too_many_rows_to_shuffle(tmp_path, monkeypatch):
    class Endless(np.ndarray):
        size = 2**33

    endless = np.zeros(1, np.uint16).view(Endless)
    monkeypatch.setattr(dataloader, "open_tokens", lambda path, room: endless)
    monkeypatch.setattr(dataloader, "_check_ids", lambda tokens, path, V: "")
    path = write_range(tmp_path / "x.bin", 0, 7)
    assert DataLoader(path, B=1, T=1, V=V).num_batches == 2**33 - 1
    with pytest.raises(UserError, match="are too many to shuffle"):
        DataLoader(path, B=1, T=1, V=V, shuffle_seed=1)


def test_where_a_batch_is(tmp_path, monkeypatch):
    three_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    loader = DataLoader("*.bin", B=2, T=3, V=V)
    assert loader.where((0, 1)) == "epoch 0, batch 1: a.bin, tokens 6 to 11"
    assert loader.where([1234, 4]) == "epoch 1,234, batch 4: b.bin, tokens 12 to 17"
    assert loader.where((0, 5)) == "epoch 0, batch 5: c.bin, tokens 0 to 5"
    assert loader.position == (0, 0)


def test_where_the_rows_of_a_shuffled_batch_are(tmp_path, monkeypatch):
    three_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    file_of = {0: "a.bin", 1: "b.bin", 2: "c.bin"}
    loader = DataLoader("*.bin", B=2, T=3, V=V, shuffle_seed=7)
    for _ in range(8):
        position = loader.position
        firsts = loader.next_batch()[0][:, 0].tolist()
        places = "; ".join(f"{file_of[first // 100]} from token {first % 100}" for first in firsts)
        assert loader.where(position) == f"epoch {position[0]}, batch {position[1]}: {places}"
    whole = DataLoader("*.bin", B=6, T=1, V=V, shuffle_seed=7).where((0, 2))
    assert whole.count(" from token ") == 4 and whole.endswith("; and 2 more")


def test_the_fingerprint_is_of_the_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(dataloader, "CHUNK", 4)
    path = write_range(tmp_path / "x.bin", 0, 13)
    fingerprint = DataLoader(path, B=2, T=3, V=V).fingerprint
    digest = hashlib.sha256(bytes(byte for token in range(13) for byte in (token, 0))).hexdigest()
    assert json.loads(json.dumps(fingerprint)) == [{"file": str(path), "tokens": 13, "sha256": digest}]


def changed(tmp_path, change):
    """Returns the difference that a loader finds after `change(folder)`."""
    before = DataLoader(three_files(tmp_path), B=2, T=3, V=V).fingerprint
    change(tmp_path)
    return DataLoader(str(tmp_path / "*.bin"), B=2, T=3, V=V).difference(json.loads(json.dumps(before)))


def move(old, new):
    return lambda folder: (folder / old).rename(folder / new)


DIFFERENCES = {
    "nothing": (lambda folder: None, None),
    "written again": (three_files, None),
    "another name in the same place": (move("b.bin", "bb.bin"), None),
    "first missing": (lambda folder: (folder / "a.bin").unlink(), "a.bin is missing"),
    "middle missing": (lambda folder: (folder / "b.bin").unlink(), "b.bin is missing"),
    "last missing": (lambda folder: (folder / "c.bin").unlink(), "c.bin is missing"),
    "additional, in the middle": (lambda folder: write_range(folder / "bb.bin", 0, 20), "bb.bin is an additional file"),
    "additional, at the end": (lambda folder: write_range(folder / "d.bin", 0, 20), "d.bin is an additional file"),
    "more tokens": (lambda folder: write_range(folder / "b.bin", 100, 123), "b.bin has 23 tokens, not 22 as before"),
    "fewer tokens": (lambda folder: write_range(folder / "b.bin", 100, 121), "b.bin has 21 tokens, not 22 as before"),
    "other tokens": (lambda folder: write_range(folder / "b.bin", 101, 123), "b.bin has different tokens, as many as"),
    "another place": (move("a.bin", "z.bin"), "a.bin is missing"),
    "only the last token": (
        lambda folder: (folder / "c.bin").write_bytes(new_format([*range(200, 207), 0])),
        "c.bin has different tokens",
    ),
}


@pytest.mark.parametrize(("change", "expected"), DIFFERENCES.values(), ids=DIFFERENCES.keys())
def test_the_difference_is_described(tmp_path, change, expected):
    difference = changed(tmp_path, change)
    if expected is None:
        assert difference is None
    else:
        assert difference.startswith(f"{tmp_path}{os.sep}{expected}")


def test_files_in_another_folder_or_another_order(tmp_path):
    for name in ("one", "two", "z"):
        (tmp_path / name).mkdir()
    before = DataLoader(three_files(tmp_path / "one"), B=2, T=3, V=V)
    assert DataLoader(three_files(tmp_path / "two"), B=2, T=3, V=V).difference(before.fingerprint) is None
    (tmp_path / "one" / "a.bin").rename(tmp_path / "z" / "a.bin")
    moved = DataLoader([str(tmp_path / "one" / "*"), str(tmp_path / "z" / "*")], B=2, T=3, V=V)
    assert "different order: " in moved.difference(before.fingerprint)


ENTRY = {"file": "x.bin", "tokens": 13, "sha256": "0" * 64}
MALFORMED = [None, 3, "x", {}, [None], [[]], [{}], [{**ENTRY, "file": 3}], [{**ENTRY, "tokens": "13"}]]
MALFORMED += [[{**ENTRY, "tokens": True}], [{**ENTRY, "sha256": None}], [ENTRY, {"file": "y.bin"}]]


@pytest.mark.parametrize("saved", MALFORMED, ids=str)
def test_a_malformed_fingerprint_is_a_difference(tmp_path, saved):
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 13), B=2, T=3, V=V)
    assert "malformed" in loader.difference(saved)


def test_a_foreign_fingerprint_is_described_in_one_line(tmp_path):
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 13), B=2, T=3, V=V)
    assert loader.difference([]) == f"{tmp_path / 'x.bin'} is an additional file"
    assert "not -1 as before" in loader.difference([{**ENTRY, "tokens": -1}])
    assert loader.difference([{**ENTRY, "file": "\n\x1b\udc80"}]).isprintable()


TOKENS = np.arange(13)
WRONG = {
    "empty": (b"", "empty"),
    "half a header": (new_format(TOKENS)[:512], "512 bytes, but a token file starts"),
    "no tokens": (new_format([]), "0 tokens"),
    "negative count": (new_format(TOKENS, count=-1), "-1 tokens"),
    "count too large": (new_format(TOKENS, count=14), "truncated: 1,050 bytes, expected 1,052"),
    "count too small": (new_format(TOKENS, count=12), "too long"),
    "largest count": (new_format(TOKENS, count=2**31 - 1), "truncated"),
    "odd length": (new_format(TOKENS) + b"x", "too long"),
    "last byte missing": (new_format(TOKENS)[:-1], "truncated"),
    "version": (new_format(TOKENS, version=3), "version 3, expected 1"),
    "conversations": (new_format(TOKENS, version=2), "conversations, not the tokens of a text"),
    "model file": (new_format(TOKENS, magic=20240326)[:1044], "token 20240326 at position 0 is not in 0 .. 50256"),
    "no header, not int32": (bytes(5), "not a token file: 5 bytes"),
    "text": (b"Hello, world", "a text, not a token file; make token files of it with: gpt2 prepare "),
    "bytes": (b"\xffello, world\n", "not a token file: 13 bytes|token .* at position 0 is not in"),
    "id at V": (new_format([*range(12), V]), "token 50257 at position 12 is not in 0 .. 50256"),
    "old, id at V": (old_format([*range(12), V]), "token 50257 at position 12"),
    "old, negative id": (old_format([0, 1, -1, *range(10)]), "token -1 at position 2"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_malformed_files_are_refused(tmp_path, content, message):
    write_range(tmp_path / "a.bin", 0, 13)
    path = tmp_path / "b.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        DataLoader(str(tmp_path / "*.bin"), B=3, T=4, V=V)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encode", [new_format, old_format])
def test_files_shorter_than_a_batch_are_left_out_in_a_line(tmp_path, monkeypatch, capsys, encode):
    monkeypatch.chdir(tmp_path)
    write_range(tmp_path / "b.bin", 100, 113)
    alone = DataLoader("*.bin", B=3, T=4, V=V)
    assert capsys.readouterr().out == ""
    for name, count in (("a", 12), ("c", 1)):
        write_range(tmp_path / f"{name}.bin", 0, count, encode)
    loader = DataLoader("*.bin", B=3, T=4, V=V)
    expected = "left out, too short for a batch of 3 x 4: a.bin, c.bin, 13 tokens in all\n"
    assert capsys.readouterr().out == expected
    assert (loader.num_tokens, loader.num_batches, loader.file_names()) == (13, 1, "b.bin")
    assert loader.fingerprint == alone.fingerprint and loader.difference(alone.fingerprint) is None
    assert loader.where((0, 0)) == "epoch 0, batch 0: b.bin, tokens 0 to 11"
    assert_batch(loader, 100)
    (tmp_path / "c.bin").write_bytes(new_format([V]))
    with pytest.raises(UserError, match=r"^c\.bin: token 50257 at position 0"):
        DataLoader("*.bin", B=3, T=4, V=V)


@pytest.mark.parametrize(
    ("counts", "B", "T", "fitting"),
    [
        ([600], 4, 150, (3, 150)),
        ([600], 10, 64, (9, 64)),
        ([64, 65, 3], 4, 64, (1, 64)),
        ([64, 20], 4, 64, (1, 63)),
        ([2], 4, 64, (1, 1)),
    ],
)
def test_the_largest_batch_of_a_short_text_is_named_or_taken(tmp_path, capsys, counts, B, T, fitting):
    for number, count in enumerate(counts):
        write_range(tmp_path / f"{number}.bin", 0, count)
    files = str(tmp_path / "*.bin")
    longest, needed = max(counts), B * T + 1
    with pytest.raises(
        UserError, match=rf"{longest} tokens.*, a batch of {B} x {T} takes at least {needed:,}; "
    ) as error:
        DataLoader(files, B, T, V)
    assert str(error.value).endswith("; choose --batch-size {} --seq-len {}".format(*fitting))
    assert capsys.readouterr().out == ""
    loader = DataLoader(files, B, T, V, shrink=True)
    assert "; its batches are {} x {}\n".format(*fitting) in capsys.readouterr().out
    assert (loader.B, loader.T, loader.num_batches) == (*fitting, 1)
    assert_batch(loader, 0)
    assert DataLoader(files, *fitting, V).num_batches == 1
    assert "choose" not in capsys.readouterr().out


def test_a_single_token_makes_no_batch(tmp_path):
    path = write_range(tmp_path / "x.bin", 0, 1)
    for shrink in (False, True):
        with pytest.raises(UserError, match=r"1 tokens, a batch of 2 x 3 takes at least 7; choose a longer text$"):
            DataLoader(path, 2, 3, V, shrink=shrink)


def test_an_invalid_id_is_found_in_any_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(dataloader, "CHUNK", 4)
    path = tmp_path / "x.bin"
    path.write_bytes(new_format([*range(10), V, V + 1, 0]))
    with pytest.raises(UserError, match="token 50257 at position 10"):
        DataLoader(path, B=1, T=1, V=V)


@pytest.mark.parametrize("name", ["missing.bin", "*.bin"])
def test_no_file_of_that_name(tmp_path, name):
    with pytest.raises(UserError, match="no such token file"):
        DataLoader(str(tmp_path / name), B=1, T=1, V=V)


def test_a_folder(tmp_path):
    with pytest.raises(UserError, match="directory"):
        DataLoader(tmp_path, B=1, T=1, V=V)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_an_unreadable_file(tmp_path):
    path = write_range(tmp_path / "x.bin", 0, 13)
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        DataLoader(path, B=1, T=1, V=V)


def test_an_io_error_on_opening(tmp_path, monkeypatch):
    def refuse(*args, **more):
        raise OSError(errno.EIO, "Input/output error")

    path = write_range(tmp_path / "x.bin", 0, 13)
    monkeypatch.setattr(os, "preadv", refuse)
    with pytest.raises(UserError, match=r"x\.bin: Input/output error"):
        DataLoader(path, B=1, T=1, V=V)


@pytest.mark.parametrize(("B", "T"), [(0, 1), (1, 0), (-1, 4)])
def test_an_empty_batch(tmp_path, B, T):
    with pytest.raises(UserError, match="expected at least 1 x 1"):
        DataLoader(write_range(tmp_path / "x.bin", 0, 13), B, T, V=V)


def test_any_bytes_make_a_loader_or_one_line(tmp_path):
    """Damages valid files at random; any that is accepted must yield all its batches."""
    rng = np.random.default_rng(0)
    valid = [new_format(TOKENS), old_format(TOKENS), new_format([V - 1] * 13)]
    path = tmp_path / "x.bin"
    accepted = 0
    for case in range(600):
        data = bytearray(valid[case % 3])
        for _ in range(rng.integers(1, 4)):
            at = int(rng.choice([rng.integers(0, 12), rng.integers(0, len(data) + 1), max(0, len(data) - 4)]))
            match rng.integers(4):
                case 0:
                    data[at : at + 1] = rng.bytes(1)
                case 1:
                    del data[at : at + int(rng.integers(1, 9))]
                case 2:
                    data[at:at] = rng.bytes(int(rng.integers(1, 9)))
                case 3:
                    data[at : at + 4] = rng.choice(np.array([0, -1, 2**31 - 1, 13], "<i4")).tobytes()
        path.write_bytes(data)
        try:
            loader = DataLoader(path, B=3, T=1, V=V, shuffle_seed=case)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and str(error).isprintable()
            continue
        accepted += 1
        for _ in range(loader.num_batches):
            tokens, targets = loader.next_batch()
            assert min(tokens.min(), targets.min()) >= 0 and max(tokens.max(), targets.max()) < V
    assert 20 < accepted < 580
