"""Influence balancing: training with a short window goes the wrong way for ever; without its bias it arrives.

One parameter pushes the output up at once, and down, twice as much, in the steps that follow. A window of one
step, or of two, sees a push up. Carried back further, cut at random (ARTBP), or with a prediction of what comes,
training finds theta = -1/2, where the output is the 1 that is asked for.

    python examples/influence_balancing.py [--plot FILE]

Takes seconds. Prints theta after 1,500 updates, and the mean error of the last 100; --plot draws the way there.

Source: Tallec and Ollivier, Unbiasing Truncated Backpropagation Through Time, 2017, arXiv 1705.08209, section 5.1.
"""

import argparse

import torch
from torch import nn

from dnirnn import Core, SyntheticGradient, Truncated, ZeroGradient, backward


class Influences(Core):
    """s_i' = (s_i + s_(i+1)) / 2 + w_i theta, of which s_1 is the output, with w = (1, -1, -1).

    The first unit moves with theta at once, the others against it and later: in the end s_1 is
    2 theta (1 - 2), against what one step says of it.
    """

    input_size, output_size, state_size = 1, 1, 3

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.zeros(()))
        self.register_buffer("signs", torch.tensor([1.0, -1.0, -1.0]))

    def step(self, x, state, t):
        above = torch.cat([state[:, 1:], torch.zeros_like(state[:, :1])], 1)
        state = (state + above) / 2 + self.signs * self.theta
        return state[:, :1], state


def dni() -> SyntheticGradient:
    """Linear in the state, as the true gradient is here; what it says enters its targets in full."""
    return SyntheticGradient(3, scale=1.0, discount=1.0)


WAYS = {
    "one step (TBPTT)": lambda core: Truncated(core, 1, ZeroGradient()),
    "carried back 2 steps": lambda core: Truncated(core, 1, ZeroGradient(), overlap=1),
    "carried back 9 steps": lambda core: Truncated(core, 1, ZeroGradient(), overlap=8),
    "open cuts, 0.9 (ARTBP)": lambda core: Truncated(core, 1, ZeroGradient(), 0.9),
    "open cuts, 0.9, with DNI": lambda core: Truncated(core, 1, dni(), 0.9),
    "one step, with DNI": lambda core: Truncated(core, 1, dni()),
}


def train(make, updates: int = 1500) -> tuple[list[float], list[float]]:
    """(theta, the mean squared error of the steps) after each update."""
    torch.manual_seed(0)
    core = Influences()
    truncated = make(core)
    optimizer = torch.optim.SGD([core.theta], 1e-3)
    if estimated := list(truncated.estimator.parameters()):
        optimizer.add_param_group({"params": estimated, "lr": 0.05})
    state, overlap, thetas, errors = torch.zeros(1, 3), 0, [], []
    for _ in range(updates):
        x = torch.zeros(overlap + truncated.draw_chunks(), 1, 1)
        output, state, interfaces = truncated(x, state, overlap=overlap)
        overlap = truncated.next_overlap(len(x))
        missed = (output - 1).square()
        optimizer.zero_grad()
        backward(0.5 * missed.sum(), interfaces, reduction="sum")
        optimizer.step()
        thetas.append(float(core.theta.detach()))
        errors.append(float(missed.detach().mean()))
    return thetas, errors


def draw(found: dict[str, tuple[list[float], list[float]]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, (thetas, _) in found.items():
        axis.plot(thetas, label=name)
    axis.axhline(-0.5, color="gray", linewidth=0.8, linestyle=":")
    axis.set_ylim(-1.2, 1.2)
    axis.set_xlabel("updates")
    axis.set_ylabel("theta")
    axis.legend()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plot", metavar="FILE")
    options = parser.parse_args()
    found = {name: train(make) for name, make in WAYS.items()}
    for name, (thetas, errors) in found.items():
        print(f"{name:>24}: theta {thetas[-1]:+.3f}, error {sum(errors[-100:]) / 100:.4f}")
    if options.plot:
        draw(found, options.plot)


if __name__ == "__main__":
    main()
