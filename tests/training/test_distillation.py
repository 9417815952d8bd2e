"""Distillation: the laws of its loss, teachers whose states are carried, runs that learn of runs."""

import json
import math
import shutil

import pytest
import torch
from command_line import SHORT, TINY, refused
from hypothesis import given
from hypothesis import strategies as st
from small_runs import (
    Recall,
    assert_equal_runs,
    end_of,
    make_model,
    make_trainer,
    rows_of,
    small_stream,
    ticking,
)
from torch.nn import functional as F

from dnirnn import (
    Distillation,
    DistilledStream,
    load,
)
from dnirnn.commands.cli import main
from dnirnn.distillation import Uniform
from dnirnn.fidelity import fidelity
from dnirnn.model import symbol_nats
from dnirnn.tasks.char_lm import CharLMOptions, build, load_corpus
from dnirnn.training import checkpoint
from dnirnn.training.trainer import Interrupted

LIKELY = st.tuples(st.integers(0, 99), st.floats(0.1, 8.0), st.floats(0.0, 1.0))


class Says(torch.nn.Module):
    """A teacher whose logits are known."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, 0, dtype=self.logits.dtype)

    def unroll(self, x, state, t):
        return self.logits[t : t + len(x)], state


def drawn(seed, teachers=1):
    """(student's logits, targets, teachers' logits) of 3 steps and 2 rows, float64."""
    generator = torch.Generator().manual_seed(seed)
    shape = (teachers + 1, 3, 2, 5)
    z, *zs = 2 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return z.requires_grad_(), torch.randint(5, (3, 2), generator=generator), zs


def asked(zs, weight, temperature):
    """The distillation of teachers who say these logits, and what they predict."""
    made = Distillation([Says(z) for z in zs], weight, temperature)
    return made, made.soft(torch.zeros(zs[0].shape[:2]), made.initial_state(2))[0]


def gradient(loss, z):
    return torch.autograd.grad(loss.sum(), z, retain_graph=True)[0]


# The loss


@given(LIKELY)
def test_it_is_the_equation(case):
    seed, temperature, weight = case
    z, y, zs = drawn(seed, 2)
    made, soft = asked(zs, weight, temperature)
    q = sum(torch.softmax(one / temperature, -1) for one in zs) / 2
    torch.testing.assert_close(soft, q, rtol=1e-14, atol=0)
    p = torch.softmax(z / temperature, -1)
    expected = weight * temperature**2 * (q * (q / p).log()).sum(-1)
    expected = expected + (1 - weight) * F.cross_entropy(z.mT, y, reduction="none")
    torch.testing.assert_close(made(z, y, soft), expected, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 99), st.floats(0.1, 8.0))
def test_at_weight_0_it_is_the_plain_loss_to_the_bit(seed, temperature):
    z, y, zs = drawn(seed)
    made, soft = asked(zs, 0.0, temperature)
    plain = symbol_nats(z, y)
    for found in (made(z, y, soft), made(z, y), Distillation(made.teachers)(z, y)):
        assert torch.equal(found, plain)
        assert torch.equal(gradient(found, z), gradient(plain, z))


@given(LIKELY)
def test_its_gradient_is_that_of_finite_differences(case):
    seed, temperature, weight = case
    z, y, zs = drawn(seed, 2)
    made, soft = asked(zs, weight, max(temperature, 0.5))
    assert torch.autograd.gradcheck(lambda z: made(z, y, soft), z, atol=1e-5)


@given(st.integers(0, 99))
def test_at_a_high_temperature_it_is_the_squared_distance_of_logits(seed):
    z, y, zs = drawn(seed)
    made, soft = asked(zs, 1.0, 1e5)
    apart = (z - z.mean(-1, keepdim=True)) - (zs[0] - zs[0].mean(-1, keepdim=True))
    torch.testing.assert_close(gradient(made(z, y, soft), z), apart / 5, rtol=0, atol=2e-4)


@given(LIKELY)
def test_who_is_the_teacher_has_nothing_to_learn_of_him(case):
    seed, temperature, weight = case
    z, y, _ = drawn(seed)
    made, soft = asked([z.detach()], weight, temperature)
    plain = (1 - weight) * gradient(symbol_nats(z, y), z)
    torch.testing.assert_close(gradient(made(z, y, soft), z), plain, rtol=0, atol=1e-12)


@given(st.integers(0, 99), st.floats(0.01, 0.99))
def test_a_teacher_who_knows_nothing_is_label_smoothing(seed, weight):
    z, y, _ = drawn(seed)
    made = Distillation([Uniform(5)], weight)
    soft, _ = made.soft(y, made.initial_state(2))
    smooth = F.cross_entropy(z.mT, y, reduction="none", label_smoothing=weight)
    found = made(z, y, soft)
    torch.testing.assert_close(found, smooth - weight * math.log(5), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient(found, z), gradient(smooth, z), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (([],), "teachers must be at least one model; got none"),
        (([torch.nn.Linear(2, 2)],), "SequenceModels, or have their initial_state and unroll; got Linear"),
        (([Uniform(3)], 1.5), r"weight must be in \[0, 1\]; got 1.5"),
        (([Uniform(3)], 0.5, 0.0), "temperature must be positive and finite; got 0.0"),
    ],
)  # fmt: skip
def test_what_it_refuses(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Distillation(*given)


def test_teachers_of_other_symbols_are_refused():
    z, y, _ = drawn(0)
    mixed = Distillation([Uniform(4), Uniform(5)])
    with pytest.raises(ValueError, match="must predict the same symbols; got 4 and 5"):
        mixed.soft(y, mixed.initial_state(2))
    other = Distillation([Uniform(4)])
    with pytest.raises(ValueError, match=r"the logits' shape \(3, 2, 5\); got \(3, 2, 4\)"):
        other(z, y, other.soft(y, other.initial_state(2))[0])


# Streams


@pytest.mark.parametrize(
    ("source", "memory", "rtol", "atol"),
    [(small_stream, 2**30, 2**-11, 2**-25), (small_stream, 0, 1e-5, 1e-6), (Recall, 2**30, 1e-5, 1e-6)],
    ids=["kept", "asked", "drawn"],
)
def test_teachers_states_are_carried_and_begin_anew_with_the_sequences(source, memory, rtol, atol):
    teacher = ticking()
    taught = DistilledStream(source(), Distillation([teacher]), memory)
    plain, whole = source(), source()
    for _ in range(3):
        full = whole.next(None)
        state = teacher.initial_state(full.x.shape[1])
        expected = torch.softmax(teacher.unroll(full.x, state, 0)[0], -1).detach()
        parts = []
        while sum(map(len, parts)) < len(full.x):
            batch, same = taught.next(4), plain.next(4)
            assert torch.equal(batch.x, same.x) and batch.final == same.final
            parts.append(batch.soft)
        found = torch.cat(parts)
        torch.testing.assert_close(found, expected, rtol=rtol + 1e-5, atol=atol + 1e-7)
        assert torch.equal(found, found.half()) == (memory > 0 and source is small_stream)


def test_a_batch_keeps_its_soft_targets_where_it_is_cut_and_joined():
    stream = DistilledStream(small_stream(), Distillation([ticking()]))
    one, two = stream.next(3), stream.next(4)
    both = one.then(two)
    assert torch.equal(both.soft, torch.cat([one.soft, two.soft]))
    assert torch.equal(both.steps(2, 5).soft, both.soft[2:5])
    assert torch.equal(both.rows(1, 3).soft, both.soft[:, 1:3])


def student(weight=0.6, estimator="dni", **rest):
    model = make_model(estimator, **rest)
    made = Distillation([make_model(hidden=9, seed=7), ticking()], weight, 2.0)
    model.loss = made
    return model, made


@pytest.mark.parametrize("estimator", ["dni", "least-squares"])
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, estimator):
    def made_for(source, folder):
        model, made = student(estimator=estimator, dropout=0.2)
        stream = DistilledStream(source(), made)
        config = dict(updates=9, evaluate_every=4, micro_batch=2)
        return make_trainer(folder, model=model, stream=stream, **config)

    for source in (small_stream, Recall):
        folder, whole = tmp_path / source.__name__, tmp_path / f"{source.__name__}-whole"
        made_for(source, whole).run()
        first = made_for(source, folder)
        first.prepare = lambda model, epochs: first.interrupt() if first.update == 4 else None
        with pytest.raises(Interrupted):
            first.run()
        made_for(source, folder).run()
        assert_equal_runs(folder, whole)


def test_at_weight_0_the_run_is_the_plain_one(tmp_path):
    model, made = student(0.0)
    make_trainer(tmp_path / "taught", model=model, stream=DistilledStream(small_stream(), made), updates=9).run()
    make_trainer(tmp_path / "plain", updates=9).run()
    assert rows_of(tmp_path / "taught") == rows_of(tmp_path / "plain")


def test_fidelity_is_to_the_gradient_of_the_whole_loss():
    model, made = student()
    batch = DistilledStream(small_stream(), made).next(12)._replace(final=True, following=None)
    told = fidelity(model, [batch])
    assert told != fidelity(model, [batch._replace(soft=None)])
    model.loss = lambda logits, y: made(logits, y, batch.soft)
    assert told == fidelity(model, [batch._replace(soft=None)])


# The command line


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder with a text and two trained runs, a and b."""
    folder = tmp_path_factory.mktemp("distil")
    (folder / "tiny.txt").write_text("tick tock the clock\n" * 150)
    words = ["train", "char-lm", "--corpus", str(folder / "tiny.txt"), *TINY, *SHORT, "--quiet"]
    assert main([*words, "--out", str(folder / "a"), "--lr", "0.02", "--threads", "1"]) == 0
    other = ["--core", "gru", "--estimator", "none", "--hidden", "12", "--threads", "1"]
    assert main([*words, "--out", str(folder / "b"), *other]) == 0
    return folder


def distil(runs, out, *words):
    given = [*TINY, *SHORT, "--estimator", "dni", "--quiet", "--threads", "1", "--out", str(out)]
    return ["distill", str(runs / "a"), str(runs / "b"), *given, *words]


def test_a_student_of_two_runs(runs, tmp_path, capsys):
    """It reads its teachers' text, resumes bit for bit, and is a run like any other."""
    assert main(distil(runs, tmp_path / "run", "--updates", "5", "--decay", "none")) == 0
    assert "teachers: 2, their part of the loss 0.5" in capsys.readouterr().out
    assert main(distil(runs, tmp_path / "run", "--updates", "9", "--decay", "none")) == 0
    train = ["train", "char-lm", "--corpus", str(runs / "tiny.txt"), "--teachers"]
    words = distil(runs, tmp_path / "whole", "--updates", "9", "--decay", "none")
    assert main([*train, *words[1:]]) == 0
    resumed, whole = (end_of(tmp_path / name)[0] for name in ("run", "whole"))
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main(["fidelity", str(tmp_path / "run"), "--lookahead", "10"]) == 0
    assert load(tmp_path / "run").config["teacher_weight"] == 0.5


def test_other_weights_of_a_teacher_are_another_run(runs, tmp_path, capsys):
    assert main(distil(runs, tmp_path / "run", "--updates", "5")) == 0
    words = distil(runs, tmp_path / "run", "--updates", "9")
    words[2] = str(runs / "a")
    refused(capsys, words, "teachers_sha256")


def test_an_ensemble_is_measured_by_its_mean_prediction(runs, capsys):
    a, b = (load(runs / name) for name in "ab")
    said = (runs / "tiny.txt").read_text()[-150:]
    likely = (2 ** -a.score(said) + 2 ** -b.score(said)) / 2
    words = ["eval", str(runs / "a"), "--others", str(runs / "b")]
    capsys.readouterr()
    assert main(words) == 0
    out = capsys.readouterr().out
    assert f"test, bits per character: {float(-likely.log2().mean()):.4f}\nthe mean prediction of 2" in out
    refused(capsys, [*words, "--dynamic"], "--others are measured as they are: no --dynamic")
    refused(capsys, ["eval", str(runs / "a"), "--others", str(runs)], "is not a run folder")


def test_label_smoothing_is_an_option(runs, tmp_path):
    words = ["--corpus", str(runs / "tiny.txt"), *TINY, *SHORT, "--quiet", "--threads", "1"]
    for out, more in (("plain", []), ("smooth", ["--smoothing", "0.1"])):
        assert main(["train", "char-lm", *words, *more, "--out", str(tmp_path / out)]) == 0
    smooth, plain = (rows_of(tmp_path / name)[-1]["bits"] for name in ("smooth", "plain"))
    assert smooth != plain


def test_a_share_of_the_text_is_its_beginning(runs, tmp_path, capsys):
    corpus = runs / "tiny.txt"
    tiny = load_corpus(CharLMOptions(corpus=str(corpus)))
    given = dict(corpus=str(corpus), hidden=4, batch=2, quiet=True)
    whole, part = (build(CharLMOptions(**given, train_share=share)) for share in (1.0, 0.25))
    text = tiny.splits["train"]
    count = round(0.25 * len(text))
    assert part.stream.epoch_steps == -(-count // 2)
    assert "trained on the first 0.25 of the training text" in part.notice
    assert "trained on" not in whole.notice and whole.config["vocabulary"] == part.config["vocabulary"]
    batch = part.stream.next(None)
    assert batch.count() == count
    assert torch.equal(batch.y[:, 0], whole.stream.next(None).y[: len(batch.y), 0])
    words = ["--corpus", str(corpus), *TINY, *SHORT, "--quiet", "--out", str(tmp_path / "run")]
    for wrong in ("0", "1.5"):
        refused(capsys, ["train", "char-lm", *words, "--train-share", wrong], "--train-share must be")
    refused(capsys, ["train", "char-lm", *words, "--train-share", "1e-6"], "has 0 training symbols.*raise --train-share")
    assert main(["train", "char-lm", *words, "--train-share", "0.5"]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_a_run_of_before_has_the_default_temperature_of_before(runs, tmp_path, capsys):
    words = ["train", "char-lm", "--corpus", str(runs / "tiny.txt"), *TINY, *SHORT, "--quiet"]
    words = [*words, "--threads", "1", "--decay", "none", "--out", str(tmp_path / "run")]
    assert main([*words, "--updates", "3"]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["temperature"] == config["defaults"]["temperature"] == 1.0
    config["temperature"] = config["defaults"]["temperature"] = 2.0
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    for path in tmp_path.glob("run/*/update-*"):
        tensors, state = checkpoint.load(path)
        state["config"] = {**state["config"], "temperature": 2.0, "defaults": config["defaults"]}
        shutil.rmtree(path)
        checkpoint.save(path, tensors, state)
    assert load(tmp_path / "run").config.get("temperature", 1.0) == 1.0
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert main([*words, "--updates", "5"]) == 0
    assert main(distil(runs, tmp_path / "taught", "--updates", "2")[:1] + [str(tmp_path / "run")]
                + distil(runs, tmp_path / "taught", "--updates", "2")[3:]) == 0  # fmt: skip
    config["temperature"] = 3.0
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    refused(capsys, ["eval", str(tmp_path / "run")], "--temperature goes with --teachers or --codistill")


def test_teachers_that_do_not_fit_are_refused(runs, tmp_path, capsys):
    (tmp_path / "other.txt").write_text("another clock: zzz\n" * 150)
    out = tmp_path / "run"
    words = distil(runs, out, "--corpus", str(tmp_path / "other.txt"))
    refused(capsys, words, r"a has another vocabulary: \d+ symbols there, \d+ here; only there: 'k?")
    words = distil(runs, out)
    refused(capsys, [words[0], str(tmp_path), *words[2:]], "not a run folder")
    refused(capsys, distil(runs, out, "--teacher-weight", "1.5"), "--teacher-weight must be at most 1")
    copy = ["train", "copy", "--hidden", "4", "--batch", "2", "--updates", "1", "--quiet"]
    assert main([*copy, "--out", str(tmp_path / "copy")]) == 0
    words[2] = str(tmp_path / "copy")
    refused(capsys, words, "--teachers must be runs of char-lm; .* is one of copy")
    for name in ("ptb.train.txt", "ptb.valid.txt", "ptb.test.txt"):
        (tmp_path / name).write_text("tick tock the clock\n" * 50)
    ptb = ["--corpus", "ptb", "--data-dir", str(tmp_path)]
    refused(capsys, distil(runs, out, *ptb), "counts symbols by another convention: every character")
    train = ["train", "char-lm", "--temperature", "3"]
    refused(capsys, train, "--temperature goes with --teachers or --codistill only; got 3.0")
    train = ["train", "char-lm", "--smoothing", "0.1", "--teachers", str(runs / "a")]
    refused(capsys, train, "--teachers, --codistill and --smoothing are one or the other")
    assert not out.exists()
