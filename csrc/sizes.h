// The checks of one call's arguments, for every device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>

#include "shape.h"

namespace dnirnn {

// Whether x is symbols [T, B], whose products with w_ih are rows of a table in its place.
inline bool is_symbols(const at::Tensor& x) { return x.scalar_type() == at::kLong; }

// The dtype of inputs and outputs: x's, or, of symbols, the table's.
inline at::ScalarType dtype_of(const at::Tensor& x, at::TensorList weights) {
  return is_symbols(x) && !weights.empty() ? weights[0].scalar_type() : x.scalar_type();
}

// Of symbols I is 0: there is no product with an input. The cell is known by the rows of w_hh.
// lstm: of an operator that has that cell alone.
inline Sizes sizes_of(const at::Tensor& x, at::TensorList weights, int64_t truncation,
                      bool lstm = false) {
  const bool symbols = is_symbols(x);
  TORCH_CHECK_VALUE(x.dim() == (symbols ? 2 : 3) && x.size(0) > 0 && x.size(1) > 0,
                    "x must be [T, B, I], or int64 [T, B], with T and B at least 1; got ",
                    x.sizes());
  TORCH_CHECK_VALUE(truncation >= 1, "truncation must be at least 1 step; got ", truncation);
  TORCH_CHECK_VALUE(!weights.empty() && weights.size() % 4 == 0,
                    "weights must be w_ih, w_hh, b_ih, b_hh for each layer; got ", weights.size(),
                    " tensors");
  Sizes s{};
  s.T = x.size(0), s.B = x.size(1), s.I = symbols ? 0 : x.size(2);
  const at::ScalarType dtype = dtype_of(x, weights);
  s.L = static_cast<int64_t>(weights.size()) / 4;
  const at::Tensor& w_hh = weights[1];
  s.H = w_hh.dim() == 2 ? w_hh.size(1) : 0;
  s.G = s.H ? w_hh.size(0) / s.H : 0;
  TORCH_CHECK_VALUE((s.G == 4 || (!lstm && (s.G == 3 || s.G == 1))) && w_hh.size(0) == s.G * s.H,
                    "weights[1] (w_hh) must be ",
                    lstm ? "[4 H, H], an LSTM's," : "[G H, H], G = 4 (LSTM), 3 (GRU) or 1 (RNN),",
                    " with H at least 1; got ", w_hh.sizes());
  s.S = (s.G == 4 ? 2 : 1) * s.L * s.H;
  s.K = truncation < s.T ? truncation : s.T;
  s.N = (s.T + s.K - 1) / s.K;
  for (int64_t i = 0; i < 4 * s.L; i++) {
    const at::Tensor& w = weights[i];
    const bool matrix = i % 4 < 2, table = symbols && i == 0;
    TORCH_CHECK_VALUE(!table || (w.dim() == 2 && w.size(1) == s.G * s.H),
                      "weights[0], the table of symbols, must be [V, ", s.G * s.H, "]; got ",
                      w.sizes());
    const int64_t columns = i % 4 == 1 ? s.H : s.input(i / 4);
    TORCH_CHECK_VALUE(table || (w.dim() == (matrix ? 2 : 1) && w.size(0) == s.G * s.H &&
                                (!matrix || w.size(1) == columns)),
                      "weights[", i, "] must be [", s.G * s.H, matrix ? ", " : "",
                      matrix ? std::to_string(columns) : "", "]; got ", w.sizes());
    TORCH_CHECK_TYPE(
        w.scalar_type() == dtype ||
            (w.scalar_type() == at::kFloat && (dtype == at::kBFloat16 || dtype == at::kHalf)),
        "weights[", i, "] is ", w.scalar_type(), ", x is ", dtype,
        ": they must have one dtype, or the weights be float32 beside an x of 16 bits");
    TORCH_CHECK_VALUE(w.device() == x.device(), "weights[", i, "] is on ", w.device(), ", x on ",
                      x.device(), ": they must be on one device");
  }
  return s;
}

// The dtype of state, probe, sent and synthetic beside an x of this dtype.
inline at::ScalarType state_type(at::ScalarType x) {
  return x == at::kDouble ? at::kDouble : at::kFloat;
}

// weights: where x may be symbols.
inline void check_state(const Sizes& s, const at::Tensor& x, const at::Tensor& state,
                        const std::optional<at::Tensor>& probe,
                        const std::optional<at::Tensor>& reset, at::TensorList weights = {}) {
  const at::ScalarType dtype = dtype_of(x, weights);
  TORCH_CHECK_VALUE(state.dim() == 2 && state.size(0) == s.B && state.size(1) == s.S,
                    "state must be [", s.B, ", ", s.S, "]; got ", state.sizes());
  TORCH_CHECK_TYPE(state.scalar_type() == state_type(dtype), "state must be ", state_type(dtype),
                   " for an x of ", dtype, "; got ", state.scalar_type());
  TORCH_CHECK_VALUE(state.device() == x.device(), "state is on ", state.device(), ", x on ",
                    x.device(), ": they must be on one device");
  if (probe) {
    TORCH_CHECK_VALUE(probe->dim() == 3 && (probe->size(0) == s.N || probe->size(0) == s.T) &&
                          probe->size(1) == s.B && probe->size(2) == s.S,
                      "probe must be [", s.N, " chunks or ", s.T, " steps, ", s.B, ", ", s.S,
                      "]; got ", probe->sizes());
    TORCH_CHECK_TYPE(probe->scalar_type() == state.scalar_type(), "probe must be ",
                     state.scalar_type(), " like the state; got ", probe->scalar_type());
    TORCH_CHECK_VALUE(probe->device() == x.device(), "probe is on ", probe->device(), ", x on ",
                      x.device(), ": they must be on one device");
  }
  if (reset) {
    TORCH_CHECK_VALUE(reset->dim() == 2 && reset->size(0) == s.T && reset->size(1) == s.B,
                      "reset must be [", s.T, ", ", s.B, "]; got ", reset->sizes());
    TORCH_CHECK_TYPE(reset->scalar_type() == at::kBool, "reset must be bool; got ",
                     reset->scalar_type());
    TORCH_CHECK_VALUE(reset->device() == x.device(), "reset is on ", reset->device(), ", x on ",
                      x.device(), ": they must be on one device");
  }
}

}  // namespace dnirnn
