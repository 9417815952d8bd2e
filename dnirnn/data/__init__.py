"""Where batches come from: streams of them, texts, pictures."""

from dnirnn.data.streams import Batch, Stream, TextStream, taken
from dnirnn.data.vocabulary import Vocabulary
from dnirnn.data.words import Words

__all__ = ["Batch", "Stream", "TextStream", "Vocabulary", "Words", "taken"]
