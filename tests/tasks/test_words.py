"""Words: their vocabulary, and word-lm, whose figure is the perplexity."""

import json
import math
import re

import numpy as np
import pytest
import torch
from command_line import SHORT, TINY, refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn import load
from dnirnn.commands.cli import main
from dnirnn.data import Words, corpus
from dnirnn.tasks import word_lm
from dnirnn.tasks.char_lm.evaluation import Evaluation

TEXT = "the cat sat\non the mat\n\nthe end \n"
SOME = st.text("ab \n", max_size=40)


def test_words_are_what_stands_between_spaces_and_every_line_end_is_one():
    words = Words.of(TEXT)
    assert words.words[:2] == ["\n", "the"] and len(words) == 7
    symbols = words.encode("the  cat\nthe")
    assert [words.words[s] for s in symbols.tolist()] == ["the", "cat", "\n", "the"]
    assert words.decode(symbols) == "the cat\nthe"
    assert words.dtype == np.uint8 and Words.from_json(json.loads(json.dumps(words.to_json()))).words == words.words


@given(SOME, st.lists(st.integers(0, 40), max_size=4))
def test_a_text_in_pieces_has_the_same_words(text, cuts):
    text = f"a\n{text}"
    ends = [*sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip([0, *ends], ends)]
    words = Words.of(text)
    assert Words.of(pieces).words == words.words
    found = torch.cat([words.encode(part) for part in words.parts(pieces)])
    assert torch.equal(found, words.encode(text))
    assert "".join(words.parts(pieces)) == text
    assert torch.equal(words.encode(words.decode(found)), found)


def test_rare_and_unknown_words():
    rare = Words.of(TEXT, rarest=2)
    assert sorted(rare.words) == ["\n", "<unk>", "the"] and rare.unknown is None
    assert rare.decode(rare.encode("the dog")) == "the <unk>" and not rare.lacks("dog")
    known = Words.of(TEXT)
    assert known.lacks("dog") and not known.lacks("cat mat")
    with pytest.raises(ValueError, match="text has the word 'dog', which is not among the 7"):
        known.encode("the dog")
    more = Words.of(TEXT, unknown=True)
    assert more.unknown == 7 and len(more) == 8
    assert more.encode("the dog").tolist() == [1, 7] and more.decode(torch.tensor([1, 7])) == "the \ufffd"
    assert more.find("the dog")[1].tolist() == [False, True]
    with pytest.raises(ValueError, match="words must be distinct, the newline among them; got 2"):
        Words(["a", "b"])


def test_a_text_is_cut_between_words():
    text = "tick tock\n" * 50
    splits = corpus.divide(text, "clock", words=True)
    assert "".join(splits.values()) == text
    assert Words.of(splits["train"]).words == Words.of(text).words
    assert not any(Words.of(text).lacks(split) for split in splits.values())


def test_penn_treebank_by_words(tmp_path):
    for split in corpus.SPLITS:
        (tmp_path / f"ptb.{split}.txt").write_text(" no it was <unk> \n N years old \n")
    options = word_lm.Options(
        corpus="ptb", data_dir=str(tmp_path), hidden=8, embedding=4, batch=1, truncation=2
    )
    task = word_lm.build(options)
    assert task.notice.startswith("Penn Treebank: 9 / 9 / 9 symbols in train / valid / test (words are")
    assert sorted(task.config["vocabulary"]["words"]) == sorted("\n no it was <unk> N years old".split(" "))
    found = task.evaluate(task.model)
    assert found["perplexity"] == pytest.approx(2 ** found["bits"])
    assert found.keys() == {"bits", "perplexity"}, "<unk> is a word like any"


def test_many_words_are_read_in_fewer_steps_to_the_same_figure(monkeypatch):
    task = word_lm.build(word_lm.Options(hidden=8, embedding=4, batch=4, truncation=5))
    words = word_lm.restore(task.config)[1]
    symbols = torch.arange(3000) % len(words)
    whole = Evaluation.by(words, symbols)
    assert whole.most_steps < 3000
    monkeypatch.setattr("dnirnn.tasks.char_lm.evaluation.LOGITS", 10 * len(words))
    few = Evaluation.by(words, symbols)
    assert few.most_steps <= 10
    task.model.eval()
    assert few(task.model)["bits"] == pytest.approx(whole(task.model)["bits"], rel=1e-5)


def test_the_command_line(tmp_path, capsys):
    (tmp_path / "tiny.txt").write_text("what\n" * 20 + "tick tock the clock\nis a clock\n" * 100)
    words = ["train", "word-lm", "--corpus", str(tmp_path / "tiny.txt"), *TINY, *SHORT, "--quiet"]
    run = str(tmp_path / "run")
    assert main([*words, "--lr", "0.03", "--tied", "--out", run, "--threads", "1"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"test, perplexity per word: [\d.]+; validation, perplexity per word: [\d.]+", said)
    assert re.search(r" updates, 1,\d{3} words", said)
    assert main(["eval", run, "--dynamic", "--dynamic-rate", "0", "--dynamic-decay", "0"]) == 0
    plain, moved = map(float, re.findall(r"perplexity per word: ([\d.]+)", capsys.readouterr().out))
    assert moved == pytest.approx(plain, rel=1e-3)
    assert main(["sample", run, "--length", "12", "--prime", "tick tock"]) == 0
    assert capsys.readouterr().out.startswith("tick tock")
    found = load(run)
    bits = found.score("tick tock the clock")
    assert bits.shape == (4,) and math.isfinite(float(bits.sum()))
    student = ["distill", run, *TINY, *SHORT, "--quiet", "--threads", "1", "--out", str(tmp_path / "student")]
    assert main([*student, "--updates", "3"]) == 0
    assert "perplexity per word" in capsys.readouterr().out
    refused(capsys, [*words, "--teachers", run, "--rarest", "90"], "another vocabulary: .*; only there: 'what'")
    char = ["train", "char-lm", *words[2:], "--teachers", run]
    refused(capsys, char, "--teachers must be runs of char-lm; .* is one of word-lm")
