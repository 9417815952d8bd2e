"""The cores that ``--core`` names, made from the options that go with each."""

import dataclasses
from collections.abc import Callable

import torch
from torch import nn

from dnirnn import GRU, HMLSTM, LSTM, RNN, Clockwork, FromTorch, NormLSTM, WeightDrop
from dnirnn.core import Core
from dnirnn.model import SequenceModel
from dnirnn.tasks.options import CoreOptions

Builder = Callable[[CoreOptions, int], Core]
STEEPEST = 5.0  # slope of a detector's gradient, as in the paper


def layered(kind: Callable[..., Core]) -> Builder:
    def build(options: CoreOptions, input_size: int) -> Core:
        return weight_dropped(kind(input_size, options.hidden, options.layers or 1), options)

    return build


def from_torch(kind: type[nn.RNNBase]) -> Builder:
    return layered(lambda *sizes: FromTorch(kind(*sizes)))


def weight_dropped(core: Core, options: CoreOptions) -> Core:
    return WeightDrop(core, options.weight_drop) if options.weight_drop else core


def norm_lstm(options: CoreOptions, input_size: int) -> Core:
    core = NormLSTM(
        input_size,
        options.hidden,
        layer_norm=not options.no_layer_norm,
        zoneout_h=options.zoneout_h,
        zoneout_c=options.zoneout_c,
        recurrent_dropout=options.recurrent_dropout,
    )
    return weight_dropped(core, options)


def clockwork(cell: str) -> Builder:
    return lambda options, input_size: Clockwork(
        input_size, options.hidden, options.periods, cell
    )


def hm_lstm(options: CoreOptions, input_size: int) -> Core:
    layer_norm = not options.no_layer_norm
    return HMLSTM(input_size, options.hidden, options.layers or 3, layer_norm=layer_norm)


BUILD: dict[str, Builder] = {
    "lstm": layered(LSTM),
    "gru": layered(GRU),
    "rnn": layered(RNN),
    "norm-lstm": norm_lstm,
    "clockwork": clockwork("rnn"),
    "clockwork-lstm": clockwork("lstm"),
    "hm-lstm": hm_lstm,
    "torch-lstm": from_torch(nn.LSTM),
    "torch-gru": from_torch(nn.GRU),
    "torch-rnn": from_torch(nn.RNN),
}


def make_core(options: CoreOptions, input_size: int) -> Core:
    """The core that ``options`` name, for inputs of ``input_size``."""
    return BUILD[options.core](options, input_size)


def sized(
    options: CoreOptions, input_size: int, around: Callable[[Core], int]
) -> CoreOptions:
    """The options with the --hidden that brings the model nearest to --parameters.

    around: the parameters of the model that are not the core's own, for a core.

    Raises ValueError where even the smallest model has more.
    """
    step = len(options.periods) if options.core.startswith("clockwork") else 1

    def with_hidden(multiple: int) -> CoreOptions:
        return dataclasses.replace(options, parameters=None, hidden=multiple * step)

    def count(multiple: int) -> int:
        with torch.device("meta"):
            core = make_core(with_hidden(multiple), input_size)
        return around(core) + sum(parameter.numel() for parameter in core.parameters())

    low, high = 0, 1
    while count(high) < options.parameters:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < options.parameters else (low, middle)
    if low == 0 and count(high) > options.parameters:
        raise ValueError(
            f"--parameters must be at least {count(high)}, the smallest {options.core}'s;"
            f" got {options.parameters}"
        )
    return with_hidden(min(high, max(low, 1), key=lambda n: abs(count(n) - options.parameters)))


def described(options: CoreOptions) -> str:
    """The core that ``options`` name, its size, and what they change of its defaults."""
    said = [options.core if options.parameters else f"{options.core} {options.hidden}"]
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
