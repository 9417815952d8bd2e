#include "cuda/sums.h"

#include <algorithm>

#include "cuda/block_sum.h"
#include "cuda/types.h"

namespace dnirnn::cuda {
namespace {

constexpr int kErrorThreads = 256, kEach = 4, kMostBlocks = 256;

template <typename S>
__global__ void errors_kernel(Regression r, int blocks) {
  double* shared = reinterpret_cast<double*>(shared_memory());
  S* value = static_cast<S*>(r.value);
  const S* target = static_cast<const S*>(r.target);
  const S share = S(1) / S(r.rows);
  double squares = 0;
  for (int64_t i = int64_t(block()) * kErrorThreads + thread(); i < r.size;
       i += int64_t(blocks) * kErrorThreads) {
    const S delta = value[i] - target[i];
    value[i] = delta * share;
    squares += double(delta) * double(delta);
  }
  squares = sum_over_block<kErrorThreads>(shared, squares);
  if (thread() == 0) r.partial[block()] = squares;
}

template <typename S>
__global__ void add_errors_kernel(Regression r, int blocks) {
  double* shared = reinterpret_cast<double*>(shared_memory());
  const double part = thread() < blocks ? r.partial[thread()] : 0;
  const double squares = sum_over_block<kMostBlocks>(shared, part);
  if (thread() == 0) *static_cast<S*>(r.error) = static_cast<S>(squares / (2 * double(r.rows)));
}

// A block sums 32 columns of one symbol; a warp takes 32 rows at a time: a thread asks for one row's
// symbol, and all load the rows that are found, whose loads are under way together.
constexpr int kSumWarps = 32, kLanes = 32;

template <typename V, typename S>
__global__ void __launch_bounds__(kSumWarps* kLanes, 2) by_symbol_kernel(BySymbol p, int slices) {
  S* shared = reinterpret_cast<S*>(shared_memory());
  const int symbol = block() / slices, warp = thread() / kLanes, lane = thread() % kLanes;
  const int64_t column = int64_t(block() - symbol * slices) * kLanes + lane;
  const bool inside = column < p.width;
  const V* gradient = static_cast<const V*>(p.gradient) + (inside ? column : 0);
  S sum = 0;
  for (int64_t from = warp * kLanes; from < p.rows; from += kSumWarps * kLanes) {
    const bool mine = from + lane < p.rows && p.symbols[from + lane] == symbol;
    const uint32_t found = which_of_warp(mine);
    if (found == 0) continue;
    constexpr int kAtOnce = 32 / sizeof(S);
    for (int first = 0; first < kLanes; first += kAtOnce) {
      S values[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; i++)
        values[i] = found >> (first + i) & 1 ? widen(gradient[(from + first + i) * p.width]) : S(0);
#pragma unroll
      for (int i = 0; i < kAtOnce; i++) sum += values[i];
    }
  }
  shared[thread()] = sum;
  sync();
  if (warp > 0 || !inside) return;
  sum = 0;
  for (int i = 0; i < kSumWarps; i++) sum += shared[i * kLanes + lane];
  static_cast<V*>(p.sums)[symbol * p.width + column] = narrow<V>(sum);
}

}  // namespace

int blocks_of(const Regression& r) {
  const int64_t wanted = (r.size + kErrorThreads * kEach - 1) / (kErrorThreads * kEach);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, kMostBlocks));
}

void find_errors(const Regression& r, CUstream_st* stream) {
  const int blocks = blocks_of(r);
  const auto start = [&](auto s) {
    using S = decltype(s);
    start_blocks(blocks, kErrorThreads, kErrorThreads * sizeof(double), stream, errors_kernel<S>, r,
                 blocks);
    start_blocks(1, kMostBlocks, kMostBlocks * sizeof(double), stream, add_errors_kernel<S>, r,
                 blocks);
  };
  r.type == Type::kDouble ? start(double{}) : start(float{});
}

void sum_by_symbol(const BySymbol& p, CUstream_st* stream) {
  const int64_t slices = (p.width + kLanes - 1) / kLanes;
  if (p.count * slices == 0) return;
  with_type(p.type, [&](auto v, auto s) {
    start_blocks(p.count * slices, kSumWarps * kLanes, kSumWarps * kLanes * sizeof(s), stream,
                 by_symbol_kernel<decltype(v), decltype(s)>, p, static_cast<int>(slices));
  });
}

}  // namespace dnirnn::cuda
