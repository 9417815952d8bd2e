// What the machine's matrix product can do at most: ATen's brgemm, alone, on packed blocks.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/extension.h>

#include <chrono>
#include <vector>

// GFLOP/s of `repeats` products of [rows, depth] by a weight of [depth, columns], packed in blocks
// of 32 columns; each thread has its share of the blocks, as in a recurrent product.
double brgemm_rate(int64_t rows, int64_t depth, int64_t columns, int64_t repeats) {
#if defined(CPUBLAS_BRGEMM_F32F32F32)
  const int64_t blocks = columns / 32;
  std::vector<float> a(rows * depth, 0.5f), b(depth * columns, 0.5f), c(rows * columns);
  const auto run = [&](int64_t times) {
    at::parallel_for(0, blocks, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = 0; i < times; i++) {
        for (int64_t j = first; j < last; j++) {
          at::native::cpublas::brgemm(rows, 32, depth, depth, 32, columns, false, a.data(),
                                      b.data() + j * depth * 32, c.data() + j * 32);
        }
      }
      at::native::cpublas::brgemm_release(false);
    });
  };
  run(1);
  const auto began = std::chrono::steady_clock::now();
  run(repeats);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - began;
  return 2e-9 * rows * depth * columns * repeats / took.count();
#else
  return 0;
#endif
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) { m.def("brgemm_rate", &brgemm_rate); }
