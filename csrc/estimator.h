// The estimator's two computations, on any device: its prediction, and its regression.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>
#include <vector>

namespace dnirnn {

// scale * MLP(state), with ReLU between the layers. estimator: W_1, b_1, ..., W_D, b_D.
at::Tensor predict(const at::Tensor& state, at::TensorList estimator, double scale);

// For the error 1/2 |MLP(entered) - target|^2, summed over S, meaned over the rows: (error, its
// gradients with respect to W_1, b_1, ..., W_D, b_D).
std::tuple<at::Tensor, std::vector<at::Tensor>> regression(const at::Tensor& entered,
                                                           const at::Tensor& target,
                                                           at::TensorList estimator);

}  // namespace dnirnn
