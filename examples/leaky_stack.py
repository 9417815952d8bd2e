"""A stack of one's own in one file: leaky averages, of several time constants, over any core.

    python examples/leaky_stack.py
"""

import torch
from torch import nn

import dnirnn


class LeakyStack(dnirnn.Core):
    """A core, and leaky averages of its output y, each with its own learned time constants.

        a_k' = a_k + rate_k * (y - a_k),  rate_k = sigmoid(logit_k), one per unit of y

    The output is [y, a_1', a_2', ...]; the state [B, S] is the core's, then a_1, a_2, ...
    ``times``: the time constants that the averages start with, in steps, above 1: rate = 1 / time.

    step says all of it; for speed, a forward equal to its loop may stand beside it.
    """

    def __init__(self, core: dnirnn.Core, times=(3.0, 30.0)):
        super().__init__()
        self.core, width = core, core.output_size
        self.input_size = core.input_size
        self.output_size = width * (1 + len(times))
        self.state_size = core.state_size + width * len(times)
        rates = 1 / torch.tensor(times)[:, None].expand(-1, width)
        self.logits = nn.Parameter(torch.logit(rates))

    def step(self, x_BI, state_BS, t):
        y, inner = self.core.step(x_BI, state_BS[:, : self.core.state_size], t)
        averages = state_BS[:, self.core.state_size :].view(len(y), *self.logits.shape)
        averages = averages + torch.sigmoid(self.logits) * (y[:, None] - averages)
        averages = averages.flatten(1)
        return torch.cat([y, averages.to(y.dtype)], 1), torch.cat([inner, averages], 1)


if __name__ == "__main__":
    # Does the sum of the inputs so far lie above zero? Updated every 5 steps, with DNI at the cuts.
    torch.manual_seed(0)
    core, readout = LeakyStack(dnirnn.LSTM(1, 16)), nn.Linear(48, 1)
    truncated = dnirnn.Truncated(core, 5, dnirnn.SyntheticGradient(core.state_size))
    optimizer = torch.optim.Adam([*truncated.parameters(), *readout.parameters()], 1e-2)
    for update in range(151):
        x = torch.randn(20, 32, 1)
        y = (x.cumsum(0) > 0).float()
        optimizer.zero_grad()
        output, _, interfaces = truncated(x, core.initial_state(32), final=True)
        loss = nn.functional.binary_cross_entropy_with_logits(readout(output), y)
        dnirnn.backward(loss, interfaces, unit=1 / y.numel())
        optimizer.step()
        if update % 50 == 0:
            print(f"update {update}: {loss:.3f} nats an answer")
