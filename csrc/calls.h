// tbptt and its backward as C++ calls, through the dispatcher, for every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <tuple>
#include <vector>

namespace dnirnn {

// (output, sent, synthetic, h, c, gates, between)
using ForwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
// (grad_x, grad_state, grad_probe, grad_weights)
using BackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;

using ForwardSchema = ForwardResult(const at::Tensor& x, const at::Tensor& state,
                                    const std::optional<at::Tensor>& probe, at::TensorList weights,
                                    at::TensorList estimator, int64_t truncation, double scale,
                                    const std::optional<at::Tensor>& reset);
using BackwardSchema = BackwardResult(const std::optional<at::Tensor>& grad_output,
                                      const std::optional<at::Tensor>& grad_sent,
                                      const at::Tensor& x, const at::Tensor& h, const at::Tensor& c,
                                      const at::Tensor& gates, const at::Tensor& between,
                                      at::TensorList weights,
                                      const std::optional<at::Tensor>& reset, int64_t truncation,
                                      int64_t probe_rows, bool with_grad_x, bool with_grad_state,
                                      bool with_grad_weights);

// What their call(...) calls.
inline const c10::TypedOperatorHandle<ForwardSchema>& tbptt_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("dnirnn::tbptt", "").typed<ForwardSchema>();
  return op;
}
inline const c10::TypedOperatorHandle<BackwardSchema>& tbptt_backward_op() {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("dnirnn::tbptt_backward", "")
                             .typed<BackwardSchema>();
  return op;
}

}  // namespace dnirnn
