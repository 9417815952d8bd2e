"""Wrong values by what an argument is: none of them is right wherever it stands."""

import math

import torch
from torch import nn

import dnirnn

NAN = math.nan
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
