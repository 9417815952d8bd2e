"""Saver: a run's checkpoints, best models and result in its run folder, and going on from there."""

import json
import time
import warnings
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

from dnirnn.training import checkpoint as ckpt
from dnirnn.training.checkpoint import CheckpointError
from dnirnn.training.loading import load_checkpoint
from dnirnn.training.log import Log
from dnirnn.training.run_folder import (
    BEST,
    CHECKPOINTS,
    CONFIG,
    LOG,
    RESULT,
    check_config,
    check_owner,
    free_name,
    locked,
    put_aside,
    read_json,
    take_down_change,
    write_config,
)
from dnirnn.training.state import TrainingState, check_progress


class Saver:
    """Saves and restores ``state`` in the run folder ``folder``, whose log it opens.

    run_config: what distinguishes the run; of its keys, may_change may differ from the folder's.
    every, seconds: updates, and seconds of wall clock, from one checkpoint to the next, or None.
    """

    def __init__(
        self,
        folder: Path,
        state: TrainingState,
        run_config: dict,
        may_change: Collection[str] = (),
        every: int | None = None,
        seconds: float | None = None,
    ):
        self.folder, self.state = folder, state
        self.run_config, self.may_change = run_config, may_change
        self.every, self.seconds = every, seconds
        self.opened: Log | None = None

    @property
    def log(self) -> Log:
        """The run's log, from begin to close."""
        assert self.opened is not None
        return self.opened

    @property
    def checkpoint(self) -> Path:
        """Where the state after this update is or will be saved."""
        return self.folder / CHECKPOINTS / ckpt.name_of(self.state.progress.update)

    @property
    def last(self) -> Path:
        """The last checkpoint there is; where they are, on a rank that does not see them."""
        there = self.folder / CHECKPOINTS
        return [there, *ckpt.checkpoints(there)][-1]

    @property
    def best(self) -> Path:
        """Where the best model so far is."""
        best = self.state.progress.best
        assert best is not None
        return self.folder / BEST / ckpt.name_of(best["update"])

    # Beginning and going on

    def check(self) -> None:
        """Raises AnotherRun where the folder holds a run of another configuration."""
        check_config(self.folder, self.run_config, self.may_change)
        known = read_json(self.folder / CONFIG) or {}
        schedule, lr = self.state.rates.config.schedule, self.run_config.get("lr")
        if schedule and known.get("lr") not in (None, lr):
            raise ValueError(
                f"lr can't change under schedule {schedule}, which keeps its own rates; got {lr}"
            )

    def lock(self, stack: ExitStack, restart: bool) -> None:
        """Keeps others from the folder; to begin anew, the run that it holds is moved aside."""
        if restart:
            put_aside(self.folder)
        stack.enter_context(locked(self.folder))

    def begin(self, tensorboard: bool = False) -> bool:
        """Makes the run folder, or restores what the last checkpoint in it holds: whether it did."""
        ranks = self.state.ranks
        tree = ranks.from_first(lambda: self.open(tensorboard))
        if tree is not None and not ranks.first:
            self.state.load_state_dict(tree)
        self.saved_at = time.monotonic()
        return tree is not None

    def open(self, tensorboard: bool) -> dict | None:
        """The same on the first rank: what was restored, or None."""
        check_config(self.folder, self.run_config, self.may_change)
        known = read_json(self.folder / CONFIG)
        if known is None:
            write_config(self.folder, self.run_config)
        saved = ckpt.checkpoints(self.folder / CHECKPOINTS)
        tree = self.restore(saved) if saved else None
        end, digest = (0, None) if tree is None else (tree["log"], tree.get("log_sha256"))
        update = self.state.progress.update
        if known is not None and known != self.run_config:
            take_down_change(self.folder, update, known, self.run_config)
        self.opened = Log(self.folder / LOG, end, tensorboard, update, digest)
        self.check_best()
        for best in ckpt.checkpoints(self.folder / BEST):
            if ckpt.update_of(best) > update:
                ckpt.remove(best)
        progress = self.state.progress
        since = progress.evaluations_since_best
        return tree and {**tree, "best": progress.best, "evaluations_since_best": since}

    def restore(self, saved: list[Path]) -> dict:
        """Loads the last of the checkpoints: what it holds."""
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
            ckpt.check_fit(saved[-1], tree["model"], self.state.model.state_dict())
            check_owner(self.folder, saved[-1], tree, self.run_config, self.may_change)
            self.state.load_state_dict(tree)
            return tree

    def close(self) -> None:
        if self.opened is not None:
            self.opened.close()
            self.opened = None

    # Checkpoints

    def is_due(self) -> bool:
        update = self.state.progress.update
        return (self.every is not None and update % self.every == 0) or (
            self.seconds is not None and time.monotonic() - self.saved_at >= self.seconds
        )

    def save(self) -> None:
        """Writes the checkpoint of this update, once; the last two stay."""
        state = self.state.state_dict()
        self.state.ranks.from_first(lambda: self.write(state))
        self.saved_at = time.monotonic()

    def write(self, state: dict) -> None:
        if not (self.folder / CONFIG).exists():
            self.make_again()
        if not self.checkpoint.exists():
            self.log.sync()
            tree = {
                "config": self.run_config,
                **state,
                "log": self.log.offset,
                "log_sha256": self.log.digest.hexdigest(),
            }
            ckpt.save(self.checkpoint, *ckpt.flatten(tree))
            for folder in (CHECKPOINTS, BEST):
                ckpt.keep_last(self.folder / folder, 2)

    def save_again(self) -> None:
        """Writes the checkpoint of this update anew."""
        if self.state.ranks.first and self.checkpoint.exists():
            ckpt.remove(self.checkpoint)
        self.save()

    def make_again(self) -> None:
        """The folder was removed or moved while the run went on: what is known is put there."""
        warnings.warn(
            f"{self.folder} was removed or moved while the run went on; it is made again, with the"
            " log and this update's checkpoint",
            stacklevel=2,
        )
        with ckpt.writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        write_config(self.folder, self.run_config)
        self.log.make_again()

    # The best model

    def keep_best(self) -> None:
        """Saves the model, which is the best so far."""
        if not self.state.ranks.first:
            return
        best, model = self.state.progress.best, self.state.model.state_dict()
        assert best is not None
        kept = {**best, "config": self.run_config, "model": model}
        ckpt.save(self.best, *ckpt.flatten(kept))

    def check_best(self) -> None:
        """Goes on without the best model where it is damaged: the next one will be the best."""
        if self.state.progress.best is not None:
            try:
                ckpt.load(self.best)
            except CheckpointError as error:
                self.drop_best(error)

    def load_best(self) -> bool:
        """Loads the best model, if there is one: whether there is."""
        ranks = self.state.ranks
        found = ranks.from_first(self.load_best_here)
        if not found:
            self.state.progress.forget_best()
        ranks.join(self.state.model)
        return found

    def load_best_here(self) -> bool:
        if self.state.progress.best is not None:
            try:
                load_checkpoint(self.best, self.state.model)
            except CheckpointError as error:
                self.drop_best(error)
        return self.state.progress.best is not None

    def drop_best(self, error: CheckpointError) -> None:
        warnings.warn(
            f"{error}: the run goes on without it, and the next evaluation is the best so far",
            stacklevel=4,
        )
        if self.best.exists():
            with ckpt.writing(self.best):
                self.best.rename(free_name(self.best, "damaged"))
        self.state.progress.forget_best()

    # The result

    def write_result(self, result: dict, test: Callable[[], dict] | None) -> dict:
        """The result with what ``test`` finds; as it was written before, if it is the same."""
        known = read_json(self.folder / RESULT)
        if known is not None and {**known, "test": None} == {**result, "test": None}:
            return known
        result = {**result, "test": None if test is None else test()}
        ckpt.replace(self.folder / RESULT, json.dumps(result, indent=1).encode())
        return result
