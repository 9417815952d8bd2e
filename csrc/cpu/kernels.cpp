// Chooses the vector path.
#include "cpu/kernels.h"

#include <ATen/Version.h>
#include <c10/util/Exception.h>

#include <string>

namespace dnirnn::cpu {

template <typename T>
const Kernels<T>& kernels() {
#if defined(__x86_64__)
  static const Kernels<T>& chosen = []() -> const Kernels<T>& {
    // ATen's choice follows the CPU and ATEN_CPU_CAPABILITY, and is made once a process.
    const std::string capability = at::get_cpu_capability();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool has_avx512 =
        has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (has_avx512 && capability.rfind("AVX512", 0) == 0) return avx512::table<T>();
    if (has_avx2 && capability.rfind("AVX", 0) == 0) return avx2::table<T>();
    return generic::table<T>();
  }();
  return chosen;
#else
  return generic::table<T>();
#endif
}

bool multiplies_bfloat16() {
#if defined(__x86_64__)
  static const bool does = std::string(kernels<float>().name) == avx512::table<float>().name &&
                           __builtin_cpu_supports("avx512bf16");
  return does;
#else
  return false;
#endif
}

template <>
const Kernels<bfloat16>& kernels<bfloat16>() {
#if defined(__x86_64__)
  return avx512_bfloat16::table<bfloat16>();
#else
  TORCH_CHECK(false, "this CPU does not multiply bfloat16");
#endif
}

template const Kernels<float>& kernels<float>();
template const Kernels<double>& kernels<double>();

}  // namespace dnirnn::cpu
