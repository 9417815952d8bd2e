"""How much of the true gradient follows from the state, and from what comes: what estimators could learn.

At the boundaries of a trained run's sequences, the exact gradient of the next 40 steps' loss is
taken (``dnirnn.true_gradients``); then a ridge regression and an MLP are fitted offline to it, and judged
on states they have not seen: a state that comes up several times is on one side only. They are given
the state, and the inputs and targets of the next R steps, as ``--context input target --reads R``
holds for an estimator. What they can't predict, no estimator can learn online.

    python examples/predictable_future.py RUN [--data-dir FOLDER] [--batches N] [--length VECTORS] [--reads R ...]

RUN: a folder of ``dnirnn train char-lm`` or ``copy``. Prints, for each R, the share of the gradient's mean
square that is explained on held-out states (1 is all of it, 0 or below nothing), and the mean cosine with
it of predictions that are fitted to its direction, which a few large gradients do not rule.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dnirnn import TrueGradient, true_gradients
from dnirnn.config.saved import from_config
from dnirnn.data import Batch, TextStream
from dnirnn.tasks import char_lm, copy
from dnirnn.training.trainer import load_weights, read_config
from dnirnn.truncated import cut_otherwise

LOOKAHEAD = 40  # steps
BOUNDARIES = 16  # of a batch of text
ROWS = 64
ROUND = 1e-4  # states that are nearer to each other are one

Fit = Callable[[Tensor, Tensor], Callable[[Tensor], Tensor]]


def batches(config: dict, vocabulary, options: argparse.Namespace) -> Iterator[tuple[Batch, int | None]]:
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


def coming(batch: Batch, steps: list[int], reads: int, symbols: int) -> Tensor:
    """[N, B, C]: inputs and targets of the next ``reads`` steps after each of N steps; zeros beyond the end."""
    parts = [batch.x, batch.y]
    if symbols:
        parts = [F.one_hot(part, symbols).float() for part in parts]
    elif batch.weight is not None:
        parts[1] = parts[1] * batch.weight[..., None]
    told = torch.cat(parts, -1)
    told = torch.cat([told, told.new_zeros(reads, *told.shape[1:])])
    return torch.stack([told[t : t + reads].transpose(0, 1).flatten(1) for t in steps])


def gather(model, config: dict, vocabulary, options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """(states [R, S], what comes after them [R, C], their true gradients [R, S])."""
    length, most = model.truncated.truncation, max(options.reads)
    symbols = 0 if vocabulary is None else len(vocabulary)
    state, found = None, []
    for batch, count in batches(config, vocabulary, options):
        if state is None or batch.final:
            state = model.initial_state(ROWS)
        with cut_otherwise(model.truncated, TrueGradient()):
            nats, state, (cut,) = model(batch, state)
        states = cut.end.detach()[:-1][:count]
        true = true_gradients(nats.sum(), cut, -(-LOOKAHEAD // length))[1:][:count]
        steps = [length * (n + 1) for n in range(len(states))]
        told = coming(batch, steps, most, symbols)
        found.append([part.flatten(0, 1).double() for part in (states, told, true)])
    states, told, true = (torch.cat(parts) for parts in zip(*found))
    return states, told, true


def split(states: Tensor) -> tuple[list[Tensor], int]:
    """(rows to fit, to choose by and to judge: 7, 1 and 2 tenths of the distinct states; how many there are)."""
    _, kind = torch.unique((states / ROUND).round(), dim=0, return_inverse=True)
    count = int(kind.max()) + 1
    place = torch.randperm(count, generator=torch.Generator().manual_seed(0))[kind]
    marks = [0, count * 7 // 10, count * 8 // 10, count]
    return [((place >= a) & (place < b)).nonzero().flatten() for a, b in zip(marks, marks[1:])], count


def explained(predicted: Tensor, true: Tensor) -> float:
    return float(1 - (predicted - true).square().sum() / true.square().sum())


def cosine(predicted: Tensor, true: Tensor) -> float:
    return float(torch.cosine_similarity(predicted, true, eps=1e-300).mean())


def ridges(told: Tensor, target: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """Ridge regressions, from little to much of a ridge."""

    def units(rows: Tensor) -> Tensor:
        return torch.cat([rows, torch.ones_like(rows[:, :1])], 1)

    squares, products = units(told).T @ units(told), units(told).T @ target
    for power in range(-2, 6):
        regular = squares + 10.0**power * torch.eye(len(squares), dtype=squares.dtype)
        weight = torch.linalg.solve(regular, products)
        yield lambda rows, weight=weight: units(rows) @ weight


def mlps(told: Tensor, target: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """An MLP with one hidden layer of 512, after each of 12 epochs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(told.shape[1], 512), nn.ReLU(), nn.Linear(512, target.shape[1]))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    size = target.square().mean().sqrt()
    told, target = told.float(), (target / size).float()
    for _ in range(12):
        for rows in torch.randperm(len(told)).split(256):
            error = (model(told[rows]) - target[rows]).square().sum(1).mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        with torch.no_grad():
            yield lambda rows: size * model(rows.float()).double()


def best(fits, told: Tensor, target: Tensor, parts: list[Tensor], judge) -> float:
    """The figure on held-out states of the fit that is best on those to choose by."""
    fit, *others = parts
    found = []
    for predict in fits(told[fit], target[fit]):
        with torch.no_grad():
            found.append([judge(predict(told[part]), target[part]) for part in others])
    return max(found)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--data-dir")
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--length", type=int, default=6)
    parser.add_argument("--reads", type=int, nargs="+", default=[0, 1, 4])
    options = parser.parse_args()
    config = read_config(options.run)
    if options.data_dir is not None:
        config["data_dir"] = options.data_dir
    model, vocabulary = (char_lm if config["task"] == "char-lm" else copy).restore(config)
    load_weights(options.run, model, "latest")
    model.eval()
    states, told, true = gather(model, config, vocabulary, options)
    parts, count = split(states)
    print(f"{options.run}: {len(states):,} states, {count:,} distinct, {LOOKAHEAD} steps ahead")
    directions = true / true.norm(dim=1, keepdim=True).clamp_min(1e-300)
    most = max(options.reads)
    for reads in options.reads:
        known = states
        if reads:
            each = told.view(len(told), most, -1)[:, :reads].flatten(1)
            known = torch.cat([states, each], 1)
        shares = [best(fits, known, true, parts, explained) for fits in (ridges, mlps)]
        cosines = [best(fits, known, directions, parts, cosine) for fits in (ridges, mlps)]
        print(
            f"with the next {reads} steps: ridge {shares[0]:.3f}, MLP {shares[1]:.3f} of the true gradient;"
            f" cosine {cosines[0]:.3f}, {cosines[1]:.3f}"
        )


if __name__ == "__main__":
    main()
