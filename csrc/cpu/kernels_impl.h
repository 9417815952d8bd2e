// The kernels of one vector path, in terms of vectors of BYTES bytes. Each path's file sets its
// compiler target, defines PATH, BYTES and the tile sizes, and includes this file once.
//
// Nothing here may call an inline function that another file also compiles (the standard library's
// included): the linker keeps one copy of such a function, and it might be the one for a CPU that
// is not this one. Hence the __builtin functions; of the standard library, types only.
#include <utility>

#include "cpu/kernels.h"
#include "lstm_cell.h"
#include "recurrent_cell.h"

namespace dnirnn::cpu::PATH {
namespace {

template <typename T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float vec __attribute__((vector_size(BYTES)));
  typedef float loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
  typedef int ints __attribute__((vector_size(BYTES)));
};
template <>
struct Lanes<double> {
  typedef double vec __attribute__((vector_size(BYTES)));
  typedef double loose __attribute__((vector_size(BYTES), aligned(8), may_alias));
};
template <typename T>
using Vec = typename Lanes<T>::vec;
template <typename T>
constexpr int W = BYTES / sizeof(T);

template <typename T>
DNIRNN_INLINE Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename Lanes<T>::loose*>(from);
}
template <typename T>
DNIRNN_INLINE Vec<T> load(const T* from, int64_t lanes) {
  if (lanes >= W<T>) return load(from);
  Vec<T> value{};
  __builtin_memcpy(&value, from, lanes * sizeof(T));
  return value;
}
template <typename T>
DNIRNN_INLINE void store(T* to, Vec<T> value, int64_t lanes) {
  if (lanes >= W<T>) {
    *reinterpret_cast<typename Lanes<T>::loose*>(to) = value;
  } else {
    __builtin_memcpy(to, &value, lanes * sizeof(T));
  }
}

// exp by range reduction to [-ln 2 / 2, ln 2 / 2] and a polynomial, within 2 units in the last
// place. tanh by a rational function fitted to the relative error on [-8, 8], beyond which it is 1
// to 2e-7: within 3e-7 of its size, everywhere. NaN stays NaN.
struct FloatMath {
  using V = Lanes<float>::vec;
  using I = Lanes<float>::ints;
  static DNIRNN_INLINE V exp(V x) {
    x = x < V{} - 87.0f ? V{} - 87.0f : x;
    x = x > V{} + 87.0f ? V{} + 87.0f : x;
    const V shifted = x * 1.44269504088896341f + 12582912.0f;
    const V n = shifted - 12582912.0f;
    const V r = x - n * 0.693359375f - n * -2.12194440e-4f;
    V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * (r * r) + r + 1.0f;
    // The low bits of `shifted` hold n as an integer; moved up, they add n to the exponent.
    I bits;
    __builtin_memcpy(&bits, &shifted, sizeof bits);
    I power = (bits << 23) + 0x3f800000;
    V scale;
    __builtin_memcpy(&scale, &power, sizeof scale);
    return p * scale;
  }
  static DNIRNN_INLINE V sigmoid(V x) { return 1.0f / (1.0f + exp(-x)); }
  static DNIRNN_INLINE V tanh(V x) {
    x = x < V{} - 8.0f ? V{} - 8.0f : x;
    x = x > V{} + 8.0f ? V{} + 8.0f : x;
    const V square = x * x;
    V p = square * 1.523046758e-8f + 2.1894697087e-5f;
    p = p * square + 3.5716001384e-3f;
    p = p * square + 1.3444499756e-1f;
    p = p * square + 9.9999999357e-1f;
    V q = square * 8.522466749e-7f + 3.4112954870e-4f;
    q = q * square + 2.6164450967e-2f;
    q = q * square + 4.6777827077e-1f;
    q = q * square + 1.0f;
    return x * p / q;
  }
};

// Exact to the last place or so, a lane at a time: float64 is for checking, not for speed.
struct DoubleMath {
  using V = Lanes<double>::vec;
  static DNIRNN_INLINE V sigmoid(V x) {
    V y;
    for (int i = 0; i < W<double>; i++) y[i] = 1.0 / (1.0 + __builtin_exp(-x[i]));
    return y;
  }
  static DNIRNN_INLINE V tanh(V x) {
    V y;
    for (int i = 0; i < W<double>; i++) y[i] = __builtin_tanh(x[i]);
    return y;
  }
};
template <typename T>
struct MathOf {
  using type = FloatMath;
};
template <>
struct MathOf<double> {
  using type = DoubleMath;
};

DNIRNN_INLINE Vec<float> round_bfloat16(Vec<float> x) {
  Lanes<float>::ints bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & (int)0xffff0000;
  Vec<float> y;
  __builtin_memcpy(&y, &bits, sizeof y);
  return x == x ? y : x;
}
DNIRNN_INLINE Vec<double> round_bfloat16(Vec<double> x) { return x; }

// One stage of a transposition: swaps the off-diagonal blocks of D by D.
template <typename T, int D, int... J>
DNIRNN_INLINE void swap_blocks(Vec<T>& a, Vec<T>& b, std::integer_sequence<int, J...>) {
  const Vec<T> low = __builtin_shufflevector(a, b, ((J & D) ? W<T> + J - D : J)...);
  b = __builtin_shufflevector(a, b, ((J & D) ? W<T> + J : J + D)...);
  a = low;
}
template <typename T, int D>
DNIRNN_INLINE void transpose_stage(Vec<T> (&rows)[W<T>]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < W<T>; i++) {
      if ((i & D) == 0)
        swap_blocks<T, D>(rows[i], rows[i + D], std::make_integer_sequence<int, W<T>>());
    }
    transpose_stage<T, D / 2>(rows);
  }
}

template <typename T>
void pack_rows(const T* w, int64_t group, int64_t groups, int64_t lanes, int64_t last,
               int64_t depth, T* to) {
  for (int64_t g = 0; g < groups; g++, w += group) {
    const int64_t count = g + 1 == groups ? last : lanes;
    // Rows lie too far apart for the hardware to see that the next group's come next, and after the
    // last group the first one of the rows that follow.
    const T* next = g + 1 < groups ? w + group : w - g * group + lanes * depth;
    for (int64_t k = 0; k < depth; k += W<T>) {
      const int64_t n = depth - k < W<T> ? depth - k : W<T>;
#pragma GCC unroll 16
      for (int i = 0; i < W<T>; i++) {
        __builtin_prefetch(next + i * depth + k);
        __builtin_prefetch(to + ((k + W<T> + i) * groups + g) * W<T>, 1);
      }
      Vec<T> rows[W<T>];
#pragma GCC unroll 16
      for (int i = 0; i < W<T>; i++)
        rows[i] = i < count ? load(w + i * depth + k, n) : Vec<T>{};
      transpose_stage<T, W<T> / 2>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < W<T>; i++)
        if (i < n) store(to + ((k + i) * groups + g) * W<T>, rows[i], W<T>);
    }
  }
}

// acc [R][V] += A P, the panel's rows `wide` vectors apart.
template <typename T, int R, int V>
DNIRNN_INLINE void multiply(Vec<T> (&acc)[R][V], const Rows<T>& a, const T* panel, int64_t wide) {
  const T* block = a.data;
  for (int64_t k = 0; k < a.depth; k += W<T>, block += a.block) {
    const int64_t n = a.depth - k < W<T> ? a.depth - k : W<T>;
    for (int64_t i = 0; i < n; i++, panel += wide * W<T>) {
      Vec<T> p[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) p[v] = load(panel + v * W<T>);
#pragma GCC unroll 32
      for (int r = 0; r < R; r++) {
        const T x = block[r * a.row + i];
#pragma GCC unroll 8
        for (int v = 0; v < V; v++) acc[r][v] += x * p[v];
      }
    }
  }
}

template <typename T>
Rows<T> from_row(const Rows<T>& a, int64_t row) {
  return {a.data + row * a.row, a.row, a.block, a.depth};
}

// From the preactivations of one row of a unit to everything that the step leaves.
template <typename T>
DNIRNN_INLINE void finish_cell(CellGates<Vec<T>> gates, int64_t row, const CellForward<T>& cell) {
  Vec<T> c = load(cell.c + row * cell.width, cell.lanes);
  const Vec<T> out = cell_forward<typename MathOf<T>::type>(gates, c);
  T* to = cell.gates + row * 4 * cell.width;
  store(to, gates.i, cell.lanes);
  store(to + cell.width, gates.f, cell.lanes);
  store(to + 2 * cell.width, gates.g, cell.lanes);
  store(to + 3 * cell.width, gates.o, cell.lanes);
  const Vec<T> rounded = cell.round ? round_bfloat16(out) : out;
  store(cell.output + row * cell.width, rounded, cell.lanes);
  store(cell.h_next + row * cell.next, cell.round_next ? rounded : out, cell.lanes);
  store(cell.c_next + row * cell.next, c, cell.lanes);
}

template <typename T, int R>
void cell_forward_tile(int64_t m, const Rows<T>& x, const Rows<T>& h, const T* panel, const T* bias,
                       const CellForward<T>& cell) {
  Vec<T> acc[R][4];
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) acc[r][v] = load(bias + v * W<T>);
  }
  multiply<T, R, 4>(acc, from_row(x, m), panel, 4);
  multiply<T, R, 4>(acc, from_row(h, m), panel + x.depth * 4 * W<T>, 4);
  for (int r = 0; r < R; r++) finish_cell<T>({acc[r][0], acc[r][1], acc[r][2], acc[r][3]}, m + r, cell);
}

template <typename T>
void cell_forward_rows(int64_t m, const Rows<T>& x, const Rows<T>& h, const T* panel, const T* bias,
                       const CellForward<T>& cell) {
  int64_t row = 0;
  for (; row + ROWS <= m; row += ROWS)
    cell_forward_tile<T, ROWS>(row, x, h, panel, bias, cell);
  const int64_t left = m - row;
#if ROWS > 4
  if (left == 5) return cell_forward_tile<T, 5>(row, x, h, panel, bias, cell);
  if (left == 4) return cell_forward_tile<T, 4>(row, x, h, panel, bias, cell);
#endif
#if ROWS > 2
  if (left == 3) return cell_forward_tile<T, 3>(row, x, h, panel, bias, cell);
  if (left == 2) return cell_forward_tile<T, 2>(row, x, h, panel, bias, cell);
#endif
  if (left == 1) return cell_forward_tile<T, 1>(row, x, h, panel, bias, cell);
}

template <typename T>
DNIRNN_INLINE T dot(const T* a, const T* b, int64_t n) {
  Vec<T> sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * W<T> <= n; k += 4 * W<T>) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) sums[v] += load(a + k + v * W<T>) * load(b + k + v * W<T>);
  }
  for (; k < n; k += W<T>) sums[0] += load(a + k, n - k) * load(b + k, n - k);
  const Vec<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  T total = 0;
  for (int i = 0; i < W<T>; i++) total += sum[i];
  return total;
}

template <typename T>
void cell_forward_direct(const Rows<T>& x, const Rows<T>& h, const T* w_ih, const T* w_hh,
                         const T* bias, const CellForward<T>& cell) {
  T sums[4 * W<T>] = {};
  for (int64_t gate = 0; gate < 4; gate++) {
    for (int64_t lane = 0; lane < cell.lanes; lane++) {
      const int64_t at = gate * W<T> + lane, row = gate * cell.width + lane;
      sums[at] = bias[at] + dot(x.data, w_ih + row * x.depth, x.depth) +
                 dot(h.data, w_hh + row * h.depth, h.depth);
    }
  }
  finish_cell<T>({load(sums), load(sums + W<T>), load(sums + 2 * W<T>), load(sums + 3 * W<T>)}, 0,
              cell);
}

template <typename T>
void cell_backward_rows(int64_t m, const CellBackward<T>& cell) {
  using M = typename MathOf<T>::type;
  for (int64_t row = 0; row < m; row++) {
    const int64_t at = row * cell.width;
    const T* from = cell.gates + 4 * at;
    const CellGates<Vec<T>> gates{
        load(from, cell.lanes), load(from + cell.width, cell.lanes),
        load(from + 2 * cell.width, cell.lanes), load(from + 3 * cell.width, cell.lanes)};
    Vec<T> dh = load(cell.dh + at, cell.lanes);
    if (cell.grad_output) dh += load(cell.grad_output + at, cell.lanes);
    Vec<T> dc = load(cell.dc + at, cell.lanes);
    const CellGates<Vec<T>> d =
        cell_backward<M>(gates, load(cell.c + at, cell.lanes), dh, dc);
    store(cell.dc + at, dc, cell.lanes);
    // Padded lanes are zero: their gates, dh and dc were loaded as zeros.
    T* to = cell.d_gates + row * W<T>;
    store(to, d.i, W<T>);
    store(to + cell.block, d.f, W<T>);
    store(to + 2 * cell.block, d.g, W<T>);
    store(to + 3 * cell.block, d.o, W<T>);
  }
}

template <typename T, int R, int V>
void product_tile(const Rows<T>& a, const T* panel, T* c, int64_t ldc, int64_t columns) {
  Vec<T> acc[R][V] = {};
  multiply<T, R, V>(acc, a, panel, V);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(c + r * ldc + v * W<T>, acc[r][v], columns - v * W<T>);
  }
}

template <typename T, int V>
void product_rows(int64_t m, const Rows<T>& a, const T* panel, T* c, int64_t ldc, int64_t columns) {
  int64_t row = 0;
  for (; row + ROWS <= m; row += ROWS)
    product_tile<T, ROWS, V>(from_row(a, row), panel, c + row * ldc, ldc, columns);
  const Rows<T> rest = from_row(a, row);
  T* to = c + row * ldc;
  const int64_t left = m - row;
#if ROWS > 4
  if (left == 5) return product_tile<T, 5, V>(rest, panel, to, ldc, columns);
  if (left == 4) return product_tile<T, 4, V>(rest, panel, to, ldc, columns);
#endif
#if ROWS > 2
  if (left == 3) return product_tile<T, 3, V>(rest, panel, to, ldc, columns);
  if (left == 2) return product_tile<T, 2, V>(rest, panel, to, ldc, columns);
#endif
  if (left == 1) return product_tile<T, 1, V>(rest, panel, to, ldc, columns);
}

template <typename T>
void product(int64_t m, const Rows<T>& a, const T* panel, T* c, int64_t ldc, int64_t columns) {
  switch ((columns + W<T> - 1) / W<T>) {
    case 4: return product_rows<T, 4>(m, a, panel, c, ldc, columns);
    case 3: return product_rows<T, 3>(m, a, panel, c, ldc, columns);
    case 2: return product_rows<T, 2>(m, a, panel, c, ldc, columns);
    default: return product_rows<T, 1>(m, a, panel, c, ldc, columns);
  }
}

// tile [R][V W] = A^T P. Apart from what becomes of the tile: with that in one function, gcc spills
// the accumulators.
template <typename T, int R, int V>
__attribute__((noinline)) void transposed_tile(int64_t k, const T* a, const T* panel, Vec<T>* tile) {
  Vec<T> acc[R][V] = {};
  for (int64_t i = 0; i < k; i++, panel += V * W<T>, a += W<T>) {
    Vec<T> p[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) p[v] = load(panel + v * W<T>);
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
      const T x = a[r];
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) acc[r][v] += x * p[v];
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) tile[r * V + v] = acc[r][v];
  }
}

template <typename T, int V>
void transposed_tiles(int64_t k, const T* a, const T* panel, T* c, int64_t ldc, int64_t rows,
                      int64_t columns, bool accumulate) {
  constexpr int R = WEIGHT_ROWS < W<T> ? WEIGHT_ROWS : W<T>;
  for (int64_t first = 0; first < rows; first += R) {
    const int64_t left = rows - first < R ? rows - first : R;
    // The tile's place in the gradient is in no near cache; it is needed when the product is done.
    for (int64_t r = 0; r < left; r++)
      for (int v = 0; v < V; v++) __builtin_prefetch(c + (first + r) * ldc + v * W<T>, 1);
    Vec<T> tile[R * V];
    transposed_tile<T, R, V>(k, a + first, panel, tile);
    for (int64_t r = 0; r < left; r++) {
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        T* to = c + (first + r) * ldc + v * W<T>;
        const int64_t lanes = columns - v * W<T>;
        const Vec<T> sum = tile[r * V + v];
        store(to, accumulate ? sum + load(to, lanes) : sum, lanes);
      }
    }
  }
}

template <typename T>
void transposed_product(int64_t k, const T* a, const T* panel, T* c, int64_t ldc, int64_t rows,
                        int64_t columns, bool accumulate) {
  switch ((columns + W<T> - 1) / W<T>) {
    case 3: return transposed_tiles<T, 3>(k, a, panel, c, ldc, rows, columns, accumulate);
    case 2: return transposed_tiles<T, 2>(k, a, panel, c, ldc, rows, columns, accumulate);
    default: return transposed_tiles<T, 1>(k, a, panel, c, ldc, rows, columns, accumulate);
  }
}

template <typename T>
void plain_forward(int64_t m, const UnitForward<T>& unit) {
  using M = typename MathOf<T>::type;
  for (int64_t row = 0; row < m; row++) {
    for (int64_t j = 0; j < unit.columns; j += W<T>) {
      const int64_t lanes = unit.columns - j, from = row * unit.wide + j;
      const Vec<T> z = load(unit.zx + from, lanes) + load(unit.zh + from, lanes) +
                       load(unit.bias_x + j, lanes) + load(unit.bias_h + j, lanes);
      store(unit.output + row * unit.width + j, M::tanh(z), lanes);
    }
  }
}

template <typename T>
void plain_backward(int64_t m, const UnitBackward<T>& unit) {
  for (int64_t row = 0; row < m; row++) {
    T* to = unit.d + row * W<T>;
    for (int64_t j = 0; j < unit.columns; j += W<T>, to += unit.block) {
      const int64_t lanes = unit.columns - j, from = row * unit.width + j;
      const Vec<T> h = load(unit.output + from, lanes);
      const Vec<T> dh = load(unit.grad_output + from, lanes) + load(unit.back + from, lanes);
      store(to, dh * (Vec<T>{} + 1 - h * h), W<T>);
    }
  }
}

template <typename T>
void gated_forward(int64_t m, const UnitForward<T>& unit) {
  for (int64_t row = 0; row < m; row++) {
    for (int64_t j = 0; j < unit.columns; j += W<T>) {
      const int64_t lanes = unit.columns - j;
      const auto x = [&](int64_t gate) {
        return load(unit.zx + row * unit.wide + gate * unit.gate + j, lanes) +
               load(unit.bias_x + gate * unit.width + j, lanes);
      };
      const auto h = [&](int64_t gate) {
        return load(unit.zh + row * unit.wide + gate * unit.gate + j, lanes) +
               load(unit.bias_h + gate * unit.width + j, lanes);
      };
      UnitGates<Vec<T>> gates{x(0) + h(0), x(1) + h(1), x(2), h(2)};
      const Vec<T> out = unit_forward<typename MathOf<T>::type>(
          gates, load(unit.h + row * unit.width + j, lanes));
      store(unit.output + row * unit.width + j, out, lanes);
      T* to = unit.gates + row * 4 * unit.width + j;
      store(to, gates.r, lanes);
      store(to + unit.width, gates.z, lanes);
      store(to + 2 * unit.width, gates.n, lanes);
      store(to + 3 * unit.width, gates.zh_n, lanes);
    }
  }
}

template <typename T>
void gated_backward(int64_t m, const UnitBackward<T>& unit) {
  for (int64_t row = 0; row < m; row++) {
    T* to = unit.d + row * W<T>;
    for (int64_t j = 0; j < unit.columns; j += W<T>, to += unit.block) {
      const int64_t lanes = unit.columns - j, from = row * unit.width + j;
      const T* kept = unit.gates + row * 4 * unit.width + j;
      const UnitGates<Vec<T>> gates{load(kept, lanes), load(kept + unit.width, lanes),
                                    load(kept + 2 * unit.width, lanes),
                                    load(kept + 3 * unit.width, lanes)};
      Vec<T> dh = load(unit.grad_output + from, lanes) + load(unit.back + from, lanes) +
                  load(unit.carry + from, lanes);
      const auto d =
          unit_backward<typename MathOf<T>::type>(gates, load(unit.h + from, lanes), dh);
      store(unit.carry + from, dh, lanes);
      store(to, d.n, W<T>);
      store(to + unit.gate, d.r, W<T>);
      store(to + 2 * unit.gate, d.z, W<T>);
      store(to + 3 * unit.gate, d.zh_n, W<T>);
    }
  }
}

}  // namespace

template <typename T>
const Kernels<T>& table() {
  static const Kernels<T> kernels = {
      NAME,
      W<T>,
      4,
      3,
      pack_rows<T>,
      cell_forward_rows<T>,
      cell_forward_direct<T>,
      cell_backward_rows<T>,
      product<T>,
      transposed_product<T>,
      plain_forward<T>,
      plain_backward<T>,
      gated_forward<T>,
      gated_backward<T>,
  };
  return kernels;
}
template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();

}  // namespace dnirnn::cpu::PATH
