// One LSTM layer with options, gates over its state and layer normalisation, on the CPU.
//
// Letters as in shape.h and kernels.h: T steps, B batch, I input, H hidden, N chunks, K steps a
// chunk, W lanes. All is computed in T, float for an x of bfloat16.
//
// A normalisation needs a whole row. So a step has two parts, with a barrier after each: the
// products, of which a thread owns columns, and the cells, of which it owns rows. As in tbptt.cpp the
// N chunks are rows of one problem in the backward pass: the histories are [K, N, B, ...].
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/row_cells.h"
#include "cpu/scratch.h"
#include "cpu/team.h"
#include "gated_lstm.h"

namespace dnirnn::cpu {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <typename T>
struct Options {
  const T *gain, *gain_c, *bias_c;
  Gate<T> open_h, open_c, factor;

  LstmOptions<T> at(int64_t t, int64_t b) const {
    return {gain, gain_c, bias_c, open_h.at(t, b), open_c.at(t, b), factor.at(t, b)};
  }
};

// What each step was given and has made, [K, N, B, ...].
template <typename T>
struct Histories {
  T *h, *c, *gates, *normed, *scales;
  Sizes s;

  int64_t row(int64_t k, int64_t n, int64_t b) const { return (k * s.N + n) * s.B + b; }
};

template <typename T>
struct Forward {
  Sizes s;
  const Kernels<T>& kernel;
  const T *x, *state, *probe;  // probe may be null
  const bool* reset;           // may be null
  const T *w_ih, *w_hh, *bias;
  Options<T> options;
  T *output, *sent;
  Histories<T> kept;
  // Work: products [steps_of_x B, 4 H] and [B, 4 H]; panels of the weights, [4 H][I + H].
  T *zx, *zh, *panels;

  static int64_t steps_of_x(const Sizes& s) {
    return std::min(s.T, std::max<int64_t>(1, kGroupRows / s.B));
  }

  void run(const Member& me) const {
    const int64_t W = kernel.lanes, ahead = steps_of_x(s);
    panels_of(me, 4 * s.H, W, [&](int64_t column, int64_t columns) {
      const int64_t groups = (columns + W - 1) / W, last = columns - (groups - 1) * W;
      T* panel = panels + column * (s.I + s.H);
      kernel.pack_rows(w_ih + column * s.I, W * s.I, groups, W, last, s.I, panel);
      kernel.pack_rows(w_hh + column * s.H, W * s.H, groups, W, last, s.H,
                       panel + s.I * groups * W);
    });
    const int64_t b0 = me.first(s.B), b1 = me.last(s.B);
    for (int64_t b = b0; b < b1; b++) enter(0, b);
    me.wait();
    for (int64_t t = 0; t < s.T; t++) {
      const T* h = kept.h + kept.row(t % s.K, t / s.K, 0) * s.H;
      panels_of(me, 4 * s.H, W, [&](int64_t column, int64_t columns) {
        const T* panel = panels + column * (s.I + s.H);
        if (t % ahead == 0) {
          const Rows<T> rows{x + t * s.B * s.I, s.I, W, s.I};
          kernel.product(std::min(ahead, s.T - t) * s.B, rows, panel, zx + column, 4 * s.H,
                         columns);
        }
        kernel.product(s.B, {h, s.H, W, s.H}, panel + s.I * padded(columns, W), zh + column,
                       4 * s.H, columns);
      });
      me.wait();
      for (int64_t b = b0; b < b1; b++) step(t, t % ahead, b);
      me.wait();
    }
  }

  // What the first step of chunk n starts from.
  void enter(int64_t n, int64_t b) const {
    const T* from = (n == 0 ? state : sent + (n - 1) * s.B * s.S) + b * s.S;
    const T* add = probe ? probe + (n * s.B + b) * s.S : nullptr;
    const bool fresh = reset && reset[n * s.K * s.B + b];
    const int64_t row = kept.row(0, n, b) * s.H;
    for (int64_t j = 0; j < s.H; j++) {
      kept.h[row + j] = fresh ? T(0) : add ? from[j] + add[j] : from[j];
      kept.c[row + j] = fresh ? T(0) : add ? from[s.H + j] + add[s.H + j] : from[s.H + j];
    }
  }

  void step(int64_t t, int64_t of_x, int64_t b) const {
    const int64_t n = t / s.K, k = t % s.K, at = kept.row(k, n, b);
    const bool last = k + 1 == s.steps(n);
    T* end = sent + (n * s.B + b) * s.S;
    const int64_t after = last ? 0 : kept.row(k + 1, n, b) * s.H;
    LstmRowForward<T> row{};
    row.options = options.at(t, b);
    row.zx = zx + (of_x * s.B + b) * 4 * s.H;
    row.zh = zh + b * 4 * s.H;
    row.bias = bias;
    row.h = kept.h + at * s.H;
    row.c = kept.c + at * s.H;
    row.gates = kept.gates + at * 4 * s.H;
    row.normed = kept.normed + at * 4 * s.H;
    row.scale = kept.scales + at * 4;
    row.h_next = last ? end : kept.h + after;
    row.c_next = last ? end + s.H : kept.c + after;
    row.width = s.H;
    kernel.lstm_row_forward(row);
    std::copy_n(row.h_next, s.H, output + (t * s.B + b) * s.H);
    if (last && t + 1 < s.T) enter(n + 1, b);
    if (!last && reset && reset[(t + 1) * s.B + b]) {
      std::fill_n(row.h_next, s.H, T(0));
      std::fill_n(row.c_next, s.H, T(0));
    }
  }
};

template <typename T>
struct Backward {
  Sizes s;
  const Kernels<T>& kernel;
  const T *grad_output, *grad_sent;  // null where there is none
  const T* x;
  const bool* reset;
  const T *w_ih, *w_hh;
  Options<T> options;
  Histories<T> kept;
  T *grad_x, *grad_probe, *grad_state;  // null where they are not wanted
  T *grad_w_ih, *grad_w_hh;             // likewise
  T *d_open_h, *d_open_c;               // [T, B, H], likewise
  int64_t group_steps;
  // Work: what comes back to h through the products, and what else to h and c, [N B, H]; the gate
  // gradients of a group, [rows][ld()], and as panels of W of their columns, `block()` apart; the
  // packed weights; for each thread a panel of inputs, the vectors' gradients [10 H] and a row.
  T *back, *carry_h, *carry_c, *d, *d_panels, *panels_h, *panels_x, *inputs, *sums, *work;

  // Not a power of two apart: rows of one column would lie in the same sets of the caches.
  static int64_t ld(const Sizes& s, int64_t W) { return padded(4 * s.H, W) + W; }
  static int64_t block(int64_t group_steps, const Sizes& s, int64_t W) {
    return (group_steps * s.N * s.B + 1) * W;
  }

  void run(const Member& me) const {
    const int64_t W = kernel.lanes, rows = s.N * s.B, wide = ld(s, W);
    const int64_t r0 = me.first(rows), r1 = me.last(rows);
    const auto pack = [&](const T* w, int64_t width, T* panels, int64_t column, int64_t columns) {
      kernel.put_weights(0, 4 * s.H, w + column, width, columns, panels + column * 4 * s.H,
                         padded(columns, W));
    };
    panels_of(me, s.H, W,
              [&](int64_t column, int64_t columns) { pack(w_hh, s.H, panels_h, column, columns); });
    // Those of w_ih are for all members, which share the rows.
    const int64_t of_x = grad_x ? (s.I + 4 * W - 1) / (4 * W) : 0;
    for (int64_t p = me.first(of_x); p < me.last(of_x); p++)
      pack(w_ih, s.I, panels_x, p * 4 * W, std::min(4 * W, s.I - p * 4 * W));
    for (int64_t r = r0; r < r1; r++) {
      for (int64_t j = 0; j < s.H; j++) {
        back[r * s.H + j] = 0;
        carry_h[r * s.H + j] = grad_sent ? grad_sent[r * s.S + j] : T(0);
        carry_c[r * s.H + j] = grad_sent ? grad_sent[r * s.S + s.H + j] : T(0);
      }
    }
    std::fill_n(sums + me.index * 10 * s.H, 10 * s.H, T(0));
    for (int64_t high = s.K; high > 0; high -= group_steps) {
      const int64_t low = std::max<int64_t>(0, high - group_steps);
      for (int64_t k = high - 1; k >= low; k--) {
        T* of_step = d + (k - low) * rows * wide;
        for (int64_t r = r0; r < r1; r++) {
          if (r < s.chunks(k) * s.B) {
            cell(me, k, r / s.B, r % s.B, of_step + r * wide);
          } else {
            std::fill_n(of_step + r * wide, 4 * s.H, T(0));
          }
        }
        me.wait();
        panels_of(me, s.H, W, [&](int64_t column, int64_t columns) {
          kernel.product(s.chunks(k) * s.B, {of_step, wide, W, 4 * s.H},
                         panels_h + column * 4 * s.H, back + column, s.H, columns);
        });
        me.wait();
        if (!reset) continue;
        for (int64_t r = r0; r < std::min(r1, s.chunks(k) * s.B); r++) {
          if (!reset[(r / s.B * s.K + k) * s.B + r % s.B]) continue;
          for (T* part : {back, carry_h, carry_c}) std::fill_n(part + r * s.H, s.H, T(0));
        }
      }
      if (grad_w_ih) weight_gradients(me, low, high);
      if (grad_x) input_gradient(me, low, high);
      me.wait();
    }
    for (int64_t r = r0; r < r1; r++) {
      const auto leave = [&](T* to) {
        for (int64_t j = 0; j < s.H; j++) {
          to[j] = back[r * s.H + j] + carry_h[r * s.H + j];
          to[s.H + j] = carry_c[r * s.H + j];
        }
      };
      if (grad_probe) leave(grad_probe + r * s.S);
      if (grad_state && r < s.B) leave(grad_state + r * s.S);
    }
  }

  void cell(const Member& me, int64_t k, int64_t n, int64_t b, T* to) const {
    const int64_t t = n * s.K + k, at = kept.row(k, n, b), r = n * s.B + b, here = t * s.B + b;
    LstmRowBackward<T> row{};
    row.options = options.at(t, b);
    row.h = kept.h + at * s.H;
    row.c = kept.c + at * s.H;
    row.gates = kept.gates + at * 4 * s.H;
    row.normed = kept.normed + at * 4 * s.H;
    row.scale = kept.scales + at * 4;
    row.grad_output = grad_output ? grad_output + here * s.H : nullptr;
    row.back = back + r * s.H;
    row.carry_h = carry_h + r * s.H;
    row.carry_c = carry_c + r * s.H;
    row.d = to;
    row.sums = sums + me.index * 10 * s.H;
    row.d_open_h = d_open_h ? d_open_h + here * s.H : nullptr;
    row.d_open_c = d_open_c ? d_open_c + here * s.H : nullptr;
    row.work = work + me.index * s.H;
    row.width = s.H;
    kernel.lstm_row_backward(row);
  }

  // Adds the share of steps [low, high); the first group, of the last steps, overwrites.
  void weight_gradients(const Member& me, int64_t low, int64_t high) const {
    const int64_t W = kernel.lanes, wide = kernel.weight_vectors, ld = this->ld(s, W);
    const int64_t rows = (high - low) * s.N * s.B, apart = block(group_steps, s, W);
    const int64_t blocks = (4 * s.H + W - 1) / W;
    for (int64_t i = me.first(blocks); i < me.last(blocks); i++)
      kernel.put_rows(0, rows, d + i * W, ld, std::min(W, 4 * s.H - i * W), d_panels + i * apart,
                      W);
    me.wait();
    const int64_t units_x = (s.I + W - 1) / W, units = units_x + (s.H + W - 1) / W;
    T* panel = inputs + me.index * group_steps * s.N * s.B * wide * W;
    int64_t unit = me.first(units);
    const int64_t end = me.last(units);
    while (unit < end) {
      const bool of_x = unit < units_x;
      const int64_t column = (of_x ? unit : unit - units_x) * W, width = of_x ? s.I : s.H;
      const int64_t count = std::min(wide, (of_x ? std::min(end, units_x) : end) - unit);
      const int64_t columns = std::min(count * W, width - column);
      T* to = panel;
      for (int64_t k = low; k < high; k++) {
        for (int64_t n = 0; n < s.N; n++, to += s.B * count * W) {
          // The gate gradients of what a short chunk does not have are zero: any row will do.
          const int64_t there = n < s.chunks(k) ? n : 0;
          const T* from =
              of_x ? x + (there * s.K + k) * s.B * s.I : kept.h + kept.row(k, there, 0) * s.H;
          kernel.put_rows(0, s.B, from + column, width, columns, to, count * W);
        }
      }
      T* grad = (of_x ? grad_w_ih : grad_w_hh) + column;
      for (int64_t i = 0; i < blocks; i++)
        kernel.transposed_product(rows, d_panels + i * apart, panel, grad + i * W * width, width,
                                  std::min(W, 4 * s.H - i * W), columns, high != s.K);
      unit += count;
    }
  }

  void input_gradient(const Member& me, int64_t low, int64_t high) const {
    const int64_t W = kernel.lanes, ld = this->ld(s, W);
    // One chunk: the rows of the gate gradients are those of x, in order. More: B at a time.
    const int64_t whole = s.N == 1 ? (high - low) * s.B : s.B;
    const int64_t items = (high - low) * s.N * s.B / whole;
    for (int64_t item = 0; item < items; item++) {
      const int64_t k = low + (s.N == 1 ? 0 : item / s.N), n = s.N == 1 ? 0 : item % s.N;
      if (n >= s.chunks(k)) continue;
      const int64_t first = me.first(whole), rows = me.last(whole) - first;
      const Rows<T> a{d + (((k - low) * s.N + n) * s.B + first) * ld, ld, W, 4 * s.H};
      T* to = grad_x + ((n * s.K + k) * s.B + first) * s.I;
      for (int64_t j = 0; j < s.I; j += 4 * W)
        kernel.product(rows, a, panels_x + j * 4 * s.H, to + j, s.I, std::min(4 * W, s.I - j));
    }
  }
};

template <typename T>
struct HeldOptions {
  std::vector<Tensor> norm;
  Tensor open_h, open_c, factor;

  HeldOptions(const GatedOptions& with, const Sizes& s)
      : open_h(dense_gate(with.open_h, s.H)),
        open_c(dense_gate(with.open_c, s.H)),
        factor(dense_gate(with.factor, s.H)) {
    for (const Tensor& tensor : with.norm) norm.push_back(tensor.contiguous());
  }
  Options<T> options() const {
    const auto data = [&](size_t i) {
      return norm.empty() ? nullptr : norm[i].const_data_ptr<T>();
    };
    return {data(0), data(1), data(2), Gate<T>(open_h), Gate<T>(open_c), Gate<T>(factor)};
  }
};

int64_t threads_of(const Sizes& s, int64_t rows, int64_t W) {
  const double flops = 2.0 * rows * 4 * s.H * (s.I + s.H);
  return team_size((s.H + W - 1) / W, flops / 2);  // two barriers a step
}

template <typename T>
GatedForwardResult forward(const Sizes& s, const Tensor& x, const Tensor& state,
                           const OptionalTensor& probe, at::TensorList weights,
                           const GatedOptions& with, const OptionalTensor& reset) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto dense = [&](const Tensor& tensor) { return tensor.to(type).contiguous(); };
  const Tensor x_in = dense(x), state_in = state.contiguous(), w_ih = dense(weights[0]),
               w_hh = dense(weights[1]), bias = dense(weights[2]) + dense(weights[3]);
  const Tensor probe_in = probe ? probe->contiguous() : Tensor();
  const Tensor reset_in = reset ? reset->contiguous() : Tensor();
  const HeldOptions<T> held(with, s);
  const auto options = x.options().dtype(type);
  const bool norm = !with.norm.empty();
  Tensor output = empty({s.T, s.B, s.H}, options), sent = empty({s.N, s.B, s.S}, options);
  Tensor h = empty({s.K, s.N, s.B, s.H}, options), c = empty(h.sizes(), options);
  Tensor gates = empty({s.K, s.N, s.B, 4, s.H}, options);
  Tensor normed = empty({norm ? s.K : 0, s.N, s.B, 4, s.H}, options);
  Tensor scales = empty({norm ? s.K : 0, s.N, s.B, 4}, options);
  // A short last chunk leaves its last steps unwritten: outputs of an operator must be defined.
  if (s.steps(s.N - 1) < s.K)
    for (const Tensor& history : {h, c, gates, normed, scales})
      if (history.numel()) history.select(1, s.N - 1).slice(0, s.steps(s.N - 1)).zero_();

  static thread_local Scratch<T> zx, zh, panels;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t W = kernel.lanes;
  const Forward<T> pass{
      .s = s,
      .kernel = kernel,
      .x = x_in.const_data_ptr<T>(),
      .state = state_in.const_data_ptr<T>(),
      .probe = probe ? probe_in.const_data_ptr<T>() : nullptr,
      .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
      .w_ih = w_ih.const_data_ptr<T>(),
      .w_hh = w_hh.const_data_ptr<T>(),
      .bias = bias.const_data_ptr<T>(),
      .options = held.options(),
      .output = output.mutable_data_ptr<T>(),
      .sent = sent.mutable_data_ptr<T>(),
      .kept = {h.mutable_data_ptr<T>(), c.mutable_data_ptr<T>(), gates.mutable_data_ptr<T>(),
               normed.mutable_data_ptr<T>(), scales.mutable_data_ptr<T>(), s},
      .zx = zx.get(Forward<T>::steps_of_x(s) * s.B * 4 * s.H),
      .zh = zh.get(s.B * 4 * s.H),
      .panels = panels.get(padded(4 * s.H, W) * (s.I + s.H))};
  run_team(threads_of(s, s.B, W), [&](const Member& me) { pass.run(me); });
  return {output.to(x.scalar_type()), sent, h, c, gates, normed, scales};
}

template <typename T>
GatedBackwardResult backward(const Sizes& s, const OptionalTensor& grad_output,
                             const OptionalTensor& grad_sent, const Tensor& x, const Tensor& h,
                             const Tensor& c, const Tensor& gates, const Tensor& normed,
                             const Tensor& scales, at::TensorList weights, const GatedOptions& with,
                             const OptionalTensor& reset, bool with_grad_x, bool with_grad_state,
                             bool with_grad_probe, bool with_grad_weights, bool with_grad_open_h,
                             bool with_grad_open_c) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto dense = [&](const Tensor& tensor) { return tensor.to(type).contiguous(); };
  const auto maybe = [&](const OptionalTensor& tensor) {
    return tensor ? dense(*tensor) : Tensor();
  };
  const Tensor x_in = dense(x), w_ih = dense(weights[0]), w_hh = dense(weights[1]);
  const Tensor out_in = maybe(grad_output), sent_in = maybe(grad_sent);
  const Tensor reset_in = reset ? reset->contiguous() : Tensor();
  const HeldOptions<T> held(with, s);
  const auto options = x.options().dtype(type);
  Tensor grad_x = empty({with_grad_x ? s.T : 0, s.B, s.I}, options);
  Tensor grad_state = empty({with_grad_state ? s.B : 0, s.S}, options);
  Tensor grad_probe = empty({with_grad_probe ? s.N : 0, s.B, s.S}, options);
  Tensor grad_w_ih = empty({with_grad_weights ? 4 * s.H : 0, s.I}, options);
  Tensor grad_w_hh = empty({with_grad_weights ? 4 * s.H : 0, s.H}, options);
  Tensor d_open_h = empty({with_grad_open_h ? s.T : 0, s.B, s.H}, options);
  Tensor d_open_c = empty({with_grad_open_c ? s.T : 0, s.B, s.H}, options);
  const auto wanted = [](bool yes, const Tensor& tensor) {
    return yes ? tensor.mutable_data_ptr<T>() : nullptr;
  };

  static thread_local Scratch<T> back, carry_h, carry_c, d, d_panels, panels_h, panels_x, inputs,
      work;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t W = kernel.lanes, rows = s.N * s.B;
  const int64_t group_steps = std::min(s.K, std::max<int64_t>(1, kGroupRows / rows));
  const int64_t threads = threads_of(s, rows, W);
  // zeros: a thread that the runtime does not give leaves its share as it is.
  const Tensor sums = at::zeros({threads, 10, s.H}, options);
  const Backward<T> pass{
      .s = s,
      .kernel = kernel,
      .grad_output = out_in.defined() ? out_in.const_data_ptr<T>() : nullptr,
      .grad_sent = sent_in.defined() ? sent_in.const_data_ptr<T>() : nullptr,
      .x = x_in.const_data_ptr<T>(),
      .reset = reset ? reset_in.const_data_ptr<bool>() : nullptr,
      .w_ih = w_ih.const_data_ptr<T>(),
      .w_hh = w_hh.const_data_ptr<T>(),
      .options = held.options(),
      .kept = {const_cast<T*>(h.const_data_ptr<T>()), const_cast<T*>(c.const_data_ptr<T>()),
               const_cast<T*>(gates.const_data_ptr<T>()),
               const_cast<T*>(normed.const_data_ptr<T>()),
               const_cast<T*>(scales.const_data_ptr<T>()), s},
      .grad_x = wanted(with_grad_x, grad_x),
      .grad_probe = wanted(with_grad_probe, grad_probe),
      .grad_state = wanted(with_grad_state, grad_state),
      .grad_w_ih = wanted(with_grad_weights, grad_w_ih),
      .grad_w_hh = wanted(with_grad_weights, grad_w_hh),
      .d_open_h = wanted(with_grad_open_h, d_open_h),
      .d_open_c = wanted(with_grad_open_c, d_open_c),
      .group_steps = group_steps,
      .back = back.get(rows * s.H),
      .carry_h = carry_h.get(rows * s.H),
      .carry_c = carry_c.get(rows * s.H),
      .d = d.get(group_steps * rows * Backward<T>::ld(s, W)),
      .d_panels = d_panels.get((4 * s.H + W - 1) / W * Backward<T>::block(group_steps, s, W)),
      .panels_h = panels_h.get(padded(s.H, W) * 4 * s.H),
      .panels_x = panels_x.get(padded(s.I, W) * 4 * s.H),
      .inputs = inputs.get(threads * group_steps * rows * kernel.weight_vectors * W),
      .sums = sums.mutable_data_ptr<T>(),
      .work = work.get(threads * s.H)};
  run_team(threads, [&](const Member& me) { pass.run(me); });

  std::vector<Tensor> grad_weights, grad_norm;
  if (with_grad_weights) {
    const Tensor vectors = sums.sum(0).view({10 * s.H});
    const auto part = [&](int64_t first, int64_t count) {
      return vectors.narrow(0, first * s.H, count * s.H).clone();
    };
    // Both biases have the same gradient, each a tensor of its own.
    grad_weights = {grad_w_ih, grad_w_hh, part(0, 4), part(0, 4)};
    for (size_t i = 0; i < 4; i++) grad_weights[i] = grad_weights[i].to(weights[i].scalar_type());
    if (!with.norm.empty()) grad_norm = {part(4, 4), part(8, 1), part(9, 1)};
  }
  const auto reduced = [](bool yes, const Tensor& grad, const OptionalTensor& gate) {
    return yes ? at::sum_to(grad, gate->sizes()) : grad;
  };
  return {grad_x.to(x.scalar_type()),
          grad_state,
          grad_probe,
          grad_weights,
          grad_norm,
          reduced(with_grad_open_h, d_open_h, with.open_h),
          reduced(with_grad_open_c, d_open_c, with.open_c)};
}

GatedForwardResult gated_lstm(const Tensor& x, const Tensor& state, const OptionalTensor& probe,
                              at::TensorList weights, at::TensorList norm,
                              const OptionalTensor& open_h, const OptionalTensor& open_c,
                              const OptionalTensor& factor, int64_t truncation,
                              const OptionalTensor& reset) {
  const Sizes s = sizes_of(x, weights, truncation, /*lstm=*/true);
  TORCH_CHECK_VALUE(s.L == 1, "weights must be those of one layer; got ", weights.size(),
                    " tensors");
  check_state(s, x, state, probe, reset);
  TORCH_CHECK_VALUE(!probe || probe->size(0) == s.N, "probe must be [", s.N, " chunks, ", s.B, ", ",
                    s.S, "]; got ", probe->sizes());
  const GatedOptions with{norm, open_h, open_c, factor};
  check_options(s, x, with);
  const auto type = x.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16,
                   "x must be float32, float64 or bfloat16; got ", type);
  return type == at::kDouble ? forward<double>(s, x, state, probe, weights, with, reset)
                             : forward<float>(s, x, state, probe, weights, with, reset);
}

GatedBackwardResult gated_lstm_backward(
    const OptionalTensor& grad_output, const OptionalTensor& grad_sent, const Tensor& x,
    const Tensor& h, const Tensor& c, const Tensor& gates, const Tensor& normed,
    const Tensor& scales, at::TensorList weights, at::TensorList norm, const OptionalTensor& open_h,
    const OptionalTensor& open_c, const OptionalTensor& factor, const OptionalTensor& reset,
    int64_t truncation, bool with_grad_x, bool with_grad_state, bool with_grad_probe,
    bool with_grad_weights, bool with_grad_open_h, bool with_grad_open_c) {
  const Sizes s = sizes_of(x, weights, truncation, /*lstm=*/true);
  const auto type = state_type(x.scalar_type());
  const bool with_norm = !norm.empty();
  const auto check = [&](const char* name, const Tensor& tensor, at::IntArrayRef sizes,
                         bool kept = true) {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be ", sizes, "; got ", tensor.sizes());
    TORCH_CHECK_VALUE(!kept || (tensor.scalar_type() == type && tensor.is_contiguous()), name,
                      " must be contiguous and ", type, ", as gated_lstm returned it");
  };
  if (grad_output) check("grad_output", *grad_output, {s.T, s.B, s.H}, false);
  if (grad_sent) check("grad_sent", *grad_sent, {s.N, s.B, s.S}, false);
  check("h", h, {s.K, s.N, s.B, s.H});
  check("c", c, {s.K, s.N, s.B, s.H});
  check("gates", gates, {s.K, s.N, s.B, 4, s.H});
  check("normed", normed, {with_norm ? s.K : 0, s.N, s.B, 4, s.H});
  check("scales", scales, {with_norm ? s.K : 0, s.N, s.B, 4});
  if (reset) check("reset", *reset, {s.T, s.B}, false);
  const GatedOptions with{norm, open_h, open_c, factor};
  check_options(s, x, with);
  const auto pass = type == at::kDouble ? backward<double> : backward<float>;
  return pass(s, grad_output, grad_sent, x, h, c, gates, normed, scales, weights, with, reset,
              with_grad_x, with_grad_state, with_grad_probe, with_grad_weights, with_grad_open_h,
              with_grad_open_c);
}

}  // namespace
}  // namespace dnirnn::cpu

TORCH_LIBRARY_IMPL(dnirnn, CPU, m) {
  m.impl("gated_lstm", &dnirnn::cpu::gated_lstm);
  m.impl("gated_lstm_backward", &dnirnn::cpu::gated_lstm_backward);
}
