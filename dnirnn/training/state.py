"""The state of a run: everything that the next update depends on, as checkpoints hold it."""

import math
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.data import Stream
from dnirnn.distributed import Ranks
from dnirnn.model import SequenceModel
from dnirnn.training.averaging import Average
from dnirnn.training.optimizers import restore_optimizer
from dnirnn.training.rates import Rates

# Sums over the updates since the last row of the log.
PENDING = {
    "updates": 0,
    "nats": 0.0,
    "targets": 0,
    "estimator_error": 0.0,
    "gradient_norm": 0.0,
    "seconds": 0.0,
}
# Sums over the updates of the sequence at hand.
SEQUENCE = {"nats": 0.0, "targets": 0}


def bits_of(sums: dict) -> float:
    """Mean bits per target."""
    return sums["nats"] / max(sums["targets"], 1) / math.log(2)


@dataclass
class Progress:
    """How far a run is. A checkpoint holds these fields as they are.

    update, symbols, seconds: updates made, targets that counted, seconds of training.
    state, t: the state [B, S] that the next update starts from (None: a sequence's start), and the
        steps since its sequence's start.
    before: the inputs [O, B, ...] since then, where windows overlap (see Batch).
    pending, sequence: sums, as PENDING and SEQUENCE name them.
    best: {"update", "symbols", **metrics} of the best evaluation so far.
    evaluations_since_best: evaluations after it.
    truncation: {"truncation": the last update's, ...}, with what AutoTruncation found so far; None where
        it stays.
    """

    update: int = 0
    symbols: int = 0
    seconds: float = 0.0
    state: Tensor | None = None
    t: int = 0
    before: Tensor | None = None
    pending: dict = field(default_factory=PENDING.copy)
    sequence: dict = field(default_factory=SEQUENCE.copy)
    best: dict | None = None
    evaluations_since_best: int = 0
    truncation: dict | None = None

    def add(self, figures: dict[str, float], targets: int, seconds: float) -> None:
        """Adds an update's figures (see Updater) to the sums."""
        now = {**figures, "updates": 1, "targets": targets, "seconds": seconds}
        for sums in (self.pending, self.sequence):
            for name in sums:
                sums[name] += now[name]

    def add_seconds(self, seconds: float) -> None:
        """Adds seconds of training that are no single update's."""
        self.seconds += seconds
        self.pending["seconds"] += seconds

    def judge(self, metrics: dict[str, float]) -> bool:
        """Takes down an evaluation: whether it is the best so far."""
        if self.best is not None and metrics["bits"] >= self.best["bits"]:
            self.evaluations_since_best += 1
            return False
        self.best = {"update": self.update, "symbols": self.symbols, **metrics}
        self.evaluations_since_best = 0
        return True

    def forget_best(self) -> None:
        self.best, self.evaluations_since_best = None, 0


class Mark(NamedTuple):
    """What an update changes but for the parameters and what of them is its optimizers'."""

    update: int
    symbols: int
    t: int
    before: Tensor | None
    stream: dict
    rng: list[Tensor]
    rates: tuple[list[dict], dict | None]


class Made(NamedTuple):
    """An update that was made, and not yet read: from where, of what batch, in how many seconds."""

    mark: Mark
    steps: int
    targets: int
    final: bool
    seconds: float


class TrainingState:
    """The model, its rates, the stream, how far they are: one state, to be saved and set again.

    average: of the model's weights, where the rates' TrainerConfig asks for one.
    device: where the model is, whose random numbers belong to it.
    ranks: the processes that train it: each has its rows of the state, and random numbers of its own.
    """

    def __init__(
        self,
        model: SequenceModel,
        rates: Rates,
        stream: Stream,
        device: torch.device,
        ranks: Ranks | None = None,
    ):
        self.model, self.rates, self.stream, self.device = model, rates, stream, device
        self.ranks = ranks or Ranks()
        self.progress, self.average = Progress(), None
        decay = rates.config.average
        if decay is not None:
            if not self.ranks.lockstep:
                raise ValueError(
                    "average must be None where ranks hold parts of a network, and none has all the"
                    f" weights of an update; got {decay}"
                )
            self.average = Average(model.core_parameters(), decay)

    def take_in(self, bad: float | Tensor) -> None:
        """Has an update's weights averaged; not where it was ``bad`` and changed nothing."""
        if self.average is not None:
            self.average.update(self.progress.update + 1, bad)

    def settle(self) -> None:
        """Leaves the averaged weights in the model, where there is no best one."""
        if self.average is not None and self.progress.best is None:
            self.average.apply()

    def averaged(self) -> AbstractContextManager:
        """The model is that of the averaged weights inside, where they are averaged."""
        return nullcontext() if self.average is None else self.average.applied()

    def mark(self) -> Mark:
        """Where the run is before an update, to go back to where the update can't be made."""
        now = self.progress
        place, rng = self.stream.state_dict(), get_rng(self.device)
        return Mark(now.update, now.symbols, now.t, now.before, place, rng, self.rates.mark())

    def go_back(self, mark: Mark) -> None:
        """Sets what an update, that has left all parameters as they were, has changed."""
        now = self.progress
        now.update, now.symbols, now.t, now.before = mark.update, mark.symbols, mark.t, mark.before
        self.stream.load_state_dict(mark.stream)
        set_rng(mark.rng, self.device)
        self.rates.go_back(mark.rates)

    def seed(self, seed: int) -> None:
        """Begins torch's random numbers, each rank's others: the first one's are those of one process."""
        torch.manual_seed(seed + 2**32 * self.ranks.rank)

    def state_dict(self) -> dict:
        """Of all ranks, on the first; of what is every rank's own, elsewhere.

        state is that of all rows, rng the first rank's, others_rng those of the others.
        """
        progress = {one.name: getattr(self.progress, one.name) for one in fields(Progress)}
        if self.ranks.size > 1:
            kept = {"state": self.progress.state, "before": by_row(self.progress.before)}
            own = ({k: v.cpu() for k, v in kept.items() if v is not None}, get_rng(self.device))
            parts, rngs = zip(*self.ranks.gathered(own) or [own])
            whole = {name: self.ranks.whole([one[name] for one in parts]) for name in own[0]}
            progress |= whole | {"before": by_row(whole.get("before"))}
            progress["others_rng"] = list(rngs[1:])
        return {
            **progress,
            "epochs": float(self.stream.epochs),
            "threads": torch.get_num_threads(),
            "model": self.model.state_dict(),
            "optimizers": [one.state_dict() for one in self.rates.optimizers],
            "schedule": self.rates.schedule_state(),
            "stream": self.stream.state_dict(),
            "rng": get_rng(self.device),
            "average": None if self.average is None else self.average.state_dict(),
        }

    def load_state_dict(self, tree: dict) -> None:
        """Sets what :meth:`state_dict` returned, of a tree that :func:`check_progress` found sound."""
        if tree["threads"] != torch.get_num_threads():
            warnings.warn(
                f"this run began with {tree['threads']} threads and goes on with"
                f" {torch.get_num_threads()}: its last bits may differ from an uninterrupted one's",
                stacklevel=4,
            )
        self.model.load_state_dict(tree["model"])
        for optimizer, state in zip(self.rates.optimizers, tree["optimizers"]):
            restore_optimizer(optimizer, state)
        if self.average is not None:
            self.average.load_state_dict(tree["average"])
        self.rates.resume(tree["schedule"])
        self.stream.load_state_dict(tree["stream"])
        self.set_rng([tree["rng"], *tree.get("others_rng", [])], tree["update"])
        now = self.progress
        for one in fields(Progress):
            setattr(now, one.name, tree.get(one.name))  # of an older version, None
        if now.state is not None:
            now.state = self.ranks.rows(now.state).to(self.device)
        if now.before is not None:
            now.before = by_row(self.ranks.rows(by_row(now.before)))

    def set_rng(self, saved: list[list[Tensor]], update: int) -> None:
        """Goes on with the random numbers of as many ranks, or begins them anew where there are others."""
        ranks = self.ranks
        if len(saved) != ranks.size:
            if ranks.first:
                warnings.warn(
                    f"this run was saved by {len(saved)} processes and goes on with {ranks.size}: the"
                    " batch and its streams are laid anew over them, and their random numbers begin"
                    " anew",
                    stacklevel=5,
                )
            self.seed(self.rates.config.seed + update)
        elif ranks.first or len(saved[ranks.rank]):
            set_rng(saved[ranks.rank], self.device)


def check_progress(tree: dict) -> None:
    """Raises TypeError or ValueError for an entry of a checkpoint that no run has written."""
    for name in ("update", "symbols", "t", "evaluations_since_best", "threads", "log"):
        value = tree[name]
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is {value!r:.40}")
    if type(tree["seconds"]) is not float or not 0 <= tree["seconds"] < math.inf:
        raise ValueError(f"seconds is {tree['seconds']!r:.40}")
    for name in ("state", "before"):
        if not isinstance(tree.get(name), (Tensor, type(None))):
            raise TypeError(f"{name} is {tree[name]!r:.40}")
    for name, keys in (("pending", PENDING.keys()), ("sequence", SEQUENCE.keys())):
        if not isinstance(tree[name], dict) or tree[name].keys() != keys:
            raise ValueError(f"{name} is {tree[name]!r:.40}")
    best = tree["best"]
    if best is not None and not (isinstance(best, dict) and {"update", "bits"} <= best.keys()):
        raise ValueError(f"best is {best!r:.40}")


def by_row(steps: Tensor | None) -> Tensor | None:
    """[T, B, ...] as [B, T, ...], or back."""
    return None if steps is None else steps.transpose(0, 1).contiguous()


def get_rng(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators: the CPU's and the device's."""
    states = [torch.get_rng_state()]
    return states + [torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_rng(states: list[Tensor], device: torch.device) -> None:
    """A run that began on another kind of device has no state for this one: its seed stays."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
