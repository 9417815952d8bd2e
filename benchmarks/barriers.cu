// What a wait of blocks for each other costs: through memory over the grid, and by cluster.
// nvcc -arch=sm_90 -o barriers benchmarks/barriers.cu && ./barriers
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <cstdio>
namespace cg = cooperative_groups;
__global__ void grid_wait(unsigned* arrived, int n, int groups) {
  unsigned* mine = arrived + (blockIdx.x % groups) * 32;
  unsigned per = gridDim.x / groups;
  for (int i = 1; i <= n; i++) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(mine, 1);
      while (*(volatile unsigned*)mine < per * i) {}
      __threadfence();
    }
    __syncthreads();
  }
}
__global__ void grid_wait2(unsigned* arrived, int n, int groups) {
  unsigned* mine = arrived + (blockIdx.x % groups) * 32;
  unsigned per = gridDim.x / groups;
  for (int i = 1; i <= n; i++) {
    __syncthreads();
    if (threadIdx.x == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" :: "l"(mine) : "memory");
      unsigned v;
      do { asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(mine) : "memory"); } while (v < per * i);
    }
    __syncthreads();
  }
}
__global__ void cluster_wait(int n) {
  for (int i = 0; i < n; i++) {
    asm volatile("barrier.cluster.arrive.release.aligned;\n barrier.cluster.wait.acquire.aligned;" ::: "memory");
  }
}
__global__ void empty() {}
template <typename F> float timed(F f) {
  cudaEvent_t a, b; cudaEventCreate(&a); cudaEventCreate(&b);
  f(); cudaDeviceSynchronize();
  cudaEventRecord(a); f(); cudaEventRecord(b); cudaEventSynchronize(b);
  float ms; cudaEventElapsedTime(&ms, a, b); return ms;
}
int main() {
  unsigned* w; cudaMalloc(&w, 1 << 20);
  int n = 2000;
  for (int threads : {128, 256, 512})
    for (int blocks : {32, 64, 128})
      for (int groups : {1, 4}) {
        float t[2];
        for (int k = 0; k < 2; k++) {
          auto f = [&] { cudaMemset(w, 0, 1 << 20); void* args[] = {&w, &n, (void*)&groups};
            cudaLaunchCooperativeKernel(k ? (void*)grid_wait2 : (void*)grid_wait, blocks, threads, args, 0, 0); };
          t[k] = timed(f);
        }
        printf("grid  %3d blocks %3d threads %d groups: fence+atomic %.3f us, release/acquire %.3f us\n", blocks, threads, groups, t[0] / n * 1e3, t[1] / n * 1e3);
      }
  for (int threads : {128, 256, 512})
    for (int size : {2, 4, 8, 16}) {
      cudaFuncSetAttribute(cluster_wait, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
      cudaLaunchConfig_t c = {}; c.gridDim = 128 / size * size; c.blockDim = threads;
      cudaLaunchAttribute at[1]; at[0].id = cudaLaunchAttributeClusterDimension; at[0].val.clusterDim = {(unsigned)size, 1, 1};
      c.attrs = at; c.numAttrs = 1;
      float t = timed([&] { cudaLaunchKernelEx(&c, cluster_wait, n); });
      printf("cluster of %2d, %3d threads: %.3f us (%s)\n", size, threads, t / n * 1e3, cudaGetErrorString(cudaGetLastError()));
    }
  float t = timed([&] { for (int i = 0; i < n; i++) empty<<<32, 256>>>(); });
  printf("launch %.3f us\n", t / n * 1e3);
}
