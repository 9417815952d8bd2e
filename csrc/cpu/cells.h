// The cells that tbptt runs on the CPU, and where each one's parts lie.
//
// A gate is H rows of the weights. The products that a step makes are added up in `sums` of H
// numbers each: gate g of the input's product belongs to sum OfX::at(g), of h's to OfH::at(g). From
// the sums and what the cell carries from step to step beside h (c; of cells that have no other state,
// h itself, as it was before it was rounded for the product) come h', the new c, and what `kept`
// numbers the backward pass needs. The backward pass makes the sums' gradients, in blocks of a unit of
// W cells each; those of the input's product follow each other from block 0 on, those of h's product
// from block first_h on.
#pragma once

#include <cstdint>

#include "inline.h"
#include "lstm_cell.h"

namespace {

struct InOrder {
  static constexpr int at(int gate) { return gate; }
};

struct LstmCell {
  static constexpr int gates = 4, sums = 4, kept = 4;
  static constexpr int units_a_tile = 1;  // of a product: 4 sums at most
  static constexpr int states = 2;        // parts of the state: h and c
  // Whether a gradient comes back past the sums: of c by the next c.
  static constexpr bool carries = true;
  using OfX = InOrder;
  using OfH = InOrder;
  // The block of a sum of unit u, of U units.
  static constexpr int64_t block(int64_t u, int64_t sum, int64_t) { return u * 4 + sum; }
  static constexpr int64_t first_h(int64_t) { return 0; }

  // Turns sums into what is kept, and (c) into (c'); returns h'.
  template <typename M, typename V>
  static DNIRNN_INLINE V forward(V* a, V& c) {
    CellGates<V> gates{a[0], a[1], a[2], a[3]};
    const V h = cell_forward<M>(gates, c);
    a[0] = gates.i, a[1] = gates.f, a[2] = gates.g, a[3] = gates.o;
    return h;
  }
  // Turns what was kept into the sums' gradients. dh: what came back to h' from outputs and products;
  // carried: what came back to c', made into the same of c.
  template <typename M, typename V>
  static DNIRNN_INLINE void backward(V* a, V c, V dh, V& carried) {
    const CellGates<V> d =
        cell_backward(cell_slopes<M>(CellGates<V>{a[0], a[1], a[2], a[3]}, c), dh, carried);
    a[0] = d.i, a[1] = d.f, a[2] = d.g, a[3] = d.o;
  }
};

// r, z = sigmoid(x + h),  n = tanh(x_n + r h_n),  h' = (1 - z) n + z h, where x and h stand for their
// products with the biases. Gates: r, z, n; sums: x_n, r, z, h_n, and kept: n, r, z, h_n.
struct GruCell {
  static constexpr int gates = 3, sums = 4, kept = 4;
  static constexpr int units_a_tile = 1;
  static constexpr int states = 1;
  static constexpr bool carries = true;
  struct OfX {
    static constexpr int at(int gate) { return (gate + 1) % 3; }
  };
  struct OfH {
    static constexpr int at(int gate) { return gate + 1; }
  };
  static constexpr int64_t block(int64_t u, int64_t sum, int64_t U) { return sum * U + u; }
  static constexpr int64_t first_h(int64_t U) { return U; }

  template <typename M, typename V>
  static DNIRNN_INLINE V forward(V* a, V& c) {
    a[1] = M::sigmoid(a[1]);
    a[2] = M::sigmoid(a[2]);
    a[0] = M::tanh(a[0] + a[1] * a[3]);
    return c = a[0] + a[2] * (c - a[0]);
  }
  template <typename M, typename V>
  static DNIRNN_INLINE void backward(V* a, V c, V dh, V& carried) {
    const V n = a[0], r = a[1], z = a[2];
    dh += carried;
    carried = dh * z;
    a[0] = dh * (V{} + 1 - z) * (V{} + 1 - n * n);
    a[1] = a[0] * a[3] * r * (V{} + 1 - r);
    a[2] = dh * (c - n) * z * (V{} + 1 - z);
    a[3] = a[0] * r;
  }
};

// h' = tanh(x + h)
struct RnnCell {
  static constexpr int gates = 1, sums = 1, kept = 1;
  static constexpr int units_a_tile = 4;
  static constexpr int states = 1;
  static constexpr bool carries = false;
  using OfX = InOrder;
  using OfH = InOrder;
  static constexpr int64_t block(int64_t u, int64_t, int64_t) { return u; }
  static constexpr int64_t first_h(int64_t) { return 0; }

  template <typename M, typename V>
  static DNIRNN_INLINE V forward(V* a, V& c) {
    return c = a[0] = M::tanh(a[0]);
  }
  template <typename M, typename V>
  static DNIRNN_INLINE void backward(V* a, V dh) {
    a[0] = dh * (V{} + 1 - a[0] * a[0]);
  }
};

}  // namespace
