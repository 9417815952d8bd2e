"""Texts that a model writes."""

import math

import torch
from torch import Tensor

from dnirnn.config.network import device_of
from dnirnn.data import Vocabulary
from dnirnn.model import SequenceModel


def sample(
    model: SequenceModel,
    vocabulary: Vocabulary,
    length: int,
    temperature: float = 1.0,
    prime: str = "",
    seed: int = 0,
) -> str:
    """A text of ``length`` characters that the model writes after a newline and ``prime``.

    temperature: divides the logits; 0 takes the likeliest character each time, higher values vary
        more.

    Raises ValueError for a negative or infinite temperature, a length below 1, or a prime with a
    character that the model does not know.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be finite and at least 0; got {temperature}")
    if length < 1:
        raise ValueError(f"length must be at least 1 character; got {length}")
    try:
        symbols = vocabulary.encode("\n" + prime)
    except ValueError as error:
        raise ValueError(f"prime: {error}") from None
    generator = torch.Generator().manual_seed(seed)
    model.eval()
    device = device_of(model)
    with torch.inference_mode():
        logits, state = model.unroll(symbols[:, None].to(device), model.initial_state(1), 0)
        logits, written, t = logits[-1], [], len(symbols)
        while True:
            written.append(choose(logits, temperature, generator))
            if len(written) == length:
                return vocabulary.decode(torch.cat(written))
            logits, state = model.step(written[-1].to(device), state, t)
            t += 1


def choose(logits: Tensor, temperature: float, generator: torch.Generator) -> Tensor:
    logits = logits.cpu()  # where the generator is
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.double()
    # From the largest down, so that the smallest temperature divides no number to infinity.
    probabilities = torch.softmax((logits - logits.max(-1, keepdim=True)[0]) / temperature, -1)
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]
