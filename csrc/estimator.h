// The estimator's two computations, and the checks of their arguments.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <string>

namespace dnirnn {

// estimator: W_1, b_1, ..., W_D, b_D of an MLP from `size` to `size`, with ReLU between the layers.
inline void check_estimator(at::TensorList estimator, int64_t size) {
  TORCH_CHECK_VALUE(!estimator.empty() && estimator.size() % 2 == 0,
                    "estimator must be W and b of each layer; got ", estimator.size(), " tensors");
  int64_t width = size;
  for (size_t i = 0; i < estimator.size(); i += 2) {
    const at::Tensor &w = estimator[i], &b = estimator[i + 1];
    const bool last = i + 2 == estimator.size();
    TORCH_CHECK_VALUE(w.dim() == 2 && w.size(1) == width && (!last || w.size(0) == size),
                      "estimator[", i, "] must be [", last ? std::to_string(size) : "any", ", ",
                      width, "]; got ", w.sizes());
    width = w.size(0);
    TORCH_CHECK_VALUE(b.dim() == 1 && b.size(0) == width, "estimator[", i + 1, "] must be [", width,
                      "]; got ", b.sizes());
  }
}

inline void check_regression(const at::Tensor& entered, const at::Tensor& target,
                             at::TensorList estimator) {
  TORCH_CHECK_VALUE(entered.dim() == 2 && entered.size(0) > 0 && entered.sizes() == target.sizes(),
                    "entered and target must be [R, S] with R at least 1; got ", entered.sizes(),
                    " and ", target.sizes());
  TORCH_CHECK_TYPE(entered.scalar_type() == at::kFloat || entered.scalar_type() == at::kDouble,
                   "entered must be float32 or float64; got ", entered.scalar_type());
  check_estimator(estimator, entered.size(1));
}

// scale * MLP(state), in the state's dtype, float32 or float64.
namespace cpu {
at::Tensor predict(const at::Tensor& state, at::TensorList estimator, double scale);
}
namespace cuda {
at::Tensor predict(const at::Tensor& state, at::TensorList estimator, double scale);
}
}  // namespace dnirnn
