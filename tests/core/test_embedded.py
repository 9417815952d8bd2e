"""What an embedding looks up lazily gives what it looks up at once: outputs, gradients, targets."""

import pytest
import torch
from strategies import assert_close
from torch import nn
from torch.nn.utils import prune

import dnirnn
from dnirnn import (
    LSTM,
    Deep,
    Embedding,
    SyntheticGradient,
    TrueGradient,
    Truncated,
    ZeroGradient,
    ops,
)
from dnirnn.config.network import BFloat16Model
from dnirnn.data import Batch
from dnirnn.embedding import Embedded
from dnirnn.model import SequenceModel, symbol_nats

SYMBOLS, WIDTH, STEPS, ROWS = 6, 3, 10, 4
CORES = {
    "lstm": lambda: LSTM(WIDTH, 5),
    "two layers": lambda: LSTM(WIDTH, 5, 2),
    "deep": lambda: Deep([LSTM(WIDTH, 5), LSTM(5, 4)]),
    "gru": lambda: dnirnn.GRU(WIDTH, 5, 2),
    "rnn": lambda: dnirnn.RNN(WIDTH, 10),
    "deep, inputs to every layer": lambda: Deep([LSTM(WIDTH, 5), LSTM(5 + WIDTH, 4)], skip=True),
    "pruned": lambda: pruned(LSTM(WIDTH, 5)),
}
ESTIMATORS = {
    "none": lambda size: ZeroGradient(),
    "dni": lambda size: SyntheticGradient(size, (7,), 0.5, 0.5),
    "dense": lambda size: SyntheticGradient(size, (), 0.5, 0.5, dense=True),
    "lambda": lambda size: SyntheticGradient(size, (), 0.5, 0.5, trace_decay=0.7),
    "true": lambda size: TrueGradient(),
}


def pruned(core: LSTM) -> LSTM:
    prune.random_unstructured(core, "weight_ih_l0", 0.5)
    return core


def made(core, estimator, **options):
    torch.manual_seed(0)
    cut = Truncated(CORES[core](), 4, ZeroGradient(), **options)
    cut.estimator = ESTIMATORS[estimator](cut.core.state_size)
    for parameter in cut.estimator.parameters():
        nn.init.normal_(parameter, std=0.1)
    return nn.ModuleDict({"embedding": Embedding(SYMBOLS, WIDTH), "cut": cut}).double()


def run(module, x, lazily: bool, **given):
    module.zero_grad()
    inputs = module["embedding"].lazy(x) if lazily else module["embedding"](x)
    assert isinstance(inputs, Embedded) == lazily
    state = torch.linspace(-1, 1, ROWS * module["cut"].core.state_size).double().view(ROWS, -1)
    output, ended, cuts = module["cut"](inputs, state, **given)
    dnirnn.backward(output.square().sum(), cuts, 1.0)
    return [output.detach(), ended, *(p.grad for p in module.parameters() if p.grad is not None)]


def drawn():
    return torch.randint(SYMBOLS, (STEPS, ROWS), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("core", CORES)
def test_it_is_what_is_looked_up(core, estimator):
    module, x = made(core, estimator), drawn()
    reset = torch.zeros(STEPS, ROWS, dtype=torch.bool)
    reset[5, 2] = True
    for given in (dict(), dict(reset=reset, final=True)):
        assert_close(run(module, x, True, **given), run(module, x, False, **given), 1e-11)


@pytest.mark.parametrize("options", [dict(overlap=2), dict(open_cuts=0.5)], ids=str)
def test_overlaps_and_open_cuts_look_it_up(options):
    module, x = made("lstm", "none", **options), drawn()
    module["cut"].truncation = 20 if "overlap" in options else 4
    found = []
    for lazily in (True, False):
        torch.manual_seed(3)
        found.append(run(module, x, lazily))
    assert_close(*found, 1e-11)


def test_a_hook_of_the_core_sees_a_tensor():
    module, seen = made("lstm", "dni"), []
    module["cut"].core.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    run(module, drawn(), True)
    assert seen and all(isinstance(one, torch.Tensor) for one in seen)


@pytest.fixture
def taken(monkeypatch):
    """The dtypes of x in the operator's calls."""
    seen, call = [], ops.tbptt
    monkeypatch.setattr(
        ops, "tbptt", lambda x, *rest: (seen.append(x.dtype), call(x, *rest))[1]
    )
    return seen


@pytest.mark.skipif(not ops.built, reason="it is the fused operator that takes symbols")
@pytest.mark.parametrize("core", ["lstm", "gru", "rnn"])
def test_the_operator_takes_the_symbols_where_there_are_more_of_them_than_rows_of_the_table(
    core, taken
):
    module = made(core, "dni")
    run(module, drawn(), True)
    run(module, drawn()[:2], True)  # 8 symbols: a table of 6 costs more than it saves
    with torch.no_grad():
        module["cut"](module["embedding"].lazy(drawn()), torch.zeros(ROWS, 10).double())
    assert taken == [torch.int64, torch.float64, torch.int64]


@pytest.mark.skipif(not ops.built, reason="it is the fused operator that takes symbols")
def test_the_first_layer_of_a_deep_core_takes_them(taken):
    run(made("deep", "dni"), drawn(), True)
    assert taken == [torch.int64, torch.float64]
    taken.clear()
    module = made("deep", "dni")
    module["cut"].core.cores[0].register_forward_pre_hook(lambda *_: None)
    run(module, drawn(), True)
    assert torch.int64 not in taken


def models(kind=SequenceModel, dropout=0.0, estimator="dni"):
    found = []
    for embedding in (Embedding, nn.Embedding):
        torch.manual_seed(0)
        cut = Truncated(LSTM(WIDTH, 5), 4, ESTIMATORS[estimator](10))
        found.append(kind(embedding(SYMBOLS, WIDTH), cut, nn.Linear(5, SYMBOLS), symbol_nats, dropout))
    found[1].load_state_dict(found[0].state_dict())
    return found


def gradients(model):
    symbols = drawn()
    torch.manual_seed(4)
    nats, _, cuts = model(Batch(symbols, symbols.roll(1, 0)), model.initial_state(ROWS))
    dnirnn.backward(nats.sum(), cuts, 1.0)
    return [nats.detach(), *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_a_model_is_that_of_torchs_embedding(dropout, taken):
    ours, theirs = models(dropout=dropout)
    assert_close(gradients(ours), gradients(theirs), 1e-5)
    if ops.built:
        assert taken[0] == (torch.float32 if dropout else torch.int64)
    ours.eval()
    gradients(ours)
    assert not ops.built or taken[-1] == torch.int64


def test_an_estimator_that_is_given_the_next_input_has_it_looked_up(taken):
    found = models()
    for model in found:
        torch.manual_seed(2)
        model.truncated.estimator = SyntheticGradient(10, (), 0.5, 0.5, context_size=WIDTH)
        nn.init.normal_(model.truncated.estimator.layers[0].weight, std=0.1)
    kept = []
    for model in found:
        symbols = drawn()
        batch = Batch(symbols, symbols.roll(1, 0), final=True)
        nats, _, cuts = model(batch, model.initial_state(ROWS))
        dnirnn.backward(nats.sum(), cuts, 1.0)
        kept.append([nats.detach(), *(p.grad for p in model.parameters())])
    assert_close(*kept, 1e-5)
    assert torch.int64 not in taken


@pytest.mark.parametrize(
    "core", [LSTM(WIDTH, 5), Deep([LSTM(WIDTH, 5)]), dnirnn.FromTorch(nn.GRU(WIDTH, 5))], ids=repr
)
def test_a_core_itself_is_given_what_is_looked_up(core):
    with pytest.raises((RuntimeError, AttributeError), match=r"give a core itself embedding\(x\)"):
        core(Embedding(SYMBOLS, WIDTH).lazy(drawn()), torch.zeros(ROWS, core.state_size))


def test_in_bfloat16_too(taken):
    ours, theirs = models(BFloat16Model)
    assert_close(gradients(ours), gradients(theirs), 3e-2, 1e-2)
    assert not ops.built or taken[0] == torch.int64


@pytest.mark.parametrize(
    "options", [dict(padding_idx=1), dict(max_norm=1.0), dict(sparse=True)], ids=str
)
def test_with_an_option_of_torchs_it_is_looked_up_at_once(options):
    assert isinstance(Embedding(SYMBOLS, WIDTH, **options).lazy(drawn()), torch.Tensor)


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_hook_of_the_embedding_runs(register):
    embedding, seen = Embedding(SYMBOLS, WIDTH), []
    getattr(embedding, register)(lambda *given: seen.append(given))
    embedding.lazy(drawn()).sum().backward()
    assert len(seen) == 1


def test_it_compiles_whole():
    module = made("lstm", "none")
    expected = run(module, drawn(), True)[0]

    def forward(x):
        state = torch.linspace(-1, 1, ROWS * 10).double().view(ROWS, -1)
        return module["cut"](module["embedding"].lazy(x), state)[0]

    torch._dynamo.reset()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")
    assert_close(compiled(drawn()).detach(), expected, 1e-11)


def test_inputs_of_another_width_are_named():
    cut = Truncated(LSTM(WIDTH + 1, 5), 4, ZeroGradient())
    with pytest.raises(ValueError, match=r"x must be \[T, B, 4\]"):
        cut(Embedding(SYMBOLS, WIDTH).lazy(drawn()), torch.zeros(ROWS, 10))
