// From a Type to the types V and S of a kernel.
#pragma once

#include "cuda/device.h"
#include "cuda/lstm.h"

namespace dnirnn::cuda {

// call(V{}, S{})
template <typename Call>
void with_type(Type type, Call call) {
  switch (type) {
    case Type::kFloat:
      return call(float{}, float{});
    case Type::kDouble:
      return call(double{}, double{});
    case Type::kBFloat16:
      return call(BFloat16{}, float{});
    case Type::kHalf:
      return call(Half{}, float{});
  }
}

}  // namespace dnirnn::cuda
