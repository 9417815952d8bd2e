"""What the options of every task say about the network: the core, its cuts, the arithmetic."""

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import (
    AutoScale,
    BPLambda,
    LeastSquares,
    Reader,
    SyntheticGradient,
    TrueGradient,
    Truncated,
    ZeroGradient,
)
from dnirnn.config.cores import make_core, sized
from dnirnn.config.options import NetworkOptions, flag
from dnirnn.core import Core
from dnirnn.data import Batch
from dnirnn.estimators import GradientEstimator
from dnirnn.interface import Interface
from dnirnn.model import SequenceModel


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

    label_size: of what the estimator may be told of a whole sequence; 0 where there is no such thing.
    readout: makes it, from the size of what the core says and ``outputs``.
    """
    if options.parameters is not None:
        options = sized(
            options, lambda o: make_model(o, encoder, input_size, outputs, loss, label_size, readout)
        )
    truncated = make_truncated(options, make_core(options, input_size), outputs, label_size)
    made = readout(truncated.core.output_size, outputs)
    return assemble(options, encoder, truncated, made, loss, partial(vectors_of, size=outputs))


def vectors_of(y: Tensor, size: int) -> Tensor:
    """Targets as an estimator is told of them: bits and numbers as they are, symbols one-hot."""
    return y if y.is_floating_point() else F.one_hot(y, size)


def make_truncated(
    options: NetworkOptions, core: Core, target_size: int, label_size: int = 0
) -> Truncated:
    """The core, cut, with its estimator, which may be told vectors of these sizes."""
    sizes = {"input": core.input_size, "target": target_size, "label": label_size}
    estimator = make_estimator(options, core, sizes)
    if options.open_cuts is not None and options.update_steps not in (None, options.truncation):
        raise ValueError(
            "--open-cuts draws the steps of an update: --update-steps must be --truncation"
            f" {options.truncation}; got {options.update_steps}"
        )
    return Truncated(core, options.truncation, estimator, options.open_cuts)


def assemble(
    options: NetworkOptions,
    encoder: nn.Module,
    truncated: Truncated,
    readout: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    spell: Callable[[Tensor], Tensor],
) -> SequenceModel:
    """The model of these parts.

    spell: from y to the vectors [T, B, C] that an estimator is told of a target.
    """
    kind = BFloat16Model if options.dtype == "bfloat16" else SequenceModel
    told = partial(tell, spell=spell, names=options.context)
    return kind(encoder, truncated, readout, loss, options.dropout, told)


def tell(
    batch: Batch, encoded: Tensor, spell: Callable[[Tensor], Tensor], names: tuple[str, ...]
) -> Tensor:
    """What the names of --context say of each step, [T, B, C]."""
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


USUAL = {"least-squares": (1.0, 0.9), "true": (1.0, 1.0)}  # scale and discount, where not 0.1


def make_estimator(
    options: NetworkOptions, core: Core, sizes: dict[str, int]
) -> GradientEstimator:
    """The estimator that the options name; with --scale auto, in an AutoScale.

    sizes: as for make_scaled.
    """
    if options.scale != "auto":
        return make_scaled(options, core, sizes)
    discount = 0.0 if options.discount is None else options.discount
    inner = dataclasses.replace(options, scale=1.0, discount=discount)
    return AutoScale(make_scaled(inner, core, sizes))


def make_scaled(options: NetworkOptions, core: Core, sizes: dict[str, int]) -> GradientEstimator:
    """sizes: of what the names of --context tell of a step; 0 where the task has no such thing."""
    for name in options.context:
        if not sizes[name]:
            raise ValueError(f"--context {name}: this task's sequences have none")
    usual = USUAL.get(options.estimator, (0.1, 0.1))
    scale = usual[0] if options.scale is None else options.scale
    discount = usual[1] if options.discount is None else options.discount
    if options.estimator == "none":
        return ZeroGradient()
    if options.estimator == "true":
        steps = options.lookahead
        chunks = None if steps == "sequence" else -(-steps // options.truncation)
        return TrueGradient(chunks, scale, discount)
    common = dict(
        scale=scale,
        discount=discount,
        terminal_target=not options.no_terminal_target,
    )
    if options.estimator == "bp-lambda":
        if options.micro_batch is not None:
            raise ValueError("--estimator bp-lambda follows its sequences: no --micro-batch")
        decay = 0.9 if options.trace_decay is None else options.trace_decay
        return BPLambda(core.state_size, options.batch, decay, **common)
    for name in ("trace_decay", "auxiliary"):
        if getattr(options, name) and options.update_steps in (None, options.truncation):
            raise ValueError(
                f"{flag(name)} needs several chunks an update: --update-steps of at least"
                f" {2 * options.truncation}"
            )
    step_size = sum(sizes[name] for name in options.context)
    common.update(dense=options.dense)
    told = dict(context_size=options.reads * step_size, trace_decay=options.trace_decay or 0.0)
    if options.estimator == "least-squares":
        estimator = LeastSquares(
            core.state_size,
            **common,
            **told,
            forgetting=options.forgetting,
            ridge=options.ridge,
            solve_every=options.solve_every,
        )
        estimator.reads = options.reads
        return estimator
    widths = options.estimator_hidden
    if widths is None:
        widths = (options.hidden,)
    elif "linear" in widths:
        if len(widths) > 1:
            raise ValueError("--estimator-hidden must be widths, or the word linear alone")
        widths = ()
    if options.reader is not None:
        return Reader(
            core.state_size, options.reads, step_size, options.reader, widths, **common
        )
    estimator = SyntheticGradient(
        core.state_size,
        widths,
        **common,
        **told,
        normalise=options.normalise,
        auxiliary=options.auxiliary,
    )
    estimator.reads = options.reads
    return estimator


def device_of(model: SequenceModel) -> torch.device:
    return next(model.parameters()).device
