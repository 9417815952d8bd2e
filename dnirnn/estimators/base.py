"""What every estimator is, and the one that predicts nothing."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from dnirnn.core import Core, own
from dnirnn.options import Config, Registry, flag, key_value, option


class GradientEstimator(nn.Module, abc.ABC):
    """Predicts the gradient of all future loss with respect to a state.

    An estimator works in units of one sequence's own loss, summed over its steps, whatever the
    batch size or the reduction of the loss (see ``unit`` in :func:`dnirnn.backward`). It stays in
    float32, as states do, where its module is moved to a dtype of 16 bits.

    scale: multiplies what is injected into the core at a boundary.
    discount: multiplies what enters the bootstrapped target.
    dense: whether it is fitted at every state of a chunk, and not at the first only.
    trace_decay: lambda of the targets (see SyntheticGradient); 0: the bootstrap after one chunk.
    auxiliary: weight of the auxiliary task (see SyntheticGradient); 0: none.
    terminal_target: whether it is taught zero at a state in which a sequence ends.
    needs_context: whether forward and accumulate take a context [..., C] after their states.
    reads: of how many coming steps the context tells, the next one first.
    needs_jacobian: whether accumulate takes the chunks' Jacobians (see BPLambda).
    waits: whether Python decides by the values of tensors, or gives it others at every update: then
        no CUDA graph can hold an update of it.
    state_dims: how many last dimensions of a tensor are one state: 1, or 3 of feature maps.
    ranks: the processes that fit it together (see dnirnn.distributed); None: this one alone.
    takes_predicted: whether accumulate takes ``predicted``, what forward said at ``entered`` since
        the parameters last moved, and then does not ask again.
    keeps_graph: whether a cut is to predict with a graph, which ``predicted`` then has.
    """

    scale: float = 1.0
    discount: float = 1.0
    dense: bool = False
    trace_decay: float = 0.0
    auxiliary: float = 0.0
    terminal_target: bool = True
    needs_context: bool = False
    reads: int = 1
    needs_jacobian: bool = False
    waits: bool = False
    state_dims: int = 1
    takes_predicted: bool = False
    keeps_graph: bool = False
    ranks: Any = None

    def _apply(self, fn, recurse: bool = True):
        # .bfloat16() and the like: states are at least float32, and what is fitted to them too.
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if not moved.is_floating_point():
                return moved
            return moved.to(torch.promote_types(moved.dtype, torch.float32))

        return super()._apply(keep, recurse)

    def is_used(self) -> bool:
        """Asked once, as a call of Truncated begins; where not, that call is plain truncation."""
        return True

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """A sum over the rows at hand, summed over those of all ranks: for what is fitted without a .grad."""
        return value if self.ranks is None else self.ranks.sum(value)

    def mean_over_ranks(self, value: Tensor) -> Tensor:
        """The same of a mean, where all ranks have equally many rows."""
        return value if self.ranks is None else self.ranks.sum(value) / self.ranks.size

    @abc.abstractmethod
    def forward(self, state: Tensor) -> Tensor:
        """The predicted gradient [..., S], unscaled, at the state [..., S]."""

    @abc.abstractmethod
    def accumulate(
        self, entered: Tensor, target: Tensor, *context: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        """Adds the gradient of the regression of forward(entered) on target to the parameters' .grad.

        ``entered`` and ``target`` are [R, S]; ``weight`` is [R], 1 for the rows that count and 0 for
        the others, which are those of sequences that go on where only some end (a ``final`` that is
        a tensor) or that are not to be taught, or None where all count. Returns the regression error, a detached 0-d tensor,
        meaned over the rows that count.
        """


class ZeroGradient(GradientEstimator):
    """Predicts zero: plain truncated backpropagation through time.

    Truncation then costs exactly what it costs without an estimator; nothing is fitted.
    """

    scale = 0.0
    discount = 0.0

    def forward(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state)

    def accumulate(
        self, entered: Tensor, target: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        return target.new_zeros(())


# The place that a module keeps a tensor in, its name there, and the tensor.
Held = Sequence[tuple[dict[str, Tensor | None], str, Tensor]]


def tensors_of(module: nn.Module) -> Held:
    """The parameters and buffers of a module and of its parts at this moment."""
    found = [
        (place, name, tensor)
        for place in (module._parameters, module._buffers)
        for name, tensor in place.items()
        if tensor is not None
    ]
    for part in module._modules.values():
        found += tensors_of(part)
    return found


def swapped(held: Held) -> bool:
    """Whether other tensors are there now, as after a ``torch.func.functional_call``."""
    return any(place.get(name, tensor) is not tensor for place, name, tensor in held)


def as_held(held: Held, function: Callable[[], Tensor]) -> Tensor:
    """function(), with those tensors in their places."""
    if not swapped(held):
        return function()
    now = [(place, name, place[name]) for place, name, _ in held if name in place]
    try:
        for place, name, tensor in held:
            if name in place:
                place[name] = tensor
        return function()
    finally:
        for place, name, tensor in now:
            place[name] = tensor
class Setting(NamedTuple):
    """Where an estimator that is to be built will stand.

    width: of the core's layers. sizes: of what the names of --context say of a step: 0 where the
    task has no such thing. steps: of an update; None: a whole sequence. batch: rows. pieces: whether
    the rows are computed in several.
    """

    core: Core
    width: int
    sizes: dict[str, int]
    truncation: int
    steps: int | None
    batch: int
    pieces: bool

    def context_size(self, names: tuple[str, ...]) -> int:
        """Of a step. Raises ValueError for a name that the task has nothing of."""
        for name in names:
            if not self.sizes[name]:
                raise ValueError(f"--context {name}: this task's sequences have none")
        return sum(self.sizes[name] for name in names)

    def check_chunks(self, **knobs: float) -> None:
        """Raises ValueError naming the option that needs several chunks an update, if it is given."""
        for name, value in knobs.items():
            if value and self.steps == self.truncation:
                raise ValueError(
                    f"{flag(name)} needs several chunks an update: --update-steps of at least"
                    f" {2 * self.truncation}"
                )


@dataclass(frozen=True)
class EstimatorConfig(Config):
    """What makes an estimator; one beside each that --estimator names, in the registry ESTIMATORS.

    label: what plots and tables call it. fitted: it learns. descends: an optimizer moves it.
    opens: it goes with --open-cuts. context: what it is told beside the state.
    """

    registry: ClassVar[Registry] = Registry("estimator")
    label: ClassVar[str] = ""
    fitted: ClassVar[bool] = False
    descends: ClassVar[bool] = False
    opens: ClassVar[bool] = False
    context = ()

    def build(self, setting: Setting) -> GradientEstimator:
        raise NotImplementedError(f"{type(self).__name__} must say what it builds")

    @classmethod
    def of_class(cls, found: Any, name: str) -> "type[EstimatorConfig]":
        """Of a GradientEstimator without a Config: its arguments are ``estimator_options``.

        Raises ValueError for anything else.
        """
        if not (isinstance(found, type) and issubclass(found, GradientEstimator)):
            raise ValueError(f"--estimator must name a dnirnn.GradientEstimator; {name} is {found!r}")
        return type("Config", (OwnEstimator,), {"kind": found, "__doc__": found.__doc__})


@dataclass(frozen=True)
class OwnEstimator(EstimatorConfig):
    """Any estimator: kind(state_size, **estimator_options)."""

    kind: ClassVar[type[GradientEstimator]]
    fitted = descends = True

    estimator_options: tuple = option((), "arguments of its class", "KEY=VALUE", many=key_value)

    def build(self, setting: Setting) -> GradientEstimator:
        size = setting.core.state_size
        return own(self.kind, "estimator_options", size, **dict(self.estimator_options))


class NoEstimatorConfig(EstimatorConfig, name="none"):
    """zero: plain truncated backpropagation"""

    label = "BPTT"
    opens = True

    def build(self, setting: Setting) -> GradientEstimator:
        return ZeroGradient()


ESTIMATORS = EstimatorConfig.registry
