// tbptt and its backward on the GPU.
//
// Forward, a layer at a time: the products of all its inputs are one matrix product; then a step is
// one product with w_hh and one kernel for all its cells, or all steps are one kernel (on_chip.cu).
// Backward: given the gradients at the boundaries the N chunks are independent, so a step is one
// kernel and one product for N B rows, or all K steps are one kernel; the weights' gradients are one
// product over all steps.
// Histories are by chunk (lstm.h), so that a step's rows are contiguous. h and `between` are of x's
// dtype, c and the gates of the state's.
#include <ATen/Context.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/add.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <atomic>
#include <tuple>
#include <vector>

#include "calls.h"
#include "cuda/context.h"
#include "cuda/lstm.h"
#include "cuda/tensors.h"
#include "estimator.h"
#include "sizes.h"

namespace dnirnn::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

const void* data(const Tensor& tensor) {
  return tensor.defined() && tensor.numel() ? tensor.const_data_ptr() : nullptr;
}

void* mutable_data(const Tensor& tensor) {
  return tensor.defined() && tensor.numel() ? tensor.mutable_data_ptr() : nullptr;
}

Tensor contiguous(const OptionalTensor& tensor) {
  return tensor && tensor->defined() ? tensor->contiguous() : Tensor();
}

// How the steps are taken, for tests and benchmarks; on chip only where they fit.
enum class Path { kAuto, kSteps, kOnChip };
std::atomic<Path> chosen{Path::kAuto};

void choose(c10::string_view path) {
  TORCH_CHECK_VALUE(path == "auto" || path == "steps" || path == "on chip",
                    "path must be 'auto', 'steps' or 'on chip'; got '", path, "'");
  chosen = path == "auto" ? Path::kAuto : path == "steps" ? Path::kSteps : Path::kOnChip;
}

// What the kernels count in 32 bits.
void check_places(const Sizes& s) {
  constexpr int64_t kMost = (int64_t(1) << 31) - 256;
  TORCH_CHECK_VALUE(
      s.N * s.K * s.B < kMost && s.N * s.B * s.H < kMost,
      "on a GPU steps * batch, and chunks * batch * hidden size, must be below 2**31 - 256;"
      " got ",
      s.T, " steps in ", s.N, " chunks, batch ", s.B, ", hidden size ", s.H);
}

Products products() {
  return at::globalContext().allowTF32CuDNN(at::Float32Op::RNN) ? Products::kTf32
                                                                : Products::kExact;
}

// The room for all steps on chip; 0 where they are taken one by one.
int64_t room_of(const Sizes& s, Type type, Products products, bool back) {
  if (chosen == Path::kSteps) return 0;
  const int64_t room = room_on_chip(s, type, products, back);
  const bool taken =
      room > 0 && (chosen == Path::kOnChip || faster_on_chip(s, type, products, back, room));
  return taken ? room : 0;
}

// A matrix of weights in x's dtype. In rows: the same product whatever the strides were. Where a kernel
// can load 16 bytes at a time: a weight may be a view of a buffer of them all.
Tensor in_rows(const Tensor& weight, at::ScalarType type) {
  const Tensor rows = weight.to(type).contiguous();
  return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % 16 == 0 ? rows : rows.clone();
}

// b_ih + b_hh of a layer, summed in the state's dtype.
Tensor bias_of(at::TensorList weights, int64_t layer, at::ScalarType held) {
  return at::add(weights[4 * layer + 2].to(held), weights[4 * layer + 3].to(held));
}

// [T, B, W] by time as [K N B, W] by chunk.
Tensor to_chunks(const Sizes& s, const Tensor& steps) {
  const int64_t width = steps.size(2);
  if (s.N == 1) return steps.contiguous().view({s.T * s.B, width});
  Tensor padded = steps;
  if (s.N * s.K > s.T) {
    padded = at::zeros({s.N * s.K, s.B, width}, steps.options());
    padded.narrow(0, 0, s.T).copy_(steps);
  }
  return padded.reshape({s.N, s.K, s.B, width}).transpose(0, 1).reshape({-1, width});
}

// And back.
Tensor to_time(const Sizes& s, const Tensor& chunks) {
  const int64_t width = chunks.size(1);
  return chunks.view({s.K, s.N, s.B, width})
      .transpose(0, 1)
      .reshape({s.N * s.K, s.B, width})
      .narrow(0, 0, s.T);
}

ForwardResult tbptt(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                    at::TensorList weights, at::TensorList estimator, int64_t truncation,
                    double scale, const OptionalTensor& reset) {
  const Sizes s = sizes_of(x, weights, truncation, /*lstm=*/true);
  check_state(s, x, state, probe, reset);
  check_places(s);
  const Type type = type_of(x, "x");
  const c10::DeviceGuard device(x.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  CUstream_st* stream = current_stream();
  const auto options = x.options(), held = state.options();
  const Tensor state_in = state.contiguous(), probe_in = contiguous(probe);
  const Tensor reset_in = contiguous(reset);

  Tensor output = at::empty({s.T, s.B, s.H}, options);
  Tensor sent = at::empty({s.N, s.B, s.S}, held);
  Tensor h = at::empty({s.L, s.K, s.N, s.B, s.H}, options), c = at::empty(h.sizes(), held);
  Tensor gates = at::empty({s.L, s.K, s.N, s.B, 4, s.H}, held);
  Tensor between = at::empty({s.L - 1, s.K, s.N, s.B, s.H}, options);
  const Products asked = products();
  const int64_t room = room_of(s, type, asked, false);
  const bool together = room > 0;
  if (together) make_unsent(h);
  // What a short last chunk leaves unwritten goes into products, times zero.
  if (s.steps(s.N - 1) < s.K)
    for (const Tensor& history : {h, c, between})
      history.select(2, s.N - 1).slice(1, s.steps(s.N - 1)).zero_();

  const Tf32AsInTorchLstm tf32(x.scalar_type());
  Tensor input = to_chunks(s, x);
  for (int64_t layer = 0; layer < s.L; layer++) {
    const Tensor w_ih = in_rows(weights[4 * layer], x.scalar_type());
    const Tensor w_hh = in_rows(weights[4 * layer + 1], x.scalar_type()), across = w_hh.t();
    const Tensor bias = bias_of(weights, layer, held.dtype().toScalarType());
    const bool last = layer + 1 == s.L;
    const Tensor out = last ? output : between[layer];
    const Forward pass{.s = s,
                       .type = type,
                       .layer = layer,
                       .probe_every_step = probe && s.N != s.T && probe_in.size(0) == s.T,
                       .output_by_chunk = !last,
                       .state = data(state_in),
                       .probe = data(probe_in),
                       .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
                       .w_hh = data(w_hh),
                       .bias = data(bias),
                       .h = h[layer].mutable_data_ptr(),
                       .c = c[layer].mutable_data_ptr(),
                       .gates = gates[layer].mutable_data_ptr(),
                       .output = out.mutable_data_ptr(),
                       .sent = sent.mutable_data_ptr()};
    Tensor sums = gates[layer].view({-1, 4 * s.H});
    multiply(sums, input, w_ih.t());
    enter(pass, stream);
    check_launch();
    if (together) {
      steps_on_chip(pass, asked, room, stream);
      check_launch();
    }
    for (int64_t t = 0; t < s.T && !together; t++) {
      const int64_t k = t % s.K, n = t / s.K;
      Tensor step_sums = gates[layer][k][n].view({s.B, 4 * s.H});
      add_product(step_sums, h[layer][k][n], across);
      step(pass, t, stream);
      check_launch();
    }
    input = out.view({-1, s.H});
  }
  Tensor synthetic = estimator.empty() ? at::empty({0}, held) : predict(sent, estimator, scale);
  return {output, sent, synthetic, h, c, gates, between};
}

BackwardResult tbptt_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_sent,
                              const Tensor& x, const Tensor& h, const Tensor& c,
                              const Tensor& gates, const Tensor& between, at::TensorList weights,
                              const OptionalTensor& reset, int64_t truncation, int64_t probe_rows,
                              bool with_grad_x, bool with_grad_state, bool with_grad_weights) {
  const Sizes s = sizes_of(x, weights, truncation, /*lstm=*/true);
  check_places(s);
  const c10::DeviceGuard device(x.device());
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  CUstream_st* stream = current_stream();
  const auto options = x.options(), held = c.options();
  const Tensor grad_out = contiguous(grad_output), grad_end = contiguous(grad_sent);
  const Tensor reset_in = contiguous(reset);
  const int64_t rows = s.N * s.B;

  Tensor grad_probe = at::empty({probe_rows, s.B, s.S}, held);
  Tensor grad_state = at::empty({with_grad_state ? s.B : 0, s.S}, held);
  Tensor grad_x = at::empty({0, s.B, s.I}, options);
  std::vector<Tensor> grads(with_grad_weights ? weights.size() : 0);

  const Tf32AsInTorchLstm tf32(x.scalar_type());
  Tensor d = at::empty({s.K, rows, 4 * s.H}, options);
  const Type type = type_of(x, "x");
  const Products asked = products();
  const int64_t room = room_of(s, type, asked, true);
  const bool together = room > 0;
  Tensor dh = at::empty({together ? 0 : rows, s.H}, held), dc = at::empty({rows, s.H}, held);
  Tensor above;
  for (int64_t layer = s.L - 1; layer >= 0; layer--) {
    const Tensor w_ih = in_rows(weights[4 * layer], x.scalar_type());
    const Tensor w_hh = in_rows(weights[4 * layer + 1], x.scalar_type());
    const bool top = layer + 1 == s.L;
    const Backward pass{.s = s,
                        .type = type,
                        .layer = layer,
                        .probe_every_step = probe_rows != s.N && probe_rows == s.T,
                        .grad_output = top ? data(grad_out) : nullptr,
                        .grad_above = top ? nullptr : data(above),
                        .grad_sent = data(grad_end),
                        .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
                        .w_hh = data(w_hh),
                        .c = c[layer].const_data_ptr(),
                        .gates = gates[layer].const_data_ptr(),
                        .d = d.mutable_data_ptr(),
                        .dc = dc.mutable_data_ptr(),
                        .grad_probe = mutable_data(grad_probe),
                        .grad_state = mutable_data(grad_state)};
    if (together) {
      make_unsent(d);
      steps_back_on_chip(pass, asked, room, stream);
      check_launch();
    }
    for (int64_t k = s.K - 1; k >= 0 && !together; k--) {
      step_back(pass, k, dh.const_data_ptr(), stream);
      check_launch();
      if (k > 0 || pass.grad_probe || pass.grad_state) multiply(dh, d[k], w_hh);
    }
    if ((pass.grad_probe || pass.grad_state) && !together) {
      leave(pass, dh.const_data_ptr(), stream);
      check_launch();
    }

    const Tensor all = d.view({-1, 4 * s.H}), back = all.t();
    const Tensor input =
        layer == 0 ? to_chunks(s, x) : between[layer - 1].view({-1, s.input(layer)});
    Tensor of_ih, of_hh, of_bias;
    if (with_grad_weights) {
      of_ih = at::empty({4 * s.H, s.input(layer)}, held);
      of_hh = at::empty({4 * s.H, s.H}, held);
      of_bias = at::empty({4 * s.H}, held);
    }
    {
      // None of these waits for another.
      Beside first, second, third;
      if (with_grad_weights) {
        first.run([&] { multiply(of_hh, back, h[layer].view({-1, s.H})); });
        second.run([&] { multiply(of_ih, back, input); });
        third.run([&] { at::sum_out(of_bias, all, {0}, false, held.dtype().toScalarType()); });
      }
      if (layer > 0) {
        above = at::empty({s.K * rows, s.H}, held);
        multiply(above, all, w_ih);
      } else if (with_grad_x) {
        Tensor product = at::empty({s.K * rows, s.I}, options);
        multiply(product, all, w_ih);
        grad_x = s.N == 1 ? product.view(x.sizes()) : to_time(s, product);
      }
    }
    if (with_grad_weights) {
      const Tensor found[4] = {of_ih, of_hh, of_bias, of_bias.clone()};  // each a tensor of its own
      for (int i = 0; i < 4; i++)
        grads[4 * layer + i] = found[i].to(weights[4 * layer + i].scalar_type());
    }
  }
  return {grad_x, grad_state, grad_probe, grads};
}

}  // namespace
}  // namespace dnirnn::cuda

TORCH_LIBRARY_FRAGMENT(dnirnn, m) { m.def("cuda_path(str path) -> ()", &dnirnn::cuda::choose); }

TORCH_LIBRARY_IMPL(dnirnn, DNIRNN_DEVICE, m) {
  m.impl("tbptt", &dnirnn::cuda::tbptt);
  m.impl("tbptt_backward", &dnirnn::cuda::tbptt_backward);
}
