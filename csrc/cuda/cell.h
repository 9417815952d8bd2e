// What one thread does for one cell in one step, whichever kernel computed the products.
#pragma once

#include "cuda/device.h"
#include "cuda/lstm.h"
#include "lstm_cell.h"

namespace dnirnn::cuda {

// Where cell j of row b is in a step by chunk.
__device__ inline int64_t by_chunk(const Sizes& s, int64_t k, int64_t n, int64_t b) {
  return (k * s.N + n) * s.B + b;
}

// Cell j of row b starts step t from (h, c), plus the probe; from zero where a sequence starts.
template <typename V, typename S>
__device__ void enter(const Forward& p, int64_t t, int64_t b, int64_t j, S h, S c) {
  const Sizes& s = p.s;
  const int64_t n = t / s.K, k = t % s.K, at = by_chunk(s, k, n, b) * s.H + j;
  if (p.probe && (k == 0 || p.probe_every_step)) {
    const S* probe = static_cast<const S*>(p.probe) +
                     ((p.probe_every_step ? t : n) * s.B + b) * s.S + 2 * p.layer * s.H + j;
    h += probe[0];
    c += probe[s.H];
  }
  if (p.reset && p.reset[t * s.B + b]) h = c = 0;
  static_cast<V*>(p.h)[at] = narrow<V>(h);
  static_cast<S*>(p.c)[at] = c;
}

// What step t of a cell starts from: the sums of its gates but for the recurrent product, and c.
template <typename S>
struct Begun {
  CellGates<S> sums;
  S c;
};

template <typename V, typename S>
__device__ Begun<S> begin(const Forward& p, int64_t t, int64_t b, int64_t j) {
  const Sizes& s = p.s;
  const int64_t row = by_chunk(s, t % s.K, t / s.K, b);
  const S* sums = static_cast<const S*>(p.gates) + row * 4 * s.H + j;
  const V *ih = static_cast<const V*>(p.b_ih) + j, *hh = static_cast<const V*>(p.b_hh) + j;
  return {{sums[0] + widen(ih[0]) + widen(hh[0]),
           sums[s.H] + widen(ih[s.H]) + widen(hh[s.H]),
           sums[2 * s.H] + widen(ih[2 * s.H]) + widen(hh[2 * s.H]),
           sums[3 * s.H] + widen(ih[3 * s.H]) + widen(hh[3 * s.H])},
          static_cast<const S*>(p.c)[row * s.H + j]};
}

// Step t of cell j of row b. product: h times w_hh, for its four gates.
template <typename V, typename S>
__device__ void finish(const Forward& p, int64_t t, int64_t b, int64_t j, const Begun<S>& begun,
                       const CellGates<S>& product) {
  const Sizes& s = p.s;
  const int64_t n = t / s.K, k = t % s.K, row = by_chunk(s, k, n, b);
  CellGates<S> gates{begun.sums.i + product.i, begun.sums.f + product.f, begun.sums.g + product.g,
                     begun.sums.o + product.o};
  S c = begun.c;
  const S h = cell_forward<Math<S>>(gates, c);
  S* kept = static_cast<S*>(p.gates) + row * 4 * s.H + j;
  kept[0] = gates.i;
  kept[s.H] = gates.f;
  kept[2 * s.H] = gates.g;
  kept[3 * s.H] = gates.o;
  static_cast<V*>(p.output)[(p.output_by_chunk ? row : t * s.B + b) * s.H + j] = narrow<V>(h);
  if (k + 1 == s.steps(n)) {
    S* sent = static_cast<S*>(p.sent) + (n * s.B + b) * s.S + 2 * p.layer * s.H + j;
    sent[0] = h;
    sent[s.H] = c;
  }
  if (t + 1 < s.T) enter<V>(p, t + 1, b, j, h, c);
}

// The gradients (dh, dc) of the state that step t of chunk n starts from: nothing crosses a reset.
template <typename S>
__device__ void came_back(const Backward& p, int64_t t, int64_t b, int64_t j, S& dh, S& dc) {
  const Sizes& s = p.s;
  if (p.reset && p.reset[t * s.B + b]) dh = dc = 0;
  if (p.grad_probe && p.probe_every_step) {
    S* to = static_cast<S*>(p.grad_probe) + (t * s.B + b) * s.S + 2 * p.layer * s.H + j;
    to[0] = dh;
    to[s.H] = dc;
  }
}

// What step k of a cell of chunk n was, and the gradients that do not come through step k + 1.
template <typename S>
struct BegunBack {
  CellGates<S> gates;
  S c, dh, dc;
  bool exists, last;  // whether chunk n has a step k, and whether it is its last
};

template <typename V, typename S>
__device__ BegunBack<S> begin_back(const Backward& p, int64_t k, int64_t n, int64_t b, int64_t j) {
  const Sizes& s = p.s;
  BegunBack<S> begun{};
  begun.exists = k < s.steps(n);
  begun.last = k + 1 == s.steps(n);
  if (!begun.exists) return begun;
  const int64_t row = by_chunk(s, k, n, b);
  const S* kept = static_cast<const S*>(p.gates) + row * 4 * s.H + j;
  begun.gates = {kept[0], kept[s.H], kept[2 * s.H], kept[3 * s.H]};
  begun.c = static_cast<const S*>(p.c)[row * s.H + j];
  if (p.grad_output)
    begun.dh += widen(static_cast<const V*>(p.grad_output)[((n * s.K + k) * s.B + b) * s.H + j]);
  if (p.grad_above) begun.dh += static_cast<const S*>(p.grad_above)[row * s.H + j];
  if (!begun.last) {
    begun.dc = static_cast<const S*>(p.dc)[(n * s.B + b) * s.H + j];
  } else if (p.grad_sent) {
    const S* sent =
        static_cast<const S*>(p.grad_sent) + (n * s.B + b) * s.S + 2 * p.layer * s.H + j;
    begun.dh += sent[0];
    begun.dc = sent[s.H];
  }
  return begun;
}

// Step k of cell j of row b of chunk n. product: d of step k + 1 times w_hh, if the chunk has one.
template <typename V, typename S>
__device__ void finish_back(const Backward& p, int64_t k, int64_t n, int64_t b, int64_t j,
                            const BegunBack<S>& begun, S product) {
  const Sizes& s = p.s;
  V* d = static_cast<V*>(p.d) + by_chunk(s, k, n, b) * 4 * s.H + j;
  if (!begun.exists) {
    d[0] = d[s.H] = d[2 * s.H] = d[3 * s.H] = narrow<V>(S(0));
    return;
  }
  S dh = begun.last ? S(0) : product, dc = begun.dc;
  if (!begun.last) came_back(p, n * s.K + k + 1, b, j, dh, dc);
  const CellGates<S> found =
      cell_backward<Math<S>>(begun.gates, begun.c, begun.dh + dh, dc);
  d[0] = narrow<V>(found.i);
  d[s.H] = narrow<V>(found.f);
  d[2 * s.H] = narrow<V>(found.g);
  d[3 * s.H] = narrow<V>(found.o);
  static_cast<S*>(p.dc)[(n * s.B + b) * s.H + j] = dc;
}

// The gradients of the state that chunk n starts from, for cell j of row b.
template <typename S>
__device__ void leave(const Backward& p, int64_t n, int64_t b, int64_t j, S dh) {
  const Sizes& s = p.s;
  S dc = static_cast<const S*>(p.dc)[(n * s.B + b) * s.H + j];
  came_back(p, n * s.K, b, j, dh, dc);
  const int64_t at = 2 * p.layer * s.H + j;
  if (p.grad_probe && !p.probe_every_step) {
    S* to = static_cast<S*>(p.grad_probe) + (n * s.B + b) * s.S + at;
    to[0] = dh;
    to[s.H] = dc;
  }
  if (p.grad_state && n == 0) {
    S* to = static_cast<S*>(p.grad_state) + b * s.S + at;
    to[0] = dh;
    to[s.H] = dc;
  }
}

}  // namespace dnirnn::cuda
