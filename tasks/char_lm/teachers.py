"""The teachers of a char-lm: runs whose predictions are learned beside the text."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from dnirnn import Distillation
from dnirnn.codistillation import Copies
from dnirnn.data import Vocabulary, Words
from dnirnn.data.corpus import CONVENTIONS, OF_A_FILE
from dnirnn.distillation import Uniform
from dnirnn.model import SequenceModel
from dnirnn.tasks.char_lm.network import restore
from dnirnn.tasks.char_lm.options import CharLMOptions
from dnirnn.training.trainer import load_weights, read_config, reading_config


def distillation_of(
    options: CharLMOptions, vocabulary: Vocabulary | Words, model: SequenceModel
) -> Distillation | None:
    """What the options ask to be learned beside the text; None: nothing. model: what is to learn.

    Raises ValueError, naming the run, for one that can't teach: see :func:`load_peer`.
    """
    if options.smoothing:
        return Distillation([Uniform(len(vocabulary))], options.smoothing)
    if options.codistill:
        others = [one for one in range(options.workers) if one != options.worker]
        return Copies(model, others, options.teacher_weight, options.temperature, options.burn_in)
    if not options.teachers:
        return None
    teachers = [load_peer(Path(run), options, vocabulary, "--teachers") for run in options.teachers]
    return Distillation(teachers, options.teacher_weight, options.temperature)


def load_peer(
    run: Path, options: CharLMOptions, vocabulary: Vocabulary | Words, flag: str
) -> SequenceModel:
    """The best model of a run, of the same symbols as these options. flag: what named the run.

    Raises ValueError where it is no run of char-lm, or one of another convention or vocabulary.
    """
    config = read_config(run)
    task = "word-lm" if isinstance(vocabulary, Words) else "char-lm"
    if config.get("task") != task:
        raise ValueError(f"{flag} must be runs of {task}; {run} is one of {config.get('task')}")
    with reading_config(run):
        model, known = restore(config)
    if convention_of(config["corpus"]) != convention_of(options.corpus):
        raise ValueError(
            f"{flag}: {run} counts symbols by another convention: {convention_of(config['corpus'])};"
            f" here {convention_of(options.corpus)}"
        )
    if known.to_json() != vocabulary.to_json():
        raise ValueError(
            f"{flag}: {run} has another vocabulary: {difference(known, vocabulary)}"
        )
    load_weights(run, model)
    return model.requires_grad_(False)


def convention_of(corpus: str) -> str:
    """By what convention symbols are counted; the built-in text is a text like any file."""
    return CONVENTIONS["ptb"] if corpus == "ptb" else OF_A_FILE


def difference(there: Vocabulary | Words, here: Vocabulary | Words) -> str:
    """What one vocabulary has and the other has not, in a few words."""
    sizes = f"{len(there)} symbols there, {len(here)} here"
    for where, one, other in (("there", there, here), ("here", here, there)):
        known = set(symbols(other))
        only = [symbol for symbol in symbols(one) if symbol not in known]
        if only:
            return f"{sizes}; only {where}: {' '.join(map(repr, only[:10]))}"
    return f"{sizes}; their order differs, or only one has a symbol for the unknown"


def symbols(vocabulary: Vocabulary | Words) -> Sequence[str]:
    return vocabulary.words if isinstance(vocabulary, Words) else vocabulary.characters


def fingerprints(distillation: Distillation) -> list[str]:
    """SHA-256 of each teacher's weights."""
    found = []
    for teacher in distillation.teachers:
        digest = hashlib.sha256()
        for name, tensor in teacher.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        found.append(digest.hexdigest())
    return found
