"""Multi-timescale stacks: one file a method, each a Core."""

from dnirnn.stacks.clockwork import Clockwork
from dnirnn.stacks.hm_lstm import HMLSTM

__all__ = ["Clockwork", "HMLSTM"]
