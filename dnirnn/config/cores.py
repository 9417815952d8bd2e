"""The cores that ``--core`` names, made from the options that go with each."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn

from dnirnn import (
    GRU,
    HMLSTM,
    LSTM,
    RNN,
    Clockwork,
    Deep,
    Dilated,
    Every,
    FastSlow,
    FromTorch,
    Hierarchy,
    NormLSTM,
    PhasedLSTM,
    Skip,
    WeightDrop,
)
from dnirnn.config.options import CoreOptions
from dnirnn.config.task import Figure, Measure
from dnirnn.core import Core
from dnirnn.model import SequenceModel

Builder = Callable[[CoreOptions, int], Core]
STEEPEST = 5.0  # slope of a detector's gradient, as in the paper
UPDATES = Figure("updates", "share of the steps that update the state", "{:.3f}", True)


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


def deep(options: CoreOptions, input_size: int) -> Core:
    more = input_size if options.skip_inputs else 0
    above = [options.hidden + more] * ((options.layers or 2) - 1)
    return Deep(
        [LSTM(width, options.hidden) for width in (input_size, *above)],
        residual=options.residual,
        skip=options.skip_inputs,
        dropout=options.layer_dropout,
        same_mask=options.same_mask,
    )


def dilated(options: CoreOptions, input_size: int) -> Core:
    return Dilated(input_size, options.hidden, options.dilations, options.cell)


def every(options: CoreOptions, input_size: int) -> Core:
    hidden, period = options.hidden, options.every
    slow = LSTM(hidden * (period if options.gather == "concat" else 1), hidden)
    return Deep([LSTM(input_size, hidden), Every(slow, period, options.gather)], residual=True)


def hierarchy(options: CoreOptions, input_size: int) -> Core:
    fast = LSTM(input_size + options.hidden, options.hidden)
    return Hierarchy(fast, LSTM(options.hidden, options.hidden), options.every)


def phased(options: CoreOptions, input_size: int) -> Core:
    return PhasedLSTM(
        input_size,
        options.hidden,
        periods=(options.shortest_period, options.longest_period),
        open_ratio=options.open_ratio,
    )


def clockwork(cell: str) -> Builder:
    return lambda options, input_size: Clockwork(
        input_size, options.hidden, options.periods, cell
    )


def fast_slow(options: CoreOptions, input_size: int) -> Core:
    return FastSlow(
        input_size,
        options.hidden,
        options.slow_hidden or max(1, round(options.hidden * 4 / 7)),  # the paper's 700 and 400
        options.fast_cells,
        layer_norm=not options.no_layer_norm,
        zoneout_h=options.zoneout_h,
        zoneout_c=options.zoneout_c,
        dropout=options.layer_dropout,
    )


def hm_lstm(options: CoreOptions, input_size: int) -> Core:
    layer_norm = not options.no_layer_norm
    return HMLSTM(input_size, options.hidden, options.layers or 3, layer_norm=layer_norm)


def skip(options: CoreOptions, input_size: int) -> Core:
    core = LSTM(input_size, options.hidden, options.layers or 1)
    return Skip(core, options.skip_bias, options.skip_cost)


BUILD: dict[str, Builder] = {
    "lstm": layered(LSTM),
    "gru": layered(GRU),
    "rnn": layered(RNN),
    "norm-lstm": norm_lstm,
    "deep": deep,
    "dilated": dilated,
    "every": every,
    "hierarchy": hierarchy,
    "clockwork": clockwork("rnn"),
    "clockwork-lstm": clockwork("lstm"),
    "fast-slow": fast_slow,
    "hm-lstm": hm_lstm,
    "phased": phased,
    "skip": skip,
    "torch-lstm": from_torch(nn.LSTM),
    "torch-gru": from_torch(nn.GRU),
    "torch-rnn": from_torch(nn.RNN),
}


def make_core(options: CoreOptions, input_size: int) -> Core:
    """The core that ``options`` name, for inputs of ``input_size``."""
    return BUILD[options.core](options, input_size)


def sized(
    options: CoreOptions, make: Callable[[CoreOptions], SequenceModel]
) -> CoreOptions:
    """The options with the --hidden that brings ``make(options)`` nearest to --parameters.

    Raises ValueError where even the smallest model has more.
    """
    step = len(options.periods) if options.core.startswith("clockwork") else 1

    def with_hidden(multiple: int) -> CoreOptions:
        return dataclasses.replace(options, parameters=None, hidden=multiple * step)

    def count(multiple: int) -> int:
        with torch.device("meta"):  # nothing is allocated, and no random number drawn
            model = make(with_hidden(multiple))
        return sum(parameter.numel() for parameter in model.core_parameters())

    wanted = options.parameters
    if count(1) > wanted:
        smallest = f"at least {count(1)}, the smallest {options.core}'s"
        raise ValueError(f"--parameters must be {smallest}; got {wanted}")
    low, high = 1, 2
    while count(high) <= wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    return with_hidden(min(low, high, key=lambda multiple: abs(count(multiple) - wanted)))


def described(options: CoreOptions) -> str:
    """The core that ``options`` name, its size, and what they change of its defaults."""
    said = [options.core if options.parameters else f"{options.core} {options.hidden}"]
    recurrent = isinstance(options, CoreOptions)
    for field in dataclasses.fields(CoreOptions)[2:] if recurrent else ():
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


def counting(measure: Measure) -> Measure:
    """``measure``, and of a model with a Skip "updates": the share of steps that update its state."""

    def both(model: SequenceModel) -> dict[str, float]:
        with ExitStack() as stack:
            skips = (part for part in model.modules() if isinstance(part, Skip))
            updates = [stack.enter_context(skip.recording()) for skip in skips]
            found = measure(model)
        if updates:
            # Calls may differ in their rows.
            found = {**found, "updates": float(torch.cat(sum(updates, [])).mean())}
        return found

    return both
