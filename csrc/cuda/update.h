// The end of an update of a model's parameters in one kernel: the norms of the gradients, what they are
// clipped to, Adam's step, and the row of figures that the host reads later. No torch, no CUDA header.
#pragma once

#include <cstdint>

struct CUstream_st;

namespace dnirnn::cuda {

// How one of the two parts, the core's and the estimator's, is updated.
struct Rule {
  // Of each beta the logarithm and 1 - beta: in float32, 1 - beta would lose what it is about.
  float log1, log2, rest1, rest2, epsilon, decay;
  bool decoupled;           // AdamW's decay of weights, not Adam's
  float smallest, largest;  // of the gradient's norm; -1 and infinity for no bound
  const float* rate;        // the learning rate
};

struct Update {
  // As many as a kernel's arguments hold.
  static constexpr int kMost = 56;
  static constexpr int kThreads = 512, kChunk = 4 * kThreads;
  int of_core, tensors;  // those of the core, and all; the core's first
  float *parameter[kMost], *first[kMost], *second[kMost], *step[kMost];
  const float* gradient[kMost];
  int64_t size[kMost];
  int begins[kMost + 1];  // the first chunk of kChunk elements of each
  bool aligned[kMost];    // to 16 bytes, all of them
  Rule rules[2];
  const float *nats, *error;  // error: or null
  const float* ended;         // [state_size]: what becomes of the state
  float* state;
  int64_t state_size;
  double* figures;  // [capacity, 4]: nats, error, norms of the core's and the estimator's gradients
  int64_t* place;   // the row to write; moved on
  float* bad;       // 1 from the first update on whose nats or norms are not finite
  double* partial;  // [2, blocks]
  unsigned* arrived;  // two words a cache line apart, zero
};

int blocks_of(const Update& update);
void finish(const Update& update, CUstream_st* stream);

}  // namespace dnirnn::cuda
