"""Plan: the truncation, and the chunks of an update, that follow one another in a run."""

from collections.abc import Sequence

from dnirnn.model import SequenceModel
from dnirnn.training.config import TrainerConfig
from dnirnn.training.feed import unit_of
from dnirnn.training.state import Progress
from dnirnn.training.updater import Updater
from dnirnn.true_gradient import TrueGradient


class Plan:
    """Sets a model's truncation, and how many chunks make an update, as the budget is used up.

    With values v_0, v_1, ..., v_(n - 1) of either, v_0 the model's truncation or the config's chunks and
    the others those of ``truncation_plan`` or ``chunks_plan``, an update that begins when the share f of
    the budget is used takes v_i, i = min(floor(n f), n - 1). Of several budgets the largest share counts;
    with a larger budget a run goes on where in its plan its share then is.

    Raises ValueError for a plan that has no budget to follow, or does not go with the model or the chunks.
    """

    def __init__(self, model: SequenceModel, rows: int, config: TrainerConfig):
        self.model, self.rows = model, rows
        truncated = model.truncated
        self.truncations = (truncated.truncation, *config.truncation_plan)
        self.chunks = (config.chunks, *config.chunks_plan)
        self.moves = len(self.truncations) + len(self.chunks) > 2
        if not self.moves:
            return
        for name, why in (
            ("truncation_plan", config.truncation_bound is not None and "a truncation_bound"),
            (
                "truncation_plan",
                isinstance(truncated.estimator, TrueGradient)
                and "a TrueGradient, whose lookahead is in chunks",
            ),
            ("chunks_plan", config.chunks == "sequence" and "chunks of a whole sequence"),
            ("chunks_plan", truncated.open_cuts is not None and "open_cuts, which draw the chunks"),
            ("chunks_plan", truncated.overlap > 0 and f"an overlap of {truncated.overlap}"),
        ):
            if why and getattr(config, name):
                raise ValueError(f"{name} does not go with {why}; got {getattr(config, name)}")
        if config.updates is config.symbols is config.minutes is None:
            raise ValueError("a plan follows a budget: updates, symbols or minutes must be given")

    def set(self, used: dict[str, float], updater: Updater, progress: Progress) -> int | str:
        """Before an update: the truncation as planned, and the chunks of it, which are returned.

        updater: whose unit changes with the steps of an update. progress: which holds the truncation.
        """
        if not self.moves:
            return self.chunks[0]
        share = max(used.values())
        truncation, chunks = at(self.truncations, share), at(self.chunks, share)
        if len(self.truncations) > 1:
            self.model.truncated.truncation = truncation
            progress.truncation = {"truncation": truncation}
        updater.unit = unit_of(self.model, self.rows, chunks)
        return chunks

    def finish(self) -> None:
        """Gives the model its own truncation back."""
        if len(self.truncations) > 1:
            self.model.truncated.truncation = self.truncations[0]


def at(values: Sequence, share: float):
    """The value that a plan is at when this share of the budget is used."""
    return values[min(int(share * len(values)), len(values) - 1)]


def longest_update(truncations: Sequence[int], chunks: Sequence[int]) -> int:
    """Steps of a plan's longest update."""
    shares = [i / len(one) for one in (truncations, chunks) for i in range(len(one))]
    return max(at(truncations, share) * at(chunks, share) for share in shares)
