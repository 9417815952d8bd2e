"""Networks drawn whole, with cuts: depth, widths, branches, loops, reuse."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from strategies import gradients
from torch import Tensor, nn

from dnirnn import GradientEstimator, Interface, SyntheticGradient, cut


class Told(GradientEstimator):
    """Says what it was told, call by call; then it says zeros."""

    def __init__(self):
        super().__init__()
        self.told: list[Tensor] = []

    def forward(self, state: Tensor) -> Tensor:
        return self.told.pop(0).view(state.shape) if self.told else torch.zeros_like(state)

    def accumulate(self, entered: Tensor, target: Tensor) -> Tensor:
        return 0.5 * (self(entered) - target).square().sum() / len(entered)


@dataclass(frozen=True)
class Net:
    """A network drawn whole. Each place reads earlier ones (their sum): a graph that branches and
    meets. parts: which module a place calls; several may call one. cuts: the places that are cut.
    loops: how often a place calls its module on itself, each time cut where it is."""

    parts: tuple[int, ...]
    reads: tuple[tuple[int, ...], ...]
    cuts: tuple[bool, ...]
    loops: tuple[int, ...]
    width: int
    batch: int
    seed: int

    def make(self) -> nn.ModuleList:
        torch.manual_seed(self.seed)
        layer = lambda: nn.Sequential(nn.Linear(self.width, self.width), nn.Tanh())  # noqa: E731
        return nn.ModuleList(layer() for _ in range(max(self.parts) + 1)).double()

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.seed + 1)
        shape = (2, self.batch, self.width)
        return torch.randn(shape, generator=generator, dtype=torch.float64).unbind()

    def run(self, parts, x, y, between) -> Tensor:
        """The summed loss; ``between(h)`` is called at every cut, and says what is read after it."""
        said = [x]
        for part, reads, is_cut, loops in zip(self.parts, self.reads, self.cuts, self.loops):
            h = sum(said[place] for place in reads)
            for _ in range(loops):
                h = parts[part](h)
                h = between(h) if is_cut else h
            said.append(h)
        # Every place counts in the loss: none is left out of it.
        return sum((parts[0](h) - y).square().sum() for h in said[1:])


@st.composite
def nets(draw) -> Net:
    places = draw(st.integers(1, 5))
    parts = tuple(draw(st.integers(0, 2)) for _ in range(places))
    reads = tuple(
        tuple(draw(st.sets(st.integers(0, place), min_size=1, max_size=3)))
        for place in range(places)
    )
    cuts = [draw(st.booleans()) for _ in range(places)]
    cuts[draw(st.integers(0, places - 1))] = True
    loops = tuple(draw(st.integers(1, 2)) for _ in range(places))
    sizes = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(0, 999))
    return Net(parts, reads, tuple(cuts), loops, *sizes)


def with_cuts(net: Net, parts, estimator, **how) -> tuple[Tensor, list[Interface]]:
    found: list[Interface] = []

    def between(h: Tensor) -> Tensor:
        onward, interface = cut(h, estimator, **how)
        assert torch.equal(onward, h)
        found.append(interface)
        return onward

    return net.run(parts, *net.data(), between), found


def truth(net: Net, parts) -> tuple[list[Tensor], list[Tensor]]:
    """Backpropagation's gradients of the parameters, and, by hooks, of what is read at each cut."""
    caught: dict[int, Tensor] = {}

    def between(h: Tensor) -> Tensor:
        place = len(caught)
        caught[place] = torch.zeros_like(h)
        h = h.clone()
        h.register_hook(lambda gradient: caught.__setitem__(place, gradient.clone()))
        return h

    parts.zero_grad()
    net.run(parts, *net.data(), between).backward()
    found = gradients(parts)
    parts.zero_grad()
    return found, list(caught.values())


def random_estimator(width: int, scale=1.0, discount=1.0, hidden=(), **more) -> SyntheticGradient:
    estimator = SyntheticGradient(width, hidden, scale, discount, dtype=torch.float64, **more)
    for parameter in estimator.parameters():
        nn.init.normal_(parameter, std=0.3)
    return estimator
