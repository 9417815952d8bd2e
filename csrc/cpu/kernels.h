// What the CPU driver calls: one table of kernels for each vector path, chosen at run time.
//
// Letters: E what is stored and multiplied, T = Wide<E> what sums, cells and states are computed in,
// W lanes of a vector of T, U = ceil(H / W) units of W cells (the last padded with zeros), M rows, K
// the contracted dimension.
//
// A panel is a block of V * W columns of a matrix, its rows contiguous: [K][V * W]; of bfloat16,
// whose product takes two rows at once, [K / 2][V * W][2], K made even with zeros. The columns of
// the gates are ordered unit by unit, in a unit gate by gate: column (u * gates + gate) * W + lane. So
// one panel holds all gates of a unit's cells, and the cell is computed on the accumulators of the
// product before they leave the registers.
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
// an ordinary matrix has block = W; the gradients of a cell's sums are stored as [blocks][rows][W].
template <typename E>
struct Rows {
  const E* data;
  int64_t row;
  int64_t block;
  int64_t depth;  // K
};

// One step of a unit of a cell (cells.h), or of several that follow each other, as many as Cell::units_a_tile
// at most, for M rows: where everything is. Strides are between rows.
template <typename E, typename T = Wide<E>>
struct CellForward {
  const T* c;  // what the cell carries, before the step, stride `width`
  E* gates;    // of each unit [M][kept][lanes], `unit_stride` apart: kept for the backward pass
  E* output;   // h', stride `width`
  E* h_next;   // h' again, where the next step reads it, stride `next`; or null, and then
  T* h_sent;   // h', as the state that a chunk ends in
  T* c_next;   // c', stride `next`
  const T* products;  // [M][units gates W]: x P_x, where it was computed before, or null
  // Or rows of a table [V][gates H], from the unit's first cell on, one for each of M symbols; or null.
  const T* table;
  const int64_t* symbols;
  int64_t width;  // H
  int64_t next;
  int64_t unit_stride;
  int64_t lanes;  // how many cells of the units exist
  bool round;     // h' is rounded to bfloat16 in output (and in h_next where round_next)
  bool round_next;
};

template <typename E, typename T = Wide<E>>
struct CellBackward {
  const E* gates;        // [M][kept][lanes]
  const T* c;            // what the cell carries, before the step, stride `width`
  const E* grad_output;  // stride `width`, or null
  const T* dh;           // what came back to h' through the next step's products, stride `width`
  T* dc;                 // in: what came back to c'; out: the gradient of c; stride `width`
  E* d_sums;             // a block [rows][W] of each sum, `block` apart
  int64_t width;
  int64_t block;
  int64_t lanes;
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

// Of one cell.
template <typename E, typename T = Wide<E>>
struct CellKernels {
  // The cells of ceil(cell.lanes / W) units on bias + x P_x + h P_h, for M rows. The panel
  // [K_x + K_h][units gates W], the bias [units sums W]; K_x is 0 where cell.products holds x P_x, or
  // cell.table its rows.
  void (*forward)(int64_t m, const Rows<E>& x, const Rows<E>& h, const E* panel, const T* bias,
                  const CellForward<E>& cell);
  // The same for one row of one unit, on the weights as they lie: w [gates H, K], from the unit's first
  // row on.
  void (*forward_direct)(const Rows<E>& x, const Rows<E>& h, const T* w_ih, const T* w_hh,
                         const T* bias, const CellForward<E>& cell);
  // Overwrites dc and d_sums for M rows of one unit.
  void (*backward)(int64_t m, const CellBackward<E>& cell);
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
  CellKernels<E> lstm, gru, rnn;
  // C [M, columns] = A P for one panel of ceil(columns / W) vectors. Overwrites C.
  void (*product)(int64_t m, const Rows<E>& a, const E* panel, T* c, int64_t ldc, int64_t columns);
  // The same, C stored as E.
  void (*narrow_product)(int64_t m, const Rows<E>& a, const E* panel, E* c, int64_t ldc,
                         int64_t columns);
  // C [rows, columns] (+)= A^T P over K steps: A is a panel [K][W], of which the first `rows` lanes
  // count, P a panel [K][vectors * W].
  void (*transposed_product)(int64_t k, const E* a, const E* panel, T* c, int64_t ldc, int64_t rows,
                             int64_t columns, bool accumulate);
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
