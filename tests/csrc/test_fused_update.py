"""One kernel that ends an update is clipping, torch's Adam and the row of figures, one after the other.

On a GPU; without one test_cuda_on_host runs it in the emulation.
"""

import copy
import math

import pytest
import torch
from strategies import assert_close
from torch import nn

from dnirnn.training.fused_update import MOST, can_fuse, finish
from dnirnn.training.optimizers import make_optimizer, norm_of, rescale

SIZES = {
    "one": ([(3, 5)], []),
    "two parts": ([(70, 65), (7,), (2050,)], [(64, 33), (33,)]),
    "many chunks": ([(300, 257), (1,)], [(123, 511)]),
}
NAMES = {"Adam": dict(weight_decay=0.01), "AdamW": dict(weight_decay=0.1, eps=1e-6)}
BOUNDS = {
    "free": [(None, None), (None, None)],
    "clipped": [(None, 0.5), (None, 0.25)],
    "lifted": [(1e3, None), (2e3, 4e3)],
}


class Parts:
    """Parameters of the core and of an estimator, an optimizer each, and what finish() writes."""

    def __init__(self, sizes, name: str, device: str, offset: int = 0):
        torch.manual_seed(0)
        self.parameters = [
            [nn.Parameter(self.made(size, offset, device)) for size in part] for part in sizes if part
        ]
        self.optimizers = [
            make_optimizer("", part, name, 1e-2, NAMES[name]) for part in self.parameters
        ]
        self.rates = [torch.tensor(rate, device=device) for rate in (1e-2, 3e-3)][: len(self.optimizers)]
        self.state = torch.randn(4, 6, device=device)
        self.told = torch.zeros(8, 4, dtype=torch.float64, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.bad = torch.zeros((), device=device)

    @staticmethod
    def made(size, offset, device):
        """A view that begins so many values into its buffer."""
        flat = torch.randn(math.prod(size) + offset, device=device)
        return flat[offset:].view(size)

    def draw(self, seed: int):
        generator = torch.Generator(self.state.device).manual_seed(seed)
        for part in self.parameters:
            for parameter in part:
                parameter.grad = torch.empty_like(parameter).normal_(generator=generator)
        return (torch.empty_like(self.state).normal_(generator=generator) for _ in range(1))

    def tensors(self):
        kept = [one.state[p] for one in self.optimizers for p in one.param_groups[0]["params"]]
        values = [value for state in kept for value in state.values()]
        return [*(p for part in self.parameters for p in part), *values, self.state]


def by_torch(parts: Parts, bounds, nats, error, ended):
    """What Updater does where nothing is fused."""
    gradients = [[p.grad for p in part] for part in parts.parameters]
    norms = [norm_of(part) for part in gradients]
    for part, norm, limits in zip(gradients, norms, bounds):
        rescale(part, norm, *limits)
    for optimizer, rate in zip(parts.optimizers, parts.rates):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.step()
    parts.state.copy_(ended)
    return [nats, error, norms[0], norms[1] if len(norms) > 1 else 0.0]


@pytest.fixture
def where(device):
    parts = Parts(([(2, 2)], []), "Adam", device)
    if not can_fuse(parts.optimizers, parts.parameters):
        pytest.skip("no fused end of an update is built for this device")
    return device


@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "anywhere"])
@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sizes", SIZES)
def test_equals_torch_s(where, sizes, name, bounds, offset):
    ours, theirs = (Parts(SIZES[sizes], name, where, offset) for _ in range(2))
    rows = []
    for seed in range(3):
        values = torch.tensor([1.5 + seed, 0.25]).unbind()
        (ended,), (other,) = ours.draw(seed), theirs.draw(seed)
        assert torch.equal(ended, other)
        limits = BOUNDS[bounds][: len(ours.optimizers)]
        finish(ours.optimizers, limits, ours.rates, *values, ended, ours.state, ours.told,
               ours.place, ours.bad)  # fmt: skip
        rows.append(by_torch(theirs, limits, *values, ended))
    assert int(ours.place) == 3 and not ours.bad
    assert_close(ours.told[:3], torch.tensor(rows).double(), 1e-6)
    # On a GPU torch takes 1 - beta_2 in float32: 1.3e-5 off in the second moment.
    assert_close(ours.tensors(), theirs.tensors(), 2e-5)


@pytest.mark.parametrize("what", ["nats", "core", "estimator"])
def test_from_the_first_update_that_is_not_finite_on_nothing_changes(where, what):
    parts = Parts(SIZES["two parts"], "Adam", where)
    bounds = BOUNDS["clipped"]
    for seed, poison in ((0, False), (1, True), (2, False)):
        (ended,) = parts.draw(seed)
        nats = torch.tensor(math.inf if poison and what == "nats" else 2.0)
        if poison and what != "nats":
            parts.parameters[what == "estimator"][0].grad[0, 3] = math.nan
        before = [tensor.clone() for tensor in parts.tensors()]
        finish(parts.optimizers, bounds, parts.rates, nats, None, ended, parts.state, parts.told,
               parts.place, parts.bad)  # fmt: skip
        if seed > 0:
            assert parts.bad == 1
            assert all(torch.equal(a, b) for a, b in zip(parts.tensors(), before))
    told = parts.told[:3].tolist()
    assert int(parts.place) == 3 and math.isfinite(sum(told[0])) and math.isfinite(sum(told[2]))
    assert not math.isfinite(sum(told[1])) and told[0][1] == 0


def test_it_is_deterministic(where):
    found = []
    for _ in range(2):
        parts = Parts(SIZES["many chunks"], "Adam", where)
        (ended,) = parts.draw(0)
        finish(parts.optimizers, BOUNDS["clipped"], parts.rates, torch.tensor(1.0), None, ended,
               parts.state, parts.told, parts.place, parts.bad)  # fmt: skip
        found.append([*parts.tensors(), parts.told])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_what_it_does_not_take_is_left_to_torch(where):
    def asked(change=None, sizes=((3, 2),), name="Adam", dtype=torch.float32, **options):
        part = [nn.Parameter(torch.randn(size, dtype=dtype)) for size in sizes]
        optimizer = getattr(torch.optim, name)(part, **options)
        return can_fuse([optimizer], [part])

    assert asked() and asked(name="AdamW", weight_decay=0.1)
    assert not asked(amsgrad=True) and not asked(maximize=True)
    assert not asked(name="SGD") and not asked(name="Adamax")
    assert not asked(dtype=torch.float64) and not asked(sizes=[(1,)] * (MOST + 1))
    part = [nn.Parameter(torch.randn(4, 3).t())]
    assert not can_fuse([torch.optim.Adam(part)], [part])


def test_a_copy_of_the_optimizer_goes_on_in_torch(where):
    """Its state is torch's own: what a checkpoint holds can be gone on from without the kernel."""
    parts = Parts(SIZES["two parts"], "Adam", where)
    (ended,) = parts.draw(0)
    finish(parts.optimizers, BOUNDS["free"], parts.rates, torch.tensor(1.0), None, ended, parts.state,
           parts.told, parts.place, parts.bad)  # fmt: skip
    saved = copy.deepcopy(parts.optimizers[0].state_dict())
    fresh = Parts(SIZES["two parts"], "Adam", where)
    fresh.optimizers[0].load_state_dict(saved)
    assert_close([s["step"] for s in fresh.optimizers[0].state.values()], [torch.tensor(1.0)] * 3)
