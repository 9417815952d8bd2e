"""Truncated recurrent networks with synthetic gradients at the cuts, for PyTorch."""

from dnirnn.cells import GRU, RNN, NormLSTM, WeightDrop
from dnirnn.core import Core
from dnirnn.cuts import cut, receive, send
from dnirnn.decoupled import Decoupled
from dnirnn.estimators import (
    AutoScale,
    BPLambda,
    ConvSyntheticGradient,
    GradientEstimator,
    LeastSquares,
    Reader,
    SyntheticGradient,
    ZeroGradient,
)
from dnirnn.from_torch import FromTorch
from dnirnn.hierarchy import Hierarchy
from dnirnn.interface import Interface, backward
from dnirnn.lstm import LSTM
from dnirnn.masks import Masks, draw_masks
from dnirnn.stacks import HMLSTM, Clockwork, Deep, Dilated, Every, FastSlow, PhasedLSTM, Skip
from dnirnn.true_gradient import TrueGradient, true_gradients
from dnirnn.truncated import Truncated
from dnirnn.version import __version__

__all__ = [
    "AutoScale",
    "BPLambda",
    "Clockwork",
    "ConvSyntheticGradient",
    "Core",
    "Decoupled",
    "Deep",
    "Dilated",
    "Every",
    "FastSlow",
    "FromTorch",
    "GRU",
    "GradientEstimator",
    "HMLSTM",
    "Hierarchy",
    "Interface",
    "LSTM",
    "LeastSquares",
    "Masks",
    "NormLSTM",
    "PhasedLSTM",
    "RNN",
    "Reader",
    "Skip",
    "SyntheticGradient",
    "TrueGradient",
    "Truncated",
    "WeightDrop",
    "ZeroGradient",
    "backward",
    "cut",
    "draw_masks",
    "receive",
    "send",
    "true_gradients",
]
