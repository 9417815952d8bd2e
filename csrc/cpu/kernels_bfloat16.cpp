// The kernels of bfloat16 for AVX-512 CPUs that multiply it themselves (AVX512_BF16).
#if defined(__x86_64__)

#include <immintrin.h>

#include <cstdint>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif

#define PATH avx512_bfloat16
#define NAME "AVX-512 BF16"
#define BYTES 64
#define BFLOAT16  // the table is of bfloat16 alone
#define ROWS 6    // of a tile: ROWS * 4 accumulators and 4 vectors of the panel fit the registers
#define WEIGHT_ROWS 8  // rows of a tile of a weight gradient: WEIGHT_ROWS * 3 accumulators
#include "cpu/kernels_impl.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif

#endif
