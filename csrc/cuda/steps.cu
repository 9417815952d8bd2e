// The cells of one step, one thread each; the products around them are matrix products of the
// library's.
#include "cuda/cell.h"
#include "cuda/types.h"

namespace dnirnn::cuda {
namespace {

template <typename V, typename S>
__global__ void enter_kernel(Forward p) {
  const Sizes& s = p.s;
  const int i = index(), b = quotient(i, s.H), j = i - b * static_cast<int>(s.H);
  if (b >= s.B) return;
  const S* state = static_cast<const S*>(p.state) + in_row(b, s.S, of_state(p, j));
  const Step first{0, 0, 0};
  *h_of<V>(p, first, b, j) = enter<V>(p, first, b, j, state[0], state[s.H]).h;
}

template <typename V, typename S>
__global__ void step_kernel(Forward p, int t) {
  const Sizes& s = p.s;
  const int i = index(), b = quotient(i, s.H), j = i - b * static_cast<int>(s.H);
  if (b >= s.B) return;
  const Step at = step_of(s, t), then = next(s, at);
  const Done<S> done =
      take<V>(sums_of<S>(p, at, b, j), c_of<S>(p, at, b, j), bias_of<S>(p, j), CellGates<S>{});
  if (then.t < s.T) *h_of<V>(p, then, b, j) = enter<V>(p, then, b, j, done.h, done.c).h;
  keep<V>(p, at, b, j, done);
}

template <typename V, typename S>
__global__ void step_back_kernel(Backward p, int k, const void* dh) {
  const Sizes& s = p.s;
  const int i = index(), row = quotient(i, s.H), j = i - row * static_cast<int>(s.H);
  if (row >= s.N * s.B) return;
  const int n = quotient(row, s.B), b = row - n * static_cast<int>(s.B);
  const S back = k + 1 < s.K ? static_cast<const S*>(dh)[i] : S(0);
  const Was<S> cell = was<S>(p, k, n, b, j);
  const S dc = k + 1 < steps_of(s, n) ? dc_of<S>(p, n, b, j) : S(0);
  const DoneBack<S> done = take_back(p, k, n, b, cell_slopes<Math<V>>(cell.gates, cell.c),
                                     given<V, S>(p, k, n, b, j), back, dc);
  V* d = d_of<V>(p, k, n, b, j);
  d[0] = narrow<V>(done.d.i);
  d[s.H] = narrow<V>(done.d.f);
  d[2 * s.H] = narrow<V>(done.d.g);
  d[3 * s.H] = narrow<V>(done.d.o);
  keep_back(p, k, n, b, j, done);
}

template <typename S>
__global__ void leave_kernel(Backward p, const void* dh) {
  const Sizes& s = p.s;
  const int i = index(), row = quotient(i, s.H), j = i - row * static_cast<int>(s.H);
  if (row >= s.N * s.B) return;
  const int n = quotient(row, s.B);
  const int b = row - n * static_cast<int>(s.B);
  leave(p, n, b, j, static_cast<const S*>(dh)[i], dc_of<S>(p, n, b, j));
}

}  // namespace

void enter(const Forward& pass, CUstream_st* stream) {
  with_type(pass.type, [&](auto v, auto s) {
    for_each(pass.s.B * pass.s.H, stream, enter_kernel<decltype(v), decltype(s)>, pass);
  });
}

void step(const Forward& pass, int64_t t, CUstream_st* stream) {
  with_type(pass.type, [&](auto v, auto s) {
    for_each(pass.s.B * pass.s.H, stream, step_kernel<decltype(v), decltype(s)>, pass,
             static_cast<int>(t));
  });
}

void step_back(const Backward& pass, int64_t k, const void* dh, CUstream_st* stream) {
  with_type(pass.type, [&](auto v, auto s) {
    for_each(pass.s.N * pass.s.B * pass.s.H, stream, step_back_kernel<decltype(v), decltype(s)>,
             pass, static_cast<int>(k), dh);
  });
}

void leave(const Backward& pass, const void* dh, CUstream_st* stream) {
  with_type(pass.type, [&](auto, auto s) {
    for_each(pass.s.N * pass.s.B * pass.s.H, stream, leave_kernel<decltype(s)>, pass, dh);
  });
}

}  // namespace dnirnn::cuda
