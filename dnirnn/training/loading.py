"""The weights of a run folder, for others than the run: evaluation, sampling, a person's program."""

from pathlib import Path

import torch

from dnirnn.model import SequenceModel
from dnirnn.training import checkpoint as ckpt
from dnirnn.training.run_folder import BEST, CHECKPOINTS, CONFIG, check_owner, read_json


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
    """Loads the model of one checkpoint, its averaged weights if it has any; its numbers.

    run: the folder of the run that it must be of.
    """
    tree = ckpt.load_tree(path)
    with ckpt.reading(path):
        ckpt.check_fit(path, tree["model"], model.state_dict())
        config = None if run is None else read_json(run / CONFIG)
        if run is not None and config is not None:
            check_owner(run, path, tree, config)
        for name in ("update", "symbols"):
            if type(tree[name]) is not int:
                raise TypeError(f"{name} is {tree[name]!r:.40}")
        model.load_state_dict(tree["model"])
        if tree.get("average") is not None:
            with torch.no_grad():
                torch._foreach_copy_(model.core_parameters(), tree["average"])
    return {name: value for name, value in tree.items() if isinstance(value, (int, float))}
