"""The cores that ``--core`` names, made from the options that go with each."""

import dataclasses
from collections.abc import Callable

from torch import nn

from dnirnn import HMLSTM, LSTM, FromTorch
from dnirnn.core import Core
from dnirnn.model import SequenceModel
from dnirnn.tasks.options import CoreOptions

Builder = Callable[[CoreOptions, int], Core]
STEEPEST = 5.0  # slope of a detector's gradient, as in the paper


def lstm(options: CoreOptions, input_size: int) -> Core:
    return LSTM(input_size, options.hidden, options.layers or 1)


def from_torch(kind: type[nn.RNNBase]) -> Builder:
    return lambda options, input_size: FromTorch(
        kind(input_size, options.hidden, options.layers or 1)
    )


def hm_lstm(options: CoreOptions, input_size: int) -> Core:
    layer_norm = not options.no_layer_norm
    return HMLSTM(input_size, options.hidden, options.layers or 3, layer_norm=layer_norm)


BUILD: dict[str, Builder] = {
    "lstm": lstm,
    "torch-lstm": from_torch(nn.LSTM),
    "torch-gru": from_torch(nn.GRU),
    "torch-rnn": from_torch(nn.RNN),
    "hm-lstm": hm_lstm,
}


def make_core(options: CoreOptions, input_size: int) -> Core:
    """The core that ``options`` name, for inputs of ``input_size``."""
    return BUILD[options.core](options, input_size)


def described(options: CoreOptions) -> str:
    """The core that ``options`` name, its size, and what they change of its defaults."""
    said = [f"{options.core} {options.hidden}"]
    for field in dataclasses.fields(CoreOptions)[2:]:
        value = getattr(options, field.name)
        if value != field.default:
            words = value if isinstance(value, tuple) else () if value is True else (value,)
            said.append(" ".join([field.name.replace("_", " "), *map(str, words)]))
    return ", ".join(said)


def annealing(options: CoreOptions) -> Callable[[SequenceModel, float], None] | None:
    """What sets a model's slopes before an update, from the epochs seen; None: nothing to set."""
    if options.core != "hm-lstm":
        return None

    def anneal(model: SequenceModel, epochs: float) -> None:
        slope = min(STEEPEST, 1 + options.slope_growth * epochs)
        for part in model.modules():
            if isinstance(part, HMLSTM):
                part.slope.fill_(slope)

    return anneal
