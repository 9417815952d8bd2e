"""Truncated: a core run in chunks of K steps, with an estimator at every cut."""

import torch
from torch import Tensor, nn

from dnirnn.core import Core
from dnirnn.estimators import GradientEstimator, ZeroGradient
from dnirnn.interface import Interface


class Truncated(nn.Module):
    """Unrolls ``core`` in chunks of ``truncation`` steps; no gradient crosses from chunk to chunk.

    What the future would have sent back across a cut, ``estimator`` predicts. Use
    :func:`dnirnn.backward` in place of ``loss.backward()``.

    core: any :class:`dnirnn.Core`.
    truncation: K, steps a chunk, at least 1. A sequence that is shorter is one short chunk.
    estimator: ``ZeroGradient()`` for plain truncated backpropagation, ``SyntheticGradient(
        core.state_size)`` for a decoupled neural interface. Its state size must be the core's.

    Raises TypeError or ValueError naming the argument where one does not fit.

    Source: Jaderberg et al., Decoupled Neural Interfaces using Synthetic Gradients, ICML 2017,
    section 2.1.
    """

    def __init__(self, core: Core, truncation: int, estimator: GradientEstimator):
        super().__init__()
        if not isinstance(core, Core):
            raise TypeError(
                f"core must be a dnirnn.Core; got {type(core).__name__}"
                " (wrap an nn.LSTM, nn.GRU or nn.RNN in dnirnn.FromTorch)"
            )
        if isinstance(truncation, bool) or not isinstance(truncation, int):
            raise TypeError(f"truncation must be an int; got {truncation!r}")
        if truncation < 1:
            raise ValueError(f"truncation must be at least 1 step; got {truncation}")
        if not isinstance(estimator, GradientEstimator):
            raise TypeError(
                f"estimator must be a dnirnn.GradientEstimator; got {type(estimator).__name__}"
                " (dnirnn.ZeroGradient() for none)"
            )
        size = getattr(estimator, "state_size", core.state_size)
        if size != core.state_size:
            raise ValueError(
                f"estimator predicts for a state of {size}; the core's state_size is {core.state_size}"
            )
        self.core, self.truncation, self.estimator = core, truncation, estimator

    def forward(
        self,
        x_TBI: Tensor,
        state_BS: Tensor,
        t0: int | Tensor = 0,
        final: bool | Tensor = False,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, list[Interface]]:
        """Runs N = ceil(T / K) chunks, the last one short if need be.

        x_TBI: inputs [T, B, I].
        state_BS: the state [B, S] to start from; it is detached.
        t0: steps since the sequence's start at the first step, an int or a LongTensor [B].
        final: True, or a bool tensor [B]: the sequence really ends with this call (not merely its
            window), so nothing comes back from beyond it.
        reset: bool [T, B]: a new sequence starts in that row at that step. The state becomes the
            initial state there, and neither a gradient nor a synthetic gradient crosses.

        Returns (outputs [T, B, O], last state [B, S], detached, interfaces): one stacked
        :class:`dnirnn.Interface`, to be given to :func:`dnirnn.backward`.
        """
        steps, batch = check_inputs(self.core, x_TBI, state_BS, reset)
        check_t0(t0, batch)
        final = check_final(final, batch, x_TBI.device)
        chunks = -(-steps // self.truncation)
        state = state_BS.detach()
        estimator = None if isinstance(self.estimator, ZeroGradient) else self.estimator
        probe = None
        if estimator is not None and torch.is_grad_enabled():
            probe = torch.zeros(
                chunks, *state.shape, dtype=state.dtype, device=state.device, requires_grad=True
            )

        output, sent, synthetic = self.core.unroll_chunks(
            x_TBI, state, probe, self.truncation, t0, reset, estimator if probe is not None else None
        )
        entered = torch.cat([state[None], sent.detach()[:-1]])
        bootstrap = None
        if synthetic is not None:
            bootstrap = bootstrapped(synthetic, sent, estimator)
            synthetic = cut_off(synthetic, reset, final, self.truncation)
        if bootstrap is not None:
            bootstrap = cut_off(bootstrap, reset, final, self.truncation)
        terminal = None if final is False or probe is None else final
        cut = Interface(sent, synthetic, entered, probe, self.estimator, terminal, bootstrap)
        return output, sent[-1].detach(), [cut]

    def extra_repr(self) -> str:
        return f"truncation={self.truncation}"


def bootstrapped(
    synthetic: Tensor, sent: Tensor, estimator: GradientEstimator
) -> Tensor | None:
    """discount * estimator(sent), or None where that is synthetic itself."""
    if estimator.discount == estimator.scale:
        return None
    if estimator.scale:
        return synthetic * (estimator.discount / estimator.scale)
    with torch.no_grad():
        return estimator.discount * estimator(sent.detach())


def cut_off(
    synthetic_NBS: Tensor, reset: Tensor | None, final: bool | Tensor, truncation: int
) -> Tensor:
    """Zeroes the synthetic gradient where a sequence ends, or where the next chunk starts a new one."""
    if reset is not None:
        # A reset at step 0 cuts this call off from the one before; that call was told by `final`.
        starts = reset[truncation::truncation]
        ends = torch.cat([starts, torch.zeros_like(reset[:1])])
        synthetic_NBS = synthetic_NBS.masked_fill(ends[..., None], 0)
    if final is True:
        return torch.cat([synthetic_NBS[:-1], torch.zeros_like(synthetic_NBS[-1:])])
    if final is False:
        return synthetic_NBS
    last = synthetic_NBS[-1:].masked_fill(final[:, None], 0)
    return torch.cat([synthetic_NBS[:-1], last])


def check_inputs(
    core: Core, x: Tensor, state: Tensor, reset: Tensor | None
) -> tuple[int, int]:
    """(T, B), or a ValueError or TypeError that names what does not fit."""
    for name, value in (("x", x), ("state", state), ("reset", reset)):
        if not isinstance(value, Tensor) and not (name == "reset" and value is None):
            kind = "a bool tensor [T, B] or None" if name == "reset" else "a tensor"
            raise TypeError(f"{name} must be {kind}; got {type(value).__name__}")
    if x.dim() != 3 or x.shape[2] != core.input_size or 0 in x.shape[:2]:
        raise ValueError(
            f"x must be [T, B, {core.input_size}] with T and B at least 1; got {tuple(x.shape)}"
        )
    steps, batch = x.shape[:2]
    if tuple(state.shape) != (batch, core.state_size):
        raise ValueError(
            f"state must be [{batch}, {core.state_size}] for this x; got {tuple(state.shape)}"
        )
    if state.device != x.device:
        raise ValueError(f"state is on {state.device}, x on {x.device}: they must be on one device")
    if not (x.is_floating_point() and state.is_floating_point()):
        raise TypeError(f"x and state must be floating point; got {x.dtype} and {state.dtype}")
    parameter = next(core.parameters(), x)
    if parameter.device != x.device:
        raise ValueError(
            f"x is on {x.device}, the core on {parameter.device}: they must be on one device"
        )
    if parameter.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"x is {x.dtype}, the core's parameters {parameter.dtype}: they must have one dtype"
        )
    if reset is not None:
        if reset.dtype != torch.bool:
            raise TypeError(f"reset must be a bool tensor; got {reset.dtype}")
        if tuple(reset.shape) != (steps, batch):
            raise ValueError(f"reset must be [{steps}, {batch}]; got {tuple(reset.shape)}")
    return steps, batch


def check_t0(t0: int | Tensor, batch: int) -> None:
    if isinstance(t0, int):
        return
    if not isinstance(t0, Tensor) or t0.dtype != torch.int64:
        raise TypeError(f"t0 must be an int or a LongTensor [B]; got {t0!r}")
    if tuple(t0.shape) != (batch,):
        raise ValueError(f"t0 must be an int or [{batch}]; got {tuple(t0.shape)}")


def check_final(final: bool | Tensor, batch: int, device: torch.device) -> bool | Tensor:
    if isinstance(final, bool):
        return final
    if not isinstance(final, Tensor) or final.dtype != torch.bool:
        raise TypeError(f"final must be a bool or a bool tensor [B]; got {final!r}")
    if tuple(final.shape) != (batch,):
        raise ValueError(f"final must be a bool or [{batch}]; got {tuple(final.shape)}")
    return final.to(device)
