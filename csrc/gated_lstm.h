// One LSTM layer with options: the checks of a call's arguments, for every device.
#pragma once

#include <tuple>
#include <vector>

#include "sizes.h"

namespace dnirnn {

// What the operator may be given besides its weights: `norm` is gain [4 H], gain_c [H] and bias_c
// [H], or empty; the others are [T or 1, B or 1, H or 1].
struct GatedOptions {
  at::TensorList norm;
  const std::optional<at::Tensor>&open_h, &open_c, &factor;
};

// (output, sent, and the histories h, c, gates, normed, scales)
using GatedForwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// (grad_x, grad_state, grad_probe, grad_weights, grad_norm, grad_open_h, grad_open_c), each empty
// where it is not asked for.
using GatedBackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>,
                                       std::vector<at::Tensor>, at::Tensor, at::Tensor>;

inline void check_options(const Sizes& s, const at::Tensor& x, const GatedOptions& with) {
  const auto type = state_type(x.scalar_type());
  const auto check = [&](const char* name, const at::Tensor& tensor) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == type, name, " must be ", type, " for an x of ",
                     x.scalar_type(), "; got ", tensor.scalar_type());
    TORCH_CHECK_VALUE(tensor.device() == x.device(), name, " is on ", tensor.device(), ", x on ",
                      x.device(), ": they must be on one device");
  };
  TORCH_CHECK_VALUE(with.norm.empty() || with.norm.size() == 3,
                    "norm must be gain, gain_c, bias_c, or empty; got ", with.norm.size(),
                    " tensors");
  for (size_t i = 0; i < with.norm.size(); i++) {
    const char* name = i == 0 ? "norm[0] (gain)" : i == 1 ? "norm[1] (gain_c)" : "norm[2] (bias_c)";
    check(name, with.norm[i]);
    TORCH_CHECK_VALUE(with.norm[i].dim() == 1 && with.norm[i].size(0) == (i == 0 ? 4 : 1) * s.H,
                      name, " must be [", (i == 0 ? 4 : 1) * s.H, "]; got ", with.norm[i].sizes());
  }
  const auto check_gate = [&](const char* name, const std::optional<at::Tensor>& gate) {
    if (!gate) return;
    check(name, *gate);
    const int64_t sizes[] = {s.T, s.B, s.H};
    bool fits = gate->dim() == 3;
    for (int64_t i = 0; fits && i < 3; i++) fits = gate->size(i) == 1 || gate->size(i) == sizes[i];
    TORCH_CHECK_VALUE(fits, name, " must be [", s.T, " or 1, ", s.B, " or 1, ", s.H, " or 1]; got ",
                      gate->sizes());
  };
  check_gate("open_h", with.open_h);
  check_gate("open_c", with.open_c);
  check_gate("factor", with.factor);
}

}  // namespace dnirnn
