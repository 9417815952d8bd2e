// The masks of dnirnn.Masks on the CPU: Python's formula, a unit at a time.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include "cpu/scratch.h"

namespace dnirnn::cpu {
namespace {

using at::Tensor;

// The constants are dnirnn/masks.py's, as unsigned numbers.
constexpr uint64_t kStep = 0x9E3779B97F4A7C15, kRow = 0x5851F42D4C957F2D,
                   kUnit = 0x2545F4914F6CDD1D;

inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

Tensor masks(const Tensor& t, const Tensor& seed, int64_t size, int64_t threshold) {
  TORCH_CHECK_VALUE(t.dim() == 2 && t.scalar_type() == at::kLong, "t must be int64 [T, B]; got ",
                    t.scalar_type(), " ", t.sizes());
  TORCH_CHECK_VALUE(seed.numel() == 1 && seed.scalar_type() == at::kLong,
                    "seed must be one int64; got ", seed.scalar_type(), " ", seed.sizes());
  const Tensor times = t.contiguous();
  const Tensor kept = empty({t.size(0), t.size(1), size}, t.options().dtype(at::kBool));
  const int64_t *of = times.const_data_ptr<int64_t>(), batch = t.size(1);
  const uint64_t from = *seed.const_data_ptr<int64_t>();
  const auto least = static_cast<uint64_t>(threshold);
  bool* to = kept.mutable_data_ptr<bool>();
  at::parallel_for(0, t.numel(), 1 + 16384 / (size + 1), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const uint64_t row = mixed(of[i] * kStep + (i % batch) * kRow + from);
      for (int64_t j = 0; j < size; j++)
        to[i * size + j] = (mixed(row + j * kUnit) >> 32 & 0x7FFFFFFF) >= least;
    }
  });
  return kept;
}

}  // namespace
}  // namespace dnirnn::cpu

TORCH_LIBRARY_IMPL(dnirnn, CPU, m) { m.impl("masks", &dnirnn::cpu::masks); }
