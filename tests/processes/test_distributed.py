"""R ranks of b rows are one process of R b rows: law 13, over gloo."""

import pytest
import torch
import torch.distributed as dist
from rank_runs import run
from strategies import assert_close
from torch import nn

import dnirnn
from dnirnn.distributed import average_gradients, broadcast, rows_of

STEPS, ROWS, INPUTS, HIDDEN, UPDATES = 6, 6, 3, 5, 4
ESTIMATORS = {
    "none": lambda size: dnirnn.ZeroGradient(),
    "linear": lambda size: dnirnn.SyntheticGradient(size, (), 0.5, 0.5),
    "hidden": lambda size: dnirnn.SyntheticGradient(size, (4,), 0.7, 0.3),
    "dense": lambda size: dnirnn.SyntheticGradient(size, (), 0.5, 0.5, dense=True),
    "lambda": lambda size: dnirnn.SyntheticGradient(size, (), 0.5, 0.5, trace_decay=0.6),
    "auxiliary": lambda size: dnirnn.SyntheticGradient(size, (), 0.5, 0.5, auxiliary=0.5),
    "normalised": lambda size: dnirnn.SyntheticGradient(size, (), 0.5, 0.5, normalise=True),
    "solved": lambda size: dnirnn.LeastSquares(size, solve_every=2),
    "own scale": lambda size: dnirnn.AutoScale(dnirnn.SyntheticGradient(size, (), 1.0, 0.5)),
    "traces": lambda size: dnirnn.BPLambda(size, ROWS // ranks_here()),
}


def ranks_here() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def parts(estimator: str, seed: int) -> tuple[dnirnn.Truncated, nn.Linear]:
    torch.manual_seed(seed)
    core = dnirnn.LSTM(INPUTS, HIDDEN, dtype=torch.float64)
    made = ESTIMATORS[estimator](core.state_size).double()
    for part in made.modules():
        if isinstance(part, dnirnn.SyntheticGradient):
            nn.init.normal_(part.layers[-1].weight, std=0.2)
    return dnirnn.Truncated(core, 2, made), nn.Linear(HIDDEN, 2, dtype=torch.float64)


def train(estimator, seed=0, share=lambda batch, dim=1: batch, together=None) -> list[torch.Tensor]:
    """Some updates with clipping; share: the rows of a rank; together: what ranks do after backward."""
    model, readout = parts(estimator, seed)
    if together is not None:
        broadcast(model, readout)
    fitted = [*model.core.parameters(), *readout.parameters()]
    guesses = [p for p in model.estimator.parameters() if p.requires_grad]
    optimizers = [torch.optim.Adam(part, lr=0.05) for part in (fitted, guesses) if part]
    generator = torch.Generator().manual_seed(5)
    draw = dict(generator=generator, dtype=torch.float64)
    state = share(torch.randn(ROWS, model.core.state_size, **draw), 0)
    for _ in range(UPDATES):
        x, y = torch.randn(STEPS, ROWS, INPUTS, **draw), torch.randn(STEPS, ROWS, 2, **draw)
        reset = torch.rand(STEPS, ROWS, **draw) < 0.1
        x, y = share(x), share(y)
        # The auxiliary task's mean is over the rows that a reset leaves it: each rank's own.
        reset = None if estimator == "auxiliary" else share(reset)
        output, state, interfaces = model(x, state, reset=reset)
        loss = (readout(output) - y).square().sum(-1).mean()
        dnirnn.backward(loss, interfaces, unit=1 / (STEPS * x.shape[1]))
        if together is not None:
            together(model, readout)
        nn.utils.clip_grad_norm_(fitted, 0.5)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return [p.detach() for p in (*model.parameters(), *readout.parameters())]


def all_of_them(ranks) -> dict[str, list]:
    """From a start of its own: broadcast makes it rank 0's."""
    return {
        name: [p.tolist() for p in train(name, ranks.rank, rows_of, average_gradients)]
        for name in ESTIMATORS
    }


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_are_one_process_with_the_whole_batch(ranks):
    found = run(ranks, all_of_them)
    for name in ESTIMATORS:
        expected = train(name)
        for one in found:
            assert_close([torch.tensor(p, dtype=torch.float64) for p in one[name]], expected, 1e-12)


def a_gradient_that_some_lack(ranks) -> list:
    here, never = nn.Linear(2, 1), nn.Linear(2, 1)
    if ranks.rank == 1:
        here(torch.ones(1, 2)).sum().backward()
    average_gradients(here, never)
    return [here.weight.grad.tolist(), never.weight.grad is None]


def test_a_gradient_that_some_ranks_lack_counts_as_zero_there():
    assert run(2, a_gradient_that_some_lack) == [[[[0.5, 0.5]], True]] * 2


def refused(ranks) -> list[str]:
    said = []
    estimator = dnirnn.SyntheticGradient(4, normalise=True)
    for made in (estimator, dnirnn.LeastSquares(4), dnirnn.AutoScale(estimator), nn.BatchNorm1d(4)):
        try:
            average_gradients(made)
        except ValueError as error:
            said.append(str(error))
    try:
        rows_of(torch.zeros(3, 5))
    except ValueError as error:
        said.append(str(error))
    return said


def test_what_would_drift_apart_is_refused_by_name():
    for said in run(2, refused):
        assert [words.split(" ")[0] for words in said] == [
            "SyntheticGradient", "LeastSquares", "AutoScale", "BatchNorm1d", "batch"
        ]  # fmt: skip
        assert "dnirnn.distributed.broadcast" in said[0]


def wrapped(ranks) -> list[str]:
    model, _ = parts("linear", 0)
    wrapper = nn.parallel.DistributedDataParallel(model)
    state = model.core.initial_state(2)
    with torch.no_grad():
        wrapper(torch.zeros(2, 2, INPUTS, dtype=torch.float64), state)
    with pytest.raises(RuntimeError) as caught:
        wrapper(torch.zeros(2, 2, INPUTS, dtype=torch.float64), state)
    return [str(caught.value)]


def test_distributed_data_parallel_is_refused_and_says_what_to_write():
    for (said,) in run(2, wrapped):
        assert said.endswith("dnirnn.distributed.average_gradients(model)")


def test_without_ranks_it_says_what_to_call():
    with pytest.raises(RuntimeError, match="init_process_group"):
        average_gradients(nn.Linear(1, 1))
    with pytest.raises(TypeError, match="modules must be nn.Modules; got Tensor"):
        average_gradients(torch.zeros(1))
