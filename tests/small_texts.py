"""A small text, and options for a small model of it."""

from pathlib import Path

import torch

from dnirnn.tasks.char_lm import CharLMOptions


def text_of(length: int, seed: int = 0) -> str:
    """Words of a small language, so that there is something to learn."""
    generator = torch.Generator().manual_seed(seed)
    words = ["tick", "tock", "the", "clock\n"]
    drawn = torch.randint(len(words), (length,), generator=generator).tolist()
    return " ".join(words[word] for word in drawn)[:length]


def options_for(path: Path, **rest) -> CharLMOptions:
    given = dict(corpus=str(path), hidden=8, embedding=4, batch=4, truncation=5)
    return CharLMOptions(**(given | rest))
