"""A graph that is no chain, cut where its parts meet: two encoders, one of them called twice.

Which of two noisy pictures of a digit shows what a tag says? Encoder P reads both pictures, encoder
Q the tag; a head compares. At three cuts the encoders are updated by what two estimators predict, and
never by the loss itself.

    python examples/two_encoders.py        (20 seconds; needs nothing but dnirnn)
"""

import torch
from torch import nn
from torch.nn import functional as F

import dnirnn

PIXELS, DIGITS, WIDTH = 64, 10, 32


class Network(nn.Module):
    """first, second [B, PIXELS] and tag [B, DIGITS] -> logits [B, 2], and the three interfaces."""

    def __init__(self):
        super().__init__()
        self.pictures = nn.Sequential(nn.Linear(PIXELS, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.tags = nn.Linear(DIGITS, WIDTH)
        self.head = nn.Sequential(nn.Linear(3 * WIDTH, 64), nn.ReLU(), nn.Linear(64, 2))
        # What an estimator is told beside h: which of the two it is to be.
        self.of_pictures = dnirnn.SyntheticGradient(WIDTH, (64,), 1.0, 1.0, context_size=2)
        self.of_tags = dnirnn.SyntheticGradient(WIDTH, (64,), 1.0, 1.0, context_size=2)

    def forward(self, first, second, tag, label=None):
        interfaces = []

        def cut(h, estimator, context):
            # Without a label nothing is learned, and nothing need be cut.
            if label is None:
                return h
            onward, interface = dnirnn.cut(h, estimator, context)
            interfaces.append(interface)
            return onward

        # One estimator at two cuts: seen from the second picture the answers change places.
        one = cut(self.pictures(first), self.of_pictures, label)
        two = cut(self.pictures(second), self.of_pictures, None if label is None else label.flip(1))
        sought = cut(self.tags(tag), self.of_tags, label)
        return self.head(torch.cat([one * sought, two * sought, sought], 1)), interfaces


def draw(shapes, rows, generator):
    """Two pictures of different digits, the tag of one of them, and which it is."""
    digits = torch.rand(rows, DIGITS, generator=generator).topk(2).indices
    answer = torch.randint(2, (rows,), generator=generator)
    noise = 0.7 * torch.randn(2, rows, PIXELS, generator=generator)
    tag = F.one_hot(digits.gather(1, answer[:, None])[:, 0], DIGITS).float()
    return shapes[digits[:, 0]] + noise[0], shapes[digits[:, 1]] + noise[1], tag, answer


def main(updates: int = 3000, rows: int = 64) -> float:
    """Trains, and returns the share of right answers."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(DIGITS, PIXELS, generator=generator)
    network = Network()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(updates):
        *given, answer = draw(shapes, rows, generator)
        logits, interfaces = network(*given, F.one_hot(answer, 2).float())
        dnirnn.backward(F.cross_entropy(logits, answer), interfaces, unit=1 / rows)
        optimizer.step()
        optimizer.zero_grad()
    *given, answer = draw(shapes, 2000, generator)
    with torch.no_grad():
        right = (network(*given)[0].argmax(1) == answer).float().mean().item()
    print(f"{updates} updates: {right:.3f} of 2,000 new questions answered rightly (chance: 0.5)")
    return right


if __name__ == "__main__":
    main()
