// What the machine's matrix product can do at most: ATen's brgemm, alone, on packed blocks.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/extension.h>

#include <vector>

// Products of [rows, depth] by a weight of [depth, columns], packed in blocks of 32 columns; each
// thread has its share of the blocks, as in a recurrent product.
class Products {
 public:
  Products(int64_t rows, int64_t depth, int64_t columns)
      : rows_(rows), depth_(depth), columns_(columns), a_(rows * depth, 0.5f),
        b_(depth * columns, 0.5f), c_(rows * columns) {}

  // False where this torch has no brgemm in float32.
  bool run(int64_t times) {
#if defined(CPUBLAS_BRGEMM_F32F32F32)
    at::parallel_for(0, columns_ / 32, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = 0; i < times; i++) {
        for (int64_t j = first; j < last; j++) {
          at::native::cpublas::brgemm(rows_, 32, depth_, depth_, 32, columns_, false, a_.data(),
                                      b_.data() + j * depth_ * 32, c_.data() + j * 32);
        }
      }
      at::native::cpublas::brgemm_release(false);
    });
    return true;
#else
    return false;
#endif
  }

 private:
  int64_t rows_, depth_, columns_;
  std::vector<float> a_, b_, c_;
};

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  pybind11::class_<Products>(m, "Products")
      .def(pybind11::init<int64_t, int64_t, int64_t>())
      .def("run", &Products::run);
}
