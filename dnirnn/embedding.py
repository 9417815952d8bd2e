"""Embedding: torch's, looked up lazily by fused layers on the CPU, with a gradient of its own on a GPU."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from dnirnn import ops
from dnirnn.checks import check_sizes

FEW = 1024  # symbols: each is looked for among all rows


class Embedding(nn.Embedding):
    """torch.nn.Embedding: E[x] of symbols x [...], [..., embedding_dim].

    On a GPU, for at most 1,024 symbols, the gradient of E[v] is summed over the rows of v in one
    order, so that it is the same bit for bit from call to call, in one short kernel.

    Takes what torch.nn.Embedding takes, all but the sizes by name, and its state_dict. With
    ``padding_idx``, ``max_norm``, ``scale_grad_by_freq`` or ``sparse`` it is that module throughout.

    Raises TypeError or ValueError for sizes that are not integers of at least 1.
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, **options: Any):
        check_sizes(num_embeddings=num_embeddings, embedding_dim=embedding_dim)
        super().__init__(num_embeddings, embedding_dim, **options)

    def forward(self, x: Tensor) -> Tensor:
        return Embedded(self.weight, x).dense() if self.is_plain() else super().forward(x)

    def lazy(self, x: Tensor) -> "Embedded | Tensor":
        """E[x] of symbols x [T, B], to be looked up by the Truncated that takes it as its inputs.

        At once where that would not be the same: with an option of torch's, or hooks.
        """
        names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        alike = self.is_plain() and type(self).forward is Embedding.forward
        alike = alike and not any(getattr(self, name) for name in names)
        alike = alike and x.dtype == torch.int64 and x.dim() == 2
        return Embedded(self.weight, x) if alike else self(x)

    def is_plain(self) -> bool:
        return (
            self.padding_idx is None
            and self.max_norm is None
            and not self.scale_grad_by_freq
            and not self.sparse
        )


class Embedded:
    """E[x], [T, B, D], of symbols x [T, B], before it is looked up.

    What a Truncated takes in the place of a tensor of inputs. An LSTM, GRU or RNN on the CPU then computes the
    products of its input weights with all V symbols' rows once a call, and adds to the sums of its
    gates the row of each step's symbol: the same outputs, and the same gradients of E and of the
    weights, to rounding, with V products where there were T B. Any other core gets ``dense()``.

    weight: E [V, D]. symbols: x, int64.
    """

    def __init__(self, weight: Tensor, symbols: Tensor):
        self.weight, self.symbols = weight, symbols
        self.dtype, self.device = weight.dtype, weight.device
        self.shape = torch.Size((*symbols.shape, weight.shape[1]))

    def dim(self) -> int:
        return len(self.shape)

    def is_floating_point(self) -> bool:
        return self.weight.is_floating_point()

    def __repr__(self) -> str:
        return "rows of a lazy embedding, which a Truncated takes: give a core itself embedding(x)"

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"no {name} of {self!r}")

    def dense(self) -> Tensor:
        """[T, B, D]."""
        if len(self.weight) <= FEW and ops.sums_by_symbol(self.weight):
            return Rows.apply(self.weight, self.symbols)
        return F.embedding(self.symbols, self.weight)


class Rows(Function):
    """E[x], of E [V, D]."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.count = len(weight)
        return F.embedding(x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return SumOfRows.apply(gradients[0], x, ctx.count), None


class SumOfRows(Function):
    """[V, D]: the sum of the rows of gradient [..., D] whose symbol, of x [...], is v."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, x: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(x)
        return torch.ops.dnirnn.embedding_backward(gradient, x.long(), count)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return F.embedding(x, gradients[0]), None, None
