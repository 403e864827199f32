import os

import numpy as np
import pytest

from gpt2 import dataloader
from gpt2.dataloader import DataLoader
from gpt2.errors import UserError

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
    """The next batch must be the B*T+1 consecutive numbers from `start` on."""
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
            assert loader.position == (epoch, 0, batch)
            assert_batch(loader, 6 * batch)


@pytest.mark.parametrize(("count", "batches"), [(7, 1), (12, 1), (13, 2), (18, 2), (19, 3)])
def test_a_batch_needs_one_token_more_for_the_last_target(tmp_path, count, batches):
    assert DataLoader(write_range(tmp_path / "x.bin", 0, count), B=2, T=3, V=V).num_batches == batches


def test_files_are_read_by_name_one_after_the_other(tmp_path):
    write_range(tmp_path / "b.bin", 1000, 1014)
    write_range(tmp_path / "a.bin", 0, 7)
    write_range(tmp_path / "c.bin", 2000, 2010, old_format)
    loader = DataLoader(str(tmp_path / "*.bin"), B=2, T=3, V=V)
    assert (loader.num_tokens, loader.num_batches) == (31, 4)
    for _ in range(2):
        for start in (0, 1000, 1006, 2000):
            assert_batch(loader, start)
    assert loader.position == (2, 0, 0)


def test_list_of_paths_and_globs_takes_each_file_once(tmp_path):
    a, b = write_range(tmp_path / "a.bin", 0, 7), write_range(tmp_path / "b.bin", 1000, 1007)
    loader = DataLoader([str(b), a, str(tmp_path / "?.bin")], B=2, T=3, V=V)
    assert loader.num_tokens == 14
    assert_batch(loader, 0)
    assert_batch(loader, 1000)


def test_brackets_in_a_file_name(tmp_path):
    assert DataLoader(write_range(tmp_path / "a[1].bin", 0, 7), B=2, T=3, V=V).num_tokens == 7


def test_saved_position_is_where_another_loader_goes_on(tmp_path):
    for start in (0, 1000):
        write_range(tmp_path / f"{start:04}.bin", start, start + 15)
    first, second = (DataLoader(str(tmp_path / "*.bin"), B=2, T=3, V=V) for _ in range(2))
    for _ in range(7):
        first.next_batch()
    second.position = list(first.position)
    assert second.position == (1, 1, 1)
    for start in (1006, 0, 6, 1000):
        assert_batch(first, start)
        assert_batch(second, start)


def test_reset_goes_back_to_the_start(tmp_path):
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 20), B=2, T=3, V=V)
    for _ in range(4):
        loader.next_batch()
    loader.reset()
    assert loader.position == (0, 0, 0)
    assert_batch(loader, 0)


@pytest.mark.parametrize("position", [(-1, 0, 0), (0, 1, 0), (0, -1, 0), (0, 0, 3), (0, 0, -1)])
def test_position_that_is_not_there(tmp_path, position):
    loader = DataLoader(write_range(tmp_path / "x.bin", 0, 20), B=2, T=3, V=V)
    with pytest.raises(UserError, match="position"):
        loader.position = position
    assert loader.position == (0, 0, 0)


def test_ids_above_the_signed_range_of_16_bits(tmp_path):
    loader = DataLoader(write_range(tmp_path / "x.bin", 50250, 50257), B=2, T=3, V=V)
    assert_batch(loader, 50250)


def test_what_a_batch_holds_may_be_overwritten(tmp_path):
    path = write_range(tmp_path / "x.bin", 0, 7)
    loader = DataLoader(path, B=2, T=3, V=V)
    loader.next_batch()[0][:] = 99
    assert_batch(loader, 0)


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
    "version": (new_format(TOKENS, version=2), "version 2, expected 1"),
    "model file": (new_format(TOKENS, magic=20240326)[:1044], "token 20240326 at position 0 is not in 0 .. 50256"),
    "no header, not int32": (b"Hello", "5 bytes without a token file's header"),
    "text": (b"Hello, world", "token .* at position 0 is not in"),
    "id at V": (new_format([*range(12), V]), "token 50257 at position 12 is not in 0 .. 50256"),
    "old, id at V": (old_format([*range(12), V]), "token 50257 at position 12"),
    "old, negative id": (old_format([0, 1, -1, *range(10)]), "token -1 at position 2"),
    "too few": (new_format(TOKENS[:12]), "12 tokens, a batch of 3 x 4 takes at least 13"),
    "old, too few": (old_format(TOKENS[:12]), "12 tokens, a batch of 3 x 4 takes at least 13"),
}


@pytest.mark.parametrize(("content", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_files_are_refused_by_name(tmp_path, content, message):
    write_range(tmp_path / "a.bin", 0, 13)
    path = tmp_path / "b.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        DataLoader(str(tmp_path / "*.bin"), B=3, T=4, V=V)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_wrong_id_is_found_in_any_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(dataloader, "CHUNK", 4)
    path = tmp_path / "x.bin"
    path.write_bytes(new_format([*range(10), V, V + 1, 0]))
    with pytest.raises(UserError, match="token 50257 at position 10"):
        DataLoader(path, B=1, T=1, V=V)


@pytest.mark.parametrize("name", ["missing.bin", "*.bin"])
def test_nothing_of_that_name(tmp_path, name):
    with pytest.raises(UserError, match="no such token file"):
        DataLoader(str(tmp_path / name), B=1, T=1, V=V)


def test_folder(tmp_path):
    with pytest.raises(UserError, match="directory"):
        DataLoader(tmp_path, B=1, T=1, V=V)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read anything")
def test_unreadable_file(tmp_path):
    path = write_range(tmp_path / "x.bin", 0, 13)
    path.chmod(0)
    with pytest.raises(UserError, match="Permission denied"):
        DataLoader(path, B=1, T=1, V=V)


@pytest.mark.parametrize(("B", "T"), [(0, 1), (1, 0), (-1, 4)])
def test_batch_of_no_size(tmp_path, B, T):
    with pytest.raises(UserError, match="at least 1"):
        DataLoader(write_range(tmp_path / "x.bin", 0, 13), B, T, V=V)
