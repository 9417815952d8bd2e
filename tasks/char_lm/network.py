"""The network of a char-lm."""

from torch import nn

from dnirnn.config.network import make_model
from dnirnn.config.options import from_config
from dnirnn.data import Vocabulary
from dnirnn.model import SequenceModel, symbol_nats
from dnirnn.tasks.char_lm.options import CharLMOptions


def make(options: CharLMOptions, vocabulary: Vocabulary) -> SequenceModel:
    encoder = nn.Embedding(len(vocabulary), options.embedding)
    return make_model(options, encoder, options.embedding, len(vocabulary), symbol_nats)


def restore(config: dict) -> tuple[SequenceModel, Vocabulary]:
    """The model, with fresh weights, and the vocabulary of a run's configuration."""
    vocabulary = Vocabulary.from_json(config["vocabulary"])
    return make(from_config(CharLMOptions, config), vocabulary), vocabulary
