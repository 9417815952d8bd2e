"""The images task: its network, its stream, and that every way of training runs and resumes."""

import json
import signal

import numpy as np
import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from strategies import assert_close, gradients

from dnirnn import backward
from dnirnn.commands.cli import main
from dnirnn.data import Batch, images
from dnirnn.reports import feed_forward
from dnirnn.tasks.images import ImagesOptions, ImageStream, fidelity, make, one_hot
from dnirnn.training.trainer import Trainer

WORDS = "--hidden 8 --layers 2 --batch 16 --updates 12 --log-every 64 --threads 1 --quiet".split()


def model_of(**change):
    given_ = dict(hidden=6, layers=3, batch=4) | change
    torch.manual_seed(0)
    return make(ImagesOptions(**given_), (1, 4, 4))


def batch_of(rows: int):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(1, rows, 16, generator=generator)
    return Batch(x, torch.randint(10, (1, rows), generator=generator))


@pytest.mark.parametrize(("cuts", "parts"), [(("every",), 4), ((1, 3), 3), ((2,), 2), ((3, 3), 2)])
def test_it_is_cut_where_it_is_told_to_be(cuts, parts):
    model = model_of(cuts=cuts)
    assert len(model.parts) == parts and len(model.truncated.estimator) == parts - 1
    whole = model_of(estimator="none")
    assert len(whole.parts) == 1
    # The same network, from the same seed: the cuts are no part of it.
    x = batch_of(5).x[0]
    assert_close(model.eval().logits(x), whole.eval().logits(x), 0)


@pytest.mark.parametrize("network", ["fcn", "cnn"])
def test_the_true_gradient_is_backpropagation(network):
    """--estimator true, and a warm-up: to the bit what no cut gives; and the predictors learn."""
    found = {}
    for name in ("none", "true", "dni"):
        model = model_of(estimator=name, network=network).double()
        if name == "dni":
            model.truncated.estimator.scale = 0.0  # as in a warm-up
        batch = batch_of(4)._replace(x=batch_of(4).x.double())
        nats, _, interfaces = model(batch, model.initial_state(4))
        backward(nats.sum(), interfaces)
        found[name] = torch.cat([g.flatten() for g in gradients(model.parts)])
        assert all(p.grad.isfinite().all() for p in model.truncated.estimator.parameters())
    assert_close(found["true"], found["none"])
    assert_close(found["dni"], found["none"])


def test_below_a_cut_with_nothing_sent_back_nothing_learns():
    model = model_of(estimator="zero")
    nats, _, interfaces = model(batch_of(4), model.initial_state(4))
    backward(nats.sum(), interfaces)
    assert all(p.grad is None for part in model.parts[:-1] for p in part.parameters())
    assert all(p.grad is not None for p in model.parts[-1].parameters())


@given(count=st.integers(4, 20), batch=st.integers(1, 4), n=st.integers(1, 15), seed=st.integers(0, 9))
def test_a_stream_goes_on_from_its_state(count, batch, n, seed):
    def made():
        pixels = torch.arange(count, dtype=torch.uint8)[:, None]
        return ImageStream(pixels, torch.arange(count), 1, batch, seed)

    stream, other = made(), made()
    seen = [stream.next(1) for _ in range(n)]
    whole = count // batch
    labels = torch.cat([b.y[0] for b in seen[:whole]])
    assert len(labels.unique()) == len(labels), "an epoch shows no image twice"
    assert all(torch.equal(b.x[0, :, 0].long(), b.y[0]) for b in seen)
    other.load_state_dict(stream.state_dict())
    for _ in range(whole + 1):
        assert torch.equal(stream.next(1).y, other.next(1).y)
    assert stream.epochs == other.epochs


def test_fidelity_is_that_of_the_gradient_that_backpropagation_has():
    model = model_of(estimator="cdni", cuts=(1, 3)).eval()
    for p in model.truncated.estimator.parameters():
        torch.nn.init.normal_(p)
    generator = torch.Generator().manual_seed(3)
    pixels = torch.randint(0, 2, (50, 16), generator=generator, dtype=torch.uint8)
    labels = torch.randint(10, (50,), generator=generator)
    known = images.Images("drawn", {"valid": (pixels, labels)}, 1, (1, 4, 4))
    found = fidelity(model, known)
    # The same by hooks in the network without cuts.
    h, caught = pixels.float().view(-1, 1, 4, 4), []
    for part in model.parts[:-1]:
        h = part(h)
        h.retain_grad()
        caught.append(h)
    torch.nn.functional.cross_entropy(model.parts[-1](h), labels, reduction="sum").backward()
    for place, (h, estimator) in enumerate(zip(caught, model.truncated.estimator), start=1):
        said = estimator(h, one_hot(labels)).detach()
        cosine = (said * h.grad).sum() / said.norm() / h.grad.norm()
        assert found[f"cosine_{place}"] == pytest.approx(float(cosine), abs=1e-5)
        ratio = float(said.norm() / h.grad.norm())
        assert found[f"norm_ratio_{place}"] == pytest.approx(ratio, rel=1e-4)


WAYS = [
    ["--estimator", "none"],
    ["--estimator", "cdni", "--warm-up", "3", "--ramp", "3", "--fidelity-every", "64"],
    ["--solved"],
    ["--update", "unlocked", "--estimator", "cdni"],
    ["--update", "random", "--update-probability", "0.5"],
    ["--update", "random", "--update-probability", "0.5", "--synthetic-inputs"],
    ["--network", "cnn", "--estimator-hidden", "4", "--estimator-batch-norm"],
    ["--estimator-hidden", "4", "5", "--estimator-batch-norm", "--estimator", "cdni"],
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way).strip("-"))
def test_every_way_trains_resumes_to_the_bit_and_is_measured(way, tmp_path, capsys):
    words = ["train", "images", *WORDS, *way]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert main([*words, "--out", str(whole)]) == 0
    interrupt(halves, words, after=5)
    assert main([*words, "--out", str(halves)]) == 0
    results = [json.loads((run / "result.json").read_text()) for run in (whole, halves)]
    for result in results:
        del result["seconds"]
    assert results[0] == results[1]
    capsys.readouterr()
    assert main(["eval", str(whole)]) == 0
    error = results[0]["test"]["test_error"]
    assert f"test error: {error:.2f} %" in capsys.readouterr().out


def interrupt(folder, words, after: int):
    """The same run, stopped by Ctrl-C in an update of its own."""
    learn = Trainer.learn

    def learn_and_stop(self):
        learn(self)
        if self.update == after:
            self.interrupted = signal.SIGINT

    Trainer.learn = learn_and_stop
    try:
        assert main([*words, "--out", str(folder)]) == 130
    finally:
        Trainer.learn = learn


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--update random --estimator none", "--update random needs cuts"),
        ("--update-probability 0.5", "--update-probability goes with --update random"),
        ("--update random --update-probability 1.5", "--update-probability must be at most 1"),
        ("--synthetic-inputs", "--synthetic-inputs goes with --update random or unlocked"),
        ("--cuts 1 4", "--cuts must be of layers 1 to 3; got 4"),
        ("--update unlocked --warm-up 3", "--warm-up goes with --update lockstep"),
        ("--solved --estimator-hidden 4", "--solved goes with linear"),
        ("--estimator-batch-norm", "--estimator-batch-norm takes hidden layers"),
        ("--estimator none --scale 0.5", "--scale goes with --estimator"),
        ("--data-dir x", "--data-dir goes with --images mnist, cifar10"),
        ("--images cifar10 --data-dir nowhere", "there is no nowhere/train.parquet"),
        ("--batch 5000", "--batch must be at most"),
        ("--update-steps 2", "unrecognized arguments: --update-steps"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, named, capsys, tmp_path):
    refused(capsys, ["train", "images", *words.split(), "--out", str(tmp_path / "run")], named)


def test_compare(tmp_path, capsys):
    words = "compare images --estimators none dni --jobs 2 --quiet --hidden 8 --batch 16".split()
    assert main([*words, "--updates", "4", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "curves.png").exists()
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("typed", [True, False], ids=["images", "plain bytes"])
def test_cifar10_is_read_as_the_hub_lays_it_out(tmp_path, monkeypatch, typed):
    """Whether the file types its column of {bytes, path} as pictures, or not."""
    import datasets
    import pyarrow.parquet

    monkeypatch.setattr(images, "HELD_OUT", 2)
    draw = np.random.default_rng(0)
    pixels = {split: draw.integers(0, 256, (n, 4, 4, 3), np.uint8) for split, n in (("train", 5), ("test", 3))}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.Value("int64")})
    for split, found in pixels.items():
        rows = {"img": list(found), "label": list(range(len(found)))}
        path = tmp_path / f"{split}.parquet"
        datasets.Dataset.from_dict(rows, features).to_parquet(path)
        if not typed:
            pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).replace_schema_metadata(), path)
    known = images.cifar10(tmp_path)
    assert known.shape == (3, 4, 4)
    counts = {split: len(labels) for split, (_, labels) in known.splits.items()}
    assert counts == {"train": 3, "valid": 2, "test": 3}
    x, y = known.splits["valid"]
    assert y.tolist() == [3, 4]
    assert torch.equal(x.view(2, 3, 4, 4), torch.tensor(pixels["train"][3:]).permute(0, 3, 1, 2))
    (tmp_path / "train.parquet").write_bytes(b"none")
    with pytest.raises(ValueError, match="--data-dir .* can't be read"):
        images.cifar10(tmp_path)
    datasets.Dataset.from_dict({"image": [1], "label": [2]}).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="no column img; it has .*image"):
        images.cifar10(tmp_path)


# reproduce


@pytest.mark.parametrize("table", list(feed_forward.SUMMARIES))
@pytest.mark.parametrize("budget", feed_forward.BUDGETS)
def test_a_tables_runs_are_all_options_that_there_are(table, budget, tmp_path):
    sections = feed_forward.plan(table, budget, tmp_path, {}, tmp_path, (0, 1), None)
    runs = [run for section in sections for run in section.runs.values()]
    assert len({run.name for run in runs}) == len(runs) > 4


@pytest.mark.parametrize("epochs", [None, 2.0])
def test_in_random_order_every_layer_has_as_many_updates(epochs, tmp_path):
    *_, section = feed_forward.plan("feed-forward", "cpu", tmp_path, {}, None, (0,), epochs)
    made = [(float(p), run.options.updates) for (_, p, _), run in section.runs.items()]
    steps = [updates * probability for probability, updates in made]
    assert section.label == "p" and steps == pytest.approx([steps[0]] * len(steps), rel=0.01)


@pytest.mark.parametrize(("table", "only"), [("chain", "cdni-seed zero"), ("feed-forward", "cdni-p1")])
def test_a_table_is_made(table, only, tmp_path, capsys):
    words = ["reproduce", table, "--budget", "quick", "--epochs", "1", "--jobs", "1", "--only", *only.split()]
    assert main([*words, "--out", str(tmp_path)]) == 0
    said = (tmp_path / "report.md").read_text()
    assert f"dnirnn reproduce {table}" in said and "| cdni" in said.lower()
    for name in ("curves.png", "results.csv", "log.jsonl"):
        assert (tmp_path / name).stat().st_size > 50
