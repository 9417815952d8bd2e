#include "cpu/scratch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <deque>
#include <mutex>

namespace dnirnn::cpu {
namespace {

class Pool {
 public:
  void* take(size_t bytes) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      used_ += bytes;
      most_used_ = std::max(most_used_, used_);
      // The newest first: it is the likeliest to be in a cache.
      const auto found = std::find_if(free_.rbegin(), free_.rend(),
                                      [&](const Block& block) { return block.bytes == bytes; });
      if (found != free_.rend()) {
        void* data = found->data;
        free_.erase(std::next(found).base());
        waiting_ -= bytes;
        return data;
      }
    }
    void* data = std::aligned_alloc(kAlignment, bytes);
    if (!data) {
      const std::lock_guard<std::mutex> lock(mutex_);
      used_ -= bytes;
    }
    TORCH_CHECK(data, "out of memory for a tensor of ", bytes, " bytes");
    return data;
  }

  void give_back(void* data, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    used_ -= bytes;
    waiting_ += bytes;
    free_.push_back({data, bytes});
    while (used_ + waiting_ > most_used_) {
      std::free(free_.front().data);
      waiting_ -= free_.front().bytes;
      free_.pop_front();
    }
  }

  static constexpr size_t kAlignment = 64;

 private:
  struct Block {
    void* data;
    size_t bytes;
  };
  std::mutex mutex_;
  std::deque<Block> free_;  // the oldest first
  size_t used_ = 0, waiting_ = 0, most_used_ = 0;
};

// Never destroyed: tensors may outlive everything else in the process.
Pool& pool() {
  static Pool& only = *new Pool;
  return only;
}

}  // namespace

at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options) {
  // Smaller blocks malloc keeps by itself.
  constexpr size_t kSmall = 1 << 16;
  size_t bytes = options.dtype().itemsize();
  for (const int64_t size : sizes) bytes *= size;
  if (bytes < kSmall) return at::empty(sizes, options);
  bytes = (bytes + Pool::kAlignment - 1) / Pool::kAlignment * Pool::kAlignment;
  void* data = pool().take(bytes);
  return at::from_blob(
      data, sizes, [bytes](void* p) { pool().give_back(p, bytes); }, options);
}

}  // namespace dnirnn::cpu
