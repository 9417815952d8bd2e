"""The fused operator: what is asked for of it, its place in the graph, and bad input."""

import random
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from op_calls import (
    CELLS,
    FLOOR,
    TOLERANCE,
    by_loop,
    by_op,
    calls,
    make_call,
    needs_op,
)
from strategies import assert_close

from dnirnn import LSTM, ops

pytestmark = [
    needs_op,
    pytest.mark.usefixtures("device", "supported"),
]

# What is asked for, and what isn't.


@pytest.mark.parametrize("cell", CELLS)
@given(**calls, chosen=st.integers(0, 2**16), others=st.booleans())
def test_any_part_of_the_gradients_alone(chosen, others, cell, **sizes):
    """Whatever subset of the inputs is asked for, and whether the others require a gradient."""
    call = make_call(**sizes, cell=cell)
    *_, expected = by_op(call)
    generator = torch.Generator("cpu").manual_seed(chosen)
    bits = torch.randint(0, 2, (len(call.wanted),), generator=generator, device="cpu")
    bits[chosen % len(bits)] = 1
    asked = [tensor for tensor, bit in zip(call.wanted, bits) if bit]
    for tensor, bit in zip(call.wanted, bits.tolist()):
        tensor.requires_grad_(bool(bit) or others)
    output, sent, _ = ops.tbptt(*call.arguments)
    found = torch.autograd.grad([output, sent], asked, [call.by_output, call.by_sent])
    assert_close(found, [e for e, bit in zip(expected, bits) if bit])


@pytest.mark.parametrize("cell", CELLS)
@given(**calls)
def test_what_nobody_asks_for_is_not_computed(cell, **sizes):
    call = make_call(**sizes, cell=cell)
    rows = 0 if call.probe is None else len(call.probe)
    with torch.no_grad():
        _, _, _, *histories = torch.ops.dnirnn.tbptt(*call.arguments)
        given = [call.by_output, call.by_sent, call.x, *histories, call.weights, call.reset]
        given += [call.truncation, rows]
        *_, of_probe, of_weights = torch.ops.dnirnn.tbptt_backward(*given, True, True, True)
        found = torch.ops.dnirnn.tbptt_backward(*given, False, False, False)
    assert len(of_weights) == len(call.weights)
    assert [found[0].numel(), found[1].numel(), found[3]] == [0, 0, []]
    assert torch.equal(found[2], of_probe)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@given(**{**calls, "probe": st.just("chunks")}, chunk=st.integers(0, 10))
def test_a_chunk_alone_pulls_back_what_it_does_beside_the_others(dtype, chunk, cell, **sizes):
    call = make_call(**sizes, cell=cell, dtype=dtype)
    given = call.x, call.state, call.probe, call.weights, call.truncation, call.reset
    output, sent, vjp = ops.tbptt_vjp(*given)
    expected = ops.tbptt(*call.arguments)
    assert torch.equal(output, expected[0]) and torch.equal(sent, expected[1])
    n = chunk % len(sent)
    seed = torch.zeros_like(sent)
    seed[n] = call.by_sent[n]
    (back,) = torch.autograd.grad(sent, call.probe, seed)
    assert_close(vjp(n, call.by_sent[n])[0], back[n], TOLERANCE[dtype], FLOOR)


@pytest.mark.parametrize("name", ["output", "sent"])
def test_one_output_alone(name):
    call = make_call(7, 3, 4, 9, 2, truncation=3, probe="chunks", reset=True)
    zeroed = call._replace(
        by_sent=torch.zeros_like(call.by_sent) if name == "output" else call.by_sent,
        by_output=torch.zeros_like(call.by_output) if name == "sent" else call.by_output,
    )
    output, sent, _ = ops.tbptt(*call.arguments)
    one, gradient = (output, call.by_output) if name == "output" else (sent, call.by_sent)
    found = torch.autograd.grad(one, call.wanted, gradient)
    assert_close(found, by_loop(zeroed)[-1])


def test_without_grad_nothing_is_attached_and_values_are_the_same():
    call = make_call(7, 3, 4, 9, truncation=3, probe="chunks", estimator=(4,))
    expected = ops.tbptt(*call.arguments)
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            found = ops.tbptt(*call.arguments)
        assert not any(tensor.requires_grad for tensor in found)
        assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_strides_do_not_matter():
    call = make_call(7, 3, 4, 9, truncation=3, probe="chunks", reset=True)

    def strided(tensor):
        if tensor is None:
            return None
        return tensor.detach().transpose(0, -1).contiguous().transpose(0, -1)

    expected = by_op(call)
    other = call._replace(
        x=strided(call.x).requires_grad_(),
        state=strided(call.state).requires_grad_(),
        probe=strided(call.probe).requires_grad_(),
        reset=strided(call.reset),
        weights=[strided(w).requires_grad_() for w in call.weights],
        by_output=call.by_output[:1, :1, :1].expand_as(call.by_output),
    )
    expected = by_op(call._replace(by_output=other.by_output.contiguous()))
    found = by_op(other)
    assert all(torch.equal(a, b) for a, b in zip(found[:2], expected[:2]))
    assert all(torch.equal(a, b) for a, b in zip(found[-1], expected[-1]))


def test_no_output_aliases_another_or_an_input():
    """Writing into one leaves the others, the inputs and the backward pass as they were."""
    call = make_call(4, 2, 3, 5, truncation=2, probe="chunks", estimator=())
    expected = by_op(call)
    tensors = [t for t in (*call.wanted, *call.estimator)]
    output, sent, synthetic = ops.tbptt(*call.arguments)
    kept = [t.detach().clone() for t in (sent, synthetic, *tensors)]
    (found,) = torch.autograd.grad(output.sum(), [call.x], retain_graph=True)
    output.detach().zero_()
    assert all(torch.equal(a, b) for a, b in zip((sent, synthetic, *tensors), kept))
    sent.detach().zero_(), synthetic.zero_()
    (again,) = torch.autograd.grad(output.sum(), [call.x], retain_graph=True)
    assert torch.equal(found, again)
    found = torch.autograd.grad([output, sent], call.wanted, [call.by_output, call.by_sent])
    assert all(torch.equal(a, b) for a, b in zip(found, expected[-1]))


# The graph.


def test_a_second_backward_is_right_or_refused():
    call = make_call(7, 3, 4, 9, 2, truncation=3, probe="chunks", reset=True)
    *_, expected = by_op(call)
    outputs = ops.tbptt(*call.arguments)[:2]
    cotangents = [call.by_output, call.by_sent]
    first = torch.autograd.grad(outputs, call.wanted, cotangents, retain_graph=True)
    second = torch.autograd.grad(outputs, call.wanted, cotangents)
    for found in (first, second):
        assert all(torch.equal(a, b) for a, b in zip(found, expected))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(outputs, call.wanted, cotangents)


def test_a_second_derivative_is_refused():
    call = make_call(5, 2, 3, 4)
    output, _, _ = ops.tbptt(*call.arguments)
    with pytest.raises(RuntimeError, match="no second derivative"):
        (grad,) = torch.autograd.grad(output.square().sum(), [call.x], create_graph=True)
        grad.sum().backward()


def test_forwards_before_backwards_keep_their_own_histories():
    """Calls of several sizes, then their backward passes in another order."""
    calls = [
        make_call(7, 3, 4, 9, truncation=3, seed=1),
        make_call(5, 2, 6, 17, 2, truncation=2, seed=2),
        make_call(7, 3, 4, 9, truncation=3, seed=3),
    ]
    expected = [by_op(call)[-1] for call in calls]
    outputs = [ops.tbptt(*call.arguments)[:2] for call in calls]
    for i in (1, 2, 0):
        call = calls[i]
        found = torch.autograd.grad(outputs[i], call.wanted, [call.by_output, call.by_sent])
        assert all(torch.equal(a, b) for a, b in zip(found, expected[i]))


def test_memory_that_is_used_again_is_nobody_elses_and_does_not_grow():
    """Outputs keep what they say while others, small and large, come and go."""
    core, drawn = LSTM(8, 64), random.Random(0)

    def come_and_go():
        held = []
        for steps in [*(drawn.randint(8, 120) for _ in range(40)), 1500, 40, 1500]:
            output, _ = core(torch.randn(steps, 32, 8), core.initial_state(32))
            held.append((output.detach(), output.detach().clone()))
            if len(held) > 6:
                held.pop(drawn.randrange(len(held)))
        assert all(torch.equal(output, kept) for output, kept in held)

    come_and_go()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    come_and_go(), come_and_go()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024, f"{grown} KiB more at the peak"


def test_a_weight_changed_before_the_backward_is_refused():
    call = make_call(5, 2, 3, 4)
    output, _, _ = ops.tbptt(*call.arguments)
    with torch.no_grad():
        call.weights[1].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_runs_in_threads_of_python():
    """Work buffers are a thread's own."""
    made = [make_call(9, 8, 16, 40, truncation=4, probe="chunks", seed=i) for i in range(6)]
    expected = [by_op(call) for call in made]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(by_op, made))
    for (*values, gradients), (*others, wanted) in zip(found, expected):
        assert all(torch.equal(a, b) for a, b in zip(values, others))
        assert all(torch.equal(a, b) for a, b in zip(gradients, wanted))


# Bad input: one line that names the argument, its value and what was expected.


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (dict(x=torch.randn(4, 3).double()), ValueError, "x must be .*got .*4, 3"),
        (dict(x=torch.randn(0, 2, 3).double()), ValueError, "x must be .*at least 1.*0, 2, 3"),
        (
            dict(x=torch.randn(4, 0, 3).double(), state=torch.zeros(0, 8).double()),
            ValueError,
            "x must be .*B at least 1.*got .*4, 0, 3",
        ),
        (dict(x=torch.zeros(4, 2, 4).double()), ValueError, r"weights\[0\] .*16, 4.*got .*16, 3"),
        (dict(x=torch.randn(4, 2, 3)), TypeError, r"weights\[0\] is .*Double.*x is .*Float"),
        (dict(state=torch.randn(2, 7).double()), ValueError, "state must be .*2, 8.*got .*2, 7"),
        (dict(state=torch.randn(2, 8)), TypeError, "state must be .*Double.*got .*Float"),
        (dict(probe=torch.randn(3, 2, 8).double()), ValueError, "probe must be .*got .*3, 2, 8"),
        (dict(probe=torch.randn(2, 2, 8)), TypeError, "probe must be .*Double.*got .*Float"),
        (dict(weights=[]), ValueError, "weights must be .*got 0"),
        (dict(weights=[torch.zeros(16, 3)] * 3), ValueError, "weights must be .*got 3"),
        (
            dict(weights=[torch.zeros(8, 3), torch.zeros(8, 4), torch.zeros(8), torch.zeros(8)]),
            ValueError,
            r"weights\[1\] .*must be \[[G4] H, H\].*got .*8, 4",
        ),
        (dict(truncation=0), ValueError, "truncation must be at least 1.*got 0"),
        (dict(truncation=-2), ValueError, "truncation must be at least 1.*got -2"),
        (dict(reset=torch.zeros(4, 3).bool()), ValueError, "reset must be .*4, 2.*got .*4, 3"),
        (dict(reset=torch.zeros(4, 2)), TypeError, "reset must be .*bool.*got .*Float"),
        (dict(estimator=[torch.zeros(8, 8).double()]), ValueError, "estimator .*got 1"),
        (
            dict(estimator=[torch.zeros(7, 8).double(), torch.zeros(7).double()]),
            ValueError,
            r"estimator\[0\] must be .*8.*got .*7, 8",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input(change, error, words):
    call = make_call(4, 2, 3, 4, truncation=2)
    with pytest.raises(error, match=words):
        ops.tbptt(*call._replace(**change).arguments)


@pytest.mark.parametrize(
    ("index", "wrong", "words"),
    [
        (0, torch.zeros(4, 2, 5).double(), "grad_output must be .*4, 2, 4.*got .*4, 2, 5"),
        (1, torch.zeros(1, 2, 8).double(), "grad_sent must be .*2, 2, 8.*got .*1, 2, 8"),
        (3, torch.zeros(1, 2, 2, 1, 4).double(), "h must be .*got .*1, 2, 2, 1, 4"),
        (4, torch.zeros(1, 2, 1, 2, 4).double(), "c must be .*got .*1, 2, 1, 2, 4"),
        (5, torch.zeros(1, 2, 2, 2, 16).double(), "gates must be .*got .*1, 2, 2, 2, 16"),
        (6, torch.zeros(1, 4, 2, 4).double(), "between must be .*got .*1, 4, 2, 4"),
        (8, torch.zeros(4, 1).bool(), "reset must be .*4, 2.*got .*4, 1"),
        (10, 1, "probe_rows must be 0, 2 chunks or 4 steps; got 1"),
    ],
    ids=["grad_output", "grad_sent", "h", "c", "gates", "between", "reset", "probe_rows"],
)
def test_bad_input_of_the_backward_operator(index, wrong, words, device):
    """Called directly: nothing is read or written where nothing is."""
    if device != "cpu":
        pytest.skip("the CPU's histories")
    call = make_call(4, 2, 3, 4, truncation=2)
    with torch.no_grad():
        _, _, _, *histories = torch.ops.dnirnn.tbptt(*call.arguments)
        given = [call.by_output, call.by_sent, call.x, *histories, call.weights, None, 2, 2]
        given += [True, True, True]
        torch.ops.dnirnn.tbptt_backward(*given)
        with pytest.raises(ValueError, match=words):
            torch.ops.dnirnn.tbptt_backward(*given[:index], wrong, *given[index + 1 :])
