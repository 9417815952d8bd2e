// finish_update: what an update of a model ends with, in one kernel (finish.cu).
#include "cuda/update.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <cmath>

#include "cuda/context.h"

namespace dnirnn::cuda {
namespace {

using at::Tensor;

float* at_float(const Tensor& tensor, const char* name, int64_t size) {
  TORCH_CHECK_TYPE(tensor.scalar_type() == at::kFloat, name, " must be float32; got ",
                   tensor.scalar_type());
  TORCH_CHECK_VALUE(tensor.numel() == size && tensor.is_contiguous(), name, " must be ", size,
                    " values in rows; got ", tensor.sizes(), " with strides ", tensor.strides());
  return const_cast<float*>(tensor.const_data_ptr<float>());
}

// settings: beta1, beta2, epsilon, decay, decoupled (0 or 1), smallest, largest, of each part.
void finish_update(at::TensorList parameters, at::TensorList gradients, at::TensorList first,
                   at::TensorList second, at::TensorList steps, int64_t of_core,
                   at::TensorList rates, at::ArrayRef<double> settings, const Tensor& nats,
                   const std::optional<Tensor>& error, const Tensor& ended, Tensor& state,
                   Tensor& figures, Tensor& place, Tensor& bad) {
  const auto count = static_cast<int64_t>(parameters.size());
  TORCH_CHECK_VALUE(count > 0 && count <= Update::kMost, "parameters must be 1 to ", Update::kMost,
                    " tensors; got ", count);
  for (const auto& list : {gradients, first, second, steps})
    TORCH_CHECK_VALUE(static_cast<int64_t>(list.size()) == count,
                      "gradients and Adam's state must be of ", count, " tensors; got ",
                      list.size());
  TORCH_CHECK_VALUE(of_core >= 0 && of_core <= count, "of_core must be 0 to ", count, "; got ",
                    of_core);
  TORCH_CHECK_VALUE(rates.size() == 2 && settings.size() == 14,
                    "rates and settings must be of two parts; got ", rates.size(), " and ",
                    settings.size());
  TORCH_CHECK_TYPE(figures.scalar_type() == at::kDouble && place.scalar_type() == at::kLong,
                   "figures must be float64 and place int64; got ", figures.scalar_type(), " and ",
                   place.scalar_type());
  const c10::DeviceGuard device(state.device());
  Update u{};
  u.tensors = static_cast<int>(count), u.of_core = static_cast<int>(of_core);
  for (int i = 0; i < count; i++) {
    const int64_t size = u.size[i] = parameters[i].numel();
    u.parameter[i] = at_float(parameters[i], "a parameter", size);
    u.gradient[i] = at_float(gradients[i], "a gradient", size);
    u.first[i] = at_float(first[i], "Adam's exp_avg", size);
    u.second[i] = at_float(second[i], "Adam's exp_avg_sq", size);
    u.step[i] = at_float(steps[i], "Adam's step", 1);
    uintptr_t places = 0;
    for (const void* one : {(const void*)u.parameter[i], (const void*)u.gradient[i],
                            (const void*)u.first[i], (const void*)u.second[i]})
      places |= reinterpret_cast<uintptr_t>(one);
    u.aligned[i] = places % 16 == 0;
    u.begins[i + 1] = u.begins[i] + static_cast<int>((size + Update::kChunk - 1) / Update::kChunk);
  }
  for (int part = 0; part < 2; part++) {
    const double* set = settings.data() + 7 * part;
    u.rules[part] = {float(std::log(set[0])),
                     float(std::log(set[1])),
                     float(1 - set[0]),
                     float(1 - set[1]),
                     float(set[2]),
                     float(set[3]),
                     set[4] != 0,
                     float(set[5]),
                     float(set[6]),
                     at_float(rates[part], "a rate", 1)};
  }
  u.nats = at_float(nats, "nats", 1);
  u.error = error ? at_float(*error, "error", 1) : nullptr;
  u.state_size = state.numel();
  u.state = at_float(state, "state", u.state_size);
  u.ended = at_float(ended, "ended", u.state_size);
  u.figures = figures.mutable_data_ptr<double>();
  u.place = place.mutable_data_ptr<int64_t>();
  u.bad = at_float(bad, "bad", 1);
  const Tensor partial = at::empty({2, blocks_of(u)}, figures.options());
  const Tensor arrived = at::zeros({64}, state.options().dtype(at::kInt));
  u.partial = partial.mutable_data_ptr<double>();
  u.arrived = reinterpret_cast<unsigned*>(arrived.mutable_data_ptr<int>());
  finish(u, current_stream());
  check_launch();
}

}  // namespace
}  // namespace dnirnn::cuda

TORCH_LIBRARY_FRAGMENT(dnirnn, m) {
  m.def(
      "finish_update(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] first, "
      "Tensor(c!)[] second, Tensor(d!)[] steps, int of_core, Tensor[] rates, float[] settings, "
      "Tensor nats, Tensor? error, Tensor ended, Tensor(e!) state, Tensor(f!) figures, "
      "Tensor(g!) place, Tensor(h!) bad) -> ()");
}

TORCH_LIBRARY_IMPL(dnirnn, DNIRNN_DEVICE, m) {
  m.impl("finish_update", &dnirnn::cuda::finish_update);
}
