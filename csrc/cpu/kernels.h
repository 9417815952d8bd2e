// What the CPU driver calls: one table of kernels for each vector path, chosen at run time.
//
// Letters: W lanes of a vector, U = ceil(H / W) units of W cells (the last padded with zeros),
// M rows, K the contracted dimension.
//
// A panel is a block of V * W columns of a matrix, its rows contiguous: [K][V * W]. The columns of
// the gates are ordered unit by unit, in a unit gate by gate: column (u * 4 + gate) * W + lane. So
// one panel of 4 vectors holds all four gates of a unit's cells, and the cell is computed on the
// accumulators of the product before they leave the registers.
#pragma once

#include <cstdint>

namespace dnirnn::cpu {

// M rows of a product's left side. Element (m, k) is at data[m * row + (k / W) * block + k % W]:
// an ordinary matrix has block = W; gate gradients are stored as [4 * U][rows][W].
template <typename T>
struct Rows {
  const T* data;
  int64_t row;
  int64_t block;
  int64_t depth;  // K
};

// One step of one unit, for M rows: where everything is. Strides are between rows.
template <typename T>
struct CellForward {
  const T* c;       // c before the step, stride `width`
  T* gates;         // [M, 4, H]: the gates, kept for the backward pass
  T* output;        // h', stride `width`
  T* h_next;        // h' again, where the next step reads it, stride next
  T* c_next;        // c', stride next
  int64_t width;    // H
  int64_t next;
  int64_t lanes;    // how many cells of the unit exist
  bool round;       // h' is rounded to bfloat16 in output (and in h_next where round_next)
  bool round_next;
};

template <typename T>
struct CellBackward {
  const T* gates;        // [M, 4, H]
  const T* c;            // c before the step, stride `width`
  const T* grad_output;  // stride `width`, or null
  const T* dh;           // what came back to h' from the next step, stride `width`
  T* dc;                 // in: what came back to c'; out: the gradient of c; stride `width`
  T* d_gates;            // four blocks [rows][W], `block` apart
  int64_t width;
  int64_t block;
  int64_t lanes;
};

// One step of some columns of a plain recurrent layer or of a layer of gated units, for M rows.
// Pointers are to the first of the columns; strides are between rows.
template <typename T>
struct UnitForward {
  const T* zx;     // products of the input, gate after gate `gate` apart, stride `wide`
  const T* zh;     // products of h, likewise
  const T* bias_x; // gate after gate `width` apart
  const T* bias_h;
  const T* h;      // h before the step, stride `width`; gated units only
  T* output;       // h', stride `width`
  T* gates;        // [M, 4, H]: r, z, n, zh_n, kept for the backward pass; gated units only
  int64_t gate;
  int64_t wide;
  int64_t width;   // H
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
  T* d;                  // blocks [rows][W] of each unit, `block` apart: plain dz; gated n, r, z, zh_n
  int64_t block;
  int64_t gate;          // from a gate's blocks to the next gate's
  int64_t width;
  int64_t columns;
};

template <typename T>
struct Kernels {
  const char* name;
  int64_t lanes;           // W
  int64_t vectors;         // V of the panels of a product
  int64_t weight_vectors;  // V of the panels of a weight gradient

  // Rows of a matrix [.., K] as the columns of a panel [K][groups * W], group by group:
  // to[k][g][lane] = w[g * group + lane * K + k]. A group has W rows, the last one `last`; where
  // fewer than W rows exist, `lanes` of each. What is missing is zero.
  void (*pack_rows)(const T* w, int64_t group, int64_t groups, int64_t lanes, int64_t last,
                    int64_t k, T* to);
  // The cell of one unit on bias + x P_x + h P_h, for M rows. The panel [K_x + K_h][4 W].
  void (*cell_forward)(int64_t m, const Rows<T>& x, const Rows<T>& h, const T* panel, const T* bias,
                       const CellForward<T>& cell);
  // The same for one row, on the weights as they lie: w [4 H, K], from the unit's first row on.
  void (*cell_forward_direct)(const Rows<T>& x, const Rows<T>& h, const T* w_ih, const T* w_hh,
                              const T* bias, const CellForward<T>& cell);
  // Overwrites dc and d_gates for M rows of one unit.
  void (*cell_backward)(int64_t m, const CellBackward<T>& cell);
  // C [M, columns] = A P for one panel of ceil(columns / W) vectors. Overwrites C.
  void (*product)(int64_t m, const Rows<T>& a, const T* panel, T* c, int64_t ldc, int64_t columns);
  // C [rows, columns] (+)= A^T P over K steps: A is [K][W], of which the first `rows` lanes count,
  // P a panel [K][vectors * W].
  void (*transposed_product)(int64_t k, const T* a, const T* panel, T* c, int64_t ldc, int64_t rows,
                             int64_t columns, bool accumulate);
  void (*plain_forward)(int64_t m, const UnitForward<T>& unit);
  void (*plain_backward)(int64_t m, const UnitBackward<T>& unit);
  void (*gated_forward)(int64_t m, const UnitForward<T>& unit);
  void (*gated_backward)(int64_t m, const UnitBackward<T>& unit);
};

// The table for the best vector path of this CPU, no better than ATen's own choice
// (ATEN_CPU_CAPABILITY is honoured).
template <typename T>
const Kernels<T>& kernels();

namespace generic {
template <typename T>
const Kernels<T>& table();
}
#if defined(__x86_64__)
namespace avx2 {
template <typename T>
const Kernels<T>& table();
}
namespace avx512 {
template <typename T>
const Kernels<T>& table();
}
#endif

}  // namespace dnirnn::cpu
