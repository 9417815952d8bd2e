// From a tensor to what the kernels are given.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "cuda/lstm.h"

namespace dnirnn::cuda {

inline Type type_of(const at::Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return Type::kFloat;
    case at::kDouble:
      return Type::kDouble;
    case at::kBFloat16:
      return Type::kBFloat16;
    case at::kHalf:
      return Type::kHalf;
    default:
      C10_THROW_ERROR(TypeError,
                      c10::str(name, " must be float32, float64, bfloat16 or float16; got ",
                               tensor.scalar_type()));
  }
}

}  // namespace dnirnn::cuda
