// The sizes of one call of the operator, for the host and the device.
//
// Letters: T steps, B batch, I input, H hidden, G gates (4 of an LSTM, 3 of a GRU, 1 of a plain layer),
// L layers, S state (2 L H of an LSTM, else L H), N chunks, K steps a chunk (the last may be shorter).
#pragma once

#include <cstdint>

#include "inline.h"

namespace dnirnn {

struct Sizes {
  int64_t T, B, I, H, G, L, S, N, K;

  // Steps of chunk n.
  DNIRNN_INLINE int64_t steps(int64_t n) const { return n + 1 < N ? K : T - (N - 1) * K; }
  // Chunks that have a step k: all, or all but the last.
  DNIRNN_INLINE int64_t chunks(int64_t k) const { return k < steps(N - 1) ? N : N - 1; }
  DNIRNN_INLINE int64_t input(int64_t layer) const { return layer == 0 ? I : H; }
};

}  // namespace dnirnn
