// The operators of the cells as C++ calls, through the dispatcher, for every device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <tuple>
#include <vector>

#include "recurrent.h"

namespace dnirnn {

using LstmForwardResult =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
using LstmBackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>>;

// lstm_tbptt, lstm_tbptt_backward
LstmForwardResult call_forward(const at::Tensor& x, const at::Tensor& state,
                               const std::optional<at::Tensor>& probe, at::TensorList weights,
                               at::TensorList estimator, int64_t truncation, double scale,
                               const std::optional<at::Tensor>& reset);
LstmBackwardResult call_backward(const std::optional<at::Tensor>& grad_output,
                                 const std::optional<at::Tensor>& grad_sent, const at::Tensor& x,
                                 const at::Tensor& h, const at::Tensor& c, const at::Tensor& gates,
                                 const at::Tensor& between, at::TensorList weights,
                                 const std::optional<at::Tensor>& reset, int64_t truncation,
                                 int64_t probe_rows, bool with_grad_x, bool with_grad_state,
                                 bool with_grad_weights);

// recurrent, recurrent_backward
UnitForwardResult call_forward(const at::Tensor& x, const at::Tensor& h, const at::Tensor& w_ih,
                               const at::Tensor& w_hh, const at::Tensor& b_ih,
                               const at::Tensor& b_hh, bool gated);
UnitBackwardResult call_backward(const at::Tensor& grad_output, const at::Tensor& x,
                                 const at::Tensor& h, const at::Tensor& output,
                                 const at::Tensor& gates, const at::Tensor& w_ih,
                                 const at::Tensor& w_hh, bool gated, bool with_grad_x);

}  // namespace dnirnn
