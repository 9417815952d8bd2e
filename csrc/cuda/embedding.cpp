// The gradient of an embedding of few symbols (sums.cu).
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include "cuda/context.h"
#include "cuda/sums.h"
#include "cuda/tensors.h"

namespace dnirnn::cuda {
namespace {

using at::Tensor;

Tensor embedding_backward(const Tensor& gradient, const Tensor& symbols, int64_t count) {
  TORCH_CHECK_VALUE(
      gradient.dim() > 0 && symbols.sizes() == gradient.sizes().slice(0, gradient.dim() - 1),
      "gradient must be [..., W] for symbols [...]; got ", gradient.sizes(), " and ",
      symbols.sizes());
  TORCH_CHECK_TYPE(symbols.scalar_type() == at::kLong, "symbols must be int64; got ",
                   symbols.scalar_type());
  TORCH_CHECK_VALUE(count >= 0, "count must be at least 0; got ", count);
  const Type type = type_of(gradient, "gradient");
  const c10::DeviceGuard device(gradient.device());
  const Tensor rows = gradient.contiguous(), of = symbols.contiguous();
  const int64_t width = gradient.size(-1);
  Tensor sums = at::empty({count, width}, gradient.options());
  sum_by_symbol({type, rows.const_data_ptr(), of.const_data_ptr<int64_t>(), sums.mutable_data_ptr(),
                 of.numel(), width, count},
                current_stream());
  check_launch();
  return sums;
}

}  // namespace
}  // namespace dnirnn::cuda

TORCH_LIBRARY_FRAGMENT(dnirnn, m) {
  m.def("embedding_backward(Tensor gradient, Tensor symbols, int count) -> Tensor");
}

TORCH_LIBRARY_IMPL(dnirnn, DNIRNN_DEVICE, m) {
  m.impl("embedding_backward", &dnirnn::cuda::embedding_backward);
}
