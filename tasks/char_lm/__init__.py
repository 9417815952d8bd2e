"""char-lm: a language model that predicts each character of a text from those before it."""

from pathlib import Path

import torch
from torch import Tensor

from dnirnn import DistilledStream
from dnirnn.codistillation import CodistilledStream, Exchange, share_of, store_of_environment
from dnirnn.config.parallel import in_parts
from dnirnn.config.saved import identity
from dnirnn.config.task import Figure, Task, chunk_steps, steps_per_update
from dnirnn.data import Stream, TextStream, Vocabulary, Words
from dnirnn.data.corpus import SPLITS, Corpus, builtin, cached, compact, penn_treebank, pieces
from dnirnn.model import SequenceModel
from dnirnn.tasks.char_lm.evaluation import Evaluation, evaluate, learned_from, load_corpus
from dnirnn.tasks.char_lm.network import make, restore
from dnirnn.tasks.char_lm.options import CharLMOptions, WordLMOptions, resolve
from dnirnn.tasks.char_lm.sampling import sample
from dnirnn.tasks.char_lm.teachers import distillation_of, fingerprints
from dnirnn.training.layers import in_layers
from dnirnn.training.plan import longest_update
from dnirnn.training.trainer import Trainer

__all__ = [
    "DATA", "DECAY", "EPOCHS", "FIGURES", "FOUND", "UNIT", "CharLMOptions", "Evaluation", "Options", "attach", "build",
    "builtin", "encode", "evaluate", "load_corpus", "penn_treebank", "restore", "sample", "subject",
]  # fmt: skip

FIGURES = (
    Figure("test_bits", "test, bits per character", "{:.4f}", True),
    Figure("bits", "validation, bits per character", "{:.4f}", True),
)
DECAY = "cosine"  # of the learning rate over the budget
UNIT, EPOCHS = "characters", "epochs"
# Its options that `eval` takes.
DATA = {
    "split", "corpus", "data_dir", "valid_file", "test_file", "text", "dynamic", "dynamic_steps",
    "dynamic_rate", "dynamic_decay", "others",
}  # fmt: skip
FOUND = ("vocabulary", "corpus_sha256", "teachers_sha256")  # what it adds to a run's configuration
Options = CharLMOptions


def build(options: CharLMOptions, task: str = "char-lm") -> Task:
    """Everything that training needs, from the options. task: its name, of char-lm or word-lm.

    Raises ValueError or OSError, naming the option, for a text or a teacher that does not fit.
    """
    steps = steps_per_update(options)
    corpus = load_corpus(options)
    vocabulary = symbols_of(corpus, options)
    fingerprint = corpus.fingerprint()
    if corpus.is_large() and isinstance(vocabulary, Vocabulary):
        symbols = cached(corpus, vocabulary, fingerprint, options.quiet)
    else:
        symbols = encode(corpus, vocabulary)
    symbols["train"] = learned_from(symbols["train"], options.train_share)
    if options.codistill:
        if options.worker is None:
            raise ValueError("--codistill needs --worker and --workers, which torchrun gives")
        symbols["train"] = share_of(symbols["train"], options.worker, options.workers)
    truncations = (chunk_steps(options), *options.truncation_plan)
    chunks = (1 if steps is None else steps // truncations[0], *options.chunks_plan)
    count, needed = len(symbols["train"]), options.batch * longest_update(truncations, chunks)
    if count < needed:
        raise ValueError(
            f"corpus {corpus.name} has {count:,} training symbols; {options.batch} sequences of"
            f" {needed // options.batch} steps need {needed:,} (lower --batch or --truncation{', raise --train-share' * (options.train_share < 1)})"
        )
    newline, unit = int(vocabulary.encode("\n")), vocabulary.unit
    torch.manual_seed(options.seed + 2**32 * (options.worker or 0))
    model = make(options, vocabulary)
    valid, test = (Evaluation.by(vocabulary, symbols[name]) for name in SPLITS[1:])
    config = {
        "task": task,
        **identity(resolve(options)),
        "vocabulary": vocabulary.to_json(),
        "corpus_sha256": fingerprint,
    }
    notice = corpus.describe(symbols)
    if options.train_share < 1:
        notice += f"; trained on the first {options.train_share:.3g} of the training text"
    if vocabulary.unknown is not None:
        notice += f"; {unit}s that are not in the training text are one unknown symbol, scored separately"
    distillation = distillation_of(options, vocabulary, model)

    def taught(stream: TextStream, memory: int = 2**30) -> Stream:
        return stream if distillation is None else DistilledStream(stream, distillation, memory)

    stream = taught(TextStream(symbols["train"], options.batch, newline))
    if options.codistill:
        stream = CodistilledStream(stream.stream, distillation, None, options.exchange_every)
        notice += f"; worker {options.worker} of {options.workers}, on its share of train"
    if distillation is not None:
        model.loss = distillation
    if options.teachers:
        config["teachers_sha256"] = fingerprints(distillation)
        notice += f"; teachers: {len(options.teachers)}, their part of the loss {options.teacher_weight}"
    return Task(
        model,
        stream,
        valid,
        lambda model: {f"test_{name}": value for name, value in test(model).items()},
        count if steps is None else options.batch * steps,
        config,
        notice,
        lambda steps: taught(stretch(symbols["valid"], newline, steps), memory=0).next(steps),
    )


def attach(trainer: Trainer, options: CharLMOptions) -> None:
    """Has layers updated by themselves, or a worker give and take copies before its updates."""
    if in_parts(options):
        trainer.updater = in_layers(trainer, options.staleness)
    if not options.codistill:
        return
    stream, prepare = trainer.stream, trainer.prepare
    stream.exchange = Exchange(store_of_environment(), options.worker, options.workers)

    def weights() -> dict[str, Tensor]:
        with trainer.training.averaged():
            return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}

    def exchanging(model: SequenceModel, epochs: float) -> None:
        prepare(model, epochs)
        stream.before(trainer.update, weights)

    trainer.prepare = exchanging


def symbols_of(corpus: Corpus, options: CharLMOptions) -> Vocabulary | Words:
    """The training text's characters, or words; a symbol for unknown ones where other splits have some."""
    train = pieces(corpus.splits["train"])
    if isinstance(options, WordLMOptions):
        known = Words.of(train, rarest=options.rarest)
        all_known = known.words
    else:
        known = Vocabulary.of(train)
        all_known = known.characters
    others = (piece for split in SPLITS[1:] for piece in known.parts(pieces(corpus.splits[split])))
    return type(known)(all_known, any(map(known.lacks, others)))


def stretch(symbols: Tensor, first_input: int, steps: int, rows: int = 16) -> TextStream:
    """A text in parallel rows that have so many steps; in fewer rows where the text is short."""
    return TextStream(symbols, max(1, min(rows, len(symbols) // steps)), first_input)


def encode(corpus: Corpus, vocabulary: Vocabulary | Words) -> dict[str, Tensor]:
    symbols = {}
    for split in SPLITS:
        try:
            symbols[split] = compact(corpus.splits[split], vocabulary)
        except ValueError as error:
            raise ValueError(f"corpus {corpus.name}, {split} split: {error}") from None
    return symbols


def subject(options: CharLMOptions) -> str:
    """The task's part of a run folder's name."""
    taught = "-distilled" if options.teachers else "-codistilled" if options.codistill else ""
    return Path(options.corpus).stem + taught
