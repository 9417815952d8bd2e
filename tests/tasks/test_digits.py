"""The digits task: what is counted, what is asked when, and that it runs end to end."""

import csv
import json
import math

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn import SyntheticGradient, ZeroGradient
from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.data import Batch, images
from dnirnn.tasks import digits
from dnirnn.tasks.digits import DigitsOptions, DigitStream, counts
from dnirnn.training.trainer import Trainer

SMALL = dict(hidden=8, front=(8,), windows=2, batch=2, period=2)
WORDS = "--hidden 8 --front 8 --windows 2 --batch 4 --period 2 --updates 24 --quiet".split()


def stream_of(**change) -> DigitStream:
    pixels = torch.arange(60, dtype=torch.uint8).view(20, 3)
    labels = torch.arange(20) % 10
    given = dict(white=60, batch_size=3, period=2, windows=3, seed=0)
    return DigitStream(pixels, labels, **(given | change))


def rows_of(stream: DigitStream, batch: Batch) -> torch.Tensor:
    """Which pictures a batch shows: [T, B]."""
    return (batch.x[..., 0] * stream.white / 3).round().long()


# What is counted


@given(period=st.integers(1, 4), windows=st.integers(1, 3), seed=st.integers(0, 99))
def test_counts_are_those_of_a_plain_loop(period, windows, seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (windows * period**2, 3), generator=generator)
    y = counts(labels, period).tolist()
    for row in range(3):
        odd = threes = 0
        for step, label in enumerate(labels[:, row].tolist(), start=1):
            odd, threes = odd + label % 2, threes + (label == 3)
            assert y[step - 1][row][0] == (odd if step % period == 0 else -1)
            assert y[step - 1][row][1] == (threes if step % period**2 == 0 else -1)
            odd = 0 if step % period == 0 else odd
            threes = 0 if step % period**2 == 0 else threes


@given(steps=st.integers(1, 15), period=st.integers(1, 3), windows=st.integers(1, 3))
def test_pieces_put_together_are_the_sequences(steps, period, windows):
    stream, whole = (stream_of(period=period, windows=windows) for _ in range(2))
    for number in range(1, 3):
        pieces = [stream.next(steps)]
        while not pieces[-1].final:
            pieces.append(stream.next(steps))
        assert [piece.first for piece in pieces] == [True] + [False] * (len(pieces) - 1)
        expected = whole.next(None)
        assert expected.first and expected.final and len(expected.x) == windows * period**2
        for name in ("x", "y"):
            parts = torch.cat([getattr(piece, name) for piece in pieces])
            assert torch.equal(parts, getattr(expected, name))
        assert stream.epochs == whole.epochs == number * expected.y[..., 0].numel() / 20


def test_a_picture_comes_with_its_own_label():
    stream = stream_of(period=1, windows=50)
    batch = stream.next(None)
    shown = rows_of(stream, batch) % 10
    assert shown.unique().tolist() == list(range(10))
    assert torch.equal(batch.y[..., 0], shown % 2)
    assert torch.equal(batch.y[..., 1] == 1, shown == 3)
    assert 0 <= batch.x.min() and batch.x.max() <= 1


@given(before=st.integers(0, 9), steps=st.integers(1, 7), seed=st.integers(0, 5))
def test_a_stream_resumes_anywhere_to_the_bit(before, steps, seed):
    stream = stream_of(seed=seed)
    for _ in range(before):
        stream.next(steps)
    saved = stream.state_dict()
    expected = [stream.next(steps) for _ in range(9)]
    other = stream_of(seed=seed + 1)
    other.load_state_dict(saved)
    for one, same in zip([other.next(steps) for _ in range(9)], expected):
        assert torch.equal(one.x, same.x) and torch.equal(one.y, same.y) and one[3:5] == same[3:5]
    assert other.epochs == stream.epochs


def test_held_out_digits_are_their_split_s_and_the_same_for_every_run():
    known, options = images.builtin(), DigitsOptions(windows=1)
    valid = digits.held_out(known, "valid", options).next(None)
    other = digits.held_out(known, "valid", DigitsOptions(windows=1, seed=5)).next(None)
    assert torch.equal(valid.x, other.x)
    pictures = known.splits["valid"][0].float() / known.white
    shown = valid.x.flatten(0, 1)
    assert all((pictures == one).all(1).any() for one in shown[:50])
    assert not torch.equal(digits.held_out(known, "test", options).next(None).x, valid.x)


# What is learned


def test_b_hears_of_the_digits_only_through_a():
    """And says its count by itself: A's message is the only way from a picture to B's answer."""
    model = digits.make(DigitsOptions(**SMALL), pixels=5)
    core = model.truncated.core
    assert core.slow.input_size == core.fast.output_size == 8
    x = torch.rand(4, 1, 5, requires_grad=True)
    outputs, _ = core(model.encoder(x), model.initial_state(1))
    odd, threes = digits.divide(model.readout(outputs), period=2)
    assert odd.shape[-1] == 3 and threes.shape[-1] == 5
    readers = model.readout
    assert torch.equal(odd, readers.odd(outputs[..., :8]))
    assert torch.equal(threes, readers.threes(outputs[..., 8:]))
    heard = torch.autograd.grad(threes[3].sum(), x)[0]
    assert heard.abs().sum((1, 2)).ne(0).tolist() == [True] * 4


def test_the_loss_is_that_of_the_counts_that_are_asked():
    period, generator = 2, torch.Generator().manual_seed(0)
    y = counts(torch.randint(10, (8, 3), generator=generator), period)
    logits = torch.randn(8, 3, 3 + 5, generator=generator)
    expected = torch.zeros(8, 3)
    for t in range(8):
        for b in range(3):
            for said, count in zip((logits[t, b, :3], logits[t, b, 3:]), y[t, b].tolist()):
                if count >= 0:
                    expected[t, b] -= torch.log_softmax(said, 0)[count]
    found = digits.answer_nats(logits, y, period)
    torch.testing.assert_close(found, expected)
    assert (found != 0).sum(0).tolist() == [4] * 3


def test_figures_are_shares_of_what_is_asked():
    """A model that always says no odd ones and no 3s, with the certainty of a guess."""
    options = DigitsOptions(**SMALL)
    model, stream = digits.make(options, pixels=3), stream_of()
    for parameter in model.readout.parameters():
        torch.nn.init.zeros_(parameter)
    with torch.no_grad():
        model.readout.odd.bias[0] = model.readout.threes.bias[0] = 1e-6
    y = stream_of().next(None).y
    found = digits.measure(model, stream)
    for name, answers in zip(("odd", "threes"), y.unbind(-1)):
        asked = answers[answers >= 0]
        assert found[name] == pytest.approx(float((asked == 0).double().mean()))
    # Every 2 digits one of 3 counts, every 4 one of 5.
    assert found["bits"] == pytest.approx(math.log2(3) / 2 + math.log2(5) / 4, rel=1e-4)


@pytest.mark.parametrize(
    "training, truncation, estimator",
    [("full", 16, ZeroGradient), ("truncated", 4, ZeroGradient), ("dni", 4, SyntheticGradient)],
)
def test_one_switch_for_three_ways_of_training(training, truncation, estimator):
    truncated = digits.make(DigitsOptions(training=training, hidden=4), pixels=5).truncated
    assert truncated.truncation == truncation and type(truncated.estimator) is estimator
    same = truncated.core.truncate(training, 4)
    assert (same.truncation, type(same.estimator)) == (truncation, estimator)
    assert DigitsOptions().truncation == 4 and DigitsOptions(period=5).truncation == 5


@pytest.mark.parametrize(
    "training, cuts, back", [("full", "messages", 1), ("dni", "messages", 4), ("truncated", "messages", 4),
                             ("dni", "ticks", 1), ("truncated", "ticks", 1)],
)  # fmt: skip
def test_what_is_cut(training, cuts, back):
    core = digits.make(DigitsOptions(training=training, cuts=cuts, hidden=4), pixels=5).truncated.core
    assert core.back == back


def test_a_run_of_before_there_was_a_choice_cut_the_ticks(tmp_path, capsys):
    folder = tmp_path / "run"
    assert main(["train", "digits", *WORDS, "--cuts", "ticks", "--out", str(folder)]) == 0
    config = json.loads((folder / "config.json").read_text())
    del config["cuts"], config["defaults"]["cuts"]
    (folder / "config.json").write_text(json.dumps(config))
    assert main(["eval", str(folder)]) == 0
    more = [word if word != "24" else "26" for word in WORDS]
    assert main(["train", "digits", *more, "--cuts", "ticks", "--out", str(folder)]) == 0
    assert "26 updates" in capsys.readouterr().out
    refused(capsys, ["train", "digits", *more, "--out", str(folder)], "cuts")


@pytest.mark.parametrize("cuts", ["messages", "ticks"])
@pytest.mark.parametrize("training", digits.TRAININGS)
def test_both_counts_are_learned(training, cuts, tmp_path):
    """Of two digits and of four, on pictures that say their label at once."""
    options = DigitsOptions(
        **{**SMALL, "hidden": 24, "windows": 4, "batch": 32, "front": (16,)},
        training=training, cuts=cuts, lr=0.02, updates=400, evaluate_every=10**6, seed=1,
    )
    pictures = torch.eye(10, dtype=torch.uint8)
    labels = torch.arange(10)
    splits = dict.fromkeys(("train", "valid"), (pictures, labels))
    known = images.Images("labels", splits, 1, (1, 1, 10))
    torch.manual_seed(0)
    model = digits.make(options, pixels=10)
    stream = digits.stream_of(known, "train", options, options.batch, 0)
    config = trainer_config(options, 64, digits.DECAY)

    def evaluate(model):
        return digits.measure(model, digits.held_out(known, "valid", options))

    found = Trainer(model, stream, config, tmp_path / "run", evaluate).run()["best"]
    assert found["odd"] > 0.95 and found["threes"] > 0.85, "0.5 and 0.66 are those of a guess"


def test_a_guess_is_right_as_often_as_the_commonest_count():
    from itertools import product

    for over, share in ((2, 0.5), (4, 0.1), (3, 0.4)):
        probability = [0.0] * (over + 1)
        for flags in product((0, 1), repeat=over):
            probability[sum(flags)] += math.prod(share if flag else 1 - share for flag in flags)
        assert digits.commonest(share, over) == pytest.approx(max(probability))


# The command line


def test_train_and_eval(tmp_path, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", "digits", "--training", "truncated", *WORDS, "--out", folder]) == 0
    said = capsys.readouterr().out
    assert "24 updates, 192 digits" in said and "test, counts of 3s right" in said
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert main(["eval", folder]) == 0
    said = capsys.readouterr().out
    assert f"test, counts of 3s right: {result['test']['test_threes']:.3f}" in said
    assert main(["eval", folder, "--split", "valid"]) == 0
    assert f"valid, counts of 3s right: {result['best']['threes']:.3f}" in capsys.readouterr().out
    refused(capsys, ["eval", folder, "--corpus", "x"], "--corpus goes with char-lm and word-lm runs only")
    refused(capsys, ["eval", folder, "--data-dir", "x"], "--data-dir goes with --digits mnist only")
    refused(capsys, ["sample", folder], "sample needs a char-lm run")


def test_eval_refuses_other_images(tmp_path, monkeypatch, capsys):
    folder = str(tmp_path / "run")
    assert main(["train", "digits", *WORDS, "--out", folder]) == 0
    monkeypatch.setattr(images.Images, "fingerprint", lambda self: "other")
    refused(capsys, ["eval", folder], "not the images that the run was trained on")


def test_compare_runs_the_ways_of_training(tmp_path):
    assert main(["compare", "digits", *WORDS, "--updates", "6", "--out", str(tmp_path)]) == 0
    with open(tmp_path / "results.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["run"] for row in rows] == ["T4-none-seed0", "T2-none-seed0", "T2-dni-seed0"]
    assert [int(row["symbols"]) for row in rows] == [96, 48, 48]
    assert all(0 <= float(row["test_threes"]) <= 1 for row in rows)
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize(
    "words, message",
    [
        ("--period 0", "--period must be at least 1; got 0"),
        ("--windows 0", "--windows must be at least 1; got 0"),
        ("--front 0", "--front must be at least 1; got 0"),
        ("--training bptt", "--training: invalid choice: 'bptt'"),
        ("--update-steps 6", "--update-steps must be a multiple of --truncation 4; got 6"),
        ("--parameters 1000", "--parameters does not go with digits.*got 1000"),
        ("--data-dir x", "--data-dir goes with --digits mnist only; got --digits builtin"),
        ("--digits mnist --data-dir nowhere", "--data-dir must be a folder .*nowhere/train-images"),
    ],
)
def test_bad_input(words, message, tmp_path, capsys):
    refused(capsys, ["train", "digits", *words.split(), "--out", str(tmp_path / "run")], message)
    assert not (tmp_path / "run").exists()
