"""Calls of the fused operator, drawn or given, and the loop that they must equal."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import strategies as st
from strategies import assert_close, seeds
from torch import Tensor

from dnirnn import GRU, LSTM, RNN, SyntheticGradient, ops

needs_op = pytest.mark.skipif(
    not ops.built, reason="the fused operators are not built here (dnirnn.ops.built is False)"
)

CELLS = {"LSTM": LSTM, "GRU": GRU, "RNN_TANH": RNN}

# The state's gradients are compared relative to their norm, however small that is.
FLOOR = 1e-2
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Where a device has it.
TOLERANCE_16 = TOLERANCE | {torch.float16: 5e-3}


class Call(NamedTuple):
    """The arguments of one call, and what its outputs' gradients are."""

    x: Tensor
    state: Tensor
    probe: Tensor | None
    weights: list[Tensor]
    estimator: list[Tensor]
    truncation: int
    scale: float
    reset: Tensor | None
    by_output: Tensor
    by_sent: Tensor

    @property
    def cell(self) -> str:
        return {4: "LSTM", 3: "GRU", 1: "RNN_TANH"}[len(self.weights[1]) // self.weights[1].shape[1]]

    @property
    def arguments(self):
        return self[:8]

    @property
    def wanted(self) -> list[Tensor]:
        probe = [] if self.probe is None else [self.probe]
        return [self.x, self.state, *probe, *self.weights]


def make_call(
    steps, batch, inputs, hidden_size, layers=1, truncation=None, probe="none", reset=False,
    estimator=None, seed=0, dtype=torch.float64, cell="LSTM",
) -> Call:  # fmt: skip
    """Of an LSTM where the device has no such cell."""
    kind = CELLS[cell] if cell in ops.CELLS[torch.get_default_device().type] else LSTM
    torch.manual_seed(seed)
    truncation = steps if truncation is None else truncation
    chunks = -(-steps // truncation)
    held = torch.promote_types(dtype, torch.float32)
    core = kind(inputs, hidden_size, layers)
    weights = [w.detach().to(dtype) for w in core.weights]
    size = core.state_size
    rows = {"none": 0, "chunks": chunks, "steps": steps}[probe]
    layers_of_estimator = []
    if estimator is not None:
        for parameter in SyntheticGradient(size, estimator).parameters():
            layers_of_estimator.append(torch.randn(parameter.shape).to(held) / size**0.5)
    call = Call(
        torch.randn(steps, batch, inputs).to(dtype),
        torch.randn(batch, size).to(held),
        0.1 * torch.randn(rows, batch, size).to(held) if rows else None,
        weights,
        layers_of_estimator,
        truncation,
        0.3,
        torch.rand(steps, batch) < 0.2 if reset else None,
        torch.randn(steps, batch, hidden_size).to(dtype),
        torch.randn(chunks, batch, size).to(held),
    )
    for tensor in call.wanted:
        tensor.requires_grad_()
    return call


def by_loop(call: Call):
    """(output, sent, synthetic, gradients) of a step in torch, in float64, cut as the contract says."""
    steps, _, inputs = call.x.shape
    core = CELLS[call.cell](inputs, call.weights[1].shape[1], len(call.weights) // 4).double()
    core.load_state_dict(dict(zip(core.state_dict(), call.weights)))

    def step(x, state, t):
        if call.cell == "LSTM":
            return core.step(x, state, t)
        output, state = core.plain(x[None], state)
        return output[0], state

    tensors = call.wanted[: -len(call.weights)]
    x, state, *rest = tensors = [t.detach().double().requires_grad_() for t in tensors]
    probe = rest[0] if rest else None
    every_step = probe is not None and len(probe) == steps
    outputs, sent, running = [], [], state
    for t in range(steps):
        n, k = divmod(t, call.truncation)
        if k == 0 and t:
            running = running.detach()
        if probe is not None and (every_step or k == 0):
            running = running + probe[t if every_step else n]
        if call.reset is not None:
            running = torch.where(call.reset[t, :, None], 0, running)
        output, running = step(x[t], running, t)
        outputs.append(output)
        if k + 1 == call.truncation or t + 1 == steps:
            sent.append(running)
    output, sent = torch.stack(outputs), torch.stack(sent)
    value = sent.detach()
    for i in range(0, len(call.estimator), 2):
        w, b = (p.double() for p in call.estimator[i : i + 2])
        value = (value.clamp(min=0) if i else value) @ w.T + b
    loss = (output * call.by_output).sum() + (sent * call.by_sent).sum()
    wanted = [*tensors, *core.parameters()]
    return output, sent, call.scale * value, torch.autograd.grad(loss, wanted)


def by_op(call: Call):
    output, sent, synthetic = ops.tbptt(*call.arguments)
    found = torch.autograd.grad([output, sent], call.wanted, [call.by_output, call.by_sent])
    return output, sent, synthetic, found


def assert_equals_the_loop(call: Call, floor: float = FLOOR):
    tolerance = TOLERANCE_16[call.x.dtype]
    output, sent, synthetic, found = by_op(call)
    expected_output, expected_sent, expected_synthetic, expected = by_loop(call)
    assert output.dtype == call.x.dtype and sent.dtype == call.state.dtype
    assert_close(output, expected_output, tolerance, floor)
    assert_close(sent, expected_sent, tolerance, floor)
    if call.estimator:
        assert not synthetic.requires_grad and synthetic.dtype == sent.dtype
        assert_close(synthetic, expected_synthetic, tolerance, floor)
    for tensor, one, other in zip(call.wanted, found, expected):
        assert one.dtype == tensor.dtype
        assert_close(one, other, tolerance, floor)


calls = dict(
    steps=st.integers(1, 11),
    batch=st.sampled_from([1, 2, 3, 7, 16, 17]),
    inputs=st.sampled_from([1, 3, 8, 16, 31]),
    hidden_size=st.sampled_from([1, 5, 8, 15, 16, 17, 24, 32, 33, 40]),
    layers=st.integers(1, 3),
    truncation=st.integers(1, 13),
    probe=st.sampled_from(["none", "chunks", "steps"]),
    reset=st.booleans(),
    estimator=st.sampled_from([None, (), (4,), (5, 3)]),
    seed=seeds,
)
LARGE = {
    "one chunk": dict(steps=8, batch=32, inputs=64, hidden_size=64),
    "many rows": dict(steps=10, batch=130, inputs=20, hidden_size=33, truncation=5),
    "more rows than a group": dict(steps=20, batch=300, inputs=3, hidden_size=17, truncation=5),
    "long": dict(steps=33, batch=9, inputs=5, hidden_size=48, truncation=20, reset=True),
    "many steps of few rows": dict(steps=150, batch=8, inputs=3, hidden_size=17, truncation=70),
    "long chunk of many rows": dict(steps=40, batch=64, inputs=9, hidden_size=20, layers=2),
    "K 1": dict(steps=16, batch=4, inputs=64, hidden_size=65, truncation=1, probe="chunks"),
    "wide": dict(steps=3, batch=1, inputs=7, hidden_size=130, truncation=2, probe="steps"),
    "wide input": dict(steps=3, batch=5, inputs=300, hidden_size=16, truncation=2),
    "deep": dict(steps=7, batch=33, inputs=40, hidden_size=24, layers=4, truncation=3, reset=True),
    "one step": dict(steps=1, batch=64, inputs=64, hidden_size=130, layers=2),
    "two steps of one row": dict(steps=2, batch=1, inputs=300, hidden_size=400),
}
