// Memory that is used again: work buffers, kept from call to call, and tensors whose memory comes
// back here when they die. The page faults of fresh memory can cost more than the work done in it.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

namespace dnirnn::cpu {

// A work buffer of one thread. get() may move it: what it held is lost.
template <typename T>
class Scratch {
 public:
  T* get(int64_t count) {
    const size_t bytes = (count * sizeof(T) + 127) / 64 * 64;
    if (bytes > size_) {
      data_.reset();
      data_.reset(static_cast<T*>(std::aligned_alloc(64, bytes)));
      size_ = data_ ? bytes : 0;
      TORCH_CHECK(data_, "out of memory for a work buffer of ", bytes, " bytes");
    }
    return data_.get();
  }

 private:
  struct Free {
    void operator()(T* p) const { std::free(p); }
  };
  std::unique_ptr<T, Free> data_;
  size_t size_ = 0;
};

// at::empty, from memory that dead tensors gave back. What waits for use is never more than what
// was in use at once.
at::Tensor empty(at::IntArrayRef sizes, const at::TensorOptions& options);

}  // namespace dnirnn::cpu
