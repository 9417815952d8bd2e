// The autograd formula of gated_lstm, for every device.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "gated_lstm.h"

namespace dnirnn {
namespace {

using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

GatedForwardResult call_forward(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                                TensorList weights, TensorList norm, const OptionalTensor& open_h,
                                const OptionalTensor& open_c, const OptionalTensor& factor,
                                int64_t truncation, const OptionalTensor& reset) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dnirnn::gated_lstm", "")
          .typed<GatedForwardResult(const Tensor&, const Tensor&, const OptionalTensor&, TensorList,
                                    TensorList, const OptionalTensor&, const OptionalTensor&,
                                    const OptionalTensor&, int64_t, const OptionalTensor&)>();
  return op.call(x, state, probe, weights, norm, open_h, open_c, factor, truncation, reset);
}

GatedBackwardResult call_backward(const OptionalTensor& grad_output,
                                  const OptionalTensor& grad_sent, const Tensor& x, const Tensor& h,
                                  const Tensor& c, const Tensor& gates, const Tensor& normed,
                                  const Tensor& scales, TensorList weights, TensorList norm,
                                  const OptionalTensor& open_h, const OptionalTensor& open_c,
                                  const OptionalTensor& factor, const OptionalTensor& reset,
                                  int64_t truncation, bool with_grad_x, bool with_grad_state,
                                  bool with_grad_probe, bool with_grad_weights,
                                  bool with_grad_open_h, bool with_grad_open_c) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dnirnn::gated_lstm_backward", "")
          .typed<GatedBackwardResult(
              const OptionalTensor&, const OptionalTensor&, const Tensor&, const Tensor&,
              const Tensor&, const Tensor&, const Tensor&, const Tensor&, TensorList, TensorList,
              const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
              const OptionalTensor&, int64_t, bool, bool, bool, bool, bool, bool)>();
  return op.call(grad_output, grad_sent, x, h, c, gates, normed, scales, weights, norm, open_h,
                 open_c, factor, reset, truncation, with_grad_x, with_grad_state, with_grad_probe,
                 with_grad_weights, with_grad_open_h, with_grad_open_c);
}

struct GatedLstm : torch::autograd::Function<GatedLstm> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& state,
                               const OptionalTensor& probe, TensorList weights, TensorList norm,
                               const OptionalTensor& open_h, const OptionalTensor& open_c,
                               const OptionalTensor& factor, int64_t truncation,
                               const OptionalTensor& reset) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, sent, h, c, gates, normed, scales] =
        call_forward(x, state, probe, weights, norm, open_h, open_c, factor, truncation, reset);
    const auto present = [](const OptionalTensor& tensor) { return tensor.value_or(Tensor()); };
    variable_list saved{x,
                        h,
                        c,
                        gates,
                        normed,
                        scales,
                        present(open_h),
                        present(open_c),
                        present(factor),
                        present(reset)};
    saved.insert(saved.end(), weights.begin(), weights.end());
    saved.insert(saved.end(), norm.begin(), norm.end());
    ctx->save_for_backward(std::move(saved));
    ctx->mark_non_differentiable({h, c, gates, normed, scales});
    ctx->set_materialize_grads(false);
    ctx->saved_data["truncation"] = truncation;
    ctx->saved_data["probe"] = probe.has_value();
    return {output, sent, h, c, gates, normed, scales};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    constexpr size_t kept = 10, of_weights = 4;
    const variable_list saved = ctx->get_saved_variables();
    const TensorList weights = TensorList(saved).slice(kept, of_weights);
    const TensorList norm = TensorList(saved).slice(kept + of_weights);
    const OptionalTensor open_h = optional(saved[6]), open_c = optional(saved[7]);
    // The edges are those of forward's tensors, an optional one's where it is there.
    size_t edge = 0;
    const auto asked = [&](bool there) { return there && ctx->needs_input_grad(edge++); };
    const bool with_x = asked(true), with_state = asked(true);
    const bool with_probe = asked(ctx->saved_data["probe"].toBool());
    bool with_weights = false;
    for (size_t i = 0; i < of_weights + norm.size(); i++) with_weights |= asked(true);
    const bool with_open_h = asked(open_h.has_value()), with_open_c = asked(open_c.has_value());
    // One entry for each argument of forward, lists counted by their tensors.
    const size_t behind = 3 + of_weights + norm.size();
    variable_list result(behind + 5);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    auto [grad_x, grad_state, grad_probe, grad_weights, grad_norm, grad_open_h, grad_open_c] =
        call_backward(optional(grads[0]), optional(grads[1]), saved[0], saved[1], saved[2],
                      saved[3], saved[4], saved[5], weights, norm, open_h, open_c,
                      optional(saved[8]), optional(saved[9]), ctx->saved_data["truncation"].toInt(),
                      with_x, with_state, with_probe, with_weights, with_open_h, with_open_c);
    if (with_x) result[0] = grad_x;
    if (with_state) result[1] = grad_state;
    if (with_probe) result[2] = grad_probe;
    std::move(grad_weights.begin(), grad_weights.end(), result.begin() + 3);
    std::move(grad_norm.begin(), grad_norm.end(), result.begin() + 3 + of_weights);
    if (with_open_h) result[behind] = grad_open_h;
    if (with_open_c) result[behind + 1] = grad_open_c;
    return result;
  }
};

GatedForwardResult gated_lstm(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                              TensorList weights, TensorList norm, const OptionalTensor& open_h,
                              const OptionalTensor& open_c, const OptionalTensor& factor,
                              int64_t truncation, const OptionalTensor& reset) {
  if (!at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_forward(x, state, probe, weights, norm, open_h, open_c, factor, truncation, reset);
  }
  TORCH_CHECK_VALUE(!factor || !factor->requires_grad(),
                    "factor must not require a gradient: gated_lstm has none for it");
  const variable_list out =
      GatedLstm::apply(x, state, probe, weights, norm, open_h, open_c, factor, truncation, reset);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

GatedBackwardResult gated_lstm_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_sent, const Tensor& x,
    const Tensor& h, const Tensor& c, const Tensor& gates, const Tensor& normed,
    const Tensor& scales, TensorList weights, TensorList norm, const OptionalTensor& open_h,
    const OptionalTensor& open_c, const OptionalTensor& factor, const OptionalTensor& reset,
    int64_t truncation, bool with_grad_x, bool with_grad_state, bool with_grad_probe,
    bool with_grad_weights, bool with_grad_open_h, bool with_grad_open_c) {
  TORCH_CHECK(
      !torch::autograd::compute_requires_grad(
          grad_output.value_or(Tensor()), grad_sent.value_or(Tensor()), x, h, c, gates, normed,
          scales, weights, norm, open_h.value_or(Tensor()), open_c.value_or(Tensor())),
      "dnirnn::gated_lstm has no second derivative: call backward without "
      "create_graph=True");
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad_output, grad_sent, x, h, c, gates, normed, scales, weights, norm,
                       open_h, open_c, factor, reset, truncation, with_grad_x, with_grad_state,
                       with_grad_probe, with_grad_weights, with_grad_open_h, with_grad_open_c);
}

}  // namespace
}  // namespace dnirnn

TORCH_LIBRARY_IMPL(dnirnn, Autograd, m) {
  m.impl("gated_lstm", &dnirnn::gated_lstm);
  m.impl("gated_lstm_backward", &dnirnn::gated_lstm_backward);
}
