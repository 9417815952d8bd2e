// The kernels of all steps of a layer without torch: checked against products done naively, and timed.
// nvcc -O3 -std=c++20 -arch=sm_90 -I csrc -o on_chip benchmarks/on_chip.cu && ./on_chip
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cuda/on_chip.cu"
#include "cuda/steps.cu"

namespace dnirnn::cuda {
namespace {

void check(cudaError_t error, int line) {
  if (error == cudaSuccess) return;
  std::printf("line %d: %s\n", line, cudaGetErrorString(error));
  std::exit(1);
}
#define CHECK(call) check(call, __LINE__)

// Values between -scale and scale, by their places.
template <typename V>
__global__ void draw(V* to, int64_t count, float scale, uint32_t seed) {
  for (int64_t i = index(); i < count; i += int64_t(gridDim.x) * blockDim.x) {
    uint32_t bits = uint32_t(i) * 2654435761u + seed;
    bits = (bits ^ bits >> 16) * 0x85ebca6bu;
    bits = (bits ^ bits >> 13) * 0xc2b2ae35u;
    to[i] = narrow<V>((float(bits ^ bits >> 16) / 2147483648.f - 1) * scale);
  }
}

// out [rows, columns] (+)= a [rows, depth] b, where b is [depth, columns], or turned.
template <typename V>
__global__ void multiply_naively(float* out, const V* a, const V* b, int rows, int columns,
                                 int depth, bool turned, bool add) {
  const int i = index(), row = i / columns, column = i % columns;
  if (row >= rows) return;
  double sum = add ? out[i] : 0;
  for (int k = 0; k < depth; k++)
    sum += widen(a[int64_t(row) * depth + k]) *
           widen(b[turned ? int64_t(column) * depth + k : int64_t(k) * columns + column]);
  out[i] = float(sum);
}

template <typename V>
__global__ void widen_all(float* to, const V* from, int64_t count) {
  for (int64_t i = index(); i < count; i += int64_t(gridDim.x) * blockDim.x) to[i] = widen(from[i]);
}

template <typename V>
struct Layer {
  Sizes s;
  Type type;
  Products products;
  cudaStream_t stream;
  std::vector<void*> held;
  V *w, *h, *output, *d, *grad_output;
  float *state, *probe, *bias, *c, *gates, *sums, *sent, *grad_sent, *dc, *grad_probe, *grad_state,
      *dh;

  Layer(int H, int B, int T, int N, Type type, Products products, cudaStream_t stream)
      : type(type), products(products), stream(stream) {
    s = Sizes{T, B, H, H, 1, 2 * H, N, (T + N - 1) / N};
    const int64_t cells = rows() * H, states = s.N * s.B * s.S;
    w = drawn<V>(4 * s.H * s.H, 1.7f / std::sqrt(float(H)), 1);
    state = drawn<float>(s.B * s.S, 1, 2);
    bias = drawn<float>(4 * s.H, 0.3f, 3);
    sums = drawn<float>(4 * cells, 1.5f, 4);
    grad_output = drawn<V>(cells, 1, 5);
    grad_sent = drawn<float>(states, 1, 6);
    probe = drawn<float>(states, 0.1f, 7);
    h = made<V>(cells), output = made<V>(cells), d = made<V>(4 * cells);
    c = made<float>(cells), gates = made<float>(4 * cells), sent = made<float>(states);
    dc = made<float>(states), dh = made<float>(states), grad_probe = made<float>(states);
    grad_state = made<float>(s.B * s.S);
  }
  Layer(const Layer&) = delete;
  ~Layer() {
    for (void* one : held) cudaFree(one);
  }

  template <typename T>
  T* made(int64_t count) {
    void* memory;
    CHECK(cudaMalloc(&memory, count * sizeof(T)));
    CHECK(cudaMemset(memory, 0, count * sizeof(T)));
    held.push_back(memory);
    return static_cast<T*>(memory);
  }
  template <typename T>
  T* drawn(int64_t count, float scale, uint32_t seed) {
    T* values = made<T>(count);
    draw<T><<<256, 256, 0, stream>>>(values, count, scale, seed);
    return values;
  }
  int64_t rows() const { return s.K * s.N * s.B; }
  Forward pass() const {
    return {s, type, 0, false, false, state, probe, nullptr, w, bias, h, c, gates, output, sent};
  }
  Backward pass_back() const {
    return {s, type, 0,     false, grad_output, nullptr,    grad_sent, nullptr,
            w, c,    gates, d,     dc,          grad_probe, grad_state};
  }
  int64_t room(bool back) const { return room_on_chip(s, type, products, back); }
  bool fits(bool back) const { return room(back) > 0; }

  void forward() {
    CHECK(cudaMemsetAsync(h, 0xff, rows() * s.H * sizeof(V), stream));
    enter(pass(), stream);
    steps_on_chip(pass(), products, room(false), stream);
  }
  void backward() {
    CHECK(cudaMemsetAsync(d, 0xff, rows() * 4 * s.H * sizeof(V), stream));
    steps_back_on_chip(pass_back(), products, room(true), stream);
  }
  void multiply(float* out, const V* a, int64_t rows, bool back) {
    const int columns = back ? s.H : 4 * s.H, depth = back ? 4 * s.H : s.H;
    for_each(rows * columns, stream, multiply_naively<V>, out, a, static_cast<const V*>(w),
             int(rows), columns, depth, !back, !back);
  }
  void forward_naively() {
    enter(pass(), stream);
    for (int64_t t = 0; t < s.T; t++) {
      const int64_t row = (t % s.K * s.N + t / s.K) * s.B;
      multiply(gates + row * 4 * s.H, h + row * s.H, s.B, false);
      step(pass(), t, stream);
    }
  }
  void backward_naively() {
    for (int64_t k = s.K - 1; k >= 0; k--) {
      step_back(pass_back(), k, dh, stream);
      multiply(dh, d + k * s.N * s.B * 4 * s.H, s.N * s.B, true);
    }
    leave(pass_back(), dh, stream);
  }
  void begin() {
    CHECK(
        cudaMemcpyAsync(gates, sums, rows() * 4 * s.H * sizeof(float), cudaMemcpyDefault, stream));
  }

  template <typename T>
  std::vector<float> read(const T* from, int64_t count) {
    float* wide = made<float>(count);
    widen_all<T><<<512, 256, 0, stream>>>(wide, from, count);
    std::vector<float> found(count);
    CHECK(cudaMemcpyAsync(found.data(), wide, count * sizeof(float), cudaMemcpyDefault, stream));
    CHECK(cudaStreamSynchronize(stream));
    return found;
  }
  // |one - other| / |other|; nan counts.
  static double apart(const std::vector<float>& one, const std::vector<float>& other) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < one.size(); i++) {
      difference += std::pow(double(one[i]) - other[i], 2);
      size += std::pow(double(other[i]), 2);
    }
    return std::sqrt(difference / size);
  }

  // Both ways from the same sums; how far apart what they give is.
  bool agree(const char* name, double tolerance) {
    begin(), forward();
    const auto output_of = read(output, s.T * s.B * s.H);
    const auto sent_of = read(sent, s.N * s.B * s.S);
    begin(), forward_naively();
    double worst = std::max(apart(output_of, read(output, s.T * s.B * s.H)),
                            apart(sent_of, read(sent, s.N * s.B * s.S)));
    if (fits(true)) {
      backward();
      const auto d_of = read(d, rows() * 4 * s.H), probe_of = read(grad_probe, s.N * s.B * s.S);
      backward_naively();
      worst = std::max({worst, apart(d_of, read(d, rows() * 4 * s.H)),
                        apart(probe_of, read(grad_probe, s.N * s.B * s.S))});
    }
    CHECK(cudaGetLastError());
    const bool good = worst <= tolerance;
    if (!good)
      std::printf("%s H %d B %d T %d N %d: %.1e apart\n", name, int(s.H), int(s.B), int(s.T),
                  int(s.N), worst);
    return good;
  }

  // The least of five replays of ten calls in a graph, in microseconds a call.
  template <typename Call>
  float time(Call call) {
    constexpr int kCalls = 10;
    cudaGraph_t graph;
    cudaGraphExec_t replayed;
    call();
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
    for (int i = 0; i < kCalls; i++) call();
    CHECK(cudaStreamEndCapture(stream, &graph));
    CHECK(cudaGraphInstantiate(&replayed, graph, 0));
    cudaEvent_t from, to;
    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    float least = INFINITY;
    for (int i = 0; i < 6; i++) {
      float milliseconds;
      CHECK(cudaEventRecord(from, stream));
      CHECK(cudaGraphLaunch(replayed, stream));
      CHECK(cudaEventRecord(to, stream));
      CHECK(cudaEventSynchronize(to));
      CHECK(cudaEventElapsedTime(&milliseconds, from, to));
      if (i > 0) least = std::min(least, milliseconds);
    }
    cudaGraphExecDestroy(replayed);
    cudaGraphDestroy(graph);
    return least / kCalls * 1e3f;
  }
};

template <typename V>
bool agree(const char* name, Type type, Products products, double tolerance, cudaStream_t stream) {
  bool good = true;
  for (int H : {64, 200, 256, 512, 768, 1024})
    for (int B : {5, 37, 128})
      for (int N : {1, 2, 3}) {
        Layer<V> layer(H, B, 7, N, type, products, stream);
        if (layer.fits(false)) good &= layer.agree(name, tolerance);
      }
  std::printf("%s: %s\n", name, good ? "agrees with products done naively" : "DOES NOT AGREE");
  return good;
}

template <typename V>
void measure(const char* name, Type type, Products products, cudaStream_t stream) {
  for (int H : {256, 512, 768, 1024})
    for (int B : {16, 32, 64, 128, 256}) {
      float times[3][2];  // of 8 steps, 40, and 40 in 5 chunks; forwards and back
      for (int i = 0; i < 3; i++) {
        Layer<V> layer(H, B, i == 0 ? 8 : 40, i == 2 ? 5 : 1, type, products, stream);
        times[i][0] = layer.fits(false) ? layer.time([&] { layer.forward(); }) : NAN;
        times[i][1] = layer.fits(true) ? layer.time([&] { layer.backward(); }) : NAN;
      }
      std::printf("%-8s %5d %4d | %7.1f %7.1f %6.2f | %7.1f %7.1f %6.2f | %7.1f\n", name, H, B,
                  times[0][0], times[1][0], (times[1][0] - times[0][0]) / 32, times[0][1],
                  times[1][1], (times[1][1] - times[0][1]) / 32, times[2][1]);
      std::fflush(stdout);
    }
}

}  // namespace
}  // namespace dnirnn::cuda

int main() {
  using namespace dnirnn::cuda;
  cudaStream_t stream;
  CHECK(cudaStreamCreate(&stream));
  bool good = agree<BFloat16>("bfloat16", Type::kBFloat16, Products::kTf32, 1e-2, stream);
  good &= agree<Half>("float16", Type::kHalf, Products::kTf32, 2e-3, stream);
  good &= agree<float>("tf32", Type::kFloat, Products::kTf32, 2e-3, stream);
  good &= agree<float>("float32", Type::kFloat, Products::kExact, 1e-5, stream);
  std::printf(
      "\nmicroseconds    H    B | forward: T 8, 40, a step | back: T 8, 40, a step | 5 chunks of "
      "8\n");
  measure<BFloat16>("bfloat16", Type::kBFloat16, Products::kTf32, stream);
  measure<float>("tf32", Type::kFloat, Products::kTf32, stream);
  measure<float>("float32", Type::kFloat, Products::kExact, stream);
  return !good;
}
