"""Dynamic evaluation of a char-lm: its rate and decay found on validation, then any text measured."""

from collections.abc import Callable

from torch import Tensor

from dnirnn import DynamicEvaluation
from dnirnn.config.network import device_of
from dnirnn.data import TextStream, Vocabulary, Words
from dnirnn.dynamic_evaluation import mean_squares
from dnirnn.model import SequenceModel
from dnirnn.tasks.char_lm.network import figure_of

ROWS = 100  # of the training text, whose gradients are measured together
RATE, DECAY = 3e-4, 1e-3  # where the search begins
STEP = 3.0  # from one value that is tried to the next
SEARCHED = 20_000  # symbols of validation that are read for each


def dynamic_lines(
    config: dict,
    model: SequenceModel,
    vocabulary: Vocabulary | Words,
    splits: dict[str, Tensor],
    symbols: Tensor,
    name: str,
) -> list[str]:
    """Lines that report the bits of ``symbols`` while the weights move, and how rate and decay were found.

    config: a run's, and "dynamic_steps", "dynamic_rate" and "dynamic_decay" where they are given.
    splits: "train", whose gradients scale the updates, and "valid", where what is not given is found.
    """
    newline, unknown = int(vocabulary.encode("\n")), vocabulary.unknown
    steps, device = config["dynamic_steps"], device_of(model)
    train = splits["train"].to(device)
    rows = max(1, min(ROWS, len(train) // steps))
    squares = mean_squares(model, TextStream(train, rows, newline), steps)

    def bits(text: Tensor, rate: float, decay: float, most: int | None = None) -> float:
        run = DynamicEvaluation(model, squares, rate, decay, steps)
        return run(TextStream(text.to(device), 1, newline), unknown, most)["bits"]

    rate, decay, lines = config.get("dynamic_rate"), config.get("dynamic_decay"), []
    if rate is None or decay is None:
        tried: dict[tuple[float, float], float] = {}

        def on_validation(rate: float, decay: float) -> float:
            if (rate, decay) not in tried:
                tried[rate, decay] = bits(splits["valid"], rate, decay, SEARCHED)
            return tried[rate, decay]

        start = DECAY if decay is None else decay
        if rate is None:
            rate = lowest(lambda rate: on_validation(rate, start), RATE)
        if decay is None:
            found = lowest(lambda decay: on_validation(rate, decay), DECAY)
            decay = min((found, 0.0), key=lambda decay: on_validation(rate, decay))
        still = on_validation(0.0, 0.0)
        lines = [
            f"rate {rate:g} and decay {decay:g} found on validation, {len(tried)} tried on its first"
            f" {min(SEARCHED, len(splits['valid'])):,} symbols: {on_validation(rate, decay):.4f} bits,"
            f" {still:.4f} without"
        ]
    figure = bits(symbols, rate, decay)
    text = f"{name}, dynamic evaluation, {figure_of(vocabulary, figure)}"
    return [f"{text} (parts of {steps} steps, rate {rate:g}, decay {decay:g})", *lines]


def lowest(measure: Callable[[float], float], start: float) -> float:
    """Where a measure is lowest on the ladder start * STEP ** n, going down from ``start``."""
    values = {n: measure(start * STEP**n) for n in (-1, 0, 1)}
    while (best := min(values, key=values.get)) in (min(values), max(values)) and len(values) < 8:
        n = best - 1 if best == min(values) else best + 1
        values[n] = measure(start * STEP**n)
    return start * STEP**best
