"""Truncated recurrent networks with synthetic gradients at the cuts, for PyTorch."""

import importlib

from dnirnn import estimators, stacks
from dnirnn.cells import GRU, RNN, NormLSTM, WeightDrop
from dnirnn.core import Core
from dnirnn.cuts import cut, receive, send
from dnirnn.decoupled import Decoupled
from dnirnn.embedding import Embedding
from dnirnn.estimators import *
from dnirnn.from_torch import FromTorch
from dnirnn.hierarchy import Hierarchy
from dnirnn.interface import Interface, backward
from dnirnn.lstm import LSTM
from dnirnn.masks import Masks, draw_masks
from dnirnn.stacks import *
from dnirnn.true_gradient import TrueGradient, true_gradients
from dnirnn.truncated import Truncated
from dnirnn.version import __version__

# Imported when asked for: what a core and its cuts do not need.
LATER = {
    "DecoupledParallel": "dnirnn.parallel",
    "HierarchyParallel": "dnirnn.hierarchy_parallel",
    "Distillation": "dnirnn.distillation",
    "DynamicEvaluation": "dnirnn.dynamic_evaluation",
    "LoadedRun": "dnirnn.config.load",
    "DistilledStream": "dnirnn.distillation",
    "load": "dnirnn.config.load",
    "Trainer": "dnirnn.training.trainer",
    "TrainerConfig": "dnirnn.training.config",
    "read_log": "dnirnn.training.log",
}


def __getattr__(name: str):
    if name in LATER:
        return getattr(importlib.import_module(LATER[name]), name)
    raise AttributeError(f"module 'dnirnn' has no attribute {name!r}")


__all__ = [
    "Core",
    "Decoupled",
    "DecoupledParallel",
    "Distillation",
    "DynamicEvaluation",
    "Embedding",
    "FromTorch",
    "GRU",
    "Hierarchy",
    "HierarchyParallel",
    "Interface",
    "LSTM",
    "LoadedRun",
    "Masks",
    "NormLSTM",
    "RNN",
    "DistilledStream",
    "Trainer",
    "TrainerConfig",
    "TrueGradient",
    "Truncated",
    "WeightDrop",
    "__version__",
    "backward",
    "cut",
    "draw_masks",
    "load",
    "read_log",
    "receive",
    "send",
    "true_gradients",
]
__all__ += estimators.__all__ + stacks.__all__
