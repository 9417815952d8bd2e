"""Multi-timescale stacks: one file a method, each a Core."""

from dnirnn.stacks.clockwork import Clockwork
from dnirnn.stacks.deep import Deep
from dnirnn.stacks.dilated import Dilated
from dnirnn.stacks.every import Every
from dnirnn.stacks.fast_slow import FastSlow
from dnirnn.stacks.hm_lstm import HMLSTM
from dnirnn.stacks.mtrnn import MTRNN
from dnirnn.stacks.phased import PhasedLSTM
from dnirnn.stacks.skip import Skip

__all__ = [
    "Clockwork",
    "Deep",
    "Dilated",
    "Every",
    "FastSlow",
    "HMLSTM",
    "MTRNN",
    "PhasedLSTM",
    "Skip",
]
