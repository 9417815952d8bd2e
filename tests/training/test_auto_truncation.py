"""AutoTruncation: the shortest truncation whose measured bias is within a bound; logged, and resumed."""

import csv
import math

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from small_runs import (
    Recall,
    assert_equal_runs,
    end_of,
    make_model,
    make_trainer,
    small_stream,
)
from strategies import seeds
from torch import nn

from dnirnn import Core, Truncated, ZeroGradient
from dnirnn.commands.cli import main
from dnirnn.config.task import BOUND, FIRST_TRUNCATION, trainer_config
from dnirnn.data import Batch, Stream
from dnirnn.horizon import squared_bias, truncation_bias
from dnirnn.model import SequenceModel, squared_error
from dnirnn.tasks.char_lm import CharLMOptions
from dnirnn.training.log import read_log
from dnirnn.training.trainer import Interrupted

SETTINGS = dict(truncation_bound=0.3, longest_truncation=8, truncation_every=60, updates=40)


@given(rows=st.integers(2, 6), groups=st.integers(2, 6), truncation=st.integers(1, 5), seed=seeds)
def test_the_squares_are_those_of_pairs_of_different_groups(rows, groups, truncation, seed):
    """|E v|^2 is E <v, w> of two independent samples."""
    model = make_model("none", seed=seed).double().eval()
    generator = torch.Generator().manual_seed(seed)
    batch = Batch(*torch.randint(0, 7, (2, 6, rows), generator=generator))
    state = torch.randn(rows, 10, generator=generator).double()
    missed, whole = squared_bias(model, batch, [truncation, 6], state, 3, groups)

    def gradients(cut_every):
        found = []
        for part in torch.arange(rows).tensor_split(min(groups, rows)):
            core, value, nats = model.truncated.core, state[part], 0
            for t in range(6):
                value = value.detach() if t % cut_every == 0 else value
                output, value = core.step(model.encoder(batch.x[t, part]), value, 3 + t)
                nats = nats + model.loss(model.readout(output)[None], batch.y[t : t + 1, part]).sum()
            found.append(torch.autograd.grad(nats / len(part), model.core_parameters()))
        return torch.stack([torch.cat([one.flatten() for one in part]) for part in found])

    def square(samples):
        products = samples @ samples.T
        count = len(samples)
        return float((products.sum() - products.diagonal().sum()) / (count * (count - 1)))

    uncut = gradients(6)
    assert whole == pytest.approx(square(uncut), rel=1e-9)
    assert missed[0] == pytest.approx(square(gradients(truncation) - uncut), rel=1e-9, abs=1e-12)
    assert missed[1] == 0
    assert all(parameter.grad is None for parameter in model.parameters())
    if groups >= rows:
        start = torch.zeros(rows, 10).double()
        squares, of_whole = squared_bias(model, batch, [truncation], start, 0, groups)
        (bias,) = truncation_bias(model, batch, [truncation])
        mean = gradients_mean_square(model, batch, rows)
        assert bias.bias == pytest.approx(max(0, squares[0]) ** 0.5 / mean**0.5, abs=1e-6)


def gradients_mean_square(model, batch, rows):
    nats, _, _ = model(batch, model.initial_state(rows))
    del nats
    with torch.enable_grad():
        output, _ = model.unroll(batch.x, model.initial_state(rows), 0)
        total = model.loss(output, batch.y).sum() / rows
        found = torch.autograd.grad(total, model.core_parameters())
    return float(torch.cat([one.flatten() for one in found]).square().sum())


class Decay(Core):
    """s' = a s + w x, which is said: what comes back of k steps is a^k."""

    input_size = output_size = state_size = 1

    def __init__(self, a: float):
        super().__init__()
        self.a, self.w = a, nn.Parameter(torch.ones(()))

    def step(self, x, state, t):
        state = self.a * state + self.w * x
        return state, state


class Constant(Stream):
    """x = 1 for ever; rows alike, so that nothing is noise."""

    unbroken = True

    def __init__(self):
        self.batch_size, self.place = 4, 0

    @property
    def epochs(self):
        return float(self.place)

    def next(self, steps):
        first, self.place = self.place == 0, self.place + steps
        return Batch(torch.ones(steps, 4, 1), torch.zeros(steps, 4, 1), first=first)

    def state_dict(self):
        return {"place": self.place}

    def load_state_dict(self, state):
        self.place = state["place"]


@pytest.mark.parametrize("a", [0.0, 0.5, 0.8, 0.95])
@pytest.mark.parametrize("bound", [0.02, 0.1, 0.3])
def test_the_truncation_is_the_shortest_within_the_bound(tmp_path, a, bound):
    """Where the bias is known in closed form: means of (1 - a^n) / (1 - a) over the steps of a chunk."""
    identity = nn.Linear(1, 1, bias=False)
    nn.init.ones_(identity.weight)
    model = SequenceModel(
        nn.Identity(), Truncated(Decay(a), 4, ZeroGradient()), identity.requires_grad_(False), squared_error
    ).double()
    longest = 16
    trainer = make_trainer(
        tmp_path, model=model, stream=Doubled(), evaluate=False, lr=1e-12, updates=1,
        truncation_bound=bound, longest_truncation=longest,
    )  # fmt: skip
    trainer.run()

    def gradient(cut_every):
        state, back, total = 0.0, 0.0, 0.0
        for t in range(2 * longest):
            back = (0.0 if t % cut_every == 0 else a * back) + 1
            state = a * state + 1
            total += 2 * state * back
        return total

    whole = gradient(2 * longest)
    biases = {k: abs(gradient(k) - whole) / whole for k in (1, 2, 4, 8, 16)}
    expected = min((k for k in biases if biases[k] <= bound), default=longest)
    (row,) = read_log(tmp_path / "log.jsonl", "truncation")
    assert row["truncation"] == trainer.model.truncated.truncation == expected
    for k, bias in biases.items():
        assert row[f"bias_{k}"] == pytest.approx(bias, abs=1e-6)
    assert trainer.symbols == 4 * expected
    assert trainer.updater.unit == pytest.approx(1 / (4 * expected))


class Doubled(Constant):
    """In float64."""

    def next(self, steps):
        batch = super().next(steps)
        return batch._replace(x=batch.x.double(), y=batch.y.double())


@pytest.mark.parametrize("stream", [small_stream, Recall])
@pytest.mark.parametrize("chunks", [1, "sequence"])
def test_a_run_goes_on_to_the_bit(tmp_path, stream, chunks):
    def trainer(folder):
        given = dict(model=make_model("none", dropout=0.2), stream=stream(), evaluate_every=100)
        return make_trainer(folder, **given, **{**SETTINGS, "updates": 24}, log_every=30, chunks=chunks)

    whole = trainer(tmp_path / "whole")
    whole.run()
    rows = read_log(tmp_path / "whole" / "log.jsonl", "truncation")
    assert len(rows) > 2 and rows[0]["update"] == 0
    stopped = trainer(tmp_path / "parts")
    with pytest.raises(Interrupted):
        stopped.run(lambda row: setattr(stopped, "interrupted", row["update"] > 2))
    trainer(tmp_path / "parts").run()
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")
    assert end_of(tmp_path / "whole")[1]["truncation"]["truncation"] == rows[-1]["truncation"]


def test_everything_is_due_by_symbols(tmp_path):
    trainer = make_trainer(
        tmp_path, model=make_model("none"), evaluate_every=100, log_every=50, fidelity=None, **SETTINGS
    )
    trainer.run()
    rows = read_log(tmp_path / "log.jsonl")
    for kind, every in (("valid", 100), ("train", 50), ("truncation", 60)):
        found = [row["symbols"] for row in rows if row["kind"] == kind and 0 < row["update"] < 40]
        assert len(found) > 1
        assert len({symbols // every for symbols in found}) == len(found)
        if kind != "truncation":  # which a text's end may leave out
            assert len(found) >= trainer.symbols // every - 1


def test_measuring_draws_nothing_and_leaves_the_stream_where_it_is(tmp_path):
    """A bound that no truncation is above, with 1 the longest: a run like any other."""
    given = dict(updates=12, evaluate=False, log_every=50)
    auto = make_trainer(
        tmp_path / "auto", model=make_model("none", 1, dropout=0.3), truncation_bound=1e9,
        longest_truncation=1, truncation_every=9, **given,
    )  # fmt: skip
    plain = make_trainer(tmp_path / "plain", model=make_model("none", 1, dropout=0.3), **given)
    auto.run(), plain.run()
    for one, other in zip(auto.model.parameters(), plain.model.parameters()):
        assert torch.equal(one, other)


def test_what_is_no_gradient_at_all_asks_for_the_longest(tmp_path):
    auto = make_trainer(tmp_path, model=make_model("none"), **SETTINGS).auto
    assert auto.truncations == [1, 2, 4, 8]
    assert auto.biases([1.0, 0.5, -1.0, 0.0, -1.0]) == [math.inf] * 4
    assert auto.choose([1.0, 0.5, -1.0, 0.0, -1.0]) == 8
    assert auto.choose([1.0, 0.5, -1.0, 0.0, 100.0]) == 1
    assert auto.choose([9.1, 9.1, 8.9, 0.0, 100.0]) == 4
    assert auto.row({"truncation": 8, "sums": [1.0, 1.0, 1.0, 1.0, 0.0]})["bias_2"] is None


@pytest.mark.parametrize("what", ["estimator", "open_cuts", "overlap"])
def test_what_has_a_bias_of_its_own_is_refused(tmp_path, what):
    model = make_model("dni" if what == "estimator" else "none")
    if what != "estimator":
        setattr(model.truncated, what, {"open_cuts": 0.5, "overlap": 2}[what])
    with pytest.raises(ValueError, match="no estimator, open cuts or overlap; got Truncated"):
        make_trainer(tmp_path, model=model, **SETTINGS)


def test_the_options_of_the_command_line(tmp_path, capsys):
    text = tmp_path / "tiny.txt"
    text.write_text("tick tock the clock\n" * 999)
    words = ["train", "char-lm", "--corpus", str(text), "--hidden", "4", "--embedding", "4", "--batch", "4"]
    words += ["--quiet", "--symbols", "400", "--out", str(tmp_path / "run"), "--truncation-every", "150"]
    auto = [*words, "--truncation", "auto"]
    refused(capsys, [*words, "--estimator", "none"], "--truncation-every goes with --truncation auto only")
    refused(capsys, [*auto, "--estimator", "dni"], "--estimator must be none; got dni")
    auto += ["--estimator", "none"]
    for flag, value in (("open-cuts", "0.5"), ("overlap", "2")):
        refused(capsys, [*auto, f"--{flag}", value], f"--{flag} must be")
    refused(capsys, [*auto, "--update-steps", "8"], "--update-steps must be the word sequence")
    assert main([*auto, "--longest-truncation", "8", "--horizon-every", "200"]) == 0
    rows = read_log(tmp_path / "run" / "log.jsonl", "truncation")
    assert len(rows) == 3 and {"bias_1", "bias_8", "truncation"} <= rows[0].keys()
    capsys.readouterr()
    assert main(["horizon", str(tmp_path / "run"), "--lookahead", "4"]) == 0
    said = capsys.readouterr().out
    assert "along the run" in said and (tmp_path / "run" / "horizon-along.png").stat().st_size
    with (tmp_path / "run" / "horizon-along.csv").open() as file:
        (along, *_) = csv.DictReader(file)
    (logged, *_) = read_log(tmp_path / "run" / "log.jsonl", "horizon")
    assert float(along["cosine_1"]) == logged["cosine_1"] and float(along["bias_40"]) == logged["bias_40"]
    options = CharLMOptions(truncation="auto", estimator="none", symbols=9, evaluate_every=77)
    config = trainer_config(options, 10.0, "none")
    assert (config.truncation_bound, config.evaluate_every, config.chunks) == (BOUND, 77, 1)
    assert trainer_config(CharLMOptions(symbols=9), 10.0, "none").truncation_bound is None
    assert FIRST_TRUNCATION == 8


def test_it_is_compared_with_fixed_ones(tmp_path, capsys):
    text = tmp_path / "tiny.txt"
    text.write_text("tick tock the clock\n" * 99)
    words = ["compare", "char-lm", "--corpus", str(text), "--hidden", "4", "--embedding", "4", "--batch", "4"]
    words += ["--quiet", "--symbols", "200", "--truncations", "auto", "2", "--estimators", "none"]
    assert main([*words, "--out", str(tmp_path / "out"), "--jobs", "1", "--vary", "lr", "1e-3"]) == 0
    with (tmp_path / "out" / "results.csv").open() as file:
        assert {row["truncation"] for row in csv.DictReader(file)} == {"auto", "2"}
