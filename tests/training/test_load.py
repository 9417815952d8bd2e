"""dnirnn.load: a run's model in Python says what the command line says."""

import pytest
import torch

import dnirnn
from dnirnn.commands.cli import main

TEXT = "".join(f"{n} times {n} is {n * n}.\n" for n in range(1, 400))
COMMON = "--hidden 8 --batch 4 --updates 12 --log-every 64 --threads 1 --quiet".split()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    (folder / "text.txt").write_text(TEXT)
    words = ["train", "char-lm", "--corpus", str(folder / "text.txt"), "--out", str(folder / "run")]
    threads = torch.get_num_threads()
    assert main([*words, *COMMON]) == 0
    torch.set_num_threads(threads)
    return folder / "run"


def test_encode_and_decode_are_inverse(run):
    loaded = dnirnn.load(run)
    assert loaded.decode(loaded.encode("12 times")) == "12 times"
    with pytest.raises(ValueError, match="has the character 'é' at offset 0"):
        loaded.encode("é")


def test_sample_is_the_command_lines(run, capsys):
    loaded = dnirnn.load(run)
    assert main(["sample", str(run), "--length", "40", "--prime", "3 ", "--seed", "5"]) == 0
    assert capsys.readouterr().out == "3 " + loaded.sample(40, prime="3 ", seed=5) + "\n"


def test_score_is_step_by_step(run, monkeypatch):
    loaded, text = dnirnn.load(run), "7 times 7 is 49.\n"
    model, state, expected = loaded.model, loaded.model.initial_state(1), []
    symbols = loaded.encode("\n" + text)
    with torch.no_grad():
        for t, (x, y) in enumerate(zip(symbols, symbols[1:])):
            logits, state = model.step(x[None], state, t)
            expected.append(-torch.log2(torch.softmax(logits.double(), -1)[0, y]))
    monkeypatch.setattr("dnirnn.config.load.STEPS", 5)
    found = loaded.score(text)
    assert found.dtype == torch.float64 and found.shape == (len(text),)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_score_of_the_validation_text_is_the_runs(run, capsys):
    loaded = dnirnn.load(run)
    assert main(["eval", str(run), "--split", "valid"]) == 0
    said = float(capsys.readouterr().out.split("bits per character: ")[1].split()[0])
    from dnirnn.config.saved import from_config

    text = loaded.task.load_corpus(from_config(loaded.task.Options, loaded.config)).splits["valid"]
    assert float(loaded.score(text).mean()) == pytest.approx(said, abs=1e-4)


def test_rows_make_a_table(run):
    rows = dnirnn.load(run).rows("train")
    assert rows and all(rows[0].keys() == row.keys() for row in rows)
    assert dnirnn.read_log(run / "log.jsonl", "train") == rows


def test_what_is_no_run_and_has_no_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a run folder"):
        dnirnn.load(tmp_path)
    threads = torch.get_num_threads()
    assert main(["train", "copy", "--out", str(tmp_path / "copy"), *COMMON]) == 0
    torch.set_num_threads(threads)
    loaded = dnirnn.load(tmp_path / "copy")
    assert loaded.vocabulary is None and not loaded.model.training
    with pytest.raises(ValueError, match="is a run of copy, which has no text"):
        loaded.sample()
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = dnirnn.lode
