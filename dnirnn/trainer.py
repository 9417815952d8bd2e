"""Trainer: a stream, a model, and a run folder that can be resumed bit for bit."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from dnirnn.data import Stream
from dnirnn.model import SequenceModel


class Interrupted(Exception):
    """Ctrl-C: the update was finished and the run saved. The message says how far it got."""


class NonFinite(Exception):
    """A loss or a gradient was not finite: nothing was updated, the last good state was saved."""


@dataclass(frozen=True)
class TrainerConfig:
    """How to train. Raises ValueError naming the field that does not fit.

    updates, minutes, symbols: budgets; the first one reached ends the run. minutes are of training,
        without evaluation and saving; symbols are targets that count.
    chunks: chunks of ``truncation`` steps an update, or "sequence": one update a whole sequence. A
        sequence's end ends an update early. Memory grows with it.
    optimizer, lr, options: the class's name in torch.optim, its learning rate, its other arguments;
        for everything but the estimator. Fused where torch offers it.
    estimator_optimizer, estimator_lr, estimator_options: the same for the estimator.
    clip, estimator_clip: largest norm of the gradient (of all parameters of the core, of the
        estimator); None: not clipped.
    micro_batch: rows computed at once; their gradients add up to the whole batch's. It must divide
        the batch size. None: all rows. (Dropout's masks are drawn per piece.)
    schedule, schedule_options: a class's name in torch.optim.lr_scheduler and its arguments, stepped
        once an update (ReduceLROnPlateau: once an evaluation, on bits). It drives ``lr``; the
        estimator's rate stays.
    evaluate_every, log_every: updates. An evaluation also ends the run; None: only then.
    checkpoint_every, checkpoint_seconds: updates, seconds of wall clock, from one checkpoint to the
        next; an evaluation that is the best so far and the run's end make one too.
    patience: evaluations without a better one after which the run ends.
    seed: seeds torch's global generator (dropout) when a run begins.
    tensorboard: also writes the rows to <folder>/tensorboard.
    """

    updates: int | None = None
    minutes: float | None = None
    symbols: int | None = None
    chunks: int | str = 1
    optimizer: str = "Adam"
    lr: float = 2e-3
    options: dict = field(default_factory=dict)
    estimator_optimizer: str = "Adam"
    estimator_lr: float = 1e-4
    estimator_options: dict = field(default_factory=dict)
    clip: float | None = 1.0
    estimator_clip: float | None = None
    micro_batch: int | None = None
    schedule: str | None = None
    schedule_options: dict = field(default_factory=dict)
    evaluate_every: int | None = 1000
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 60.0
    log_every: int = 100
    patience: int | None = None
    seed: int = 0
    tensorboard: bool = False


class Trainer:
    """Trains ``model`` on ``stream`` in the run folder ``folder``, which it makes or resumes.

    The loss of an update is the sum over its steps and rows of nats, divided by the constant
    batch_size * truncation * chunks (batch_size where chunks is "sequence"), whatever the length
    of the call at hand.

    evaluate: called with the model, in eval mode and without gradients, on schedule and at the end;
        returns metrics, of which "bits" is the one to make small: the best model is kept, patience
        counts on it. None: no evaluation.
    test: called once in the same way with the best model when the run is done; goes to the result.
    run_config: JSON-able; what distinguishes this run. A folder that holds another one is refused.

    The folder: config.json (run_config), log.jsonl, checkpoints/update-00001234/ (the last two),
    best/update-00001000/ (the best models), result.json (when done).

    Raises ValueError naming the keys that differ where the folder holds another configuration, and
    StorageError or CheckpointError (ValueErrors too) where it can't be written or read. Nothing in
    it is touched then.
    """

    def __init__(
        self,
        model: SequenceModel,
        stream: Stream,
        config: TrainerConfig,
        folder: str | Path,
        evaluate: Callable[[SequenceModel], dict[str, float]] | None = None,
        run_config: dict | None = None,
        test: Callable[[SequenceModel], dict[str, float]] | None = None,
    ):
        raise NotImplementedError

    def run(self, report: Callable[[dict], None] | None = None) -> dict:
        """Trains to the first budget reached; resumes where the folder holds checkpoints.

        report: called with every row of the log as it is written (a progress bar).

        Returns, and writes to result.json: {"stopped": the budget reached or "patience", "update",
        "symbols", "epochs", "seconds", "best": {"update", "symbols", **metrics} or None, "test":
        metrics or None}. A run that is done returns its result again. The model is left with the
        best weights where there was an evaluation, the last ones otherwise.

        Raises Interrupted after Ctrl-C, NonFinite, StorageError where the disk is full.
        """
        raise NotImplementedError


def read_config(folder: str | Path) -> dict:
    """The run_config of a run folder. Raises ValueError where it holds none."""
    raise NotImplementedError


def load_weights(folder: str | Path, model: SequenceModel, which: str = "best") -> dict:
    """Loads into ``model`` the weights of a run folder: which = "best" or "latest".

    "best" falls back to the latest checkpoint where the run made no evaluation. Returns what the
    checkpoint knows: {"update", "symbols", ...}. Raises ValueError where there is none,
    CheckpointError where it is damaged or another model's.
    """
    raise NotImplementedError
