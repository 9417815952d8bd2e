"""What wrong calls are made of: good parts, and wrong values by what an argument is.

None of the wrong values is right wherever it stands.
"""

import math

import torch
from torch import nn

import dnirnn
from dnirnn.data import TextStream

NAN = math.nan
X, STATE = torch.zeros(4, 2, 3), torch.zeros(2, 8)


def core():
    return dnirnn.LSTM(3, 4)


def core_4():
    return dnirnn.LSTM(4, 4)


def called(estimator=None):
    """(a Truncated, what a call of it returned)."""
    truncated = dnirnn.Truncated(core(), 2, estimator or dnirnn.SyntheticGradient(8))
    return truncated, truncated(X, STATE)


def loss_and_cuts():
    _, (output, _, cuts) = called()
    return dict(loss=output.sum(), interfaces=cuts)


def decoupled():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    return dict(
        modules=[nn.Linear(3, 4), nn.Linear(4, 2)],
        estimators=[dnirnn.SyntheticGradient(4)],
        loss=nn.functional.mse_loss,
        optimizers=[optimizer, optimizer],
        estimator_optimizers=[optimizer],
    )


def two_networks():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), 0.1)
    return dict(
        core=dnirnn.Hierarchy(dnirnn.LSTM(5, 4), dnirnn.LSTM(4, 2), 2),
        encoder=nn.Identity(),
        losses=[nn.functional.mse_loss] * 2,
        in_time=[dnirnn.SyntheticGradient(8), dnirnn.SyntheticGradient(4)],
        cuts=[dnirnn.SyntheticGradient(4, scale=1.0), dnirnn.SyntheticGradient(2, scale=1.0)],
        optimizers=[(optimizer,), (optimizer,)],
    )


def trainer():
    truncated = dnirnn.Truncated(core(), 2, dnirnn.ZeroGradient())
    model = dnirnn.model.SequenceModel(nn.Embedding(5, 3), truncated, nn.Linear(4, 5), NAN)
    stream = TextStream(torch.zeros(20, dtype=torch.int64), 2, 0)
    return dict(model=model, stream=stream, config=dnirnn.TrainerConfig(updates=1), folder="run")


SIZE = [0, -1, 1.5, NAN, "3", None, True, [3], torch.ones(2)]
COUNT = [-1, 1.5, NAN, "3", None, True, [3]]  # 0 is right
AMOUNT = [-0.1, NAN, math.inf, "1", None, True, [1.0], 1j]
NUMBER = [NAN, math.inf, "1", None, True, [1.0], 1j]
PROBABILITY = [-0.1, 1.0, 2, NAN, "0.1", None, True, [0.1]]
FLAG = ["no", 1, 0.5, None, [True]]
OF_SIZES = [(), 3, "ab", None, (0,), (1.5,), (True,), ("2",), (NAN,)]
WIDTHS = OF_SIZES[1:]
WORD = ["nope", 3, None, True, ["rnn"]]
MODULE = [None, "lstm", 3, torch.zeros(4), nn.Linear]
CORE = [*MODULE, nn.Linear(3, 4), dnirnn.LSTM]
ESTIMATOR = [*CORE[:-1], dnirnn.ZeroGradient, dnirnn.LSTM(3, 4)]
TENSOR = [None, 3.0, "x", [[0.0]], torch.zeros(4).numpy()]
