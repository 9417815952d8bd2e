"""How much of the true gradient can be told from the state at all: an upper bound on estimators.

At the boundaries of a trained run's sequences, the exact gradient of the next 40 steps' loss is
taken (``dnirnn.true_gradients``); then a ridge regression and an MLP are fitted offline to it, from the state
alone, and judged on states they have not seen. What they can't say, no estimator can learn online.

    python examples/predictable_future.py RUN [--data-dir FOLDER] [--batches N] [--length VECTORS]

RUN: a folder of ``dnirnn train char-lm`` or ``copy``. Prints the share of the gradient's mean square that is
explained on held-out states: 1 is all of it, 0 or below nothing.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

from dnirnn import TrueGradient, true_gradients
from dnirnn.config.saved import from_config
from dnirnn.data import TextStream
from dnirnn.tasks import char_lm, copy
from dnirnn.training.trainer import load_weights, read_config

LOOKAHEAD = 40  # steps
BOUNDARIES = 16  # of a batch of text
ROWS = 64


def batches(config: dict, vocabulary, options: argparse.Namespace):
    """(batch, boundaries of it that count): training text in streams, or fresh sequences."""
    truncation = config["truncation"]
    if config["task"] == "char-lm":
        corpus = char_lm.load_corpus(from_config(char_lm.CharLMOptions, config))
        symbols = char_lm.encode(corpus, vocabulary)["train"]
        stream = TextStream(symbols, ROWS, int(vocabulary.encode("\n")))
        steps = truncation * BOUNDARIES + LOOKAHEAD
        for _ in range(options.batches):
            yield stream.next(steps), BOUNDARIES
    else:
        generator = torch.Generator().manual_seed(0)
        for _ in range(options.batches):
            shape = (options.length, ROWS, config["bits"])
            yield copy.lay_out(torch.randint(2, shape, generator=generator).float()), None


def explained(predicted: Tensor, true: Tensor) -> float:
    return float(1 - (predicted - true).square().sum() / true.square().sum())


def ridge(states: Tensor, gradients: Tensor, fit: slice, choose: slice, judge: slice) -> float:
    """The held-out share of the ridge that is best on the states it is chosen by."""
    units = torch.cat([states, torch.ones_like(states[:, :1])], 1)
    squares = units[fit].T @ units[fit]
    found = []
    for power in range(-2, 6):
        regular = squares + 10.0**power * torch.eye(len(squares), dtype=squares.dtype)
        weight = torch.linalg.solve(regular, units[fit].T @ gradients[fit])
        shares = [explained(units[part] @ weight, gradients[part]) for part in (choose, judge)]
        found.append(shares)
    return max(found)[1]


def mlp(states: Tensor, gradients: Tensor, fit: slice, choose: slice, judge: slice) -> float:
    """The same of an MLP with one hidden layer of 512, at the best of 12 epochs."""
    torch.manual_seed(0)
    size = states.shape[1]
    model = nn.Sequential(nn.Linear(size, 512), nn.ReLU(), nn.Linear(512, size))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    states = states.float()
    targets = (gradients / gradients[fit].square().mean().sqrt()).float()
    found = []
    for _ in range(12):
        for rows in torch.randperm(len(states[fit])).split(256):
            error = (model(states[fit][rows]) - targets[fit][rows]).square().sum(1).mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        with torch.no_grad():
            shares = [explained(model(states[part]), targets[part]) for part in (choose, judge)]
        found.append(shares)
    return max(found)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--length", type=int, default=6)
    options = parser.parse_args()
    config = read_config(options.run)
    if options.data_dir is not None:
        config["data_dir"] = options.data_dir
    model, vocabulary = (char_lm if config["task"] == "char-lm" else copy).restore(config)
    load_weights(options.run, model, "latest")
    model.eval()
    model.truncated.estimator = TrueGradient()

    state, seen, true = None, [], []
    for batch, count in batches(config, vocabulary, options):
        if state is None or batch.final:
            state = model.initial_state(ROWS)
        nats, state, (cut,) = model(batch, state)
        chunks = -(-LOOKAHEAD // model.truncated.truncation)
        seen.append(cut.end.detach()[:-1][:count].flatten(0, 1))
        true.append(true_gradients(nats.sum(), cut, chunks)[1:][:count].flatten(0, 1))
    states, gradients = torch.cat(seen).double(), torch.cat(true).double()
    rows = len(states)
    parts = [slice(0, rows * 7 // 10), slice(rows * 7 // 10, rows * 8 // 10), slice(rows * 8 // 10, rows)]
    print(f"{options.run}: {rows:,} states, {LOOKAHEAD} steps ahead")
    print(f"ridge: {ridge(states, gradients, *parts):.4f} of the true gradient on held-out states")
    print(f"MLP:   {mlp(states, gradients, *parts):.4f}")


if __name__ == "__main__":
    main()
