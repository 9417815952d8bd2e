// The autograd formula of the recurrent operator, for every device.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "calls.h"

namespace dnirnn {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

UnitForwardResult call_forward(const Tensor& x, const Tensor& h, const Tensor& w_ih,
                               const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
                               bool gated) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dnirnn::recurrent", "")
          .typed<UnitForwardResult(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                   const Tensor&, const Tensor&, bool)>();
  return op.call(x, h, w_ih, w_hh, b_ih, b_hh, gated);
}

UnitBackwardResult call_backward(const Tensor& grad_output, const Tensor& x, const Tensor& h,
                                 const Tensor& output, const Tensor& gates, const Tensor& w_ih,
                                 const Tensor& w_hh, bool gated, bool with_grad_x) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dnirnn::recurrent_backward", "")
          .typed<UnitBackwardResult(const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                                    const Tensor&, const Tensor&, const Tensor&, bool, bool)>();
  return op.call(grad_output, x, h, output, gates, w_ih, w_hh, gated, with_grad_x);
}

namespace {

struct Recurrent : torch::autograd::Function<Recurrent> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& h,
                               const Tensor& w_ih, const Tensor& w_hh, const Tensor& b_ih,
                               const Tensor& b_hh, bool gated) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, gates] = call_forward(x, h, w_ih, w_hh, b_ih, b_hh, gated);
    ctx->save_for_backward({x, h, output, gates, w_ih, w_hh});
    ctx->mark_non_differentiable({gates});
    ctx->set_materialize_grads(false);
    ctx->saved_data["gated"] = gated;
    ctx->saved_data["grad_x"] = x.requires_grad();
    return {output, gates};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    variable_list result(7);
    if (!grads[0].defined()) return result;
    const variable_list saved = ctx->get_saved_variables();
    const bool with_grad_x = ctx->saved_data["grad_x"].toBool();
    auto [x, h, w_ih, w_hh, b_ih, b_hh] =
        call_backward(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5],
                      ctx->saved_data["gated"].toBool(), with_grad_x);
    if (with_grad_x) result[0] = x;
    result[1] = h, result[2] = w_ih, result[3] = w_hh, result[4] = b_ih, result[5] = b_hh;
    return result;
  }
};

UnitForwardResult recurrent(const Tensor& x, const Tensor& h, const Tensor& w_ih,
                            const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
                            bool gated) {
  const variable_list out = Recurrent::apply(x, h, w_ih, w_hh, b_ih, b_hh, gated);
  return {out[0], out[1]};
}

UnitBackwardResult recurrent_backward(const Tensor& grad_output, const Tensor& x, const Tensor& h,
                                      const Tensor& output, const Tensor& gates, const Tensor& w_ih,
                                      const Tensor& w_hh, bool gated, bool with_grad_x) {
  TORCH_CHECK(!torch::autograd::compute_requires_grad(grad_output, x, h, output, gates, w_ih, w_hh),
              "dnirnn::recurrent has no second derivative: call backward without "
              "create_graph=True, or use dnirnn.FromTorch(torch.nn.GRU(...))");
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad_output, x, h, output, gates, w_ih, w_hh, gated, with_grad_x);
}

}  // namespace
}  // namespace dnirnn

TORCH_LIBRARY_IMPL(dnirnn, Autograd, m) {
  m.impl("recurrent", &dnirnn::recurrent);
  m.impl("recurrent_backward", &dnirnn::recurrent_backward);
}
