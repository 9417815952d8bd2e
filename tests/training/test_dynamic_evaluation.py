"""Dynamic evaluation: the equation, that nothing is learned of what comes later, and the command."""

import copy
import math
import re

import pytest
import torch
from command_line import SHORT, TINY, refused
from small_runs import SYMBOLS, make_model, text
from torch.nn import functional as F

from dnirnn import DynamicEvaluation
from dnirnn.commands.cli import main
from dnirnn.data import TextStream
from dnirnn.dynamic_evaluation import mean_squares
from dnirnn.model import measure
from dnirnn.tasks.char_lm.dynamic import lowest


def model_and_squares(steps=4):
    model = make_model(dropout=0.5).double()
    return model, mean_squares(model, TextStream(text(90, 5), 3, 0), steps, 6)


def row(symbols) -> TextStream:
    return TextStream(symbols, 1, 0)


def plain_nats(model, symbols, state, before):
    """The loop in plain torch: nats of symbols after ``before``, the state after them."""
    core, nats = model.truncated.core, []
    h, c = state.chunk(2, -1)
    for x, y in zip([before, *symbols[:-1]], symbols):
        entered = model.encoder.weight[x][None]
        gates = F.linear(entered, core.weight_ih_l0, core.bias_ih_l0)
        i, f, g, o = (gates + F.linear(h, core.weight_hh_l0, core.bias_hh_l0)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        nats.append(F.cross_entropy(model.readout(h), torch.tensor([y])))
    return torch.stack(nats), torch.cat([h, c], -1).detach()


def test_it_is_the_equation():
    model, squares = model_and_squares()
    rate, decay, steps, epsilon = 0.01, 0.3, 4, 1e-3
    found = DynamicEvaluation(model, squares, rate, decay, steps, epsilon)(row(text(30)))
    moving = copy.deepcopy(model)
    parameters = moving.core_parameters()
    start = [parameter.detach().clone() for parameter in parameters]
    roots = [square.sqrt() for square in squares]
    mean = torch.cat([root.flatten() for root in roots]).mean()
    total, state, before, symbols = 0.0, torch.zeros(1, 10).double(), 0, text(30).tolist()
    for at in range(0, 30, steps):
        part = symbols[at : at + steps]
        nats, state = plain_nats(moving, part, state, before)
        before, total = part[-1], total + float(nats.detach().sum())
        gradients = torch.autograd.grad(nats.mean(), parameters)
        with torch.no_grad():
            for p, g, root, first in zip(parameters, gradients, roots, start):
                back = (decay * root / mean).clamp(max=1)
                p += -rate * g / (root + epsilon) + back * (first - p)
    assert found["targets"] == 30
    assert found["bits"] == pytest.approx(total / 30 / math.log(2), rel=1e-9)


def test_the_squares_are_those_of_the_parts_gradients():
    model, squares = model_and_squares()
    stream, expected = TextStream(text(90, 5), 3, 0), None
    state = torch.zeros(3, 10).double()
    for _ in range(6):
        batch, nats, states = stream.next(4), [], []
        for b in range(3):
            one, ended = plain_nats(model, batch.y[:, b].tolist(), state[b : b + 1], int(batch.x[0, b]))
            nats.append(one)
            states.append(ended)
        state = torch.cat(states)
        gradients = torch.autograd.grad(torch.stack(nats).mean(), model.core_parameters())
        now = [g * g / 6 for g in gradients]
        expected = now if expected is None else [a + b for a, b in zip(expected, now)]
    for found, value in zip(squares, expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_at_rate_0_it_is_the_plain_evaluation_and_the_model_stays(decay):
    model, squares = model_and_squares()
    before = copy.deepcopy(model.state_dict())
    expected = measure(model, row(text(50)))["bits"]
    assert DynamicEvaluation(model, squares, 0.0, decay)(row(text(50)))["bits"] == pytest.approx(expected)
    assert DynamicEvaluation(model, squares, 0.1, decay)(row(text(50)))["bits"] != expected
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_comes_later_changes_nothing_before():
    model, squares = model_and_squares()
    run = DynamicEvaluation(model, squares, 0.05, 0.1, 4)
    other = text(60).clone()
    other[20:] = (other[20:] + 1) % SYMBOLS
    found, same = (run(row(symbols), most=20) for symbols in (text(60), other))
    assert found == same and found["targets"] == 20
    assert run(row(text(60)[:20])) == found


def test_what_is_ignored_is_read_and_not_scored():
    model, squares = model_and_squares()
    symbols = text(40)
    found = DynamicEvaluation(model, squares, 0.0, 0.0)(row(symbols), ignore=3)
    assert found["targets"] == int((symbols != 3).sum())
    nats, _ = plain_nats(model, symbols.tolist(), torch.zeros(1, 10).double(), 0)
    assert found["bits"] == pytest.approx(float(nats.detach()[symbols != 3].mean()) / math.log(2))


def test_it_learns_a_text_that_repeats_itself():
    model, squares = model_and_squares()
    symbols = text(8).repeat(30)
    found = DynamicEvaluation(model, squares, 0.02, 0.0, 8)(row(symbols))
    assert found["bits"] < measure(model, row(symbols))["bits"] - 0.2


def test_the_search_goes_on_to_where_it_is_lowest():
    for best in (1.0, 9.0, 1 / 81):
        assert lowest(lambda x, best=best: abs(math.log(x / best)), 1.0) == pytest.approx(best)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(rate=-1.0), "rate must be finite and not negative; got -1.0"),
        (dict(rate=0.1, steps=0), "steps must be an int of at least 1; got 0"),
        (dict(rate=0.1, squares=[]), "squares must be one tensor for each"),
    ],
)
def test_what_is_refused(given, message):
    model, squares = model_and_squares()
    with pytest.raises(ValueError, match=message):
        DynamicEvaluation(**{"model": model, "squares": squares, **given})
    with pytest.raises(ValueError, match="stream must have one row; got batch_size=2"):
        DynamicEvaluation(model, squares, 0.1)(TextStream(text(), 2, 0))


def test_the_command(tmp_path, capsys):
    """On a text of another kind it finds a rate, and says both figures."""
    (tmp_path / "tiny.txt").write_text("tick tock the clock\n" * 150)
    (tmp_path / "other.txt").write_text("the tick the tick the clock\n" * 20)
    words = ["train", "char-lm", "--corpus", str(tmp_path / "tiny.txt"), *TINY, *SHORT, "--quiet"]
    assert main([*words, "--out", str(tmp_path / "run"), "--lr", "0.02", "--threads", "1"]) == 0
    capsys.readouterr()
    run = ["eval", str(tmp_path / "run")]
    given = ["--dynamic", "--dynamic-rate", "0.003", "--dynamic-decay", "0", "--dynamic-steps", "5"]
    assert main([*run, "--text", str(tmp_path / "other.txt"), *given]) == 0
    said = capsys.readouterr().out
    plain, moved = map(float, re.findall(r"bits per character: ([\d.]+)", said))
    assert moved < plain and "(parts of 5 steps, rate 0.003, decay 0)" in said
    assert main([*run, "--dynamic"]) == 0
    assert re.search(r"found on validation, \d+ tried on its first 150 symbols", capsys.readouterr().out)
    refused(capsys, [*run, "--dynamic-rate", "1"], "--dynamic-rate goes with --dynamic only; got 1.0")
    refused(capsys, [*run, "--dynamic", "--dynamic-rate", "-1"], "must be a number of at least 0")
    copy = ["train", "copy", "--hidden", "4", "--batch", "2", "--updates", "1", "--quiet"]
    assert main([*copy, "--out", str(tmp_path / "copy")]) == 0
    refused(capsys, ["eval", str(tmp_path / "copy"), "--dynamic"], "goes with char-lm and word-lm runs only")
