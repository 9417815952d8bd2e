"""Where batches come from: streams of them, texts, pictures."""

from dnirnn.data.streams import Batch, Stream, TextStream, Vocabulary, taken

__all__ = ["Batch", "Stream", "TextStream", "Vocabulary", "taken"]
