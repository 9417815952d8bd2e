// Plain recurrent layers and gated units on the CPU.
//
// Letters as in recurrent.h and kernels.h: T steps, B batch, I input, H hidden, G gates, W lanes, U
// units of W columns of H.
//
// Each thread owns units. Forward: the input's products of all steps first, then a step at a time
// those of h and the cell, with one barrier, because the next step reads all of h. Backward: a step
// at a time the cell and what goes back through w_hh; then the weights' and the input's gradients
// in one product over all steps.
#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>

#include "cpu/kernels.h"
#include "cpu/scratch.h"
#include "cpu/team.h"
#include "recurrent.h"

namespace dnirnn::cpu {
namespace {

using at::Tensor;

template <typename T>
struct Weights {
  const T *w_ih, *w_hh, *b_ih, *b_hh;
};

// The columns of one thread, in panels of at most 4 units.
struct Share {
  int64_t first, last;  // columns of H
  int64_t W;

  Share(const Member& me, int64_t H, int64_t W) : W(W) {
    const int64_t U = (H + W - 1) / W;
    first = std::min(me.first(U) * W, H);
    last = std::min(me.last(U) * W, H);
  }
  template <typename F>
  void panels(const F& each) const {
    for (int64_t j = first; j < last; j += 4 * W) each(j, std::min(4 * W, last - j));
  }
};

template <typename T>
struct Forward {
  UnitSizes s;
  const Kernels<T>& kernel;
  const T *x, *h;
  Weights<T> w;
  T *output, *gates;
  T *zx, *zh;  // work: [T, B, G, H] and [B, G, H]
  T* panels;   // [U][G][I + H][W], of a panel together

  void run(const Member& me) const {
    const Share mine(me, s.H, kernel.lanes);
    const int64_t wide = s.G * s.H;
    mine.panels([&](int64_t j, int64_t columns) {
      for (int64_t gate = 0; gate < s.G; gate++) {
        const int64_t row = gate * s.H + j;
        pack(w.w_ih + row * s.I, columns, s.I, panel(j, gate));
        pack(w.w_hh + row * s.H, columns, s.H, panel(j, gate) + s.I * padded(columns));
        const Rows<T> rows{x, s.I, kernel.lanes, s.I};
        kernel.product(s.T * s.B, rows, panel(j, gate), zx + row, wide, columns);
      }
    });
    for (int64_t t = 0; t < s.T; t++) {
      const T* before = t == 0 ? h : output + (t - 1) * s.B * s.H;
      mine.panels([&](int64_t j, int64_t columns) { step(t, before, j, columns); });
      me.wait();
    }
  }

  void step(int64_t t, const T* before, int64_t j, int64_t columns) const {
    const int64_t wide = s.G * s.H;
    const Rows<T> rows{before, s.H, kernel.lanes, s.H};
    for (int64_t gate = 0; gate < s.G; gate++)
      kernel.product(s.B, rows, panel(j, gate) + s.I * padded(columns), zh + gate * s.H + j, wide,
                     columns);
    UnitForward<T> unit{};
    unit.zx = zx + t * s.B * wide + j;
    unit.zh = zh + j;
    unit.bias_x = w.b_ih + j;
    unit.bias_h = w.b_hh + j;
    unit.h = before + j;
    unit.output = output + t * s.B * s.H + j;
    unit.gates = gates + t * s.B * 4 * s.H + j;
    unit.gate = s.H;
    unit.wide = wide;
    unit.width = s.H;
    unit.columns = columns;
    (s.G == 1 ? kernel.plain_forward : kernel.gated_forward)(s.B, unit);
  }

  int64_t padded(int64_t columns) const {
    return (columns + kernel.lanes - 1) / kernel.lanes * kernel.lanes;
  }
  // A thread's panels lie one behind the other, so that of column j begins at j times the depth.
  T* panel(int64_t j, int64_t gate) const {
    const int64_t U = (s.H + kernel.lanes - 1) / kernel.lanes;
    return panels + (gate * U * kernel.lanes + j) * (s.I + s.H);
  }
  void pack(const T* from, int64_t columns, int64_t depth, T* to) const {
    const int64_t W = kernel.lanes, groups = (columns + W - 1) / W;
    kernel.pack_rows(from, W * depth, groups, W, columns - (groups - 1) * W, depth, to);
  }
};

template <typename T>
struct Backward {
  UnitSizes s;
  const Kernels<T>& kernel;
  const T *grad_output, *x, *h, *output, *gates;
  Weights<T> w;
  T* grad_x;  // null where it is not wanted
  T *grad_h, *grad_w_ih, *grad_w_hh, *grad_b_ih, *grad_b_hh;
  // Work: blocks [rows T B][W] of each unit of each gate, `block` apart, gates n, r, z, zh_n (plain:
  // z alone), so that the first G are those of the input's products and the last G those of h's;
  // what comes back to h, through the products and by z; the packed weights; each thread's panel of
  // inputs.
  T *d, *back, *carry, *panels_h, *panels_x, *inputs;

  int64_t lanes() const { return kernel.lanes; }
  int64_t units() const { return (s.H + lanes() - 1) / lanes(); }
  int64_t rows() const { return s.T * s.B; }
  // A row more than there is: a power of two apart, the blocks would lie in the same sets of the
  // caches, of which a product reads a few lines of all.
  int64_t block() const { return (rows() + 1) * lanes(); }
  int64_t depth() const { return s.G * units() * lanes(); }
  // The blocks of h's products: behind n's, which is the input's alone.
  const T* d_h() const { return s.G == 1 ? d : d + units() * block(); }
  // Where the rows of the weights' gate stand among the blocks of the input's and of h's products.
  int64_t order_x(int64_t gate) const { return s.G == 1 ? 0 : (gate + 1) % 3; }  // r, z, n: 1, 2, 0
  int64_t order_h(int64_t gate) const { return gate; }                           // r, z, n: 0, 1, 2

  void run(const Member& me) const {
    const Share mine(me, s.H, lanes());
    if (grad_x) {
      const int64_t panels = (s.I + 4 * lanes() - 1) / (4 * lanes());
      for (int64_t p = me.first(panels); p < me.last(panels); p++)
        pack_columns(w.w_ih, s.I, p * 4 * lanes(), true, panels_x);
    }
    mine.panels([&](int64_t j, int64_t columns) {
      pack_columns(w.w_hh, s.H, j, false, panels_h, columns);
      for (int64_t b = 0; b < s.B; b++) {
        std::fill_n(back + b * s.H + j, columns, T(0));
        std::fill_n(carry + b * s.H + j, columns, T(0));
      }
    });
    for (int64_t t = s.T - 1; t >= 0; t--) {
      mine.panels([&](int64_t j, int64_t columns) { cells(t, j, columns); });
      me.wait();
      const Rows<T> a{d_h() + t * s.B * lanes(), lanes(), block(), depth()};
      mine.panels([&](int64_t j, int64_t columns) {
        kernel.product(s.B, a, panels_h + j * depth(), back + j, s.H, columns);
      });
    }
    for (int64_t b = 0; b < s.B; b++)
      for (int64_t j = b * s.H + mine.first; j < b * s.H + mine.last; j++)
        grad_h[j] = back[j] + (s.G == 1 ? T(0) : carry[j]);
    weight_gradients(me, x, s.I, true, grad_w_ih);
    weight_gradients(me, nullptr, s.H, false, grad_w_hh);
    biases(me);
    if (grad_x) {
      const int64_t r0 = me.first(rows()), r1 = me.last(rows());
      const Rows<T> a{d + r0 * lanes(), lanes(), block(), depth()};
      for (int64_t j = 0; j < s.I; j += 4 * lanes())
        kernel.product(r1 - r0, a, panels_x + j * depth(), grad_x + r0 * s.I + j, s.I,
                       std::min(4 * lanes(), s.I - j));
    }
  }

  void cells(int64_t t, int64_t j, int64_t columns) const {
    const int64_t row = t * s.B;
    UnitBackward<T> unit{};
    unit.output = output + row * s.H + j;
    unit.gates = gates + row * 4 * s.H + j;
    unit.h = (t == 0 ? h : output + (row - s.B) * s.H) + j;
    unit.grad_output = grad_output + row * s.H + j;
    unit.back = back + j;
    unit.carry = carry + j;
    unit.d = d + j / lanes() * block() + row * lanes();
    unit.block = block();
    unit.gate = units() * block();
    unit.width = s.H;
    unit.columns = columns;
    (s.G == 1 ? kernel.plain_backward : kernel.gated_backward)(s.B, unit);
  }

  // Columns [column, column + 4 W) of w [G H, width] as a panel, its rows in the order of the blocks.
  void pack_columns(const T* from, int64_t width, int64_t column, bool of_x, T* panels,
                    int64_t most = 1 << 30) const {
    const int64_t columns = std::min({4 * lanes(), width - column, most});
    const int64_t wide = (columns + lanes() - 1) / lanes() * lanes();
    T* panel = panels + column * depth();
    for (int64_t gate = 0; gate < s.G; gate++) {
      T* to = panel + (of_x ? order_x(gate) : order_h(gate)) * units() * lanes() * wide;
      for (int64_t j = 0; j < units() * lanes(); j++, to += wide) {
        const int64_t real = j < s.H ? columns : 0;
        std::copy_n(from + (gate * s.H + std::min(j, s.H - 1)) * width + column, real, to);
        std::fill(to + real, to + wide, T(0));
      }
    }
  }

  // The gradient of w_ih (inputs x) or of w_hh (inputs h, then the outputs but the last).
  void weight_gradients(const Member& me, const T* of, int64_t width, bool of_x, T* grad) const {
    const int64_t W = lanes(), parts = (width + W - 1) / W, most = kernel.weight_vectors;
    T* panel = inputs + me.index * rows() * most * W;
    for (int64_t part = me.first(parts); part < me.last(parts); part += most) {
      const int64_t count = std::min(most, me.last(parts) - part), column = part * W;
      const int64_t columns = std::min(count * W, width - column);
      T* to = panel;
      for (int64_t r = 0; r < rows(); r++, to += count * W) {
        const T* from = of_x ? of + r * width : r < s.B ? h + r * s.H : output + (r - s.B) * s.H;
        std::copy_n(from + column, columns, to);
        std::fill(to + columns, to + count * W, T(0));
      }
      for (int64_t gate = 0; gate < s.G; gate++) {
        const T* blocks =
            (of_x ? d : d_h()) + (of_x ? order_x(gate) : order_h(gate)) * units() * block();
        for (int64_t u = 0; u < units(); u++)
          kernel.transposed_product(rows(), blocks + u * block(), panel,
                                    grad + (gate * s.H + u * W) * width + column, width,
                                    std::min(W, s.H - u * W), columns, false);
      }
    }
  }

  void biases(const Member& me) const {
    const int64_t W = lanes();
    for (int64_t item = me.first(s.G * units()); item < me.last(s.G * units()); item++) {
      const int64_t gate = item / units(), u = item % units(), at = gate * s.H + u * W;
      const auto sum = [&](const T* from, T* to) {
        T sums[64] = {};
        for (int64_t r = 0; r < rows(); r++)
          for (int64_t lane = 0; lane < W; lane++) sums[lane] += from[r * W + lane];
        std::copy_n(sums, std::min(W, s.H - u * W), to);
      };
      sum(d + (order_x(gate) * units() + u) * block(), grad_b_ih + at);
      sum(d_h() + (order_h(gate) * units() + u) * block(), grad_b_hh + at);
    }
  }
};

template <typename T>
int64_t team_of(const UnitSizes& s, int64_t units) {
  const double step = 2.0 * s.B * s.G * s.H * (s.I + s.H);
  // To call a team together takes as long as about as many operations.
  return s.T * step < 3e6 ? 1 : team_size(units, step);
}

template <typename T>
UnitForwardResult forward(const UnitSizes& s, const Tensor& x, const Tensor& h, const Tensor& w_ih,
                          const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto dense = [&](const Tensor& t) { return t.to(type).contiguous(); };
  const Tensor x_in = dense(x), h_in = dense(h), wi = dense(w_ih), wh = dense(w_hh),
               bi = dense(b_ih), bh = dense(b_hh);
  const auto options = x_in.options();
  Tensor output = empty({s.T, s.B, s.H}, options);
  Tensor gates = empty({s.G == 1 ? 0 : s.T, s.B, 4, s.H}, options);

  static thread_local Scratch<T> zx, zh, panels;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t W = kernel.lanes, U = (s.H + W - 1) / W;
  const Forward<T> pass{s,
                        kernel,
                        x_in.const_data_ptr<T>(),
                        h_in.const_data_ptr<T>(),
                        {wi.const_data_ptr<T>(), wh.const_data_ptr<T>(), bi.const_data_ptr<T>(),
                         bh.const_data_ptr<T>()},
                        output.mutable_data_ptr<T>(),
                        gates.mutable_data_ptr<T>(),
                        zx.get(s.T * s.B * s.G * s.H),
                        zh.get(s.B * s.G * s.H),
                        panels.get(s.G * U * W * (s.I + s.H))};
  run_team(team_of<T>(s, U), [&](const Member& me) { pass.run(me); });
  return {output.to(x.scalar_type()), gates};
}

template <typename T>
UnitBackwardResult backward(const UnitSizes& s, const Tensor& grad_output, const Tensor& x,
                            const Tensor& h, const Tensor& output, const Tensor& gates,
                            const Tensor& w_ih, const Tensor& w_hh, bool with_grad_x) {
  const auto type = c10::CppTypeToScalarType<T>::value;
  const auto dense = [&](const Tensor& t) { return t.to(type).contiguous(); };
  const Tensor grad_in = dense(grad_output), x_in = dense(x), h_in = dense(h),
               out_in = dense(output), wi = dense(w_ih), wh = dense(w_hh);
  const auto options = x_in.options();
  Tensor grad_x = empty({with_grad_x ? s.T : 0, s.B, s.I}, options);
  Tensor grad_h = empty({s.B, s.H}, options);
  Tensor grad_wi = empty(wi.sizes(), options), grad_wh = empty(wh.sizes(), options);
  Tensor grad_bi = empty({s.G * s.H}, options), grad_bh = empty({s.G * s.H}, options);

  static thread_local Scratch<T> d, back, carry, panels_h, panels_x, inputs;
  const Kernels<T>& kernel = kernels<T>();
  const int64_t W = kernel.lanes, U = (s.H + W - 1) / W, rows = s.T * s.B;
  const int64_t wide = (s.I + W - 1) / W * W, depth = s.G * U * W;
  const int64_t threads = team_of<T>(s, U);
  const Backward<T> pass{s,
                         kernel,
                         grad_in.const_data_ptr<T>(),
                         x_in.const_data_ptr<T>(),
                         h_in.const_data_ptr<T>(),
                         out_in.const_data_ptr<T>(),
                         gates.const_data_ptr<T>(),
                         {wi.const_data_ptr<T>(), wh.const_data_ptr<T>(), nullptr, nullptr},
                         with_grad_x ? grad_x.mutable_data_ptr<T>() : nullptr,
                         grad_h.mutable_data_ptr<T>(),
                         grad_wi.mutable_data_ptr<T>(),
                         grad_wh.mutable_data_ptr<T>(),
                         grad_bi.mutable_data_ptr<T>(),
                         grad_bh.mutable_data_ptr<T>(),
                         d.get((s.G == 1 ? 1 : 4) * U * W * (rows + 1)),
                         back.get(s.B * s.H),
                         carry.get(s.B * s.H),
                         panels_h.get(U * W * depth),
                         panels_x.get(wide * depth),
                         inputs.get(threads * rows * kernel.weight_vectors * W)};
  run_team(threads, [&](const Member& me) { pass.run(me); });

  const auto dtype = x.scalar_type();
  return {grad_x.to(dtype),  grad_h.to(dtype),  grad_wi.to(dtype),
          grad_wh.to(dtype), grad_bi.to(dtype), grad_bh.to(dtype)};
}

UnitForwardResult recurrent(const Tensor& x, const Tensor& h, const Tensor& w_ih,
                            const Tensor& w_hh, const Tensor& b_ih, const Tensor& b_hh,
                            bool gated) {
  const UnitSizes s = unit_sizes(x, h, w_ih, w_hh, b_ih, b_hh, gated);
  const auto type = x.scalar_type();
  TORCH_CHECK_TYPE(type == at::kFloat || type == at::kDouble || type == at::kBFloat16,
                   "x must be float32, float64 or bfloat16; got ", type);
  return type == at::kDouble ? forward<double>(s, x, h, w_ih, w_hh, b_ih, b_hh)
                             : forward<float>(s, x, h, w_ih, w_hh, b_ih, b_hh);
}

UnitBackwardResult recurrent_backward(const Tensor& grad_output, const Tensor& x, const Tensor& h,
                                      const Tensor& output, const Tensor& gates, const Tensor& w_ih,
                                      const Tensor& w_hh, bool gated, bool with_grad_x) {
  const UnitSizes s{x.size(0), x.size(1), x.size(2), w_hh.size(1), gated ? 3 : 1};
  return x.scalar_type() == at::kDouble
             ? backward<double>(s, grad_output, x, h, output, gates, w_ih, w_hh, with_grad_x)
             : backward<float>(s, grad_output, x, h, output, gates, w_ih, w_hh, with_grad_x);
}

}  // namespace
}  // namespace dnirnn::cpu

TORCH_LIBRARY_IMPL(dnirnn, CPU, m) {
  m.impl("recurrent", &dnirnn::cpu::recurrent);
  m.impl("recurrent_backward", &dnirnn::cpu::recurrent_backward);
}
