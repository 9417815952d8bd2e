"""Distillation: a loss towards what teachers predict, beside the loss on the targets.

Source: Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531.
Towards a teacher who knows nothing it is label smoothing (Szegedy et al. 2016, arXiv 1512.00567).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn.checks import (
    check_flags,
    check_instances,
    check_knobs,
    check_positive,
    check_sizes,
    shown,
)
from dnirnn.data import Batch, Stream
from dnirnn.model import SequenceModel, symbol_nats

States = tuple[Tensor, ...]


class Uniform(nn.Module):
    """A teacher who knows nothing: each of ``size`` symbols is as likely as another, at every step."""

    def __init__(self, size: int):
        super().__init__()
        self.register_buffer("logits", torch.zeros(size), persistent=False)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.logits.new_zeros(batch_size, 0)

    def unroll(self, x: Tensor, state: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        return self.logits.expand(*x.shape[:2], -1), state


class Ensemble(nn.Module):
    """Several models as one that predicts the mean of what they predict, to be measured.

    logits = log(1/n sum_i softmax(z_i)). Its state is theirs, side by side.

    models: at least one SequenceModel, of the same symbols.
    """

    def __init__(self, models: Sequence[SequenceModel]):
        super().__init__()
        self.models = nn.ModuleList(models)
        self.together = Distillation(models)
        self.loss = symbol_nats

    def initial_state(self, batch_size: int) -> Tensor:
        return torch.cat(self.together.initial_state(batch_size), -1)

    def unroll(self, x: Tensor, state: Tensor, t: int | Tensor) -> tuple[Tensor, Tensor]:
        sizes = [one.initial_state(1).shape[1] for one in self.together.teachers]
        likely, states = self.together.soft(x, state.split(sizes, -1), t)
        assert likely is not None  # all are asked
        return likely.log(), torch.cat(states, -1)


class Distillation:
    """The loss of a student on targets and on the softened mean prediction of teachers.

    With z the student's logits, z_i those of teacher i of n, t the temperature and w the weight,

        q    = 1/n sum_i softmax(z_i / t)          (``soft``)
        p    = softmax(z / t)
        loss = (1 - w) CE(softmax(z), y) + w t^2 KL(q || p)      in nats, of every step and row

    t^2 keeps the gradient of the soft part in proportion, whatever the temperature: it goes, as t
    grows, to (z - mean z - (z_1 - mean z_1)) / V for one teacher. At w = 0 it is the plain loss, to
    the last bit, and the teachers are not asked.

    In a loop of your own:

        distillation = dnirnn.Distillation(teachers, weight=0.5, temperature=1.0)
        states = distillation.initial_state(B)
        soft, states = distillation.soft(x, states, t)
        loss = distillation(logits, y, soft).mean()

    With a Trainer: give it to the student as its ``loss``, and the stream as ``DistilledStream(stream,
    distillation)``.

    teachers: at least one SequenceModel, or any module with its ``initial_state`` and ``unroll`` (see
        :class:`Uniform`), whose logits are of the student's symbols. They are put into eval mode and
        asked without gradients, uncut, on the path that their cores have for inference.
    weight: w, in [0, 1]. temperature: t, above 0.
    fixed: whether the teachers predict the same whenever they are asked, so that it may be kept.
        Give False where they learn, or draw.

    Raises ValueError for no teacher, a weight or a temperature outside its range; TypeError for a
    teacher that can't be asked.
    """

    def __init__(
        self,
        teachers: Sequence[SequenceModel],
        weight: float = 0.5,
        temperature: float = 1.0,
        fixed: bool = True,
    ):
        if not isinstance(teachers, Sequence):
            raise TypeError(f"teachers must be a list of models; got {shown(teachers)}")
        self.teachers = list(teachers)
        if not self.teachers:
            raise ValueError("teachers must be at least one model; got none")
        for teacher in self.teachers:
            if not (hasattr(teacher, "unroll") and hasattr(teacher, "initial_state")):
                raise TypeError(
                    "teachers must be SequenceModels, or have their initial_state and unroll; got"
                    f" {shown(teacher)}"
                )
            teacher.eval()
        check_knobs(weight=weight)
        if weight > 1:
            raise ValueError(f"weight must be in [0, 1]; got {weight!r}")
        check_positive(temperature=temperature)
        check_flags(fixed=fixed)
        self.weight, self.temperature, self.fixed = weight, temperature, fixed

    def to(self, device: torch.device) -> None:
        """Moves the teachers."""
        for teacher in self.teachers:
            teacher.to(device)

    def initial_state(self, batch_size: int) -> States:
        """The states that sequences start from: of each teacher [B, its S]."""
        with torch.no_grad():
            return tuple(teacher.initial_state(batch_size) for teacher in self.teachers)

    def asked(self) -> list[bool]:
        """Which of the teachers are asked."""
        return [True] * len(self.teachers)

    def soft(self, x: Tensor, states: States, t: int | Tensor = 0) -> tuple[Tensor | None, States]:
        """(q [T, B, V], the states after it) of inputs x [T, B] that go on from ``states`` at step t.

        q is None, and a state what it was, where no teacher is asked. Raises ValueError where teachers
        predict different numbers of symbols.
        """
        total: Any = None
        after: list[Tensor] = []
        asked = self.asked()
        with torch.no_grad():
            for teacher, state, is_asked in zip(self.teachers, states, asked, strict=True):
                if not is_asked:
                    after.append(state)
                    continue
                logits, state = teacher.unroll(x, state, t)
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                likely = torch.softmax(logits / self.temperature, -1)
                if total is not None and total.shape != likely.shape:
                    raise ValueError(
                        "teachers must predict the same symbols; got"
                        f" {total.shape[-1]} and {likely.shape[-1]}"
                    )
                total = likely if total is None else total + likely
                after.append(state)
        return total if total is None or sum(asked) == 1 else total / sum(asked), tuple(after)

    def __call__(self, logits: Tensor, y: Tensor, soft: Tensor | None = None) -> Tensor:
        """The loss [T, B] of logits [T, B, V] for symbols y [T, B] and soft targets q [T, B, V].

        Without ``soft`` it is the plain loss, the nats of y: what an evaluation counts.

        Raises ValueError for soft targets of another shape than the logits.
        """
        nats = symbol_nats(logits, y)
        if soft is None or not self.weight:
            return nats
        if soft.shape != logits.shape:
            raise ValueError(
                f"soft must be of the logits' shape {tuple(logits.shape)}; got {tuple(soft.shape)}"
            )
        kind = torch.promote_types(logits.dtype, soft.dtype)
        log_probabilities = F.log_softmax(logits.to(kind) / self.temperature, -1)
        divergence = F.kl_div(log_probabilities, soft, reduction="none").sum(-1)
        return (1 - self.weight) * nats + self.weight * self.temperature**2 * divergence


WINDOW = 64  # steps that teachers are asked at once along a text whose predictions are kept


class Kept:
    """What teachers predict along a sequence that every epoch repeats: asked once, then looked up.

    They are asked in windows of their own, so that what they predict does not depend on the lengths of
    updates; kept in float16: to a relative 2^-11, or an absolute 2^-25 where that is larger.
    """

    def __init__(self, stream: Stream, distillation: Distillation):
        self.stream, self.distillation = stream.from_start(), distillation
        self.temperature, self.known = distillation.temperature, 0
        self.states = distillation.initial_state(stream.batch_size)
        soft, _ = distillation.soft(self.input(stream.from_start().next(1)), self.states)
        assert stream.epoch_steps is not None and soft is not None
        self.shape = (stream.epoch_steps, *soft.shape[1:])
        self.size = 2 * math.prod(self.shape)  # bytes
        self.predictions: Tensor | None = None

    def input(self, batch: Batch) -> Tensor:
        return batch.x.to(self.states[0].device)

    def steps(self, start: int, end: int) -> Tensor:
        """The predictions [end - start, B, V] of the steps from start to end, in float32."""
        if self.predictions is None:
            device = self.states[0].device
            self.predictions = torch.empty(self.shape, dtype=torch.float16, device=device)
        while self.known < end:
            x = self.input(self.stream.next(WINDOW))
            soft, self.states = self.distillation.soft(x, self.states, self.known)
            self.predictions[self.known : self.known + len(x)] = soft
            self.known += len(x)
        return self.predictions[start:end].float()


class DistilledStream(Stream):
    """A stream whose batches carry what the teachers of a distillation predict (``Batch.soft``).

    Where every epoch is the same sequence (a text), and the teachers are ``fixed``, they are asked in
    its first epoch, and what they predicted is kept. A run that is resumed asks them again, up to where
    it is, when its place is loaded. Else their states are carried as the student's is: they begin anew
    where the sequences do, and are part of the stream's state_dict.

    memory: bytes that the kept predictions may take, on the teachers' device and in each process: two
        per step, row and symbol of the vocabulary. Where they need more, the teachers are asked at
        every step instead. 0: always.
    """

    def __init__(self, stream: Stream, distillation: Distillation, memory: int = 2**30):
        check_instances(Stream, stream=stream)
        check_instances(Distillation, distillation=distillation)
        check_sizes(0, memory=memory)
        self.stream, self.distillation, self.memory = stream, distillation, memory
        self.batch_size, self.unbroken = stream.batch_size, stream.unbroken
        self.states: States | None = None
        self.kept: Kept | None = None
        self.t = 0

    @property
    def epochs(self) -> float:
        return self.stream.epochs

    def next(self, steps: int | None) -> Batch:
        kept = self.keep() if self.distillation.weight else None
        start = self.stream.position if kept is not None else 0
        batch = self.stream.next(steps)
        if not self.distillation.weight:
            return batch
        if kept is not None:
            return batch._replace(soft=kept.steps(start, start + len(batch.x)))
        if batch.first or self.states is None:
            self.states, self.t = self.distillation.initial_state(self.batch_size), 0
        x = batch.x.to(self.states[0].device)
        soft, self.states = self.distillation.soft(x, self.states, self.t)
        self.t += len(batch.x)
        return batch._replace(soft=soft)

    def keep(self) -> Kept | None:
        """Where the predictions are kept; None where they are not, or would not fit the memory."""
        made, distillation = self.kept, self.distillation
        # Without a state there is little to save: those teachers are asked each time.
        if (
            not self.memory
            or self.stream.epoch_steps is None
            or not distillation.fixed
            or not all(distillation.asked())
            or not any(state.numel() for state in distillation.initial_state(1))
        ):
            return None
        if made is None or made.temperature != distillation.temperature:
            self.kept = made = Kept(self.stream, distillation)
        return made if made.size <= self.memory else None

    def share(self, rank: int, ranks: int) -> Stream:
        if self.distillation.weight and self.keep() is not None:
            return DistilledStream(self.stream.share(rank, ranks), self.distillation, self.memory)
        return super().share(rank, ranks)

    def to(self, device: torch.device) -> None:
        self.stream.to(device)
        self.distillation.to(device)
        self.kept = None

    def observe(self, bits: float) -> None:
        self.stream.observe(bits)

    def state_dict(self) -> dict:
        states = None if self.states is None else list(self.states)
        kept = self.kept is not None and self.kept.predictions is not None
        return {"stream": self.stream.state_dict(), "teachers": states, "t": self.t, "kept": kept}

    def load_state_dict(self, state: dict) -> None:
        self.stream.load_state_dict(state["stream"])
        states, self.t = state["teachers"], state["t"]
        kept = self.keep() if self.distillation.weight else None
        if kept is not None:
            states = None
            kept.steps(0, self.stream.position)
        elif self.distillation.weight and state.get("kept"):  # absent in those of before
            raise ValueError(
                "memory must hold the predictions, as where this place was saved: the teachers' states"
                " are not in it"
            )
        if states is not None:
            device = self.distillation.initial_state(1)[0].device
            states = tuple(one.to(device) for one in states)
        self.states = states
