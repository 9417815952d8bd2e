"""Trainer: a stream, a model, and a run folder that can be resumed bit for bit.

The loop is here. What it is made of: budget (what ends it), rates (optimizers and schedule), plan
(lengths), feed (batches), updater (one update), state (what the next update depends on), evaluation
(the log), saver and run_folder (what is written), signals, non_finite; loading, for others than the run.
"""

import json
import math
import signal
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from dnirnn.checks import check_instances, check_paths, shown
from dnirnn.data import Batch, Stream
from dnirnn.device import find_device, own_stream
from dnirnn.distributed import Ranks
from dnirnn.masks import draw_masks
from dnirnn.model import SequenceModel
from dnirnn.training.auto_truncation import AutoTruncation
from dnirnn.training.budget import Budget, is_due
from dnirnn.training.config import TrainerConfig
from dnirnn.training.evaluation import Evaluation
from dnirnn.training.feed import (
    check_updates,
    draw_steps,
    look_ahead,
    looks_ahead,
    next_start,
    read_on,
    unit_of,
)
from dnirnn.training.loading import load_weights
from dnirnn.training.non_finite import NonFinite, first_not_finite, in_evaluation, in_update
from dnirnn.training.plan import Plan
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
    read_config,
    read_json,
    reading_config,
)
from dnirnn.training.saver import Saver
from dnirnn.training.signals import Interrupted, interruptible
from dnirnn.training.state import SEQUENCE, Made, TrainingState, bits_of
from dnirnn.training.updater import FIGURES, make_updater

__all__ = [
    "BEST", "CHECKPOINTS", "CONFIG", "LOG", "RESULT", "AnotherRun", "Interrupted", "NonFinite",
    "Trainer", "TrainerConfig", "check_config", "history", "load_weights", "read_config", "read_json",
    "reading_config",
]  # fmt: skip


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
    fidelity, horizon: called with the model on config.fidelity_every and horizon_every, in eval mode;
        return the figures of a row of that kind (see dnirnn.fidelity, dnirnn.horizon). They do not change
        the training by a bit.
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
    device: cpu, cuda or cuda:N, where the model and the batches are moved to (None: where the model
        is); the stream may make them there. No part of the configuration: a run goes on on another device, if
        not to the bit.
    graphs: whether updates on a CUDA device are captured in CUDA graphs and replayed. What changes
        from update to update must then be tensors of the model that stay in place (``prepare``).
    ranks: the processes that train it together (see dnirnn.distributed), all with these arguments:
        each takes its rows of the batch; the first one has the folder. None: this process alone.

    On a CUDA device with Adam or AdamW the host does not wait for the updates: it reads their
    figures when it logs, evaluates or saves, and where a sequence ends. With other optimizers it looks
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
        ranks: Ranks | None = None,
        horizon: Callable[[SequenceModel], dict[str, float]] | None = None,
    ):
        # Or what has a SequenceModel's parts, as a task's own model may.
        if not hasattr(model, "truncated"):
            raise TypeError(f"model must be a SequenceModel; got {shown(model)}")
        check_instances(Stream, stream=stream)
        check_instances(TrainerConfig, config=config)
        check_paths(folder=folder)
        if device is not None:
            model.to(find_device(device))
        self.ranks = ranks or Ranks()
        self.ranks.join(model)
        stream = self.ranks.share(stream)
        self.model, self.stream, self.config = model, stream, config
        self.folder, self.test = Path(folder), test
        self.prepare = prepare or (lambda model, epochs: None)
        beside = {"fidelity": fidelity, "horizon": horizon}
        for name, one in beside.items():
            if getattr(config, f"{name}_every") is not None and one is None:
                raise ValueError(f"{name}_every counts measurements: {name} must be given")
        if config.patience is not None and evaluate is None:
            raise ValueError("patience counts evaluations: evaluate must be given")
        check_updates(model, stream, config)
        self.core = model.core_parameters()
        self.device = self.core[0].device
        stream.to(self.device)
        self.looks_ahead = looks_ahead(model, stream, config.micro_batch)
        self.rates = Rates(model, config)
        self.optimizer, self.optimizers = self.rates.optimizer, self.rates.optimizers
        rows, unit = stream.batch_size, unit_of(model, stream.batch_size, config.chunks)
        self.updater = make_updater(model, self.rates, rows, unit, graphs, self.ranks)
        self.plan = Plan(model, rows, config)
        if self.rates.by_bits and evaluate is None:
            raise ValueError("schedule ReduceLROnPlateau needs evaluations: evaluate must be given")

        self.run_config = json.loads(json.dumps(config.kept() if run_config is None else run_config))
        self.budget = Budget(config.updates, config.symbols, config.minutes, config.patience)
        training = TrainingState(model, self.rates, stream, self.device, self.ranks)
        self.training, self.progress = training, training.progress
        every, seconds = config.checkpoint_every, config.checkpoint_seconds
        self.saver = Saver(self.folder, training, self.run_config, may_change, every, seconds)
        self.restart = restart
        if not restart:
            self.ranks.from_first(self.saver.check)
        self.evaluation = Evaluation(training, evaluate, beside)
        parts = training, self.evaluation, self.updater
        self.auto = None if config.truncation_bound is None else AutoTruncation(*parts)
        self.needs_bits = self.ranks.lockstep or type(stream).observe is not Stream.observe
        self.interrupted: int | None = None
        self.unagreed = 0.0  # seconds of updates that the ranks don't know of one another
        self.unread: list[Made] = []

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

        Raises Interrupted after Ctrl-C or SIGTERM, NonFinite, StorageError where the disk is full,
        RankLost where another rank has ended.
        """
        self.interrupted = None
        with interruptible(self.interrupt), own_stream(self.device), ExitStack() as stack:
            self.ranks.from_first(lambda: self.saver.lock(stack, self.restart))
            self.restart = False
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
                self.plan.finish()
                self.saver.close()

    def learn(self) -> None:
        """One update of all parameters on the stream's next batch."""
        began, now = time.perf_counter(), self.progress
        self.prepare(self.model, self.stream.epochs)
        mark = self.mark = self.training.mark()
        used = self.budget.used(now)
        self.rates.before_update(now.update, used)
        batch = self.next_batch(self.plan.set(used, self.updater, now))
        steps, targets = len(batch.x), self.ranks.count(batch)
        moved, now.before = next_start(self.model, batch)
        batch = batch.to(self.device)
        if self.looks_ahead:
            look_ahead(self.model, self.stream, batch, now.state, now.t)
        now.state = self.updater(batch, now.state, now.t)
        self.training.take_in(self.updater.bad)
        self.rates.after_update()
        now.t += moved
        now.update += 1
        now.symbols += targets
        seconds = time.perf_counter() - began
        self.unagreed += seconds
        self.unread.append(Made(mark, steps, targets, batch.final, seconds))
        # A stream observes every sequence before it begins the next.
        if self.updater.full or batch.final and self.needs_bits:
            self.look()
        elif self.ranks.lockstep:
            self.agree()

    def after_update(self) -> str | None:
        """Logs, evaluates and saves what is due: the reason to stop, or None."""
        config, now = self.config, self.progress
        stopped = self.budget.reached(now)
        evaluating = self.evaluation.evaluate is not None and (
            stopped is not None or self.is_due(config.evaluate_every)
        )
        if evaluating or stopped is not None or self.is_due(config.log_every):
            self.look()
            self.evaluation.log_training()
        for kind in ("fidelity", "horizon"):
            if self.is_due(getattr(config, f"{kind}_every")):
                self.look()
                self.evaluation.measure_beside(kind)
        if self.auto is not None and self.is_due(config.truncation_every):
            self.look()
            self.auto.adapt()
        better = self.run_evaluation() if evaluating else False
        stopped = stopped or self.budget.reached(now)
        if self.ranks.size == 1:  # a signal that came since the update; of several, after the next
            self.agree()
        asked = self.asked
        if better or stopped is not None or asked is not None or self.due:
            self.save()
        if asked is not None and stopped is None:
            raise Interrupted(
                f"interrupted at update {now.update:,} ({now.symbols:,} symbols,"
                f" {now.seconds:.0f} s); saved in {self.folder}: the same run goes on from there",
                asked,
            )
        return stopped

    def is_due(self, every: int | None) -> bool:
        """By updates; by symbols where updates are of changing length."""
        if every is None or self.auto is None and not self.plan.moves:
            return is_due(every, self.progress.update)
        return self.progress.symbols // every > self.mark.symbols // every

    def begin(self, report: Callable[[dict], None] | None) -> None:
        """Makes the run folder, or goes on from the last checkpoint in it."""
        self.unread = []
        self.updater.forget()
        self.ranks.check_alike(self.run_config)
        went_on = self.saver.begin(self.config.tensorboard)
        self.evaluation.begin(self.saver.opened, report)
        self.agree()
        if not went_on:
            self.training.seed(self.config.seed)
        if self.auto is not None:
            self.auto.begin()
        if not went_on:
            # At once, so that a disk or a folder that can't be written to costs no work.
            self.save()

    def next_batch(self, chunks: int | str) -> Batch:
        """The stream's next batch, of so many chunks; what it starts from is the state then."""
        steps, now = draw_steps(self.model, chunks, self.ranks), self.progress
        batch = self.stream.next(steps)
        batch = read_on(batch, self.stream, self.model.truncated.estimator.reads)
        if batch.first or now.state is None:
            now.state, now.t, now.before = self.model.initial_state(self.stream.batch_size), 0, None
            draw_masks(self.model)
        elif self.stream.unbroken:
            draw_masks(self.model)
        return batch._replace(before=now.before)

    def look(self) -> None:
        """Waits for the updates made so far, and takes down their figures."""
        if not self.unread:
            return
        began, now = time.perf_counter(), self.progress
        updates, self.unread = self.unread, []
        for made, row in zip(updates, self.updater.read()):
            figures = dict(zip(FIGURES, row))
            name = first_not_finite(figures)
            if name is not None:
                self.training.go_back(made.mark)
                if self.updater.undoes:
                    self.save()
                saved = self.checkpoint_folder if self.updater.undoes else self.saver.last
                raise in_update(name, figures[name], made.steps, now, saved)
            now.add(figures, made.targets, made.seconds)
            if made.final:
                self.stream.observe(bits_of(now.sequence))
                now.sequence = dict(SEQUENCE)
        now.add_seconds(time.perf_counter() - began)
        self.agree()

    def agree(self) -> None:
        """What clocks and signals decide is decided alike on all ranks: none stops alone."""
        now = self.progress
        seconds, self.unagreed = now.seconds + self.unagreed, 0.0
        own = (seconds, self.interrupted or 0, self.saver.is_due())
        now.seconds, asked, due = self.ranks.largest(*own)
        self.asked, self.due = int(asked) or None, bool(due)

    def run_evaluation(self) -> bool:
        """Evaluates, keeps the model where it is the best so far; whether it is."""
        with self.training.averaged():
            metrics = self.evaluation.run()
            if not math.isfinite(metrics["bits"]):
                raise in_evaluation(metrics["bits"], self.progress, self.saver.last)
            self.rates.after_evaluation(metrics["bits"])
            better = self.progress.judge(metrics)
            if better:
                self.saver.keep_best()
        self.agree()
        return better

    def save(self) -> None:
        """Writes the checkpoint of this update, once."""
        self.look()
        self.saver.save()
        self.due = False

    def interrupt(self, number: int = signal.SIGINT) -> None:
        """Asks the run to finish the update at hand, save and stop, as a signal of that number does."""
        self.interrupted = number

    def conclude(self, stopped: str) -> dict:
        """Leaves the best weights in the model, tests them, and writes the result."""
        if not self.saver.load_best() and self.evaluation.evaluate is not None:
            # The best model was lost: of what there is, the last weights are the best.
            self.run_evaluation()
            self.saver.save_again()
        self.training.settle()
        now = self.progress
        result = {
            "stopped": stopped,
            "update": now.update,
            "symbols": now.symbols,
            "epochs": float(self.stream.epochs),
            "seconds": now.seconds,
            "best": now.best,
        }
        test = self.test and partial(self.evaluation.measure, self.test)
        result = self.ranks.from_first(lambda: self.saver.write_result(result, test))
        self.model.eval()
        return result
