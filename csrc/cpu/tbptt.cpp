// tbptt and its backward on the CPU, for every cell of cells.h.
//
// Letters as in sizes.h and kernels.h: T steps, B batch, H hidden, L layers, N chunks, K steps a
// chunk, W lanes, U units of W cells; E the type of inputs, outputs, h, gates and their gradients,
// and, in code, T = Wide<E> of everything else: state, probe, weights, what is summed; Cell the cell.
//
// Forward: each thread owns units (columns of the gates), keeps their weights packed in panels, and
// takes every step for all rows; one barrier a step, because the next step reads all of h.
// Backward: given the gradients at the boundaries the N chunks are independent, so they are rows of
// one problem of K steps: the histories are [K, N, B, ...], and a step's rows are contiguous.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <tuple>
#include <vector>

#include "calls.h"
#include "cpu/cells.h"
#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/team.h"
#include "estimator.h"
#include "sizes.h"

namespace dnirnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Rows that are collected: of gate gradients, before they go into the weight gradient; and, where a
// step has few, of the input's products.
constexpr int64_t kGroupRows = 1024;

template <typename T>
struct Layer {
  const T *w_ih, *w_hh, *b_ih, *b_hh;
};

template <typename T>
std::vector<Layer<T>> layers_of(const std::vector<Tensor>& weights) {
  std::vector<Layer<T>> layers;
  for (size_t i = 0; i < weights.size(); i += 4)
    layers.push_back({weights[i].const_data_ptr<T>(), weights[i + 1].const_data_ptr<T>(),
                      weights[i + 2].const_data_ptr<T>(), weights[i + 3].const_data_ptr<T>()});
  return layers;
}

std::vector<Tensor> dense(at::TensorList tensors, at::ScalarType type) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(tensor.to(type).contiguous());
  return result;
}

float widened(bfloat16 x) { return c10::detail::f32_from_bits(x.bits); }
float widened(float x) { return x; }
double widened(double x) { return x; }
template <typename E>
E narrowed(Wide<E> x) {
  if constexpr (sizeof(E) == sizeof x) {
    return x;
  } else {
    return {c10::detail::round_to_nearest_even(x)};
  }
}

// Rows of a panel that contracts `depth` of E.
template <typename E>
int64_t panel_rows(int64_t depth) {
  constexpr int64_t rows = ElementOf<E>::rows;
  return (depth + rows - 1) / rows * rows;
}

template <typename Cell, typename E>
const CellKernels<E>& kernels_of(const Kernels<E>& kernel) {
  if constexpr (std::is_same_v<Cell, LstmCell>) return kernel.lstm;
  if constexpr (std::is_same_v<Cell, GruCell>) return kernel.gru;
  if constexpr (std::is_same_v<Cell, RnnCell>) return kernel.rnn;
}

// The block of the sums' gradients that a gate of unit u belongs to, of the products of x or of h.
template <typename Cell>
int64_t block_of_gate(bool of_x, int64_t u, int64_t gate, int64_t U) {
  return Cell::block(u, of_x ? Cell::OfX::at(gate) : Cell::OfH::at(gate), U);
}

// A panel of columns [column, column + columns) of w_ih or w_hh, its rows in the blocks' order.
template <typename Cell, typename E>
void pack_columns(const Kernels<E>& kernel, bool of_x, const Wide<E>* w, int64_t H, int64_t width,
                  int64_t column, int64_t columns, E* panel) {
  const int64_t W = kernel.lanes, wide = (columns + W - 1) / W * W, U = (H + W - 1) / W;
  for (int64_t u = 0; u < U; u++) {
    for (int64_t gate = 0; gate < Cell::gates; gate++) {
      const int64_t first = of_x ? 0 : Cell::first_h(U);
      const int64_t row = (block_of_gate<Cell>(of_x, u, gate, U) - first) * W;
      const int64_t real = std::min(W, H - u * W);
      if (real < W) std::fill_n(panel + row * wide, W * wide, E{});
      kernel.put_weights(row, real, w + (gate * H + u * W) * width + column, width, columns, panel,
                         wide);
    }
  }
}

// What one step of one chunk is given, kept for the backward pass: h as its product used it; c, what
// the cell carries (of a GRU or RNN h before it was rounded, and the same memory as h where nothing
// is rounded); and its gates, unit after unit in [B][kept][W] (the last one narrower): each is written
// and read by itself, and rows of all gates would be pages apart.
template <typename E, typename Cell>
struct Histories {
  E* h;
  Wide<E>* c;
  E* gates;
  Sizes s;

  int64_t row(int64_t layer, int64_t k, int64_t n) const {
    return ((layer * s.K + k) * s.N + n) * s.B;
  }
  // Of the unit whose first column is j.
  E* gates_of(int64_t row, int64_t j) const { return gates + Cell::kept * (row * s.H + j * s.B); }
};

template <typename E, typename Cell>
struct Forward {
  using T = Wide<E>;
  static constexpr int64_t G = Cell::gates, sums = Cell::sums;
  // Of a layer's part of the state, where c stands.
  static constexpr int64_t states = Cell::states, of_c = states - 1;

  Sizes s;
  const Kernels<E>& kernel;
  const E* x;
  const int64_t* symbols;  // [T, B] in x's place, and then w_ih of layer 0 is a table; or null
  const T *state, *probe;  // probe may be null
  bool probe_every_step;
  const bool* reset;  // may be null
  bool round;         // the dtype of x is bfloat16, and E is not
  std::vector<Layer<T>> layers;
  E *output, *between;  // between: [L - 1, T, B, H], the outputs of the layers below the last
  T* sent;
  Histories<E, Cell> kept;
  E* panels;
  T *biases, *products;

  E* layer_output(int64_t layer) const {
    return layer + 1 == s.L ? output : between + layer * s.T * s.B * s.H;
  }

  // Fills columns [j0, j1) of what step k of chunk n starts from: the state that arrives, plus the
  // probe, or zero where a new sequence starts.
  void enter(int64_t layer, int64_t n, int64_t k, int64_t j0, int64_t j1) const {
    const int64_t t = n * s.K + k, at = layer * states * s.H, c_at = of_c * s.H;
    E* h = kept.h + kept.row(layer, k, n) * s.H;
    T* c = kept.c + kept.row(layer, k, n) * s.H;
    const T* from = n == 0 ? state : sent + (n - 1) * s.B * s.S;
    const T* add = nullptr;
    if (probe && (k == 0 || probe_every_step)) add = probe + (probe_every_step ? t : n) * s.B * s.S;
    for (int64_t b = 0; b < s.B; b++) {
      const int64_t row = b * s.S + at;
      const bool fresh = reset && reset[t * s.B + b];
      for (int64_t j = j0; j < j1; j++) {
        T c_in = k == 0 ? from[row + c_at + j] : c[b * s.H + j];
        T h_in = k == 0 ? from[row + j] : of_c ? T(widened(h[b * s.H + j])) : c_in;
        if (add) h_in += add[row + j], c_in += add[row + c_at + j];
        if (fresh) h_in = c_in = 0;
        h[b * s.H + j] = narrowed<E>(round ? T(c10::BFloat16(h_in)) : h_in);
        c[b * s.H + j] = c_in;
      }
    }
  }

  // One row and so few steps that reading the weights as they lie costs less than packing them.
  static bool direct(const Sizes& s) { return s.B == 1 && s.T <= 2; }
  // The steps whose products of x are made at once: many where one's rows are too few to fill a
  // tile; 0 where each step makes its own.
  static int64_t steps_of_x(const Sizes& s) {
    return s.B <= 8 && s.T > 1 && !direct(s) ? std::min(s.T, kGroupRows / s.B) : 0;
  }
  // Panels that are needed at once: those of one step are used and forgotten.
  static int64_t panel_count(const Sizes& s, int64_t units, int64_t threads) {
    return s.T == 1 ? threads * Cell::units_a_tile : units;
  }

  void run(const Member& me) const {
    const int64_t W = kernel.lanes, U = (s.H + W - 1) / W;
    const int64_t u0 = me.first(U), u1 = me.last(U);
    const int64_t j0 = std::min(u0 * W, s.H), j1 = std::min(u1 * W, s.H);
    for (int64_t layer = 0; layer < s.L; layer++) {
      const Layer<T>& w = layers[layer];
      for (int64_t u = u0; u < u1; u++) {
        T* bias = biases + u * sums * W;
        std::fill_n(bias, sums * W, T(0));
        for (int64_t gate = 0; gate < G; gate++) {
          const int64_t of_x = Cell::OfX::at(gate) * W, of_h = Cell::OfH::at(gate) * W;
          for (int64_t lane = 0; lane < std::min(W, s.H - u * W); lane++) {
            bias[of_x + lane] += w.b_ih[gate * s.H + u * W + lane];
            bias[of_h + lane] += w.b_hh[gate * s.H + u * W + lane];
          }
        }
      }
      enter(layer, 0, 0, j0, j1);
      me.wait();
      for (int64_t t = 0; t < s.T; t++) {
        step(me, layer, t, u0, u1);
        const int64_t next = t + 1;
        if (next < s.T && (next % s.K == 0 || reset || (probe && probe_every_step)))
          enter(layer, next / s.K, next % s.K, j0, j1);
        me.wait();
      }
    }
  }

  void step(const Member& me, int64_t layer, int64_t t, int64_t u0, int64_t u1) const {
    const int64_t W = kernel.lanes, n = t / s.K, k = t % s.K, I = s.input(layer);
    const int64_t row = kept.row(layer, k, n);
    const bool last = k + 1 == s.steps(n);
    const Layer<T>& w = layers[layer];
    const E* in = (layer == 0 ? x : layer_output(layer - 1)) + t * s.B * I;
    E* out = layer_output(layer) + t * s.B * s.H;
    T* end = sent + n * s.B * s.S + layer * states * s.H;
    const int64_t after = last ? 0 : kept.row(layer, k + 1, n) * s.H;
    const bool table = layer == 0 && symbols;
    const int64_t ahead = table ? 0 : steps_of_x(s);
    const Rows<E> rows_x{in, I, W, ahead ? 0 : I}, rows_h{kept.h + row * s.H, s.H, W, s.H};
    const CellKernels<E>& cells = kernels_of<Cell>(kernel);
    const int64_t most = direct(s) ? 1 : Cell::units_a_tile;
    for (int64_t u = u0; u < u1; u += most) {
      const int64_t j = u * W, units = std::min(most, u1 - u), wide = units * G * W;
      CellForward<E> cell{};
      cell.c = kept.c + row * s.H + j;
      cell.gates = kept.gates_of(row, j);
      cell.output = out + j;
      cell.h_next = last ? nullptr : kept.h + after + j;
      cell.h_sent = end + j;
      cell.c_next = last ? end + of_c * s.H + j : kept.c + after + j;
      cell.width = s.H;
      cell.next = last ? s.S : s.H;
      cell.unit_stride = Cell::kept * W * s.B;
      cell.lanes = std::min(units * W, s.H - j);
      cell.round = round;
      cell.round_next = round && !last && !probe_every_step;
      if (table) {
        cell.table = w.w_ih + j;
        cell.symbols = symbols + t * s.B;
      }
      const T* bias = biases + u * sums * W;
      if (direct(s)) {
        cells.forward_direct(rows_x, rows_h, w.w_ih + j * I, w.w_hh + j * s.H, bias, cell);
        continue;
      }
      const int64_t depth_x = panel_rows<E>(I), depth = depth_x + panel_rows<E>(s.H);
      E* panel = panels + (s.T == 1 ? me.index * Cell::units_a_tile : u) * depth * G * W;
      if (t == 0) {
        // At its first use, so that it is still in the near cache.
        pack(w.w_ih, j, units, cell.lanes, I, panel);
        pack(w.w_hh, j, units, cell.lanes, s.H, panel + depth_x * wide);
      }
      if (ahead) {
        T* to = products + u * ahead * s.B * G * W;
        const int64_t rows = std::min(ahead, s.T - t) * s.B;
        if (t % ahead == 0) kernel.product(rows, {in, I, W, I}, panel, to, wide, wide);
        cell.products = to + t % ahead * s.B * wide;
        panel += depth_x * wide;
      }
      cells.forward(s.B, rows_x, rows_h, panel, bias, cell);
    }
  }

  // The panel of the rows of w of units from column j on: of one, gate by gate; or, of a cell of one
  // gate, unit by unit.
  void pack(const T* w, int64_t j, int64_t units, int64_t lanes, int64_t depth, E* panel) const {
    const int64_t W = kernel.lanes, rows = Cell::units_a_tile == 1 ? s.H : W;
    const int64_t last = lanes - (units - 1) * W;
    kernel.pack_rows(w + j * depth, rows * depth, units * G, std::min(W, lanes), last, depth,
                     panel);
  }
};

template <typename E, typename Cell>
struct Backward {
  using T = Wide<E>;
  static constexpr int64_t G = Cell::gates, sums = Cell::sums;
  static constexpr int64_t states = Cell::states, of_c = states - 1;

  Sizes s;
  const Kernels<E>& kernel;
  const E* grad_output;  // null where there is none
  const T* grad_sent;    // likewise
  const E *x, *between;
  const int64_t* symbols;  // in x's place, or null
  int64_t table_rows;
  const bool* reset;
  Histories<E, Cell> kept;
  std::vector<Layer<T>> layers;
  E* grad_x;      // null where it is not wanted
  T* grad_probe;  // [N or T, B, S], null where it is not wanted
  bool probe_every_step;
  T* grad_state;                // null where it is not wanted
  std::vector<Layer<T>> grads;  // const only in name; empty where they are not wanted
  int64_t group_steps;
  // Work: the gradients on their way back [N B, H]; those of the sums, blocks [group rows][W],
  // `block` apart, and as panels of a product over their rows, where that is not the same; the
  // packed weights; each thread's panel of the inputs; the gradient of a layer's input.
  T *dh, *dc;
  E *d_sums, *d_panels, *panels_h, *panels_x, *inputs, *grad_between;

  void run(const Member& me) const {
    for (int64_t layer = s.L - 1; layer >= 0; layer--) run_layer(me, layer);
  }

  void run_layer(const Member& me, int64_t layer) const {
    const int64_t W = kernel.lanes, U = (s.H + W - 1) / W, I = s.input(layer);
    const int64_t u0 = me.first(U), u1 = me.last(U);
    const int64_t j0 = std::min(u0 * W, s.H), j1 = std::min(u1 * W, s.H);
    const Layer<T>& w = layers[layer];
    const E* above = layer + 1 == s.L ? grad_output : grad_between;
    E* below = layer > 0 ? grad_between : grad_x;

    if (below) {
      const int64_t panels = (I + 4 * W - 1) / (4 * W);
      for (int64_t p = me.first(panels); p < me.last(panels); p++)
        pack_columns<Cell>(kernel, true, w.w_ih, s.H, I, p * 4 * W, std::min(4 * W, I - p * 4 * W),
                           panels_x + p * 4 * W * G * U * W);
    }
    for (int64_t r = 0; r < s.N * s.B; r++) {
      for (int64_t j = j0; j < j1; j++) {
        const int64_t from = r * s.S + layer * states * s.H + j;
        dh[r * s.H + j] = grad_sent ? grad_sent[from] : T(0);
        dc[r * s.H + j] = of_c && grad_sent ? grad_sent[from + of_c * s.H] : T(0);
      }
    }
    for (int64_t high = s.K; high > 0; high -= group_steps) {
      const int64_t low = std::max<int64_t>(0, high - group_steps);
      for (int64_t k = high - 1; k >= low; k--) {
        cells(layer, k, low, above, u0, u1);
        if (k == low) put_panels((high - low) * s.N * s.B, u0, u1);
        me.wait();
        back(me, layer, k, low, j0, j1);
      }
      if (!grads.empty()) weight_gradients(me, layer, low, high, high == s.K);
      if (!grads.empty() && layer == 0 && symbols) table_gradient(low, high, high == s.K, u0, u1);
      // The cells of the layer below read all of `below`, and its products write over what
      // this layer's cells read: only after the barrier.
      if (below) input_gradient(me, layer, low, high, below);
      me.wait();
    }
    for (int64_t n = 0; n < s.N; n++) {
      if (n == 0 && grad_state) leave(grad_state, n, layer, j0, j1);
      if (grad_probe && !probe_every_step) leave(grad_probe + n * s.B * s.S, n, layer, j0, j1);
    }
  }

  int64_t group_rows() const { return panel_rows<E>(group_steps * s.N * s.B); }

  int64_t block() const { return block_of(group_rows(), kernel.lanes); }
  // A row more than there is: a power of two apart, the blocks would lie in the same sets of the
  // caches, of which a product reads a few lines of all.
  static int64_t block_of(int64_t rows, int64_t W) { return (rows + panel_rows<E>(1)) * W; }

  // Where the gradient of a sum of unit u begins in d_sums and d_panels.
  int64_t place(int64_t u, int64_t sum) const {
    return Cell::block(u, sum, (s.H + kernel.lanes - 1) / kernel.lanes) * block();
  }
  // The same of what a gate's product, of x or of h, was added to.
  int64_t place_of_gate(bool of_x, int64_t u, int64_t gate) const {
    const int64_t U = (s.H + kernel.lanes - 1) / kernel.lanes;
    return block_of_gate<Cell>(of_x, u, gate, U) * block();
  }

  // The sums' gradients of a group, of units [u0, u1), as panels.
  void put_panels(int64_t rows, int64_t u0, int64_t u1) const {
    if (d_panels == d_sums || grads.empty()) return;
    const int64_t W = kernel.lanes;
    for (int64_t u = u0; u < u1; u++)
      for (int64_t sum = 0; sum < sums; sum++)
        kernel.put_rows(0, rows, d_sums + place(u, sum), W, W, d_panels + place(u, sum), W);
  }

  // The gradients of the sums of step k of every chunk, for units [u0, u1).
  void cells(int64_t layer, int64_t k, int64_t low, const E* above, int64_t u0, int64_t u1) const {
    const int64_t W = kernel.lanes, rows = s.N * s.B;
    for (int64_t u = u0; u < u1; u++) {
      const int64_t j = u * W, apart = sums == 1 ? 0 : place(u, 1) - place(u, 0);
      for (int64_t n = 0; n < s.N; n++) {
        E* to = d_sums + place(u, 0) + ((k - low) * rows + n * s.B) * W;
        if (n >= s.chunks(k)) {
          for (int64_t sum = 0; sum < sums; sum++) std::fill_n(to + sum * apart, s.B * W, E{});
          continue;
        }
        const int64_t row = kept.row(layer, k, n), here = n * s.B * s.H + j;
        CellBackward<E> cell{};
        cell.gates = kept.gates_of(row, j);
        cell.c = kept.c + row * s.H + j;
        cell.grad_output = above ? above + (n * s.K + k) * s.B * s.H + j : nullptr;
        cell.dh = dh + here;
        cell.dc = dc + here;
        cell.d_sums = to;
        cell.width = s.H;
        cell.block = apart;
        cell.lanes = std::min(W, s.H - j);
        kernels_of<Cell>(kernel).backward(s.B, cell);
      }
    }
  }

  // Columns [j0, j1) of dh: the sums' gradients of step k times w_hh; zero before a reset.
  void back(const Member& me, int64_t layer, int64_t k, int64_t low, int64_t j0, int64_t j1) const {
    if (k == 0 && !grad_state && !grad_probe) return;
    const int64_t W = kernel.lanes, U = (s.H + W - 1) / W, rows = s.chunks(k) * s.B;
    const Rows<E> a{d_sums + Cell::first_h(U) * block() + (k - low) * s.N * s.B * W, W, block(),
                    G * U * W};
    for (int64_t j = j0; j < j1; j += 4 * W) {
      const int64_t columns = std::min(4 * W, j1 - j);
      // Packed at its first use; where that is the only one, it is forgotten.
      E* panel = panels_h + (s.K == 1 ? me.index * 4 * W : j) * G * U * W;
      if (k == s.K - 1)
        pack_columns<Cell>(kernel, false, layers[layer].w_hh, s.H, s.H, j, columns, panel);
      kernel.product(rows, a, panel, dh + j, s.H, columns);
    }
    for (int64_t n = 0; n < s.chunks(k); n++) {
      const int64_t t = n * s.K + k;
      for (int64_t b = 0; reset && b < s.B; b++) {
        if (!reset[t * s.B + b]) continue;
        std::fill(dh + (n * s.B + b) * s.H + j0, dh + (n * s.B + b) * s.H + j1, T(0));
        std::fill(dc + (n * s.B + b) * s.H + j0, dc + (n * s.B + b) * s.H + j1, T(0));
      }
      if (grad_probe && probe_every_step) leave(grad_probe + t * s.B * s.S, n, layer, j0, j1);
    }
  }

  // Writes the gradients that have come back in chunk n to a [B, S].
  void leave(T* to, int64_t n, int64_t layer, int64_t j0, int64_t j1) const {
    for (int64_t b = 0; b < s.B; b++) {
      for (int64_t j = j0; j < j1; j++) {
        const int64_t from = (n * s.B + b) * s.H + j, at = b * s.S + layer * states * s.H + j;
        to[at] = of_c ? dh[from] : dh[from] + dc[from];
        if (of_c) to[at + of_c * s.H] = dc[from];
      }
    }
  }

  // Adds to the weights' gradients what steps [low, high) give.
  void weight_gradients(const Member& me, int64_t layer, int64_t low, int64_t high,
                        bool first) const {
    const int64_t W = kernel.lanes, U = (s.H + W - 1) / W, I = s.input(layer);
    const int64_t units_x = (I + W - 1) / W, units = units_x + U, wide = kernel.weight_vectors;
    const int64_t rows = (high - low) * s.N * s.B;
    E* panel = inputs + me.index * group_rows() * wide * W;
    const Layer<T>& grad = grads[layer];
    int64_t unit = me.first(units);
    const int64_t end = me.last(units);
    while (unit < end) {
      const bool of_x = unit < units_x;
      const int64_t column = (of_x ? unit : unit - units_x) * W, width = of_x ? I : s.H;
      const int64_t stop = of_x ? std::min(end, units_x) : end;
      const int64_t count = std::min(wide, stop - unit);
      const int64_t columns = std::min(count * W, width - column);
      pack_inputs(layer, low, high, of_x, column, columns, count * W, panel);
      T* to = const_cast<T*>(of_x ? grad.w_ih : grad.w_hh) + column;
      for (int64_t u = 0; u < U; u++) {
        for (int64_t gate = 0; gate < G; gate++) {
          kernel.transposed_product(rows, d_panels + place_of_gate(of_x, u, gate), panel,
                                    to + (gate * s.H + u * W) * width, width,
                                    std::min(W, s.H - u * W), columns, !first);
        }
      }
      unit += count;
    }
    for (int64_t u = me.first(U); u < me.last(U); u++) {
      for (int64_t gate = 0; gate < G; gate++) {
        const int64_t at = gate * s.H + u * W, lanes = std::min(W, s.H - u * W);
        const int64_t of_x = place_of_gate(true, u, gate), of_h = place_of_gate(false, u, gate);
        T *ih = const_cast<T*>(grad.b_ih) + at, *hh = const_cast<T*>(grad.b_hh) + at;
        add_rows(d_sums + of_x, rows, lanes, first, ih);
        if (of_h == of_x) {  // both biases have the same gradient, each a tensor of its own
          std::copy_n(ih, lanes, hh);
        } else {
          add_rows(d_sums + of_h, rows, lanes, first, hh);
        }
      }
    }
  }

  // to [lanes] (+)= the sum of the rows of a block.
  void add_rows(const E* block, int64_t rows, int64_t lanes, bool first, T* to) const {
    const int64_t W = kernel.lanes;
    T total[64] = {};
    for (int64_t r = 0; r < rows; r++)
      for (int64_t lane = 0; lane < W; lane++) total[lane] += widened(block[r * W + lane]);
    for (int64_t lane = 0; lane < lanes; lane++)
      to[lane] = first ? total[lane] : to[lane] + total[lane];
  }

  // Adds to the rows of the table, for units [u0, u1), what their symbols' steps [low, high) give.
  void table_gradient(int64_t low, int64_t high, bool first, int64_t u0, int64_t u1) const {
    const int64_t W = kernel.lanes;
    for (int64_t u = u0; u < u1; u++) {
      const int64_t lanes = std::min(W, s.H - u * W);
      for (int64_t gate = 0; gate < G; gate++) {
        T* to = const_cast<T*>(grads[0].w_ih) + gate * s.H + u * W;
        for (int64_t v = 0; first && v < table_rows; v++)
          std::fill_n(to + v * G * s.H, lanes, T(0));
        const E* from = d_sums + place_of_gate(true, u, gate);
        for (int64_t k = low; k < high; k++) {
          for (int64_t n = 0; n < s.N; n++, from += s.B * W) {
            if (n >= s.chunks(k)) continue;
            const int64_t* symbol = symbols + (n * s.K + k) * s.B;
            for (int64_t b = 0; b < s.B; b++) {
              T* row = to + symbol[b] * G * s.H;
              for (int64_t lane = 0; lane < lanes; lane++) row[lane] += widened(from[b * W + lane]);
            }
          }
        }
      }
    }
  }

  // Columns of what steps [low, high) were given, x or h, as a panel of rows [k][n][b].
  void pack_inputs(int64_t layer, int64_t low, int64_t high, bool of_x, int64_t column,
                   int64_t columns, int64_t wide, E* panel) const {
    const int64_t width = of_x ? s.input(layer) : s.H;
    const E* below = layer == 0 ? x : between + (layer - 1) * s.T * s.B * s.H;
    int64_t row = 0;
    for (int64_t k = low; k < high; k++) {
      for (int64_t n = 0; n < s.N; n++, row += s.B) {
        static const E zeros[256] = {};
        if (n >= s.chunks(k)) {
          kernel.put_rows(row, s.B, zeros, 0, columns, panel, wide);
          continue;
        }
        const E* from =
            of_x ? below + (n * s.K + k) * s.B * width : kept.h + kept.row(layer, k, n) * width;
        kernel.put_rows(row, s.B, from + column, width, columns, panel, wide);
      }
    }
  }

  void input_gradient(const Member& me, int64_t layer, int64_t low, int64_t high, E* to) const {
    const int64_t W = kernel.lanes, U = (s.H + W - 1) / W, I = s.input(layer);
    // One chunk: the rows of the sums' gradients are the rows of x, in order. More: B at a time.
    const int64_t whole = s.N == 1 ? (high - low) * s.B : s.B;
    const int64_t items = (high - low) * s.N * s.B / whole;
    const bool split_rows = items == 1;
    const int64_t first = split_rows ? 0 : me.first(items), last = split_rows ? 1 : me.last(items);
    for (int64_t item = first; item < last; item++) {
      const int64_t k = low + (s.N == 1 ? 0 : item / s.N), n = s.N == 1 ? 0 : item % s.N;
      if (n >= s.chunks(k)) continue;
      const int64_t r0 = split_rows ? me.first(whole) : 0;
      const int64_t r1 = split_rows ? me.last(whole) : whole;
      const int64_t row = (k - low) * s.N * s.B + n * s.B + r0;
      const Rows<E> a{d_sums + row * W, W, block(), G * U * W};
      E* c = to + ((n * s.K + k) * s.B + r0) * I;
      for (int64_t j = 0; j < I; j += 4 * W)
        kernel.narrow_product(r1 - r0, a, panels_x + j * G * U * W, c + j, I,
                              std::min(4 * W, I - j));
    }
  }
};

const Tensor* present(const OptionalTensor& tensor) {
  return tensor && tensor->defined() ? &*tensor : nullptr;
}

template <typename E>
at::ScalarType type_of() {
  if constexpr (std::is_same_v<E, bfloat16>) {
    return at::kBFloat16;
  } else {
    return c10::CppTypeToScalarType<E>::value;
  }
}
template <typename E>
const E* read(const Tensor& tensor) {
  return static_cast<const E*>(tensor.const_data_ptr());
}
template <typename E>
E* write(const Tensor& tensor) {
  return static_cast<E*>(tensor.mutable_data_ptr());
}

// The threads of a pass of so many steps, each of `rows` rows of `units`.
int64_t team_of(const Sizes& s, int64_t units, int64_t rows, int64_t steps) {
  const double step = 2.0 * rows * s.G * s.H * (s.I + s.H);
  // To call a team together takes as long as about as many operations.
  if (s.G < 4 && steps * step < 3e6) return 1;
  return team_size(units, step);
}

// Of the history c: none where it would be that of h.
int64_t columns_of_c(const Sizes& s, at::ScalarType dtype) {
  return s.G == 4 || state_type(dtype) != dtype ? s.H : 0;
}

// E: what it is computed in: bfloat16 where the CPU multiplies it, else float for a bfloat16 x.
template <typename E, typename Cell>
ForwardResult forward(const Sizes& s, const Tensor& x, const Tensor& state,
                      const OptionalTensor& probe, at::TensorList weights, at::TensorList estimator,
                      double scale, const OptionalTensor& reset) {
  using T = Wide<E>;
  const auto type = c10::CppTypeToScalarType<T>::value, narrow = type_of<E>();
  const auto dtype = dtype_of(x, weights);
  const auto options = x.options().dtype(type), narrow_options = x.options().dtype(narrow);
  const bool symbols = is_symbols(x);
  const Tensor x_in = (symbols ? x : x.to(narrow)).contiguous(), state_in = state.contiguous();
  const Tensor probe_in = probe ? probe->contiguous() : Tensor();
  const Tensor reset_in = reset ? reset->contiguous() : Tensor();
  const std::vector<Tensor> held = dense(weights, type);

  Tensor output = empty({s.T, s.B, s.H}, narrow_options);
  Tensor sent = empty({s.N, s.B, s.S}, options);
  Tensor h = empty({s.L, s.K, s.N, s.B, s.H}, narrow_options);
  Tensor c = empty({s.L, s.K, s.N, s.B, columns_of_c(s, dtype)}, options);
  Tensor gates = empty({s.L, s.K, s.N, s.B, Cell::kept, s.H}, narrow_options);
  Tensor between = empty({s.L - 1, s.T, s.B, s.H}, narrow_options);
  // A short last chunk leaves its last steps unwritten: outputs of an operator must be defined.
  if (s.steps(s.N - 1) < s.K)
    for (const Tensor& history : {h, c, gates})
      history.select(2, s.N - 1).slice(1, s.steps(s.N - 1)).zero_();

  static thread_local Scratch<E> panel_scratch;
  static thread_local Scratch<T> bias_scratch, product_scratch;
  const Kernels<E>& kernel = kernels<E>();
  const int64_t W = kernel.lanes, U = (s.H + W - 1) / W;
  const int64_t widest = s.L > 1 ? std::max(s.I, s.H) : s.I;
  const int64_t depth = panel_rows<E>(widest) + panel_rows<E>(s.H);
  const int64_t threads = team_of(s, U, s.B, s.T);
  const int64_t panels = Forward<E, Cell>::panel_count(s, U, threads);
  const int64_t ahead = Forward<E, Cell>::steps_of_x(s);
  const Forward<E, Cell> pass{
      .s = s,
      .kernel = kernel,
      .x = symbols ? nullptr : read<E>(x_in),
      .symbols = symbols ? x_in.const_data_ptr<int64_t>() : nullptr,
      .state = state_in.const_data_ptr<T>(),
      .probe = probe ? probe_in.const_data_ptr<T>() : nullptr,
      .probe_every_step = probe && s.N != s.T && probe_in.size(0) == s.T,
      .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
      .round = dtype != narrow,
      .layers = layers_of<T>(held),
      .output = write<E>(output),
      .between = write<E>(between),
      .sent = sent.mutable_data_ptr<T>(),
      .kept = {write<E>(h), c.numel() ? c.mutable_data_ptr<T>() : write<T>(h), write<E>(gates), s},
      .panels = panel_scratch.get(panels * depth * s.G * W),
      .biases = bias_scratch.get(U * Cell::sums * W),
      .products = ahead ? product_scratch.get(ahead * s.B * U * s.G * W) : nullptr};
  run_team(threads, [&](const Member& me) { pass.run(me); });

  Tensor synthetic = estimator.empty() ? at::empty({0}, options) : predict(sent, estimator, scale);
  return {output.to(dtype), sent, synthetic, h.to(dtype), c, gates.to(dtype), between.to(dtype)};
}

template <typename E, typename Cell>
BackwardResult backward(const Sizes& s, const OptionalTensor& grad_output,
                        const OptionalTensor& grad_sent, const Tensor& x, const Tensor& h,
                        const Tensor& c, const Tensor& gates, const Tensor& between,
                        at::TensorList weights, const OptionalTensor& reset, int64_t probe_rows,
                        bool with_grad_x, bool with_grad_state, bool with_grad_weights) {
  using T = Wide<E>;
  const auto type = c10::CppTypeToScalarType<T>::value, narrow = type_of<E>();
  const auto options = x.options().dtype(type), narrow_options = x.options().dtype(narrow);
  const auto in = [](const Tensor& tensor, at::ScalarType dtype) {
    return tensor.to(dtype).contiguous();
  };
  const bool symbols = is_symbols(x);
  const Tensor x_in = in(x, symbols ? at::kLong : narrow), h_in = in(h, narrow), c_in = in(c, type),
               gates_in = in(gates, narrow), between_in = in(between, narrow);
  const Tensor out_in = present(grad_output) ? in(*grad_output, narrow) : Tensor();
  const Tensor sent_in = present(grad_sent) ? in(*grad_sent, type) : Tensor();
  const Tensor reset_in = reset ? reset->contiguous() : Tensor();
  const std::vector<Tensor> held = dense(weights, type);

  Tensor grad_x = empty({with_grad_x ? s.T : 0, s.B, s.I}, narrow_options);
  Tensor grad_probe = empty({probe_rows, s.B, s.S}, options);
  Tensor grad_state = empty({with_grad_state ? s.B : 0, s.S}, options);
  std::vector<Tensor> grads;
  if (with_grad_weights)
    for (const Tensor& w : held) grads.push_back(empty(w.sizes(), options));

  static thread_local Scratch<T> dh, dc;
  static thread_local Scratch<E> d_sums, d_panels, panels_h, panels_x, inputs, grad_between;
  const Kernels<E>& kernel = kernels<E>();
  const int64_t W = kernel.lanes, U = (s.H + W - 1) / W, rows = s.N * s.B;
  const int64_t widest = s.L > 1 ? std::max(s.I, s.H) : s.I;
  const int64_t group_steps = std::min(s.K, std::max<int64_t>(1, kGroupRows / rows));
  const int64_t group_rows = panel_rows<E>(group_steps * rows);
  const int64_t threads = team_of(s, U, rows, s.K);
  const int64_t sums_size = Cell::sums * U * Backward<E, Cell>::block_of(group_rows, W);
  E* sums_work = d_sums.get(sums_size);
  E* sums_panels = ElementOf<E>::rows == 1 ? sums_work : d_panels.get(sums_size);
  const Backward<E, Cell> pass{
      .s = s,
      .kernel = kernel,
      .grad_output = out_in.defined() ? read<E>(out_in) : nullptr,
      .grad_sent = sent_in.defined() ? sent_in.const_data_ptr<T>() : nullptr,
      .x = symbols ? nullptr : read<E>(x_in),
      .between = read<E>(between_in),
      .symbols = symbols ? x_in.const_data_ptr<int64_t>() : nullptr,
      .table_rows = symbols ? weights[0].size(0) : 0,
      .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
      .kept = {const_cast<E*>(read<E>(h_in)),
               const_cast<T*>(c_in.numel() ? c_in.const_data_ptr<T>() : read<T>(h_in)),
               const_cast<E*>(read<E>(gates_in)), s},
      .layers = layers_of<T>(held),
      .grad_x = with_grad_x ? write<E>(grad_x) : nullptr,
      .grad_probe = probe_rows ? grad_probe.mutable_data_ptr<T>() : nullptr,
      .probe_every_step = probe_rows != s.N && probe_rows == s.T,
      .grad_state = with_grad_state ? grad_state.mutable_data_ptr<T>() : nullptr,
      .grads = layers_of<T>(grads),
      .group_steps = group_steps,
      .dh = dh.get(rows * s.H),
      .dc = dc.get(rows * s.H),
      .d_sums = sums_work,
      .d_panels = sums_panels,
      .panels_h = panels_h.get(s.G * U * W * (s.K == 1 ? threads * 4 : U) * W),
      .panels_x = panels_x.get(s.G * U * W * ((widest + W - 1) / W * W)),
      .inputs = inputs.get(threads * group_rows * kernel.weight_vectors * W),
      .grad_between = grad_between.get(s.L > 1 ? s.T * s.B * s.H : 0)};
  run_team(threads, [&](const Member& me) { pass.run(me); });

  for (size_t i = 0; i < grads.size(); i++) grads[i] = grads[i].to(weights[i].scalar_type());
  return {grad_x.to(h.scalar_type()), grad_state, grad_probe, grads};
}

// Calls `pass` with a value of what inputs and outputs of this dtype are computed in, and the cell.
template <typename F>
auto with_types(at::ScalarType dtype, const Sizes& s, const F& pass) {
  const auto with_cell = [&](auto e) {
    return s.G == 4 ? pass(e, LstmCell{}) : s.G == 3 ? pass(e, GruCell{}) : pass(e, RnnCell{});
  };
  if (dtype == at::kDouble) return with_cell(double{});
  if (dtype == at::kBFloat16 && multiplies_bfloat16()) return with_cell(bfloat16{});
  return with_cell(float{});
}

bool supported(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || type == at::kBFloat16;
}

void check_symbols(const Tensor& x, at::TensorList weights) {
  if (!is_symbols(x)) return;
  const Tensor rows = x.contiguous();
  const int64_t *from = rows.const_data_ptr<int64_t>(), count = weights[0].size(0);
  const auto wrong = std::find_if(from, from + rows.numel(),
                                  [&](int64_t symbol) { return symbol < 0 || symbol >= count; });
  TORCH_CHECK_INDEX(wrong == from + rows.numel(), "x must be symbols from 0 to ", count - 1,
                    "; got ", *wrong);
}

ForwardResult tbptt(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                    at::TensorList weights, at::TensorList estimator, int64_t truncation,
                    double scale, const OptionalTensor& reset) {
  const Sizes s = sizes_of(x, weights, truncation);
  check_state(s, x, state, probe, reset, weights);
  const at::ScalarType dtype = dtype_of(x, weights);
  TORCH_CHECK_TYPE(supported(dtype), "x must be float32, float64 or bfloat16; got ", dtype);
  check_symbols(x, weights);
  return with_types(dtype, s, [&](auto e, auto cell) {
    return forward<decltype(e), decltype(cell)>(s, x, state, probe, weights, estimator, scale,
                                                reset);
  });
}

BackwardResult tbptt_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_sent,
                              const Tensor& x, const Tensor& h, const Tensor& c,
                              const Tensor& gates, const Tensor& between, at::TensorList weights,
                              const OptionalTensor& reset, int64_t truncation, int64_t probe_rows,
                              bool with_grad_x, bool with_grad_state, bool with_grad_weights) {
  const Sizes s = sizes_of(x, weights, truncation);
  const auto check = [](const char* name, const Tensor* tensor, at::IntArrayRef sizes) {
    TORCH_CHECK_VALUE(!tensor || tensor->sizes() == sizes, name, " must be ", sizes, "; got ",
                      tensor->sizes());
  };
  check("grad_output", present(grad_output), {s.T, s.B, s.H});
  check("grad_sent", present(grad_sent), {s.N, s.B, s.S});
  check("h", &h, {s.L, s.K, s.N, s.B, s.H});
  check("c", &c, {s.L, s.K, s.N, s.B, columns_of_c(s, dtype_of(x, weights))});
  check("gates", &gates, {s.L, s.K, s.N, s.B, s.G == 1 ? 1 : 4, s.H});
  check("between", &between, {s.L - 1, s.T, s.B, s.H});
  check("reset", present(reset), {s.T, s.B});
  TORCH_CHECK_VALUE(probe_rows == 0 || probe_rows == s.N || probe_rows == s.T,
                    "probe_rows must be 0, ", s.N, " chunks or ", s.T, " steps; got ", probe_rows);
  check_symbols(x, weights);
  return with_types(dtype_of(x, weights), s, [&](auto e, auto cell) {
    return backward<decltype(e), decltype(cell)>(s, grad_output, grad_sent, x, h, c, gates, between,
                                                 weights, reset, probe_rows, with_grad_x,
                                                 with_grad_state, with_grad_weights);
  });
}

}  // namespace
}  // namespace dnirnn::cpu

TORCH_LIBRARY_IMPL(dnirnn, CPU, m) {
  m.impl("tbptt", &dnirnn::cpu::tbptt);
  m.impl("tbptt_backward", &dnirnn::cpu::tbptt_backward);
}
