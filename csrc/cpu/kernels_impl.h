// The kernels of one vector path, in terms of vectors of BYTES bytes. Each path's file sets its
// compiler target, defines PATH, BYTES and the tile sizes, and includes this file once.
//
// Nothing here may call an inline function that another file also compiles (the standard library's
// included): the linker keeps one copy of such a function, and it might be the one for a CPU that
// is not this one. Hence the __builtin functions; of the standard library, types only.
#include <utility>

#include "cpu/cells.h"
#include "cpu/kernels.h"

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
// Of bfloat16, the vectors of what it is computed in.
template <typename T>
using Vec = typename Lanes<Wide<T>>::vec;
template <typename T>
constexpr int W = BYTES / sizeof(Wide<T>);

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

// One multiplication: W lanes of a panel's rows, and what it broadcasts of the left side.
template <typename T>
struct Multiplied {
  static constexpr int rows = 1;
  using Column = Vec<T>;
  using Entry = T;
  static DNIRNN_INLINE Column column(const T* from) { return load(from); }
  static DNIRNN_INLINE void put(T* to, Column p) { store(to, p, W<T>); }
  static DNIRNN_INLINE Entry entry(const T* from) { return *from; }
  static DNIRNN_INLINE Entry last_entry(const T* from) { return *from; }
  static DNIRNN_INLINE Vec<T> add(Vec<T> sum, Entry x, Column p) { return sum + x * p; }
  // Of `n` numbers in memory, as columns.
  static DNIRNN_INLINE Column columns(const T* from, int64_t n) { return load(from, n); }
};

#if defined(BFLOAT16)
// Two rows, the first in the lower half of each lane.
template <>
struct Multiplied<bfloat16> {
  static constexpr int rows = 2;
  using Column = Lanes<float>::ints;
  using Entry = int;
  static DNIRNN_INLINE Column column(const bfloat16* from) {
    return (Column)_mm512_loadu_si512(from);
  }
  static DNIRNN_INLINE void put(bfloat16* to, Column p) { _mm512_storeu_si512(to, (__m512i)p); }
  static DNIRNN_INLINE Entry entry(const bfloat16* from) {
    int pair;
    __builtin_memcpy(&pair, from, sizeof pair);
    return pair;
  }
  static DNIRNN_INLINE Entry last_entry(const bfloat16* from) { return from->bits; }
  static DNIRNN_INLINE Vec<float> add(Vec<float> sum, Entry x, Column p) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(x), (__m512bh)p);
  }
  static DNIRNN_INLINE Column columns(const float* from, int64_t n) {
    const Vec<float> low = load(from, n), high = n > 16 ? load(from + 16, n - 16) : Vec<float>{};
    return (Column)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  }
};

DNIRNN_INLINE __mmask16 first_lanes(int64_t lanes) {
  return lanes >= 16 ? 0xffff : (1 << lanes) - 1;
}
// Numbers of bfloat16 in the lower half of each lane.
DNIRNN_INLINE Lanes<float>::ints halves(const bfloat16* from, int64_t lanes) {
  return (Lanes<float>::ints)_mm512_cvtepu16_epi32(
      _mm256_maskz_loadu_epi16(first_lanes(lanes), from));
}
DNIRNN_INLINE Lanes<float>::ints halves(const float* from, int64_t lanes) {
  const __m512 value = _mm512_maskz_loadu_ps(first_lanes(lanes), from);
  return (Lanes<float>::ints)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(value));
}
DNIRNN_INLINE Vec<float> load(const bfloat16* from, int64_t lanes) {
  return (Vec<float>)(halves(from, lanes) << 16);
}
DNIRNN_INLINE Vec<float> load(const bfloat16* from) { return load(from, 16); }
DNIRNN_INLINE void store(bfloat16* to, Vec<float> value, int64_t lanes) {
  _mm256_mask_storeu_epi16(to, first_lanes(lanes), (__m256i)_mm512_cvtneps_pbh((__m512)value));
}
#endif

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
    V y{};
    for (int i = 0; i < W<double>; i++) y[i] = 1.0 / (1.0 + __builtin_exp(-x[i]));
    return y;
  }
  static DNIRNN_INLINE V tanh(V x) {
    V y{};
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
template <int N, int D, typename V, int... J>
DNIRNN_INLINE void swap_blocks(V& a, V& b, std::integer_sequence<int, J...>) {
  const V low = __builtin_shufflevector(a, b, ((J & D) ? N + J - D : J)...);
  b = __builtin_shufflevector(a, b, ((J & D) ? N + J : J + D)...);
  a = low;
}
template <int N, int D, typename V>
DNIRNN_INLINE void transpose_stage(V (&rows)[N]) {
  if constexpr (D > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) {
      if ((i & D) == 0)
        swap_blocks<N, D>(rows[i], rows[i + D], std::make_integer_sequence<int, N>());
    }
    transpose_stage<N, D / 2>(rows);
  }
}

template <typename T>
void pack_rows(const Wide<T>* w, int64_t group, int64_t groups, int64_t lanes, int64_t last,
               int64_t depth, T* to) {
  using M = Multiplied<T>;
  constexpr int64_t square = W<T> * M::rows;  // numbers of a row that one transposition takes
  for (int64_t g = 0; g < groups; g++, w += group) {
    const int64_t count = g + 1 == groups ? last : lanes;
    // Rows lie too far apart for the hardware to see that the next group's come next, and after the
    // last group the first one of the rows that follow.
    const Wide<T>* next = g + 1 < groups ? w + group : w - g * group + lanes * depth;
    for (int64_t k = 0; k < depth; k += square) {
      const int64_t left = depth - k < square ? depth - k : square;
      T* at = to + (k * groups + g * M::rows) * W<T>;
#pragma GCC unroll 16
      for (int i = 0; i < W<T>; i++) {
#pragma GCC unroll 2
        for (int half = 0; half < M::rows; half++)
          __builtin_prefetch(next + i * depth + k + half * W<T>);
        __builtin_prefetch(at + (W<T> + i) * groups * W<T> * M::rows, 1);
      }
      typename M::Column rows[W<T>];
#pragma GCC unroll 16
      for (int i = 0; i < W<T>; i++)
        rows[i] = i < count ? M::columns(w + i * depth + k, left) : typename M::Column{};
      transpose_stage<W<T>, W<T> / 2>(rows);
#pragma GCC unroll 16
      for (int i = 0; i < W<T>; i++)
        if (i * M::rows < left) M::put(at + i * groups * W<T> * M::rows, rows[i]);
    }
  }
}

// S is T or Wide<T>.
template <typename T, typename S>
void put_rows(int64_t first, int64_t count, const S* from, int64_t stride, int64_t columns,
              T* panel, int64_t wide) {
#if defined(BFLOAT16)
  const int64_t end = first + count;
  for (int64_t row = first; row < end;) {
    // Both rows of a pair, or the one that is there.
    const bool lower = row % 2 == 0, both = lower && row + 1 < end;
    T* to = panel + row / 2 * 2 * wide;
    for (int64_t j = 0; j < wide; j += W<T>, to += 2 * W<T>) {
      __builtin_prefetch(from + 8 * stride + j);
      __builtin_prefetch(from + 9 * stride + j);
      Lanes<float>::ints pair = halves(from + j, columns - j);
      if (both) pair |= halves(from + stride + j, columns - j) << 16;
      if (!lower) pair = (pair << 16) | Multiplied<T>::column(to);
      Multiplied<T>::put(to, pair);
    }
    row += both ? 2 : 1;
    from += both ? 2 * stride : stride;
  }
#else
  T* to = panel + first * wide;
  for (int64_t row = 0; row < count; row++, from += stride) {
    for (int64_t j = 0; j < wide; j += W<T>, to += W<T>) {
      __builtin_prefetch(from + 8 * stride + j);
      store(to, load(from + j, columns - j), W<T>);
    }
  }
#endif
}

// acc [R][V] += entries P, of one multiplication; the last one may have fewer rows. The panel's vector v
// goes to acc [R][Order::at(v)].
template <typename T, int R, int V, bool Whole, typename Order = InOrder, int A>
DNIRNN_INLINE void multiply_once(Vec<T> (&acc)[R][A], const T* entries, int64_t stride,
                                 const T* panel) {
  using M = Multiplied<T>;
  typename M::Column p[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) p[v] = M::column(panel + v * W<T> * M::rows);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
    const auto x = Whole ? M::entry(entries + r * stride) : M::last_entry(entries + r * stride);
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) acc[r][Order::at(v)] = M::add(acc[r][Order::at(v)], x, p[v]);
  }
}

// Blocks of the left side that are asked for before they are needed.
constexpr int64_t AHEAD = 4;

// acc [R][V] += A P, the panel's rows V vectors long.
template <typename T, int R, int V, typename Order = InOrder, int A>
DNIRNN_INLINE void multiply(Vec<T> (&acc)[R][A], const Rows<T>& a, const T* panel) {
  constexpr int rows = Multiplied<T>::rows;
  const T* block = a.data;
  for (int64_t k = 0; k < a.depth; k += W<T>, block += a.block) {
    const int64_t n = a.depth - k < W<T> ? a.depth - k : W<T>;
    // Another core has written these a moment ago, and may share no cache with this one: then they
    // come late, and as the blocks lie apart the hardware does not ask for them in time.
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) __builtin_prefetch(block + AHEAD * a.block + r * a.row);
    int64_t i = 0;
    for (; i + rows <= n; i += rows, panel += V * W<T> * rows)
      multiply_once<T, R, V, true, Order>(acc, block + i, a.row, panel);
    if (i < n) multiply_once<T, R, V, false, Order>(acc, block + i, a.row, panel);
  }
}

template <typename T>
Rows<T> from_row(const Rows<T>& a, int64_t row) {
  return {a.data + row * a.row, a.row, a.block, a.depth};
}

// From the sums of one row of unit `i` of a call to everything that the step leaves.
template <typename T, typename Cell>
DNIRNN_INLINE void finish_cell(Vec<T>* sums, int64_t row, int64_t i, const CellForward<T>& cell) {
  const int64_t lanes = cell.lanes - i * W<T>, at = row * cell.width + i * W<T>,
                next = row * cell.next + i * W<T>;
  Vec<T> c = load(cell.c + at, lanes);
  const Vec<T> out = Cell::template forward<typename MathOf<T>::type>(sums, c);
  const int64_t real = lanes < W<T> ? lanes : W<T>;
  T* to = cell.gates + i * cell.unit_stride + row * Cell::kept * real;
#pragma GCC unroll 4
  for (int k = 0; k < Cell::kept; k++) store(to + k * real, sums[k], real);
  const Vec<T> rounded = cell.round ? round_bfloat16(out) : out;
  store(cell.output + at, rounded, lanes);
  if (cell.h_next) {
    store(cell.h_next + next, cell.round_next ? rounded : out, lanes);
  } else {
    store(cell.h_sent + next, out, lanes);
  }
  store(cell.c_next + next, c, lanes);
}

// Of N units; more than one only of a cell whose gates and sums are in the same order.
template <typename T, typename Cell, int N, int R>
void cell_forward_tile(int64_t m, const Rows<T>& x, const Rows<T>& h, const T* panel,
                       const Wide<T>* bias, const CellForward<T>& cell) {
  constexpr int G = N * Cell::gates, S = N * Cell::sums;
  Vec<T> acc[R][S];
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int v = 0; v < S; v++) acc[r][v] = load(bias + v * W<T>);
  }
  if (cell.products) {
    const Wide<T>* from = cell.products + m * G * W<T>;
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
      for (int v = 0; v < G; v++) acc[r][Cell::OfX::at(v)] += load(from + (r * G + v) * W<T>);
    }
  }
  if (cell.table) {
    // From a unit's gate to its next one, or from a unit to the next one.
    const int64_t apart = N > 1 ? W<T> : cell.width;
#pragma GCC unroll 32
    for (int r = 0; r < R; r++) {
      const Wide<T>* from = cell.table + cell.symbols[m + r] * Cell::gates * cell.width;
#pragma GCC unroll 4
      for (int v = 0; v < G; v++)
        acc[r][Cell::OfX::at(v)] +=
            load(from + v * apart, N > 1 ? cell.lanes - v * W<T> : cell.lanes);
    }
  }
  multiply<T, R, G, typename Cell::OfX>(acc, from_row(x, m), panel);
  constexpr int64_t rows = Multiplied<T>::rows;
  const T* panel_h = panel + (x.depth + rows - 1) / rows * rows * G * W<T>;
  multiply<T, R, G, typename Cell::OfH>(acc, from_row(h, m), panel_h);
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) finish_cell<T, Cell>(acc[r] + i * Cell::sums, m + r, i, cell);
  }
}

template <typename T, typename Cell, int N>
void cell_forward_units(int64_t m, const Rows<T>& x, const Rows<T>& h, const T* panel,
                        const Wide<T>* bias, const CellForward<T>& cell) {
  int64_t row = 0;
  for (; row + ROWS <= m; row += ROWS)
    cell_forward_tile<T, Cell, N, ROWS>(row, x, h, panel, bias, cell);
  const int64_t left = m - row;
#if ROWS > 4
  if (left == 5) return cell_forward_tile<T, Cell, N, 5>(row, x, h, panel, bias, cell);
  if (left == 4) return cell_forward_tile<T, Cell, N, 4>(row, x, h, panel, bias, cell);
#endif
#if ROWS > 2
  if (left == 3) return cell_forward_tile<T, Cell, N, 3>(row, x, h, panel, bias, cell);
  if (left == 2) return cell_forward_tile<T, Cell, N, 2>(row, x, h, panel, bias, cell);
#endif
  if (left == 1) return cell_forward_tile<T, Cell, N, 1>(row, x, h, panel, bias, cell);
}

template <typename T, typename Cell>
void cell_forward_rows(int64_t m, const Rows<T>& x, const Rows<T>& h, const T* panel,
                       const Wide<T>* bias, const CellForward<T>& cell) {
  if constexpr (Cell::units_a_tile == 4) {
    if (cell.lanes > 3 * W<T>) return cell_forward_units<T, Cell, 4>(m, x, h, panel, bias, cell);
    if (cell.lanes > 2 * W<T>) return cell_forward_units<T, Cell, 3>(m, x, h, panel, bias, cell);
    if (cell.lanes > W<T>) return cell_forward_units<T, Cell, 2>(m, x, h, panel, bias, cell);
  }
  cell_forward_units<T, Cell, 1>(m, x, h, panel, bias, cell);
}

template <typename T>
DNIRNN_INLINE Wide<T> dot(const T* a, const Wide<T>* b, int64_t n) {
  Vec<T> sums[4] = {};
  int64_t k = 0;
  for (; k + 4 * W<T> <= n; k += 4 * W<T>) {
#pragma GCC unroll 4
    for (int v = 0; v < 4; v++) sums[v] += load(a + k + v * W<T>) * load(b + k + v * W<T>);
  }
  for (; k < n; k += W<T>) sums[0] += load(a + k, n - k) * load(b + k, n - k);
  const Vec<T> sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
  Wide<T> total = 0;
  for (int i = 0; i < W<T>; i++) total += sum[i];
  return total;
}

template <typename T, typename Cell>
void cell_forward_direct(const Rows<T>& x, const Rows<T>& h, const Wide<T>* w_ih,
                         const Wide<T>* w_hh, const Wide<T>* bias, const CellForward<T>& cell) {
  Wide<T> sums[Cell::sums * W<T>];
  for (int i = 0; i < Cell::sums * W<T>; i++) sums[i] = bias[i];
  for (int gate = 0; gate < Cell::gates; gate++) {
    for (int64_t lane = 0; lane < cell.lanes; lane++) {
      const int64_t row = gate * cell.width + lane;
      Wide<T>& of_x = sums[Cell::OfX::at(gate) * W<T> + lane];
      of_x += dot(x.data, w_ih + row * x.depth, x.depth);
      if (cell.table) of_x += cell.table[cell.symbols[0] * Cell::gates * cell.width + row];
      sums[Cell::OfH::at(gate) * W<T> + lane] += dot(h.data, w_hh + row * h.depth, h.depth);
    }
  }
  Vec<T> loaded[Cell::sums];
  for (int i = 0; i < Cell::sums; i++) loaded[i] = load(sums + i * W<T>);
  finish_cell<T, Cell>(loaded, 0, 0, cell);
}

template <typename T, typename Cell>
void cell_backward_rows(int64_t m, const CellBackward<T>& cell) {
  using M = typename MathOf<T>::type;
  for (int64_t row = 0; row < m; row++) {
    const int64_t at = row * cell.width;
    const T* from = cell.gates + row * Cell::kept * cell.lanes;
    // What was kept, then the sums' gradients.
    Vec<T> a[Cell::sums];
    static_assert(Cell::kept == Cell::sums);
#pragma GCC unroll 4
    for (int i = 0; i < Cell::kept; i++) a[i] = load(from + i * cell.lanes, cell.lanes);
    Vec<T> dh = load(cell.dh + at, cell.lanes);
    if (cell.grad_output) dh += load(cell.grad_output + at, cell.lanes);
    if constexpr (Cell::carries) {
      Vec<T> dc = load(cell.dc + at, cell.lanes);
      Cell::template backward<M>(a, load(cell.c + at, cell.lanes), dh, dc);
      store(cell.dc + at, dc, cell.lanes);
    } else {
      Cell::template backward<M>(a, dh);
    }
    // Padded lanes are zero: dh and dc were loaded as zeros there.
    T* to = cell.d_sums + row * W<T>;
#pragma GCC unroll 4
    for (int i = 0; i < Cell::sums; i++) store(to + i * cell.block, a[i], W<T>);
  }
}

template <typename T, int R, int V, typename C>
void product_tile(const Rows<T>& a, const T* panel, C* c, int64_t ldc, int64_t columns) {
  Vec<T> acc[R][V] = {};
  multiply<T, R, V>(acc, a, panel);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) store(c + r * ldc + v * W<T>, acc[r][v], columns - v * W<T>);
  }
}

template <typename T, int V, typename C>
void product_rows(int64_t m, const Rows<T>& a, const T* panel, C* c, int64_t ldc, int64_t columns) {
  int64_t row = 0;
  for (; row + ROWS <= m; row += ROWS)
    product_tile<T, ROWS, V>(from_row(a, row), panel, c + row * ldc, ldc, columns);
  const Rows<T> rest = from_row(a, row);
  C* to = c + row * ldc;
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

template <typename T, typename C>
void product(int64_t m, const Rows<T>& a, const T* panel, C* c, int64_t ldc, int64_t columns) {
  switch ((columns + W<T> - 1) / W<T>) {
    case 4:
      return product_rows<T, 4>(m, a, panel, c, ldc, columns);
    case 3:
      return product_rows<T, 3>(m, a, panel, c, ldc, columns);
    case 2:
      return product_rows<T, 2>(m, a, panel, c, ldc, columns);
    default:
      return product_rows<T, 1>(m, a, panel, c, ldc, columns);
  }
}

// tile [R][V W] = A^T P. Apart from what becomes of the tile: with that in one function, gcc spills
// the accumulators.
template <typename T, int R, int V>
__attribute__((noinline)) void transposed_tile(int64_t k, const T* a, const T* panel,
                                               Vec<T>* tile) {
  Vec<T> acc[R][V] = {};
  constexpr int rows = Multiplied<T>::rows;
  for (int64_t i = 0; i < k; i += rows, panel += V * W<T> * rows, a += W<T> * rows)
    multiply_once<T, R, V, true>(acc, a, rows, panel);
#pragma GCC unroll 32
  for (int r = 0; r < R; r++) {
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) tile[r * V + v] = acc[r][v];
  }
}

template <typename T, int V>
void transposed_tiles(int64_t k, const T* a, const T* panel, Wide<T>* c, int64_t ldc, int64_t rows,
                      int64_t columns, bool accumulate) {
  constexpr int R = WEIGHT_ROWS < W<T> ? WEIGHT_ROWS : W<T>;
  for (int64_t first = 0; first < rows; first += R) {
    const int64_t left = rows - first < R ? rows - first : R;
    // The tile's place in the gradient is in no near cache; it is needed when the product is done.
    for (int64_t r = 0; r < left; r++)
      for (int v = 0; v < V; v++) __builtin_prefetch(c + (first + r) * ldc + v * W<T>, 1);
    Vec<T> tile[R * V];
    transposed_tile<T, R, V>(k, a + first * Multiplied<T>::rows, panel, tile);
    for (int64_t r = 0; r < left; r++) {
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) {
        Wide<T>* to = c + (first + r) * ldc + v * W<T>;
        const int64_t lanes = columns - v * W<T>;
        const Vec<T> sum = tile[r * V + v];
        store(to, accumulate ? sum + load(to, lanes) : sum, lanes);
      }
    }
  }
}

template <typename T>
void transposed_product(int64_t k, const T* a, const T* panel, Wide<T>* c, int64_t ldc,
                        int64_t rows, int64_t columns, bool accumulate) {
  switch ((columns + W<T> - 1) / W<T>) {
    case 3:
      return transposed_tiles<T, 3>(k, a, panel, c, ldc, rows, columns, accumulate);
    case 2:
      return transposed_tiles<T, 2>(k, a, panel, c, ldc, rows, columns, accumulate);
    default:
      return transposed_tiles<T, 1>(k, a, panel, c, ldc, rows, columns, accumulate);
  }
}

template <typename T>
DNIRNN_INLINE T lane_sum(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < W<T>; i++) total += v[i];
  return total;
}
// What exists of a vector, the rest zero.
template <typename T>
DNIRNN_INLINE Vec<T> real(Vec<T> v, int64_t lanes) {
  if (lanes >= W<T>) return v;
  Vec<T> kept{};
  __builtin_memcpy(&kept, &v, lanes * sizeof(T));
  return kept;
}
DNIRNN_INLINE float root(float x) { return __builtin_sqrtf(x); }
DNIRNN_INLINE double root(double x) { return __builtin_sqrt(x); }

// to [H] = norm(to), where sum is that of its elements; returns 1 / sqrt(var + 1e-5).
template <typename T>
DNIRNN_INLINE T normalise(T* to, Vec<T> sum, int64_t H) {
  const T mean = lane_sum<T>(sum) / H;
  Vec<T> squares{};
  for (int64_t j = 0; j < H; j += W<T>) {
    const Vec<T> d = real<T>(load(to + j, H - j) - mean, H - j);
    squares += d * d;
  }
  const T scale = 1 / root(lane_sum<T>(squares) / H + T(1e-5));
  for (int64_t j = 0; j < H; j += W<T>) store(to + j, (load(to + j, H - j) - mean) * scale, H - j);
  return scale;
}

// d = gradient of a, where d held that of n = norm(a), and sum and along are those of d and d n.
template <typename T>
DNIRNN_INLINE void normalise_backward(T* d, const T* n, T scale, Vec<T> sum, Vec<T> along,
                                      int64_t H) {
  const T mean = lane_sum<T>(sum) / H, slope = lane_sum<T>(along) / H;
  for (int64_t j = 0; j < H; j += W<T>)
    store(d + j, (load(d + j, H - j) - mean - load(n + j, H - j) * slope) * scale, H - j);
}

// `open` of the new value and the rest of the old one.
template <typename T>
DNIRNN_INLINE Vec<T> blend(const T* open, Vec<T> fresh, Vec<T> old, int64_t lanes) {
  if (!open) return fresh;
  const Vec<T> u = load(open, lanes);
  return u * fresh + (Vec<T>{} + 1 - u) * old;
}

// copy and keep of a row, or what they are where it has none.
template <typename T>
struct Shares {
  T copy, keep;

  DNIRNN_INLINE explicit Shares(const T* shares)
      : copy(shares ? shares[0] : T(0)), keep(shares ? shares[1] : T(1)) {}
  DNIRNN_INLINE T rest() const { return 1 - copy; }
  DNIRNN_INLINE Vec<T> kept(Vec<T> f) const { return keep * f + copy; }
  DNIRNN_INLINE Vec<T> added(Vec<T> i) const { return rest() * i; }
};

template <typename T>
void lstm_row_forward(const LstmRowForward<T>& row) {
  using M = typename MathOf<T>::type;
  const LstmOptions<T>& with = row.options;
  const Shares<T> shares(with.shares);
  const int64_t H = row.width;
  for (int64_t k = 0; with.gain && k < 4; k++) {
    T* to = row.normed + k * H;
    Vec<T> sum{};
    for (int64_t j = 0; j < H; j += W<T>) {
      const Vec<T> a = load(row.zx + k * H + j, H - j) + load(row.zh + k * H + j, H - j);
      store(to + j, a, H - j);
      sum += a;
    }
    row.scale[k] = normalise(to, sum, H);
  }
  Vec<T> sum{};
  for (int64_t j = 0; j < H; j += W<T>) {
    const int64_t lanes = H - j;
    const auto pre = [&](int64_t gate) {
      const int64_t at = gate * H + j;
      const Vec<T> a = with.gain ? load(row.normed + at, lanes) * load(with.gain + at, lanes)
                                 : load(row.zx + at, lanes) + load(row.zh + at, lanes);
      return a + load(row.bias + at, lanes);
    };
    const Vec<T> i = M::sigmoid(pre(0)), f = M::sigmoid(pre(1)), g = M::tanh(pre(2)),
                 o = M::sigmoid(pre(3));
    store(row.gates + j, i, lanes);
    store(row.gates + H + j, f, lanes);
    store(row.gates + 2 * H + j, g, lanes);
    store(row.gates + 3 * H + j, o, lanes);
    const Vec<T> c = load(row.c + j, lanes),
                 in = with.factor ? g * load(with.factor + j, lanes) : g;
    const Vec<T> fresh = shares.kept(f) * c + shares.added(i) * in;
    store(row.c_next + j, blend(with.open_c ? with.open_c + j : nullptr, fresh, c, lanes), lanes);
    // Where c~ is normalised, h_next holds it meanwhile.
    if (with.gain_c) {
      store(row.h_next + j, fresh, lanes);
      sum += real<T>(fresh, lanes);
    } else {
      const Vec<T> h = load(row.h + j, lanes), output = o * M::tanh(fresh);
      store(row.h_next + j,
            with.shares ? shares.copy * h + shares.rest() * output
                        : blend(with.open_h ? with.open_h + j : nullptr, output, h, lanes),
            lanes);
    }
  }
  if (!with.gain_c) return;
  normalise(row.h_next, sum, H);
  for (int64_t j = 0; j < H; j += W<T>) {
    const int64_t lanes = H - j;
    const Vec<T> squashed = M::tanh(load(row.h_next + j, lanes) * load(with.gain_c + j, lanes) +
                                    load(with.bias_c + j, lanes));
    const Vec<T> fresh = load(row.gates + 3 * H + j, lanes) * squashed;
    store(row.h_next + j,
          blend(with.open_h ? with.open_h + j : nullptr, fresh, load(row.h + j, lanes), lanes),
          lanes);
  }
}

template <typename T>
DNIRNN_INLINE void add_to(T* sums, Vec<T> value, int64_t lanes) {
  store(sums, load(sums, lanes) + value, lanes);
}

template <typename T>
void lstm_row_backward(const LstmRowBackward<T>& row) {
  using M = typename MathOf<T>::type;
  const LstmOptions<T>& with = row.options;
  const Shares<T> shares(with.shares);
  const int64_t H = row.width;
  const T *gain_c = with.gain_c, *of_i = row.gates, *of_f = of_i + H, *of_g = of_f + H,
          *of_o = of_g + H;
  const auto input = [&](int64_t j, int64_t lanes) {
    const Vec<T> g = load(of_g + j, lanes);
    return with.factor ? g * load(with.factor + j, lanes) : g;
  };
  const auto fresh_c = [&](int64_t j, int64_t lanes) {
    return shares.kept(load(of_f + j, lanes)) * load(row.c + j, lanes) +
           shares.added(load(of_i + j, lanes)) * input(j, lanes);
  };
  // d's first H hold the gradient that reaches c~ by h~, until they are due.
  T *normed_c = row.work, *by_h = row.d;
  T scale = 0;
  if (gain_c) {
    Vec<T> sum{};
    for (int64_t j = 0; j < H; j += W<T>) {
      const Vec<T> c = real<T>(fresh_c(j, H - j), H - j);
      store(normed_c + j, c, H - j);
      sum += c;
    }
    scale = normalise(normed_c, sum, H);
  }
  Vec<T> sum{}, along{}, to_copy{}, to_keep{};
  for (int64_t j = 0; j < H; j += W<T>) {
    const int64_t lanes = H - j;
    const Vec<T> o = load(of_o + j, lanes);
    const Vec<T> n = gain_c ? load(normed_c + j, lanes) : fresh_c(j, lanes);
    const Vec<T> squashed =
        M::tanh(gain_c ? n * load(gain_c + j, lanes) + load(with.bias_c + j, lanes) : n);
    Vec<T> dh = load(row.back + j, lanes) + load(row.carry_h + j, lanes);
    if (row.grad_output) dh += load(row.grad_output + j, lanes);
    Vec<T> rest{};
    if (with.open_h) {
      const Vec<T> u = load(with.open_h + j, lanes);
      if (row.d_open_h)
        store(row.d_open_h + j, dh * (o * squashed - load(row.h + j, lanes)), lanes);
      rest = (Vec<T>{} + 1 - u) * dh;
      dh *= u;
    }
    if (with.shares) {
      to_copy += dh * (load(row.h + j, lanes) - o * squashed);
      rest = shares.copy * dh;
      dh *= shares.rest();
    }
    store(row.carry_h + j, rest, lanes);
    store(row.d + 3 * H + j, dh * squashed * o * (Vec<T>{} + 1 - o), lanes);
    Vec<T> d = dh * o * (Vec<T>{} + 1 - squashed * squashed);
    if (gain_c) {
      add_to(row.sums + 8 * H + j, d * n, lanes);
      add_to(row.sums + 9 * H + j, d, lanes);
      d *= load(gain_c + j, lanes);
      sum += d;
      along += d * n;
    }
    store(by_h + j, d, lanes);
  }
  if (gain_c) normalise_backward(by_h, normed_c, scale, sum, along, H);
  for (int64_t j = 0; j < H; j += W<T>) {
    const int64_t lanes = H - j;
    const Vec<T> i = load(of_i + j, lanes), f = load(of_f + j, lanes), g = load(of_g + j, lanes),
                 c = load(row.c + j, lanes);
    Vec<T> dc = load(row.carry_c + j, lanes), rest{};
    if (with.open_c) {
      const Vec<T> u = load(with.open_c + j, lanes);
      if (row.d_open_c) store(row.d_open_c + j, dc * (fresh_c(j, lanes) - c), lanes);
      rest = (Vec<T>{} + 1 - u) * dc;
      dc *= u;
    }
    dc += load(by_h + j, lanes);
    const Vec<T> through = with.factor ? i * load(with.factor + j, lanes) : i;
    if (with.shares) {
      to_copy += dc * (c - i * input(j, lanes));
      to_keep += dc * f * c;
    }
    store(row.carry_c + j, rest + dc * shares.kept(f), lanes);
    store(row.d + j, dc * shares.added(input(j, lanes)) * i * (Vec<T>{} + 1 - i), lanes);
    store(row.d + H + j, dc * (shares.keep * c) * f * (Vec<T>{} + 1 - f), lanes);
    store(row.d + 2 * H + j, dc * shares.added(through) * (Vec<T>{} + 1 - g * g), lanes);
  }
  if (with.shares) {
    row.d_shares[0] = lane_sum<T>(to_copy);
    row.d_shares[1] = lane_sum<T>(to_keep);
  }
  for (int64_t k = 0; k < 4; k++) {
    T* d = row.d + k * H;
    const T* n = row.normed + k * H;
    Vec<T> total{}, slope{};
    for (int64_t j = 0; j < H; j += W<T>) {
      const int64_t lanes = H - j, at = k * H + j;
      Vec<T> of_bias = load(d + j, lanes);
      add_to(row.sums + at, of_bias, lanes);
      if (!with.gain) continue;
      const Vec<T> value = load(n + j, lanes);
      add_to(row.sums + 4 * H + at, of_bias * value, lanes);
      of_bias *= load(with.gain + at, lanes);
      store(d + j, of_bias, lanes);
      total += of_bias;
      slope += of_bias * value;
    }
    if (with.gain) normalise_backward(d, n, row.scale[k], total, slope, H);
  }
}

template <typename T, typename Cell>
CellKernels<T> kernels_of() {
  return {cell_forward_rows<T, Cell>, cell_forward_direct<T, Cell>, cell_backward_rows<T, Cell>};
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
      put_rows<T, T>,
      put_rows<T, Wide<T>>,
      kernels_of<T, LstmCell>(),
      kernels_of<T, GruCell>(),
      kernels_of<T, RnnCell>(),
      product<T, Wide<T>>,
      product<T, T>,
      transposed_product<T>,
#if !defined(BFLOAT16)
      lstm_row_forward<T>,
      lstm_row_backward<T>,
#endif
  };
  return kernels;
}
#if defined(BFLOAT16)
template const Kernels<bfloat16>& table<bfloat16>();
#else
template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();
#endif

}  // namespace dnirnn::cpu::PATH
