"""pixels: what is read in which order, and that it is learned."""

import json
import re

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st

from dnirnn.commands.cli import main
from dnirnn.config.task import trainer_config
from dnirnn.data import images
from dnirnn.tasks import pixels
from dnirnn.tasks.pixels import PixelOptions, PixelStream, lay_out, order_of
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Trainer


@pytest.fixture(scope="module")
def known():
    pytest.importorskip("sklearn")
    return images.load("builtin")


@given(pixels=st.integers(1, 900), seed=st.integers(0, 2**31))
def test_the_permutation_is_a_bijection_that_the_seed_fixes(pixels, seed):
    order = order_of(PixelOptions(permuted=seed, hidden=2), pixels)
    assert torch.equal(order.sort().values, torch.arange(pixels))
    torch.rand(1)
    assert torch.equal(order, order_of(PixelOptions(permuted=seed, hidden=3, seed=1), pixels))
    assert torch.equal(order_of(PixelOptions(hidden=2), pixels), torch.arange(pixels))


@given(rows=st.integers(1, 4), steps=st.integers(1, 6), width=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_sequence_has_every_pixel_once_and_the_answer_last(rows, steps, width, seed):
    generator = torch.Generator().manual_seed(seed)
    shown = torch.rand(rows, steps * width, generator=generator)
    labels = torch.randint(10, (rows,), generator=generator)
    order = torch.randperm(steps * width, generator=generator)
    batch = lay_out(shown, labels, order, width)
    assert batch.x.shape == (steps, rows, width) and batch.first and batch.final
    for row in range(rows):
        flat = batch.x[:, row].flatten()
        back = torch.empty_like(flat)
        back[order] = flat
        assert torch.equal(back, shown[row])
    assert torch.equal(batch.y[-1], labels) and torch.equal(batch.label.argmax(1), labels)
    assert batch.count() == rows and not batch.weight[:-1].any()


def test_rows_are_those_of_the_picture(known):
    shown, labels = known.splits["train"][0][:3].float(), known.splits["train"][1][:3]
    x = lay_out(shown, labels, torch.arange(64), 8).x
    assert torch.equal(x, shown.view(3, 8, 8).transpose(0, 1))


@given(steps=st.integers(1, 70), before=st.integers(0, 9), seed=st.integers(0, 9), permuted=st.booleans())
def test_a_stream_resumes_anywhere_to_the_bit(known, steps, before, seed, permuted):
    order = order_of(PixelOptions(permuted=seed if permuted else None), 64)
    one, other = (PixelStream(known, order, 1, 700, seed + add) for add in (0, 1))
    for _ in range(before):
        one.next(steps)
    other.load_state_dict(one.state_dict())
    for _ in range(4):
        expected, found = one.next(steps), other.next(steps)
        assert torch.equal(expected.x, found.x) and torch.equal(expected.y, found.y)
        assert expected[3:5] == found[3:5] and one.epochs == other.epochs


def test_every_image_is_read_once_an_epoch(known):
    stream = PixelStream(known, torch.arange(64), 8, 599, 3)
    seen = torch.cat([stream.next(None).x.transpose(0, 1).flatten(1) for _ in range(2)])
    assert len(seen.unique(dim=0)) == len((known.splits["train"][0][:1198]).unique(dim=0))
    assert stream.epochs == 1198 / 1199


def test_it_is_learned_by_rows(tmp_path):
    pytest.importorskip("sklearn")
    options = PixelOptions(
        rows=True, hidden=48, truncation=8, estimator="none", lr=5e-3, updates=250, evaluate_every=10**8
    )
    task = pixels.build(options)
    config = trainer_config(options, task.symbols_per_update, pixels.DECAY)
    found = Trainer(task.model, task.stream, config, tmp_path, task.evaluate, task.config, task.test).run()
    assert found["test"]["test_accuracy"] > 80, found


def test_trains_resumes_and_is_measured(tmp_path, capsys):
    pytest.importorskip("sklearn")
    words = "--permuted 7 --hidden 6 --batch 8 --truncation 16 --evaluate-every 20 --log-every 4 --quiet"
    words = [*words.split(), *"--context target label --fidelity-every 10".split()]
    for name, updates in (("run", "6"), ("run", "9"), ("whole", "9")):
        folder = str(tmp_path / name)
        assert main(["train", "pixels", "--out", folder, *words, "--updates", updates]) == 0
    said = capsys.readouterr().out
    assert re.search(r"test, % of images right: [\d.]+; validation", said), said
    assert "64 pixels of each, permuted by seed 7; scikit-learn's 8 x 8 digits" in said
    one, other = (read_log(tmp_path / name / "log.jsonl", "valid")[-1] for name in ("run", "whole"))
    assert (one["nats"], one["accuracy"]) == (other["nats"], other["accuracy"])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    order = torch.randperm(64, generator=torch.Generator().manual_seed(7))
    assert config["permutation"] == order.tolist() and config["shape"] == [1, 8, 8]
    assert main(["eval", folder, "--split", "valid"]) == 0
    assert re.search(r"valid, [\d.]+ % of images right", capsys.readouterr().out)
    assert main(["fidelity", folder]) == 0


def test_bad_input(capsys, tmp_path):
    refused(capsys, ["train", "pixels", "--permuted", "-1"], "--permuted must be at least 0; got -1")
    refused(capsys, ["train", "pixels", "--data-dir", str(tmp_path)], "--data-dir goes with --digits mnist only")
    wanted = ["train", "pixels", "--digits", "mnist", "--data-dir", str(tmp_path)]
    refused(capsys, wanted, "--data-dir must be a folder with MNIST's four idx files")
