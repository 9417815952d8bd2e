"""Overlapping windows, TBPTT(k1, k2): what is carried back how far, where the next call starts, resuming."""

import pytest
import torch
from command_line import refused
from hypothesis import given
from hypothesis import strategies as st
from small_runs import Recall, assert_equal_runs, make_model, make_trainer, small_stream, text
from strategies import Clock, assert_close, seeds

from dnirnn import (
    LSTM,
    BPLambda,
    NormLSTM,
    PhasedLSTM,
    Skip,
    SyntheticGradient,
    TrueGradient,
    Truncated,
    ZeroGradient,
    backward,
)
from dnirnn.commands.cli import main
from dnirnn.data import TextStream
from dnirnn.fidelity import fidelity
from dnirnn.horizon import horizon, truncation_bias
from dnirnn.model import SequenceModel
from dnirnn.training.checkpoint import checkpoints, load_tree
from dnirnn.training.trainer import Interrupted

CORES = {
    "lstm": lambda: LSTM(2, 3),
    "two layers": lambda: LSTM(2, 3, 2),
    "norm-lstm": lambda: NormLSTM(2, 3),
    "clock": lambda: Clock(2, 3),
    "skip": lambda: Skip(LSTM(2, 3), cost=0.1),
}


def made(kind, seed):
    torch.manual_seed(seed)
    return CORES[kind]().double()


def gradients(core):
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in core.parameters()]
    core.zero_grad()
    return found


@given(
    kind=st.sampled_from([name for name in CORES if name != "skip"]),
    truncation=st.integers(1, 4),
    overlap=st.integers(0, 9),
    calls=st.integers(1, 5),
    estimator=st.sampled_from(["none", "linear", "discount"]),
    seed=seeds,
)
def test_the_losses_of_the_new_steps_go_back_to_the_windows_start(
    kind, truncation, overlap, calls, estimator, seed
):
    """Call after call, the parameters changed between them; and each window starts where it should."""
    core = made(kind, seed)
    g = ZeroGradient()
    if estimator != "none":
        discount = 0.5 if estimator == "linear" else 0.25
        g = SyntheticGradient(core.state_size, scale=0.5, discount=discount).double()
        torch.nn.init.normal_(g.layers[-1].weight)
    truncated = Truncated(core, truncation, g, overlap=overlap)
    x = torch.randn(calls * truncation, 2, 2, dtype=torch.float64)
    state, start = core.initial_state(2), 0
    expected_state = state.clone()
    for call in range(calls):
        new, end = call * truncation, (call + 1) * truncation
        assert start == max(0, new - overlap)
        output, state, interfaces = truncated(x[start:end], state, start, overlap=new - start)
        assert len(output) == truncation and len(interfaces[0].end) == 1
        end_state = interfaces[0].end[-1].detach()
        synthetic = 0.5 * g(end_state).detach() if estimator != "none" else torch.zeros_like(end_state)
        backward(output.square().sum(), interfaces, reduction="sum")
        found = gradients(core)

        value, boundary, outputs = expected_state, None, []
        states = [value]
        for i in range(start, end):
            if i == new:
                value = boundary = value + torch.zeros_like(value).requires_grad_()
            one, value = core.step(x[i], value, i)
            outputs.append(one)
            states.append(value.detach())
        loss = torch.stack(outputs[new - start :]).square().sum()
        core.zero_grad()
        if estimator != "none":
            boot = synthetic * (g.discount / g.scale)
            target = torch.autograd.grad([loss, value], boundary, [None, boot], retain_graph=True)[0]
            assert_close(interfaces[0].probe.grad[0], target)
            assert_close(interfaces[0].start[0], states[new - start])
        torch.autograd.backward([loss, value], [None, synthetic])
        assert_close(found, gradients(core))
        assert_close(output.detach(), torch.stack(outputs[new - start :]).detach())
        following = max(0, end - overlap)
        assert truncated.next_overlap(end - start) == end - following
        assert_close(state, states[following - start])
        expected_state, start = state.clone(), following
        with torch.no_grad():
            for parameter in core.parameters():
                parameter += 0.01


@given(truncation=st.integers(1, 4), calls=st.integers(1, 4), seed=seeds)
def test_carried_back_through_everything_it_is_full_backpropagation_of_the_new_losses(
    truncation, calls, seed
):
    """And at fixed parameters the calls' gradients add up to that of all losses."""
    core = made("lstm", seed)
    x = torch.randn(calls * truncation, 2, 2, dtype=torch.float64)
    truncated = Truncated(core, truncation, ZeroGradient(), overlap=len(x))
    state, sums = core.initial_state(2), None
    for call in range(calls):
        end = (call + 1) * truncation
        output, state, interfaces = truncated(x[:end], state, overlap=call * truncation)
        backward(output.square().sum(), interfaces, reduction="sum")
        found = gradients(core)
        whole, _ = core(x[:end], core.initial_state(2))
        whole[call * truncation :].square().sum().backward()
        assert_close(found, gradients(core))
        sums = found if sums is None else [a + b for a, b in zip(sums, found)]
    core(x, core.initial_state(2))[0].square().sum().backward()
    assert_close(sums, gradients(core))


@given(kind=st.sampled_from(sorted(CORES)), truncation=st.integers(1, 4), seed=seeds)
def test_no_overlap_is_plain_truncation_to_the_bit(kind, truncation, seed):
    core = made(kind, seed)
    x = torch.randn(truncation, 2, 2, dtype=torch.float64)
    found = []
    for options in ({}, {"overlap": 0}):
        g = SyntheticGradient(core.state_size).double()
        torch.nn.init.ones_(g.layers[-1].weight)
        truncated = Truncated(core, truncation, g, **options)
        output, state, interfaces = truncated(x, core.initial_state(2))
        backward(output.square().sum(), interfaces, reduction="sum")
        found.append([output, state, *gradients(core)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_a_reset_in_the_overlap_lets_nothing_through_and_starts_the_time_anew():
    core = made("clock", 0)
    x = torch.randn(6, 2, 2, dtype=torch.float64)
    reset = torch.zeros(6, 2, dtype=torch.bool)
    reset[2, 0] = True
    truncated = Truncated(core, 2, ZeroGradient(), overlap=4)
    start = core.initial_state(2).requires_grad_()
    output, state, interfaces = truncated(x, start, 5, reset=reset, overlap=4)
    expected, _ = core(x, start.detach(), 5, reset)
    assert_close(output.detach(), expected[4:].detach())
    backward(output.square().sum(), interfaces, reduction="sum")
    assert not start.grad[0].any() and start.grad[1].any()
    _, after = core(x[:2], start.detach(), 5, reset[:2])
    assert_close(state, after)


def test_what_the_overlap_charges_was_charged_before():
    core = made("skip", 1)
    x = torch.randn(5, 2, 2, dtype=torch.float64)
    truncated = Truncated(core, 2, ZeroGradient(), overlap=3)
    _, _, (cut,) = truncated(x, core.initial_state(2), overlap=3)
    _, after = core(x[:3], core.initial_state(2))
    _, _, (alone,) = Truncated(core, 2, ZeroGradient())(x[3:], after.detach())
    assert_close(cut.auxiliary_loss, alone.auxiliary_loss)


def test_without_gradients_the_state_is_the_last_one():
    core = made("lstm", 0)
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    with torch.no_grad():
        _, state, _ = Truncated(core, 3, ZeroGradient(), overlap=2)(x, core.initial_state(2))
    assert_close(state, core(x, core.initial_state(2))[1])


@pytest.mark.parametrize("estimator", ["none", "dni"])
def test_it_is_measured_with_other_cuts(estimator):
    model, plain = overlapping(estimator).eval(), make_model(estimator).eval()
    batch = TextStream(text(), 4, 0).next(12)
    found = [(horizon(one, batch, 4), truncation_bias(one, batch, [3])) for one in (model, plain)]
    assert found[0] == found[1]
    assert fidelity(model, [batch]) == fidelity(plain, [batch])
    assert model.truncated.overlap == 4


def test_what_does_not_fit_is_refused():
    core = LSTM(1, 2)
    x, state = torch.zeros(4, 1, 1), core.initial_state(1)
    with pytest.raises(ValueError, match="overlap must be an int of at least 0; got -1"):
        Truncated(core, 1, ZeroGradient(), overlap=-1)
    with pytest.raises(ValueError, match="overlap must be 0 with open_cuts; got 2 and 0.5"):
        Truncated(core, 1, ZeroGradient(), 0.5, 2)
    for other in (TrueGradient(), BPLambda(1, 1)):
        with pytest.raises(ValueError, match="overlap must be 0 with"):
            Truncated(Clock(1, 1) if other.__class__ is BPLambda else core, 1, other, overlap=2)
    truncated = Truncated(core, 2, ZeroGradient(), overlap=2)
    with pytest.raises(ValueError, match="one chunk of 2 steps with an overlap; got 3"):
        truncated(x, state, overlap=1)
    for wrong in (3, -1):
        with pytest.raises(ValueError, match=f"from 0 to the 2 of this Truncated; got {wrong}"):
            truncated(x, state, overlap=wrong)
    with pytest.raises(TypeError, match="overlap must be an int; got 1.0"):
        truncated(x, state, overlap=1.0)
    with pytest.raises(ValueError, match="overlap must leave a step of x's 2; got 2"):
        truncated(x[:2], state, overlap=2)


def overlapping(estimator, overlap=4, dropout=0.0) -> SequenceModel:
    model = make_model(estimator, dropout=dropout)
    old = model.truncated
    model.truncated = Truncated(old.core, old.truncation, old.estimator, overlap=overlap)
    return model


@pytest.mark.parametrize("estimator", ["none", "dni"])
@pytest.mark.parametrize("stream", [None, Recall])
def test_a_trainer_gives_the_steps_again_and_goes_on_to_the_bit(tmp_path, estimator, stream):
    def trainer(folder):
        made = stream and stream()
        return make_trainer(
            folder, model=overlapping(estimator, dropout=0.2), stream=made, updates=40,
            evaluate_every=7,
        )  # fmt: skip

    whole = trainer(tmp_path / "whole")
    whole.run()
    stopped = trainer(tmp_path / "parts")
    with pytest.raises(Interrupted):
        stopped.run(lambda row: setattr(stopped, "interrupted", True))
    (*_, last) = checkpoints(tmp_path / "parts" / "checkpoints")
    assert load_tree(last)["before"].shape[1:] == (4,)
    trainer(tmp_path / "parts").run()
    assert_equal_runs(tmp_path / "parts", tmp_path / "whole")


@pytest.mark.parametrize("overlap", [1, 3, 4, 100])
def test_a_trainers_updates_are_those_of_a_loop(tmp_path, overlap):
    trainer = make_trainer(tmp_path, model=overlapping("none", overlap), updates=5, evaluate=False)
    trainer.run()
    model, stream = overlapping("none", overlap), small_stream()
    x = torch.cat([stream.next(3).x for _ in range(6)])
    adam = torch.optim.Adam(model.core_parameters(), 0.01, fused=True)
    states = [model.initial_state(4)]
    for i in range(5):
        new, end = 3 * i, 3 * i + 3
        start = max(0, new - overlap)
        outputs, state = [], states[start]
        for t in range(start, end):
            output, state = model.truncated.core.step(model.encoder(x[t]), state, t)
            outputs.append(output)
            if t + 1 == max(0, end - overlap):
                states += [None] * (t + 2 - len(states))
                states[t + 1] = state.detach()
        nats = model.loss(model.readout(torch.stack(outputs[new - start :])), x[new + 1 : end + 1])
        adam.zero_grad()
        (nats.sum() / 12).backward()
        torch.nn.utils.clip_grad_norm_(model.core_parameters(), 1.0)
        adam.step()
    for one, other in zip(model.core_parameters(), trainer.model.core_parameters()):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert trainer.t == max(0, 15 - overlap)


def test_an_option_of_the_command_line(tmp_path, capsys):
    made = "train copy --bits 1 --hidden 4 --batch 4 --truncation 2 --max-length 3 --quiet".split()
    made += ["--updates", "9", "--overlap", "3", "--out", str(tmp_path / "run")]
    refused(capsys, made, "--update-steps must be --truncation 2; got sequence")
    one = [*made, "--update-steps", "2"]
    assert main([*one, "--context", "input", "target"]) == 0
    refused(capsys, [*one, "--estimator", "true"], "--overlap goes with")
    refused(capsys, [*one, "--open-cuts", "0.5"], "--overlap must be 0 with --open-cuts; got 3")


@given(overlap=st.integers(1, 5), calls=st.integers(1, 4), seed=seeds)
def test_times_of_events_go_with_the_steps_that_are_run_again(overlap, calls, seed):
    torch.manual_seed(seed)
    core = PhasedLSTM(2, 3).double()
    truncated = Truncated(core, 2, ZeroGradient(), overlap=overlap)
    times = torch.rand(2 * calls, 2, dtype=torch.float64).cumsum(0)
    x = torch.randn(2 * calls, 2, 2, dtype=torch.float64)
    expected, _ = core(x, core.initial_state(2), times)
    state, again = core.initial_state(2), 0
    for end in range(2, 2 * calls + 1, 2):
        start = end - 2 - again
        output, state, _ = truncated(x[start:end], state, times[start:end], overlap=again)
        assert_close(output, expected[end - 2 : end])
        again = truncated.next_overlap(end - start)
