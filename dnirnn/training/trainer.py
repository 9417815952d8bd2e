"""Trainer: a stream, a model, and a run folder that can be resumed bit for bit."""

import fcntl
import itertools
import json
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dnirnn.data import Batch, Stream
from dnirnn.device import find_device, own_stream
from dnirnn.estimators import AutoScale
from dnirnn.interface import Interface
from dnirnn.masks import Masks, draw_masks
from dnirnn.model import SequenceModel
from dnirnn.training import checkpoint as ckpt
from dnirnn.training.checkpoint import CheckpointError
from dnirnn.training.log import Log
from dnirnn.training.optimizers import (
    DECAYS,
    blended,
    can_skip,
    check_length,
    make_optimizer,
    make_schedule,
    restore_optimizer,
    scalars_of,
    set_lr,
    settings,
)
from dnirnn.training.updater import TOLD, CUDAGraphs, Updater
from dnirnn.true_gradient import TrueGradient

# What a run folder holds.
CONFIG, LOG, RESULT, HISTORY = "config.json", "log.jsonl", "result.json", "history.jsonl"
CHECKPOINTS, BEST = "checkpoints", "best"
# Sums over the updates since the last row of the log.
PENDING = {
    "updates": 0,
    "nats": 0.0,
    "targets": 0,
    "estimator_error": 0.0,
    "gradient_norm": 0.0,
    "seconds": 0.0,
}
# The attributes of a Trainer that its checkpoints hold as they are.
PROGRESS = (
    "update",
    "symbols",
    "seconds",
    "state",
    "t",
    "pending",
    "sequence",
    "best",
    "evaluations_since_best",
)
# What of an update's row can be not finite, and what it is called; the first that is, is named.
NOT_FINITE = {
    "nats": "loss",
    "gradient_norm": "core gradient",
    "estimator_norm": "estimator gradient",
}
# Updates that a device is let run ahead of the host, however rarely it logs.
AHEAD = 1024


class Made(NamedTuple):
    """An update that was made, and all that it needs to be unmade where it was not finite.

    update, symbols, t, stream, rng, settings, schedule: as they were before it.
    steps, targets: of its batch. final: a sequence ended with it. seconds: the host's.
    """

    update: int
    symbols: int
    t: int
    stream: dict
    rng: list[Tensor]
    settings: list[dict]
    schedule: dict | None
    steps: int
    targets: int
    final: bool
    seconds: float


class Interrupted(Exception):
    """Ctrl-C or SIGTERM: the update was finished and the run saved; the message says how far it got.

    signal: the number of the signal that asked.
    """

    def __init__(self, message: str, signal: int = signal.SIGINT):
        super().__init__(message)
        self.signal = signal


class AnotherRun(ValueError):
    """A folder that holds a run of another configuration. differing: the keys, dotted."""

    def __init__(self, message: str, differing: list[str]):
        super().__init__(message)
        self.differing = differing


class NonFinite(Exception):
    """A loss or a gradient was not finite: nothing was updated, the last good state was saved.

    update: the update that was not made; what: "loss", "core gradient", "estimator gradient" or
    "validation bits".
    """

    def __init__(self, message: str, update: int, what: str):
        super().__init__(message)
        self.update, self.what = update, what


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
        self.folder, self.evaluate, self.test = Path(folder), evaluate, test
        self.prepare = prepare or (lambda model, epochs: None)
        self.fidelity = fidelity
        if config.fidelity_every is not None and fidelity is None:
            raise ValueError("fidelity_every counts measurements: fidelity must be given")
        if config.patience is not None and evaluate is None:
            raise ValueError("patience counts evaluations: evaluate must be given")
        rows = stream.batch_size
        rows_at_once = rows if config.micro_batch is None else config.micro_batch
        if rows % rows_at_once:
            raise ValueError(
                f"micro_batch must divide the batch size {rows}; got {config.micro_batch}"
            )
        whole = config.chunks == "sequence"
        self.steps = None if whole else model.truncated.truncation * config.chunks
        self.open_cuts = model.truncated.open_cuts
        if self.open_cuts is not None and config.chunks != 1:
            raise ValueError(f"chunks must be 1 with open_cuts, which draws them; got {config.chunks}")

        self.core, self.estimator = model.core_parameters(), model.estimator_parameters()
        self.device = self.core[0].device
        stream.to(self.device)
        self.scale = model.truncated.estimator.scale
        self.blends = bool(config.warm_up or config.blend)
        self.looks_ahead = isinstance(model.truncated.estimator, TrueGradient)
        if self.looks_ahead and model.dropout.p:
            raise ValueError(
                "dropout must be 0 with TrueGradient, which can't foresee its masks; got"
                f" {model.dropout.p}"
            )
        drawn = [part.drop for part in model.modules() if isinstance(part, Masks) and part.drop]
        if self.looks_ahead and stream.unbroken and drawn:
            raise ValueError(
                "zoneout and weight drop must be 0 with TrueGradient on a text, where each update"
                f" draws masks that it can't foresee; got {drawn[0]}"
            )
        if self.looks_ahead and rows_at_once < rows:
            raise ValueError(
                "micro_batch must be None with TrueGradient, which is told of whole batches; got"
                f" {config.micro_batch}"
            )
        if not self.estimator and (config.warm_up or config.blend or config.estimator_lift):
            raise ValueError("warm_up, blend and estimator_lift need an estimator that is fitted")
        self.optimizer = make_optimizer("", self.core, config.optimizer, config.lr, config.options)
        self.optimizers = [self.optimizer]
        if self.estimator:
            self.optimizers.append(
                make_optimizer(
                    "estimator_",
                    self.estimator,
                    config.estimator_optimizer,
                    config.estimator_lr,
                    config.estimator_options,
                )
            )
        if self.blends and isinstance(model.truncated.estimator, AutoScale):
            raise ValueError(
                "warm_up and blend set a scale; AutoScale measures its own, from zero on: got"
                f" {config.warm_up} and {config.blend}"
            )
        self.schedule = make_schedule(self.optimizer, config.schedule, config.schedule_options)
        check_length(self.schedule, config.updates)
        on_gpu = self.device.type == "cuda"
        waits = model.truncated.estimator.waits or not all(map(can_skip, self.optimizers))
        watch = waits or not on_gpu
        self.updater = Updater(
            model,
            self.optimizers,
            [(config.lift, config.clip), (config.estimator_lift, config.estimator_clip)],
            rows,
            rows_at_once,
            # With open cuts a call has 1 / (1 - p) chunks in the mean.
            (1 - (self.open_cuts or 0)) / (rows * (self.steps or 1)),
            watch,
            None if watch or not graphs else CUDAGraphs(),
            min(config.log_every, AHEAD),
        )
        self.schedule_by_bits = config.schedule == "ReduceLROnPlateau"
        if self.schedule_by_bits and evaluate is None:
            raise ValueError("schedule ReduceLROnPlateau needs evaluations: evaluate must be given")

        given = asdict(config) if run_config is None else run_config
        self.run_config = json.loads(json.dumps(given))
        self.may_change, self.restart = may_change, restart
        if not restart:
            check_config(self.folder, self.run_config, may_change)
            known = read_json(self.folder / CONFIG) or {}
            if self.schedule is not None and known.get("lr") not in (None, self.run_config.get("lr")):
                raise ValueError(
                    f"lr can't change under schedule {config.schedule}, which keeps its own rates; got"
                    f" {config.lr}"
                )

        self.update = 0
        self.symbols = 0
        self.seconds = 0.0
        self.state: Tensor | None = None
        self.t = 0
        self.pending = dict(PENDING)
        self.sequence = {"nats": 0.0, "targets": 0}
        self.best: dict | None = None
        self.evaluations_since_best = 0
        self.interrupted: int | None = None
        self.unread: list[Made] = []

    def run(self, report: Callable[[dict], None] | None = None) -> dict:
        """Trains to the first budget reached; resumes where the folder holds checkpoints.

        report: called with every row of the log as it is written (a progress bar).

        Returns, and writes to result.json: {"stopped": the budget reached or "patience", "update",
        "symbols", "epochs", "seconds", "best": {"update", "symbols", **metrics} or None, "test":
        metrics or None}. A run that is done returns its result again. The model is left with the
        best weights where there was an evaluation, the last ones otherwise.

        Raises Interrupted after Ctrl-C or SIGTERM, NonFinite, StorageError where the disk is full.
        """
        self.report = report or (lambda row: None)
        if self.restart:
            put_aside(self.folder)
            self.restart = False
        with locked(self.folder), self.interruptible(), own_stream(self.device):
            try:
                self.begin()
                stopped = self.reached()
                self.model.train()
                while stopped is None:
                    self.learn()
                    stopped = self.after_update()
                return self.conclude(stopped)
            finally:
                if self.blends:
                    self.model.truncated.estimator.scale = self.scale
                if self.log is not None:
                    self.log.close()

    # One update

    def learn(self) -> None:
        """One update of all parameters on the stream's next batch."""
        began = time.perf_counter()
        self.prepare(self.model, self.stream.epochs)
        before = (
            self.update,
            self.symbols,
            self.t,
            self.stream.state_dict(),
            get_rng(self.device),
            *self.rates(),
        )
        if self.blends:
            share = blended(self.update, self.config.warm_up, self.config.blend)
            self.model.truncated.estimator.scale = self.scale * share
        if self.config.decay is not None:
            share = min(1.0, max(used / budget for used, budget in self.spent().values()))
            set_lr(self.optimizer, self.config.lr * DECAYS[self.config.decay](share))
        batch = self.read_on(self.stream.next(self.draw_steps()))
        steps, targets = len(batch.x), batch.count()
        if batch.first or self.state is None:
            self.state, self.t = self.model.initial_state(self.stream.batch_size), 0
            draw_masks(self.model)
        elif self.stream.unbroken:
            draw_masks(self.model)
        batch = batch.to(self.device)
        if self.looks_ahead:
            self.look_ahead(batch, self.state, self.t)
        self.state = self.updater(batch, self.state, self.t)
        if self.schedule is not None and not self.schedule_by_bits:
            self.schedule.step()
        self.t += steps
        self.update += 1
        self.symbols += targets
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.unread.append(Made(*before, steps, targets, batch.final, seconds))
        # A stream is told of every sequence before it begins the next.
        if self.updater.full or batch.final:
            self.look()

    def rates(self) -> tuple[list[dict], dict | None]:
        """What may change from update to update of the optimizers, and of the schedule."""
        if self.schedule is None:
            return [{"lr": optimizer.param_groups[0]["lr"]} for optimizer in self.optimizers], None
        now = [settings(optimizer) for optimizer in self.optimizers]
        return now, scalars_of(self.schedule.state_dict())

    def draw_steps(self) -> int | None:
        """Steps of the next update; None: what is left of the sequence."""
        if self.open_cuts is None:
            return self.steps
        return self.model.truncated.truncation * self.model.truncated.draw_chunks()

    def read_on(self, batch: Batch) -> Batch:
        """The batch with all the steps after it that the estimator reads."""
        reads = self.model.truncated.estimator.reads
        if batch.following is None or reads <= len(batch.following.x):
            return batch
        place = self.stream.state_dict()
        following = self.stream.next(reads)
        self.stream.load_state_dict(place)
        return batch._replace(following=following._replace(following=None))

    def look_ahead(self, batch: Batch, state: Tensor, t: int) -> None:
        """Tells a TrueGradient what comes after the batch; the stream stays where it is."""
        oracle = self.model.truncated.estimator
        if not batch.final:
            chunks, place = oracle.lookahead, self.stream.state_dict()
            steps = None if chunks is None else chunks * self.model.truncated.truncation
            batch = batch.then(self.stream.next(steps).to(self.device))
            self.stream.load_state_dict(place)

        def run() -> tuple[Tensor, list[Interface]]:
            nats, _, interfaces = self.model(batch, state, t)
            return nats.sum(), interfaces

        oracle.look(run)

    def look(self) -> None:
        """Waits for the updates made so far, and takes down what they tell."""
        if not self.unread:
            return
        began = time.perf_counter()
        updates, self.unread = self.unread, []
        for made, row in zip(updates, self.updater.read()):
            nats, error, core_norm, _ = row
            if not math.isfinite(sum(row) - error):
                self.refuse(dict(zip(TOLD, row)), made)
            pending = self.pending
            pending["updates"] += 1
            pending["nats"] += nats
            pending["targets"] += made.targets
            pending["estimator_error"] += error
            pending["gradient_norm"] += core_norm
            pending["seconds"] += made.seconds
            self.sequence["nats"] += nats
            self.sequence["targets"] += made.targets
            if made.final:
                self.stream.observe(bits_of(self.sequence))
                self.sequence = {"nats": 0.0, "targets": 0}
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.pending["seconds"] += seconds

    def refuse(self, told: dict[str, float], made: Made) -> None:
        """Goes back to before an update that was not finite, saves, and raises NonFinite."""
        name = next(name for name in NOT_FINITE if not math.isfinite(told[name]))
        what = NOT_FINITE[name]
        self.update, self.symbols, self.t = made.update, made.symbols, made.t
        self.stream.load_state_dict(made.stream)
        set_rng(made.rng, self.device)
        for optimizer, before in zip(self.optimizers, made.settings):
            optimizer.param_groups[0].update(before)
        if self.schedule is not None:
            self.schedule.load_state_dict(made.schedule)
        self.save()
        raise NonFinite(
            f"update {self.update + 1}: the {what} is {told[name]}, in the window of"
            f" {made.steps} steps from step {self.t} of the sequence, after {self.symbols:,} symbols;"
            f" the last good state is in {self.checkpoint_folder}",
            self.update + 1,
            what,
        )

    # Between updates

    def after_update(self) -> str | None:
        """Logs, evaluates and saves what is due: the reason to stop, or None."""
        config, stopped = self.config, self.reached()
        every = config.evaluate_every
        evaluating = self.evaluate is not None and (
            stopped is not None or (every is not None and self.update % every == 0)
        )
        if evaluating or stopped is not None or self.update % config.log_every == 0:
            self.log_training()
        if config.fidelity_every is not None and self.update % config.fidelity_every == 0:
            self.measure_fidelity()
        better = self.run_evaluation() if evaluating else False
        stopped = stopped or self.reached()
        asked = self.interrupted
        if better or stopped is not None or asked is not None or self.checkpoint_is_due():
            self.save()
        if asked is not None and stopped is None:
            raise Interrupted(
                f"interrupted at update {self.update:,} ({self.symbols:,} symbols,"
                f" {self.seconds:.0f} s); saved in {self.folder}: the same run goes on from there",
                asked,
            )
        return stopped

    def spent(self) -> dict[str, tuple[float, float]]:
        """What is used of each budget that was given."""
        config = self.config
        budgets = {
            "updates": (self.update, config.updates),
            "symbols": (self.symbols, config.symbols),
            "minutes": (self.seconds / 60, config.minutes),
        }
        return {name: (used, budget) for name, (used, budget) in budgets.items() if budget is not None}

    def reached(self) -> str | None:
        """The budget that is used up, or "patience"."""
        for name, (used, budget) in self.spent().items():
            if used >= budget:
                return name
        patience = self.config.patience
        return "patience" if patience is not None and self.evaluations_since_best >= patience else None

    def log_training(self) -> None:
        """The means over the updates since the last row."""
        self.look()
        pending, self.pending = self.pending, dict(PENDING)
        count = pending["updates"]
        error = pending["estimator_error"] / count if self.estimator else None
        self.write_row(
            "train",
            bits=bits_of(pending),
            estimator_error=error,
            gradient_norm=pending["gradient_norm"] / count,
            lr=float(self.optimizer.param_groups[0]["lr"]),
            seconds=self.seconds,
            symbols_per_second=pending["targets"] / pending["seconds"],
        )

    def run_evaluation(self) -> bool:
        """Evaluates, keeps the model where it is the best so far; whether it is."""
        metrics = self.measure(self.evaluate)
        if "bits" not in metrics:
            raise ValueError(f'evaluate must return a dict with "bits"; got {metrics!r}')
        epochs = float(self.stream.epochs)
        self.write_row("valid", **metrics, epochs=epochs, seconds=self.seconds)
        bits = metrics["bits"]
        if not math.isfinite(bits):
            last = ckpt.checkpoints(self.folder / CHECKPOINTS)[-1]
            raise NonFinite(
                f"update {self.update}: the validation bits are {bits}, after {self.symbols:,}"
                f" symbols; the last state saved before is in {last}",
                self.update,
                "validation bits",
            )
        if self.schedule_by_bits:
            self.schedule.step(bits)
        if self.best is not None and bits >= self.best["bits"]:
            self.evaluations_since_best += 1
            return False
        self.evaluations_since_best = 0
        self.best = {"update": self.update, "symbols": self.symbols, **metrics}
        kept = {**self.best, "config": self.run_config, "model": self.model.state_dict()}
        ckpt.save(self.folder / BEST / ckpt.name_of(self.update), *ckpt.flatten(kept))
        return True

    def measure_fidelity(self) -> None:
        """Writes what fidelity says; random numbers that it draws are none of the training's."""
        rng = get_rng(self.device)
        found = self.measure(self.fidelity)
        set_rng(rng, self.device)
        self.write_row("fidelity", **found)

    def measure(self, what: Callable[[SequenceModel], dict[str, float]]) -> dict[str, float]:
        self.look()
        self.model.eval()
        with torch.no_grad():
            metrics = what(self.model)
        self.model.train()
        return metrics

    def write_row(self, kind: str, **fields: Any) -> None:
        row = {"kind": kind, "update": self.update, "symbols": self.symbols, **fields}
        self.log.write(row)
        self.report(row)

    # The run folder

    @property
    def checkpoint_folder(self) -> Path:
        """Where the state after this update is or will be saved."""
        return self.folder / CHECKPOINTS / ckpt.name_of(self.update)

    def begin(self) -> None:
        """Makes the run folder, or restores what the last checkpoint in it holds."""
        check_config(self.folder, self.run_config, self.may_change)
        known = read_json(self.folder / CONFIG)
        if known is None:
            self.write_config()
        self.unread = []
        self.updater.forget()
        saved = ckpt.checkpoints(self.folder / CHECKPOINTS)
        end, digest = self.restore(saved) if saved else (0, None)
        if known is not None and known != self.run_config:
            self.go_on_from(known)
        self.log = Log(self.folder / LOG, end, self.config.tensorboard, self.update, digest)
        self.check_best()
        for best in ckpt.checkpoints(self.folder / BEST):
            if ckpt.update_of(best) > self.update:
                ckpt.remove(best)
        self.saved_at = time.monotonic()
        if not saved:
            torch.manual_seed(self.config.seed)
            # At once, so that a disk or a folder that can't be written to costs no work.
            self.save()

    def write_config(self) -> None:
        ckpt.replace(self.folder / CONFIG, json.dumps(self.run_config, indent=1).encode())

    def go_on_from(self, known: dict) -> None:
        """Takes down how this configuration differs from the folder's, and puts it in its place."""
        changed = {key: [was, now] for key, was, now in differing(known, self.run_config)}
        moved = {
            key: [known.get(key), self.run_config[key]]
            for key in places_of(known, self.run_config) & self.run_config.keys()
            if known.get(key) != self.run_config[key]
        }
        if changed or moved:
            note(self.folder, update=self.update, changed=changed, moved=moved)
        self.write_config()

    def check_best(self) -> None:
        """Goes on without the best model where it is damaged: the next one will be the best."""
        if self.best is None:
            return
        path = self.folder / BEST / ckpt.name_of(self.best["update"])
        try:
            ckpt.load(path)
        except CheckpointError as error:
            self.without_best(error)

    def without_best(self, error: CheckpointError) -> None:
        warnings.warn(
            f"{error}: the run goes on without it, and the next evaluation is the best so far",
            stacklevel=4,
        )
        path = self.folder / BEST / ckpt.name_of(self.best["update"])
        if path.exists():
            with ckpt.writing(path):
                path.rename(free_name(path, "damaged"))
        self.best, self.evaluations_since_best = None, 0

    def checkpoint_is_due(self) -> bool:
        every, seconds = self.config.checkpoint_every, self.config.checkpoint_seconds
        return (every is not None and self.update % every == 0) or (
            seconds is not None and time.monotonic() - self.saved_at >= seconds
        )

    def save(self) -> None:
        """Writes the checkpoint of this update, once; the last two stay."""
        self.look()
        if not (self.folder / CONFIG).exists():
            self.make_again()
        if not self.checkpoint_folder.exists():
            self.log.sync()
            ckpt.save(self.checkpoint_folder, *ckpt.flatten(self.snapshot()))
            for folder in (CHECKPOINTS, BEST):
                ckpt.keep_last(self.folder / folder, 2)
        self.saved_at = time.monotonic()

    def make_again(self) -> None:
        """The folder was removed or moved while the run went on: what is known is put there."""
        warnings.warn(
            f"{self.folder} was removed or moved while the run went on; it is made again, with the"
            " log and this update's checkpoint",
            stacklevel=2,
        )
        with ckpt.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self.write_config()
        self.log.make_again()

    def snapshot(self) -> dict:
        """Everything that the next update depends on."""
        return {
            "config": self.run_config,
            **{name: getattr(self, name) for name in PROGRESS},
            "epochs": float(self.stream.epochs),
            "log": self.log.offset,
            "log_sha256": self.log.digest.hexdigest(),
            "threads": torch.get_num_threads(),
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedule": None if self.schedule is None else scalars_of(self.schedule.state_dict()),
            "stream": self.stream.state_dict(),
            "rng": get_rng(self.device),
        }

    def restore(self, saved: list[Path]) -> tuple[int, str | None]:
        """Loads the last of the checkpoints: the log's length at that time, in bytes, and SHA-256."""
        try:
            tree = ckpt.load_tree(saved[-1])
        except CheckpointError as error:
            if len(saved) < 2:
                raise
            raise CheckpointError(
                f"{error}; without that folder, the run goes on from {saved[-2].name}"
            ) from None
        with ckpt.reading(saved[-1]):
            check_progress(tree)
            ckpt.check_fit(saved[-1], tree["model"], self.model.state_dict())
            check_owner(self.folder, saved[-1], tree, self.run_config, self.may_change)
            return self.take(tree)

    def take(self, tree: dict) -> tuple[int, str | None]:
        """Sets everything that the next update depends on."""
        if tree["threads"] != torch.get_num_threads():
            warnings.warn(
                f"this run began with {tree['threads']} threads and goes on with"
                f" {torch.get_num_threads()}: its last bits may differ from an uninterrupted one's",
                stacklevel=4,
            )
        self.model.load_state_dict(tree["model"])
        for optimizer, state in zip(self.optimizers, tree["optimizers"]):
            restore_optimizer(optimizer, state)
        for optimizer, lr in zip(self.optimizers, (self.config.lr, self.config.estimator_lr)):
            if self.schedule is None or optimizer is not self.optimizer:
                set_lr(optimizer, lr)
        if self.schedule is not None:
            self.schedule.load_state_dict(tree["schedule"])
        self.stream.load_state_dict(tree["stream"])
        set_rng(tree["rng"], self.device)
        for name in PROGRESS:
            setattr(self, name, tree[name])
        self.state = None if self.state is None else self.state.to(self.device)
        return tree["log"], tree.get("log_sha256")

    def conclude(self, stopped: str) -> dict:
        """Leaves the best weights in the model, tests them, and writes the result."""
        if self.best is not None:
            path = self.folder / BEST / ckpt.name_of(self.best["update"])
            try:
                load_checkpoint(path, self.model)
            except CheckpointError as error:
                self.without_best(error)
        if self.best is None and self.evaluate is not None:
            # The best model was lost: of what there is, the last weights are the best.
            self.run_evaluation()
            if self.checkpoint_folder.exists():
                ckpt.remove(self.checkpoint_folder)
            self.save()
        result = {
            "stopped": stopped,
            "update": self.update,
            "symbols": self.symbols,
            "epochs": float(self.stream.epochs),
            "seconds": self.seconds,
            "best": self.best,
        }
        known = read_json(self.folder / RESULT)
        if known is not None and {**known, "test": None} == {**result, "test": None}:
            return known
        result["test"] = None if self.test is None else self.measure(self.test)
        self.model.eval()
        ckpt.replace(self.folder / RESULT, json.dumps(result, indent=1).encode())
        return result

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM asks the loop to save and stop; a second Ctrl-C is as ever."""
        self.interrupted, self.log = None, None
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def ask(number, frame):
            if self.interrupted is not None and number == signal.SIGINT:
                raise KeyboardInterrupt
            self.interrupted = number

        before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def read_config(folder: str | Path) -> dict:
    """The run_config of a run folder. Raises ValueError where it holds none."""
    config = read_json(Path(folder) / CONFIG)
    if config is None:
        raise ValueError(f"{folder} is not a run folder: it has no {CONFIG}")
    if not isinstance(config, dict):
        raise ValueError(f"{Path(folder) / CONFIG} must hold an object; got {config!r:.40}")
    return config


@contextmanager
def reading_config(folder: str | Path) -> Iterator[None]:
    """Turns what a wrong value in a run's config.json raises into a ValueError that says so."""
    try:
        yield
    except KeyError as error:
        raise ValueError(f"{Path(folder) / CONFIG} describes no run: it has no {error}") from None
    except (TypeError, ValueError, AttributeError, IndexError) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{Path(folder) / CONFIG} describes no run: {said}") from None


def load_weights(folder: str | Path, model: SequenceModel, which: str = "best") -> dict:
    """Loads into ``model`` the weights of a run folder: which = "best" or "latest".

    "best" falls back to the latest checkpoint where the run made no evaluation. Returns what is
    known of them: {"update", "symbols"} and, of the best, its metrics. Raises ValueError where
    there is none, CheckpointError where it is damaged or another model's.
    """
    if which not in ("best", "latest"):
        raise ValueError(f'which must be "best" or "latest"; got {which!r}')
    folder = Path(folder)
    saved = ckpt.checkpoints(folder / CHECKPOINTS)
    if which == "best":
        saved = ckpt.checkpoints(folder / BEST) or saved
    if not saved:
        raise ValueError(f"{folder} holds no checkpoint to load")
    return load_checkpoint(saved[-1], model, folder)


def load_checkpoint(path: Path, model: SequenceModel, run: Path | None = None) -> dict:
    """Loads the model of one checkpoint; its numbers (update, symbols, metrics).

    run: the folder of the run that it must be of.
    """
    tree = ckpt.load_tree(path)
    with ckpt.reading(path):
        ckpt.check_fit(path, tree["model"], model.state_dict())
        config = None if run is None else read_json(run / CONFIG)
        if config is not None:
            check_owner(run, path, tree, config)
        for name in ("update", "symbols"):
            if type(tree[name]) is not int:
                raise TypeError(f"{name} is {tree[name]!r:.40}")
        model.load_state_dict(tree["model"])
    return {name: value for name, value in tree.items() if isinstance(value, (int, float))}


def check_progress(tree: dict) -> None:
    """Raises TypeError or ValueError for an entry of a checkpoint that no run has written."""
    for name in ("update", "symbols", "t", "evaluations_since_best", "threads", "log"):
        value = tree[name]
        if type(value) is not int or value < 0:
            raise ValueError(f"{name} is {value!r:.40}")
    if type(tree["seconds"]) is not float or not 0 <= tree["seconds"] < math.inf:
        raise ValueError(f"seconds is {tree['seconds']!r:.40}")
    if tree["state"] is not None and not isinstance(tree["state"], Tensor):
        raise TypeError(f"state is {tree['state']!r:.40}")
    for name, keys in (("pending", PENDING.keys()), ("sequence", {"nats", "targets"})):
        if not isinstance(tree[name], dict) or tree[name].keys() != keys:
            raise ValueError(f"{name} is {tree[name]!r:.40}")
    best = tree["best"]
    if best is not None and not (isinstance(best, dict) and {"update", "bits"} <= best.keys()):
        raise ValueError(f"best is {best!r:.40}")


def check_owner(
    folder: Path, path: Path, tree: dict, config: dict, may_change: Collection[str] = ()
) -> None:
    """Raises CheckpointError where a checkpoint is of another run than the folder's.

    What the run has changed in its history, and may change now, may differ.
    """
    there = tree.get("config")
    if there is None:  # made before checkpoints said whose they are
        return
    changed = {*may_change, *(key for row in history(folder) for key in row.get("changed", ()))}
    others = [key for key, *_ in differing(there, config) if key not in changed]
    if others:
        raise CheckpointError(
            f"checkpoint {path} is of another run: its {', '.join(others[:3])} differ"
            f" from {folder / CONFIG}"
        )


def history(folder: str | Path) -> list[dict]:
    """The rows of a run's history.jsonl: how it was begun anew, changed, moved. None: no rows."""
    try:
        lines = (Path(folder) / HISTORY).read_bytes().split(b"\n")[:-1]
        return [row for line in lines if isinstance(row := json.loads(line), dict)]
    except FileNotFoundError:
        return []
    except ValueError:
        raise ValueError(f"{Path(folder) / HISTORY} is damaged: a line is not JSON") from None


def note(folder: Path, **row: Any) -> None:
    """Adds a row to a run's history."""
    path = folder / HISTORY
    before = path.read_bytes() if path.exists() else b""
    row = {name: value for name, value in row.items() if value != {}}
    ckpt.replace(path, before + json.dumps(row).encode() + b"\n")


def put_aside(folder: Path) -> None:
    """Moves the run that a folder holds, if any, to a name beside it that is free."""
    if not (folder / CONFIG).exists() and not (folder / CHECKPOINTS).exists():
        return
    with locked(folder):
        aside = free_name(folder, "before")
        with ckpt.writing(folder):
            folder.rename(aside)
            folder.mkdir()
        note(folder, update=0, restarted=aside.name)


def free_name(path: Path, word: str) -> Path:
    """path.word-1, or with the first number that is not taken."""
    names = (path.with_name(f"{path.name}.{word}-{n}") for n in itertools.count(1))
    return next(name for name in names if not name.exists())


def check_config(folder: Path, config: dict, may_change: Collection[str] = ()) -> None:
    """Raises AnotherRun where the folder holds another configuration, or checkpoints of none.

    may_change: keys that may differ.
    """
    known = read_json(folder / CONFIG)
    if known is None:
        if (folder / LOG).exists() or (folder / CHECKPOINTS).exists():
            raise ValueError(f"{folder} holds a run but no {CONFIG}: choose another folder")
        return
    if not isinstance(known, dict):
        raise ValueError(f"{folder / CONFIG} must hold an object; got {known!r:.40}")
    found = [one for one in differing(known, config) if one[0] not in may_change]
    if found:
        said = ", ".join(f"{key} ({was!r} there, {now!r} here)" for key, was, now in found)
        raise AnotherRun(
            f"{folder} holds a run of another configuration: {said}; choose another folder",
            [key for key, *_ in found],
        )


def differing(known: dict, config: dict) -> list[tuple[str, Any, Any]]:
    """(key, its value in one, in the other) of what makes two configurations two runs.

    A key that one of them lacks stands there at the other's default, if that names one.
    """
    ignored = {"defaults", "places", *places_of(known, config)}
    sides = []
    for one, other in ((known, config), (config, known)):
        own = {key: value for key, value in one.items() if key not in ignored}
        usual = {key: value for key, value in defaults_of(other).items() if key in other}
        sides.append(dotted({**{k: v for k, v in usual.items() if k not in ignored}, **own}))
    there, here = sides
    return [
        (key, there.get(key, "not given"), here.get(key, "not given"))
        for key in sorted(there.keys() | here.keys())
        if there.get(key, dotted) != here.get(key, dotted)
    ]


def places_of(*configs: dict) -> set[str]:
    """The keys that say where data is and not what."""
    named = (config.get("places", ()) for config in configs)
    return {key for keys in named if isinstance(keys, list) for key in keys}


def defaults_of(config: dict) -> dict:
    found = config.get("defaults", {})
    return found if isinstance(found, dict) else {}


def dotted(tree: Any, path: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by their dotted path."""
    if not isinstance(tree, dict) or not tree:
        return {path: tree}
    return {
        key: leaf
        for name, item in tree.items()
        for key, leaf in dotted(item, f"{path}.{name}" if path else name).items()
    }


def read_json(path: Path) -> Any:
    """What a JSON file holds; None where there is none. Raises ValueError where it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is damaged: it is not JSON") from None


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Makes the folder and keeps other processes from training in it at the same time."""
    with ckpt.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder} is in use: another process trains there") from None
        except OSError:
            pass  # A file system without locks.
        yield
    finally:
        os.close(descriptor)


def bits_of(sums: dict) -> float:
    """Mean bits per target."""
    return sums["nats"] / max(sums["targets"], 1) / math.log(2)


def get_rng(device: torch.device) -> list[Tensor]:
    """The states of torch's global generators: the CPU's and the device's."""
    states = [torch.get_rng_state()]
    return states + [torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def set_rng(states: list[Tensor], device: torch.device) -> None:
    """A run that began on another kind of device has no state for this one: its seed stays."""
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
