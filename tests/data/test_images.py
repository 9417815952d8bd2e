"""Images: idx files as they are published, and every way that they can be wrong."""

import gzip
import struct

import numpy as np
import pytest
import torch

from dnirnn.data import images

SIZES = {"train": images.HELD_OUT + 7, "t10k": 4}


def idx(array: np.ndarray) -> bytes:
    """The format as its authors describe it: magic number, sizes, bytes."""
    return struct.pack(f">I{array.ndim}I", 0x0800 + array.ndim, *array.shape) + array.tobytes()


def arrays() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    found = {}
    for name, size in SIZES.items():
        found[f"{name}-images-idx3-ubyte"] = draw.integers(0, 256, (size, 3, 2), dtype=np.uint8)
        found[f"{name}-labels-idx1-ubyte"] = draw.integers(0, 10, size, dtype=np.uint8)
    return found


def write(folder, packed=False, **change: bytes):
    for name, array in arrays().items():
        data = change.get(name.replace("-", "_"), idx(array))
        if packed:
            (folder / f"{name}.gz").write_bytes(gzip.compress(data, 1))
        else:
            (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_splits_are_the_files_and_share_no_image(tmp_path, packed):
    known, written = images.load("mnist", str(write(tmp_path, packed))), arrays()
    assert {split: len(labels) for split, (_, labels) in known.splits.items()} == {
        "train": 7, "valid": images.HELD_OUT, "test": 4,
    }
    for kind, place in (("images-idx3", 0), ("labels-idx1", 1)):
        train = torch.from_numpy(written[f"train-{kind}-ubyte"]).flatten(1 if place == 0 else 0)
        test = torch.from_numpy(written[f"t10k-{kind}-ubyte"]).flatten(1 if place == 0 else 0)
        both = torch.cat([known.splits["train"][place], known.splits["valid"][place]])
        assert torch.equal(both, train.to(both.dtype))
        assert torch.equal(known.splits["test"][place], test.to(both.dtype))
    assert known.white == 255 and known.splits["train"][0].dtype == torch.uint8


def test_what_is_packed_has_the_fingerprint_of_what_is_not(tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    one = images.mnist(write(tmp_path / "a")).fingerprint()
    assert images.mnist(write(tmp_path / "b", packed=True)).fingerprint() == one
    other = idx(arrays()["t10k-labels-idx1-ubyte"][::-1].copy())
    assert images.mnist(write(tmp_path / "b", t10k_labels_idx1_ubyte=other)).fingerprint() != one


LABELS = idx(np.zeros(4, np.uint8))


@pytest.mark.parametrize(
    "data, message",
    [
        (b"", r"t10k-labels.* must start with the bytes 00000801.*1 dimensions; got $"),
        (b"\x1f\x8b\x08\x00", "must start with the bytes 00000801.*; got 1f8b0800"),
        (idx(np.zeros((2, 2), np.uint8)), "must start with the bytes 00000801.*; got 00000802"),
        (LABELS[:-1], r"must hold 4 bytes after its header, which says \(4,\); got 3"),
        (LABELS + b"\0", r"must hold 4 bytes after its header, which says \(4,\); got 5"),
        (idx(np.zeros(3, np.uint8)), "has 4 t10k images, but 3 labels"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, data, message):
    with pytest.raises(ValueError, match=f"--data-dir.*{message}"):
        images.mnist(write(tmp_path, t10k_labels_idx1_ubyte=data))


def test_a_damaged_gzip_is_refused(tmp_path):
    path = write(tmp_path, packed=True) / "t10k-labels-idx1-ubyte.gz"
    whole = path.read_bytes()
    for data in (b"plain", whole[:-9], whole[:12] + b"\xff" * 4 + whole[16:]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"--data-dir: .*t10k-labels-idx1-ubyte.gz is damaged"):
            images.mnist(tmp_path)


def test_a_missing_file_is_named(tmp_path):
    (write(tmp_path) / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="four idx files.*no .*train-labels-idx1-ubyte or"):
        images.mnist(tmp_path)


def test_too_few_images_for_a_validation_set(tmp_path):
    few = {
        "train_images_idx3_ubyte": idx(np.zeros((9, 3, 2), np.uint8)),
        "train_labels_idx1_ubyte": idx(np.zeros(9, np.uint8)),
    }
    with pytest.raises(ValueError, match="more than 5,000 training images.*got 9"):
        images.mnist(write(tmp_path, **few))


def test_the_hub_gives_what_the_files_give(tmp_path, monkeypatch):
    """The hub's form: rows of a picture and its label."""
    import datasets
    from PIL import Image

    expected, written = images.mnist(write(tmp_path)), arrays()
    hub = {
        split: datasets.Dataset.from_dict({
            "image": [Image.fromarray(one) for one in written[f"{name}-images-idx3-ubyte"]],
            "label": written[f"{name}-labels-idx1-ubyte"].tolist(),
        })
        for split, name in (("train", "train"), ("test", "t10k"))
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name: hub)
    assert images.load("mnist").fingerprint() == expected.fingerprint()


def test_a_hub_that_is_out_of_reach_says_what_to_pass(monkeypatch):
    import datasets

    def refuse(name):
        raise ConnectionError("no way out")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(OSError, match=r"MNIST .*\(no way out\); pass --data-dir"):
        images.load("mnist")


def test_builtin_digits_are_dealt_to_three_splits():
    known = images.load("builtin")
    sizes = [len(labels) for _, labels in known.splits.values()]
    assert sizes == [1199, 299, 299]
    pixels = torch.cat([pixels for pixels, _ in known.splits.values()])
    assert pixels.shape[1] == 64 and int(pixels.max()) == known.white
    # Every picture in one split only: none of the 1,797 comes twice.
    assert len(pixels.unique(dim=0)) == sum(sizes)
    for _, labels in known.splits.values():
        assert labels.unique().tolist() == list(range(10))


def test_a_folder_goes_with_mnist_only():
    with pytest.raises(ValueError, match="--data-dir goes with --digits mnist only; got .*builtin"):
        images.load("builtin", "somewhere")


def test_without_scikit_learn_there_is_another_way(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    with pytest.raises(ValueError, match="needs scikit-learn .*or give --digits mnist"):
        images.load("builtin")
