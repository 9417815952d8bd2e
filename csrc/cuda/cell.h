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

template <typename S>
__device__ CellGates<S> bias_of(const Forward& p, int64_t j) {
  const S* bias = static_cast<const S*>(p.bias) + j;
  return {bias[0], bias[p.s.H], bias[2 * p.s.H], bias[3 * p.s.H]};
}

// What step t of a cell starts from: the sums of its gates but for the bias and whatever of the
// recurrent product is not in them, and c.
template <typename S>
struct Begun {
  CellGates<S> sums;
  S c;
};

template <typename S>
__device__ Begun<S> begin(const Forward& p, int64_t t, int64_t b, int64_t j) {
  const Sizes& s = p.s;
  const int64_t row = by_chunk(s, t % s.K, t / s.K, b);
  const S* sums = static_cast<const S*>(p.gates) + row * 4 * s.H + j;
  return {{sums[0], sums[s.H], sums[2 * s.H], sums[3 * s.H]},
          static_cast<const S*>(p.c)[row * s.H + j]};
}

// A cell after a step.
template <typename S>
struct Done {
  CellGates<S> gates;
  S h, c;
};

// Step t of cell j of row b, but for what is only kept; writes what step t + 1 starts from. more: what
// the sums lack.
template <typename V, typename S>
__device__ Done<S> take(const Forward& p, int64_t t, int64_t b, int64_t j, const Begun<S>& begun,
                        const CellGates<S>& bias, const CellGates<S>& more) {
  Done<S> done{{begun.sums.i + bias.i + more.i, begun.sums.f + bias.f + more.f,
                begun.sums.g + bias.g + more.g, begun.sums.o + bias.o + more.o},
               0,
               begun.c};
  done.h = cell_forward<Math<S>>(done.gates, done.c);
  if (t + 1 < p.s.T) enter<V>(p, t + 1, b, j, done.h, done.c);
  return done;
}

// What is kept of step t: the gates, the output, the state at a chunk's end.
template <typename V, typename S>
__device__ void keep(const Forward& p, int64_t t, int64_t b, int64_t j, const Done<S>& done) {
  const Sizes& s = p.s;
  const int64_t n = t / s.K, k = t % s.K, row = by_chunk(s, k, n, b);
  const auto& [gates, h, c] = done;
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
}

// The gradients of a state.
template <typename S>
struct StateGradient {
  S h, c;
};

// Those of the state that step t starts from: nothing crosses a reset.
template <typename S>
__device__ StateGradient<S> came_back(const Backward& p, int64_t t, int64_t b, S dh, S dc) {
  if (p.reset && p.reset[t * p.s.B + b]) return {0, 0};
  return {dh, dc};
}

// They are the probe's of step t, where every step has one.
template <typename S>
__device__ void keep_step(const Backward& p, int64_t t, int64_t b, int64_t j,
                          const StateGradient<S>& back) {
  const Sizes& s = p.s;
  if (p.grad_probe && p.probe_every_step) {
    S* to = static_cast<S*>(p.grad_probe) + (t * s.B + b) * s.S + 2 * p.layer * s.H + j;
    to[0] = back.h;
    to[s.H] = back.c;
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

// Step k of cell j of row b of chunk n: writes d, and returns what came back from step k + 1.
// product: d of step k + 1 times w_hh, if the chunk has one. dc: what goes back from step k.
template <typename V, typename S>
__device__ StateGradient<S> take_back(const Backward& p, int64_t k, int64_t n, int64_t b, int64_t j,
                                      const BegunBack<S>& begun, S product, S& dc) {
  const Sizes& s = p.s;
  V* d = static_cast<V*>(p.d) + by_chunk(s, k, n, b) * 4 * s.H + j;
  if (!begun.exists) {
    d[0] = d[s.H] = d[2 * s.H] = d[3 * s.H] = narrow<V>(S(0));
    return {};
  }
  StateGradient<S> back{0, begun.dc};
  if (!begun.last) back = came_back(p, n * s.K + k + 1, b, product, begun.dc);
  dc = back.c;
  const CellGates<S> found = cell_backward<Math<S>>(begun.gates, begun.c, begun.dh + back.h, dc);
  d[0] = narrow<V>(found.i);
  d[s.H] = narrow<V>(found.f);
  d[2 * s.H] = narrow<V>(found.g);
  d[3 * s.H] = narrow<V>(found.o);
  return back;
}

// What is kept of step k: dc, and the gradient at the probe of step k + 1.
template <typename S>
__device__ void keep_back(const Backward& p, int64_t k, int64_t n, int64_t b, int64_t j,
                          const BegunBack<S>& begun, const StateGradient<S>& back, S dc) {
  const Sizes& s = p.s;
  if (!begun.exists) return;
  if (!begun.last) keep_step(p, n * s.K + k + 1, b, j, back);
  static_cast<S*>(p.dc)[(n * s.B + b) * s.H + j] = dc;
}

// The gradients of the state that chunk n starts from, for cell j of row b.
template <typename S>
__device__ void leave(const Backward& p, int64_t n, int64_t b, int64_t j, S dh) {
  const Sizes& s = p.s;
  const auto back =
      came_back(p, n * s.K, b, dh, static_cast<const S*>(p.dc)[(n * s.B + b) * s.H + j]);
  keep_step(p, n * s.K, b, j, back);
  const int64_t at = 2 * p.layer * s.H + j;
  if (p.grad_probe && !p.probe_every_step) {
    S* to = static_cast<S*>(p.grad_probe) + (n * s.B + b) * s.S + at;
    to[0] = back.h;
    to[s.H] = back.c;
  }
  if (p.grad_state && n == 0) {
    S* to = static_cast<S*>(p.grad_state) + b * s.S + at;
    to[0] = back.h;
    to[s.H] = back.c;
  }
}

}  // namespace dnirnn::cuda
