"""Cells beside dnirnn.LSTM, each a Core, and what wraps one."""

from dnirnn.cells.gru import GRU
from dnirnn.cells.norm_lstm import NormLSTM
from dnirnn.cells.rnn import RNN
from dnirnn.weight_drop import WeightDrop

__all__ = ["GRU", "NormLSTM", "RNN", "WeightDrop"]
