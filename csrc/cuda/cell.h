// What one thread does for one cell in one step, whichever kernel computed the products.
#pragma once

#include "cuda/device.h"
#include "cuda/lstm.h"
#include "lstm_cell.h"

namespace dnirnn::cuda {

// Places are counted in 32 bits, and only multiplied to 64: a 64-bit product or quotient takes the device
// many instructions. The rows of a history, and the cells of a step of all chunks, are fewer than 2^31
// (check_places).

__device__ inline int quotient(int a, int64_t b) {
  return static_cast<int>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b));
}

// Where the value j of a row is.
__device__ inline int64_t in_row(int row, int64_t width, int64_t j) {
  return static_cast<int64_t>(uint64_t(static_cast<uint32_t>(row)) * static_cast<uint32_t>(width)) +
         j;
}

// Step t of all, which is step k of chunk n.
struct Step {
  int t, n, k;
};

__device__ inline Step step_of(const Sizes& s, int t) {
  const int n = quotient(t, s.K);
  return {t, n, t - n * static_cast<int>(s.K)};
}

__device__ inline Step next(const Sizes& s, const Step& at) {
  return at.k + 1 < s.K ? Step{at.t + 1, at.n, at.k + 1} : Step{at.t + 1, at.n + 1, 0};
}

// Of chunk n.
__device__ inline int steps_of(const Sizes& s, int n) {
  const int K = s.K, N = s.N;
  return n + 1 < N ? K : static_cast<int>(s.T) - (N - 1) * K;
}

// The row of a history by chunk that step k of chunk n of row b of the batch is.
__device__ inline int by_chunk(const Sizes& s, int k, int n, int b) {
  return (k * static_cast<int>(s.N) + n) * static_cast<int>(s.B) + b;
}
__device__ inline int by_chunk(const Sizes& s, const Step& at, int b) {
  return by_chunk(s, at.k, at.n, b);
}
__device__ inline int row_of(const Sizes& s, int t, int b) { return t * static_cast<int>(s.B) + b; }

// Where h of cell j is in a row of the state; c is H further.
template <typename Pass>
__device__ int64_t of_state(const Pass& p, int j) {
  return 2 * p.layer * p.s.H + j;
}

// What a cell starts a step from.
template <typename V, typename S>
struct Entered {
  V h;
  S c;
};

// Cell j of row b starts a step from (h, c), plus the probe; from zero where a sequence starts. Writes
// c; h is the caller's to write.
template <typename V, typename S>
__device__ Entered<V, S> enter(const Forward& p, const Step& at, int b, int j, S h, S c) {
  const Sizes& s = p.s;
  if (p.probe && (at.k == 0 || p.probe_every_step)) {
    const S* probe = static_cast<const S*>(p.probe) +
                     in_row(row_of(s, p.probe_every_step ? at.t : at.n, b), s.S, of_state(p, j));
    h += probe[0];
    c += probe[s.H];
  }
  if (p.reset && p.reset[row_of(s, at.t, b)]) h = c = 0;
  static_cast<S*>(p.c)[in_row(by_chunk(s, at, b), s.H, j)] = c;
  return {narrow<V>(h), c};
}

template <typename V>
__device__ V* h_of(const Forward& p, const Step& at, int b, int j) {
  return static_cast<V*>(p.h) + in_row(by_chunk(p.s, at, b), p.s.H, j);
}

template <typename S>
__device__ CellGates<S> bias_of(const Forward& p, int j) {
  const S* bias = static_cast<const S*>(p.bias) + j;
  return {bias[0], bias[p.s.H], bias[2 * p.s.H], bias[3 * p.s.H]};
}

// The sums of a cell's gates but for the bias and whatever of the recurrent product is not in them.
template <typename S>
__device__ CellGates<S> sums_of(const Forward& p, const Step& at, int b, int j) {
  const Sizes& s = p.s;
  const S* sums = static_cast<const S*>(p.gates) + in_row(by_chunk(s, at, b), 4 * s.H, j);
  return {sums[0], sums[s.H], sums[2 * s.H], sums[3 * s.H]};
}

template <typename S>
__device__ S c_of(const Forward& p, const Step& at, int b, int j) {
  return static_cast<const S*>(p.c)[in_row(by_chunk(p.s, at, b), p.s.H, j)];
}

// A cell after a step.
template <typename S>
struct Done {
  CellGates<S> gates;
  S h, c;
};

// A step of a cell from c. more: what the sums lack, but for the bias.
template <typename V, typename S>
__device__ Done<S> take(const CellGates<S>& sums, S c, const CellGates<S>& bias,
                        const CellGates<S>& more) {
  Done<S> done{{sums.i + bias.i + more.i, sums.f + bias.f + more.f, sums.g + bias.g + more.g,
                sums.o + bias.o + more.o},
               0,
               c};
  done.h = cell_forward<Math<V>>(done.gates, done.c);
  return done;
}

// What is kept of a step: the gates, the output, the state at a chunk's end.
template <typename V, typename S>
__device__ void keep(const Forward& p, const Step& at, int b, int j, const Done<S>& done) {
  const Sizes& s = p.s;
  const int row = by_chunk(s, at, b);
  const auto& [gates, h, c] = done;
  S* kept = static_cast<S*>(p.gates) + in_row(row, 4 * s.H, j);
  kept[0] = gates.i;
  kept[s.H] = gates.f;
  kept[2 * s.H] = gates.g;
  kept[3 * s.H] = gates.o;
  static_cast<V*>(p.output)[in_row(p.output_by_chunk ? row : row_of(s, at.t, b), s.H, j)] =
      narrow<V>(h);
  if (at.k + 1 == steps_of(s, at.n)) {
    S* sent = static_cast<S*>(p.sent) + in_row(row_of(s, at.n, b), s.S, of_state(p, j));
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
__device__ StateGradient<S> came_back(const Backward& p, int t, int b, S dh, S dc) {
  if (p.reset && p.reset[row_of(p.s, t, b)]) return {0, 0};
  return {dh, dc};
}

// They are the probe's of step t, where every step has one.
template <typename S>
__device__ void keep_step(const Backward& p, int t, int b, int j, const StateGradient<S>& back) {
  const Sizes& s = p.s;
  if (p.grad_probe && p.probe_every_step) {
    S* to = static_cast<S*>(p.grad_probe) + in_row(row_of(s, t, b), s.S, of_state(p, j));
    to[0] = back.h;
    to[s.H] = back.c;
  }
}

// What step k of a cell of chunk n was.
template <typename S>
struct Was {
  CellGates<S> gates;
  S c;
};

template <typename S>
__device__ Was<S> was(const Backward& p, int k, int n, int b, int j) {
  const Sizes& s = p.s;
  if (k >= steps_of(s, n)) return {};
  const int row = by_chunk(s, k, n, b);
  const S* kept = static_cast<const S*>(p.gates) + in_row(row, 4 * s.H, j);
  return {{kept[0], kept[s.H], kept[2 * s.H], kept[3 * s.H]},
          static_cast<const S*>(p.c)[in_row(row, s.H, j)]};
}

// The gradients of what it gave that do not come through step k + 1. c: of a chunk's last step alone.
template <typename V, typename S>
__device__ StateGradient<S> given(const Backward& p, int k, int n, int b, int j) {
  const Sizes& s = p.s;
  StateGradient<S> found{};
  if (k >= steps_of(s, n)) return found;
  if (p.grad_output) {
    const int row = row_of(s, n * static_cast<int>(s.K) + k, b);
    found.h += widen(static_cast<const V*>(p.grad_output)[in_row(row, s.H, j)]);
  }
  if (p.grad_above)
    found.h += static_cast<const S*>(p.grad_above)[in_row(by_chunk(s, k, n, b), s.H, j)];
  if (k + 1 == steps_of(s, n) && p.grad_sent) {
    const S* sent =
        static_cast<const S*>(p.grad_sent) + in_row(row_of(s, n, b), s.S, of_state(p, j));
    found.h += sent[0];
    found.c = sent[s.H];
  }
  return found;
}

// dc of cell j of row b of chunk n, on its way back.
template <typename S>
__device__ S dc_of(const Backward& p, int n, int b, int j) {
  return static_cast<const S*>(p.dc)[in_row(row_of(p.s, n, b), p.s.H, j)];
}

// A step of a cell on the way back.
template <typename S>
struct DoneBack {
  CellGates<S> d;
  S dc;                   // what goes back from it
  StateGradient<S> back;  // what came back from step k + 1
};

// Step k of row b of chunk n. product, dc: d of step k + 1 times w_hh, and what came back to c from it,
// where the chunk has one.
template <typename S>
__device__ DoneBack<S> take_back(const Backward& p, int k, int n, int b,
                                 const CellSlopes<S>& slopes, const StateGradient<S>& given,
                                 S product, S dc) {
  const int steps = steps_of(p.s, n);
  if (k >= steps) return {};
  DoneBack<S> done{{}, given.c, {}};
  if (k + 1 < steps) {
    done.back = came_back(p, n * static_cast<int>(p.s.K) + k + 1, b, product, dc);
    done.dc = done.back.c;
  }
  done.d = cell_backward(slopes, given.h + done.back.h, done.dc);
  return done;
}

template <typename V>
__device__ V* d_of(const Backward& p, int k, int n, int b, int j) {
  return static_cast<V*>(p.d) + in_row(by_chunk(p.s, k, n, b), 4 * p.s.H, j);
}

// What is kept of step k: dc, and the gradient at the probe of step k + 1.
template <typename S>
__device__ void keep_back(const Backward& p, int k, int n, int b, int j, const DoneBack<S>& done) {
  const Sizes& s = p.s;
  const int steps = steps_of(s, n);
  if (k >= steps) return;
  if (k + 1 < steps) keep_step(p, n * static_cast<int>(s.K) + k + 1, b, j, done.back);
  static_cast<S*>(p.dc)[in_row(row_of(s, n, b), s.H, j)] = done.dc;
}

// The gradients of the state that chunk n starts from, for cell j of row b.
template <typename S>
__device__ void leave(const Backward& p, int n, int b, int j, S dh, S dc) {
  const Sizes& s = p.s;
  const auto back = came_back(p, n * static_cast<int>(s.K), b, dh, dc);
  keep_step(p, n * static_cast<int>(s.K), b, j, back);
  if (p.grad_probe && !p.probe_every_step) {
    S* to = static_cast<S*>(p.grad_probe) + in_row(row_of(s, n, b), s.S, of_state(p, j));
    to[0] = back.h;
    to[s.H] = back.c;
  }
  if (p.grad_state && n == 0) {
    S* to = static_cast<S*>(p.grad_state) + in_row(b, s.S, of_state(p, j));
    to[0] = back.h;
    to[s.H] = back.c;
  }
}

}  // namespace dnirnn::cuda
