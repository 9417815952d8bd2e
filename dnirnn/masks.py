"""Masks: what dropout and zoneout keep, as a function of (seed, t, row, unit) and of nothing else.

So a mask is the same wherever a sequence is cut into chunks, in a loop of steps as in one call, and
in a resumed run.
"""

import torch
from torch import Tensor, nn

from dnirnn import ops
from dnirnn.checks import check_flags, check_probabilities, check_sizes, shown
from dnirnn.unroll import are_times

# Odd constants, and the mixers of splitmix64 (Steele et al. 2014), as signed 64-bit integers.
STEP, ROW, UNIT = -0x61C8864680B583EB, 0x5851F42D4C957F2D, 0x2545F4914F6CDD1D
MIX_1, MIX_2 = -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15


def mixed(x: Tensor) -> Tensor:
    """splitmix64's finaliser on int64, whose products wrap."""
    for shift, factor in ((30, MIX_1), (27, MIX_2)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return x ^ ((x >> 31) & ((1 << 33) - 1))


class Masks(nn.Module):
    """Bernoulli masks of ``size`` units, each kept with probability 1 - drop.

    The mask at step t of row b is a hash of (seed, t, b, unit), or of (seed, b, unit) where
    ``over_time`` (one mask for the whole sequence: Gal and Ghahramani 2016). ``seed`` is a
    persistent buffer: a checkpoint holds it. :func:`draw_masks` takes another for each sequence.

    Raises ValueError for a drop outside [0, 1).
    """

    def __init__(self, size: int, drop: float, over_time: bool = False):
        super().__init__()
        check_sizes(size=size)
        check_probabilities(drop=drop)
        check_flags(over_time=over_time)
        self.size, self.drop, self.over_time = size, float(drop), over_time
        self.register_buffer("seed", torch.zeros((), dtype=torch.int64))

    @property
    def reads_t(self) -> bool:
        return self.training and not self.over_time

    def draw(self) -> None:
        """Another seed, from torch's global generator."""
        self.seed.fill_(torch.randint(2**62, ()))

    def forward(
        self, batch: int, t0: int | Tensor, steps: int = 1, reset: Tensor | None = None
    ) -> Tensor:
        """[steps, batch, size], bool, True: kept. t counts from t0 (int or [B]) and from resets."""
        device = self.seed.device
        t = times(t0, steps, reset, device).expand(steps, batch)
        if self.over_time:
            t = torch.zeros_like(t)
        threshold = round(self.drop * 2**31)
        if ops.built and device.type == "cpu" and not ops.in_transform():
            return torch.ops.dnirnn.masks(t, self.seed, self.size, threshold)
        rows = torch.arange(batch, device=device)
        units = torch.arange(self.size, device=device)
        index = (t * STEP + rows * ROW + self.seed)[..., None]
        bits = (mixed(mixed(index) + units * UNIT) >> 32) & 0x7FFFFFFF
        return bits >= threshold

    def extra_repr(self) -> str:
        return f"{self.size}, drop={self.drop}, over_time={self.over_time}"


def times(t0: int | Tensor, steps: int, reset: Tensor | None, device: torch.device) -> Tensor:
    """The t of each step and row: [steps, B], or [steps, 1] where it is the same in all rows.

    Of the times of events, the times.
    """
    if are_times(t0):
        return t0.to(device)
    offsets = torch.arange(steps, device=device)[:, None]
    if reset is None:
        return offsets + t0
    last = torch.where(reset, offsets, -1).cummax(0).values
    return torch.where(last >= 0, offsets - last, offsets + t0)


def draw_masks(module: nn.Module) -> None:
    """Another seed for every Masks inside ``module``; nothing is drawn where there is none.

    How long a mask lives is the loop's choice: call it where a sequence begins, and on one long
    text before each update, since one mask for a whole epoch trains one thinned network.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be an nn.Module; got {shown(module)}")
    for part in module.modules():
        if isinstance(part, Masks):
            part.draw()
