// The autograd formula of lstm_cells, for every device.
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include "lstm_cells.h"

namespace dnirnn {
namespace {

using at::IntArrayRef;
using at::Tensor;
using at::TensorList;
using OptionalTensor = std::optional<Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

CellsForwardResult call_forward(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                                IntArrayRef cells, TensorList weights, TensorList norm,
                                TensorList masks, TensorList skip, const OptionalTensor& slope,
                                int64_t truncation, const OptionalTensor& reset, bool keep) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dnirnn::lstm_cells", "")
          .typed<CellsForwardResult(const Tensor&, const Tensor&, const OptionalTensor&,
                                    IntArrayRef, TensorList, TensorList, TensorList, TensorList,
                                    const OptionalTensor&, int64_t, const OptionalTensor&, bool)>();
  return op.call(x, state, probe, cells, weights, norm, masks, skip, slope, truncation, reset,
                 keep);
}

CellsBackwardResult call_backward(const OptionalTensor& grad_output,
                                  const OptionalTensor& grad_sent, const Tensor& x,
                                  const Tensor& kept, IntArrayRef cells, TensorList weights,
                                  TensorList norm, TensorList masks, TensorList skip,
                                  const OptionalTensor& slope, const OptionalTensor& reset,
                                  int64_t truncation, bool with_grad_x, bool with_grad_state,
                                  bool with_grad_probe, bool with_grad_weights) {
  static const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("dnirnn::lstm_cells_backward", "")
          .typed<CellsBackwardResult(const OptionalTensor&, const OptionalTensor&, const Tensor&,
                                     const Tensor&, IntArrayRef, TensorList, TensorList, TensorList,
                                     TensorList, const OptionalTensor&, const OptionalTensor&,
                                     int64_t, bool, bool, bool, bool)>();
  return op.call(grad_output, grad_sent, x, kept, cells, weights, norm, masks, skip, slope, reset,
                 truncation, with_grad_x, with_grad_state, with_grad_probe, with_grad_weights);
}

struct LstmCells : torch::autograd::Function<LstmCells> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& state,
                               const OptionalTensor& probe, IntArrayRef cells, TensorList weights,
                               TensorList norm, TensorList masks, TensorList skip,
                               const OptionalTensor& slope, int64_t truncation,
                               const OptionalTensor& reset) {
    at::AutoDispatchBelowADInplaceOrView below;
    auto [output, sent, kept] = call_forward(x, state, probe, cells, weights, norm, masks, skip,
                                             slope, truncation, reset, true);
    variable_list saved{x, kept, reset.value_or(Tensor()), slope.value_or(Tensor())};
    for (const TensorList list : {weights, norm, skip, masks})
      saved.insert(saved.end(), list.begin(), list.end());
    ctx->save_for_backward(std::move(saved));
    ctx->mark_non_differentiable({kept});
    ctx->set_materialize_grads(false);
    ctx->saved_data["cells"] = cells.vec();
    ctx->saved_data["counts"] =
        std::vector<int64_t>{static_cast<int64_t>(weights.size()),
                             static_cast<int64_t>(norm.size()), static_cast<int64_t>(skip.size())};
    ctx->saved_data["truncation"] = truncation;
    ctx->saved_data["probe"] = probe.has_value();
    return {output, sent, kept};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto counts = ctx->saved_data["counts"].toIntVector();
    const TensorList lists = TensorList(saved).slice(4), weights = lists.slice(0, counts[0]),
                     norm = lists.slice(counts[0], counts[1]),
                     skip = lists.slice(counts[0] + counts[1], counts[2]),
                     masks = lists.slice(counts[0] + counts[1] + counts[2]);
    const auto optional = [](const Tensor& tensor) {
      return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
    };
    // The edges are those of forward's tensors, an optional one's where it is there.
    size_t edge = 0;
    const auto asked = [&](bool there = true) { return there && ctx->needs_input_grad(edge++); };
    const bool with_x = asked(), with_state = asked();
    const bool with_probe = asked(ctx->saved_data["probe"].toBool());
    bool with_weights = false;
    for (size_t i = 0; i < lists.size(); i++) with_weights |= asked();
    // One entry for each argument of forward, lists counted by their tensors: x, state, probe, cells,
    // and behind the lists slope, truncation and reset.
    variable_list result(4 + lists.size() + 3);
    if (!grads[0].defined() && !grads[1].defined()) return result;
    auto [grad_x, grad_state, grad_probe, grad_weights, grad_norm, grad_skip] =
        call_backward(optional(grads[0]), optional(grads[1]), saved[0], saved[1],
                      ctx->saved_data["cells"].toIntVector(), weights, norm, masks, skip,
                      optional(saved[3]), optional(saved[2]), ctx->saved_data["truncation"].toInt(),
                      with_x, with_state, with_probe, with_weights);
    if (with_x) result[0] = grad_x;
    if (with_state) result[1] = grad_state;
    if (with_probe) result[2] = grad_probe;
    // The masks, which have no gradient, lie between.
    auto to = std::move(grad_weights.begin(), grad_weights.end(), result.begin() + 4);
    to = std::move(grad_norm.begin(), grad_norm.end(), to);
    std::move(grad_skip.begin(), grad_skip.end(),
              result.begin() + 4 + weights.size() + norm.size() + masks.size());
    return result;
  }
};

CellsForwardResult lstm_cells(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                              IntArrayRef cells, TensorList weights, TensorList norm,
                              TensorList masks, TensorList skip, const OptionalTensor& slope,
                              int64_t truncation, const OptionalTensor& reset, bool keep) {
  if (!at::GradMode::is_enabled() || !keep) {
    at::AutoDispatchBelowADInplaceOrView below;
    return call_forward(x, state, probe, cells, weights, norm, masks, skip, slope, truncation,
                        reset, keep);
  }
  for (const Tensor& mask : masks)
    TORCH_CHECK_VALUE(!mask.requires_grad(),
                      "masks must not require a gradient: lstm_cells has none for them");
  const variable_list out = LstmCells::apply(x, state, probe, cells, weights, norm, masks, skip,
                                             slope, truncation, reset);
  return {out[0], out[1], out[2]};
}

CellsBackwardResult lstm_cells_backward(const OptionalTensor& grad_output,
                                        const OptionalTensor& grad_sent, const Tensor& x,
                                        const Tensor& kept, IntArrayRef cells, TensorList weights,
                                        TensorList norm, TensorList masks, TensorList skip,
                                        const OptionalTensor& slope, const OptionalTensor& reset,
                                        int64_t truncation, bool with_grad_x, bool with_grad_state,
                                        bool with_grad_probe, bool with_grad_weights) {
  TORCH_CHECK(
      !torch::autograd::compute_requires_grad(grad_output.value_or(Tensor()),
                                              grad_sent.value_or(Tensor()), x, kept, weights, norm,
                                              skip),
      "dnirnn::lstm_cells has no second derivative: call backward without create_graph=True");
  at::AutoDispatchBelowADInplaceOrView below;
  return call_backward(grad_output, grad_sent, x, kept, cells, weights, norm, masks, skip, slope,
                       reset, truncation, with_grad_x, with_grad_state, with_grad_probe,
                       with_grad_weights);
}

}  // namespace
}  // namespace dnirnn

TORCH_LIBRARY_IMPL(dnirnn, Autograd, m) {
  m.impl("lstm_cells", &dnirnn::lstm_cells);
  m.impl("lstm_cells_backward", &dnirnn::lstm_cells_backward);
}
