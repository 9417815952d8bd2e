// One kernel for the end of an update. Each block has its chunks of the parameters, one after another:
// it sums their gradients' squares, waits for the others' sums, and takes the step of its chunks.
#include "cuda/update.h"

#include <algorithm>
#include <cmath>

#include "cuda/block_sum.h"
#include "cuda/device.h"

namespace dnirnn::cuda {
namespace {

constexpr int kBlocks = 2;  // a multiprocessor: one alone has too few loads under way
constexpr int kApart = 32;  // words between the two that are waited on: a cache line

// The tensor that chunk c belongs to, from `from` on.
__device__ int tensor_of(const Update& u, int chunk, int from) {
  while (u.begins[from + 1] <= chunk) from++;
  return from;
}

__device__ Four read(const float* from, int64_t at, int64_t size, bool aligned) {
  if (aligned && at + 4 <= size) return load<Four>(from + at);
  Four found{};
  for (int i = 0; i < 4; i++)
    if (at + i < size) found.of[i] = from[at + i];
  return found;
}

__device__ void write(float* to, int64_t at, int64_t size, bool aligned, const Four& value) {
  if (aligned && at + 4 <= size) {
    *reinterpret_cast<Four*>(to + at) = value;
    return;
  }
  for (int i = 0; i < 4; i++)
    if (at + i < size) to[at + i] = value.of[i];
}

// What a gradient of this norm is multiplied by.
__device__ float factor_of(const Rule& rule, float norm) {
  if (norm > rule.largest) return rule.largest / norm;
  return norm > 0 && norm < rule.smallest ? rule.smallest / norm : 1;
}

// Adam's step of one element (Kingma and Ba 2015; AdamW: Loshchilov and Hutter 2019).
__device__ void adam(const Rule& rule, float rate, float correction1, float correction2,
                     float gradient, float& parameter, float& first, float& second) {
  if (rule.decoupled)
    parameter -= rate * rule.decay * parameter;
  else
    gradient += rule.decay * parameter;
  first += rule.rest1 * (gradient - first);
  second += rule.rest2 * (gradient * gradient - second);
  parameter -= rate / correction1 * first / (sqrtf(second) / correction2 + rule.epsilon);
}

__global__ void __launch_bounds__(Update::kThreads, kBlocks)
    finish_kernel(const __grid_constant__ Update u, int blocks) {
  double* shared = reinterpret_cast<double*>(shared_memory());
  const int chunks = u.begins[u.tensors];

  double squares[2] = {};
  for (int chunk = block(), of = 0; chunk < chunks; chunk += blocks) {
    of = tensor_of(u, chunk, of);
    const int64_t at = int64_t(chunk - u.begins[of]) * Update::kChunk + 4 * thread();
    const Four gradient = read(u.gradient[of], at, u.size[of], u.aligned[of]);
    float sum = 0;
    for (float one : gradient.of) sum += one * one;
    squares[of >= u.of_core] += sum;
  }
  for (int part = 0; part < 2; part++) {
    const double sum = sum_over_block<Update::kThreads>(shared, squares[part]);
    if (thread() == 0) u.partial[part * blocks + block()] = sum;
  }
  arrive(u.arrived);
  wait_for(u.arrived, blocks);
  double norms[2];
  for (int part = 0; part < 2; part++) {
    double sum = 0;
    for (int i = thread(); i < blocks; i += Update::kThreads)
      sum += load_arrived(u.partial + part * blocks + i);
    norms[part] = sqrt(sum_over_block<Update::kThreads>(shared, sum));
  }

  const double total = *u.nats + norms[0] + norms[1];
  const bool good = *u.bad == 0 && total - total == 0;
  if (good) {
    for (int chunk = block(), of = 0; chunk < chunks; chunk += blocks) {
      of = tensor_of(u, chunk, of);
      const int part = of >= u.of_core;
      const Rule& rule = u.rules[part];
      const float factor = factor_of(rule, norms[part]), rate = *rule.rate;
      const float steps = *u.step[of] + 1;
      const float correction1 = -expm1f(steps * rule.log1);
      const float correction2 = sqrtf(-expm1f(steps * rule.log2));
      const int64_t at = int64_t(chunk - u.begins[of]) * Update::kChunk + 4 * thread(),
                    size = u.size[of];
      const bool aligned = u.aligned[of];
      const Four gradient = read(u.gradient[of], at, size, aligned);
      Four parameter = read(u.parameter[of], at, size, aligned);
      Four first = read(u.first[of], at, size, aligned),
           second = read(u.second[of], at, size, aligned);
      for (int i = 0; i < 4; i++)
        adam(rule, rate, correction1, correction2, factor * gradient.of[i], parameter.of[i],
             first.of[i], second.of[i]);
      write(u.parameter[of], at, size, aligned, parameter);
      write(u.first[of], at, size, aligned, first);
      write(u.second[of], at, size, aligned, second);
    }
    for (int64_t i = int64_t(block()) * Update::kThreads + thread(); i < u.state_size;
         i += int64_t(blocks) * Update::kThreads)
      u.state[i] = u.ended[i];
  }

  // The others have read the steps and whether all was well before.
  arrive(u.arrived + kApart);
  if (block() > 0) return;
  wait_for(u.arrived + kApart, blocks);
  if (good)
    for (int of = thread(); of < u.tensors; of += Update::kThreads) *u.step[of] += 1;
  if (thread() > 0) return;
  double* row = u.figures + 4 * *u.place;
  row[0] = *u.nats;
  row[1] = u.error ? *u.error : 0;
  row[2] = norms[0];
  row[3] = norms[1];
  *u.place += 1;
  if (!good) *u.bad = 1;
}

}  // namespace

int blocks_of(const Update& update) {
  return std::max(1, std::min(update.begins[update.tensors], kBlocks * multiprocessors()));
}

void finish(const Update& update, CUstream_st* stream) {
  const int blocks = blocks_of(update);
  start_together(blocks, Update::kThreads, Update::kThreads * sizeof(double), stream, finish_kernel,
                 update, blocks);
}

}  // namespace dnirnn::cuda
