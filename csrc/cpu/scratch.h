// Memory that is used again: work buffers, kept from call to call, and tensors whose memory comes
// back here when they die. The page faults of fresh memory can cost more than the work done in it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace dnirnn::cpu {

// Memory of the pool, aligned to a cache line; it goes back with the size it was taken with.
void* take(size_t bytes);
void give_back(void* data, size_t bytes);

// A work buffer of one thread. get() may move it: what it held is lost.
template <typename T>
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { release(); }

  T* get(int64_t count) {
    const size_t bytes = count * sizeof(T);
    if (!data_ || bytes > size_) {
      release();
      data_ = static_cast<T*>(take(bytes));
      size_ = bytes;
    }
    return data_;
  }

 private:
  void release() {
    if (data_) give_back(data_, size_);
    data_ = nullptr;
  }
  T* data_ = nullptr;
  size_t size_ = 0;
};

// at::empty, from the pool's memory.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace dnirnn::cpu
