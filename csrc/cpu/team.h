// A team of threads that run one function at once and may wait for each other in it. at::parallel_for
// does not promise that its threads run at once; an OpenMP region does, and shares torch's pool.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#if defined(_OPENMP)
#include <omp.h>
#endif

namespace dnirnn::cpu {

struct Member {
  int64_t index, size;

  // This member's share [first, last) of `items`, contiguous and in order.
  int64_t first(int64_t items) const { return items * index / size; }
  int64_t last(int64_t items) const { return items * (index + 1) / size; }

  void wait() const {
#if defined(_OPENMP)
    if (size > 1) {
#pragma omp barrier
    }
#endif
  }
};

// Whether this process was forked since the library was loaded. Such a child may have the records of
// a pool (a team's, or that of any operation of torch) without its threads, and would wait for them
// for ever in its first region; it works alone, as torch's own DataLoader workers do.
bool is_forked();

// How many threads are worth having: at most torch's, at most `parts`, each with enough to do
// between two barriers (`flops`) to pay for one.
inline int64_t team_size(int64_t parts, double flops) {
#if defined(_OPENMP)
  if (omp_in_parallel() || is_forked()) return 1;
  const auto useful = static_cast<int64_t>(flops / 1e5);
  return std::max<int64_t>(1, std::min({int64_t(at::get_num_threads()), parts, useful}));
#else
  return 1;
#endif
}

template <typename F>
void run_team(int64_t size, const F& work) {
#if defined(_OPENMP)
  if (size > 1) {
#pragma omp parallel num_threads(size)
    {
      // A runtime that is out of threads gives fewer: the shares follow what came.
      work(Member{omp_get_thread_num(), omp_get_num_threads()});
    }
    return;
  }
#endif
  work(Member{0, 1});
}

}  // namespace dnirnn::cpu
