"""Checkpoints: whole or not there, and every byte counts."""

import errno
import math
import os
import resource
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_runs import make_model

from dnirnn.files import StorageError
from dnirnn.training import checkpoint
from dnirnn.training.checkpoint import (
    CheckpointError,
    check_fit,
    checkpoints,
    flatten,
    keep_last,
    load,
    save,
    unflatten,
)

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
shapes = st.lists(st.integers(0, 3), max_size=3)


def tensor_of(shape, dtype) -> torch.Tensor:
    return (100 * torch.rand(shape, dtype=torch.float64)).to(dtype)


tensors = st.builds(tensor_of, shapes, st.sampled_from(DTYPES))
trees = st.dictionaries(
    st.text("abc$.", min_size=1, max_size=3).filter(lambda key: "." not in key),
    st.recursive(
        scalars | tensors,
        lambda inner: st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text("xy", max_size=2) | st.integers(0, 9), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)


def same(one, other) -> bool:
    """Equal in type and bits, NaN included."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@pytest.fixture
def saved(tmp_path):
    """(folder, tensors, state) of a checkpoint like a run's."""
    folder = tmp_path / "checkpoints" / "update-00000007"
    tree = {"update": 7, "model": make_model().state_dict(), "rng": [torch.get_rng_state()]}
    save(folder, *flatten(tree))
    return folder, *flatten(tree)


@given(trees)
def test_a_tree_comes_back_bit_for_bit(tmp_path, tree):
    folder = tmp_path / "update-1"
    shutil.rmtree(folder, ignore_errors=True)
    save(folder, *flatten(tree))
    assert same(unflatten(*load(folder)), tree)


def test_tensors_with_strides_or_shared_memory_come_back(tmp_path):
    one = torch.arange(12.0).view(3, 4)
    save(tmp_path / "update-1", {"one": one, "same": one, "turned": one.t()}, {})
    found, _ = load(tmp_path / "update-1")
    assert torch.equal(found["turned"], one.t()) and torch.equal(found["same"], one)


def test_what_can_t_be_kept_is_named():
    for value in (object(), 1 + 2j, {1, 2}, b"bytes"):
        with pytest.raises(TypeError, match=r"a\.b\.1 can't be kept in a checkpoint: it is a "):
            flatten({"a": {"b": [1, value]}})


@settings(max_examples=150)
@given(st.sampled_from(["tensors.safetensors", "state.json", "manifest.json"]), st.data())
def test_one_flipped_bit_anywhere_is_refused(saved, name, data):
    file = saved[0] / name
    content = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    damaged = bytearray(content)
    damaged[bit // 8] ^= 1 << bit % 8
    file.write_bytes(damaged)
    try:
        with pytest.raises(CheckpointError, match=f"{saved[0]} is damaged: "):
            load(saved[0])
    finally:
        file.write_bytes(content)
    load(saved[0])


@given(st.sampled_from(["tensors.safetensors", "state.json", "manifest.json"]), st.data())
def test_a_truncated_file_is_refused(saved, name, data):
    file = saved[0] / name
    content = file.read_bytes()
    file.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        with pytest.raises(CheckpointError, match=f"is damaged: .*{name}"):
            load(saved[0])
    finally:
        file.write_bytes(content)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_missing_file_is_named(saved, name):
    (saved[0] / name).unlink()
    with pytest.raises(CheckpointError, match=f"is incomplete: it has no {name}"):
        load(saved[0])


def test_another_format_is_named(saved, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 2)
    with pytest.raises(CheckpointError, match="its format is 1, this version reads 2"):
        load(saved[0])


def test_another_model_is_named():
    expected, path = make_model().state_dict(), "update-1"
    check_fit(path, dict(reversed(expected.items())), expected)
    cases = {
        "truncated.core.weight_ih_l0 is .20, 4. torch.float32 there, .24, 4. torch.float32 here": (
            make_model(hidden=5).state_dict(),
            make_model(hidden=6).state_dict(),
        ),
        "truncated.estimator.layers.0.bias is missing": (
            make_model("none").state_dict(),
            expected,
        ),
        "truncated.estimator.layers.0.bias is unknown": (
            expected,
            make_model("none").state_dict(),
        ),
        "torch.float64 there, .* torch.float32 here": (
            make_model().double().state_dict(),
            expected,
        ),
    }
    for says, (found, wanted) in cases.items():
        with pytest.raises(CheckpointError, match=f"update-1 is of another model: .*{says}"):
            check_fit(path, found, wanted)


def contents_of(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused_without_a_trace(saved, says):
    """The next checkpoint is refused; the one before is untouched and nothing else is left."""
    folder, tensors, state = saved
    before, names = contents_of(folder.parent), sorted(folder.parent.rglob("*"))
    with pytest.raises(StorageError, match=f"update-00000008 could not be written: {says}"):
        save(folder.with_name("update-00000008"), tensors, state)
    assert sorted(folder.parent.rglob("*")) == names
    assert contents_of(folder.parent) == before
    load(folder)


@pytest.mark.parametrize("limit", [0, 1000])
def test_no_space_left_is_said_and_leaves_nothing(saved, limit):
    """A real limit on a file's size; Python ignores the signal that comes with it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(StorageError, match="no space left on the disk"):
            save(saved[0].with_name("update-00000008"), *saved[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoints(saved[0].parent) == [saved[0]] and len(list(saved[0].parent.iterdir())) == 1
    load(saved[0])


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (errno.ENOSPC, "no space left on the disk"),
        (errno.EDQUOT, "no space left on the disk"),
        (errno.EACCES, "no permission to write there"),
        (errno.EROFS, "no permission to write there"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
@pytest.mark.parametrize("call", range(1, 5))
def test_an_error_at_any_write_is_said_and_leaves_nothing(saved, monkeypatch, number, says, call):
    real, calls = os.fsync, []

    def fail(descriptor):
        calls.append(descriptor)
        if len(calls) == call:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    assert_refused_without_a_trace(saved, says)


def test_a_folder_without_permission_is_said(saved):
    folder = saved[0].parent
    if os.geteuid() == 0:
        # Root may write anywhere: be somebody else for a moment, whom tmp_path does not let in.
        os.seteuid(65534)
        undo = lambda: os.seteuid(0)  # noqa: E731
    else:
        folder.chmod(0o500)
        undo = lambda: folder.chmod(0o700)  # noqa: E731
    try:
        with pytest.raises(StorageError, match="no permission to write there"):
            save(folder / "update-00000008", *saved[1:])
    finally:
        undo()
    assert checkpoints(folder) == [saved[0]]


def test_a_file_in_the_folder_s_place_is_said(tmp_path):
    (tmp_path / "checkpoints").write_text("not a folder")
    with pytest.raises(StorageError, match="could not be written"):
        save(tmp_path / "checkpoints" / "update-1", {}, {})
    assert (tmp_path / "checkpoints").read_text() == "not a folder"


def test_the_last_ones_are_kept_in_the_order_of_their_updates(tmp_path):
    for update in (5, 100000000, 20, 99999999):
        save(tmp_path / checkpoint.name_of(update), {}, {})
    (tmp_path / ".update-00000021.partial").mkdir()
    keep_last(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "update-100000000",
        "update-99999999",
    ]
    assert [checkpoint.update_of(path) for path in checkpoints(tmp_path)] == [99999999, 100000000]
    assert checkpoints(tmp_path / "nowhere") == []
