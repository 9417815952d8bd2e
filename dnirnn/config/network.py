"""The options of the network that every task has: the core, its cuts, the arithmetic."""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import Skip, Truncated
from dnirnn.config.parallel import in_parts, parts_of
from dnirnn.config.task import Figure, Measure, chunk_steps
from dnirnn.core import CORES, Core, CoreConfig
from dnirnn.data import Batch
from dnirnn.estimators import ByPart, GradientEstimator, ZeroGradient
from dnirnn.estimators.base import ESTIMATORS, EstimatorConfig, Setting
from dnirnn.groups import OptionGroup
from dnirnn.interface import Interface
from dnirnn.model import SequenceModel
from dnirnn.options import choice, flag, option, override
from dnirnn.training.config import TrainerConfig

UPDATES = Figure("updates", "share of the steps that update the state", "{:.3f}", True)


@dataclass(frozen=True, init=False)
class NetworkOptions(OptionGroup):
    """network"""

    core: CoreConfig = choice(CORES, "lstm", "the recurrent network")
    parameters: int | None = option(
        None,
        "in place of --hidden: the size that gives the model, without its predictor, about so many",
        "PARAMETERS",
        at_least=1,
        shown="what --hidden gives",
    )
    dropout: float = option(
        0.0, "fraction of the core's inputs and outputs that training drops", "FRACTION",
        at_least=0, below=1, may_change=True,
    )  # fmt: skip
    dtype: str = option(
        "float32", "precision of the arithmetic; parameters, state and optimiser stay float32",
        choices=("float32", "bfloat16"),
    )  # fmt: skip
    truncation: int | str = option(
        8,
        "steps a chunk: how far back a gradient is carried exactly; the word auto for as few as"
        " --truncation-bound allows by what is measured in training",
        "STEPS",
        at_least=1,
        words=("auto",),
    )
    truncation_bound: float | None = override(TrainerConfig, "truncation_bound")
    longest_truncation: int = override(TrainerConfig, "longest_truncation")
    truncation_every: int = override(TrainerConfig, "truncation_every")
    truncation_plan: tuple = override(TrainerConfig, "truncation_plan")
    chunks_plan: tuple = override(TrainerConfig, "chunks_plan")
    update_steps: int | str | None = option(
        None, "steps an update: a multiple of --truncation, or the word sequence for one a sequence",
        "STEPS", at_least=1, words=("sequence",), shown="one chunk",
    )  # fmt: skip
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
        needs="opens",
    )
    overlap: int = option(
        0,
        "how many steps further back than its chunk the gradient of an update is carried: they are run"
        " again. With k1 of --truncation it is TBPTT(k1, k1 + STEPS)",
        "STEPS",
        at_least=0,
        needs="opens",
    )
    estimator: EstimatorConfig = choice(
        ESTIMATORS, "dni", "what stands at a cut for the gradient of the future"
    )
    horizon_every: int | None = override(TrainerConfig, "horizon_every")
    fidelity_lookahead: int = option(
        40,
        "with --fidelity-every: how far the true gradient looks ahead in it, rounded up to whole chunks",
        "STEPS",
        at_least=1,
        needs="fitted",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.parameters is not None and self.core.hidden != CoreConfig.hidden:
            raise ValueError(
                f"--parameters chooses --hidden: give one of them; got {self.parameters} and"
                f" {self.core.hidden}"
            )
        self.check_auto()
        if getattr(self.estimator, "scale", None) == "auto" and (self.warm_up or self.ramp):
            raise ValueError(
                "--scale auto begins at 0 and measures what is injected: no --warm-up or --ramp"
            )


    def check_auto(self) -> None:
        """Raises ValueError for what does not go with --truncation auto, or not without it."""
        if self.truncation != "auto":
            for name in ("truncation_bound", "longest_truncation", "truncation_every"):
                if getattr(self, name) != getattr(type(self), name):
                    raise ValueError(f"{flag(name)} goes with --truncation auto only")
            return
        plain = {
            "estimator": "none", "open_cuts": None, "overlap": 0, "parallel": "data",
            "truncation_plan": (), "chunks_plan": (),
        }  # fmt: skip
        for name, value in plain.items():
            given = getattr(self, name, value)
            if str(given) != str(value):
                raise ValueError(
                    f"--truncation auto measures what plain truncation leaves out: {flag(name)} must"
                    f" be {value}; got {given}"
                )
        if isinstance(self.update_steps, int):
            raise ValueError(
                "--truncation auto changes the steps of a chunk: --update-steps must be the word"
                f" sequence, or not given, for a chunk; got {self.update_steps}"
            )


class BFloat16Model(SequenceModel):
    """A SequenceModel whose products are computed in bfloat16, and its loss in float32."""

    def forward(
        self, batch: Batch, state: Tensor, t0: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Interface]]:
        with torch.autocast(batch.x.device.type, torch.bfloat16):
            return super().forward(batch, state, t0)

    def step(self, x: Tensor, state: Tensor, t: int | None = None) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().step(x, state, t)

    def unroll(self, x: Tensor, state: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().unroll(x, state, t)


def make_model(
    options: NetworkOptions,
    encoder: nn.Module,
    input_size: int,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
    label_size: int = 0,
    readout: Callable[[int, int], nn.Module] = nn.Linear,
) -> SequenceModel:
    """encoder -> the core that the options name, truncated -> a readout of ``outputs``.

    label_size: of a whole sequence's context of the estimator; 0 where there is no such thing.
    readout: makes it, from the size of the core's output and ``outputs``.
    """
    if options.parameters is not None:
        options = sized(
            options, lambda o: make_model(o, encoder, input_size, outputs, loss, label_size, readout)
        )
    truncated = make_truncated(options, options.core.build(input_size), outputs, label_size)
    made = readout(truncated.core.output_size, outputs)
    return assemble(options, encoder, truncated, made, loss, partial(vectors_of, size=outputs))


def vectors_of(y: Tensor, size: int) -> Tensor:
    """Targets as an estimator's context: bits and numbers as they are, symbols one-hot."""
    return y if y.is_floating_point() else F.one_hot(y, size)


def make_truncated(
    options: NetworkOptions, core: Core, target_size: int, label_size: int = 0
) -> Truncated:
    """The core, cut, with its estimator, conditioned on contexts of these sizes."""
    truncation = chunk_steps(options)
    steps = truncation if options.update_steps is None else options.update_steps
    fewest = None
    if steps != "sequence":
        fewest = min([steps, *(truncation * many for many in options.chunks_plan)])
    setting = Setting(
        core,
        options.core.hidden,
        {"input": core.input_size, "target": target_size, "label": label_size},
        truncation,
        fewest,
        options.batch,
        options.micro_batch is not None,
    )
    alone = {"--open-cuts draws the steps of an update": options.open_cuts is not None}
    alone["--overlap is of updates of one chunk"] = options.overlap > 0
    for why, asked in alone.items():
        if asked and steps != truncation:
            raise ValueError(f"{why}: --update-steps must be --truncation {truncation}; got {steps}")
    if all(alone.values()):
        raise ValueError(f"--overlap must be 0 with --open-cuts; got {options.overlap}")
    if in_parts(options):
        cores, sizes = zip(*parts_of(core))
        made = [
            options.estimator.build(setting._replace(core=one)) if one else ZeroGradient()
            for one in cores
        ]
        estimator: GradientEstimator = ByPart(made, sizes)
    else:
        estimator = options.estimator.build(setting)
    return Truncated(core, truncation, estimator, options.open_cuts, options.overlap)


def assemble(
    options: NetworkOptions,
    encoder: nn.Module,
    truncated: Truncated,
    readout: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    spell: Callable[[Tensor], Tensor],
) -> SequenceModel:
    """The model of these parts.

    spell: from y to the vectors [T, B, C] of a target that are an estimator's context.
    """
    kind = BFloat16Model if options.dtype == "bfloat16" else SequenceModel
    context = partial(context_of, spell=spell, names=options.estimator.context)
    return kind(encoder, truncated, readout, loss, options.dropout, context)


def context_of(
    batch: Batch, encoded: Tensor, spell: Callable[[Tensor], Tensor], names: tuple[str, ...]
) -> Tensor:
    """The contexts of --context of each step, [T, B, C]."""
    parts = []
    for name in names:
        if name == "input":
            parts.append(encoded)
        elif name == "target":
            target = spell(batch.y).to(encoded.dtype)
            parts.append(target if batch.weight is None else target * batch.weight[..., None])
        else:
            parts.append(batch.label.expand(len(batch.x), -1, -1).to(encoded.dtype))
    return torch.cat(parts, -1)


def sized(
    options: NetworkOptions, make: Callable[[NetworkOptions], SequenceModel]
) -> NetworkOptions:
    """The options with the --hidden that brings ``make(options)`` nearest to --parameters.

    Raises ValueError where even the smallest model has more.
    """

    def with_hidden(multiple: int) -> NetworkOptions:
        hidden = multiple * options.core.multiple
        return dataclasses.replace(options, parameters=None, hidden=hidden)

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


def annealing(options: OptionGroup) -> Callable[[SequenceModel, float], None]:
    """What sets in a model, before an update, what changes with the epochs seen."""
    core = options.choices().get("core", CoreConfig())
    return lambda model, epochs: core.anneal(model, epochs)


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


def device_of(model: SequenceModel) -> torch.device:
    return next(model.parameters()).device
