"""Trainer: a stream, a model, and a run folder that can be resumed bit for bit.

The loop is here. What it is made of: budget (what ends it), rates (optimizers and schedule), feed
(batches), updater (one update), state (what the next update depends on), evaluation (the log),
saver and run_folder (what is written), signals, non_finite; loading, for others than the run.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn.data import Batch, Stream
from dnirnn.device import find_device, own_stream
from dnirnn.masks import draw_masks
from dnirnn.model import SequenceModel
from dnirnn.training.budget import Budget
from dnirnn.training.evaluation import Evaluation
from dnirnn.training.feed import draw_steps, look_ahead, looks_ahead, read_on
from dnirnn.training.loading import load_weights
from dnirnn.training.non_finite import NonFinite, first_not_finite, in_evaluation, in_update
from dnirnn.training.optimizers import DECAYS, can_skip
from dnirnn.training.rates import Rates
from dnirnn.training.run_folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    LOG,
    RESULT,
    AnotherRun,
    check_config,
    history,
    locked,
    put_aside,
    read_config,
    read_json,
    reading_config,
)
from dnirnn.training.saver import Saver
from dnirnn.training.signals import Interrupted, interruptible
from dnirnn.training.state import SEQUENCE, Mark, TrainingState, bits_of
from dnirnn.training.updater import TOLD, CUDAGraphs, Updater

__all__ = [
    "BEST", "CHECKPOINTS", "CONFIG", "LOG", "RESULT", "AnotherRun", "Interrupted", "NonFinite",
    "Trainer", "TrainerConfig", "check_config", "history", "load_weights", "read_config", "read_json",
    "reading_config",
]  # fmt: skip

# Updates that a device is let run ahead of the host, however rarely it logs.
AHEAD = 1024


class Made(NamedTuple):
    """An update that was made, and not yet read: from where, of what batch, in how many seconds."""

    mark: Mark
    steps: int
    targets: int
    final: bool
    seconds: float


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
    lift, estimator_lift: smallest norm of it: a shorter gradient is scaled up, but for zero; None:
        not lifted.
    warm_up, blend: updates in which the estimator is fitted and not used, and those after them over
        which its scale rises to the whole by equal steps.
    micro_batch: rows computed at once; their gradients add up to the whole batch's. It must divide
        the batch size. None: all rows. (Dropout's masks are drawn per piece.)
    schedule, schedule_options: a class's name in torch.optim.lr_scheduler and its arguments,
        stepped once an update (ReduceLROnPlateau: once an evaluation, on bits). It drives ``lr``;
        the estimator's rate stays.
    decay: "cosine" or "linear": lr falls to zero over the budget, whichever part of it is used up
        most: lr (1 + cos(pi f)) / 2 or lr (1 - f) at the fraction f. None: it stays. Only one of
        schedule and decay can drive it.
    evaluate_every, log_every: updates. An evaluation also ends the run; None: only then.
    fidelity_every: updates between two measurements of the estimator; None: none.
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
    lift: float | None = None
    estimator_lift: float | None = None
    warm_up: int = 0
    blend: int = 0
    micro_batch: int | None = None
    schedule: str | None = None
    schedule_options: dict = field(default_factory=dict)
    decay: str | None = None
    evaluate_every: int | None = 1000
    fidelity_every: int | None = None
    checkpoint_every: int | None = None
    checkpoint_seconds: float | None = 60.0
    log_every: int = 100
    patience: int | None = None
    seed: int = 0
    tensorboard: bool = False

    def __post_init__(self):
        whole = (
            "updates",
            "micro_batch",
            "evaluate_every",
            "fidelity_every",
            "checkpoint_every",
            "patience",
        )
        for name in (*whole, "log_every", "chunks"):
            value = getattr(self, name)
            if (name in whole and value is None) or (name == "chunks" and value == "sequence"):
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                other = ' or "sequence"' if name == "chunks" else ""
                raise ValueError(f"{name} must be an int of at least 1{other}; got {value!r}")
        for name in ("warm_up", "blend"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 0:
                raise ValueError(f"{name} must be an int of at least 0; got {value!r}")
        norms = ("clip", "estimator_clip", "lift", "estimator_lift")
        positive = ("minutes", "symbols", *norms, "checkpoint_seconds")
        for name in (*positive, "lr", "estimator_lr"):
            value = getattr(self, name)
            if name in positive and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise ValueError(f"{name} must be positive; got {value!r}")
        for prefix in ("", "estimator_"):
            largest, smallest = (getattr(self, f"{prefix}{name}") for name in ("clip", "lift"))
            if None not in (largest, smallest) and smallest > largest:
                raise ValueError(
                    f"{prefix}lift must be at most {prefix}clip, {largest}; got {smallest}"
                )
        if self.decay not in (None, *DECAYS):
            raise ValueError(f"decay must be one of {', '.join(DECAYS)} or None; got {self.decay!r}")
        if self.decay is not None and self.schedule is not None:
            raise ValueError(
                f"decay and schedule can't both drive lr; got {self.decay!r} and {self.schedule!r}"
            )
        if self.decay is not None and self.updates is self.minutes is self.symbols is None:
            raise ValueError("decay needs a budget: updates, minutes or symbols")
        if self.updates is self.minutes is self.symbols is self.patience is None:
            raise ValueError("one of updates, minutes, symbols or patience must be given")


class Trainer:
    """Trains ``model`` on ``stream`` in the run folder ``folder``, which it makes or resumes.

    The loss of an update is the sum over its steps and rows of nats, divided by the constant
    batch_size * truncation * chunks (batch_size where chunks is "sequence"), whatever the length
    of the call at hand. Where the model's Truncated has open_cuts, an update takes as many chunks
    as it draws, and the constant holds their mean number.

    evaluate: called with the model, in eval mode and without gradients, on schedule and at the end;
        returns metrics, of which "bits" is the one to make small: the best model is kept, patience
        counts on it. None: no evaluation.
    test: called once in the same way with the best model when the run is done; goes to the result.
    fidelity: called with the model on config.fidelity_every, in eval mode; returns what a row of
        kind "fidelity" says (see dnirnn.fidelity). It does not change the training by a bit.
    prepare: called with the model and the stream's epochs before every update, to set in it what
        changes in the course of training (an annealed slope). It must depend on nothing else, so
        that a resumed run sets the same. None: nothing.
    run_config: JSON-able; what distinguishes this run. A folder that holds another one is refused.
        Of its keys "defaults" holds what an option is where one side has it and the other not, and
        "places" names those that say where data is and not what: neither is compared.
    may_change: keys of run_config that may differ from the folder's, and are then this run's from
        here on.
    restart: a run that the folder holds is moved aside, to FOLDER.before-1 or so, and this one
        begins anew.
    device: cpu, cuda or cuda:N, where the model is moved to (None: where it is) and the stream is
        told to make its batches. No part of the configuration: a run goes on on another device, if
        not to the bit.
    graphs: whether updates on a CUDA device are captured in CUDA graphs and replayed. What changes
        from update to update must then be tensors of the model that stay in place (``prepare``).

    On a CUDA device with Adam or AdamW the host does not wait for the updates: it reads what they
    told when it logs, evaluates or saves, and where a sequence ends. With other optimizers it looks
    at every update before it is made, and nothing is captured.

    The folder: config.json (run_config), log.jsonl, checkpoints/update-00001234/ (the last two),
    best/update-00001000/ (the best models), result.json (when done), history.jsonl (a row for each
    time that the run was begun anew, went on with a change, or found its data elsewhere).

    Raises AnotherRun naming the keys that differ where the folder holds another configuration, and
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
        prepare: Callable[[SequenceModel, float], None] | None = None,
        fidelity: Callable[[SequenceModel], dict[str, float]] | None = None,
        device: str | torch.device | None = None,
        graphs: bool = True,
        may_change: Collection[str] = (),
        restart: bool = False,
    ):
        if device is not None:
            model.to(find_device(device))
        self.model, self.stream, self.config = model, stream, config
        self.folder, self.test = Path(folder), test
        self.prepare = prepare or (lambda model, epochs: None)
        if config.fidelity_every is not None and fidelity is None:
            raise ValueError("fidelity_every counts measurements: fidelity must be given")
        if config.patience is not None and evaluate is None:
            raise ValueError("patience counts evaluations: evaluate must be given")
        if stream.batch_size % (config.micro_batch or 1):
            raise ValueError(
                f"micro_batch must divide the batch size {stream.batch_size}; got"
                f" {config.micro_batch}"
            )
        if model.truncated.open_cuts is not None and config.chunks != 1:
            raise ValueError(
                f"chunks must be 1 with open_cuts, which draws them; got {config.chunks}"
            )
        whole = config.chunks == "sequence"
        self.steps = None if whole else model.truncated.truncation * config.chunks
        self.core = model.core_parameters()
        self.device = self.core[0].device
        stream.to(self.device)
        self.looks_ahead = looks_ahead(model, stream, config.micro_batch)
        self.rates = Rates(model, config)
        self.optimizer, self.optimizers = self.rates.optimizer, self.rates.optimizers
        self.updater = self.make_updater(graphs)
        if self.rates.by_bits and evaluate is None:
            raise ValueError("schedule ReduceLROnPlateau needs evaluations: evaluate must be given")

        given = asdict(config) if run_config is None else run_config
        self.run_config = json.loads(json.dumps(given))
        self.restart = restart
        if not restart:
            check_config(self.folder, self.run_config, may_change)
            known = read_json(self.folder / CONFIG) or {}
            if config.schedule and known.get("lr") not in (None, self.run_config.get("lr")):
                raise ValueError(
                    f"lr can't change under schedule {config.schedule}, which keeps its own rates; got"
                    f" {config.lr}"
                )

        self.budget = Budget(config.updates, config.symbols, config.minutes, config.patience)
        training = TrainingState(model, self.rates, stream, self.device)
        self.training, self.progress = training, training.progress
        every, seconds = config.checkpoint_every, config.checkpoint_seconds
        self.saver = Saver(self.folder, training, self.run_config, may_change, every, seconds)
        self.evaluation = Evaluation(training, evaluate, fidelity)
        self.interrupted: int | None = None
        self.unread: list[Made] = []

    def make_updater(self, graphs: bool) -> Updater:
        """Watched by the host where the device is the CPU, or some part of an update needs it."""
        model, config, rows = self.model, self.config, self.stream.batch_size
        waits = model.truncated.estimator.waits or not all(map(can_skip, self.optimizers))
        watch = waits or self.device.type != "cuda"
        return Updater(
            model,
            self.optimizers,
            [(config.lift, config.clip), (config.estimator_lift, config.estimator_clip)],
            rows,
            config.micro_batch or rows,
            # With open cuts a call has 1 / (1 - p) chunks in the mean.
            (1 - (model.truncated.open_cuts or 0)) / (rows * (self.steps or 1)),
            watch,
            None if watch or not graphs else CUDAGraphs(),
            min(config.log_every, AHEAD),
        )

    # How far it is

    @property
    def update(self) -> int:
        return self.progress.update

    @property
    def symbols(self) -> int:
        return self.progress.symbols

    @property
    def state(self) -> Tensor | None:
        return self.progress.state

    @property
    def t(self) -> int:
        return self.progress.t

    @property
    def checkpoint_folder(self) -> Path:
        """Where the state after this update is or will be saved."""
        return self.saver.checkpoint

    def run(self, report: Callable[[dict], None] | None = None) -> dict:
        """Trains to the first budget reached; resumes where the folder holds checkpoints.

        report: called with every row of the log as it is written (a progress bar).

        Returns, and writes to result.json: {"stopped": the budget reached or "patience", "update",
        "symbols", "epochs", "seconds", "best": {"update", "symbols", **metrics} or None, "test":
        metrics or None}. A run that is done returns its result again. The model is left with the
        best weights where there was an evaluation, the last ones otherwise.

        Raises Interrupted after Ctrl-C or SIGTERM, NonFinite, StorageError where the disk is full.
        """
        if self.restart:
            put_aside(self.folder)
            self.restart = False
        self.interrupted = None
        with locked(self.folder), interruptible(self.interrupt), own_stream(self.device):
            try:
                self.begin(report)
                stopped = self.budget.reached(self.progress)
                self.model.train()
                while stopped is None:
                    self.learn()
                    stopped = self.after_update()
                return self.conclude(stopped)
            finally:
                self.rates.finish()
                self.saver.close()

    def learn(self) -> None:
        """One update of all parameters on the stream's next batch."""
        began, now = time.perf_counter(), self.progress
        self.prepare(self.model, self.stream.epochs)
        mark = self.training.mark()
        self.rates.before_update(now.update, self.budget.used(now))
        batch = self.next_batch()
        steps, targets = len(batch.x), batch.count()
        batch = batch.to(self.device)
        if self.looks_ahead:
            look_ahead(self.model, self.stream, batch, now.state, now.t)
        now.state = self.updater(batch, now.state, now.t)
        self.rates.after_update()
        now.t += steps
        now.update += 1
        now.symbols += targets
        seconds = time.perf_counter() - began
        now.seconds += seconds
        self.unread.append(Made(mark, steps, targets, batch.final, seconds))
        # A stream is told of every sequence before it begins the next.
        if self.updater.full or batch.final:
            self.look()

    def after_update(self) -> str | None:
        """Logs, evaluates and saves what is due: the reason to stop, or None."""
        config, now = self.config, self.progress
        stopped = self.budget.reached(now)
        evaluating = self.evaluation.evaluate is not None and (
            stopped is not None or is_due(config.evaluate_every, now.update)
        )
        if evaluating or stopped is not None or is_due(config.log_every, now.update):
            self.look()
            self.evaluation.log_training()
        if is_due(config.fidelity_every, now.update):
            self.look()
            self.evaluation.measure_fidelity()
        better = self.run_evaluation() if evaluating else False
        stopped = stopped or self.budget.reached(now)
        asked = self.interrupted
        if better or stopped is not None or asked is not None or self.saver.is_due():
            self.save()
        if asked is not None and stopped is None:
            raise Interrupted(
                f"interrupted at update {now.update:,} ({now.symbols:,} symbols,"
                f" {now.seconds:.0f} s); saved in {self.folder}: the same run goes on from there",
                asked,
            )
        return stopped

    # Its parts

    def begin(self, report: Callable[[dict], None] | None) -> None:
        """Makes the run folder, or goes on from the last checkpoint in it."""
        self.unread = []
        self.updater.forget()
        went_on = self.saver.begin(self.config.tensorboard)
        self.evaluation.begin(self.saver.log, report)
        if not went_on:
            torch.manual_seed(self.config.seed)
            # At once, so that a disk or a folder that can't be written to costs no work.
            self.save()

    def next_batch(self) -> Batch:
        """The stream's next batch; what it starts from is the state then."""
        steps, now = draw_steps(self.model, self.steps), self.progress
        batch = self.stream.next(steps)
        batch = read_on(batch, self.stream, self.model.truncated.estimator.reads)
        if batch.first or now.state is None:
            now.state, now.t = self.model.initial_state(self.stream.batch_size), 0
            draw_masks(self.model)
        elif self.stream.unbroken:
            draw_masks(self.model)
        return batch

    def look(self) -> None:
        """Waits for the updates made so far, and takes down what they tell."""
        if not self.unread:
            return
        began, now = time.perf_counter(), self.progress
        updates, self.unread = self.unread, []
        for made, row in zip(updates, self.updater.read()):
            told = dict(zip(TOLD, row))
            name = first_not_finite(told)
            if name is not None:
                self.training.go_back(made.mark)
                self.save()
                raise in_update(name, told[name], made.steps, now, self.checkpoint_folder)
            now.add(told, made.targets, made.seconds)
            if made.final:
                self.stream.observe(bits_of(now.sequence))
                now.sequence = dict(SEQUENCE)
        now.add_seconds(time.perf_counter() - began)

    def run_evaluation(self) -> bool:
        """Evaluates, keeps the model where it is the best so far; whether it is."""
        metrics = self.evaluation.run()
        if not math.isfinite(metrics["bits"]):
            raise in_evaluation(metrics["bits"], self.progress, self.saver.last)
        self.rates.after_evaluation(metrics["bits"])
        better = self.progress.judge(metrics)
        if better:
            self.saver.keep_best()
        return better

    def save(self) -> None:
        """Writes the checkpoint of this update, once."""
        self.look()
        self.saver.save()

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Asks the run to finish the update at hand, save and stop, as a signal of that number does."""
        self.interrupted = number

    def conclude(self, stopped: str) -> dict:
        """Leaves the best weights in the model, tests them, and writes the result."""
        if not self.saver.load_best() and self.evaluation.evaluate is not None:
            # The best model was lost: of what there is, the last weights are the best.
            self.run_evaluation()
            self.saver.save_again()
        now = self.progress
        result = {
            "stopped": stopped,
            "update": now.update,
            "symbols": now.symbols,
            "epochs": float(self.stream.epochs),
            "seconds": now.seconds,
            "best": now.best,
        }
        known = self.saver.known_result(result)
        if known is not None:
            return known
        result["test"] = None if self.test is None else self.evaluation.measure(self.test)
        self.model.eval()
        self.saver.write_result(result)
        return result


def is_due(every: int | None, update: int) -> bool:
    return every is not None and update % every == 0
