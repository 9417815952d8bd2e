// The vector path for AVX2 CPUs.
#if defined(__x86_64__)

#include <cstdint>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define PATH avx2
#define NAME "AVX2"
#define BYTES 32
#define ROWS 2  // of a tile: ROWS * 4 accumulators and 4 vectors of the panel fit the registers
#define WEIGHT_ROWS 4  // rows of a tile of a weight gradient: WEIGHT_ROWS * 3 accumulators
#include "cpu/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
