"""The network of a char-lm."""

from torch import nn

from dnirnn.config.network import make_model
from dnirnn.config.options import from_config
from dnirnn.data import Vocabulary
from dnirnn.model import SequenceModel, Tied, symbol_nats
from dnirnn.tasks.char_lm.options import CharLMOptions


def make(options: CharLMOptions, vocabulary: Vocabulary) -> SequenceModel:
    symbols, width = len(vocabulary), options.embedding
    encoder = nn.Embedding(symbols, width)
    if not options.tied:
        return make_model(options, encoder, width, symbols, symbol_nats)

    def readout(size: int, outputs: int) -> nn.Module:
        return Tied(encoder, size)

    return make_model(options, encoder, width, symbols, symbol_nats, readout=readout)


def restore(config: dict) -> tuple[SequenceModel, Vocabulary]:
    """The model, with fresh weights, and the vocabulary of a run's configuration."""
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    return make(from_config(CharLMOptions, config), vocabulary), vocabulary
