// LSTM cells that follow each other within a step, on the CPU: backward.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>

#include "cpu/cell_tensors.h"
#include "cpu/scratch.h"

namespace dnirnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Where a thread's sums for the vectors begin: of each cell bias [4 H], gain [4 H], gain_c, bias_c,
// and with detectors the bias [R] inside the normalisation, the one before being the shift; then w and
// b of skip.
struct SumsLayout {
  std::vector<int64_t> cells;
  int64_t skip, width;

  explicit SumsLayout(const Network& net) : skip(0) {
    for (const Cell& cell : net.cells) {
      cells.push_back(skip);
      skip += 10 * cell.H + (net.detect ? cell.R : 0);
    }
    width = skip + (net.skip ? net.cells_size + 1 : 0);
  }
};

template <typename T>
struct Backward {
  const Network& net;
  const CellTensors<T>& tensors;
  const Kernels<T>& kernel;
  const SumsLayout& layout;
  const T *grad_output, *grad_sent;  // null where there is none
  const bool* reset;
  Kept<T> kept;
  T *grad_x, *grad_probe, *grad_state;  // null where they are not wanted
  std::vector<T*> grad_weights;         // of each matrix, null where it is not wanted
  int64_t group_steps;
  // Work, rows [N B]: the gradient of the state as it is at the step and cell at hand, of what skip
  // leaves of it to the step before, and what a product gives; the gate gradients of a group, a cell
  // after another, and those of one cell as panels; the packed weights, a cell after another; for
  // each thread a panel of inputs, sums and a row.
  T *grad, *past, *back, *zeros, *d, *d_panels, *panels, *inputs, *sums, *work;

  int64_t rows() const { return net.s.N * net.s.B; }
  // Not a power of two apart: rows of one column would lie in the same sets of the caches.
  static int64_t ld(const Cell& cell, int64_t W) { return padded(cell.R, W) + W; }
  int64_t ld(const Cell& cell) const { return ld(cell, kernel.lanes); }
  static int64_t panel_size(const Cell& cell, int64_t W) {
    int64_t size = 0;
    for (const Read& read : cell.reads) size += padded(read.width, W) * cell.R;
    return size;
  }
  bool wants(const Read& read) const { return read.from != kReadsX || grad_x; }

  void run(const Member& me) const {
    const Sizes& s = net.s;
    const int64_t W = kernel.lanes, L = net.cells.size();
    const int64_t r0 = me.first(rows()), r1 = me.last(rows());
    std::vector<T*> own(L), d_own(L);
    T *panel = panels, *at = d;
    for (int64_t l = 0; l < L; l++) {
      own[l] = panel, d_own[l] = at;
      panel += panel_size(net.cells[l], W);
      at += group_steps * rows() * ld(net.cells[l]);
      pack(me, net.cells[l], own[l]);
    }
    for (int64_t r = r0; r < r1; r++)
      for (int64_t j = 0; j < s.S; j++)
        grad[r * s.S + j] = grad_sent ? grad_sent[r * s.S + j] : T(0);
    std::fill_n(sums + me.index * layout.width, layout.width, T(0));
    for (int64_t high = s.K; high > 0; high -= group_steps) {
      const int64_t low = std::max<int64_t>(0, high - group_steps);
      for (int64_t k = high - 1; k >= low; k--) {
        const int64_t live = s.chunks(k) * s.B, last = std::min(r1, live);
        for (int64_t r = r0; r < last; r++) end(me, k, r);
        for (int64_t l = L - 1; l >= 0; l--) {
          const Cell& cell = net.cells[l];
          T* of_step = d_own[l] + (k - low) * rows() * ld(cell);
          for (int64_t r = r0; r < r1; r++) {
            if (r >= live) {
              std::fill_n(of_step + r * ld(cell), cell.R, T(0));
              continue;
            }
            if (l + 1 < L) absorb(l + 1, k, r);
            compute(me, l, k, r, of_step + r * ld(cell));
          }
          me.wait();
          multiply(me, cell, own[l], of_step, live);
          me.wait();
        }
        for (int64_t r = r0; r < last; r++) {
          absorb(0, k, r);
          begin(k, r);
        }
      }
      for (int64_t l = 0; l < L && !grad_weights.empty(); l++)
        weight_gradients(me, l, d_own[l], low, high);
      me.wait();
    }
    for (int64_t r = r0; r < r1; r++) {
      if (grad_probe) std::copy_n(grad + r * s.S, s.S, grad_probe + r * s.S);
      if (grad_state && r < s.B) std::copy_n(grad + r * s.S, s.S, grad_state + r * s.S);
    }
  }

  void pack(const Member& me, const Cell& cell, T* to) const {
    for (size_t j = 0; j < cell.reads.size(); j++) {
      const Read& read = cell.reads[j];
      if (!wants(read)) continue;
      const T* w = tensors.weights[cell.first_weight + j];
      panels_of(me, read.width, kernel.lanes, [&](int64_t column, int64_t columns) {
        kernel.put_weights(0, cell.R, w + column, read.width, columns, to + column * cell.R,
                           padded(columns, kernel.lanes));
      });
      to += padded(read.width, kernel.lanes) * cell.R;
    }
  }

  // What comes back to all that the cell has read, into `back`.
  void multiply(const Member& me, const Cell& cell, const T* panel, const T* of_step,
                int64_t live) const {
    const int64_t W = kernel.lanes;
    for (const Read& read : cell.reads) {
      if (!wants(read)) continue;
      panels_of(me, read.width, W, [&](int64_t column, int64_t columns) {
        kernel.product(live, {of_step, ld(cell), W, cell.R}, panel + column * cell.R,
                       back + read.column + column, cell.D, columns);
      });
      panel += padded(read.width, W) * cell.R;
    }
  }

  // Adds what came back through cell l's product to the gradient of what it read.
  void absorb(int64_t l, int64_t k, int64_t r) const {
    const Sizes& s = net.s;
    const Cell& cell = net.cells[l];
    const int64_t t = r / s.B * s.K + k, b = r % s.B;
    for (size_t j = 0; j < cell.reads.size(); j++) {
      const Read& read = cell.reads[j];
      if (!wants(read)) continue;
      const T *from = back + r * cell.D + read.column,
              *mask = j ? tensors.mask(cell, j, t, b) : nullptr;
      T* to = read.from == kReadsX ? grad_x + (t * s.B + b) * s.I
                                   : grad + r * s.S + net.parts[read.from].h;
      const T* marks = net.detect ? kept.at(net.kept[l].marks, k, r / s.B, b) : nullptr;
      const T scale = j && marks ? scale_of(cell, j, marks) : T(1);
      for (int64_t i = 0; i < read.width; i++)
        to[i] += scale * (mask ? from[i] * mask[i] : from[i]);
      if (!marks || j == 0 || read.from == kReadsX) continue;
      const T* raw = kept.at(net.kept[l].raw, k, r / s.B, b) + read.column - cell.H;
      grad[r * s.S + net.z(std::min(l, read.from))] += dot(from, raw, read.width);
    }
  }

  void compute(const Member& me, int64_t l, int64_t k, int64_t r, T* to) const {
    const Sizes& s = net.s;
    const Cell& cell = net.cells[l];
    const CellSections& of = net.kept[l];
    const int64_t n = r / s.B, b = r % s.B;
    LstmRowBackward<T> row{};
    row.options = tensors.options(net, l, n * s.K + k, b);
    const T* marks = kept.at(of.marks, k, n, b);
    T shares[2], d_shares[2];
    if (net.detect) shares_of(marks, shares), row.options.shares = shares;
    row.d_shares = d_shares;
    row.h = kept.at(of.in, k, n, b);
    row.c = kept.at(of.c, k, n, b);
    row.gates = kept.at(of.gates, k, n, b);
    row.normed = kept.at(of.normed, k, n, b);
    row.scale = kept.at(of.scales, k, n, b);
    row.back = zeros;
    row.carry_h = grad + r * s.S + net.parts[cell.part].h;
    row.carry_c = grad + r * s.S + net.parts[cell.part].c;
    row.d = to;
    row.sums = sums + me.index * layout.width + layout.cells[l];
    row.work = work + me.index * most_of(net, &Cell::H);
    row.width = cell.H;
    kernel.lstm_row_backward(row);
    if (!net.detect) return;
    T* z = grad + r * s.S + net.cells_size;
    if (cell.R > 4 * cell.H) {
      const T steep = tensors.slope * marks[2];
      to[4 * cell.H] = steep > -1 && steep < 1 ? z[l] * (tensors.slope / 2) : T(0);
      z[l] = -(1 - marks[1]) * d_shares[0] - marks[1] * d_shares[1];
    }
    if (l) z[l - 1] += (1 - marks[0]) * (d_shares[1] - d_shares[0]);
    add_scaled(row.sums + 10 * cell.H, T(1), to, cell.R);
  }

  // What comes before the last cell: the output, and what an option made of the state.
  void end(const Member& me, int64_t k, int64_t r) const {
    const Sizes& s = net.s;
    const int64_t t = r / s.B * s.K + k, b = r % s.B, H = net.top();
    T* row = grad + r * s.S;
    const T* out = grad_output ? grad_output + (t * s.B + b) * net.O : nullptr;
    const int64_t last = net.parts[net.cells.back().part].h;
    if (out && net.detect) {
      for (const Part& part : net.parts) {
        add_scaled(row + part.h, T(1), out, part.H);
        out += part.H;
      }
      add_scaled(row + net.cells_size, T(1), out, net.cells.size() - 1);
    } else if (out) {
      add_scaled(row + (net.skip ? net.held() : last), T(1), out, H);
    }
    if (!net.skip) return;

    const int64_t n = r / s.B, size = net.cells_size;
    const T *before = kept.at(net.before, k, n, b), *fresh = kept.at(net.fresh, k, n, b);
    const T soft = before[net.soft()], grad_soft = row[net.soft()], room = 1 - soft;
    const bool updates = soft > T(0.5);
    const T* after = updates ? fresh : before;
    const T grown = 1 / (1 + std::exp(-(dot(after, tensors.skip[0], size) + tensors.skip[1][0])));
    // Where both are the least, each has half of the gradient, as torch's minimum has it.
    const T share = updates || grown < room ? 1 : grown == room ? T(0.5) : T(0);
    const T through = grad_soft * share * grown * (1 - grown);
    T* to_skip = sums + me.index * layout.width + layout.skip;
    add_scaled(to_skip, through, after, size);
    to_skip[size] += through;
    add_scaled(row, through, tensors.skip[0], size);
    // By u, which counts as u~ on the way back.
    T to_u = grad_soft * (grown - (soft + std::min(grown, room))) + (out ? out[H] : T(0));
    for (int64_t j = 0; j < size; j++) to_u += row[j] * (fresh[j] - before[j]);
    for (int64_t j = 0; j < H; j++)
      to_u += row[net.held() + j] * (fresh[last + j] - before[net.held() + j]);
    T* rest = past + r * s.S;
    std::fill_n(rest, s.S, T(0));
    rest[net.soft()] = to_u + (updates ? T(0) : grad_soft * share);
    if (updates) {
      add_scaled(row + last, T(1), row + net.held(), H);
    } else {
      std::copy_n(row, size + H, rest);
      std::fill_n(row, size, T(0));
    }
  }

  // What comes after the first cell: the gradient of the state before the step.
  void begin(int64_t k, int64_t r) const {
    const Sizes& s = net.s;
    T* row = grad + r * s.S;
    if (net.skip) {
      std::fill(row + net.cells_size, row + s.S, T(0));
      add_scaled(row, T(1), past + r * s.S, s.S);
    }
    if (reset && reset[(r / s.B * s.K + k) * s.B + r % s.B]) std::fill_n(row, s.S, T(0));
  }

  // Adds the share of steps [low, high) of cell l; the first group, of the last steps, overwrites.
  void weight_gradients(const Member& me, int64_t l, const T* of, int64_t low, int64_t high) const {
    const Cell& cell = net.cells[l];
    const int64_t W = kernel.lanes, most = kernel.weight_vectors;
    const int64_t count = (high - low) * rows(), apart = (group_steps * rows() + 1) * W;
    const int64_t blocks = (cell.R + W - 1) / W;
    me.wait();  // for those that still read the panels of the cell before
    for (int64_t i = me.first(blocks); i < me.last(blocks); i++)
      kernel.put_rows(0, count, of + i * W, ld(cell), std::min(W, cell.R - i * W),
                      d_panels + i * apart, W);
    me.wait();
    T* panel = inputs + me.index * group_steps * rows() * most * W;
    int64_t units = 0;
    for (const Read& read : cell.reads) units += (read.width + W - 1) / W;
    int64_t first = 0;
    for (size_t j = 0; j < cell.reads.size(); j++) {
      const Read& read = cell.reads[j];
      const int64_t after = first + (read.width + W - 1) / W;
      const int64_t end = std::min(me.last(units), after);
      for (int64_t unit = std::max(me.first(units), first); unit < end; unit += most) {
        const int64_t column = (unit - first) * W, vectors = std::min(most, end - unit);
        const int64_t columns = std::min(vectors * W, read.width - column);
        // What a short chunk does not have is zero.
        const T* in = kept.at(net.kept[l].in, low, 0, 0) + read.column + column;
        kernel.put_rows(0, count, in, cell.D, columns, panel, vectors * W);
        T* grad = grad_weights[cell.first_weight + j] + column;
        for (int64_t i = 0; i < blocks; i++)
          kernel.transposed_product(count, d_panels + i * apart, panel, grad + i * W * read.width,
                                    read.width, std::min(W, cell.R - i * W), columns,
                                    high != net.s.K);
      }
      first = after;
    }
  }
};

template <typename T>
CellsBackwardResult backward(const Network& net, const OptionalTensor& grad_output,
                             const OptionalTensor& grad_sent, const Tensor& x, const Tensor& kept,
                             at::TensorList weights, const CellOptions& with,
                             const OptionalTensor& reset, bool with_grad_x, bool with_grad_state,
                             bool with_grad_probe, bool with_grad_weights) {
  const Sizes& s = net.s;
  const auto maybe = [&](const OptionalTensor& tensor) {
    return tensor ? tensor->to(c10::CppTypeToScalarType<T>::value).contiguous() : Tensor();
  };
  const Tensor out_in = maybe(grad_output), sent_in = maybe(grad_sent);
  const Tensor reset_in = reset ? reset->contiguous() : Tensor();
  const CellTensors<T> tensors(net, weights, with);
  const auto options = kept.options();
  Tensor grad_x = at::zeros({with_grad_x ? s.T : 0, s.B, s.I}, options);
  Tensor grad_state = empty({with_grad_state ? s.B : 0, s.S}, options);
  Tensor grad_probe = empty({with_grad_probe ? s.N : 0, s.B, s.S}, options);
  std::vector<Tensor> grad_weights(with_grad_weights ? weights.size() : 0);
  std::vector<T*> to_weights(grad_weights.size());
  for (const Cell& cell : net.cells) {
    for (size_t j = 0; with_grad_weights && j < cell.reads.size(); j++) {
      const int64_t i = cell.first_weight + j;
      grad_weights[i] = empty(weights[i].sizes(), options);
      to_weights[i] = grad_weights[i].mutable_data_ptr<T>();
    }
  }
  const auto wanted = [](bool yes, const Tensor& tensor) {
    return yes ? tensor.mutable_data_ptr<T>() : nullptr;
  };

  static thread_local Scratch<T> grad, past, back, zeros, d, d_panels, panels, inputs, work;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t W = kernel.lanes, rows = s.N * s.B;
  const int64_t group_steps = std::min(s.K, std::max<int64_t>(1, kGroupRows / rows));
  const int64_t threads = cells_team(net, rows, W);
  const int64_t H = most_of(net, &Cell::H);
  int64_t d_width = 0, panel_size = 0;
  for (const Cell& cell : net.cells) {
    d_width += Backward<T>::ld(cell, W);
    panel_size += Backward<T>::panel_size(cell, W);
  }
  const SumsLayout layout(net);
  // zeros: a thread that the runtime does not give leaves its share as it is.
  const Tensor sums = at::zeros({threads, layout.width}, options);
  T* zero = std::fill_n(zeros.get(H), H, T(0)) - H;
  const Backward<T> pass{
      .net = net,
      .tensors = tensors,
      .kernel = kernel,
      .layout = layout,
      .grad_output = out_in.defined() ? out_in.const_data_ptr<T>() : nullptr,
      .grad_sent = sent_in.defined() ? sent_in.const_data_ptr<T>() : nullptr,
      .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
      .kept = Kept<T>(const_cast<T*>(kept.const_data_ptr<T>()), s, true),
      .grad_x = wanted(with_grad_x, grad_x),
      .grad_probe = wanted(with_grad_probe, grad_probe),
      .grad_state = wanted(with_grad_state, grad_state),
      .grad_weights = to_weights,
      .group_steps = group_steps,
      .grad = grad.get(rows * s.S),
      .past = past.get(net.skip ? rows * s.S : 1),
      .back = back.get(rows * most_of(net, &Cell::D)),
      .zeros = zero,
      .d = d.get(group_steps * rows * d_width),
      .d_panels = d_panels.get((4 * H + W) / W * (group_steps * rows + 1) * W),
      .panels = panels.get(panel_size),
      .inputs = inputs.get(threads * group_steps * rows * kernel.weight_vectors * W),
      .sums = sums.mutable_data_ptr<T>(),
      .work = work.get(threads * H)};
  run_team(threads, [&](const Member& me) { pass.run(me); });

  std::vector<Tensor> grad_norm, grad_skip;
  if (with_grad_weights) {
    const Tensor vectors = sums.sum(0);
    const auto part = [&](int64_t first, int64_t count) {
      return vectors.narrow(0, first, count).clone();
    };
    for (size_t l = 0; l < net.cells.size(); l++) {
      const Cell& cell = net.cells[l];
      const int64_t first = layout.cells[l], size = cell.H;
      grad_weights[cell.first_weight + cell.reads.size()] =
          net.detect ? part(first + 10 * size, cell.R) : part(first, 4 * size);
      if (!net.norm) continue;
      grad_norm.push_back(part(first + 4 * size, 4 * size));
      if (net.detect) {
        grad_norm.push_back(part(first, 4 * size));
      } else {
        grad_norm.push_back(part(first + 8 * size, size));
        grad_norm.push_back(part(first + 9 * size, size));
      }
    }
    for (size_t i = 0; i < grad_weights.size(); i++)
      grad_weights[i] = grad_weights[i].to(weights[i].scalar_type());
    if (net.skip)
      grad_skip = {part(layout.skip, net.cells_size).unsqueeze(0),
                   part(layout.skip + net.cells_size, 1)};
  }
  return {grad_x.to(x.scalar_type()), grad_state, grad_probe, grad_weights, grad_norm, grad_skip};
}

CellsBackwardResult lstm_cells_backward(const OptionalTensor& grad_output,
                                        const OptionalTensor& grad_sent, const Tensor& x,
                                        const Tensor& kept, at::IntArrayRef cells,
                                        at::TensorList weights, at::TensorList norm,
                                        at::TensorList masks, at::TensorList skip,
                                        const OptionalTensor& slope, const OptionalTensor& reset,
                                        int64_t truncation, bool with_grad_x, bool with_grad_state,
                                        bool with_grad_probe, bool with_grad_weights) {
  const CellOptions with{norm, masks, skip, slope};
  const Network net = network_of(x, cells, weights, with, truncation);
  const Sizes& s = net.s;
  const auto type = state_type(x.scalar_type());
  const auto check = [&](const char* name, const Tensor& tensor, at::IntArrayRef sizes) {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be ", sizes, "; got ", tensor.sizes());
  };
  if (grad_output) check("grad_output", *grad_output, {s.T, s.B, net.O});
  if (grad_sent) check("grad_sent", *grad_sent, {s.N, s.B, s.S});
  if (reset) check("reset", *reset, {s.T, s.B});
  check("kept", kept, {s.K * s.N * s.B * net.kept_width});
  TORCH_CHECK_VALUE(kept.scalar_type() == type && kept.is_contiguous(),
                    "kept must be contiguous and ", type, ", as lstm_cells returned it");
  const auto pass = type == at::kDouble ? backward<double> : backward<float>;
  return pass(net, grad_output, grad_sent, x, kept, weights, with, reset, with_grad_x,
              with_grad_state, with_grad_probe, with_grad_weights);
}

}  // namespace
}  // namespace dnirnn::cpu

TORCH_LIBRARY_IMPL(dnirnn, CPU, m) {
  m.impl("lstm_cells_backward", &dnirnn::cpu::lstm_cells_backward);
}
