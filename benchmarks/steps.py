"""The whole training step of a character model: ours, and what a user would write in plain torch.

One step: embedding (64), LSTM, readout, cross-entropy, backward, injection, the estimator's
regression, clipping, Adam for both. The estimator has one hidden layer.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dnirnn

SYMBOLS, EMBEDDING, SCALE = 50, 64, 0.1


class Text(nn.Module):
    """The parts that both sides share: embedding and readout."""

    def __init__(self, hidden: int, embedding: type[nn.Embedding] = nn.Embedding):
        super().__init__()
        self.embedding = embedding(SYMBOLS, EMBEDDING)
        self.readout = nn.Linear(hidden, SYMBOLS)

    def loss(self, outputs: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(self.readout(outputs).flatten(0, 1), y.flatten())


def adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-4, fused=True)


def data(batch: int, steps: int) -> tuple[Tensor, Tensor]:
    symbols = torch.randint(SYMBOLS, (steps + 1, batch))
    return symbols[:-1], symbols[1:]


def ours(
    hidden: int, batch: int, steps: int, width: int | None, chunks: int = 1, lazy: bool = True
) -> Callable:
    """dnirnn: an update of ``chunks`` chunks of ``steps``; width None: no estimator.

    lazy: the operator reads the embedding's rows as a table; else it multiplies what is looked up.
    """
    torch.manual_seed(0)
    text, core = Text(hidden, dnirnn.Embedding), dnirnn.LSTM(EMBEDDING, hidden)
    look_up = text.embedding.lazy if lazy else text.embedding
    estimator = dnirnn.ZeroGradient()
    if width is not None:
        estimator = dnirnn.SyntheticGradient(core.state_size, (width,), SCALE, SCALE)
    model = dnirnn.Truncated(core, steps, estimator)
    fitted = [*text.parameters(), *core.parameters()]
    optimizers = [adam(fitted)] + ([] if width is None else [adam(estimator.parameters())])
    x, y = data(batch, steps * chunks)
    state = core.initial_state(batch)

    def step() -> None:
        nonlocal state
        outputs, state, interfaces = model(look_up(x), state)
        dnirnn.backward(text.loss(outputs, y), interfaces, 1 / y.numel())
        nn.utils.clip_grad_norm_(fitted, 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def estimator_alone(hidden: int, width: int) -> Callable:
    """Adam on an estimator with one hidden layer, and no more: what no DNI step can do without."""
    estimator = plain_estimator(hidden, width)
    for parameter in estimator.parameters():
        parameter.grad = torch.randn_like(parameter)
    return adam(estimator.parameters()).step


def estimator_flops(hidden: int, width: int, batch: int) -> float:
    """Of the products of its prediction and its regression, with one chunk an update."""
    # Two layers of 2 H by W: forward at a chunk's end; forward, the weights' gradients, and the
    # gradient of the layer between at its start.
    return 2 * batch * 2 * hidden * width * (2 + 2 + 2 + 1)


def plain_truncated(hidden: int, batch: int, steps: int) -> Callable:
    """Plain torch without an estimator."""
    torch.manual_seed(0)
    text, core = Text(hidden), nn.LSTM(EMBEDDING, hidden)
    fitted = [*text.parameters(), *core.parameters()]
    optimizer = adam(fitted)
    x, y = data(batch, steps)
    state = (torch.zeros(1, batch, hidden), torch.zeros(1, batch, hidden))

    def step() -> None:
        nonlocal state
        outputs, (h, c) = core(text.embedding(x), state)
        text.loss(outputs, y).backward()
        nn.utils.clip_grad_norm_(fitted, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad()
        state = (h.detach(), c.detach())

    return step


def plain_estimator(hidden: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * hidden, width), nn.ReLU(), nn.Linear(width, 2 * hidden)
    )


def plain_strong(hidden: int, batch: int, steps: int, width: int) -> Callable:
    """Plain torch by somebody who knows it: one backward pass, fused Adam, foreach clipping."""
    torch.manual_seed(0)
    text, core, estimator = Text(hidden), nn.LSTM(EMBEDDING, hidden), plain_estimator(hidden, width)
    fitted = [*text.parameters(), *core.parameters()]
    optimizers = [adam(fitted), adam(estimator.parameters())]
    x, y = data(batch, steps)
    unit = 1 / y.numel()
    state = torch.zeros(2, 1, batch, hidden)

    def step() -> None:
        nonlocal state
        start = state.requires_grad_()
        outputs, ended = core(text.embedding(x), (start[0], start[1]))
        loss = text.loss(outputs, y)
        with torch.no_grad():
            state = torch.stack(ended)
            joined = state.squeeze(1).transpose(0, 1).reshape(batch, 2 * hidden)
            synthetic = estimator(joined) * (SCALE * unit)
            seeds = synthetic.view(batch, 2, 1, hidden).permute(1, 2, 0, 3)
        torch.autograd.backward([loss, *ended], [None, *(s.contiguous() for s in seeds)])
        with torch.no_grad():
            entered = start.squeeze(1).transpose(0, 1).reshape(batch, 2 * hidden)
            target = start.grad.squeeze(1).transpose(0, 1).reshape(batch, 2 * hidden) / unit
        error = 0.5 * (estimator(entered) - target).square().sum(-1).mean()
        error.backward()
        nn.utils.clip_grad_norm_(fitted, 1.0, foreach=True)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    return step


def plain_usual(hidden: int, batch: int, steps: int, width: int) -> Callable:
    """The usual way of the DNI scripts: a retained graph and a second backward pass over it."""
    torch.manual_seed(0)
    text, core, estimator = Text(hidden), nn.LSTM(EMBEDDING, hidden), plain_estimator(hidden, width)
    fitted = [*text.parameters(), *core.parameters()]
    core_optimizer = torch.optim.Adam(fitted, lr=1e-4)
    estimator_optimizer = torch.optim.Adam(estimator.parameters(), lr=1e-4)
    x, y = data(batch, steps)
    unit = 1 / y.numel()
    state = (torch.zeros(1, batch, hidden), torch.zeros(1, batch, hidden))

    def step() -> None:
        nonlocal state
        h0, c0 = (part.detach().requires_grad_() for part in state)
        outputs, (h, c) = core(text.embedding(x), (h0, c0))
        loss = text.loss(outputs, y)
        core_optimizer.zero_grad()
        loss.backward(retain_graph=True)
        joined = torch.cat([h[0], c[0]], 1)
        synthetic = estimator(joined.detach()).detach() * (SCALE * unit)
        joined.backward(synthetic)
        target = torch.cat([h0.grad[0], c0.grad[0]], 1) / unit
        estimator_optimizer.zero_grad()
        F.mse_loss(estimator(torch.cat([h0[0], c0[0]], 1).detach()), target).backward()
        nn.utils.clip_grad_norm_(fitted, 1.0)
        core_optimizer.step()
        estimator_optimizer.step()
        state = (h.detach(), c.detach())

    return step
