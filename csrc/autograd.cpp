// The autograd formula of tbptt, for every device: in C++, because a step of a small network
// takes less time than the same formula registered from Python.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "calls.h"

namespace dnirnn {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

OptionalTensor optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

struct Tbptt : torch::autograd::Function<Tbptt> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& state,
                               const OptionalTensor& probe, at::TensorList weights,
                               at::TensorList estimator, int64_t truncation, double scale,
                               const OptionalTensor& reset) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, sent, synthetic, h, c, gates, between] =
        tbptt_op().call(x, state, probe, weights, estimator, truncation, scale, reset);
    variable_list saved{x, h, c, gates, between, reset.value_or(Tensor())};
    saved.insert(saved.end(), weights.begin(), weights.end());
    ctx->save_for_backward(std::move(saved));
    ctx->mark_non_differentiable({synthetic, h, c, gates, between});
    ctx->set_materialize_grads(false);
    ctx->saved_data["truncation"] = truncation;
    ctx->saved_data["estimator"] = static_cast<int64_t>(estimator.size());
    ctx->saved_data["probe"] = probe && probe->requires_grad() ? probe->size(0) : int64_t(0);
    ctx->saved_data["with_probe"] = probe && probe->defined();
    return {output, sent, synthetic, h, c, gates, between};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    // One entry for each argument of forward, lists counted by their tensors.
    const variable_list saved = ctx->get_saved_variables();
    const at::TensorList weights = at::TensorList(saved).slice(6);
    const int64_t probe_rows = ctx->saved_data["probe"].toInt();
    // Asked for by this backward pass: the targets' passes want the probe's alone. The edges are
    // those of forward's tensors, an optional one's where it is there.
    const size_t first = ctx->saved_data["with_probe"].toBool() ? 3 : 2;
    bool with_grad_weights = false;
    for (size_t i = 0; i < weights.size(); i++)
      with_grad_weights |= ctx->needs_input_grad(first + i);
    const bool with_grad_x = ctx->needs_input_grad(0), with_grad_state = ctx->needs_input_grad(1);
    const size_t rest = ctx->saved_data["estimator"].toInt() + 3;  // and truncation, scale, reset
    variable_list result(3 + weights.size() + rest);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    auto [grad_x, grad_state, grad_probe, grad_weights] = tbptt_backward_op().call(
        optional(grads[0]), optional(grads[1]), saved[0], saved[1], saved[2], saved[3], saved[4],
        weights, optional(saved[5]), ctx->saved_data["truncation"].toInt(), probe_rows, with_grad_x,
        with_grad_state, with_grad_weights);
    if (with_grad_x) result[0] = grad_x;
    if (with_grad_state) result[1] = grad_state;
    if (probe_rows) result[2] = grad_probe;
    std::move(grad_weights.begin(), grad_weights.end(), result.begin() + 3);
    return result;
  }
};

ForwardResult tbptt(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                    at::TensorList weights, at::TensorList estimator, int64_t truncation,
                    double scale, const OptionalTensor& reset) {
  if (!at::GradMode::is_enabled()) {
    at::AutoDispatchBelowADInplaceOrView below;
    return tbptt_op().call(x, state, probe, weights, estimator, truncation, scale, reset);
  }
  const variable_list out =
      Tbptt::apply(x, state, probe, weights, estimator, truncation, scale, reset);
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

BackwardResult tbptt_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_sent,
                              const Tensor& x, const Tensor& h, const Tensor& c,
                              const Tensor& gates, const Tensor& between, at::TensorList weights,
                              const OptionalTensor& reset, int64_t truncation, int64_t probe_rows,
                              bool with_grad_x, bool with_grad_state, bool with_grad_weights) {
  TORCH_CHECK(!torch::autograd::compute_requires_grad(grad_output.value_or(Tensor()),
                                                      grad_sent.value_or(Tensor()), x, h, c, gates,
                                                      between, weights),
              "dnirnn::tbptt has no second derivative: call backward without "
              "create_graph=True, or use dnirnn.FromTorch of torch's module");
  at::AutoDispatchBelowADInplaceOrView below;
  return tbptt_backward_op().call(grad_output, grad_sent, x, h, c, gates, between, weights, reset,
                                  truncation, probe_rows, with_grad_x, with_grad_state,
                                  with_grad_weights);
}

}  // namespace
}  // namespace dnirnn

TORCH_LIBRARY_IMPL(dnirnn, Autograd, m) {
  m.impl("tbptt", &dnirnn::tbptt);
  m.impl("tbptt_backward", &dnirnn::tbptt_backward);
}
