// All steps of a layer in one kernel, for sizes whose recurrent weights fit in the registers of the
// blocks that the GPU runs at once.
//
// A block owns kUnits cells, for the rows of its group's tiles, one tile after another. What a cell
// sends to the other blocks (h forwards, the gradients of its gates' sums backwards) goes through
// memory that holds kUnsent before: whoever needs it loads until it is there, so that nobody waits for
// more than what it reads, and nothing is counted.
//
// Forwards a block's warps split the contracted dimension and add their parts in its shared memory.
// Backwards that dimension is four times as long: the warps of a cluster of blocks split it, each for
// all cells of the cluster; each block adds its warps' parts, and sends each block of the cluster its
// cells'. Either sum has one order.
//
// Products are w h^T, so that the weights, which stay, are the side of four registers. Thread l of a
// warp is (g, q) = (l / 4, l % 4). A load takes 16 bytes, the `wide` values from q * wide on, of row g of
// a block of 4 wide of the contracted dimension. mma wants other columns there, but the order of a
// sum's terms is free as long as both sides have the same.
#include <algorithm>
#include <cstring>

#include "cuda/cell.h"

namespace dnirnn::cuda {
namespace {

constexpr int kUnits = 8, kWarps = 4, kThreads = 32 * kWarps;
constexpr int kRows = 16;  // of a tile: one cell a thread
static_assert(kRows * kUnits == kThreads);
// Blocks that a multiprocessor runs at once: while one waits, another works. By the registers that a
// thread has for weights; exact products need others.
constexpr int resident(Products products, int weights) {
  return weights <= 32 ? 4 : weights <= 64 && products != Products::kExact ? 3 : 2;
}

// 16 bytes of a matrix's row.
struct alignas(16) Vector {
  uint32_t word[4];
};

__device__ bool unsent(const Vector& vector) {
  return vector.word[0] == kUnsent || vector.word[1] == kUnsent || vector.word[2] == kUnsent ||
         vector.word[3] == kUnsent;
}

template <typename V>
constexpr int wide = 16 / sizeof(V);

// 16 rows of weights by a block of the contracted dimension, as the two halves of mma want them.
struct Weights {
  uint32_t of[2][4];
  __device__ void set(const Vector& low, const Vector& high) {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      of[half][0] = low.word[2 * half], of[half][1] = high.word[2 * half];
      of[half][2] = low.word[2 * half + 1], of[half][3] = high.word[2 * half + 1];
    }
  }
};

// sum += w a^T: 16 rows of weights, and 8 rows of a, over one block of the contracted dimension.
// rest: of a, for exact products.
template <typename V, Products kProducts>
__device__ void add_product(float (&sum)[4], const Weights& w, const Vector& a,
                            const Vector& rest) {
#pragma unroll
  for (int half = 0; half < 2; half++) {
    const uint32_t right[2] = {a.word[2 * half], a.word[2 * half + 1]};
    uint32_t left[4] = {w.of[half][0], w.of[half][1], w.of[half][2], w.of[half][3]};
    if constexpr (std::is_same_v<V, float>) {
      uint32_t left_rest[4];
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const uint32_t rounded = as_tf32(left[i]);
        left_rest[i] = rest_of(left[i], rounded);
        left[i] = rounded;
      }
      if constexpr (kProducts == Products::kExact) {
        const uint32_t right_rest[2] = {rest.word[2 * half], rest.word[2 * half + 1]};
        mma<V>(sum, left_rest, right);
        mma<V>(sum, left, right_rest);
      }
    }
    mma<V>(sum, left, right);
  }
}

// What a thread reads of a tile of rows: of rows g and g + 8, `from` its first vector of row g on.
template <typename V>
struct Source {
  const V* from;
  int next;      // values from row g to row g + 8
  int count[2];  // how many blocks each of the two rows has for it; the others are zero
  bool sent;     // whether other blocks write them in this kernel

  __device__ Vector vector(int i, int high) const {
    if (i >= count[high]) return {};
    return load_from_others<Vector>(from + high * next + i * 4 * wide<V>);
  }
};

// Blocks `begin` on of rows g and g + 8 of a tile, once they are all there.
template <int kBatch, typename V>
__device__ void fetch(Vector (&part)[kBatch][2], const Source<V>& a, int begin) {
#pragma unroll
  for (int i = 0; i < kBatch; i++)
#pragma unroll
    for (int high = 0; high < 2; high++) part[i][high] = a.vector(begin + i, high);
  for (bool again = a.sent; again;) {
    again = false;
#pragma unroll
    for (int i = 0; i < kBatch; i++)
#pragma unroll
      for (int high = 0; high < 2; high++)
        if (unsent(part[i][high])) {
          again = true;
          part[i][high] = a.vector(begin + i, high);
        }
    again = any_of_warp(again);
  }
}

// sum[i][high] += w_i a^T, for kTiles times 16 rows of weights, and rows 0 to 7 and 8 to 15 of a tile.
// kWait: whether a is likely not there yet.
template <Products kProducts, bool kWait, typename V, int kTiles, int kBlocks>
__device__ void multiply(float (&sum)[kTiles][2][4], const Source<V>& a,
                         const Weights (&w)[kBlocks][kTiles]) {
  // Exact products need registers for the rests too.
  constexpr bool kExact = std::is_same_v<V, float> && kProducts == Products::kExact;
  constexpr int kBatch = !kExact ? kBlocks : kTiles == 2 ? 4 : 1;
  static_assert(kBlocks % kBatch == 0);
  // Where there is much to load, one vector until it is there: what is loaded in vain delays others.
  if constexpr (kWait && kBatch > 4)
    if (a.sent)
      while (any_of_warp(unsent(a.vector(0, 0)))) continue;
#pragma unroll
  for (int begin = 0; begin < kBlocks; begin += kBatch) {
    Vector part[kBatch][2];
    fetch(part, a, begin);
#pragma unroll
    for (int i = 0; i < kBatch; i++)
#pragma unroll
      for (int high = 0; high < 2; high++) {
        Vector& one = part[i][high];
        Vector rest{};
        if constexpr (std::is_same_v<V, float>) {
        // A float32 is a tf32 and a rest, as tf32 too: the product of two rests is below rounding.
#pragma unroll
          for (int word = 0; word < 4; word++) {
            const uint32_t rounded = as_tf32(one.word[word]);
            rest.word[word] = rest_of(one.word[word], rounded);
            one.word[word] = rounded;
          }
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; tile++)
          add_product<V, kProducts>(sum[tile][high], w[begin + i][tile], one, rest);
      }
  }
}

// How many blocks of the contracted dimension begin before its end, from `begin` on.
template <typename V>
__device__ int blocks_from(int64_t begin, int64_t depth) {
  return begin < depth ? static_cast<int>(depth - begin + 4 * wide<V> - 1) / (4 * wide<V>) : 0;
}

// The bits of a value that is sent, in the low end of a word.
template <typename V>
__device__ uint32_t bits_to_send(V value) {
  if constexpr (sizeof(V) == 2) {
    uint16_t bits;
    memcpy(&bits, &value, 2);
    return bits;
  } else {
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return bits;
  }
}

// A word of values that is not kUnsent: not a number stays not a number.
template <typename V>
__device__ void send_word(V* to, uint32_t word) {
  store_for_others(to, word != kUnsent ? word : sizeof(V) == 2 ? 0x7fff7fff : 0x7fffffff);
}

// Two values of 16 bits go in one word: of two threads 2 i and 2 i + 1 of a warp, whose places follow each
// other, the first sends both values. All threads of a warp ask.
template <typename V>
__device__ void send(V* to, V value, bool mine) {
  const uint32_t bits = bits_to_send(value);
  if constexpr (sizeof(V) == 2) {
    const uint32_t other = of_neighbor(bits);
    if (mine && thread() % 2 == 0) send_word(to, bits | other << 16);
  } else {
    if (mine) send_word(to, bits);
  }
}

// The same of four values, `apart` from each other: the first thread sends two of both, and the second two.
template <typename V>
__device__ void send(V* to, int64_t apart, V first, V second, V third, V fourth, bool mine) {
  if constexpr (sizeof(V) == 2) {
    const bool odd = thread() % 2;
    const uint32_t a = bits_to_send(odd ? second : first), b = bits_to_send(odd ? fourth : third);
    const uint32_t other_a = of_neighbor(bits_to_send(odd ? first : second));
    const uint32_t other_b = of_neighbor(bits_to_send(odd ? third : fourth));
    if (!mine) return;
    V* there = odd ? to - 1 + apart : to;
    send_word(there, odd ? other_a | a << 16 : a | other_a << 16);
    send_word(there + 2 * apart, odd ? other_b | b << 16 : b | other_b << 16);
  } else {
    if (!mine) return;
    send_word(to, bits_to_send(first));
    send_word(to + apart, bits_to_send(second));
    send_word(to + 2 * apart, bits_to_send(third));
    send_word(to + 3 * apart, bits_to_send(fourth));
  }
}

// Forwards: a warp's part of the sums, by row, cell and gate. Rows so far apart that no bank is met twice.
constexpr int kStride = 36, kPartial = kWarps * kRows * kStride;
constexpr size_t kShared = 2 * kPartial * sizeof(float);

// kOne: whether each group has one tile of rows. Else it takes its tiles in turns, which fill the waits
// between the steps of each.
template <typename V, Products kProducts, int kBlocks, bool kOne>
__global__ void __launch_bounds__(kThreads, resident(kProducts, 16 * kBlocks))
    steps_kernel(Forward p, int groups) {
  const Sizes& s = p.s;
  const int H = s.H, B = s.B, blocks = (H + kUnits - 1) / kUnits, group = block() / blocks;
  const int j0 = block() % blocks * kUnits;
  const int warp = thread() / 32, g = thread() % 32 / 4, q = thread() % 4;
  const int begin_of_warp = warp * kBlocks * 4 * wide<V> + q * wide<V>;

  // Row 4 u + i of the block's 32 is gate i of cell u.
  Weights w[kBlocks][2];
  const auto weights_at = [&](int of, int column) {
    const int64_t row = int64_t(of % 4) * H + j0 + of / 4;
    return column < H ? load<Vector>(static_cast<const V*>(p.w_hh) + row * H + column) : Vector{};
  };
#pragma unroll
  for (int i = 0; i < kBlocks; i++)
#pragma unroll
    for (int tile = 0; tile < 2; tile++) {
      const int column = begin_of_warp + i * 4 * wide<V>;
      w[i][tile].set(weights_at(16 * tile + g, column), weights_at(16 * tile + 8 + g, column));
    }

  const int row = thread() / kUnits, unit = thread() % kUnits, j = j0 + unit;
  const CellGates<float> bias = bias_of<float>(p, j);
  const int there = blocks_from<V>(begin_of_warp, H);
  Step at{0, 0, 0};
  // What a turn begins with is loaded a turn ahead, but for c, which the one before it may have written.
  int r0 = group * kRows;
  bool mine = r0 + row < B;
  CellGates<float> sums = mine ? sums_of<float>(p, at, r0 + row, j) : CellGates<float>{};
  float c = mine ? c_of<float>(p, at, r0 + row, j) : 0;
  for (int turn = 0; at.t < s.T; turn++) {
    const int b = r0 + row;
    const Step then = next(s, at);
    const bool round = kOne || r0 + groups * kRows >= B;
    const Step at_next = round ? then : at;
    const int r0_next = kOne ? r0 : round ? group * kRows : r0 + groups * kRows;
    const bool mine_next = r0_next + row < B && at_next.t < s.T;
    CellGates<float> sums_next{};
    if (mine_next) sums_next = sums_of<float>(p, at_next, r0_next + row, j);
    // Whoever writes to this half again has met all others in between, at the other half.
    float* partial = shared_memory() + turn % 2 * kPartial;
    float sum[2][2][4] = {};
    const Source<V> a{h_of<V>(p, at, r0 + g, begin_of_warp),
                      8 * H,
                      {r0 + g < B ? there : 0, r0 + 8 + g < B ? there : 0},
                      at.t > 0};
    multiply<kProducts, kOne>(sum, a, w);
#pragma unroll
    for (int tile = 0; tile < 2; tile++)
#pragma unroll
      for (int high = 0; high < 2; high++)
#pragma unroll
        for (int i = 0; i < 4; i++)
          partial[(warp * kRows + high * 8 + 2 * q + i % 2) * kStride + tile * 16 + i / 2 * 8 + g] =
              sum[tile][high][i];
    sync();
    CellGates<float> product{};
#pragma unroll
    for (int of = 0; of < kWarps; of++) {
      const auto part = load<Four>(partial + (of * kRows + row) * kStride + unit * 4);
      product.i += part.of[0];
      product.f += part.of[1];
      product.g += part.of[2];
      product.o += part.of[3];
    }
    const Done<float> done = take<V>(sums, c, bias, product);
    if (then.t < s.T) {
      const Entered<V, float> entered =
          mine ? enter<V>(p, then, b, j, done.h, done.c) : Entered<V, float>{};
      send(h_of<V>(p, then, b, j), entered.h, mine);
      c = entered.c;
    }
    // Nobody waits for the rest of this step.
    if (mine) keep<V>(p, at, b, j, done);
    at = at_next, r0 = r0_next, mine = mine_next, sums = sums_next;
    if (!kOne && mine) c = c_of<float>(p, at, r0 + row, j);
  }
}

// Backwards: a warp's part of the sums of the cluster's cells, by row and cell, apart as above; and what
// each block of the cluster sends for this one's cells. A thread has weights of kSide cells side by side.
constexpr int kCells = kCluster * kUnits, kSide = kCells / 8, kStrideBack = kCells + 4;
constexpr int kPartialBack = kWarps * kRows * kStrideBack, kToBlock = kCluster * kRows * kUnits;
constexpr size_t kSharedBack = (kPartialBack + 2 * kToBlock) * sizeof(float);
static_assert(kRows == 16 && kUnits == 8);

template <typename V, Products kProducts, int kBlocks, bool kOne>
__global__ void __launch_bounds__(kThreads, resident(kProducts, 4 * kSide * kBlocks))
    steps_back_kernel(Backward p, int groups) {
  const Sizes& s = p.s;
  const int H = s.H, depth = 4 * H, rows = s.N * s.B, clusters = (H + kCells - 1) / kCells;
  const int cluster = block() / kCluster, group = cluster / clusters, rank = rank_in_cluster();
  const int j0 = cluster % clusters * kCells;
  const int warp = thread() / 32, lane = thread() % 32, g = lane / 4, q = lane % 4;
  const int begin_of_warp = (rank * kWarps + warp) * kBlocks * 4 * wide<V> + q * wide<V>;

  // Row m of tile i is cell m % 8 * kSide + 2 i + m / 8 of the cluster.
  Weights w[kBlocks][kCells / 16];
  const int of_g = j0 + g * kSide;
#pragma unroll
  for (int i = 0; i < kBlocks; i++) {
    const int column = begin_of_warp + i * 4 * wide<V>;
    struct alignas(kSide * sizeof(V)) Side {
      V of[kSide];
    } down[wide<V>] = {};
    if (of_g < H && column < depth) {
#pragma unroll
      for (int e = 0; e < wide<V>; e++)
        down[e] = load<Side>(static_cast<const V*>(p.w_hh) + int64_t(column + e) * H + of_g);
    }
    Vector turned[kSide];
#pragma unroll
    for (int u = 0; u < kSide; u++) {
      V one[wide<V>];
#pragma unroll
      for (int e = 0; e < wide<V>; e++) one[e] = down[e].of[u];
      memcpy(&turned[u], one, sizeof(Vector));
    }
#pragma unroll
    for (int tile = 0; tile < kCells / 16; tile++)
      w[i][tile].set(turned[2 * tile], turned[2 * tile + 1]);
  }

  const int row = thread() / kUnits, unit = thread() % kUnits, j = j0 + rank * kUnits + unit;
  const int there = blocks_from<V>(begin_of_warp, depth);
  // One step more where something leaves: its product, and no cells.
  const int last = p.grad_probe || p.grad_state ? -1 : 0;
  struct Place {
    int k, r0, n, b;
  };
  const auto place = [&](int k, int r0) {
    const int n = quotient(r0 + row, s.B);
    return Place{k, r0, n, r0 + row - n * static_cast<int>(s.B)};
  };
  const auto is_mine = [&](const Place& at) { return at.r0 + row < rows && j < H; };
  const auto after = [&](const Place& at) {
    if (kOne) return Place{at.k - 1, at.r0, at.n, at.b};
    const int r0 = at.r0 + groups * kRows;
    return r0 < rows ? place(at.k, r0) : place(at.k - 1, group * kRows);
  };
  const auto was_at = [&](const Place& at) {
    return is_mine(at) && at.k >= 0 ? was<float>(p, at.k, at.n, at.b, j) : Was<float>{};
  };
  const auto given_at = [&](const Place& at) {
    return is_mine(at) && at.k >= 0 ? given<V, float>(p, at.k, at.n, at.b, j)
                                    : StateGradient<float>{};
  };
  Place at = place(static_cast<int>(s.K) - 1, group * kRows);
  // What a turn begins with is loaded a turn ahead, where there are registers for it.
  constexpr bool kAhead = sizeof(V) == 2 || kSide * kBlocks < 32;
  Was<float> cell = was_at(at);
  StateGradient<float> from = given_at(at);
  float dc = 0;
  int half = 0;
  sync_cluster();  // none writes to one that has not begun
  for (; at.k >= last; half ^= kToBlock) {
    const auto [k, r0, n, b] = at;
    const bool mine = is_mine(at);
    const CellSlopes<float> slopes = cell_slopes<Math<V>>(cell.gates, cell.c);
    Place then{};
    StateGradient<float> from_next{};
    if constexpr (kAhead) then = after(at), cell = was_at(then), from_next = given_at(then);
    float product = 0;
    if (k + 1 < s.K) {
      float *partial = shared_memory(), *found = partial + kPartialBack + half;
      float sum[kCells / 16][2][4] = {};
      const V* d =
          static_cast<const V*>(p.d) + in_row((k + 1) * rows + r0 + g, depth, begin_of_warp);
      const Source<V> a{
          d, 8 * depth, {r0 + g < rows ? there : 0, r0 + 8 + g < rows ? there : 0}, true};
      multiply<kProducts, kOne>(sum, a, w);
#pragma unroll
      for (int tile = 0; tile < kCells / 16; tile++)
#pragma unroll
        for (int high = 0; high < 2; high++)
#pragma unroll
          for (int i = 0; i < 4; i++)
            partial[(warp * kRows + high * 8 + 2 * q + i % 2) * kStrideBack + g * kSide + 2 * tile +
                    i / 2] = sum[tile][high][i];
      sync();
#pragma unroll
      for (int to = warp; to < kCluster; to += kWarps) {
        const int part = lane % 16 * kUnits + lane / 16 * 4;
        Four sent{};
#pragma unroll
        for (int of = 0; of < kWarps; of++) {
          const auto one = load<Four>(partial + (of * kRows + lane % 16) * kStrideBack +
                                      to * kUnits + lane / 16 * 4);
#pragma unroll
          for (int i = 0; i < 4; i++) sent.of[i] += one.of[i];
        }
        store_to(to, found + rank * kRows * kUnits + part, sent);
      }
      sync_cluster();
#pragma unroll
      for (int of = 0; of < kCluster; of++) product += found[of * kThreads + thread()];
    }
    if (k >= 0) {
      const DoneBack<float> done =
          mine ? take_back(p, k, n, b, slopes, from, product, dc) : DoneBack<float>{};
      V* d = static_cast<V*>(p.d) + in_row(k * rows + r0 + row, depth, j);
      send(d, H, narrow<V>(done.d.i), narrow<V>(done.d.f), narrow<V>(done.d.g), narrow<V>(done.d.o),
           mine);
      if (mine) keep_back(p, k, n, b, j, done);
      dc = done.dc;
    } else if (mine) {
      leave(p, n, b, j, product, dc);
    }
    if constexpr (!kAhead) then = after(at), cell = was_at(then), from_next = given_at(then);
    at = then, from = from_next;
    if (!kOne && is_mine(at) && at.k + 1 < s.K) dc = dc_of<float>(p, at.n, at.b, j);
  }
}

int64_t blocks_of(const Sizes& s) { return (s.H + kUnits - 1) / kUnits; }
int64_t clusters_of(const Sizes& s) { return (blocks_of(s) + kCluster - 1) / kCluster; }

// What of w_hh the registers hold beside all else: half of them at 1024 cells of 16 bits.
int64_t widest(Type type) { return type == Type::kFloat ? 512 : 1024; }

// call(V{}, constant of Products, constant of H / 256, rounded up to 1, 2 or 4)
template <typename Call>
auto with_constants(Type type, Products products, int64_t H, Call call) {
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

// Whether there are registers for the way back: exact products of more than 256 cells would spill.
template <typename V>
constexpr bool goes_back(Products products, int size) {
  return sizeof(V) == 2 || products == Products::kTf32 || size == 1;
}

// In how many turns so many groups at once take a step of so many rows.
int64_t turns_of(int64_t rows, int64_t groups) {
  const int64_t tiles = (rows + kRows - 1) / kRows;
  return (tiles + groups - 1) / groups;
}

// Of the groups that there is room for, no more than give the same number of turns.
int groups_of(int64_t rows, int64_t room) {
  return static_cast<int>(turns_of(rows, turns_of(rows, room)));
}

// Of the two kernels that may be started, what either has room for.
int64_t room_of(const Sizes& s, Type type, Products products) {
  return with_constants(type, products, s.H, [&](auto v, auto kProducts, auto size) -> int64_t {
    using V = decltype(v);
    constexpr int kBlocks = size() * int(sizeof(V));
    const auto at_once = [](auto kernel) { return blocks_at_once(kThreads, kShared, kernel); };
    return std::min(at_once(steps_kernel<V, kProducts(), kBlocks, false>),
                    at_once(steps_kernel<V, kProducts(), kBlocks, true>)) /
           blocks_of(s);
  });
}

int64_t room_back_of(const Sizes& s, Type type, Products products) {
  return with_constants(type, products, s.H, [&](auto v, auto kProducts, auto size) -> int64_t {
    using V = decltype(v);
    if constexpr (!goes_back<V>(kProducts(), size())) {
      return 0;
    } else {
      constexpr int kBlocks = size() * int(sizeof(V)) * 4 / kCluster;
      const auto at_once = [](auto kernel) {
        return clusters_at_once(kThreads, kSharedBack, kernel);
      };
      return std::min(at_once(steps_back_kernel<V, kProducts(), kBlocks, false>),
                      at_once(steps_back_kernel<V, kProducts(), kBlocks, true>)) /
             clusters_of(s);
    }
  });
}

bool fits(const Sizes& s, Type type) {
  return type != Type::kDouble && s.H > 0 && s.H % 8 == 0 && s.H <= widest(type) && has_mma();
}

}  // namespace

int64_t room_on_chip(const Sizes& s, Type type, Products products, bool back) {
  if (!fits(s, type) || (back && !has_clusters())) return 0;
  return back ? room_back_of(s, type, products) : room_of(s, type, products);
}

// By microseconds a step, fitted to an H200's (results/gpu): on chip a turn of tiles after another;
// else a product and a kernel of cells.
bool faster_on_chip(const Sizes& s, Type type, Products products, bool back, int64_t room) {
  const bool wide = type == Type::kFloat, exact = wide && products == Products::kExact;
  const int64_t rows = back ? s.N * s.B : s.B;
  const double H = s.H / 1024.0, cells = double(s.H) * rows;
  const int64_t turns = turns_of(rows, room);
  const double turn = back    ? (wide ? 4.1 : 3.0 + 1.1 * H)
                      : exact ? 2.0 + 4.8 * H
                              : (wide ? 2.0 + 2.0 * H : 2.6);
  const double apart = wide   ? 6.0 + 4.0 * H * H + 6.6e-5 * cells
                       : back ? 4.6 + 5.5 * H + 1.5e-5 * cells
                              : 4.4 + 1.7 * H * H + 2.3e-5 * cells;
  return turns * turn < apart;
}

void steps_on_chip(const Forward& pass, Products products, int64_t room, CUstream_st* stream) {
  const int groups = groups_of(pass.s.B, room);
  const bool one = groups * kRows >= pass.s.B;
  with_constants(pass.type, products, pass.s.H, [&](auto v, auto kProducts, auto size) {
    using V = decltype(v);
    constexpr int kBlocks = size() * int(sizeof(V));
    static_assert(kBlocks * 4 * wide<V> * kWarps == 256 * size());
    start_together(groups * blocks_of(pass.s), kThreads, kShared, stream,
                   one ? steps_kernel<V, kProducts(), kBlocks, true>
                       : steps_kernel<V, kProducts(), kBlocks, false>,
                   pass, groups);
  });
}

void steps_back_on_chip(const Backward& pass, Products products, int64_t room,
                        CUstream_st* stream) {
  const int64_t rows = pass.s.N * pass.s.B;
  const int groups = groups_of(rows, room);
  with_constants(pass.type, products, pass.s.H, [&](auto v, auto kProducts, auto size) {
    using V = decltype(v);
    if constexpr (goes_back<V>(kProducts(), size())) {
      constexpr int kBlocks = size() * int(sizeof(V)) * 4 / kCluster;
      static_assert(kBlocks * 4 * wide<V> * kWarps * kCluster == 4 * 256 * size());
      start_in_clusters(groups * clusters_of(pass.s) * kCluster, kThreads, kSharedBack, stream,
                        groups * kRows >= rows ? steps_back_kernel<V, kProducts(), kBlocks, true>
                                               : steps_back_kernel<V, kProducts(), kBlocks, false>,
                        pass, groups);
    }
  });
}

}  // namespace dnirnn::cuda
