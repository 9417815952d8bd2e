// The estimator on the CPU: its prediction and its regression, on the same tiles as the LSTM.
//
// The matrices are small (a row for each sequence), so that what a product costs elsewhere is
// mostly not the product: here all of an estimator is one team's work, with a barrier a layer.
//
// Letters: R rows, D layers, K and O the input and output width of a layer, W lanes, U = ceil(O / W).
#include "estimator.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/team.h"

namespace dnirnn::cpu {
namespace {

using at::Tensor;

template <typename T>
struct Dense {
  const T *w, *b;  // [O, K], [O]
  int64_t K, O;
};

template <typename T>
struct Mlp {
  std::vector<Tensor> held;
  std::vector<Dense<T>> layers;

  explicit Mlp(at::TensorList estimator) {
    for (const Tensor& tensor : estimator)
      held.push_back(tensor.to(c10::CppTypeToScalarType<T>::value).contiguous());
    for (size_t i = 0; i < held.size(); i += 2)
      layers.push_back({held[i].const_data_ptr<T>(), held[i + 1].const_data_ptr<T>(),
                        held[i].size(1), held[i].size(0)});
  }

  int64_t widest() const {
    int64_t width = 0;
    for (const auto& layer : layers) width = std::max({width, layer.K, layer.O});
    return width;
  }

  int64_t threads(int64_t rows, int64_t lanes) const {
    double flops = 0;
    int64_t units = 0;
    for (const auto& layer : layers) {
      flops = std::max(flops, 2.0 * rows * layer.K * layer.O);
      units = std::max(units, (layer.O + lanes - 1) / lanes);
    }
    return team_size(units, flops);
  }
};

// This member's columns of out [R, O] = act(a [R, K] w^T + b), where act is relu or a factor.
template <typename T>
void linear(const Member& me, const Kernels<T>& kernel, int64_t rows, const T* a,
            const Dense<T>& layer, T* out, bool relu, T factor, T* panel) {
  const int64_t W = kernel.lanes, U = (layer.O + W - 1) / W, last = me.last(U);
  for (int64_t u = me.first(U); u < last; u += kernel.vectors) {
    const int64_t units = std::min(kernel.vectors, last - u), o = u * W;
    const int64_t columns = std::min(units * W, layer.O - o);
    kernel.pack_rows(layer.w + o * layer.K, W * layer.K, units, W, columns - (units - 1) * W,
                     layer.K, panel);
    kernel.product(rows, {a, layer.K, W, layer.K}, panel, out + o, layer.O, columns);
    for (int64_t r = 0; r < rows; r++) {
      T* row = out + r * layer.O + o;
      for (int64_t j = 0; j < columns; j++) {
        const T value = row[j] + layer.b[o + j];
        // Not max: NaN must stay NaN.
        row[j] = relu ? (value < 0 ? T(0) : value) : factor * value;
      }
    }
  }
}

template <typename T>
struct Regression {
  const Kernels<T>& kernel;
  const Mlp<T>& mlp;
  int64_t rows;
  const T* target;
  std::vector<T*> values;     // the input of each layer [R, K], and the last one's output
  std::vector<T*> gradients;  // of W_1, b_1, ..., W_D, b_D
  T* deltas[2];               // gradients of a layer's output, U blocks [R][W], `block` apart
  T *panels, *errors;         // one a member
  int64_t panel;

  // A row more than there is, so that the blocks are no power of two apart (see tbptt.cpp).
  int64_t block() const { return (rows + 1) * kernel.lanes; }

  void run(const Member& me) const {
    T* mine = panels + me.index * panel;
    const size_t depth = mlp.layers.size();
    for (size_t d = 0; d < depth; d++) {
      linear(me, kernel, rows, values[d], mlp.layers[d], values[d + 1], d + 1 < depth, T(1), mine);
      if (d + 1 < depth) me.wait();
    }
    difference(me, mlp.layers.back().O);
    me.wait();
    for (size_t i = depth; i-- > 0;) {
      const T* delta = deltas[i % 2];
      weights(me, mlp.layers[i], values[i], delta, gradients[2 * i], gradients[2 * i + 1], mine);
      if (i > 0) {
        below(me, mlp.layers[i], values[i], delta, deltas[(i - 1) % 2], mine);
        me.wait();
      }
    }
  }

  // This member's columns of the last layer's delta, (prediction - target) / R, and their error.
  void difference(const Member& me, int64_t size) const {
    const int64_t W = kernel.lanes, U = (size + W - 1) / W;
    T* to = deltas[(mlp.layers.size() - 1) % 2];
    const T* predicted = values.back();
    const T share = T(1) / rows;
    T sums[64] = {};
    for (int64_t u = me.first(U); u < me.last(U); u++) {
      const int64_t lanes = std::min(W, size - u * W);
      for (int64_t r = 0; r < rows; r++) {
        const int64_t at = r * size + u * W;
        T* row = to + u * block() + r * W;
        for (int64_t lane = 0; lane < lanes; lane++) {
          const T d = predicted[at + lane] - target[at + lane];
          sums[lane] += d * d;
          row[lane] = share * d;
        }
        std::fill(row + lanes, row + W, T(0));
      }
    }
    T error = 0;
    for (int64_t lane = 0; lane < W; lane++) error += sums[lane];
    errors[me.index] = share * error / 2;
  }

  // This member's columns of dW [O, K] = delta^T input, and its part of db.
  void weights(const Member& me, const Dense<T>& layer, const T* input, const T* delta, T* dw,
               T* db, T* mine) const {
    const int64_t W = kernel.lanes, U = (layer.O + W - 1) / W;
    const int64_t units = (layer.K + W - 1) / W, last = me.last(units);
    for (int64_t v = me.first(units); v < last; v += kernel.weight_vectors) {
      const int64_t count = std::min(kernel.weight_vectors, last - v), wide = count * W;
      const int64_t column = v * W, columns = std::min(wide, layer.K - column);
      for (int64_t r = 0; r < rows; r++) {
        std::copy_n(input + r * layer.K + column, columns, mine + r * wide);
        std::fill(mine + r * wide + columns, mine + (r + 1) * wide, T(0));
      }
      for (int64_t u = 0; u < U; u++)
        kernel.transposed_product(rows, delta + u * block(), mine, dw + u * W * layer.K + column,
                                  layer.K, std::min(W, layer.O - u * W), columns, false);
    }
    for (int64_t u = me.first(U); u < me.last(U); u++) {
      T sums[64] = {};
      for (int64_t r = 0; r < rows; r++)
        for (int64_t lane = 0; lane < W; lane++) sums[lane] += delta[u * block() + r * W + lane];
      std::copy_n(sums, std::min(W, layer.O - u * W), db + u * W);
    }
  }

  // This member's columns of the delta of the layer below: delta W where that layer's relu let through.
  void below(const Member& me, const Dense<T>& layer, const T* input, const T* delta, T* to,
             T* mine) const {
    const int64_t W = kernel.lanes, U = (layer.O + W - 1) / W;
    const int64_t units = (layer.K + W - 1) / W, last = me.last(units);
    const Rows<T> a{delta, W, block(), U * W};
    for (int64_t v = me.first(units); v < last; v += kernel.vectors) {
      const int64_t count = std::min(kernel.vectors, last - v), wide = count * W;
      const int64_t column = v * W, columns = std::min(wide, layer.K - column);
      for (int64_t o = 0; o < U * W; o++) {
        const int64_t real = o < layer.O ? columns : 0;
        std::copy_n(layer.w + o * layer.K + column, real, mine + o * wide);
        std::fill(mine + o * wide + real, mine + (o + 1) * wide, T(0));
      }
      T* product = mine + U * W * wide;
      kernel.product(rows, a, mine, product, wide, wide);
      for (int64_t i = 0; i < count; i++) {
        for (int64_t r = 0; r < rows; r++) {
          for (int64_t lane = 0; lane < W; lane++) {
            const int64_t j = column + i * W + lane;
            const bool through = j < layer.K && input[r * layer.K + j] > 0;
            to[(v + i) * block() + r * W + lane] =
                through ? product[r * wide + i * W + lane] : T(0);
          }
        }
      }
    }
  }
};

template <typename T>
Tensor predict_as(const Tensor& state, at::TensorList estimator, double scale) {
  const Mlp<T> mlp(estimator);
  const Tensor in = state.contiguous();
  const int64_t rows = in.numel() / in.size(-1);
  Tensor out = empty(in.sizes(), in.options());
  static thread_local Scratch<T> value_scratch, panel_scratch;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t widest = mlp.widest(), panel = widest * kernel.vectors * kernel.lanes;
  const int64_t threads = mlp.threads(rows, kernel.lanes);
  T* values = value_scratch.get(2 * rows * widest);
  T* panels = panel_scratch.get(threads * panel);
  run_team(threads, [&](const Member& me) {
    const T* from = in.const_data_ptr<T>();
    for (size_t d = 0; d < mlp.layers.size(); d++) {
      const bool last = d + 1 == mlp.layers.size();
      T* to = last ? out.mutable_data_ptr<T>() : values + (d % 2) * rows * widest;
      linear(me, kernel, rows, from, mlp.layers[d], to, !last, static_cast<T>(scale),
             panels + me.index * panel);
      me.wait();
      from = to;
    }
  });
  return out;
}

template <typename T>
std::tuple<Tensor, std::vector<Tensor>> regression_as(const Tensor& entered, const Tensor& target,
                                                      at::TensorList estimator) {
  const Mlp<T> mlp(estimator);
  const Tensor in = entered.contiguous(), goal = target.to(entered.scalar_type()).contiguous();
  const Kernels<T>& kernel = kernels<T>();
  const int64_t W = kernel.lanes, rows = in.size(0), widest = (mlp.widest() + W - 1) / W * W;
  const int64_t threads = mlp.threads(rows, W);
  const int64_t panel = (widest + rows) * kernel.vectors * W;
  static thread_local Scratch<T> value_scratch, delta_scratch, panel_scratch, error_scratch;

  std::vector<Tensor> result;
  for (const Tensor& tensor : mlp.held) result.push_back(empty(tensor.sizes(), tensor.options()));
  T* values = value_scratch.get(mlp.layers.size() * rows * widest);
  T* deltas = delta_scratch.get(2 * (rows + 1) * widest);
  Regression<T> pass{kernel,  mlp,     rows, goal.const_data_ptr<T>(), {}, {}, {},
                     nullptr, nullptr, panel};
  pass.values.push_back(const_cast<T*>(in.const_data_ptr<T>()));
  for (size_t d = 0; d < mlp.layers.size(); d++) pass.values.push_back(values + d * rows * widest);
  for (const Tensor& tensor : result) pass.gradients.push_back(tensor.mutable_data_ptr<T>());
  pass.deltas[0] = deltas, pass.deltas[1] = deltas + (rows + 1) * widest;
  pass.panels = panel_scratch.get(threads * panel);
  pass.errors = error_scratch.get(threads);
  std::fill_n(pass.errors, threads, T(0));
  run_team(threads, [&](const Member& me) { pass.run(me); });

  T error = 0;
  for (int64_t i = 0; i < threads; i++) error += pass.errors[i];
  for (size_t i = 0; i < result.size(); i++) result[i] = result[i].to(estimator[i].scalar_type());
  return {at::scalar_tensor(error, in.options()), result};
}

std::tuple<Tensor, std::vector<Tensor>> regression(const Tensor& entered, const Tensor& target,
                                                   at::TensorList estimator) {
  check_regression(entered, target, estimator);
  return entered.scalar_type() == at::kDouble ? regression_as<double>(entered, target, estimator)
                                              : regression_as<float>(entered, target, estimator);
}

}  // namespace

Tensor predict(const Tensor& state, at::TensorList estimator, double scale) {
  check_estimator(estimator, state.size(-1));
  return state.scalar_type() == at::kDouble ? predict_as<double>(state, estimator, scale)
                                            : predict_as<float>(state, estimator, scale);
}

}  // namespace dnirnn::cpu

TORCH_LIBRARY_IMPL(dnirnn, CPU, m) { m.impl("regression", &dnirnn::cpu::regression); }
