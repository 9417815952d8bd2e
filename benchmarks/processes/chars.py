"""A character model over two processes, beside one, and beside plain torch that does the same."""

from argparse import Namespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import dnirnn
from benchmarks.processes.network import Way
from dnirnn.data import Batch
from dnirnn.distributed import Ranks, TorchRanks
from dnirnn.model import SequenceModel, symbol_nats
from dnirnn.training.optimizers import make_optimizer
from dnirnn.training.updater import Updater

SYMBOLS, EMBEDDING, LR, CLIP = 50, 64, 2e-3, 1.0


def symbols_of(rank: int, ranks: int, case: Namespace) -> tuple[Tensor, Tensor]:
    """This rank's rows of random symbols and of those that follow."""
    torch.manual_seed(case.seed)
    symbols = torch.randint(SYMBOLS, (case.steps + 1, case.batch))
    rows = slice(rank * case.batch // ranks, (rank + 1) * case.batch // ranks)
    return symbols[:-1, rows].contiguous(), symbols[1:, rows].contiguous()


def ours(rank: int, ranks: int, case: Namespace) -> Way:
    """The update that `train char-lm --estimator none` makes."""
    x, y = symbols_of(rank, ranks, case)
    core = dnirnn.LSTM(EMBEDDING, case.width)
    truncated = dnirnn.Truncated(core, case.steps, dnirnn.ZeroGradient())
    encoder, readout = nn.Embedding(SYMBOLS, EMBEDDING), nn.Linear(case.width, SYMBOLS)
    model = SequenceModel(encoder, truncated, readout, symbol_nats)
    together = TorchRanks() if ranks > 1 else Ranks()
    together.join(model)
    optimizer = make_optimizer("", model.core_parameters(), "Adam", LR, {})
    rows = x.shape[1]
    updater = Updater(
        model, [optimizer], [(None, CLIP)], rows, rows, 1 / y.numel(), ranks=together
    )
    kept = [model.initial_state(rows)]

    def learn() -> None:
        kept[0] = updater(Batch(x, y), kept[0], 0)
        updater.read()

    return Way(learn, model)


class Plain(nn.Module):
    """Embedding, nn.LSTM, readout."""

    def __init__(self, hidden: int):
        super().__init__()
        self.embedding = nn.Embedding(SYMBOLS, EMBEDDING)
        self.core, self.readout = nn.LSTM(EMBEDDING, hidden), nn.Linear(hidden, SYMBOLS)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple]:
        output, state = self.core(self.embedding(x), state)
        return self.readout(output), state


def plain(rank: int, ranks: int, case: Namespace) -> Way:
    """The same in plain torch: truncated backpropagation, DistributedDataParallel, clipping, fused Adam."""
    x, y = symbols_of(rank, ranks, case)
    model = Plain(case.width)
    wrapped = DistributedDataParallel(model) if ranks > 1 else model
    optimizer = torch.optim.Adam(model.parameters(), LR, fused=True)
    kept = [(torch.zeros(1, x.shape[1], case.width),) * 2]

    def learn() -> None:
        logits, state = wrapped(x, kept[0])
        kept[0] = tuple(part.detach() for part in state)
        F.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return Way(learn, model)


WAYS = {"one": ours, "ddp": ours, "one, nn.LSTM": plain, "ddp, nn.LSTM": plain}
