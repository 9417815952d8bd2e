// Small products on whole tensors, which torch does well; what is saved is autograd's part.
#include "estimator.h"

#include <ATen/ATen.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include <string>

namespace dnirnn {
namespace {

// Under autocast the estimator still computes in the state's dtype.
struct NoAutocast {
  c10::impl::ExcludeDispatchKeyGuard guard{c10::autocast_dispatch_keyset};
};

void check(at::TensorList estimator, int64_t size) {
  TORCH_CHECK_VALUE(estimator.size() % 2 == 0, "estimator must be W and b of each layer; got ",
                    estimator.size(), " tensors");
  int64_t width = size;
  for (size_t i = 0; i < estimator.size(); i += 2) {
    const at::Tensor &w = estimator[i], &b = estimator[i + 1];
    const bool last = i + 2 == estimator.size();
    TORCH_CHECK_VALUE(w.dim() == 2 && w.size(1) == width && (!last || w.size(0) == size),
                      "estimator[", i, "] must be [", last ? std::to_string(size) : "any", ", ",
                      width, "]; got ", w.sizes());
    width = w.size(0);
    TORCH_CHECK_VALUE(b.dim() == 1 && b.size(0) == width, "estimator[", i + 1, "] must be [",
                      width, "]; got ", b.sizes());
  }
}

}  // namespace

using at::Tensor;

Tensor predict(const Tensor& state, at::TensorList estimator, double scale) {
  check(estimator, state.size(-1));
  const NoAutocast outside;
  Tensor value = state;
  for (size_t i = 0; i < estimator.size(); i += 2) {
    if (i > 0) value.relu_();
    value = at::linear(value, estimator[i].to(state.scalar_type()),
                       estimator[i + 1].to(state.scalar_type()));
  }
  return value.mul_(scale);
}

std::tuple<Tensor, std::vector<Tensor>> regression(const Tensor& entered, const Tensor& target,
                                                   at::TensorList estimator) {
  TORCH_CHECK_VALUE(entered.dim() == 2 && entered.sizes() == target.sizes(),
                    "entered and target must be [R, S]; got ", entered.sizes(), " and ",
                    target.sizes());
  check(estimator, entered.size(1));
  const NoAutocast outside;
  const auto rows = static_cast<double>(entered.size(0));
  std::vector<Tensor> inputs{entered};
  for (size_t i = 0; i < estimator.size(); i += 2) {
    if (i > 0) inputs.back().relu_();
    inputs.push_back(at::linear(inputs.back(), estimator[i], estimator[i + 1]));
  }
  Tensor delta = inputs.back().sub_(target);
  const Tensor error = at::dot(delta.flatten(), delta.flatten()).mul_(0.5 / rows);
  delta.div_(rows);
  std::vector<Tensor> gradients(estimator.size());
  for (int64_t i = static_cast<int64_t>(estimator.size()) - 2; i >= 0; i -= 2) {
    const Tensor& input = inputs[i / 2];
    gradients[i] = at::mm(delta.t(), input);
    gradients[i + 1] = delta.sum(0);
    // relu(z) > 0 exactly where its derivative is 1.
    if (i > 0) delta = at::mm(delta, estimator[i]).mul_(input > 0);
  }
  return {error, gradients};
}

}  // namespace dnirnn

TORCH_LIBRARY_IMPL(dnirnn, CompositeExplicitAutograd, m) {
  m.impl("regression", &dnirnn::regression);
}
