// Functions that the host and the device share.
#pragma once

#if defined(__CUDACC__)
#define DNIRNN_INLINE __host__ __device__ __forceinline__
#else
#define DNIRNN_INLINE inline __attribute__((always_inline))
#endif
