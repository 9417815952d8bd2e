"""What the options of every task say about the network: the core, its cuts, the arithmetic."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dnirnn import BPLambda, SyntheticGradient, Truncated, ZeroGradient
from dnirnn.core import Core
from dnirnn.data import Batch
from dnirnn.estimators import GradientEstimator
from dnirnn.interface import Interface
from dnirnn.model import SequenceModel
from dnirnn.tasks.cores import make_core, sized
from dnirnn.tasks.options import NetworkOptions, flag


class BFloat16Model(SequenceModel):
    """A SequenceModel whose products are computed in bfloat16, and its loss in float32."""

    def forward(
        self, batch: Batch, state: Tensor, t0: int = 0
    ) -> tuple[Tensor, Tensor, list[Interface]]:
        with torch.autocast(batch.x.device.type, torch.bfloat16):
            return super().forward(batch, state, t0)

    def step(self, x: Tensor, state: Tensor, t: int = 0) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, torch.bfloat16):
            return super().step(x, state, t)


def make_model(
    options: NetworkOptions,
    encoder: nn.Module,
    input_size: int,
    outputs: int,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> SequenceModel:
    """encoder -> the core that the options name, truncated -> a linear readout of ``outputs``."""
    if options.parameters is not None:
        options = sized(options, lambda o: make_model(o, encoder, input_size, outputs, loss))
    truncated = make_truncated(options, make_core(options, input_size))
    readout = nn.Linear(truncated.core.output_size, outputs)
    return model_class(options)(encoder, truncated, readout, loss, options.dropout)


def model_class(options: NetworkOptions) -> type[SequenceModel]:
    return BFloat16Model if options.dtype == "bfloat16" else SequenceModel


def make_truncated(options: NetworkOptions, core: Core) -> Truncated:
    return Truncated(core, options.truncation, make_estimator(options, core))


def make_estimator(options: NetworkOptions, core: Core) -> GradientEstimator:
    if options.estimator == "none":
        return ZeroGradient()
    common = dict(
        scale=options.scale,
        discount=options.discount,
        terminal_target=not options.no_terminal_target,
    )
    if options.estimator == "bp-lambda":
        if options.micro_batch is not None:
            raise ValueError("--estimator bp-lambda follows its sequences: no --micro-batch")
        decay = 0.9 if options.trace_decay is None else options.trace_decay
        return BPLambda(core.state_size, options.batch, decay, **common)
    widths = options.estimator_hidden
    if widths is None:
        widths = (options.hidden,)
    elif "linear" in widths:
        if len(widths) > 1:
            raise ValueError("--estimator-hidden must be widths, or the word linear alone")
        widths = ()
    for name in ("trace_decay", "auxiliary"):
        if getattr(options, name) and options.update_steps in (None, options.truncation):
            raise ValueError(
                f"{flag(name)} needs several chunks an update: --update-steps of at least"
                f" {2 * options.truncation}"
            )
    return SyntheticGradient(
        core.state_size,
        widths,
        **common,
        context_size=core.input_size if options.next_input else 0,
        dense=options.dense,
        normalise=options.normalise,
        trace_decay=options.trace_decay or 0.0,
        auxiliary=options.auxiliary,
    )


def unroll(
    model: SequenceModel, x: Tensor, state: Tensor, t: int | Tensor
) -> tuple[Tensor, Tensor]:
    """(logits [T, B, ...], last state [B, S]) of inputs x [T, B, ...] in one call, uncut."""
    reduced = isinstance(model, BFloat16Model)
    with torch.autocast(x.device.type, torch.bfloat16, enabled=reduced):
        outputs, state = model.truncated.core(model.encoder(x), state, t)
        return model.readout(outputs), state
