"""Cells that follow each other within a step, on the operator dnirnn::lstm_cells.

Letters: T steps, B batch, I input, H units of a cell, S state, N chunks.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dnirnn import ops

READS_X = -1


class Link(NamedTuple):
    """One cell of a step. A part of the state is an h and a c; parts are numbered as they come up.

    part: of the state, which it goes on from and writes.
    reads: the parts whose h it reads beside its own, or READS_X.
    weights: w_hh [4H, H], one [4H, width] for each of ``reads``, and the bias [4H].
    norm: () or gain [4H], gain_c [H], bias_c [H], as in ops.gated_lstm; with a slope gain and shift [4H].
    open_h, open_c: None: open; or [T or 1, B or 1, H or 1].
    masks: () or one for each of ``reads``, which it multiplies: None, or [T or 1, B or 1, width or 1].
    """

    part: int
    reads: Sequence[int]
    weights: Sequence[Tensor]
    norm: Sequence[Tensor] = ()
    open_h: Tensor | None = None
    open_c: Tensor | None = None
    masks: Sequence[Tensor | None] = ()


def lstm_cells(
    x: Tensor,
    state: Tensor,
    probe: Tensor | None,
    links: Sequence[Link],
    truncation: int,
    *,
    skip: Sequence[Tensor] = (),
    slope: Tensor | None = None,
    reset: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """LSTM cells run one after another in each step, cut as in ops.tbptt.

    Each cell is ops.gated_lstm's; what it reads is what the cells before it, in this step or the one
    before, have written. With ``skip``, w and b, the state s of all parts is kept where u is 0,

        u   = 1 where u~ > 0.5, else 0;  s' = u s~ + (1 - u) s, s~ being what the cells make of s
        du  = sigmoid(w s' + b);  u~' = u du + (1 - u) (u~ + min(du, 1 - u~))

    and so is what is held of the last cell's h; on the way back, u counts as u~.

    With ``slope`` the cells are the layers of dnirnn.HMLSTM, whose equations define a detector:
    cell l reads part l - 1, or x, and part l + 1; all but the last have a detector's row behind the 4H
    of their weights, and the bias is inside the normalisation.

    x: inputs [T, B, I] on the CPU, float32, float64 or bfloat16, in which case all is computed in
        float32. Under autocast it is cast.
    state: [B, S], h and c of each part in turn; with skip then what is held, [H] of the last cell, and
        u~ [1]; with a slope the detectors z. A reset puts zeros there, and 1 for u~.
    probe, truncation, reset: as in ops.gated_lstm.
    skip: () or w [1, S of the parts], b [1], of the state's dtype, as norm and masks are.
    slope: None or [], of the hard sigmoid; not differentiable. Not with skip or masks.

    Returns output [T, B, H] of x's dtype, the last cell's h; with skip [T, B, H + 1]: what is held, and
    u; with a slope the h of all cells, and z; and [N, B, S], the states the chunks end in.

    Raises ValueError or TypeError naming the argument that does not fit.
    """
    x, weights = ops.autocast(x, [weight for link in links for weight in link.weights])
    cells = [number for link in links for number in (link.part, len(link.reads), *link.reads)]
    masks = [mask for link in links for mask in (link.open_h, link.open_c, *masks_of(link))]
    if all(mask is None for mask in masks):
        masks = []
    given = [state.new_empty(0) if mask is None else mask for mask in masks]
    norm = [vector for link in links for vector in link.norm]
    return torch.ops.dnirnn.lstm_cells(
        x, state, probe, cells, weights, norm, given, skip, slope, truncation, reset,
        torch.is_grad_enabled(),
    )[:2]  # fmt: skip


def masks_of(link: Link) -> Sequence[Tensor | None]:
    return link.masks or [None] * len(link.reads)
