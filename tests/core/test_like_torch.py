"""Habits from torch.nn's recurrent modules: they work here too, or are told what to write."""

import pytest
import torch
from strategies import CORES, assert_close
from torch import nn

from dnirnn import (
    GRU,
    LSTM,
    RNN,
    BPLambda,
    Deep,
    FromTorch,
    LeastSquares,
    SyntheticGradient,
    Truncated,
    backward,
)

# Those with a Clock, which does not cast its state, and the ones on another path of the same core.
NOT_CASTING = {"clock", "every-mean", "every-concat", "skip-in-deep", "hierarchy-3"}
CASTING = [name for name in CORES if name not in NOT_CASTING and "reference" not in name]
ESTIMATORS = {
    "linear": SyntheticGradient,
    "context": lambda size: SyntheticGradient(size, (4,), context_size=2),
    "normalised": lambda size: SyntheticGradient(size, normalise=True),
    "dense": lambda size: SyntheticGradient(size, dense=True, discount=0.5),
    "lambda": lambda size: SyntheticGradient(size, trace_decay=0.5),
    "auxiliary": lambda size: SyntheticGradient(size, auxiliary=0.5),
    "least squares": lambda size: LeastSquares(size, solve_every=1),
    "bp lambda": lambda size: BPLambda(size, 2),
}
HALVES = [torch.bfloat16, torch.float16]


def update(core, estimator, dtype, autocast: bool):
    """Two updates of a model; what they leave is float32 where it must be, and finite."""
    model, x = Truncated(core, 2, estimator), torch.randn(5, 2, core.input_size)
    if not autocast:
        model.to(dtype)
        x = x.to(dtype)
    context = torch.randn(6, 2, 2) if estimator.needs_context else None
    for _ in range(2):
        with torch.autocast("cpu", dtype, enabled=autocast):
            output, state, cuts = model(x, core.initial_state(2), final=True, context=context)
            loss = output.float().square().sum()
        backward(loss, cuts)
    (cut,) = cuts
    held = [state, cut.end, cut.probe, cut.probe.grad, *estimator.parameters()]
    assert all(tensor.dtype == torch.float32 for tensor in held)
    found = [p.grad for p in model.parameters() if p.grad is not None]
    assert found and all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["moved", "autocast"])
@pytest.mark.parametrize("name", CASTING)
def test_16_bits_in_every_core(name, autocast, dtype):
    core = CORES[name][0](3, 4)
    update(core, SyntheticGradient(core.state_size), dtype, autocast)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("autocast", [False, True], ids=["moved", "autocast"])
@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("make", [lambda: LSTM(3, 4), lambda: GRU(3, 4)])
def test_16_bits_with_every_estimator(make, name, autocast, dtype):
    core = make()
    update(core, ESTIMATORS[name](core.state_size), dtype, autocast)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(batch_first=True), r"batch_first.*x\.transpose\(0, 1\)"),
        (dict(bidirectional=True), "bidirectional.*future"),
        (dict(dropout=0.5), r"dropout.*dnirnn\.Deep"),
        (dict(proj_size=2), r"proj_size.*nn\.Linear"),
        (dict(bias=False), r"bias=True.*FromTorch"),
        (dict(hidden=3), "no argument hidden"),
    ],
)
@pytest.mark.parametrize("kind", [LSTM, GRU, RNN])
def test_torchs_options_are_told_what_to_write(kind, options, words):
    with pytest.raises(TypeError, match=f"{kind.__name__}.*{words}"):
        kind(3, 4, **options)
    kind(3, 4, batch_first=False, dropout=0.0, bias=True)


def test_an_rnn_has_torchs_first_nonlinearity():
    RNN(3, 4, nonlinearity="tanh")
    with pytest.raises(TypeError, match="tanh.*FromTorch.*got nonlinearity='relu'"):
        RNN(3, 4, nonlinearity="relu")


def test_a_state_of_two_tensors_is_told_of_pack_state():
    core, x = LSTM(3, 4), torch.randn(5, 2, 3)
    state = torch.zeros(1, 2, 4), torch.zeros(1, 2, 4)
    for run in (core, Truncated(core, 2, SyntheticGradient(8))):
        with pytest.raises(TypeError, match=r"state must be one tensor \[B, 8\].*pack_state.*tuple") as e:
            run(x, state)
        assert len(str(e.value)) < 200


@pytest.mark.parametrize(("own", "torchs"), [(LSTM, nn.LSTM), (GRU, nn.GRU), (RNN, nn.RNN)])
def test_torchs_state_dict_is_loaded_strictly(own, torchs):
    core, module = own(3, 4, 2), torchs(3, 4, 2)
    core.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 3)
    assert_close(core(x, core.initial_state(2))[0], module(x)[0], 1e-6)
    core.load_state_dict(core.state_dict())
    around = nn.ModuleDict({"core": own(3, 4, 2)})
    around.load_state_dict({f"core.{name}": value for name, value in module.state_dict().items()})
    assert_close(around["core"](x, core.initial_state(2))[0], module(x)[0], 1e-6)
    with pytest.raises(RuntimeError, match="Missing key"):
        own(3, 4, 3).load_state_dict(module.state_dict())


def test_deep_takes_torchs_modules():
    layers = [nn.LSTM(3, 4), nn.GRU(4, 4), nn.RNN(4, 4)]
    core, x = Deep(layers), torch.randn(5, 2, 3)
    assert all(isinstance(part, FromTorch) for part in core.cores)
    y = x
    for layer in layers:
        y, _ = layer(y)
    assert_close(core(x, core.initial_state(2))[0], y, 1e-6)
    with pytest.raises(ValueError, match="batch_first"):
        Deep([nn.LSTM(3, 4, batch_first=True)])
