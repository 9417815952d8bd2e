// The estimator on the GPU: torch's products, captured in a graph with the rest of a step.
#include "estimator.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/threshold_backward.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "cuda/context.h"
#include "cuda/sums.h"

namespace dnirnn::cuda {
namespace {

using at::Tensor;

// The input of each layer of the MLP and the last one's output, for rows [R, S].
std::vector<Tensor> values_of(const Tensor& rows, at::TensorList estimator) {
  std::vector<Tensor> values{rows};
  for (size_t i = 0; i < estimator.size(); i += 2) {
    const Tensor w = estimator[i].to(rows.scalar_type()), b = estimator[i + 1].to(w.scalar_type());
    Tensor value = at::addmm(b, values.back(), w.t());
    values.push_back(i + 2 < estimator.size() ? value.relu_() : value);
  }
  return values;
}

std::tuple<Tensor, std::vector<Tensor>> regression(const Tensor& entered, const Tensor& target,
                                                   at::TensorList estimator) {
  check_regression(entered, target, estimator);
  const c10::DeviceGuard device(entered.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const std::vector<Tensor> values = values_of(entered, estimator);
  // Of half the squared error; in the place of what was predicted, which nothing else reads.
  Tensor delta = values.back();
  const Tensor error = at::empty({}, delta.options()), wanted = target.contiguous();
  Regression found{delta.scalar_type() == at::kDouble ? Type::kDouble : Type::kFloat,
                   delta.numel(),
                   delta.size(0),
                   delta.mutable_data_ptr(),
                   wanted.const_data_ptr(),
                   nullptr,
                   error.mutable_data_ptr()};
  const Tensor partial = at::empty({blocks_of(found)}, delta.options().dtype(at::kDouble));
  found.partial = partial.mutable_data_ptr<double>();
  find_errors(found, current_stream());
  check_launch();
  std::vector<Tensor> gradients(estimator.size());
  for (size_t i = estimator.size(); i > 0; i -= 2) {
    const Tensor &w = estimator[i - 2], &input = values[i / 2 - 1];
    Tensor of_w = at::empty(w.sizes(), delta.options()),
           of_b = at::empty({w.size(0)}, delta.options());
    Tensor below;
    {
      Beside side;
      side.run([&] {
        at::mm_out(of_w, delta.t(), input);
        at::sum_out(of_b, delta, {0});
      });
      if (i > 2) below = at::threshold_backward(at::mm(delta, w.to(delta.scalar_type())), input, 0);
    }
    gradients[i - 2] = of_w.to(w.scalar_type());
    gradients[i - 1] = of_b.to(w.scalar_type());
    delta = below;
  }
  return {error, gradients};
}

}  // namespace

Tensor predict(const Tensor& state, at::TensorList estimator, double scale) {
  const int64_t size = state.size(-1);
  check_estimator(estimator, size);
  return values_of(state.reshape({-1, size}), estimator).back().mul_(scale).view(state.sizes());
}

}  // namespace dnirnn::cuda

TORCH_LIBRARY_IMPL(dnirnn, DNIRNN_DEVICE, m) { m.impl("regression", &dnirnn::cuda::regression); }
