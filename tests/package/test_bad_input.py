"""Bad input: a ValueError or TypeError that names the argument, its value and what was expected."""

import pytest
import torch
from strategies import Counter
from torch import nn

from dnirnn import LSTM, FromTorch, SyntheticGradient, Truncated, ZeroGradient, backward

CORE = LSTM(3, 4)
STATE = torch.zeros(2, 8)
X = torch.zeros(5, 2, 3)


def run(x=X, state=STATE, core=CORE, **rest):
    return Truncated(core, 2, SyntheticGradient(core.state_size))(x, state, **rest)


def truncated(core=CORE, truncation=2, estimator=None):
    return Truncated(core, truncation, ZeroGradient() if estimator is None else estimator)


def loss_of(**rest):
    output, _, cuts = run()
    return dict(loss=output.sum(), interfaces=cuts) | rest


CASES = {
    # LSTM
    "input_size 0": (lambda: LSTM(0, 4), ValueError, "input_size .*at least 1.*got 0"),
    "hidden_size -1": (lambda: LSTM(3, -1), ValueError, "hidden_size .*at least 1.*got -1"),
    "num_layers 0": (lambda: LSTM(3, 4, 0), ValueError, "num_layers .*at least 1.*got 0"),
    "num_layers 1.5": (lambda: LSTM(3, 4, 1.5), ValueError, "num_layers .*int.*got 1.5"),
    "hidden_size True": (lambda: LSTM(3, True), ValueError, "hidden_size .*int.*got True"),
    "h of another size": (
        lambda: CORE.pack_state(torch.zeros(1, 2, 5), torch.zeros(1, 2, 4)),
        ValueError,
        r"h must be \[1, B, 4\]; got \(1, 2, 5\)",
    ),
    "c of other layers": (
        lambda: CORE.pack_state(torch.zeros(1, 2, 4), torch.zeros(2, 2, 4)),
        ValueError,
        r"c must be \[1, B, 4\]; got \(2, 2, 4\)",
    ),
    "h and c of other batches": (
        lambda: CORE.pack_state(torch.zeros(1, 2, 4), torch.zeros(1, 3, 4)),
        ValueError,
        r"h and c .*one shape.*\(1, 2, 4\), \(1, 3, 4\)",
    ),
    "a state to unpack": (
        lambda: CORE.unpack_state(torch.zeros(2, 7)),
        ValueError,
        r"state must be \[B, 8\]; got \(2, 7\)",
    ),
    # FromTorch: in test_from_torch.py
    # SyntheticGradient
    "state_size 0": (lambda: SyntheticGradient(0), ValueError, "state_size .*at least 1.*got 0"),
    "state_size '8'": (lambda: SyntheticGradient("8"), ValueError, "state_size .*int.*got '8'"),
    "hidden (0,)": (lambda: SyntheticGradient(8, (4, 0)), ValueError, "hidden .*at least 1.*got 0"),
    "hidden 4": (lambda: SyntheticGradient(8, 4), TypeError, "hidden .*got 4"),
    "scale -1": (lambda: SyntheticGradient(8, scale=-1), ValueError, "scale .*got -1"),
    "scale nan": (lambda: SyntheticGradient(8, scale=float("nan")), ValueError, "scale .*got nan"),
    "scale text": (lambda: SyntheticGradient(8, scale="0.1"), TypeError, "scale .*got '0.1'"),
    "discount inf": (
        lambda: SyntheticGradient(8, discount=float("inf")),
        ValueError,
        "discount .*finite.*got inf",
    ),
    # Truncated
    "core an nn.LSTM": (
        lambda: truncated(nn.LSTM(3, 4)),
        TypeError,
        "core must be a dnirnn.Core; got LSTM .*FromTorch",
    ),
    "truncation 0": (lambda: truncated(truncation=0), ValueError, "truncation .*at least 1.*got 0"),
    "truncation -3": (
        lambda: truncated(truncation=-3),
        ValueError,
        "truncation .*at least 1.*got -3",
    ),
    "truncation 2.0": (lambda: truncated(truncation=2.0), TypeError, "truncation .*int; got 2.0"),
    "truncation True": (lambda: truncated(truncation=True), TypeError, "truncation .*got True"),
    "estimator None": (
        lambda: Truncated(CORE, 2, None),
        TypeError,
        "estimator must be .*got NoneType .*ZeroGradient",
    ),
    "estimator a class": (
        lambda: Truncated(CORE, 2, ZeroGradient),
        TypeError,
        "estimator must be .*got",
    ),
    "estimator of another size": (
        lambda: truncated(estimator=SyntheticGradient(7)),
        ValueError,
        "estimator .*state of 7.*state_size is 8",
    ),
    "x of symbols [T, B]": (
        lambda: run(torch.zeros(5, 2)),
        ValueError,
        r"x must be \[T, B, 3\].*got \(5, 2\)",
    ),
    "x of another width": (
        lambda: run(torch.zeros(5, 2, 4)),
        ValueError,
        r"x must be \[T, B, 3\].*got \(5, 2, 4\)",
    ),
    "x of no steps": (
        lambda: run(torch.zeros(0, 2, 3)),
        ValueError,
        r"x must be .*at least 1.*got \(0, 2, 3\)",
    ),
    "x of no rows": (
        lambda: run(torch.zeros(5, 0, 3), torch.zeros(0, 8)),
        ValueError,
        r"x must be .*at least 1.*got \(5, 0, 3\)",
    ),
    "x a list": (lambda: run([[1.0]]), TypeError, "x must be a tensor.*got list"),
    "x of integers": (
        lambda: run(torch.zeros(5, 2, 3).long()),
        TypeError,
        "x .*floating point.*got torch.int64",
    ),
    "x of another dtype than the core": (
        lambda: run(torch.zeros(5, 2, 3).double(), torch.zeros(2, 8).double()),
        TypeError,
        "x .*torch.float64.*torch.float32",
    ),
    "state a tuple": (
        lambda: run(state=(torch.zeros(1, 2, 4), torch.zeros(1, 2, 4))),
        TypeError,
        "state must be one tensor.*got tuple",
    ),
    "state of another batch": (
        lambda: run(state=torch.zeros(3, 8)),
        ValueError,
        r"state must be \[2, 8\].*got \(3, 8\)",
    ),
    "state of h alone": (
        lambda: run(state=torch.zeros(1, 2, 4)),
        ValueError,
        r"state must be \[2, 8\].*got \(1, 2, 4\)",
    ),
    "state of integers": (
        lambda: run(state=torch.zeros(2, 8).int()),
        TypeError,
        "state .*floating point.*torch.int32",
    ),
    "state elsewhere": (
        lambda: run(state=torch.zeros(2, 8, device="meta")),
        ValueError,
        "state is on meta, x on cpu",
    ),
    "x elsewhere": (
        lambda: run(X.to("meta"), STATE.to("meta")),
        ValueError,
        "x is on meta, .*core on cpu",
    ),
    "reset of integers": (
        lambda: run(reset=torch.zeros(5, 2).long()),
        TypeError,
        "reset must be a bool tensor; got torch.int64",
    ),
    "reset a bool": (lambda: run(reset=True), TypeError, "reset must be a bool tensor.*got"),
    "reset of another shape": (
        lambda: run(reset=torch.zeros(2, 5).bool()),
        ValueError,
        r"reset must be \[5, 2\]; got \(2, 5\)",
    ),
    "final 1": (lambda: run(final=1), TypeError, "final must be a bool.*got 1"),
    "final of floats": (
        lambda: run(final=torch.ones(2)),
        TypeError,
        "final must be a bool.*got",
    ),
    "final of another batch": (
        lambda: run(final=torch.ones(3).bool()),
        ValueError,
        r"final must be .*\[2\]; got \(3,\)",
    ),
    "t0 a float": (lambda: run(t0=1.5), TypeError, "t0 must be an int .*got 1.5"),
    "t0 of another batch": (
        lambda: run(t0=torch.zeros(3).long()),
        ValueError,
        r"t0 must be .*\[2\].*got \(3,\)",
    ),
    # backward
    "loss a vector": (
        lambda: backward(**loss_of(loss=torch.zeros(3, requires_grad=True))),
        ValueError,
        r"loss must be a scalar; got shape \(3,\)",
    ),
    "unit 0": (lambda: backward(**loss_of(unit=0.0)), ValueError, "unit must be positive.*got 0.0"),
    "unit nan": (lambda: backward(**loss_of(unit=float("nan"))), ValueError, "unit .*got nan"),
    "unit inf": (lambda: backward(**loss_of(unit=float("inf"))), ValueError, "unit .*got inf"),
}


@pytest.mark.parametrize("name", CASES)
def test_bad_input(name, path):
    attempt, error, words = CASES[name]
    with pytest.raises(error, match=words) as raised:
        attempt()
    assert "\n" not in str(raised.value), "one line"


def test_a_refused_backward_leaves_the_gradients_and_the_graph():
    core = LSTM(3, 4)
    output, _, cuts = run(core=core)
    with pytest.raises(ValueError):
        backward(output.sum(), cuts, unit=-1.0)
    assert all(parameter.grad is None for parameter in core.parameters())
    backward(output.sum(), cuts)


def test_a_core_without_parameters_says_what_to_write():
    core = Counter()
    del core.increment
    with pytest.raises(NotImplementedError, match="initial_state"):
        core.initial_state(2)


def test_a_truncation_longer_than_the_sequence_is_allowed():
    """The last chunk may be short: a sequence of 5 steps is one chunk of 8."""
    _, _, (cut,) = Truncated(CORE, 8, ZeroGradient())(X, STATE)
    assert cut.end.shape == (1, 2, 8)


def test_from_torch_runs_the_same_checks():
    core = FromTorch(nn.GRU(3, 4))
    with pytest.raises(ValueError, match=r"state must be \[2, 4\].*got \(2, 8\)"):
        run(core=core)
