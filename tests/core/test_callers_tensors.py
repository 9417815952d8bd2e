"""What a caller does with tensors that are his: in place, of another dtype, in threads, at a fork."""

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from strategies import Fitting, Problem, assert_close, gradients, own_loss

from dnirnn import (
    GRU,
    LSTM,
    RNN,
    Deep,
    Skip,
    SyntheticGradient,
    Truncated,
    WeightDrop,
    backward,
    ops,
)
from dnirnn.fused_layers import FusedLayers

PROBLEM = Problem(steps=5, batch=3, truncation=2, input_size=2, hidden_size=3, seed=0)


def test_editing_the_returned_state_or_final_changes_nothing(build):
    """Between forward and backward: ``state[done] = 0`` is a habit."""
    core = build(2, 3, 0)
    case, estimator = PROBLEM.case(core), Fitting((4,), 0.5, 0.5, 1).estimator(core)
    updates = []
    for edited in (False, True):
        both = torch.nn.ModuleList([core, estimator])
        both.zero_grad()
        final = torch.tensor([True, False, True])
        output, state, cuts = Truncated(core, 2, estimator)(case.x, case.state, 0, final)
        loss = own_loss(output, case.y)
        if edited:
            state.fill_(7.0)
            final.fill_(False)
        error = backward(loss, cuts)["estimator_error"]
        updates.append([error, *gradients(both)])
    assert_close(updates[1], updates[0])


def test_a_state_of_another_dtype_is_refused_by_every_core(build):
    core = build(2, 3, 0)
    case = PROBLEM.case(core)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        truncated = Truncated(core, 2, SyntheticGradient(core.state_size).double())
        with pytest.raises(TypeError, match=rf"state must be torch\.float64.*got {dtype}"):
            truncated(case.x, case.state.to(dtype), 0)


@pytest.mark.skipif(not ops.built, reason="the extension is not built here")
@pytest.mark.parametrize("make", [
    lambda: WeightDrop(LSTM(2, 3), 0.4),
    lambda: Deep([LSTM(2, 3), LSTM(3, 3)], dropout=0.3, residual=True),
    lambda: WeightDrop(Deep([LSTM(2, 3), WeightDrop(LSTM(5, 2), 0.2)], skip=True), 0.3),
    lambda: GRU(2, 3, 2),
    lambda: Deep([RNN(2, 3), WeightDrop(GRU(3, 2), 0.2)]),
])  # fmt: skip
def test_lambda_targets_of_what_is_made_of_cores_stay_on_their_fast_path(make, monkeypatch):
    calls = []
    fused = ops.tbptt_vjp
    monkeypatch.setattr(ops, "tbptt_vjp", lambda *a: calls.append(a) or fused(*a))
    core = make().double()
    truncated = Truncated(core, 2, SyntheticGradient(core.state_size, trace_decay=0.5).double())
    output, _, cuts = truncated(torch.randn(5, 3, 2).double(), core.initial_state(3))
    backward(output.square().sum(), cuts, reduction="sum")
    assert len(calls) == sum(isinstance(part, FusedLayers) for part in core.modules())


def test_threads_charge_and_record_for_themselves():
    core = Skip(LSTM(2, 3), cost=0.1)
    truncated = Truncated(core, 2, SyntheticGradient(core.state_size))

    def run(batch: int) -> tuple[float, int]:
        x = torch.zeros(4, batch, 2)
        with core.recording() as updates:
            _, _, (cut,) = truncated(x, core.initial_state(batch))
        assert all(len(u) == batch for u in updates)
        return float(cut.auxiliary_loss), len(updates)

    alone = {batch: run(batch) for batch in range(1, 5)}
    with ThreadPoolExecutor(4) as threads:
        batches = [1 + i % 4 for i in range(80)]
        assert list(threads.map(run, batches)) == [alone[batch] for batch in batches]


@pytest.mark.skipif(not ops.built or not hasattr(os, "fork"), reason="no operator, or no fork")
@pytest.mark.parametrize("forking_thread_has_run_it", [False, True])
def test_a_child_forked_while_a_thread_is_inside_the_operator_goes_on(forking_thread_has_run_it):
    core = LSTM(64, 64)
    x, state = torch.randn(16, 8, 64), core.initial_state(8)
    done = threading.Event()

    def work():
        while not done.is_set():
            core(x, state)[0].sum().backward()

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    if forking_thread_has_run_it:
        core(x, state)
    thread = threading.Thread(target=work)
    thread.start()
    children = []
    try:
        for _ in range(60):
            child = os.fork()
            if child == 0:
                torch.ops.dnirnn.tbptt(x, state, None, core.weights, [], 16, 0.0, None)
                os._exit(0)
            children.append(child)
            time.sleep(0.001)
    finally:
        done.set()
        thread.join()
        torch.set_num_threads(threads)
    # A child that hangs never ends: they are waited for together, then killed.
    running, deadline = set(children), time.monotonic() + 60
    while running and time.monotonic() < deadline:
        running -= {child for child in running if os.waitpid(child, os.WNOHANG)[0]}
        time.sleep(0.01)
    for child in running:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert not running


# In a process of its own: in this one the operator may have had a team before.
FORKED_AFTER_TORCH_S_OWN_POOL = """
import os, signal, torch
from dnirnn import LSTM
core = LSTM(64, 64)
x, state = torch.randn(16, 8, 64), core.initial_state(8)
torch.set_num_threads(2)
torch.randn(1_000_000).exp()
child = os.fork()
if child == 0:
    signal.alarm(30)
    core(x, state)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not ops.built or not hasattr(os, "fork"), reason="no operator, or no fork")
def test_a_child_forked_before_the_first_team_but_after_torch_s_goes_on():
    subprocess.run([sys.executable, "-c", FORKED_AFTER_TORCH_S_OWN_POOL], check=True)
