"""SequenceModel: from symbols to the loss of every target, around a Truncated core."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.checks import check_probabilities
from dnirnn.data import Batch, Stream
from dnirnn.deprecated import deprecated
from dnirnn.embedding import Embedding
from dnirnn.interface import Interface
from dnirnn.truncated import Truncated


def symbol_nats(logits: Tensor, y: Tensor) -> Tensor:
    """The nats [T, B] of symbols y [T, B] under a softmax over logits [T, B, V]."""
    nats = F.cross_entropy(in_float32(logits).flatten(0, -2), y.flatten(), reduction="none")
    return nats.view(y.shape)


def in_float32(outputs: Tensor) -> Tensor:
    """What was computed in 16 bits, for the loss: autocast on a GPU leaves that in 16 bits too."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def bit_nats(logits: Tensor, y: Tensor) -> Tensor:
    """The nats [T, B] of bits y [T, B, O] under independent logits [T, B, O], summed over O."""
    return F.binary_cross_entropy_with_logits(in_float32(logits), y, reduction="none").sum(-1)


def squared_error(outputs: Tensor, y: Tensor) -> Tensor:
    """The squared error [T, B] of outputs for numbers y [T, B, O], summed over O.

    It is the nats of y under a Gaussian of variance 1/2 around the output, but for a constant.
    """
    return (in_float32(outputs) - y).square().sum(-1)


class Tied(nn.Module):
    """A readout whose weights are those of an embedding E [V, D]: logits = P h E^T + b.

    It reads h [..., size]. P [D, size] is left out where ``size`` is D. For E to serve as a readout,
    it is drawn anew from U(-1 / sqrt(D), 1 / sqrt(D)).

    Source: Press and Wolf, Using the Output Embedding to Improve Language Models, 2017, arXiv 1608.05859;
    Inan et al. 2017, arXiv 1611.01462.
    """

    def __init__(self, embedding: nn.Embedding, size: int):
        super().__init__()
        symbols, width = embedding.weight.shape
        nn.init.uniform_(embedding.weight, -(width**-0.5), width**-0.5)
        self.embedding = embedding
        self.project = nn.Identity() if size == width else nn.Linear(size, width, bias=False)
        self.bias = nn.Parameter(torch.zeros(symbols))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(self.project(h), self.embedding.weight, self.bias)


def next_input(batch: Batch, encoded: Tensor) -> Tensor:
    """The context of a step by default: its encoded input."""
    return encoded


class SequenceModel(nn.Module):
    """encoder -> dropout -> truncated core -> dropout -> readout -> loss of every target.

    encoder: from x [T, B] or [T, B, I] to the core's inputs [T, B, core.input_size].
    truncated: the core, its truncation and its estimator.
    readout: from the core's outputs [T, B, O] to logits.
    loss: from logits and y to nats [T, B]: :func:`symbol_nats`, :func:`bit_nats`; or, for numbers,
        :func:`squared_error`. Of a batch with soft targets they are given too: :class:`Distillation`.
    dropout: probability of zeroing an element of the core's inputs and of its outputs while
        training; the masks come from torch's global generator.
    context_of: the context, for an estimator that needs one, of the step that comes next:
        [T, B, C] of the steps of a batch and their encoded inputs [T, B, core.input_size].

    Raises TypeError or ValueError for a ``truncated`` that is none or a dropout outside [0, 1).
    """

    def __init__(
        self,
        encoder: nn.Module,
        truncated: Truncated,
        readout: nn.Module,
        loss: Callable[[Tensor, Tensor], Tensor],
        dropout: float = 0.0,
        context_of: Callable[[Batch, Tensor], Tensor] = next_input,
        told: Callable[[Batch, Tensor], Tensor] | None = None,
    ):
        super().__init__()
        if told is not None:
            deprecated("SequenceModel's told", "context_of")
            context_of = told
        if not isinstance(truncated, Truncated):
            raise TypeError(f"truncated must be a dnirnn.Truncated; got {type(truncated).__name__}")
        check_probabilities(dropout=dropout)
        self.encoder, self.truncated, self.readout = encoder, truncated, readout
        self.dropout = nn.Dropout(dropout)
        self.loss, self.context_of = loss, context_of

    def initial_state(self, batch_size: int) -> Tensor:
        """The state [B, S] that a sequence starts from."""
        return self.truncated.core.initial_state(batch_size)

    def forward(
        self, batch: Batch, state: Tensor, t0: int | Tensor | None = None
    ) -> tuple[Tensor, Tensor, list[Interface]]:
        """(nats [T, B], weighted; next state [B, S], detached; interfaces for dnirnn.backward).

        ``state`` is what the batch before returned; where ``batch.first``, give ``initial_state``.
        ``t0`` may be left to the state (see Truncated).
        """
        x, overlap = batch.x, 0
        if batch.before is not None:
            if batch.times is not None and self.truncated.core.takes_times:
                raise ValueError(
                    "overlap must be 0 with a core that takes the times of the steps; got"
                    f" {self.truncated.overlap}"
                )
            x, overlap = torch.cat([batch.before, x]), len(batch.before)
        asks, drops = self.truncated.estimator.needs_context, self.dropout.training and self.dropout.p
        context = None
        if isinstance(self.encoder, Embedding) and not (asks or drops):
            inputs = self.encoder.lazy(x)
        else:
            encoded = self.encoder(x)
            if asks:
                context = self.context(batch, encoded[overlap:])
            inputs = self.dropout(encoded)
        outputs, state, interfaces = self.truncated(
            inputs, state, self.clock(batch, t0), batch.final, context=context, overlap=overlap
        )
        logits = self.readout(self.dropout(outputs))
        soft = () if batch.soft is None else (batch.soft,)
        nats = self.loss(logits, batch.y, *soft)
        return (nats if batch.weight is None else nats * batch.weight), state, interfaces

    def clock(self, batch: Batch, t0: int | Tensor | None) -> int | Tensor | None:
        """The t0 of a batch's core: ``t0``, or, where it takes them, the times that the batch has."""
        return batch.times if batch.times is not None and self.truncated.core.takes_times else t0

    def context(self, batch: Batch, encoded: Tensor) -> Tensor:
        """[T + 1, B, R C]: the context of an estimator that needs one: the next R steps.

        R is what it ``reads``. Before dropout; zeros after a sequence's end, and for steps beyond
        those of ``following``. Raises ValueError for a batch that goes on, but has no ``following``.
        """
        whole = self.context_of(batch, encoded)
        if batch.following is not None:
            after = self.context_of(batch.following, self.encoder(batch.following.x))
        elif batch.final:
            after = torch.zeros_like(whole[:1])
        else:
            raise ValueError("following must be given: the estimator is conditioned on the next step")
        reads = self.truncated.estimator.reads
        if reads == 1:
            return torch.cat([whole, after[:1]]).detach()
        beyond = after.new_zeros(max(0, reads - len(after)), *after.shape[1:])
        coming = torch.cat([whole, after[:reads], beyond]).detach()
        return coming.unfold(0, reads, 1).transpose(-1, -2).flatten(-2)

    def unroll(self, x: Tensor, state: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        """(logits [T, B, ...], last state [B, S]) of inputs x [T, B, ...] in one call, uncut."""
        outputs, state = self.truncated.core(self.encoder(x), state, t)
        return self.readout(outputs), state

    def step(self, x: Tensor, state: Tensor, t: int | None = None) -> tuple[Tensor, Tensor]:
        """One step without a target, for sampling: (logits [B, ...], next state) of x [B, ...]."""
        inputs = self.dropout(self.encoder(x[None]))
        outputs, state = self.truncated.core(inputs, state, t)
        return self.readout(self.dropout(outputs))[0], state

    def estimator_parameters(self) -> list[nn.Parameter]:
        """The estimator's parameters; none for ZeroGradient."""
        return list(self.truncated.estimator.parameters())

    def core_parameters(self) -> list[nn.Parameter]:
        """All parameters but the estimator's: the encoder's, the core's and the readout's."""
        estimator = {id(parameter) for parameter in self.estimator_parameters()}
        return [parameter for parameter in self.parameters() if id(parameter) not in estimator]


def measure(model: SequenceModel, stream: Stream, steps: int = 128) -> dict[str, float]:
    """Runs a stream to its next sequence's end: {"bits": mean bits per target, "targets": count}.

    A TextStream begins anew after its end, so the same one can be measured again. Without dropout
    and without gradients; leaves the model in the mode that it was in.

    steps: steps a call; changes the speed, not the result.
    """
    training = model.training
    device = next(model.parameters()).device
    state, t, nats, targets = model.initial_state(stream.batch_size), 0, 0.0, 0.0
    model.eval()
    try:
        with torch.no_grad():
            final = False
            while not final:
                batch = stream.next(steps).to(device)
                weighted, state, _ = model(batch, state, t)
                nats = nats + weighted.sum(dtype=torch.float64)
                targets = targets + (
                    weighted.numel() if batch.weight is None else batch.weight.sum()
                )
                t, final = t + len(batch.x), batch.final
    finally:
        model.train(training)
    return {"bits": float(nats / targets) / math.log(2), "targets": round(float(targets))}
