"""Rates: what changes of the optimizers, and of the estimator's scale, in the course of a run."""

from dnirnn.estimators import AutoScale
from dnirnn.model import SequenceModel
from dnirnn.training.optimizers import (
    DECAYS,
    check_length,
    make_optimizer,
    make_schedule,
    ramped,
    scalars_of,
    set_lr,
    settings,
)


class Rates:
    """The optimizers of a model, and what sets their rates: a decay or a schedule.

    config: a TrainerConfig. The estimator's scale rises as its warm_up and ramp say.

    Raises ValueError naming a field of it that does not fit the model.
    """

    def __init__(self, model: SequenceModel, config):
        self.config, self.estimator = config, model.truncated.estimator
        self.scale = self.estimator.scale
        self.ramps = bool(config.warm_up or config.ramp)
        fitted = model.estimator_parameters()
        if not fitted and (self.ramps or config.estimator_min_norm):
            raise ValueError("warm_up, ramp and estimator_min_norm need an estimator that is fitted")
        if self.ramps and isinstance(getattr(self.estimator, "estimator", self.estimator), AutoScale):
            raise ValueError(
                "warm_up and ramp set a scale; AutoScale measures its own, from zero on: got"
                f" {config.warm_up} and {config.ramp}"
            )
        self.optimizer = make_optimizer(
            "", model.core_parameters(), config.optimizer, config.lr, config.optimizer_options
        )
        self.optimizers = [self.optimizer]
        if fitted:
            kind, lr, options = (
                getattr(config, f"estimator_{name}")
                for name in ("optimizer", "lr", "optimizer_options")
            )
            self.optimizers.append(make_optimizer("estimator_", fitted, kind, lr, options))
        self.schedule = make_schedule(self.optimizer, config.schedule, config.schedule_options)
        check_length(self.schedule, config.updates)
        self.by_bits = config.schedule == "ReduceLROnPlateau"

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    def before_update(self, update: int, used: dict[str, float]) -> None:
        """Sets the scale and the rate of the update after ``update`` others.

        used: the fractions of the budgets, of which the largest counts.
        """
        if self.ramps:
            share = ramped(update, self.config.warm_up, self.config.ramp)
            self.estimator.scale = self.scale * share
        decay, lr = self.config.decay, self.config.lr
        if decay is not None:
            lr *= DECAYS[decay](min(1.0, max(used.values())))
        if decay is not None or self.config.lr_warm_up:
            set_lr(self.optimizer, lr * min(1.0, (update + 1) / (self.config.lr_warm_up + 1)))

    def after_update(self) -> None:
        if self.schedule is not None and not self.by_bits:
            self.schedule.step()

    def after_evaluation(self, bits: float) -> None:
        if self.by_bits:
            self.schedule.step(bits)

    def finish(self) -> None:
        """Gives the estimator its own scale back."""
        if self.ramps:
            self.estimator.scale = self.scale

    def mark(self) -> tuple[list[dict], dict | None]:
        """What may change from update to update of the optimizers, and of the schedule."""
        if self.schedule is None:
            return [{"lr": optimizer.param_groups[0]["lr"]} for optimizer in self.optimizers], None
        return [settings(optimizer) for optimizer in self.optimizers], self.schedule_state()

    def go_back(self, mark: tuple[list[dict], dict | None]) -> None:
        """Sets what :meth:`mark` returned."""
        for optimizer, before in zip(self.optimizers, mark[0]):
            optimizer.param_groups[0].update(before)
        if self.schedule is not None:
            self.schedule.load_state_dict(mark[1])

    def schedule_state(self) -> dict | None:
        return None if self.schedule is None else scalars_of(self.schedule.state_dict())

    def resume(self, schedule: dict | None) -> None:
        """Goes on with a schedule's state and the optimizers' as loaded; a rate without one is config's."""
        for optimizer, lr in zip(self.optimizers, (self.config.lr, self.config.estimator_lr)):
            if self.schedule is None or optimizer is not self.optimizer:
                set_lr(optimizer, lr)
        if self.schedule is not None:
            self.schedule.load_state_dict(schedule)
