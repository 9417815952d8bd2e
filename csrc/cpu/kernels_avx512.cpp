// The vector path for AVX-512 CPUs.
#if defined(__x86_64__)

#include <cstdint>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif

#define PATH avx512
#define NAME "AVX-512"
#define BYTES 64
#define ROWS 6  // of a tile: ROWS * 4 accumulators and 4 vectors of the panel fit the registers
#define WEIGHT_ROWS 8  // rows of a tile of a weight gradient: WEIGHT_ROWS * 3 accumulators
#include "cpu/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
