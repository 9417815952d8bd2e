// Sums over the threads of a block.
#pragma once

#include "cuda/device.h"

namespace dnirnn::cuda {

// The sum over a block's threads, known to all of them; always in one order. shared: [threads].
template <int threads>
__device__ double sum_over_block(double* shared, double value) {
  sync();
  shared[thread()] = value;
  for (int half = threads / 2; half > 0; half /= 2) {
    sync();
    if (thread() < half) shared[thread()] += shared[thread() + half];
  }
  sync();
  return shared[0];
}

}  // namespace dnirnn::cuda
