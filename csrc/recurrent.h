// One layer of plain recurrent cells or of gated units: the sizes of a call and the checks of its
// arguments, for every device.
//
// Letters: T steps, B batch, I input, H hidden, G gates (1 plain, 3 gated units: r, z, n).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <tuple>

namespace dnirnn {

struct UnitSizes {
  int64_t T, B, I, H, G;
};

// (output, and the history of gated units, else empty)
using UnitForwardResult = std::tuple<at::Tensor, at::Tensor>;
// (grad_x, grad_h, grad_w_ih, grad_w_hh, grad_b_ih, grad_b_hh); grad_x is empty where not asked for.
using UnitBackwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

inline UnitSizes unit_sizes(const at::Tensor& x, const at::Tensor& h, const at::Tensor& w_ih,
                            const at::Tensor& w_hh, const at::Tensor& b_ih, const at::Tensor& b_hh,
                            bool gated) {
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(0) > 0 && x.size(1) > 0,
                    "x must be [T, B, I] with T and B at least 1; got ", x.sizes());
  TORCH_CHECK_VALUE(w_hh.dim() == 2, "w_hh must be [G H, H]; got ", w_hh.sizes());
  const UnitSizes s{x.size(0), x.size(1), x.size(2), w_hh.size(1), gated ? 3 : 1};
  const auto check = [&](const char* name, const at::Tensor& tensor, at::IntArrayRef sizes) {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be ", sizes, "; got ", tensor.sizes());
    TORCH_CHECK_TYPE(tensor.scalar_type() == x.scalar_type(), name, " is ", tensor.scalar_type(),
                     ", x is ", x.scalar_type(), ": they must have one dtype");
    TORCH_CHECK_VALUE(tensor.device() == x.device(), name, " is on ", tensor.device(), ", x on ",
                      x.device(), ": they must be on one device");
  };
  check("h", h, {s.B, s.H});
  check("w_ih", w_ih, {s.G * s.H, s.I});
  check("w_hh", w_hh, {s.G * s.H, s.H});
  check("b_ih", b_ih, {s.G * s.H});
  check("b_hh", b_hh, {s.G * s.H});
  return s;
}

}  // namespace dnirnn
