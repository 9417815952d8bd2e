"""The options of the command line, each defined once: a dataclass field with its default and help.

A dataclass is a group of options; a task's options inherit the groups it needs. From one definition
come the command line's flags and help, the typed object that the code reads, the configuration that
a run folder remembers, and the flags that start the same run again in another process.
"""

import argparse
import ast
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    unit: str | None = None,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] | None = None,
    parse: Callable[[str], Any] | None = None,
    many: bool = False,
    shown: str | None = None,
    remembered: bool = True,
    place: bool = False,
    may_change: bool = False,
    where: tuple[str, tuple[str, ...]] | None = None,
) -> Any:
    """A dataclass field that is also a command-line flag.

    unit: what a number counts; the placeholder in --help.
    at_least, at_most, above, below: bounds of a number.
    parse: from one word to its value, where the type is not enough.
    many: takes several words; the value is a tuple.
    shown: what --help calls the default, where the value itself says little.
    remembered: whether another value makes it another run (budgets and threads don't).
    place: it says where data is: remembered, but data is known by its content.
    may_change: a run can go on with another value, from where it is, if that is asked for.
    where: (another option, its values) that this one goes with; with others it must not be given.
    """
    return dataclasses.field(default=default, metadata=dict(locals()))


def number_or(word: str) -> Callable[[str], int | str]:
    """Reads an int, or ``word`` itself."""

    def parse(text: str) -> int | str:
        if text == word:
            return word
        try:
            return int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be an int or {word!r}; got {text!r}") from None

    return parse


def fraction_or(word: str) -> Callable[[str], float | str]:
    """Reads a number, or ``word`` itself."""

    def parse(text: str) -> float | str:
        if text == word:
            return word
        try:
            return float(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"must be a number or {word!r}; got {text!r}"
            ) from None

    return parse


def changed(options: type, name: str, default: Any, shown: str | None = None) -> Any:
    """The option of that name in another dataclass, with another default."""
    metadata = options.__dataclass_fields__[name].metadata
    return dataclasses.field(default=default, metadata={**metadata, "shown": shown})


def key_value(text: str) -> tuple[str, Any]:
    """Reads KEY=VALUE, with VALUE a Python literal or else a word."""
    key, equals, value = text.partition("=")
    if not (key.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE; got {text!r}")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


class Checked:
    """Checks each option against its bounds, choices and company when the object is made."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, list):
                value = tuple(value)
                object.__setattr__(self, field.name, value)
            for one in value if isinstance(value, tuple) else (value,):
                check(flag(field.name), one, field.metadata)
            if value != field.default and field.metadata["where"]:
                self.check_company(field)

    def check_company(self, field: dataclasses.Field) -> None:
        name, allowed = field.metadata["where"]
        if getattr(self, name) not in allowed:
            raise ValueError(
                f"{flag(field.name)} goes with {flag(name)} {' or '.join(allowed)} only;"
                f" got {flag(name)} {getattr(self, name)}"
            )


def check(name: str, value: Any, rule: typing.Mapping) -> None:
    if rule["choices"] and value is not None and value not in rule["choices"]:
        raise ValueError(f"{name} must be one of {', '.join(rule['choices'])}; got {value!r}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite; got {value}")
    if rule["at_least"] is not None and value < rule["at_least"]:
        raise ValueError(f"{name} must be at least {rule['at_least']}; got {value}")
    if rule["at_most"] is not None and value > rule["at_most"]:
        raise ValueError(f"{name} must be at most {rule['at_most']}; got {value}")
    if rule["above"] is not None and value <= rule["above"]:
        raise ValueError(f"{name} must be above {rule['above']}; got {value}")
    if rule["below"] is not None and value >= rule["below"]:
        raise ValueError(f"{name} must be below {rule['below']}; got {value}")


CORES = {
    "lstm": "dnirnn's own LSTM",
    "gru": "GRU",
    "rnn": "plain recurrent network (tanh)",
    "norm-lstm": "LSTM with layer normalisation",
    "deep": "LSTMs one on another, with --residual, --skip-inputs, --layer-dropout",
    "dilated": "layers that recur from --dilations steps back",
    "every": "an LSTM, and one that hears it every --every steps; what both say is added",
    "hierarchy": "an LSTM, and one that ticks every --every steps; each hears the other",
    "clockwork": "plain modules that tick at --periods",
    "clockwork-lstm": "LSTM modules that tick at --periods",
    "fast-slow": "LSTMs that tick several times a step, and one that ticks once",
    "hm-lstm": "LSTMs that tick where the one below detects an end",
    "phased": "LSTM whose units open at periods that they learn",
    "skip": "LSTM that learns at which steps to update its state",
    "torch-lstm": "torch.nn's LSTM",
    "torch-gru": "torch.nn's GRU",
    "torch-rnn": "torch.nn's RNN",
}
PLAIN = ("lstm", "gru", "rnn", "torch-lstm", "torch-gru", "torch-rnn")


@dataclasses.dataclass(frozen=True)
class CoreOptions(Checked):
    """core"""

    core: str = option(
        "lstm",
        "the recurrent network: " + "; ".join(f"{name}, {what}" for name, what in CORES.items()),
        choices=tuple(CORES),
    )
    hidden: int = option(
        256, "units of a recurrent layer; of all of a clockwork's modules", "UNITS", at_least=1
    )
    parameters: int | None = option(
        None,
        "in place of --hidden: the size that gives the model, without its predictor, about so many",
        "PARAMETERS",
        at_least=1,
        shown="what --hidden gives",
    )
    layers: int | None = option(
        None,
        "recurrent layers, one on the other",
        "LAYERS",
        at_least=1,
        shown="1; 2 in deep, 3 in hm-lstm",
        where=("core", (*PLAIN, "deep", "hm-lstm", "skip")),
    )
    residual: bool = option(
        False, "add what the layer below says to what a layer says", where=("core", ("deep",))
    )
    skip_inputs: bool = option(
        False, "every layer also reads the network's input", where=("core", ("deep",))
    )
    layer_dropout: float = option(
        0.0,
        "fraction of what a layer says to the next that training drops; in fast-slow also of its"
        " inputs and outputs",
        "FRACTION",
        at_least=0,
        below=1,
        where=("core", ("deep", "fast-slow")),
    )
    same_mask: bool = option(
        False, "--layer-dropout drops the same in all of a sequence", where=("core", ("deep",))
    )
    dilations: tuple = option(
        (1, 2, 4, 8),
        "how many steps back each layer recurs from, from the lowest",
        "STEPS",
        at_least=1,
        parse=int,
        many=True,
        shown="1 2 4 8",
        where=("core", ("dilated",)),
    )
    cell: str = option(
        "lstm", "what its layers are", choices=("rnn", "gru", "lstm"), where=("core", ("dilated",))
    )
    every: int = option(
        4,
        "steps from one tick of the slower LSTM to the next",
        "STEPS",
        at_least=1,
        where=("core", ("every", "hierarchy")),
    )
    gather: str = option(
        "last",
        "what it hears of the steps since its last tick: the last, their mean, all",
        choices=("last", "mean", "concat"),
        where=("core", ("every",)),
    )
    periods: tuple = option(
        (1, 2, 4, 8),
        "steps from one tick to the next, of each module, ascending",
        "STEPS",
        at_least=1,
        parse=int,
        many=True,
        shown="1 2 4 8",
        where=("core", ("clockwork", "clockwork-lstm")),
    )
    fast_cells: int = option(
        2, "its fast cells, each ticking once a step", "CELLS", at_least=2,
        where=("core", ("fast-slow",)),
    )
    slow_hidden: int | None = option(
        None,
        "size of its slow cell",
        "UNITS",
        at_least=1,
        shown="4/7 of --hidden, the size of the fast ones",
        where=("core", ("fast-slow",)),
    )
    no_layer_norm: bool = option(
        False,
        "leave out the layer normalisation",
        where=("core", ("norm-lstm", "fast-slow", "hm-lstm")),
    )
    zoneout_h: float = option(
        0.0,
        "fraction of the units of h that keep their old value in a step of training",
        "FRACTION",
        at_least=0,
        below=1,
        where=("core", ("norm-lstm", "fast-slow")),
    )
    zoneout_c: float = option(
        0.0,
        "the same for c",
        "FRACTION",
        at_least=0,
        below=1,
        where=("core", ("norm-lstm", "fast-slow")),
    )
    recurrent_dropout: float = option(
        0.0,
        "fraction of an LSTM's new values g that training drops",
        "FRACTION",
        at_least=0,
        below=1,
        where=("core", ("norm-lstm",)),
    )
    weight_drop: float = option(
        0.0,
        "fraction of the hidden-to-hidden weights that training drops for a whole sequence",
        "FRACTION",
        at_least=0,
        below=1,
        where=("core", (*PLAIN, "norm-lstm")),
    )
    shortest_period: float = option(
        1.0, "shortest of the units' periods at the start", "STEPS", above=0,
        where=("core", ("phased",)),
    )
    longest_period: float = option(
        1000.0, "longest of them", "STEPS", above=0, where=("core", ("phased",))
    )
    open_ratio: float = option(
        0.05,
        "part of its period in which a unit is open",
        "FRACTION",
        above=0,
        where=("core", ("phased",)),
    )
    skip_bias: float = option(
        1.0,
        "its gate's bias at the start: above 0 it begins by updating at every step, below it skips",
        where=("core", ("skip",)),
    )
    skip_cost: float = option(
        0.0,
        "what every update of its state adds to the loss, so that it learns to skip",
        "NATS",
        at_least=0,
        where=("core", ("skip",)),
    )
    slope_growth: float = option(
        0.04,
        "what an epoch adds to the slope of the detectors' gradient, from 1 up to 5",
        "SLOPE",
        at_least=0,
        where=("core", ("hm-lstm",)),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parameters is not None and self.hidden != CoreOptions.hidden:
            raise ValueError(
                f"--parameters chooses --hidden: give one of them; got {self.parameters} and"
                f" {self.hidden}"
            )
        if self.same_mask and not self.layer_dropout:
            raise ValueError("--same-mask goes with --layer-dropout only")


FITTED = ("dni", "least-squares", "bp-lambda")  # estimators that learn
DESCENDING = ("dni", "bp-lambda")  # those of them that an optimiser moves
ESTIMATORS = ("none", *FITTED, "true")
CONTEXTS = ("input", "target", "label")


@dataclasses.dataclass(frozen=True)
class EstimatorOptions(Checked):
    """estimator"""

    estimator: str = option(
        "dni",
        "what stands at a cut for the gradient of the future: zero (none: plain truncated"
        " backpropagation), a learned prediction of it (dni: synthetic gradients; least-squares: the"
        " same, linear and solved for; bp-lambda: linear and learned by eligibility traces, for small"
        " networks) or itself (true: every update looks ahead, at the price of all the steps that it"
        " looks at)",
        choices=ESTIMATORS,
    )
    lookahead: int | str = option(
        40,
        "how far it looks ahead from a cut, rounded up to whole chunks, or the word sequence for to"
        " the sequence's end",
        "STEPS",
        at_least=1,
        parse=number_or("sequence"),
        where=("estimator", ("true",)),
    )
    estimator_hidden: tuple | None = option(
        None,
        "widths of the hidden layers of the predictor, or the word linear for none",
        "UNITS",
        at_least=1,
        parse=number_or("linear"),
        many=True,
        shown="one layer as wide as the core",
        where=("estimator", ("dni",)),
    )
    scale: float | str | None = option(
        None,
        "multiplies a synthetic gradient where it is injected into the core; the word auto for what"
        " its predictions earn on targets that it was not yet fitted to, 0 to 1",
        at_least=0,
        parse=fraction_or("auto"),
        shown="0.1; 1 with least-squares, true",
        where=("estimator", (*FITTED, "true")),
        may_change=True,
    )
    discount: float | None = option(
        None,
        "multiplies a synthetic gradient where it enters the predictor's target; with true, the loss"
        " of each further chunk",
        at_least=0,
        shown="0.1; 0.9 with least-squares; 1 with true; 0 with --scale auto, which multiplies it",
        where=("estimator", (*FITTED, "true")),
        may_change=True,
    )
    context: tuple = option(
        (),
        "what the predictor is told beside the state, one or more: the next step's input, its target"
        " (what is to be said there; zeros where nothing counts), the label of the whole sequence,"
        " of a task that has one",
        choices=CONTEXTS,
        many=True,
        shown="nothing",
        where=("estimator", ("dni", "least-squares")),
    )
    reads: int = option(
        1,
        "of how many coming steps --context tells",
        "STEPS",
        at_least=1,
        where=("estimator", ("dni", "least-squares")),
    )
    reader: int | None = option(
        None,
        "units of a recurrent network that reads them backwards and is joined with the state",
        "UNITS",
        at_least=1,
        shown="none: the state and they are one vector",
        where=("estimator", ("dni",)),
    )
    dense: bool = option(
        False,
        "fit the predictor at every step, not at the first of a chunk only",
        where=("estimator", ("dni", "least-squares")),
    )
    normalise: bool = option(
        False,
        "predict in units of the targets' running size, so that --estimator-lr means the same"
        " whatever it is",
        where=("estimator", ("dni",)),
    )
    trace_decay: float | None = option(
        None,
        "lambda of the predictor's targets, 0 to 1: how much they go by the losses of later chunks"
        " and not by its own word; with dni, least-squares, chunks of the same update",
        "FRACTION",
        at_least=0,
        shown="0; 0.9 in bp-lambda",
        where=("estimator", FITTED),
    )
    auxiliary: float = option(
        0.0,
        "weight of the auxiliary task: to say at a cut what the predictor will say at the next one",
        "WEIGHT",
        at_least=0,
        where=("estimator", ("dni",)),
    )
    forgetting: float = option(
        0.97,
        "what a solution leaves of the weight of older targets, each update",
        "FRACTION",
        at_least=0,
        below=1,
        where=("estimator", ("least-squares",)),
    )
    ridge: float = option(
        1e-3,
        "what is added to the squares of the state, as a fraction of them: the more, the nearer to"
        " zero it says where the targets are noise",
        "FRACTION",
        above=0,
        where=("estimator", ("least-squares",)),
    )
    solve_every: int = option(
        4,
        "updates from one solution to the next",
        "UPDATES",
        at_least=1,
        where=("estimator", ("least-squares",)),
    )
    no_terminal_target: bool = option(
        False,
        "do not teach the predictor that nothing comes after a sequence's end",
        where=("estimator", FITTED),
    )
    warm_up: int = option(
        0,
        "updates in which the predictor learns but is not used",
        "UPDATES",
        at_least=0,
        where=("estimator", FITTED),
    )
    blend: int = option(
        0,
        "updates after them over which it comes into full use",
        "UPDATES",
        at_least=0,
        where=("estimator", FITTED),
    )
    fidelity_every: int | None = option(
        None,
        "training symbols between two comparisons of what the predictor says with the true"
        " gradient, on held-out sequences",
        "SYMBOLS",
        at_least=1,
        shown="never",
        where=("estimator", FITTED),
    )
    fidelity_lookahead: int = option(
        40,
        "how far the true gradient looks ahead in them, rounded up to whole chunks",
        "STEPS",
        at_least=1,
        where=("estimator", FITTED),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # In one order, so that the same context is the same run.
        context = tuple(name for name in CONTEXTS if name in self.context)
        object.__setattr__(self, "context", context)
        if self.scale == "auto" and self.estimator not in ("dni", "least-squares"):
            raise ValueError(
                f"--scale auto goes with --estimator dni or least-squares only; got {self.estimator}"
            )
        if self.scale == "auto" and (self.warm_up or self.blend or self.auxiliary):
            raise ValueError(
                "--scale auto begins at 0 and measures what is injected: no --warm-up, --blend or"
                " --auxiliary"
            )
        for name in ("reads", "reader"):
            if getattr(self, name) != type(self).__dataclass_fields__[name].default and not context:
                raise ValueError(
                    f"{flag(name)} goes with --context only; got {getattr(self, name)}"
                )
        if self.reader and (self.normalise or self.trace_decay or self.auxiliary):
            raise ValueError("--reader has units of its own: no --normalise, --trace-decay, --auxiliary")


@dataclasses.dataclass(frozen=True)
class NetworkOptions(EstimatorOptions, CoreOptions):
    """network"""

    dropout: float = option(
        0.0,
        "fraction of the core's inputs and outputs that training drops",
        "FRACTION",
        at_least=0,
        below=1,
        may_change=True,
    )
    truncation: int = option(
        8, "steps a chunk: how far back a gradient is carried exactly", "STEPS", at_least=1
    )
    open_cuts: float | None = option(
        None,
        "random cuts without a bias: the probability that the gradient goes back across a cut, which"
        " is divided by it, less what was predicted there; an update takes chunks up to the next closed"
        " cut, 1 / (1 - FRACTION) in the mean. With --estimator none it is ARTBP; a prediction takes"
        " the variance away at --scale 1",
        "FRACTION",
        at_least=0,
        below=1,
        shown="all cuts are closed",
        where=("estimator", ("none", "dni", "least-squares")),
    )
    dtype: str = option(
        "float32",
        "precision of the arithmetic; parameters, state and optimiser stay float32",
        choices=("float32", "bfloat16"),
    )


@dataclasses.dataclass(frozen=True)
class TrainingOptions(Checked):
    """training"""

    batch: int = option(32, "sequences trained side by side", "SEQUENCES", at_least=1)
    micro_batch: int | None = option(
        None,
        "sequences computed at once; their gradients are summed up to one update",
        "SEQUENCES",
        at_least=1,
        shown="all of --batch",
        may_change=True,
    )
    update_steps: int | str | None = option(
        None,
        "steps an update: a multiple of --truncation, or the word sequence for one a sequence",
        "STEPS",
        at_least=1,
        parse=number_or("sequence"),
        shown="one chunk",
    )
    optimizer: str = option("Adam", "the core's optimiser: a name in torch.optim", "NAME")
    optimizer_options: tuple = option(
        (), "its further options, such as betas=(0.9,0.99)", "KEY=VALUE", parse=key_value, many=True
    )
    lr: float = option(1e-3, "the core's learning rate", "RATE", above=0, may_change=True)
    clip: float = option(
        1.0, "longest gradient (Euclidean norm) of the core in an update; 0: no limit", "NORM",
        at_least=0,
        may_change=True,
    )
    lift: float = option(
        0.0, "shortest gradient of the core in an update: a shorter one is scaled up; 0: no limit",
        "NORM", at_least=0,
        may_change=True,
    )
    decay: str | None = option(
        None,
        "how the core's learning rate falls to zero over the budget (minutes, updates or symbols)",
        choices=("cosine", "linear", "none"),
        shown="cosine for char-lm, copy and repeat-copy where no --schedule is given, else none",
        may_change=True,
    )
    lr_warm_up: int = option(
        0, "updates over which the core's learning rate rises to the whole by equal steps", "UPDATES",
        at_least=0,
        may_change=True,
    )
    average: float | None = option(
        None,
        "what an exponential moving average of the core's weights keeps of itself in an update: the"
        " average is evaluated and kept as the best",
        "FRACTION",
        above=0,
        below=1,
        shown="the weights themselves are",
    )
    schedule: str | None = option(
        None, "learning-rate schedule: a name in torch.optim.lr_scheduler", "NAME", shown="constant"
    )
    schedule_options: tuple = option(
        (), "its options, counted in updates, such as T_max=20000", "KEY=VALUE", parse=key_value,
        many=True,
    )
    estimator_optimizer: str = option(
        "Adam", "the predictor's optimiser: a name in torch.optim", "NAME",
        where=("estimator", DESCENDING),
    )
    estimator_optimizer_options: tuple = option(
        (), "its further options", "KEY=VALUE", parse=key_value, many=True,
        where=("estimator", DESCENDING),
    )
    estimator_lr: float = option(
        1e-4, "the predictor's learning rate", "RATE", above=0, where=("estimator", DESCENDING),
        may_change=True,
    )
    estimator_clip: float = option(
        0.0, "longest gradient of the predictor in an update; 0: no limit", "NORM", at_least=0,
        where=("estimator", DESCENDING),
        may_change=True,
    )
    estimator_lift: float = option(
        0.0, "shortest gradient of the predictor in an update; 0: no limit", "NORM", at_least=0,
        where=("estimator", DESCENDING),
        may_change=True,
    )
    evaluate_every: int = option(
        500_000, "training symbols between two evaluations on validation", "SYMBOLS", at_least=1,
        may_change=True,
    )
    patience: int | None = option(
        None,
        "stop after so many evaluations without a better one",
        "EVALUATIONS",
        at_least=1,
        shown="never",
        may_change=True,
    )
    log_every: int = option(
        25_600, "training symbols between two rows of the log", "SYMBOLS", at_least=1,
        may_change=True,
    )
    seed: int = option(0, "seed of every random number", "SEED", at_least=0)


@dataclasses.dataclass(frozen=True)
class RunOptions(Checked):
    """budget and run folder: may change when a run is resumed"""

    minutes: float | None = option(
        None,
        "stop after so much training time (evaluating and saving not counted)",
        "MINUTES",
        above=0,
        shown="10 where no other limit is given",
        remembered=False,
    )
    updates: int | None = option(
        None,
        "stop after so many updates",
        "UPDATES",
        at_least=1,
        shown="no limit",
        remembered=False,
    )
    symbols: int | None = option(
        None,
        "stop after so many training symbols",
        "SYMBOLS",
        at_least=1,
        shown="no limit",
        remembered=False,
    )
    checkpoint_seconds: float = option(
        60.0, "time between two checkpoints", "SECONDS", above=0, remembered=False
    )
    threads: int | None = option(
        None,
        "CPU threads; a resumed run is the same to the bit at the same number",
        "THREADS",
        at_least=1,
        shown="one a core",
        remembered=False,
    )
    device: str = option(
        "cpu", "where to compute: cpu, cuda or cuda:N; a run may go on on another", "DEVICE",
        remembered=False,
    )
    no_graphs: bool = option(
        False,
        "on a GPU: launch each operation of an update, in place of replaying all as one CUDA graph",
        remembered=False,
    )
    tensorboard: bool = option(
        False, "also log for TensorBoard, in the run folder", remembered=False
    )
    quiet: bool = option(False, "no progress bar", remembered=False)


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def with_value(
    options: Any, name: str, value: Any, among: Iterable[Any] | None = None
) -> dict[str, Any]:
    """An option's value, and the defaults of those options that do not go with it.

    among: of those only that go with one of these values; None: of all.
    """
    found = {name: value}
    for field in dataclasses.fields(options):
        of, allowed = field.metadata["where"] or (None, ())
        if of == name and value not in allowed and (among is None or set(among) & set(allowed)):
            found[field.name] = field.default
    return found


def for_each(options: type, name: str, values: Iterable[Any]) -> list[dict[str, Any]]:
    """For each of an option's values, it and, at its default, what goes with others of them only.

    So one set of options serves them all: each reads its own.
    """
    values = list(dict.fromkeys(values))
    return [with_value(options, name, value, values) for value in values]


def annotations(kind: type) -> set[str]:
    return set(vars(kind).get("__annotations__", {}))


def groups(options: type) -> Iterable[tuple[str, list[dataclasses.Field]]]:
    """(title, fields) for each dataclass that ``options`` inherits from, in order.

    A field belongs to the dataclass that first had it, whoever changed its default.
    """
    for i, group in enumerate(options.__mro__):
        earlier = {name for base in options.__mro__[i + 1 :] for name in annotations(base)}
        own = annotations(group) - earlier
        fields = [field for field in dataclasses.fields(options) if field.name in own]
        if fields and dataclasses.is_dataclass(group):
            yield group.__doc__.splitlines()[0].rstrip("."), fields


def add_arguments(
    parser: argparse.ArgumentParser, options: type, omit: Iterable[str] = (), **defaults: Any
) -> None:
    """Gives ``parser`` a flag for each field of the dataclass ``options``, grouped as it is."""
    for title, fields in groups(options):
        fields = [field for field in fields if field.name not in omit]
        if not fields:
            continue
        group = parser.add_argument_group(title)
        for field in fields:
            add_argument(group, field, defaults.get(field.name, field.default))


def add_argument(group: Any, field: dataclasses.Field, default: Any) -> None:
    rule = field.metadata
    kind = field.type
    if isinstance(kind, types.UnionType):
        kind = typing.get_args(kind)[0]
    company = f"with {', '.join(rule['where'][1])}: " if rule["where"] else ""
    said = company + rule["help"]
    if kind is bool:
        group.add_argument(flag(field.name), action="store_true", help=said.replace("%", "%%"))
        return
    shown = rule["shown"] or ("none" if default in (None, ()) else default)
    if default is argparse.SUPPRESS:
        shown = "as the first RUN's"
    keywords = {"nargs": "+"} if rule["many"] else {}
    group.add_argument(
        flag(field.name),
        type=rule["parse"] or (str if kind is tuple else kind),
        default=default,
        choices=rule["choices"],
        metavar=None if rule["choices"] else rule["unit"] or "NUMBER",
        help=f"{said} (default: {shown})".replace("%", "%%"),
        **keywords,
    )


def from_arguments(options: type[Options], arguments: argparse.Namespace, **given: Any) -> Options:
    """The options object: the parsed flags, and what is given in their place."""
    names = [field.name for field in dataclasses.fields(options) if hasattr(arguments, field.name)]
    return options(**{**{name: getattr(arguments, name) for name in names}, **given})


def from_config(options: type[Options], config: dict) -> Options:
    """The options object of a run's configuration, which has other things beside."""
    names = {field.name for field in dataclasses.fields(options)}
    return options(**{name: value for name, value in config.items() if name in names})


def to_arguments(options: Any) -> list[str]:
    """The flags that give these options: those that differ from the defaults."""
    words: list[str] = []
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value == field.default:
            continue
        words.append(flag(field.name))
        if isinstance(value, bool):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words.append(f"{one[0]}={one[1]!r}" if isinstance(one, tuple) else str(one))
    return words


def remembered(options: Any) -> dict[str, Any]:
    """What of the options makes it this run and no other, as JSON values.

    Beside them "defaults", so that a version with more options, or fewer, knows a run whose options
    stand there, and "places", those that say where data is and not what.
    """

    def plain(value: Any) -> Any:
        return [plain(one) for one in value] if isinstance(value, tuple) else value

    fields = [field for field in dataclasses.fields(options) if field.metadata["remembered"]]
    return {
        **{field.name: plain(getattr(options, field.name)) for field in fields},
        "defaults": {field.name: plain(field.default) for field in fields},
        "places": [field.name for field in fields if field.metadata["place"]],
    }


def changeable(options: type) -> tuple[str, ...]:
    """The options that a run can go on with another value of."""
    fields = dataclasses.fields(options)
    return tuple(field.name for field in fields if field.metadata["may_change"])
