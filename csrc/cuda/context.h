// What the drivers use of torch on a GPU. tests/cuda_on_host has a header of the same name, with
// which they run on tensors of the CPU: what a driver needs of the device goes through here.
#pragma once

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <c10/core/Event.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <mutex>
#include <optional>

// The key that the operators are registered under.
#define DNIRNN_DEVICE CUDA

namespace dnirnn::cuda {

inline CUstream_st* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

// Raises what the launch before it was refused for.
inline void check_launch() { C10_CUDA_KERNEL_LAUNCH_CHECK(); }

// Fills a tensor in rows with kUnsent.
inline void make_unsent(const at::Tensor& tensor) {
  C10_CUDA_CHECK(
      cudaMemsetAsync(tensor.mutable_data_ptr(), 0xff, tensor.nbytes(), current_stream()));
}

// out = a b, summed in out's dtype: that of a and b, or float32 for 16-bit ones.
inline void multiply(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == out.scalar_type())
    at::mm_out(out, a, b);
  else
    at::mm_out(out, a, b, out.scalar_type());
}

// out += a b, summed in out's dtype.
inline void add_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == out.scalar_type())
    at::addmm_out(out, out, a, b);
  else
    at::addmm_out(out, out, a, b, out.scalar_type());
}

// Work that the current stream does not wait for while this lives, where that stream is being captured
// in a graph: there, kernels that do not need each other run at once. Elsewhere it is the host that is
// waited for, and the work goes to the current stream. What it allocates must not outlive this.
class Beside {
 public:
  Beside() : main_(c10::cuda::getCurrentCUDAStream()), side_(c10::cuda::getStreamFromPool()) {
    capturing_ =
        c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
    if (capturing_) wait(side_, main_);
  }
  ~Beside() {
    if (capturing_) wait(main_, side_);
  }
  Beside(const Beside&) = delete;
  template <typename Work>
  void run(Work work) {
    std::optional<c10::cuda::CUDAStreamGuard> there;
    if (capturing_) there.emplace(side_);
    work();
  }

 private:
  static void wait(c10::cuda::CUDAStream one, c10::cuda::CUDAStream other) {
    c10::Event event(c10::DeviceType::CUDA);
    event.record(other.unwrap());
    event.block(one.unwrap());
  }
  c10::cuda::CUDAStream main_, side_;
  bool capturing_;
};

// While it lives, float32 products use tf32 where torch.nn.LSTM would: matrix products have another
// switch (torch.backends.cuda.matmul against torch.backends.cudnn), which only the thread may turn
// off, and only the process on.
class Tf32AsInTorchLstm {
 public:
  explicit Tf32AsInTorchLstm(at::ScalarType type) {
    if (type != at::kFloat) return;
    at::Context& context = at::globalContext();
    if (!context.allowTF32CuDNN(at::Float32Op::RNN)) {
      off_.emplace();
      return;
    }
    alone_ = std::unique_lock(mutex());
    before_ = context.float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL);
    set(at::Float32Precision::TF32);
  }
  ~Tf32AsInTorchLstm() {
    if (alone_.owns_lock()) set(before_);
  }
  Tf32AsInTorchLstm(const Tf32AsInTorchLstm&) = delete;

 private:
  static std::mutex& mutex() {
    static std::mutex one;
    return one;
  }
  static void set(at::Float32Precision precision) {
    at::globalContext().setFloat32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL,
                                            precision);
  }

  std::optional<at::NoTF32Guard> off_;
  std::unique_lock<std::mutex> alone_;
  at::Float32Precision before_{};
};

}  // namespace dnirnn::cuda
