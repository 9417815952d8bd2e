"""The layers of a character model as parts, in one process and in several: the same run. Gloo."""

import signal

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from rank_runs import LOST, codes_of, command
from small_runs import (
    assert_equal_runs,
    assert_same_but_for_rng,
    rows_of,
)
from strategies import assert_close

import dnirnn
from dnirnn.commands.cli import main
from dnirnn.data import Batch
from dnirnn.estimators import ByPart
from dnirnn.model import SequenceModel, symbol_nats
from dnirnn.training.layers import Layer

SYMBOLS, ROWS = 5, 3


def estimator_of(size: int) -> dnirnn.SyntheticGradient:
    found = dnirnn.SyntheticGradient(size, (), 0.5, 0.3)
    torch.nn.init.normal_(found.layers[-1].weight, std=0.3)
    return found


@given(
    layers=st.integers(1, 3), residual=st.booleans(), dropout=st.sampled_from([0.0, 0.4]),
    truncation=st.integers(1, 4), steps=st.integers(1, 6), seed=st.integers(0, 99),
)  # fmt: skip
def test_layers_one_on_another_are_the_deep(layers, residual, dropout, truncation, steps, seed):
    """Outputs, states and gradients, where nothing is cut between them."""
    torch.manual_seed(seed)
    cores = [dnirnn.LSTM(4, 4) for _ in range(layers)]
    core = dnirnn.Deep(cores, residual=residual, dropout=dropout).double()
    estimator = ByPart([estimator_of(one.state_size) for one in cores], core.sizes)
    truncated = dnirnn.Truncated(core, truncation, estimator)
    encoder, readout = torch.nn.Embedding(SYMBOLS, 4), torch.nn.Linear(4, SYMBOLS)
    model = SequenceModel(encoder, truncated, readout, symbol_nats).double()
    x, y = torch.randint(SYMBOLS, (2, steps, ROWS))
    state = torch.randn(ROWS, core.state_size, dtype=torch.float64)
    nats, ended, interfaces = model(Batch(x, y), state, 2)
    dnirnn.backward(nats.sum(), interfaces, 1.0)
    expected = [p.grad for p in model.parameters()]
    model.zero_grad()
    h, cuts, states = x, [], []
    for place, one in enumerate(state.split(core.sizes, 1)):
        layer = Layer(model, place)
        layer.begin(one, 2, False)
        h, interfaces = layer(h)
        cuts += interfaces
        states.append(layer.state)
    dnirnn.backward(symbol_nats(h, y).sum(), cuts, 1.0)
    assert_close(torch.cat(states, 1), ended)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert_close(parameter.grad, gradient)


def test_each_part_is_predicted_for_from_itself():
    parts = [estimator_of(2), dnirnn.ZeroGradient(), estimator_of(3)]
    whole = ByPart(parts, [2, 1, 3])
    state, target = torch.randn(2, 7, 6)
    said = torch.cat([parts[0](state[:, :2]), torch.zeros(7, 1), parts[2](state[:, 3:])], 1)
    assert torch.equal(whole(state), said) and whole.discount == 0.3
    error = whole.accumulate(state, target)
    found = [p.grad.clone() for p in whole.parameters()]
    whole.zero_grad()
    each = parts[0].accumulate(state[:, :2], target[:, :2])
    each = each + parts[2].accumulate(state[:, 3:], target[:, 3:])
    assert_close(error, each, 1e-6)
    assert all(torch.equal(p.grad, one) for p, one in zip(whole.parameters(), found))
    with pytest.raises(ValueError, match="one scale"):
        ByPart([estimator_of(2), dnirnn.SyntheticGradient(2, (), 1.0)], [2, 2])
    with pytest.raises(ValueError, match="estimators must be as many as sizes, 2"):
        ByPart([estimator_of(2)], [2, 2])
    with pytest.raises(ValueError, match="no context"):
        ByPart([dnirnn.SyntheticGradient(2, context_size=1)], [2])


# The command line


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_text("Nothing is lost where one of them ends. " * 60)
    return path


def words(corpus, folder, *more: str) -> list[str]:
    said = "train char-lm --core deep --layers 3 --hidden 8 --embedding 4 --batch 4 --truncation 4"
    said += " --residual --symbols 960 --evaluate-every 480 --log-every 160 --estimator dni --estimator-hidden linear"
    said += " --layer-predictor-hidden 6 --parallel decoupled --staleness 0 --quiet --threads 1"
    return [*said.split(), "--corpus", str(corpus), "--out", str(folder), *more]


@pytest.fixture(scope="module")
def whole_run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("layers") / "whole"
    assert codes_of(2, command(words(corpus, folder))) == [0, 0]
    return folder


def test_layers_in_processes_are_those_of_one_process(corpus, whole_run, tmp_path, capsys):
    assert main(words(corpus, tmp_path)) == 0
    assert_same_but_for_rng(tmp_path, whole_run)
    said = capsys.readouterr().out
    rows = [row for row in rows_of(whole_run) if row["kind"] == "train"]
    assert rows[-1]["bits"] < rows[0]["bits"] and rows[-1]["estimator_error"] > 0
    assert "stopped by symbols after 60 updates" in said
    assert main(["eval", str(whole_run), "--split", "valid"]) == 0
    assert main(["sample", str(whole_run), "--length", "5"]) == 0


def test_a_killed_rank_of_layers_loses_nothing(corpus, whole_run, tmp_path):
    said = words(corpus, tmp_path / "run")
    codes = codes_of(2, command(said, kill=(0, 41)))
    assert codes == [-signal.SIGKILL, LOST]
    assert codes_of(2, command(said)) == [0, 0]
    assert_equal_runs(tmp_path / "run", whole_run)


def test_late_messages_and_a_slow_rank_stop_no_layer(corpus, tmp_path):
    more = "--staleness 2 --smoothing 0.1 --layer-dropout 0.2 --dropout 0.1".split()
    assert codes_of(2, command(words(corpus, tmp_path, *more), slow=1)) == [0, 0]
    rows = [row for row in rows_of(tmp_path) if row["kind"] == "train"]
    assert rows[-1]["update"] == 60 and rows[-1]["bits"] < rows[0]["bits"]
    assert all(row["estimator_error"] > 0 for row in rows)


def test_what_layers_in_parts_can_t_do_is_refused_by_name(corpus, tmp_path, capsys):
    for more, said in (
        (["--tied"], "--tied does not go with"),
        (["--skip-inputs"], "--skip-inputs does not go with"),
        (["--warm-up", "3"], "--warm-up does not go with"),
        (["--context", "target"], "--context does not go with"),
        (["--scale", "auto"], "--scale auto does not go with"),
        (["--dtype", "bfloat16"], "--parallel decoupled computes in float32"),
        (["--core", "lstm"], "goes with --core deep only|takes --core deep"),
        (["--estimator", "true"], "goes with --estimator|takes --estimator none"),
        (["--parallel", "data"], "--staleness goes with --parallel decoupled only"),
    ):
        refused(capsys, [*words(corpus, tmp_path / "no"), *more], said)
    assert codes_of(4, command(words(corpus, tmp_path / "many"))) == [2] * 4
