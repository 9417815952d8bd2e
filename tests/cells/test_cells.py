"""Cells against their papers' equations, and their masks: the same on every path."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    Leaky,
    Problem,
    any_reset,
    any_t0,
    assert_close,
    gradients,
    own_loss,
    problems,
)
from torch import nn

from dnirnn import (
    GRU,
    LSTM,
    RNN,
    Deep,
    FromTorch,
    Masks,
    NormLSTM,
    SyntheticGradient,
    Truncated,
    WeightDrop,
    backward,
    draw_masks,
)
from dnirnn.unroll import Chunks, advance

DROPS = dict(zoneout_h=0.3, zoneout_c=0.5, recurrent_dropout=0.4)

# Cores whose masks change from step to step, in training mode.
MASKED = {
    "norm-lstm": lambda i, h: NormLSTM(i, h, **DROPS),
    "norm-lstm-zoneout-h": lambda i, h: NormLSTM(i, h, layer_norm=False, zoneout_h=0.5),
    "weight-drop": lambda i, h: WeightDrop(LSTM(i, h, 2), 0.5),
    "deep": lambda i, h: Deep([RNN(i, h), LSTM(h, h), GRU(h, h)], dropout=0.5),
    "deep-same-mask": lambda i, h: Deep(
        [RNN(i, h), NormLSTM(h, h, **DROPS)], dropout=0.5, same_mask=True
    ),
}


@pytest.fixture(params=MASKED)
def build_masked(request):
    def build(problem):
        torch.manual_seed(problem.seed)
        return MASKED[request.param](problem.input_size, problem.hidden_size).double()

    return build


# GRU and RNN.


@given(problem=problems(), layers=st.integers(1, 3))
@pytest.mark.parametrize(("cell", "module"), [(GRU, nn.GRU), (RNN, nn.RNN)])
def test_gru_and_rnn_are_torchs(cell, module, problem, layers):
    core = cell(problem.input_size, problem.hidden_size, layers).double()
    oracle = module(problem.input_size, problem.hidden_size, layers).double()
    oracle.load_state_dict(core.module.state_dict())
    case = problem.case(core)
    h = case.state.view(problem.batch, layers, -1).transpose(0, 1).contiguous()
    expected, ended = oracle(case.x, h)
    output, state = core(case.x, case.state)
    assert_close(output, expected)
    assert_close(state, ended.transpose(0, 1).reshape(problem.batch, -1))


# NormLSTM.


def norm_lstm_by_hand(core, case, training):
    """One unit vector at a time, as the papers write it; returns outputs and the last state."""

    def normalised(a):
        return (a - a.mean()) / (a.var(unbiased=False) + 1e-5).sqrt()

    hidden, p, outputs, states = core.hidden_size, core.drops, [], []
    biases = (core.bias_ih_l0 + core.bias_hh_l0).view(4, hidden)
    for b in range(case.x.shape[1]):
        h, c = case.state[b, :hidden], case.state[b, hidden:]
        t, said = int(torch.as_tensor(case.t0).expand(len(case.state))[b]), []
        for k, x in enumerate(case.x[:, b]):
            if case.reset is not None and case.reset[k, b]:
                h, c, t = torch.zeros_like(h), torch.zeros_like(c), 0
            # The mask of step t is that of step t: of its own time, row and seed.
            rows = case.x.shape[1]
            kept = {name: masks(rows, t)[0, b].double() for name, masks in core.masks.items()}
            products = (core.weight_ih_l0 @ x + core.weight_hh_l0 @ h).view(4, hidden)
            if core.layer_norm:
                gains = core.gain_l0.view(4, hidden)
                products = torch.stack([g * normalised(a) for g, a in zip(gains, products)])
            i, f, g, o = products + biases
            i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
            if training and p["recurrent_dropout"]:
                g = g * kept["recurrent_dropout"] / (1 - p["recurrent_dropout"])
            new_c = f * c + i * g
            inner = new_c
            if core.layer_norm:
                inner = core.gain_c_l0 * normalised(new_c) + core.bias_c_l0
            new_h = o * inner.tanh()
            if training:
                keep_h = 1 - kept["zoneout_h"] if p["zoneout_h"] else 0
                keep_c = 1 - kept["zoneout_c"] if p["zoneout_c"] else 0
            else:
                keep_h, keep_c = p["zoneout_h"], p["zoneout_c"]
            h, c = keep_h * h + (1 - keep_h) * new_h, keep_c * c + (1 - keep_c) * new_c
            said.append(h)
            t += 1
        outputs.append(torch.stack(said))
        states.append(torch.cat([h, c]))
    return torch.stack(outputs, 1), torch.stack(states)


@given(
    problem=problems(t0=any_t0, reset=any_reset),
    layer_norm=st.booleans(),
    on=st.sets(st.sampled_from(sorted(DROPS))),
    training=st.booleans(),
)
def test_norm_lstm_is_the_papers_equations(problem, layer_norm, on, training):
    torch.manual_seed(problem.seed)
    drops = {name: DROPS[name] for name in on}
    core = NormLSTM(problem.input_size, problem.hidden_size, layer_norm=layer_norm, **drops)
    core = core.double().train(training)
    for name, parameter in core.named_parameters():
        if "weight" not in name:
            nn.init.normal_(parameter)
    draw_masks(core)
    case = problem.case(core)
    expected, ended = norm_lstm_by_hand(core, case, training)
    output, state = core(case.x, case.state, case.t0, case.reset)
    assert_close(output, expected)
    assert_close(state, ended)
    parameters = list(core.parameters())
    wanted = torch.autograd.grad((expected * case.y).sum() + ended.sum(), parameters)
    found = torch.autograd.grad((output * case.y).sum() + state.sum(), parameters)
    assert_close(found, wanted)


@given(problem=problems(reset=any_reset))
def test_norm_lstm_with_everything_off_is_lstm(problem):
    core = NormLSTM(problem.input_size, problem.hidden_size, layer_norm=False).double()
    lstm = LSTM(problem.input_size, problem.hidden_size).double()
    lstm.load_state_dict(core.state_dict())
    case = problem.case(core)
    for found, expected in zip(
        core(case.x, case.state, 0, case.reset), lstm(case.x, case.state, 0, case.reset)
    ):
        assert_close(found, expected)


def test_norm_lstm_starts_as_torchs_and_with_layer_norm_as_a_normalisation():
    torch.manual_seed(1)
    core = NormLSTM(3, 5, layer_norm=False, zoneout_h=0.5)
    torch.manual_seed(1)
    for found, expected in zip(core.parameters(), nn.LSTM(3, 5).parameters()):
        assert torch.equal(found, expected)
    core = NormLSTM(3, 5)
    biases = (core.bias_ih_l0 + core.bias_hh_l0).view(4, 5)
    assert (biases == torch.tensor([0, 1, 0, 0])[:, None]).all() and not core.bias_c_l0.any()
    assert (core.gain_l0 == 1).all() and (core.gain_c_l0 == 1).all()


@pytest.mark.parametrize("masked", [False, True], ids=["", "masked"])
def test_norm_lstm_keeps_its_state_in_float32(masked):
    drops = DROPS if masked else {}
    core, x = NormLSTM(8, 16, **drops), torch.randn(4, 2, 8)
    expected = core(x, core.initial_state(2))
    with torch.autocast("cpu", torch.bfloat16):
        _, state = core(x, core.initial_state(2))
    assert state.dtype == torch.float32
    assert_close(state, expected[1], 3e-2)
    output, state = core.bfloat16()(x.bfloat16(), core.initial_state(2))
    assert (output.dtype, state.dtype) == (torch.bfloat16, torch.float32)
    assert_close(state, expected[1], 3e-2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: NormLSTM(0, 4), "input_size"),
        (lambda: NormLSTM(3, 0), "hidden_size"),
        (lambda: NormLSTM(3, 4, zoneout_h=1.0), "zoneout_h .*1.0"),
        (lambda: NormLSTM(3, 4, zoneout_c=-0.1), "zoneout_c .*-0.1"),
        (lambda: NormLSTM(3, 4, recurrent_dropout=2), "recurrent_dropout .*2"),
        (lambda: WeightDrop(LSTM(3, 4), 1.0), "drop .*1.0"),
        (lambda: WeightDrop(LSTM(3, 4), 0.5, ["weight"]), r"names .*got \['weight'\]"),
        (lambda: WeightDrop(LSTM(3, 4), 0.5, []), r"names .*got \[\]"),
        (lambda: WeightDrop(Leaky(3, 4), 0.5), r'"weight_hh" .*got \[\], of \[\'leak\''),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_weight_drop_refuses_what_is_no_core():
    with pytest.raises(TypeError, match="core must be a dnirnn.Core; got LSTM"):
        WeightDrop(nn.LSTM(3, 4), 0.5)


# WeightDrop.


def dropped_by_hand(core):
    """A copy of the core inside, whose hidden-to-hidden weights the masks have gone over."""
    plain = copy.deepcopy(core.core)
    parameters = dict(plain.named_parameters())
    for name, masks in zip(core.names, core.masks):
        weight = parameters[name]
        kept = masks(1, 5)[0, 0].view_as(weight)
        with torch.no_grad():
            weight.copy_(torch.where(kept, weight / (1 - core.drop), 0))
    return plain


WRAPPED = {
    "lstm": lambda i, h: LSTM(i, h, 2),
    "from-lstm": lambda i, h: FromTorch(nn.LSTM(i, h, 2)),
    "gru": GRU,
    "norm-lstm": lambda i, h: NormLSTM(i, h).eval(),
}


@pytest.mark.parametrize("inner", WRAPPED)
@given(problem=problems(t0=any_t0, reset=any_reset))
def test_weight_drop_is_its_core_with_masked_weights(inner, problem):
    """Its update too: values, targets and gradients of one chunked call with an estimator."""
    torch.manual_seed(problem.seed)
    core = WeightDrop(WRAPPED[inner](problem.input_size, problem.hidden_size), 0.5).double()
    raw = {name: value.clone() for name, value in core.named_parameters()}
    plain, case = dropped_by_hand(core), problem.case(core)
    estimator = SyntheticGradient(core.state_size, (4,), 0.5, 0.5).double()
    nn.init.normal_(estimator.layers[-1].weight)
    results = []
    for one in (core, plain):
        truncated = Truncated(one, problem.truncation, estimator)
        truncated.zero_grad()
        output, state, (cut,) = truncated(case.x, case.state, case.t0, False, case.reset)
        backward(own_loss(output, case.y), [cut])
        stepped = one.step(case.x[0], case.state, case.t0)
        fitted = gradients(estimator)
        results.append((output, state, cut.synthetic, cut.probe.grad, *fitted, *stepped))
    assert_close(results[0], results[1])
    for name, gradient in zip(dict(core.core.named_parameters()), gradients(plain)):
        if name in core.names:
            kept = core.masks[core.names.index(name)](1, 0).view_as(gradient)
            gradient = gradient * kept / (1 - core.drop)
        assert_close(dict(core.core.named_parameters())[name].grad, gradient)
    assert all(torch.equal(value, raw[name]) for name, value in core.named_parameters())


def test_weight_drop_in_eval_mode_is_its_core_and_its_weights_keep_their_names():
    core = WeightDrop(LSTM(3, 4, 2), 0.5)
    assert core.names == ["weight_hh_l0", "weight_hh_l1"]
    saved = core.state_dict()
    core.core.load_state_dict({k[5:]: v for k, v in saved.items() if k.startswith("core.")})
    x, state = torch.randn(5, 2, 3), torch.randn(2, 16)
    trained = core(x, state)[0]
    core.eval()
    assert torch.equal(core(x, state)[0], core.core(x, state)[0])
    assert not torch.equal(core(x, state)[0], trained)
    other = copy.deepcopy(core).train()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert not torch.equal(other(x, state)[0], trained), "a copy runs on its own weights"
    assert torch.equal(core.train()(x, state)[0], trained)
    assert WeightDrop(LSTM(3, 4, 2), 0.5, ["weight_ih_l1"]).names == ["weight_ih_l1"]


# Masks, in training mode: functions of seed, step, row and unit alone, on every path.


@given(problem=problems(t0=any_t0, reset=any_reset), where=st.floats(0, 1))
def test_masks_are_the_same_in_a_loop_of_steps_and_wherever_it_is_cut(
    build_masked, problem, where
):
    core = build_masked(problem)
    case = problem.case(core)
    split = int(where * problem.steps)
    output, state = core(case.x, case.state, case.t0, case.reset)

    stepped, now, t = [], case.state, torch.as_tensor(case.t0).expand(problem.batch)
    for i, x in enumerate(case.x):
        if case.reset is not None:
            now = torch.where(case.reset[i, :, None], 0, now)
            t = torch.where(case.reset[i], 0, t)
        y, now = core.step(x, now, t)
        stepped.append(y)
        t = t + 1
    assert_close(torch.stack(stepped), output)
    assert_close(now, state)

    chunks = Chunks(problem.steps, problem.truncation, case.t0, case.reset)
    chunked, sent, *_ = core.unroll(case.x, case.state, None, chunks)
    assert_close(chunked, output)
    assert_close(sent[-1], state)
    probe = torch.zeros(problem.steps, *case.state.shape, dtype=torch.float64)
    dense, sent, *_ = core.unroll(case.x, case.state, probe, chunks._replace(dense=True))
    assert_close(dense, output)
    assert_close(sent[-1], state)

    if 0 < split < problem.steps:
        resets = (None, None) if case.reset is None else (case.reset[:split], case.reset[split:])
        head, now = core(case.x[:split], case.state, case.t0, resets[0])
        tail, now = core(case.x[split:], now, advance(case.t0, case.reset, split), resets[1])
        assert_close(torch.cat([head, tail]), output)
        assert_close(now, state)


def test_a_seed_names_the_masks_and_each_has_its_own(build_masked):
    problem = Problem(8, 3, 3, 2, 4, seed=0)
    core = build_masked(problem)
    case = problem.case(core)
    # Those that it is made with: two masks of one seed would be the same mask.
    seeds = [int(part.seed) for part in core.modules() if isinstance(part, Masks)]
    assert len(set(seeds)) == len(seeds) > 0
    first, saved = core(case.x, case.state, 0)[0], copy.deepcopy(core.state_dict())
    assert torch.equal(core(case.x, case.state, 0)[0], first)
    draw_masks(core)
    assert not torch.equal(core(case.x, case.state, 0)[0], first)
    core.load_state_dict(saved)
    assert torch.equal(core(case.x, case.state, 0)[0], first)
    core.eval()
    quiet = core(case.x, case.state, 0)[0]
    draw_masks(core)
    assert torch.equal(core(case.x, case.state, 0)[0], quiet), "in eval mode no mask applies"
