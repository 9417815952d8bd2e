// Stands for csrc/cuda/context.h: the GPU's drivers on tensors of the CPU.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include "cuda/device.h"

#define DNIRNN_DEVICE CPU

namespace dnirnn::cuda {

inline CUstream_st* current_stream() { return nullptr; }
inline void check_launch() {}

inline void make_unsent(const at::Tensor& tensor) {
  std::memset(tensor.mutable_data_ptr(), 0xff, tensor.nbytes());
}

// Poison first: a product overwrites, whatever was there.
inline void multiply(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  const auto sums = a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  out.fill_(NAN).copy_(at::mm(a.to(sums), b.to(sums)));
}

inline void add_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  const auto sums = a.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  out.add_(at::mm(a.to(sums), b.to(sums)));
}

struct Beside {
  Beside() {}
  ~Beside() {}
  template <typename Work>
  void run(Work work) {
    work();
  }
};

struct Tf32AsInTorchLstm {
  explicit Tf32AsInTorchLstm(at::ScalarType) {}
};

}  // namespace dnirnn::cuda

TORCH_LIBRARY_FRAGMENT(dnirnn, m) {
  m.def("grids_started() -> int", [] { return dnirnn::cuda::grids_started; });
  m.def("set_multiprocessors(int count) -> ()",
        [](int64_t count) { dnirnn::cuda::multiprocessors_there = count; });
}
