"""What every estimator is, and the one that predicts nothing."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dnirnn.boundary import Interface
from dnirnn.core import Core, own
from dnirnn.deprecated import deprecated
from dnirnn.options import Config, Registry, flag, key_value, option

Found = TypeVar("Found")


class GradientEstimator(nn.Module, abc.ABC):
    """Predicts the gradient of all future loss with respect to a state.

    An estimator works in units of one sequence's own loss, summed over its steps, whatever the
    batch size or the reduction of the loss (see ``unit`` in :func:`dnirnn.backward`). It stays in
    float32, as states do, where its module is moved to a dtype of 16 bits.

    A cut asks it four questions: what to :meth:`inject`, what to :meth:`bootstrap` with, how to
    :meth:`refine` a target before the graph is freed, and to :meth:`fit` itself to it. A subclass
    writes ``forward`` and ``accumulate``, which the answers of this class are made of, and gives
    answers of its own where it has others. No answer waits for the device.

    scale: multiplies what is injected into the core at a boundary.
    discount: multiplies what enters the bootstrapped target.
    dense: whether it is fitted at every state of a chunk, and not at the first only.
    trace_decay: lambda of the targets (see SyntheticGradient); 0: the bootstrap after one chunk.
    needs_vjp: whether the cut is to have the chunks' vector-Jacobian products, as lambda targets need.
    terminal_target: whether it is taught zero at a state in which a sequence ends.
    needs_context: whether forward and accumulate take a context [..., C] after their states.
    reads: how many coming steps the context holds, the next one first.
    graph_safe: whether a CUDA graph can hold an update of it: not where Python decides by the values of
        tensors, or gives it others at every update.
    state_dims: how many last dimensions of a tensor are one state: 1, or 3 of feature maps.
    ranks: the processes that fit it together (see dnirnn.distributed); None: this one alone.
    keeps_graph: whether, at a cut that is none of time, the prediction is kept with its graph.
    """

    scale: float = 1.0
    discount: float = 1.0
    dense: bool = False
    trace_decay: float = 0.0
    terminal_target: bool = True
    needs_context: bool = False
    reads: int = 1
    graph_safe: bool = True
    state_dims: int = 1
    keeps_graph: bool = False
    ranks: Any = None

    @property
    def needs_vjp(self) -> bool:
        return self.trace_decay > 0

    def take_settings(self, estimator: "GradientEstimator") -> None:
        """Of one that this one is around: all but its scale and discount."""
        for name in ("dense", "trace_decay", "terminal_target", "needs_context", "reads", "state_dims"):
            setattr(self, name, getattr(estimator, name))
        for name in ("state_size", "context_size"):
            if hasattr(estimator, name):
                setattr(self, name, getattr(estimator, name))
        self.graph_safe = self.graph_safe and estimator.graph_safe

    def __init_subclass__(cls, **keywords: Any):
        super().__init_subclass__(**keywords)
        if "waits" in vars(cls):
            deprecated("GradientEstimator.waits", "graph_safe, its opposite,")
            cls.graph_safe = not vars(cls)["waits"]

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

    def predict(self, cut: Interface) -> Tensor:
        """``forward`` at the cut's ends, detached and unscaled: computed once, in ``cut.kept``."""
        if "predicted" not in cut.kept:
            # A cut that is none of time has one row of ends, which may be maps.
            of_time = cut.chunks is not None
            asked = (cut.end.detach(), *cut.context_of_ends())
            with torch.set_grad_enabled(self.keeps_graph and not of_time):
                # Autocast would have it in its own dtype.
                found = self(*asked) if of_time else self(*(part[0] for part in asked))[None]
                cut.kept["predicted"] = found.to(cut.end.dtype)
        return cut.kept["predicted"].detach()

    def inject(self, cut: Interface) -> Tensor:
        """The gradient that the cut's ends are given, as ``cut.end``, asked once, in the forward pass.

        Where the core computed scale * forward(end) on the way, that is taken, and this not asked.
        """
        predicted = self.predict(cut)
        return cut.crossing(predicted if self.scale == 1 else self.scale * predicted)

    def bootstrap(self, cut: Interface) -> Tensor | None:
        """What stands for it in the target, as ``cut.end``.

        None: the target is what comes back in the pass that injects, and is not refined.
        Else the targets have a pass of their own.
        """
        if self.discount == self.scale:
            return cut.synthetic if self.needs_vjp else None
        if self.scale and cut.synthetic is not None:
            return cut.synthetic * (self.discount / self.scale)
        return cut.crossing(self.discount * self.predict(cut))

    def refine(self, cut: Interface, target: Tensor, boot: Tensor) -> Tensor:
        """The target, made of the one that came back to ``cut.probe``, while there is a graph.

        boot: what ``bootstrap`` returned. Both are times the same factor, and so is what is returned.

        Here lambda targets, where there is a trace_decay; else the target as it is.
        """
        if not self.needs_vjp:
            return target
        # G_n = (target after one chunk) + discount trace_decay J_n' (G_(n+1) - g(s_(n+1)))
        assert cut.vjp is not None
        targets = list(target.unbind())
        for n in reversed(range(len(targets) - 1)):
            more = self.discount * targets[n + 1] - boot[n]
            targets[n] = targets[n] + cut.vjp(n, self.trace_decay * more)[0]
        return torch.stack(targets)

    def fit(self, cut: Interface, target: Tensor) -> dict[str, Tensor]:
        """Adds to the parameters' .grad by the target, as ``cut.probe``: the errors, detached.

        ``estimator_error`` is half the squared error, summed over S, meaned over rows.
        """
        start, target, context, weighed = cut.rows(target)
        return {"estimator_error": self.accumulate(start, target, *context, **weighed)}

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

    def is_used(self) -> bool:
        return False

    def forward(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state)

    def accumulate(
        self, entered: Tensor, target: Tensor, *context: Tensor, weight: Tensor | None = None
    ) -> Tensor:
        return target.new_zeros(())


# The place that a module keeps a tensor in, its name there, and the tensor.
Held = Sequence[tuple[dict[str, Tensor | None], str, Tensor]]


def tensors_of(module: nn.Module) -> Held:
    """The parameters and buffers of a module and of its parts at this moment."""
    found, parts = [], [module]
    for part in parts:
        for place in (part._parameters, part._buffers):
            for name, tensor in place.items():
                if tensor is not None:
                    found.append((place, name, tensor))
        parts.extend(child for child in part._modules.values() if child is not None)
    return found


def swapped(held: Held) -> bool:
    """Whether other tensors are there now, as after a ``torch.func.functional_call``."""
    for place, name, tensor in held:
        if place.get(name, tensor) is not tensor:
            return True
    return False


def as_held(held: Held, function: Callable[[], Found]) -> Found:
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

    width: of the core's layers. sizes: of the contexts that --context names, of a step: 0 where the
    task has no such thing. steps: of an update, the shortest of a plan; None: a whole sequence. batch: rows. pieces: whether
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
                    f" {2 * self.truncation}, and nothing of a --chunks-plan below 2"
                )


@dataclass(frozen=True)
class EstimatorConfig(Config):
    """What makes an estimator; one beside each that --estimator names, in the registry ESTIMATORS.

    label: what plots and tables call it. fitted: it learns. descends: an optimizer moves it.
    opens: it goes with --open-cuts and --overlap. context: what it is conditioned on beside the state.
    """

    registry: ClassVar[Registry] = Registry("estimator")
    label: ClassVar[str] = ""
    fitted: ClassVar[bool] = False
    descends: ClassVar[bool] = False
    opens: ClassVar[bool] = False
    context = ()

    def build(self, setting: Setting) -> GradientEstimator:
        raise NotImplementedError(f"{type(self).__name__} must define what it builds")

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
