"""Texts by their conventions: Penn Treebank, files of any kind, unknown characters."""

import math
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_texts import options_for, text_of

from dnirnn.data import Vocabulary, corpus
from dnirnn.tasks import char_lm
from dnirnn.tasks.char_lm import penn_treebank

DATA = Path(os.environ.get("DNIRNN_DATA") or Path(__file__).parents[3] / "shared" / "data")
needs_ptb = pytest.mark.skipif(
    not (DATA / "ptb" / "ptb.train.txt").is_file(),
    reason="no Penn Treebank: set DNIRNN_DATA to a folder that holds ptb/",
)
LINES = [" a <unk> of N ", " no it was n't ", "  ", " the last \x85 one "]


def write_mikolov(folder: Path, lines: list[str]) -> None:
    for split in corpus.SPLITS:
        (folder / f"ptb.{split}.txt").write_text("".join(line + "\n" for line in lines))


@needs_ptb
def test_penn_treebank_has_the_published_symbol_counts():
    splits = penn_treebank(DATA / "ptb")
    assert {name: len(text) for name, text in splits.items()} == {
        "train": 5_017_482,
        "valid": 393_042,
        "test": 442_423,
    }
    assert len(set(splits["train"])) == 50
    assert all(set(text) <= set(splits["train"]) for text in splits.values())
    assert [text.count("\n") for text in splits.values()] == [42_068, 3_370, 3_761]


def test_penn_treebank_strips_lines_and_writes_spaces_as_underscores(tmp_path):
    write_mikolov(tmp_path, LINES)
    expected = "a_<unk>_of_N\nno_it_was_n't\n\nthe_last_\x85_one\n"
    assert penn_treebank(tmp_path) == {split: expected for split in corpus.SPLITS}


def test_the_hub_gives_the_same_text(tmp_path, monkeypatch):
    """A folder of parquet files, laid out as the hub's branch is, in the place of the hub."""
    parquet = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    write_mikolov(tmp_path, LINES)
    hub = tmp_path / "hub"
    for split in ("train", "validation", "test"):
        folder = hub / "penn_treebank" / split
        folder.mkdir(parents=True)
        table = pyarrow.table({"sentence": [line.strip() for line in LINES]})
        parquet.write_table(table, folder / "0000.parquet")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(corpus, "HUB", str(hub))
    assert corpus.load("ptb").splits == penn_treebank(tmp_path)


def test_an_unreachable_hub_says_what_to_pass_instead(monkeypatch):
    import datasets

    def refuse(*args, **rest):
        raise ConnectionError("Couldn't reach the hub\n(a long story)")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(OSError, match="Couldn't reach the hub.*--data-dir") as error:
        corpus.load("ptb")
    assert "\n" not in str(error.value)


def test_a_missing_file_of_penn_treebank_is_named(tmp_path):
    write_mikolov(tmp_path, LINES)
    (tmp_path / "ptb.valid.txt").unlink()
    with pytest.raises(FileNotFoundError, match="--data-dir.*ptb.valid.txt"):
        penn_treebank(tmp_path)


@given(length=st.integers(20, 500))
def test_a_text_is_divided_90_5_5_without_loss(length):
    text = text_of(length)
    splits = corpus.divide(text, "text")
    assert "".join(splits[split] for split in corpus.SPLITS) == text
    assert len(splits["valid"]) == len(splits["test"]) == length // 20


def test_a_split_given_as_a_file_takes_nothing_from_the_text(tmp_path):
    for name, text in {"a": text_of(100), "v": "tick\n", "t": "tock\n"}.items():
        (tmp_path / name).write_text(text)
    a, v, t = (str(tmp_path / name) for name in "avt")
    both = corpus.load(a, valid_file=v, test_file=t).splits
    assert both == {"train": text_of(100), "valid": "tick\n", "test": "tock\n"}
    only = corpus.load(a, valid_file=v).splits
    assert only["valid"] == "tick\n" and only["train"] + only["test"] == text_of(100)


def test_a_text_file_is_read_as_it_is(tmp_path):
    text = "Zeile\r\nünïcode \U0001f600\n" * 10
    (tmp_path / "text").write_bytes(text.encode())
    assert "".join(corpus.load(str(tmp_path / "text")).splits.values()) == text


def test_the_builtin_text_needs_no_file():
    splits = corpus.load("builtin").splits
    assert sum(map(len, splits.values())) > 400_000
    assert set(splits["valid"]) | set(splits["test"]) <= set(splits["train"])


BAD = {
    "no such file": (dict(corpus="nowhere.txt"), OSError, "--corpus .*nowhere.txt"),
    "no such validation": (dict(valid_file="nowhere"), OSError, "--valid-file .*nowhere"),
    "folder without ptb": (dict(corpus="builtin", data_dir="."), ValueError, "--data-dir"),
    "files with builtin": (dict(corpus="builtin", test_file="x"), ValueError, "--test-file"),
    "batch too large": (dict(batch=1000), ValueError, "3,600 training symbols.*5,000"),
    "truncation too long": (dict(truncation=2000), ValueError, "2000 steps need 8,000"),
    "half a chunk": (dict(update_steps=7), ValueError, "--update-steps .*multiple.*got 7"),
    "linear and wide": (dict(estimator_hidden=("linear", 3)), ValueError, "--estimator-hidden"),
}


@pytest.mark.parametrize("change, kind, message", BAD.values(), ids=BAD)
def test_bad_input(tiny, change, kind, message):
    with pytest.raises(kind, match=message):
        char_lm.build(options_for(tiny, **change))


def test_a_file_that_is_empty_or_not_utf8(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "latin").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(ValueError, match="--corpus: .*empty is empty"):
        char_lm.build(options_for(tmp_path / "empty"))
    with pytest.raises(ValueError, match="latin is not UTF-8 text .byte 3 is 0xe9"):
        char_lm.build(options_for(tmp_path / "latin"))


ODD = {
    "a byte-order mark": (b"\xef\xbb\xbf" + b"tick tock\n" * 99, "\n cikot"),
    "line ends of Windows": (b"tick\r\n" * 99, "\n\rcikt"),
    "zeros": (b"ti\x00ck\n" * 99, "\x00\ncikt"),
    "one line": (b"tick" * 99, "\ncikt"),
}


@pytest.mark.parametrize("piece", [None, 1, 7], ids=["in memory", "bytes", "in pieces"])
@pytest.mark.parametrize("content, characters", ODD.values(), ids=ODD)
def test_odd_files_are_read_as_they_are(tmp_path, monkeypatch, content, characters, piece):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if piece is not None:
        monkeypatch.setattr(corpus, "LARGE", 1)
        monkeypatch.setattr(corpus, "PIECE", piece)
    (tmp_path / "odd").write_bytes(content)
    task = char_lm.build(options_for(tmp_path / "odd", quiet=True))
    assert task.config["vocabulary"] == characters


def test_a_file_of_nothing_but_a_mark_is_empty(tmp_path):
    (tmp_path / "mark").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(ValueError, match="mark is empty but for a byte-order mark"):
        char_lm.build(options_for(tmp_path / "mark"))


@pytest.mark.parametrize("piece", [1, 2, 3, 7, 1000])
def test_a_file_read_in_pieces_is_the_same_text(tmp_path, monkeypatch, piece):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "text").write_text("Zeile\nünïcode \U0001f600 \u20ac\n" * 20)
    options = options_for(tmp_path / "text", quiet=True)
    whole = corpus.load(options.corpus)
    expected = char_lm.build(options)
    monkeypatch.setattr(corpus, "LARGE", 1)
    monkeypatch.setattr(corpus, "PIECE", piece)
    parts = corpus.load(options.corpus)
    assert parts.is_large() and not whole.is_large()
    for split, text in whole.splits.items():
        assert "".join(parts.splits[split]) == text and len(parts.splits[split]) == len(text)
    assert parts.fingerprint() == whole.fingerprint()
    assert corpus.beginning(parts.splits["test"], 9) == whole.splits["test"][:9]
    found = char_lm.build(options)
    assert found.config == expected.config
    assert torch.equal(found.stream.symbols, expected.stream.symbols)
    assert found.evaluate(found.model) == expected.evaluate(expected.model)


@pytest.mark.parametrize("piece", [1, 2, 5, 1000])
def test_a_byte_that_is_not_utf8_is_named_wherever_pieces_end(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(corpus, "LARGE", 1)
    monkeypatch.setattr(corpus, "PIECE", piece)
    for content, at, byte in ((b"abc\xc3\xa4d\xe9f", 6, "e9"), (b"abcd\xe2\x82", 4, "e2")):
        (tmp_path / "latin").write_bytes(content)
        with pytest.raises(ValueError, match=f"byte {at} is 0x{byte}"):
            corpus.load(str(tmp_path / "latin"))


def test_a_large_text_is_encoded_once_wherever_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "LARGE", 1)
    for name in ("one", "other"):
        (tmp_path / name).write_text(text_of(4000))
    char_lm.build(options_for(tmp_path / "one", quiet=True))
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.uint8")}
    char_lm.build(options_for(tmp_path / "other", quiet=True))
    assert len(made) == 3
    assert made == {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").rglob("*") if p.is_file()}


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    """What Python and numpy hold at most while a text is read, encoded and laid out."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(corpus, "LARGE", 1)
    monkeypatch.setattr(corpus, "PIECE", 4096)
    peaks = []
    for count in (40_000, 40_000, 400_000):  # the first one for what is imported and kept once
        (tmp_path / "text").write_text(text_of(count))
        tracemalloc.start()
        char_lm.build(options_for(tmp_path / "text", quiet=True))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 100_000


def test_unknown_characters_are_counted_and_scored_apart(tmp_path, tiny):
    (tmp_path / "other").write_text("tick\ntäck tock the clöck\n")
    task = char_lm.build(options_for(tiny, valid_file=str(tmp_path / "other")))
    found = task.evaluate(task.model)
    vocabulary = Vocabulary.from_json(task.config["vocabulary"])
    assert vocabulary.unknown == len(vocabulary) - 1 == 10 and found["unknown"] == 2
    symbols = vocabulary.encode((tmp_path / "other").read_text())
    inputs = torch.cat([vocabulary.encode("\n"), symbols[:-1]])[:, None]
    with torch.no_grad():
        logits, _ = task.model.unroll(inputs, task.model.initial_state(1), 0)
    bits = -torch.log_softmax(logits[:, 0].double(), -1).gather(1, symbols[:, None])[:, 0]
    bits, unknown = bits / math.log(2), symbols == vocabulary.unknown
    assert found["bits"] == pytest.approx(float(bits[~unknown].mean()), rel=1e-5)
    assert found["unknown_bits"] == pytest.approx(float(bits[unknown].mean()), rel=1e-5)
    assert "one unknown symbol, scored apart" in task.notice
    model, again = char_lm.restore(task.config)
    assert again.unknown == 10 and len(model.readout.bias) == 11
