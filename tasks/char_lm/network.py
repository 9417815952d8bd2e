"""The network of a char-lm."""

from torch import nn

from dnirnn import Embedding, SyntheticGradient
from dnirnn.config.network import make_model
from dnirnn.config.parallel import in_parts
from dnirnn.data import Vocabulary, Words
from dnirnn.model import SequenceModel, Tied, symbol_nats
from dnirnn.tasks.char_lm.options import CharLMOptions, options_of


def make(options: CharLMOptions, vocabulary: Vocabulary | Words) -> SequenceModel:
    symbols, width = len(vocabulary), options.embedding
    encoder = Embedding(symbols, width)
    if in_parts(options):
        model = make_model(options, encoder, width, symbols, symbol_nats)
        between = model.truncated.core.cores[:-1]
        hidden = options.layer_predictor_hidden
        model.cuts = nn.ModuleList(
            SyntheticGradient(layer.output_size, hidden, 1.0, 1.0, context_size=symbols)
            for layer in between
        )
        return model
    if not options.tied:
        return make_model(options, encoder, width, symbols, symbol_nats)

    def readout(size: int, outputs: int) -> nn.Module:
        return Tied(encoder, size)

    return make_model(options, encoder, width, symbols, symbol_nats, readout=readout)


def restore(config: dict) -> tuple[SequenceModel, Vocabulary | Words]:
    """The model, with fresh weights, and the vocabulary of a run's configuration."""
    vocabulary = vocabulary_of(config)
    return make(options_of(config), vocabulary), vocabulary


def figure_of(vocabulary: Vocabulary | Words, bits: float) -> str:
    """Bits per symbol as they are printed: of words as perplexity."""
    if isinstance(vocabulary, Words):
        return f"perplexity per word: {2 ** min(bits, 1000.0):.2f} ({bits:.4f} bits)"
    return f"bits per character: {bits:.4f}"


def vocabulary_of(config: dict) -> Vocabulary | Words:
    """The symbols of a run's configuration."""
    kind = Words if config["task"] == "word-lm" else Vocabulary
    return kind.from_json(config["vocabulary"])
