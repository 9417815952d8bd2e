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

// For values of type V.
template <typename V>
struct Math {
  // Of 16 bits: what these lose, some 1e-7 absolutely, is below what the state of float32 adds up to.
  __device__ static float sigmoid(float x) { return __fdividef(1, 1 + __expf(-x)); }
  __device__ static float tanh(float x) {
    const float e = __expf(-2 * fabsf(x));
    return copysignf(__fdividef(1 - e, 1 + e), x);
  }
};
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

// This thread's place in a kernel that was started by for_each, which asks for it before all else: such
// a kernel is begun while the one before it still runs, and waits here until that is done.
__device__ inline int index() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
#endif
  return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
}

// Blocks of threads that work together. Those of start_together, all of them running at once, may
// wait for each other.

__device__ inline int thread() { return threadIdx.x; }
__device__ inline int block() { return blockIdx.x; }
__device__ inline void sync() { __syncthreads(); }

__device__ inline float* shared_memory() {
  extern __shared__ float memory[];
  return memory;
}

// 16 bytes, aligned.
template <typename Vector>
__device__ Vector load(const void* from) {
  return *static_cast<const Vector*>(from);
}

// Before Ampere there is neither tf32, nor mma as below, nor the orders of memory: code for such a GPU has to compile, and is
// never started (has_mma).
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
#define DNIRNN_HAS_MMA 0
#else
#define DNIRNN_HAS_MMA 1
#endif

struct alignas(16) Four {
  float of[4];
};

// What other blocks write in this kernel travels in words of 4 bytes, each whole or not there yet: no
// order between words is promised, nor needed.
template <typename Vector>
__device__ Vector load_from_others(const void* from) {
  Vector found{};
#if DNIRNN_HAS_MMA
  asm volatile("ld.relaxed.gpu.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(found.word[0]), "=r"(found.word[1]), "=r"(found.word[2]), "=r"(found.word[3])
               : "l"(from));
#endif
  return found;
}

__device__ inline void store_for_others(void* to, uint32_t word) {
#if DNIRNN_HAS_MMA
  asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(word));
#endif
}

// What such a word is before (make_unsent): of two values of 16 bits or one of 32 not a number, in bits
// that no arithmetic gives.
constexpr uint32_t kUnsent = 0xffffffff;

// Bit i: the condition of thread i of the warp. All of them call it.
__device__ inline uint32_t which_of_warp(bool condition) {
  return __ballot_sync(0xffffffff, condition);
}

// Whether the condition holds in one of a warp's threads. All of them call it.
__device__ inline bool any_of_warp(bool condition) { return __any_sync(0xffffffff, condition); }

// What thread 2 i + 1 of a warp gives, to thread 2 i, and the other way round. All of them ask.
__device__ inline uint32_t of_neighbor(uint32_t given) {
  return __shfl_xor_sync(0xffffffff, given, 1);
}

// Clusters of blocks, each of which writes into the shared memory of the others.
constexpr int kCluster = 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define DNIRNN_HAS_CLUSTERS 0
#else
#define DNIRNN_HAS_CLUSTERS 1
#endif

__device__ inline int rank_in_cluster() {
  uint32_t rank = 0;
#if DNIRNN_HAS_CLUSTERS
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}

// Until all threads of the cluster are here; they see what was written before.
__device__ inline void sync_cluster() {
#if DNIRNN_HAS_CLUSTERS
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Four values to where `here` is in the shared memory of another block of the cluster.
__device__ inline void store_to(int rank, float* here, const Four& values) {
#if DNIRNN_HAS_CLUSTERS
  const auto mine = static_cast<uint32_t>(__cvta_generic_to_shared(here));
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(mine), "r"(rank));
  asm volatile("st.shared::cluster.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(there), "f"(values.of[0]),
               "f"(values.of[1]), "f"(values.of[2]), "f"(values.of[3])
               : "memory");
#endif
}

// A block is here once more: what its threads wrote before, whoever waits for it sees. arrived counts
// up from 0 in the course of a kernel.
__device__ inline void arrive(unsigned* arrived) {
  __syncthreads();
  if (threadIdx.x == 0) {
#if DNIRNN_HAS_MMA
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(arrived) : "memory");
#endif
  }
}

// What others wrote before they arrived: past the first cache, which does not know of it.
__device__ inline double load_arrived(const double* from) { return __ldcg(from); }

// Until so many have arrived.
__device__ inline void wait_for(const unsigned* arrived, unsigned expected) {
  if (threadIdx.x == 0) {
    unsigned here = 0;
    do {
#if DNIRNN_HAS_MMA
      asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(here) : "l"(arrived) : "memory");
#else
      here = expected;
#endif
    } while (here < expected);
  }
  __syncthreads();
}

// The float32 of these bits as tf32. Not to be taken out of a loop: there are no registers for it.
__device__ inline uint32_t as_tf32(uint32_t value) {
  uint32_t rounded = value;
#if DNIRNN_HAS_MMA
  asm volatile("cvt.rna.tf32.f32 %0, %1;" : "=r"(rounded) : "f"(__uint_as_float(value)));
#endif
  return rounded;
}

// What as_tf32 left off.
__device__ inline uint32_t rest_of(uint32_t value, uint32_t rounded) {
  return __float_as_uint(__uint_as_float(value) - __uint_as_float(rounded));
}

// sum [16, 8] += a [16, 16] b [16, 8], or over 8 columns of tf32, by all threads of a warp. Thread
// (g, q) has of a the rows g, g + 8, g, g + 8; of sum the columns 2 q and 2 q + 1 of rows g, g + 8.
template <typename V>
__device__ inline void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if DNIRNN_HAS_MMA
#define DNIRNN_MMA(name)                                                                          \
  asm("mma.sync.aligned." name " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])                                    \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<V, BFloat16>)
    DNIRNN_MMA("m16n8k16.row.col.f32.bf16.bf16.f32");
  else if constexpr (std::is_same_v<V, Half>)
    DNIRNN_MMA("m16n8k16.row.col.f32.f16.f16.f32");
  else
    DNIRNN_MMA("m16n8k8.row.col.f32.tf32.tf32.f32");
#undef DNIRNN_MMA
#endif
}

inline int attribute(cudaDeviceAttr name) {
  int device = 0, value = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&value, name, device);
  return value;
}

inline int multiprocessors() { return attribute(cudaDevAttrMultiProcessorCount); }
// Whether mma exists for bfloat16 and tf32.
inline bool has_mma() { return attribute(cudaDevAttrComputeCapabilityMajor) >= 8; }
inline bool has_clusters() { return attribute(cudaDevAttrComputeCapabilityMajor) >= 9; }

// Starts kernel(arguments...) on blocks that do not wait for each other.
template <typename... Parameters, typename... Arguments>
void start_blocks(int64_t blocks, int threads, size_t shared_bytes, CUstream_st* stream,
                  void (*kernel)(Parameters...), Arguments... arguments) {
  kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, stream>>>(arguments...);
}

// Starts kernel(arguments...) on blocks that all run at once, or not at all.
template <typename... Parameters, typename... Arguments>
void start_together(int64_t blocks, int threads, size_t shared_bytes, CUstream_st* stream,
                    void (*kernel)(Parameters...), Arguments... arguments) {
  void* pointers[] = {&arguments...};
  cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel),
                              dim3(static_cast<unsigned>(blocks)), dim3(threads), pointers,
                              shared_bytes, stream);
}

// Whether a kernel was compiled for GPUs of this version (80, 90) or later: what an earlier GPU's code,
// which the driver translates, leaves out.
template <typename... Parameters>
bool compiled_for(int version, void (*kernel)(Parameters...)) {
  cudaFuncAttributes found{};
  if (cudaFuncGetAttributes(&found, reinterpret_cast<const void*>(kernel)) == cudaSuccess)
    return found.ptxVersion >= version;
  cudaGetLastError();  // as of a GPU that there is no code for
  return false;
}

// Starts kernel(arguments...) on at least `count` threads that do not wait for each other.
template <typename... Parameters, typename... Arguments>
void for_each(int64_t count, CUstream_st* stream, void (*kernel)(Parameters...),
              Arguments... arguments) {
  constexpr int kThreads = 256;
  static const bool waits = compiled_for(90, kernel);  // as are all of them or none
  cudaLaunchAttribute early;
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>((count + kThreads - 1) / kThreads));
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = waits && has_clusters() ? 1 : 0;
  void* pointers[] = {&arguments...};
  cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), pointers);
}

// How many blocks run at once.
template <typename... Parameters>
int64_t blocks_at_once(int threads, size_t shared_bytes, void (*kernel)(Parameters...)) {
  int of_one = 0;
  if (!compiled_for(80, kernel)) return 0;
  if (cudaOccupancyMaxActiveBlocksPerMultiprocessor(&of_one, reinterpret_cast<const void*>(kernel),
                                                    threads, shared_bytes) != cudaSuccess)
    cudaGetLastError();
  return int64_t(of_one) * multiprocessors();
}

struct ClusterLaunch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2];
  ClusterLaunch(int64_t blocks, int threads, size_t shared_bytes, CUstream_st* stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {kCluster, 1, 1};
    attributes[1].id = cudaLaunchAttributeCooperative;
    attributes[1].val.cooperative = 1;
    config.gridDim = dim3(static_cast<unsigned>(blocks));
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream;
    config.attrs = attributes;
    config.numAttrs = 2;
  }
  ClusterLaunch(const ClusterLaunch&) = delete;
};

// How many clusters run at once.
template <typename... Parameters>
int64_t clusters_at_once(int threads, size_t shared_bytes, void (*kernel)(Parameters...)) {
  int clusters = 0;
  if (!compiled_for(90, kernel)) return 0;
  ClusterLaunch launch(kCluster, threads, shared_bytes, nullptr);
  launch.config.numAttrs = 1;
  if (cudaOccupancyMaxActiveClusters(&clusters, reinterpret_cast<const void*>(kernel),
                                     &launch.config) != cudaSuccess)
    cudaGetLastError();
  return clusters;
}

// The same in clusters.
template <typename... Parameters, typename... Arguments>
void start_in_clusters(int64_t blocks, int threads, size_t shared_bytes, CUstream_st* stream,
                       void (*kernel)(Parameters...), Arguments... arguments) {
  void* pointers[] = {&arguments...};
  ClusterLaunch launch(blocks, threads, shared_bytes, stream);
  cudaLaunchKernelExC(&launch.config, reinterpret_cast<const void*>(kernel), pointers);
}

}  // namespace dnirnn::cuda
