"""word-lm: a language model that predicts each word of a text from those before it."""

from dnirnn.config.task import Figure, Task
from dnirnn.tasks import char_lm
from dnirnn.tasks.char_lm import (
    DATA,
    DECAY,
    EPOCHS,
    FOUND,
    attach,
    evaluate,
    restore,
    sample,
    subject,
)
from dnirnn.tasks.char_lm.options import WordLMOptions

__all__ = [
    "DATA", "DECAY", "EPOCHS", "FIGURES", "FOUND", "UNIT", "Options", "attach", "build", "evaluate", "restore", "sample",
    "subject",
]  # fmt: skip

FIGURES = (
    Figure("test_perplexity", "test, perplexity per word", "{:.2f}", True),
    Figure("perplexity", "validation, perplexity per word", "{:.2f}", True),
)
UNIT = "words"
Options = WordLMOptions


def build(options: WordLMOptions) -> Task:
    """Everything that training needs, from the options; as :func:`char_lm.build`."""
    return char_lm.build(options, "word-lm")
