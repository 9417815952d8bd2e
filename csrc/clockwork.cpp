// A clockwork of modules, for every device: each module runs over its own ticks on tbptt, the slowest
// first, so that its outputs are there when the faster ones read them.
//
// Letters: T steps, B batch, I input, M modules of n units, H = M n, the fastest first. `outputs`
// [T + 1, B, H] are the modules' before each step, and after the last one.
#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "calls.h"

namespace dnirnn {
namespace {

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// One module: the steps at which it ticks, and what of `outputs` [T + 1, B, H], or of their gradient,
// is the module's. Rows up to `first` hold its output before the call, then `period` rows each tick,
// maybe fewer the last. The views are made by their strides: each other way takes several.
struct Module {
  int64_t m, period, T, B, H, n;
  int64_t first, count, whole;  // whole: ticks that are held for all of a period

  Module(int64_t m, at::IntArrayRef periods, int64_t t0, int64_t T, int64_t B, int64_t n)
      : m(m), period(periods[m]), T(T), B(B), H(periods.size() * n), n(n) {
    first = std::min((period - t0 % period) % period, T);
    count = (T - first + period - 1) / period;
    whole = (T - first) / period;
  }
  Tensor rows(const Tensor& outputs, int64_t from, int64_t count, int64_t step, int64_t column,
              int64_t columns) const {
    return outputs.as_strided({count, B, columns}, {step * B * H, H, 1}, from * B * H + column);
  }
  // The slower modules' outputs before each of its ticks.
  Tensor of_slower(const Tensor& outputs) const {
    return rows(outputs, first, count, period, (m + 1) * n, H - (m + 1) * n);
  }
  Tensor before(const Tensor& outputs) const { return rows(outputs, 0, first + 1, 1, m * n, n); }
  Tensor held(const Tensor& outputs) const {
    return outputs.as_strided({whole, period, B, n}, {period * B * H, B * H, H, 1},
                              (first + 1) * B * H + m * n);
  }
  Tensor rest(const Tensor& outputs) const {
    const int64_t from = first + 1 + whole * period;
    return rows(outputs, from, T + 1 - from, 1, m * n, n);
  }
  // Of a tensor that has a row a step, those of the ticks.
  Tensor ticks(const Tensor& x) const { return x.slice(0, first, T, period); }

  void hold(const Tensor& outputs, const Tensor& output) const {
    if (whole) held(outputs).copy_(output.slice(0, 0, whole).unsqueeze(1));
    if (whole < count) rest(outputs).copy_(output.select(0, whole));
  }
  // What comes back to each tick from the rows that hold it: [count, B, n].
  Tensor sum(const Tensor& grad_outputs) const {
    if (period == 1)
      return rows(grad_outputs, 1, T, 1, m * n, n).clone(at::MemoryFormat::Contiguous);
    if (whole == count) return held(grad_outputs).sum(1);
    Tensor sums = at::empty({count, B, n}, grad_outputs.options());
    if (whole) sums.slice(0, 0, whole).copy_(held(grad_outputs).sum(1));
    sums.select(0, whole).copy_(rest(grad_outputs).sum(0));
    return sums;
  }
};

// What was saved of a module that ticked, behind the weights of all: its input (of the slowest,
// which reads no other, x itself, so that a change of x is noticed), then h, c, gates, between.
constexpr int64_t kSaved = 5;

// What the cells' operator can't see, or sees of one module alone.
void check(const Tensor& x, const Tensor& state, at::TensorList weights, at::IntArrayRef periods) {
  const int64_t M = periods.size();
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(0) > 0 && x.size(1) > 0,
                    "x must be [T, B, I] with T and B at least 1; got ", x.sizes());
  TORCH_CHECK_VALUE(M > 0 && *std::min_element(periods.begin(), periods.end()) > 0,
                    "periods must be of at least 1 step, one a module; got ", periods);
  TORCH_CHECK_VALUE(static_cast<int64_t>(weights.size()) == 4 * M,
                    "weights must be w_ih, w_hh, b_ih, b_hh for each of ", M, " modules; got ",
                    weights.size(), " tensors");
  TORCH_CHECK_VALUE(weights[1].dim() == 2, "weights[1] (w_hh) must be [G n, n]; got ",
                    weights[1].sizes());
  const int64_t n = weights[1].size(1), size = M * n * (weights[1].size(0) == 4 * n ? 2 : 1);
  TORCH_CHECK_VALUE(state.dim() == 2 && state.size(0) == x.size(1) && state.size(1) == size,
                    "state must be [", x.size(1), ", ", size, "]; got ", state.sizes());
}

struct Clockwork : torch::autograd::Function<Clockwork> {
  static variable_list forward(AutogradContext* ctx, const Tensor& x, const Tensor& state,
                               at::TensorList weights, at::IntArrayRef periods, int64_t t0) {
    check(x, state, weights, periods);
    at::AutoDispatchBelowADInplaceOrView below;
    const int64_t T = x.size(0), B = x.size(1), M = periods.size(), n = weights[1].size(1);
    const Tensor outputs = at::empty({T + 1, B, M * n}, x.options());
    std::vector<Tensor> states = state.chunk(M, 1);
    variable_list saved(weights.begin(), weights.end());
    for (int64_t m = M - 1; m >= 0; m--) {
      const Module module(m, periods, t0, T, B, n);
      module.before(outputs).copy_(states[m].narrow(1, 0, n));
      if (!module.count) continue;
      Tensor in = module.ticks(x);
      if (m + 1 < M) in = at::cat({in, module.of_slower(outputs)}, 2);
      const Tensor& kept_in = m + 1 < M ? in : x;
      auto [output, sent, synthetic, h, c, gates, between] = tbptt_op().call(
          in, states[m], std::nullopt, weights.slice(4 * m, 4), {}, T, 0, std::nullopt);
      states[m] = sent.select(0, 0);
      saved.insert(saved.end(), {kept_in, h, c, gates, between});
      module.hold(outputs, output);
    }
    ctx->save_for_backward(std::move(saved));
    ctx->set_materialize_grads(false);
    ctx->saved_data["periods"] = periods.vec();
    ctx->saved_data["t0"] = t0;
    ctx->saved_data["sizes"] = std::vector<int64_t>(x.sizes().vec());
    ctx->saved_data["grad_x"] = x.requires_grad();
    ctx->saved_data["grad_state"] = state.requires_grad();
    ctx->saved_data["state_type"] = state.scalar_type();
    ctx->saved_data["state_size"] = state.size(1);
    return {outputs.slice(0, 1), at::cat(states, 1)};
  }

  static variable_list backward(AutogradContext* ctx, const variable_list& grads) {
    const variable_list saved = ctx->get_saved_variables();
    TORCH_CHECK(
        !torch::autograd::compute_requires_grad(grads, saved),
        "dnirnn::clockwork has no second derivative: call backward without create_graph=True");
    at::AutoDispatchBelowADInplaceOrView below;
    const auto periods = ctx->saved_data["periods"].toIntVector();
    const auto sizes = ctx->saved_data["sizes"].toIntVector();
    const auto state_type = ctx->saved_data["state_type"].toScalarType();
    const bool with_grad_x = ctx->saved_data["grad_x"].toBool();
    const bool with_grad_state = ctx->saved_data["grad_state"].toBool();
    const int64_t T = sizes[0], B = sizes[1], I = sizes[2], t0 = ctx->saved_data["t0"].toInt();
    const int64_t M = periods.size(), n = saved[1].size(1);
    const int64_t size = ctx->saved_data["state_size"].toInt();
    variable_list result(4 * M + 4);
    if (!grads[0].defined() && !grads[1].defined()) return result;

    const auto options = saved[0].options();
    const Tensor grad_outputs = at::empty({T + 1, B, M * n}, options);
    grad_outputs.slice(0, 0, grads[0].defined() ? 1 : T + 1).zero_();
    if (grads[0].defined()) grad_outputs.slice(0, 1).copy_(grads[0]);
    const Tensor grad_x = with_grad_x ? at::zeros(sizes, options) : Tensor();
    std::vector<Tensor> grad_states(M), grad_lasts(M);
    if (grads[1].defined()) grad_lasts = grads[1].chunk(M, 1);
    // What was saved lies in the order of the forward pass, the slowest first.
    int64_t behind = saved.size();
    for (int64_t m = 0; m < M; m++) {
      const Module module(m, periods, t0, T, B, n);
      const Tensor& last = grad_lasts[m];
      if (module.count) {
        behind -= kSaved;
        const Tensor* kept = &saved[behind];
        const Tensor in = m + 1 < M ? kept[0] : module.ticks(kept[0]);
        auto [grad_in, of_state, of_probe, of_weights] = tbptt_backward_op().call(
            module.sum(grad_outputs),
            last.defined() ? std::optional(last.unsqueeze(0)) : std::nullopt, in, kept[1], kept[2],
            kept[3], kept[4], at::TensorList(&saved[4 * m], 4), std::nullopt, T, 0,
            with_grad_x || m + 1 < M, with_grad_state, true);
        grad_states[m] = of_state;
        std::copy(of_weights.begin(), of_weights.end(), result.begin() + 2 + 4 * m);
        if (with_grad_x) module.ticks(grad_x).add_(grad_in.slice(2, 0, I));
        if (m + 1 < M) module.of_slower(grad_outputs).add_(grad_in.slice(2, I));
      } else if (with_grad_state) {
        grad_states[m] =
            last.defined() ? last.clone() : at::zeros({B, size / M}, options.dtype(state_type));
      }
      if (with_grad_state) grad_states[m].narrow(1, 0, n).add_(module.before(grad_outputs).sum(0));
    }
    result[0] = grad_x;
    if (with_grad_state) result[1] = at::cat(grad_states, 1);
    return result;
  }
};

std::tuple<Tensor, Tensor> clockwork(const Tensor& x, const Tensor& state, at::TensorList weights,
                                     at::IntArrayRef periods, int64_t t0) {
  const variable_list out = Clockwork::apply(x, state, weights, periods, t0);
  return {out[0], out[1]};
}

}  // namespace
}  // namespace dnirnn

// Made of other operators, so that it runs, is differentiated and traced wherever they are.
TORCH_LIBRARY_IMPL(dnirnn, CompositeImplicitAutograd, m) {
  m.impl("clockwork", &dnirnn::clockwork);
}
