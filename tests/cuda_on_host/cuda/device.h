// Stands for csrc/cuda/device.h: the kernels as loops and fibers of the host, to find their bugs on
// a machine without a GPU.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline

struct CUstream_st;

namespace dnirnn::cuda {

struct BFloat16 {
  uint16_t bits;
};
using Half = _Float16;

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(Half value) { return value; }
inline float widen(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

template <typename V, typename S>
V narrow(S value) {
  if constexpr (std::is_same_v<V, BFloat16>) {
    const float single = value;
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    if (std::isnan(single)) return {0x7fff};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else {
    return static_cast<V>(value);
  }
}

template <typename S>
struct Math {
  static S sigmoid(S x) { return 1 / (1 + std::exp(-x)); }
  static S tanh(S x) { return std::tanh(x); }
};

inline thread_local int64_t current_index;
inline int64_t index() { return current_index; }

// Some threads more than asked for, as on the device; the last ones first.
template <typename... Parameters, typename... Arguments>
void for_each(int64_t count, CUstream_st*, void (*kernel)(Parameters...), Arguments... arguments) {
  for (int64_t i = count + 5; i-- > 0;) {
    current_index = i;
    kernel(arguments...);
  }
}

}  // namespace dnirnn::cuda
