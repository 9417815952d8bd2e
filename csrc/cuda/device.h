// What the kernels use of CUDA; no torch. tests/cuda_on_host has a header of the same name that runs
// them on the host, thread by thread: what a kernel needs of the device goes through here.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace dnirnn::cuda {

using BFloat16 = __nv_bfloat16;
using Half = __half;

__device__ inline float widen(float value) { return value; }
__device__ inline double widen(double value) { return value; }
__device__ inline float widen(BFloat16 value) { return __bfloat162float(value); }
__device__ inline float widen(Half value) { return __half2float(value); }

// value as a V, rounded to the nearest.
template <typename V, typename S>
__device__ inline V narrow(S value) {
  if constexpr (std::is_same_v<V, BFloat16>)
    return __float2bfloat16_rn(value);
  else if constexpr (std::is_same_v<V, Half>)
    return __float2half_rn(value);
  else
    return value;
}

template <typename S>
struct Math;
template <>
struct Math<float> {
  __device__ static float sigmoid(float x) { return 1 / (1 + expf(-x)); }
  __device__ static float tanh(float x) { return tanhf(x); }
};
template <>
struct Math<double> {
  __device__ static double sigmoid(double x) { return 1 / (1 + exp(-x)); }
  __device__ static double tanh(double x) { return ::tanh(x); }
};

// This thread's place in a kernel that was started by for_each.
__device__ inline int64_t index() { return blockIdx.x * int64_t(blockDim.x) + threadIdx.x; }

// Starts kernel(arguments...) on at least `count` threads that do not wait for each other.
template <typename... Parameters, typename... Arguments>
void for_each(int64_t count, CUstream_st* stream, void (*kernel)(Parameters...),
              Arguments... arguments) {
  constexpr int kThreads = 256;
  const auto blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  kernel<<<blocks, kThreads, 0, stream>>>(arguments...);
}

}  // namespace dnirnn::cuda
