// The cells of one step, one thread each; the products around them are matrix products of the
// library's.
#include "cuda/cell.h"
#include "cuda/types.h"

namespace dnirnn::cuda {
namespace {

template <typename V, typename S>
__global__ void enter_kernel(Forward p) {
  const Sizes& s = p.s;
  const int64_t i = index(), b = i / s.H, j = i % s.H;
  if (b >= s.B) return;
  const S* state = static_cast<const S*>(p.state) + b * s.S + 2 * p.layer * s.H + j;
  enter<V>(p, 0, b, j, state[0], state[s.H]);
}

template <typename V, typename S>
__global__ void step_kernel(Forward p, int64_t t) {
  const Sizes& s = p.s;
  const int64_t i = index(), b = i / s.H, j = i % s.H;
  if (b >= s.B) return;
  keep<V>(p, t, b, j, take<V>(p, t, b, j, begin<S>(p, t, b, j), bias_of<S>(p, j), CellGates<S>{}));
}

template <typename V, typename S>
__global__ void step_back_kernel(Backward p, int64_t k, const void* dh) {
  const Sizes& s = p.s;
  const int64_t i = index(), row = i / s.H, j = i % s.H;
  if (row >= s.N * s.B) return;
  const int64_t n = row / s.B, b = row % s.B;
  const S back = k + 1 < s.K ? static_cast<const S*>(dh)[i] : S(0);
  const BegunBack<S> begun = begin_back<V, S>(p, k, n, b, j);
  S dc = 0;
  const auto came = take_back<V>(p, k, n, b, j, begun, back, dc);
  keep_back(p, k, n, b, j, begun, came, dc);
}

template <typename S>
__global__ void leave_kernel(Backward p, const void* dh) {
  const Sizes& s = p.s;
  const int64_t i = index(), row = i / s.H, j = i % s.H;
  if (row < s.N * s.B) leave(p, row / s.B, row % s.B, j, static_cast<const S*>(dh)[i]);
}

}  // namespace

void enter(const Forward& pass, CUstream_st* stream) {
  with_type(pass.type, [&](auto v, auto s) {
    for_each(pass.s.B * pass.s.H, stream, enter_kernel<decltype(v), decltype(s)>, pass);
  });
}

void step(const Forward& pass, int64_t t, CUstream_st* stream) {
  with_type(pass.type, [&](auto v, auto s) {
    for_each(pass.s.B * pass.s.H, stream, step_kernel<decltype(v), decltype(s)>, pass, t);
  });
}

void step_back(const Backward& pass, int64_t k, const void* dh, CUstream_st* stream) {
  with_type(pass.type, [&](auto v, auto s) {
    for_each(pass.s.N * pass.s.B * pass.s.H, stream, step_back_kernel<decltype(v), decltype(s)>,
             pass, k, dh);
  });
}

void leave(const Backward& pass, const void* dh, CUstream_st* stream) {
  with_type(pass.type, [&](auto, auto s) {
    for_each(pass.s.N * pass.s.B * pass.s.H, stream, leave_kernel<decltype(s)>, pass, dh);
  });
}

}  // namespace dnirnn::cuda
