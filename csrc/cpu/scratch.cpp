#include "cpu/scratch.h"

#include <ATen/ATen.h>
#include <pthread.h>
#include <sys/mman.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <mutex>

namespace dnirnn::cpu {
namespace {

// Hands out pieces of large slabs, each from the smallest free stretch that holds it. The slabs are
// made of huge pages where the system has them: the histories of a small layer already fill a
// thousand ordinary pages, more than the nearer table of translations holds, and where ordinary
// pages lie in the second-level cache is left to chance.
class Pool {
 public:
  void* take(size_t bytes) {
    bytes = padded(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    auto found = smallest(bytes);
    if (found == free_.end()) found = add_slab(bytes);
    char* data = found->first;
    const size_t left = found->second - bytes;
    free_.erase(found);
    if (left > 0) free_.emplace(data + bytes, left);
    return data;
  }

  // Around a fork: the child has no other thread, so what one of them held would stay locked in it.
  void hold() { mutex_.lock(); }
  void let_go() { mutex_.unlock(); }

  void give_back(void* data, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto here = free_.emplace(static_cast<char*>(data), padded(bytes)).first;
    const auto next = std::next(here);
    if (next != free_.end() && adjoin(here, next)) {
      here->second += next->second;
      free_.erase(next);
    }
    if (here != free_.begin() && adjoin(std::prev(here), here)) {
      std::prev(here)->second += here->second;
      free_.erase(here);
    }
  }

 private:
  using Stretches = std::map<char*, size_t>;
  static constexpr size_t kHugePage = size_t(2) << 20, kSlab = size_t(32) << 20;

  // Pieces are aligned to a cache line. Those of one size are a power of two apart as a rule, and
  // the same row of each would lie in the same sets of the caches: a few lines more move them.
  static size_t padded(size_t bytes) { return (bytes + 63) / 64 * 64 + 9 * 64; }

  Stretches::iterator smallest(size_t bytes) {
    auto best = free_.end();
    for (auto at = free_.begin(); at != free_.end(); ++at)
      if (at->second >= bytes && (best == free_.end() || at->second < best->second)) best = at;
    return best;
  }

  bool adjoin(Stretches::const_iterator a, Stretches::const_iterator b) const {
    return a->first + a->second == b->first && slabs_.count(b->first) == 0;
  }

  Stretches::iterator add_slab(size_t bytes) {
    // What waits unused makes room first.
    for (auto at = slabs_.begin(); at != slabs_.end();) {
      const auto found = free_.find(at->first);
      if (found != free_.end() && found->second == at->second) {
        munmap(at->first, at->second);
        free_.erase(found);
        at = slabs_.erase(at);
      } else {
        ++at;
      }
    }
    const size_t size = (std::max(bytes, kSlab) + kHugePage - 1) / kHugePage * kHugePage;
    void* mapped =
        mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    TORCH_CHECK(mapped != MAP_FAILED, "out of memory for ", bytes, " bytes");
    char* start = static_cast<char*>(mapped);
    const size_t before = (kHugePage - reinterpret_cast<uintptr_t>(start) % kHugePage) % kHugePage;
    if (before > 0) munmap(start, before);
    start += before;
    munmap(start + size, kHugePage - before);
#if defined(MADV_HUGEPAGE)
    madvise(start, size, MADV_HUGEPAGE);
#endif
    slabs_.emplace(start, size);
    return free_.emplace(start, size).first;
  }

  std::mutex mutex_;
  Stretches free_, slabs_;
};

// Never destroyed: tensors may outlive everything else in the process. Made as the library is loaded:
// a child that is forked while another thread makes it would wait for that thread for ever.
Pool& pool = *[] {
  static Pool* only = new Pool;
  const int failed =
      pthread_atfork([] { only->hold(); }, [] { only->let_go(); }, [] { only->let_go(); });
  TORCH_CHECK(failed == 0, "out of memory");
  return only;
}();

}  // namespace

void* take(size_t bytes) { return pool.take(bytes); }
void give_back(void* data, size_t bytes) { pool.give_back(data, bytes); }

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  // Smaller blocks malloc keeps by itself.
  constexpr size_t kSmall = 1 << 16;
  size_t bytes = options.dtype().itemsize();
  for (const int64_t size : sizes) bytes *= size;
  if (bytes < kSmall) return at::empty(sizes, options);
  void* data = take(bytes);
  return at::from_blob(data, sizes, [bytes](void* p) { give_back(p, bytes); }, options);
}

}  // namespace dnirnn::cpu
