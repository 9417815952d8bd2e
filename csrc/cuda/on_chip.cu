// All steps of a layer in one kernel, for sizes whose recurrent weights fit in the registers of the
// blocks that the GPU runs at once.
//
// A block owns kUnits cells for all rows of its group, and keeps the weights that they need: its
// warps split the contracted dimension, so that each holds a slice of it. A step is: each warp's
// products of its slice, on tensor cores; their sum over the warps, always in one order; and the
// cells, of which the other blocks of the group wait for what they read, and for no more.
//
// Fragments: thread l of a warp is (g, q) = (l / 4, l % 4). A load takes 16 bytes, the `wide` values
// from q * wide on, of row g of a block of 4 wide of the contracted dimension. mma wants other
// columns there, but the order of a sum's terms is free as long as both sides have the same.
#include <algorithm>
#include <cstring>

#include "cuda/cell.h"

namespace dnirnn::cuda {
namespace {

constexpr int kUnits = 8, kWarps = 8, kThreads = 32 * kWarps;
constexpr int kRows = 32;  // of a tile: one cell a thread
static_assert(kRows * kUnits == kThreads);

// 16 bytes of a matrix's row.
struct alignas(16) Vector {
  uint32_t word[4];
};

template <typename V>
constexpr int wide = 16 / sizeof(V);

// sum += a b, for 16 rows and 8 columns over one block of the contracted dimension. low: rows g, high:
// rows g + 8.
template <typename V, Products kProducts>
__device__ void add_product(float (&sum)[4], const Vector& low, const Vector& high,
                            const Vector& b) {
#pragma unroll
  for (int half = 0; half < 4; half += 2) {
    uint32_t left[4] = {low.word[half], high.word[half], low.word[half + 1], high.word[half + 1]};
    uint32_t right[2] = {b.word[half], b.word[half + 1]};
    if constexpr (std::is_same_v<V, float>) {
      // A float32 is a tf32 and a rest, as tf32 too: the product of two rests is below rounding.
      uint32_t left_rest[4], right_rest[2];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t rounded = as_tf32(left[i]);
        left_rest[i] = rest_of(left[i], rounded);
        left[i] = rounded;
      }
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const uint32_t rounded = as_tf32(right[i]);
        right_rest[i] = rest_of(right[i], rounded);
        right[i] = rounded;
      }
      if constexpr (kProducts == Products::kExact) {
        mma<V>(sum, left_rest, right);
        mma<V>(sum, left, right_rest);
      }
    }
    mma<V>(sum, left, right);
  }
}

// Floats between two rows of a tile in shared memory, so that a warp's writes meet no bank twice.
template <int kTiles>
constexpr int kStride = kTiles == 1 ? 8 : kTiles * 8 + 8;

// Where block i of this warp's slice of the contracted dimension begins, for this thread.
template <typename V, int kBlocks>
__device__ int64_t column_of(int i) {
  return (int64_t(thread() / 32) * kBlocks + i) * 4 * wide<V> + thread() % 4 * wide<V>;
}

// This warp's part of a tile [kRows, kTiles * 8] = a b^T, over kBlocks of the contracted dimension, to
// partial [kWarps, kRows, kStride]. rows: of a that exist.
template <typename V, Products kProducts, int kTiles, int kBlocks>
__device__ void multiply_slice(const V* a, int64_t depth, int64_t rows,
                               const Vector (&b)[kBlocks][kTiles], float* partial) {
  // As many loads under way as there are registers for, beside the weights.
  constexpr int kBatch = kBlocks < 4 ? kBlocks : kBlocks < 16 ? 4 : 2;
  const int warp = thread() / 32, g = thread() % 32 / 4, q = thread() % 4;
  Vector part[2][kBatch][4];  // of a, of the batch of blocks at hand and of the next, under way
  const auto fetch = [&](int batch) {
#pragma unroll
    for (int i = 0; i < kBatch; i++) {
      const int64_t column = column_of<V, kBlocks>(batch * kBatch + i);
#pragma unroll
      for (int eight = 0; eight < 4; eight++) {
        const int row = eight * 8 + g;
        part[batch % 2][i][eight] = row < rows && column < depth
                                        ? load_from_others<Vector>(a + row * depth + column)
                                        : Vector{};
      }
    }
  };
  float sum[2][kTiles][4] = {};
  fetch(0);
#pragma unroll
  for (int block = 0; block < kBlocks; block++) {
    const int batch = block / kBatch, i = block % kBatch;
    if (i == 0 && block + kBatch < kBlocks) fetch(batch + 1);
    if (column_of<V, kBlocks>(block) - q * wide<V> >= depth) continue;  // the whole warp
#pragma unroll
    for (int half = 0; half < 2; half++)
      if (half * 16 < rows)
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++)
          add_product<V, kProducts>(sum[half][tile], part[batch % 2][i][2 * half],
                                    part[batch % 2][i][2 * half + 1], b[block][tile]);
  }
#pragma unroll
  for (int half = 0; half < 2; half++)
#pragma unroll
    for (int tile = 0; tile < kTiles; tile++)
#pragma unroll
      for (int i = 0; i < 4; i++)
        partial[(warp * kRows + half * 16 + i / 2 * 8 + g) * kStride<kTiles> + tile * 8 + 2 * q +
                i % 2] = sum[half][tile][i];
}

// The sum over the warps at one place of the tile.
template <int kTiles>
__device__ float sum_of(const float* partial, int row, int column) {
  float sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; warp++)
    sum += partial[(warp * kRows + row) * kStride<kTiles> + column];
  return sum;
}

template <typename V, Products kProducts, int kBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    steps_kernel(Forward p, int groups, unsigned* waits) {
  const Sizes& s = p.s;
  float* partial = shared_memory();
  const int blocks = (s.H + kUnits - 1) / kUnits, group = block() / blocks;
  const int64_t j0 = block() % blocks * kUnits;

  Vector w[kBlocks][4] = {};
#pragma unroll
  for (int i = 0; i < kBlocks; i++)
#pragma unroll
    for (int gate = 0; gate < 4; gate++) {
      const int64_t j = j0 + thread() % 32 / 4, column = column_of<V, kBlocks>(i);
      if (j < s.H && column < s.H)
        w[i][gate] = load<Vector>(static_cast<const V*>(p.w_hh) + (gate * s.H + j) * s.H + column);
    }

  const int row = thread() / kUnits, unit = thread() % kUnits;
  const int64_t j = j0 + unit;
  const CellGates<float> bias = j < s.H ? bias_of<float>(p, j) : CellGates<float>{};
  // Steps of one tile of rows follow each other; other tiles fill the waits between them.
  int64_t t = 0, r0 = group * kRows;
  bool mine = r0 + row < s.B && j < s.H;
  Begun<float> begun = mine ? begin<float>(p, t, r0 + row, j) : Begun<float>{};
  while (t < s.T) {
    unsigned* tile = waits + r0 / kRows * kLine;
    if (t > 0) wait_for(tile, static_cast<unsigned>(t * blocks));
    const V* h = static_cast<const V*>(p.h) + (by_chunk(s, t % s.K, t / s.K, 0) + r0) * s.H;
    multiply_slice<V, kProducts>(h, s.H, s.B - r0, w, partial);
    sync();
    const CellGates<float> product{sum_of<4>(partial, row, unit), sum_of<4>(partial, row, 8 + unit),
                                   sum_of<4>(partial, row, 16 + unit),
                                   sum_of<4>(partial, row, 24 + unit)};
    Done<float> done{};
    if (mine) done = take<V>(p, t, r0 + row, j, begun, bias, product);
    arrive(tile);
    // Nobody waits for the rest of this step, nor for what the next one begins with.
    if (mine) keep<V>(p, t, r0 + row, j, done);
    r0 += groups * kRows;
    if (r0 >= s.B) r0 = group * kRows, t++;
    mine = r0 + row < s.B && j < s.H;
    if (mine && t < s.T) begun = begin<float>(p, t, r0 + row, j);
  }
}

template <typename V, Products kProducts, int kBlocks>
__global__ void __launch_bounds__(kThreads, 1)
    steps_back_kernel(Backward p, int groups, unsigned* waits) {
  const Sizes& s = p.s;
  float* partial = shared_memory();
  const int blocks = (s.H + kUnits - 1) / kUnits, group = block() / blocks;
  const int64_t j0 = block() % blocks * kUnits, depth = 4 * s.H, rows = s.N * s.B;

  Vector w[kBlocks][1] = {};
#pragma unroll
  for (int i = 0; i < kBlocks; i++) {
    const int64_t j = j0 + thread() % 32 / 4, column = column_of<V, kBlocks>(i);
    if (j < s.H && column < depth) {
      V down[wide<V>];
#pragma unroll
      for (int e = 0; e < wide<V>; e++)
        down[e] = static_cast<const V*>(p.w_hh)[(column + e) * s.H + j];
      memcpy(&w[i][0], down, sizeof(Vector));
    }
  }

  const int row = thread() / kUnits, unit = thread() % kUnits;
  const int64_t j = j0 + unit;
  // One step more where something leaves: its product, and no cells.
  const int64_t last = p.grad_probe || p.grad_state ? -1 : 0;
  int64_t k = s.K - 1, r0 = group * kRows, n = 0, b = 0;
  bool mine = false;
  BegunBack<float> begun{};
  const auto look = [&] {
    n = (r0 + row) / s.B, b = (r0 + row) % s.B;
    mine = r0 + row < rows && j < s.H;
    if (mine && k >= 0) begun = begin_back<V, float>(p, k, n, b, j);
  };
  look();
  while (k >= last) {
    unsigned* tile = waits + r0 / kRows * kLine;
    float product = 0;
    if (k + 1 < s.K) {
      wait_for(tile, static_cast<unsigned>((s.K - 1 - k) * blocks));
      const V* d = static_cast<const V*>(p.d) + ((k + 1) * rows + r0) * depth;
      multiply_slice<V, kProducts>(d, depth, rows - r0, w, partial);
      sync();
      product = sum_of<1>(partial, row, unit);
    }
    float dc = 0;
    StateGradient<float> back{};
    if (mine && k >= 0) back = take_back<V>(p, k, n, b, j, begun, product, dc);
    if (mine && k < 0) leave(p, n, b, j, product);
    arrive(tile);
    if (mine && k >= 0) keep_back(p, k, n, b, j, begun, back, dc);
    r0 += groups * kRows;
    if (r0 >= rows) r0 = group * kRows, k--;
    look();
  }
}

int64_t blocks_of(const Sizes& s) { return (s.H + kUnits - 1) / kUnits; }

// What of w_hh the registers hold beside all else: a quarter of them at 1024 cells of 16 bits.
int64_t widest(Type type) { return type == Type::kFloat ? 512 : 1024; }

// call(V{}, constant of Products, constant of H / 256, rounded up to 1, 2 or 4)
template <typename Call>
void with_constants(Type type, Products products, int64_t H, Call call) {
  const auto of_size = [&](auto v, auto kProducts) {
    if (H <= 256) return call(v, kProducts, std::integral_constant<int, 1>{});
    if constexpr (sizeof(v) == 2)
      if (H > 512) return call(v, kProducts, std::integral_constant<int, 4>{});
    return call(v, kProducts, std::integral_constant<int, 2>{});
  };
  const std::integral_constant<Products, Products::kExact> exact{};
  const std::integral_constant<Products, Products::kTf32> tf32{};
  if (type == Type::kBFloat16) return of_size(BFloat16{}, tf32);
  if (type == Type::kHalf) return of_size(Half{}, tf32);
  return products == Products::kExact ? of_size(float{}, exact) : of_size(float{}, tf32);
}

// Blocks for all cells, as many times over as rows and multiprocessors allow.
int groups_of(const Sizes& s, int64_t rows) {
  const int64_t tiles = (rows + kRows - 1) / kRows, room = multiprocessors() / blocks_of(s);
  return static_cast<int>(std::min(tiles, room));
}

}  // namespace

bool fits_on_chip(const Sizes& s, Type type, int64_t rows) {
  return type != Type::kDouble && s.H % 8 == 0 && s.H <= widest(type) &&
         rows <= kTilesAtMost * kRows && has_mma() && blocks_of(s) <= multiprocessors();
}

// Microseconds a step, fitted to an H200's (results/gpu): on chip a block takes the tiles of its group
// one after another; else a step is a product and a kernel of cells. depth: H forwards, 4 H backwards.
bool faster_on_chip(const Sizes& s, Type type, int64_t rows, int64_t depth) {
  const bool wide = type == Type::kFloat, back = depth > s.H;
  const double H = s.H, cells = H * rows;
  const int64_t groups = groups_of(s, rows), tiles = (rows + kRows - 1) / kRows;
  const double tile =
      wide ? (back ? 3.0 + H / 90 : 2.6 + H / 220) : (back ? 2.7 + H / 350 : 2.5 + H / 512);
  const double here = (tiles + groups - 1) / groups * tile, thousands = H / 1024 * H / 1024;
  const double apart =
      wide ? 7.0 + 4.0 * thousands + 6.6e-5 * cells : 5.4 + 1.7 * thousands + 2.4e-5 * cells;
  return here < apart;
}

void steps_on_chip(const Forward& pass, Products products, unsigned* waits, CUstream_st* stream) {
  with_constants(pass.type, products, pass.s.H, [&](auto v, auto kProducts, auto size) {
    using V = decltype(v);
    constexpr int kBlocks = size() * sizeof(V) / 2;
    static_assert(kBlocks * 4 * wide<V> * kWarps == 256 * size());
    const int groups = groups_of(pass.s, pass.s.B);
    start_together(groups * blocks_of(pass.s), kThreads,
                   kWarps * kRows * kStride<4> * sizeof(float), stream,
                   steps_kernel<V, kProducts(), kBlocks>, pass, groups, waits);
  });
}

void steps_back_on_chip(const Backward& pass, Products products, unsigned* waits,
                        CUstream_st* stream) {
  with_constants(pass.type, products, pass.s.H, [&](auto v, auto kProducts, auto size) {
    using V = decltype(v);
    constexpr int kBlocks = 4 * size() * sizeof(V) / 2;
    const int groups = groups_of(pass.s, pass.s.N * pass.s.B);
    start_together(groups * blocks_of(pass.s), kThreads,
                   kWarps * kRows * kStride<1> * sizeof(float), stream,
                   steps_back_kernel<V, kProducts(), kBlocks>, pass, groups, waits);
  });
}

}  // namespace dnirnn::cuda
