// What the CPU driver calls: one table of kernels for each vector path, chosen at run time.
//
// Letters: E what is stored and multiplied, T = Wide<E> what sums, cells and states are computed in,
// W lanes of a vector of T, U = ceil(H / W) units of W cells (the last padded with zeros), M rows, K
// the contracted dimension.
//
// A panel is a block of V * W columns of a matrix, its rows contiguous: [K][V * W]; of bfloat16,
// whose product takes two rows at once, [K / 2][V * W][2], K made even with zeros. The columns of
// the gates are ordered unit by unit, in a unit gate by gate: column (u * 4 + gate) * W + lane. So
// one panel of 4 vectors holds all four gates of a unit's cells, and the cell is computed on the
// accumulators of the product before they leave the registers.
#pragma once

#include <cstdint>

namespace dnirnn::cpu {

// The upper half of a float. Not torch's type: its functions are inline, and a vector path may call
// none that another file also compiles.
struct bfloat16 {
  uint16_t bits;
};

template <typename E>
struct ElementOf {
  using wide = E;
  static constexpr int64_t rows = 1;  // of a panel that one multiplication takes
};
template <>
struct ElementOf<bfloat16> {
  using wide = float;
  static constexpr int64_t rows = 2;
};
template <typename E>
using Wide = typename ElementOf<E>::wide;

// M rows of a product's left side. Element (m, k) is at data[m * row + (k / W) * block + k % W]:
// an ordinary matrix has block = W; gate gradients are stored as [4 * U][rows][W].
template <typename E>
struct Rows {
  const E* data;
  int64_t row;
  int64_t block;
  int64_t depth;  // K
};

// One step of one unit, for M rows: where everything is. Strides are between rows.
template <typename E, typename T = Wide<E>>
struct CellForward {
  const T* c;         // c before the step, stride `width`
  E* gates;           // [M][4][lanes]: the gates, kept for the backward pass
  E* output;          // h', stride `width`
  E* h_next;          // h' again, where the next step reads it, stride `next`; or null, and then
  T* h_sent;          // h', as the state that a chunk ends in
  T* c_next;          // c', stride `next`
  const T* products;  // [M][4 W]: x P_x, where it was computed before, or null
  // Or rows of a table [V][4 H], from the unit's first cell on, one for each of M symbols; else null.
  const T* table;
  const int64_t* symbols;
  int64_t width;  // H
  int64_t next;
  int64_t lanes;  // how many cells of the unit exist
  bool round;     // h' is rounded to bfloat16 in output (and in h_next where round_next)
  bool round_next;
};

template <typename E, typename T = Wide<E>>
struct CellBackward {
  const E* gates;        // [M][4][lanes]
  const T* c;            // c before the step, stride `width`
  const E* grad_output;  // stride `width`, or null
  const T* dh;           // what came back to h' from the next step, stride `width`
  T* dc;                 // in: what came back to c'; out: the gradient of c; stride `width`
  E* d_gates;            // four blocks [rows][W], `block` apart
  int64_t width;
  int64_t block;
  int64_t lanes;
};

// One step of some columns of a plain recurrent layer or of a layer of gated units, for M rows.
// Pointers are to the first of the columns; strides are between rows.
template <typename T>
struct UnitForward {
  const T* zx;      // products of the input, gate after gate `gate` apart, stride `wide`
  const T* zh;      // products of h, likewise
  const T* bias_x;  // gate after gate `width` apart
  const T* bias_h;
  const T* h;  // h before the step, stride `width`; gated units only
  T* output;   // h', stride `width`
  T* gates;    // [M, 4, H]: r, z, n, zh_n, kept for the backward pass; gated units only
  int64_t gate;
  int64_t wide;
  int64_t width;  // H
  int64_t columns;
};

template <typename T>
struct UnitBackward {
  const T* output;       // h', stride `width`; plain only
  const T* gates;        // [M, 4, H]; gated units only
  const T* h;            // h before the step, stride `width`; gated units only
  const T* grad_output;  // stride `width`
  const T* back;         // what came back to h' through the products, stride `width`
  T* carry;              // gated units: in: what came back to h' by z; out: the same for h
  T* d;  // blocks [rows][W] of each unit, `block` apart: plain dz; gated n, r, z, zh_n
  int64_t block;
  int64_t gate;  // from a gate's blocks to the next gate's
  int64_t width;
  int64_t columns;
};

// One step of one row of an LSTM with options: all H units at once, because a normalisation needs
// them. What is null does nothing. With norm(a) = (a - mean(a)) / sqrt(var(a) + 1e-5) over H:
//   a = zx + zh;  a_k = gain_k norm(a_k) for each gate k;  i, f, o = sigmoid(a + bias), g = tanh
//   c~ = f c + factor i g;  h~ = o tanh(gain_c norm(c~) + bias_c), or o tanh(c~)
//   c' = open_c c~ + (1 - open_c) c;  h' = open_h h~ + (1 - open_h) h
// With shares, copy and keep, one number each for the row, and without open_c and open_h:
//   c~ = (copy + keep f) c + (1 - copy) i g;  h' = copy h + (1 - copy) h~
template <typename T>
struct LstmOptions {
  const T *gain, *gain_c, *bias_c;    // [4, H]; [H], [H], both or none
  const T *open_h, *open_c, *factor;  // [H]
  const T* shares;                    // [2]
};

template <typename T>
struct LstmRowForward {
  LstmOptions<T> options;
  const T *zx, *zh, *bias;  // [4, H]
  const T *h, *c;           // before the step
  T* gates;                 // [4, H]: i, f, g, o, kept for the backward pass
  T *normed, *scale;        // [4, H]: norm(a_k); [4]: 1 / sqrt(var + 1e-5); where there is a gain
  T *h_next, *c_next;
  int64_t width;  // H
};

template <typename T>
struct LstmRowBackward {
  LstmOptions<T> options;
  const T *h, *c, *gates, *normed, *scale;
  const T* grad_output;    // or null
  const T* back;           // what came back to h' through the products
  T *carry_h, *carry_c;    // in: what else came back to h' and c'; out: the same for h and c
  T* d;                    // [4, H]: the gradient of the products zx and zh
  T* sums;                 // bias [4, H], gain [4, H], gain_c, bias_c: their gradients are added
  T *d_open_h, *d_open_c;  // [H], or null
  T* d_shares;             // [2], with shares
  T* work;                 // [H]
  int64_t width;
};

template <typename E, typename T = Wide<E>>
struct Kernels {
  const char* name;
  int64_t lanes;           // W
  int64_t vectors;         // V of the panels of a product
  int64_t weight_vectors;  // V of the panels of a weight gradient

  // Rows of a matrix [.., K] as the columns of a panel [K][groups * W], group by group:
  // to[k][g][lane] = w[g * group + lane * K + k]. A group has W rows, the last one `last`; where
  // fewer than W rows exist, `lanes` of each. What is missing is zero.
  void (*pack_rows)(const T* w, int64_t group, int64_t groups, int64_t lanes, int64_t last,
                    int64_t k, E* to);
  // Rows of a matrix as the rows [first, first + count) of a panel of `wide` columns, of which
  // `columns` exist, the rest zero. Where bfloat16 has one row of two, the other must be put next,
  // or stays zero.
  void (*put_rows)(int64_t first, int64_t count, const E* from, int64_t stride, int64_t columns,
                   E* panel, int64_t wide);
  void (*put_weights)(int64_t first, int64_t count, const T* from, int64_t stride, int64_t columns,
                      E* panel, int64_t wide);
  // The cell of one unit on bias + x P_x + h P_h, for M rows. The panel [K_x + K_h][4 W]; K_x is 0
  // where cell.products holds x P_x, or cell.table its rows.
  void (*cell_forward)(int64_t m, const Rows<E>& x, const Rows<E>& h, const E* panel, const T* bias,
                       const CellForward<E>& cell);
  // The same for one row, on the weights as they lie: w [4 H, K], from the unit's first row on.
  void (*cell_forward_direct)(const Rows<E>& x, const Rows<E>& h, const T* w_ih, const T* w_hh,
                              const T* bias, const CellForward<E>& cell);
  // Overwrites dc and d_gates for M rows of one unit.
  void (*cell_backward)(int64_t m, const CellBackward<E>& cell);
  // C [M, columns] = A P for one panel of ceil(columns / W) vectors. Overwrites C.
  void (*product)(int64_t m, const Rows<E>& a, const E* panel, T* c, int64_t ldc, int64_t columns);
  // The same, C stored as E.
  void (*narrow_product)(int64_t m, const Rows<E>& a, const E* panel, E* c, int64_t ldc,
                         int64_t columns);
  // C [rows, columns] (+)= A^T P over K steps: A is a panel [K][W], of which the first `rows` lanes
  // count, P a panel [K][vectors * W].
  void (*transposed_product)(int64_t k, const E* a, const E* panel, T* c, int64_t ldc, int64_t rows,
                             int64_t columns, bool accumulate);
  // Gated units and plain layers: null of bfloat16.
  void (*plain_forward)(int64_t m, const UnitForward<T>& unit);
  void (*plain_backward)(int64_t m, const UnitBackward<T>& unit);
  void (*gated_forward)(int64_t m, const UnitForward<T>& unit);
  void (*gated_backward)(int64_t m, const UnitBackward<T>& unit);
  // One row of an LSTM with options: null of bfloat16.
  void (*lstm_row_forward)(const LstmRowForward<T>& row);
  void (*lstm_row_backward)(const LstmRowBackward<T>& row);
};

// The table for the best vector path of this CPU, no better than ATen's own choice
// (ATEN_CPU_CAPABILITY is honoured). Of bfloat16 only where multiplies_bfloat16().
template <typename E>
const Kernels<E>& kernels();
// Whether the CPU multiplies bfloat16 numbers itself.
bool multiplies_bfloat16();

namespace generic {
template <typename E>
const Kernels<E>& table();
}
#if defined(__x86_64__)
namespace avx2 {
template <typename E>
const Kernels<E>& table();
}
namespace avx512 {
template <typename E>
const Kernels<E>& table();
}
namespace avx512_bfloat16 {
template <typename E>
const Kernels<E>& table();
}
#endif

}  // namespace dnirnn::cpu
