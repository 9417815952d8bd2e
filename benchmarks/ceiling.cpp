// What the machine's matrix product can do at most: ATen's brgemm, alone, on packed blocks.
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <torch/extension.h>

#include <vector>

#if defined(CPUBLAS_BRGEMM_F32F32F32)
constexpr bool kFloat = true;
#else
constexpr bool kFloat = false;
#endif
#if defined(CPUBLAS_BRGEMM_BF16BF16F32)
constexpr bool kBFloat16 = true;
#else
constexpr bool kBFloat16 = false;
#endif

// Products of [rows, depth] by a weight of [depth, columns], packed in blocks of 32 columns (of
// bfloat16, whose layout takes two rows at once, [depth / 2][32][2]); each thread has its share of
// the blocks, as in a recurrent product.
template <typename T, bool Present>
class Products {
 public:
  Products(int64_t rows, int64_t depth, int64_t columns)
      : rows_(rows), depth_(depth), columns_(columns), a_(rows * depth, 0.5f),
        b_(depth * columns, 0.5f), c_(rows * columns) {}

  // False where this torch has no brgemm of T.
  bool run(int64_t times) {
    if constexpr (Present) {
      constexpr bool pairs = sizeof(T) == 2;
      at::parallel_for(0, columns_ / 32, 1, [&](int64_t first, int64_t last) {
        for (int64_t i = 0; i < times; i++) {
          for (int64_t j = first; j < last; j++) {
            at::native::cpublas::brgemm(rows_, 32, depth_, depth_, 32, columns_, false, a_.data(),
                                        b_.data() + j * depth_ * 32, c_.data() + j * 32, pairs);
          }
        }
        at::native::cpublas::brgemm_release(pairs);
      });
    }
    return Present;
  }

 private:
  int64_t rows_, depth_, columns_;
  std::vector<T> a_, b_;
  std::vector<float> c_;
};

template <typename P>
void bind(pybind11::module& m, const char* name) {
  pybind11::class_<P>(m, name)
      .def(pybind11::init<int64_t, int64_t, int64_t>())
      .def("run", &P::run);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  bind<Products<float, kFloat>>(m, "Products");
  bind<Products<at::BFloat16, kBFloat16>>(m, "BFloat16Products");
}
