// LSTM cells that follow each other within a step, on the CPU: forward.
#include "cpu/cell_tensors.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "cpu/scratch.h"

namespace dnirnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
struct Forward {
  const Network& net;
  const CellTensors<T>& tensors;
  const Kernels<T>& kernel;
  const T *x, *state, *probe;  // probe may be null
  const bool* reset;           // may be null
  T *output, *sent;
  Kept<T> kept;
  // Work: the state of each row as it is now, the products of one cell, zeros, and the panels of the
  // weights, a cell after another.
  T *now, *products, *zeros, *panels;

  static int64_t panel_size(const Network& net, int64_t W) {
    int64_t size = 0;
    for (const Cell& cell : net.cells) size += padded(cell.R, W) * cell.D;
    return size;
  }

  void run(const Member& me) const {
    const Sizes& s = net.s;
    const int64_t W = kernel.lanes, b0 = me.first(s.B), b1 = me.last(s.B);
    T* own = panels;
    for (const Cell& cell : net.cells) {
      pack(me, cell, own);
      own += padded(cell.R, W) * cell.D;
    }
    for (int64_t b = b0; b < b1; b++) {
      enter(0, b);
      begin(0, b);
    }
    me.wait();
    const int64_t L = net.cells.size();
    for (int64_t t = 0; t < s.T; t++) {
      if (net.skip && !kept.whole) {
        const bool idle = nobody_updates();
        me.wait();
        if (idle) {
          for (int64_t b = b0; b < b1; b++) end(t, b);
          me.wait();
          continue;
        }
      }
      const T* panel = panels;
      for (int64_t l = 0; l < L; l++) {
        const Cell& cell = net.cells[l];
        const T* in = kept.at(net.kept[l].in, t % s.K, t / s.K, 0);
        panels_of(me, cell.R, W, [&](int64_t column, int64_t columns) {
          kernel.product(s.B, {in, cell.D, W, cell.D}, panel + column * cell.D, products + column,
                         cell.R, columns);
        });
        me.wait();
        for (int64_t b = b0; b < b1; b++) {
          compute(l, t, b);
          if (l + 1 < L) {
            gather(l + 1, t, b);
          } else {
            end(t, b);
          }
        }
        me.wait();
        panel += padded(cell.R, W) * cell.D;
      }
    }
  }

  // A thread's columns of all matrices of a cell as panels: [R] by what the cell reads.
  void pack(const Member& me, const Cell& cell, T* to) const {
    const int64_t W = kernel.lanes;
    panels_of(me, cell.R, W, [&](int64_t column, int64_t columns) {
      const int64_t groups = (columns + W - 1) / W, last = columns - (groups - 1) * W;
      for (size_t j = 0; j < cell.reads.size(); j++) {
        const Read& read = cell.reads[j];
        kernel.pack_rows(tensors.weights[cell.first_weight + j] + column * read.width,
                         W * read.width, groups, W, last, read.width,
                         to + column * cell.D + read.column * groups * W);
      }
    });
  }

  // What the first step of chunk n starts from.
  void enter(int64_t n, int64_t b) const {
    const Sizes& s = net.s;
    const T* from = (n == 0 ? state : sent + (n - 1) * s.B * s.S) + b * s.S;
    const T* add = probe ? probe + (n * s.B + b) * s.S : nullptr;
    T* to = now + b * s.S;
    for (int64_t j = 0; j < s.S; j++) to[j] = add ? from[j] + add[j] : from[j];
  }

  // Before the step: a reset, what an option reads of the state, what the first cell reads.
  void begin(int64_t t, int64_t b) const {
    const Sizes& s = net.s;
    T* row = now + b * s.S;
    if (reset && reset[t * s.B + b]) {
      std::fill_n(row, s.S, T(0));
      if (net.skip) row[net.soft()] = 1;
    }
    if (net.skip) std::copy_n(row, s.S, kept.at(net.before, t % s.K, t / s.K, b));
    gather(0, t, b);
  }

  void gather(int64_t l, int64_t t, int64_t b) const {
    const Sizes& s = net.s;
    const Cell& cell = net.cells[l];
    const int64_t k = t % s.K, n = t / s.K;
    const T* row = now + b * s.S;
    T *in = kept.at(net.kept[l].in, k, n, b), *marks = kept.at(net.kept[l].marks, k, n, b);
    if (net.detect) {
      marks[0] = l + 1 < static_cast<int64_t>(net.cells.size()) ? row[net.z(l)] : T(0);
      marks[1] = l ? row[net.z(l - 1)] : T(1);
    }
    for (size_t j = 0; j < cell.reads.size(); j++) {
      const Read& read = cell.reads[j];
      const T* from = read.from == kReadsX ? x + (t * s.B + b) * s.I : row + net.parts[read.from].h;
      const T* mask = j ? tensors.mask(cell, j, t, b) : nullptr;
      T* to = in + read.column;
      for (int64_t i = 0; i < read.width; i++) to[i] = mask ? from[i] * mask[i] : from[i];
      if (!net.detect || j == 0) continue;
      std::copy_n(from, read.width, kept.at(net.kept[l].raw, k, n, b) + read.column - cell.H);
      const T scale = scale_of(cell, j, marks);
      for (int64_t i = 0; i < read.width; i++) to[i] *= scale;
    }
    std::copy_n(row + net.parts[cell.part].c, cell.H, kept.at(net.kept[l].c, k, n, b));
  }

  void compute(int64_t l, int64_t t, int64_t b) const {
    const Sizes& s = net.s;
    const Cell& cell = net.cells[l];
    const CellSections& of = net.kept[l];
    const int64_t k = t % s.K, n = t / s.K;
    LstmRowForward<T> row{};
    row.options = tensors.options(net, l, t, b);
    row.zx = products + b * cell.R;
    row.zh = zeros;
    row.bias = tensors.bias(cell);
    T shares[2];
    if (net.detect) {
      // There the bias is inside the normalisation.
      shares_of(kept.at(of.marks, k, n, b), shares);
      row.options.shares = shares;
      row.zh = row.bias;
      row.bias = net.norm ? tensors.norm[2 * l + 1] : zeros;
    }
    row.h = kept.at(of.in, k, n, b);
    row.c = kept.at(of.c, k, n, b);
    row.gates = kept.at(of.gates, k, n, b);
    row.normed = kept.at(of.normed, k, n, b);
    row.scale = kept.at(of.scales, k, n, b);
    row.h_next = now + b * s.S + net.parts[cell.part].h;
    row.c_next = now + b * s.S + net.parts[cell.part].c;
    row.width = cell.H;
    kernel.lstm_row_forward(row);
    if (cell.R == 4 * cell.H) return;
    T& detected = kept.at(of.marks, k, n, b)[2];
    detected = row.zx[4 * cell.H] + row.zh[4 * cell.H];
    now[b * s.S + net.z(l)] = detected > 0;
  }

  // After the last cell: what an option makes of the state, the output, and the next step.
  void end(int64_t t, int64_t b) const {
    const Sizes& s = net.s;
    const int64_t n = t / s.K, H = net.top();
    T *row = now + b * s.S, *out = output + (t * s.B + b) * net.O;
    if (net.skip) {
      skip(t, b);
      std::copy_n(row + net.held(), H, out);
    } else if (net.detect) {
      for (const Part& part : net.parts) out = std::copy_n(row + part.h, part.H, out);
      std::copy_n(row + net.cells_size, net.cells.size() - 1, out);
    } else {
      std::copy_n(row + net.parts[net.cells.back().part].h, H, out);
    }
    if (t + 1 == s.T || (t + 1) % s.K == 0) {
      std::copy_n(row, s.S, sent + (n * s.B + b) * s.S);
      if (t + 1 < s.T) enter(n + 1, b);
    }
    if (t + 1 < s.T) begin(t + 1, b);
  }

  bool nobody_updates() const {
    for (int64_t b = 0; b < net.s.B; b++)
      if (now[b * net.s.S + net.soft()] > T(0.5)) return false;
    return true;
  }

  // The state is as the cells have made it where the row updates, else as it was. Writes u behind
  // the output.
  void skip(int64_t t, int64_t b) const {
    const Sizes& s = net.s;
    const int64_t k = t % s.K, n = t / s.K, size = net.cells_size, H = net.top();
    const T* before = kept.at(net.before, k, n, b);
    T *row = now + b * s.S, soft = before[net.soft()];
    const bool updates = soft > T(0.5);
    std::copy_n(row, size, kept.at(net.fresh, k, n, b));
    if (updates) {
      std::copy_n(row + net.parts[net.cells.back().part].h, H, row + net.held());
    } else {
      std::copy_n(before, size + H, row);
    }
    const T grown = 1 / (1 + std::exp(-(dot(row, tensors.skip[0], size) + tensors.skip[1][0])));
    row[net.soft()] = updates ? grown : soft + std::min(grown, 1 - soft);
    output[(t * s.B + b) * net.O + H] = updates;
  }
};

template <typename T>
CellsForwardResult forward(const Network& net, const Tensor& x, const Tensor& state,
                           const OptionalTensor& probe, at::TensorList weights,
                           const CellOptions& with, const OptionalTensor& reset, bool keep) {
  const Sizes& s = net.s;
  const auto type = c10::CppTypeToScalarType<T>::value;
  const Tensor x_in = x.to(type).contiguous(), state_in = state.contiguous();
  const Tensor probe_in = probe ? probe->contiguous() : Tensor();
  const Tensor reset_in = reset ? reset->contiguous() : Tensor();
  const CellTensors<T> tensors(net, weights, with);
  const auto options = x.options().dtype(type);
  Tensor output = empty({s.T, s.B, net.O}, options), sent = empty({s.N, s.B, s.S}, options);
  const int64_t steps = keep ? s.K * s.N : 1;
  Tensor kept = empty({steps * s.B * net.kept_width}, options);
  // A short last chunk leaves its last steps unwritten: outputs of an operator must be defined.
  if (keep && s.steps(s.N - 1) < s.K) kept.zero_();

  static thread_local Scratch<T> now, products, zeros, panels;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t W = kernel.lanes, H = most_of(net, &Cell::H);
  T* zero = std::fill_n(zeros.get(4 * H), 4 * H, T(0)) - 4 * H;
  const Forward<T> pass{.net = net,
                        .tensors = tensors,
                        .kernel = kernel,
                        .x = x_in.const_data_ptr<T>(),
                        .state = state_in.const_data_ptr<T>(),
                        .probe = probe ? probe_in.const_data_ptr<T>() : nullptr,
                        .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
                        .output = output.mutable_data_ptr<T>(),
                        .sent = sent.mutable_data_ptr<T>(),
                        .kept = Kept<T>(kept.mutable_data_ptr<T>(), s, keep),
                        .now = now.get(s.B * s.S),
                        .products = products.get(s.B * most_of(net, &Cell::R)),
                        .zeros = zero,
                        .panels = panels.get(Forward<T>::panel_size(net, W))};
  run_team(cells_team(net, s.B, W), [&](const Member& me) { pass.run(me); });
  return {output.to(x.scalar_type()), sent, keep ? kept : at::empty({0}, options)};
}

CellsForwardResult lstm_cells(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                              at::IntArrayRef cells, at::TensorList weights, at::TensorList norm,
                              at::TensorList masks, at::TensorList skip,
                              const OptionalTensor& slope, int64_t truncation,
                              const OptionalTensor& reset, bool keep) {
  const CellOptions with{norm, masks, skip, slope};
  const Network net = network_of(x, cells, weights, with, truncation);
  check_state(net.s, x, state, probe, reset);
  TORCH_CHECK_VALUE(!probe || probe->size(0) == net.s.N, "probe must be [", net.s.N, " chunks, ",
                    net.s.B, ", ", net.s.S, "]; got ", probe->sizes());
  const auto type = x.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16,
                   "x must be float32, float64 or bfloat16; got ", type);
  return type == at::kDouble ? forward<double>(net, x, state, probe, weights, with, reset, keep)
                             : forward<float>(net, x, state, probe, weights, with, reset, keep);
}

}  // namespace
}  // namespace dnirnn::cpu

TORCH_LIBRARY_IMPL(dnirnn, CPU, m) { m.impl("lstm_cells", &dnirnn::cpu::lstm_cells); }
