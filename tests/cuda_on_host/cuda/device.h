// Stands for csrc/cuda/device.h: the kernels as loops and fibers of the host, to find their bugs on
// a machine without a GPU.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

struct CUstream_st;

namespace dnirnn::cuda {

struct BFloat16 {
  uint16_t bits;
};
using Half = _Float16;

inline float widen(float value) { return value; }
inline double widen(double value) { return value; }
inline float widen(Half value) { return value; }
inline float widen(BFloat16 value) {
  const uint32_t bits = uint32_t(value.bits) << 16;
  float wide;
  std::memcpy(&wide, &bits, 4);
  return wide;
}

template <typename V, typename S>
V narrow(S value) {
  if constexpr (std::is_same_v<V, BFloat16>) {
    const float single = value;
    uint32_t bits;
    std::memcpy(&bits, &single, 4);
    if (std::isnan(single)) return {0x7fff};
    return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
  } else {
    return static_cast<V>(value);
  }
}

template <typename V>
struct Math {
  template <typename S>
  static S sigmoid(S x) {
    return 1 / (1 + std::exp(-x));
  }
  template <typename S>
  static S tanh(S x) {
    return std::tanh(x);
  }
};

inline thread_local int current_index;
inline int index() { return current_index; }

// Some threads more than asked for, as on the device; the last ones first.
template <typename... Parameters, typename... Arguments>
void for_each(int64_t count, CUstream_st*, void (*kernel)(Parameters...), Arguments... arguments) {
  for (int64_t i = count + 5; i-- > 0;) {
    current_index = i;
    kernel(arguments...);
  }
}

// Blocks that work together: each thread a fiber. A warp chosen at random runs as far as it can, so
// that it is ahead of the others wherever they do not wait for each other.

struct Fiber {
  ucontext_t start;
  jmp_buf at;  // where it left off: no system call, as a change of contexts would be
  bool begun = false;
  std::unique_ptr<char[]> stack;
  int thread, block, warp;
};

// Fibers that wait until `count` of them do.
struct Meeting {
  std::vector<Fiber*> waiting;
};

struct Warp {
  Meeting here, done;
  uint32_t a[32][4], b[32][2], given[32];
};

struct Block {
  Meeting here;
  std::vector<float> shared;
  std::vector<Warp> warps;
};

constexpr int kCluster = 4;

struct Grid {
  std::function<void()> kernel;
  std::vector<Fiber> fibers;
  std::vector<Block> blocks;
  std::vector<Meeting> clusters;
  std::vector<std::vector<Fiber*>> ready;  // of each warp
  std::vector<int> going;                  // the warps that have some
  jmp_buf home;
  Fiber* now = nullptr;
  int finished = 0;
  size_t at = 0;  // the warp at hand, in `going`
  uint32_t random = 1;

  void leave() {
    if (!_setjmp(now->at)) _longjmp(home, 1);
  }
  void go_on(Fiber* fiber) {
    const int warp = fiber->warp;
    if (ready[warp].empty()) going.push_back(warp);
    ready[warp].push_back(fiber);
  }
  void yield() {
    go_on(now);
    at = going.size();
    leave();
  }
  void meet(Meeting& meeting, size_t count) {
    meeting.waiting.push_back(now);
    if (meeting.waiting.size() == count) {
      for (Fiber* fiber : meeting.waiting) go_on(fiber);
      meeting.waiting.clear();
    }
    leave();
  }
  size_t draw(size_t below) {
    random = random * 1664525 + 1013904223;
    return random / 65536 % below;
  }
  void run() {
    while (!going.empty()) {
      if (at >= going.size() || draw(4096) == 0) at = draw(going.size());
      auto& mine = ready[going[at]];
      now = mine.back();
      mine.pop_back();
      if (mine.empty()) {
        going[at] = going.back();
        going.pop_back();
      }
      if (_setjmp(home)) continue;
      if (now->begun) _longjmp(now->at, 1);
      now->begun = true;
      setcontext(&now->start);
    }
    if (finished != int(fibers.size())) die("threads wait for others that never come");
  }
  [[noreturn]] static void die(const char* what) {
    std::fprintf(stderr, "cuda_on_host: %s\n", what);
    std::abort();
  }
};

inline Grid* grid;
inline int64_t grids_started = 0;

inline int thread() { return grid->now->thread; }
inline int block() { return grid->now->block; }
inline Block& this_block() { return grid->blocks[block()]; }
inline void sync() { grid->meet(this_block().here, this_block().warps.size() * 32); }
inline float* shared_memory() { return this_block().shared.data(); }

template <typename Vector>
Vector load(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Vector)) Grid::die("a load that is not aligned");
  Vector found;
  std::memcpy(&found, from, sizeof(Vector));
  return found;
}
struct alignas(16) Four {
  float of[4];
};

// Words of a vector are loaded at different times: others may write one in between.
template <typename Vector>
Vector load_from_others(const void* from) {
  Vector found = load<Vector>(from);
  if (grid->draw(64) == 0) {
    grid->yield();
    const int later = grid->draw(sizeof(Vector) / 4);
    std::memcpy(&found.word[later], static_cast<const char*>(from) + 4 * later, 4);
  }
  return found;
}

inline void store_for_others(void* to, uint32_t word) {
  if (reinterpret_cast<uintptr_t>(to) % 4) Grid::die("a store that is not aligned");
  std::memcpy(to, &word, 4);
}

constexpr uint32_t kUnsent = 0xffffffff;

// What thread `from` of the warp gives.
inline uint32_t given_by(int from, uint32_t given) {
  Warp& warp = this_block().warps[thread() / 32];
  warp.given[thread() % 32] = given;
  grid->meet(warp.here, 32);
  const uint32_t found = warp.given[from];
  grid->meet(warp.done, 32);
  return found;
}

inline uint32_t which_of_warp(bool said) {
  uint32_t which = 0;
  Warp& warp = this_block().warps[thread() / 32];
  warp.given[thread() % 32] = said;
  grid->meet(warp.here, 32);
  for (int i = 0; i < 32; i++) which |= uint32_t(warp.given[i] != 0) << i;
  grid->meet(warp.done, 32);
  return which;
}

inline bool any_of_warp(bool said) {
  const bool any = which_of_warp(said) != 0;
  if (any) grid->yield();
  return any;
}

inline uint32_t of_neighbor(uint32_t given) { return given_by(thread() % 32 ^ 1, given); }

inline int rank_in_cluster() { return block() % kCluster; }

inline void sync_cluster() {
  grid->meet(grid->clusters[block() / kCluster], this_block().warps.size() * 32 * kCluster);
}

inline void store_to(int rank, float* here, const Four& values) {
  if (reinterpret_cast<uintptr_t>(here) % 16) Grid::die("a store that is not aligned");
  Block& there = grid->blocks[block() / kCluster * kCluster + rank];
  std::memcpy(there.shared.data() + (here - shared_memory()), &values, sizeof values);
}

inline double load_arrived(const double* from) { return *from; }

inline void arrive(unsigned* arrived) {
  sync();
  if (thread() == 0) ++*arrived;
}
inline void wait_for(const unsigned* arrived, unsigned expected) {
  if (thread() == 0)
    while (*arrived < expected) grid->yield();
  sync();
}

inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline uint32_t as_tf32(uint32_t value) {
  if ((value & 0x7fffffff) > 0x7f800000) return value;  // not a number
  return (value + 0x1000) & ~0x1fffu;
}
inline uint32_t rest_of(uint32_t value, uint32_t rounded) {
  return bits_of(float_of(value) - float_of(rounded));
}

// Value i of a register: one tf32, of which the unit reads the upper 19 bits, or two of 16 bits.
template <typename V>
float value_of(uint32_t word, int i) {
  if constexpr (std::is_same_v<V, float>) {
    return float_of(word & ~0x1fffu);
  } else {
    const auto bits = static_cast<uint16_t>(word >> (16 * i));
    V value;
    std::memcpy(&value, &bits, 2);
    return widen(value);
  }
}

template <typename V>
void mma(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  Warp& warp = this_block().warps[thread() / 32];
  const int lane = thread() % 32, g = lane / 4, q = lane % 4;
  std::memcpy(warp.a[lane], a, sizeof(a));
  std::memcpy(warp.b[lane], b, sizeof(b));
  grid->meet(warp.here, 32);
  for (int i = 0; i < 4; i++) {
    const int column = 2 * q + i % 2;
    for (int k = 0; k < 8; k++)  // the fragments' words, of which thread k % 4 has words k / 4
      for (int half = 0; half < 4 / int(sizeof(V)); half++)
        sum[i] += value_of<V>(warp.a[g * 4 + k % 4][k / 4 * 2 + i / 2], half) *
                  value_of<V>(warp.b[column * 4 + k % 4][k / 4], half);
  }
  grid->meet(warp.done, 32);
}

// Few, so that small layers take several groups of blocks and tiles of rows.
inline int64_t multiprocessors_there = 12;
inline int multiprocessors() { return multiprocessors_there; }
inline bool has_mma() { return true; }
inline bool has_clusters() { return true; }

template <typename... Parameters>
int64_t blocks_at_once(int, size_t, void (*)(Parameters...)) {
  return 2 * multiprocessors();
}
template <typename... Parameters>
int64_t clusters_at_once(int, size_t, void (*)(Parameters...)) {
  return 2 * multiprocessors() / kCluster;
}

// The blocks first to first + count - 1, at once.
template <typename... Parameters, typename... Arguments>
void run_blocks(int64_t first, int64_t count, int threads, size_t shared_bytes,
                void (*kernel)(Parameters...), Arguments... arguments) {
  Grid all;
  grid = &all;
  all.kernel = [&] { kernel(arguments...); };
  all.blocks.resize(first + count);
  all.clusters.resize((first + count) / kCluster);
  for (int64_t i = first; i < first + count; i++) {
    all.blocks[i].shared.assign((shared_bytes + 3) / 4, NAN);
    all.blocks[i].warps.resize(threads / 32);
  }
  all.fibers.resize(count * threads);
  all.ready.resize(count * threads / 32);
  constexpr size_t kStack = 64 << 10;
  for (size_t i = 0; i < all.fibers.size(); i++) {
    Fiber& fiber = all.fibers[i];
    fiber.block = first + i / threads;
    fiber.thread = i % threads;
    fiber.warp = i / 32;
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    makecontext(&fiber.start, +[] {
      grid->kernel();
      grid->finished++;
      _longjmp(grid->home, 1);
    }, 0);
    all.go_on(&fiber);
  }
  all.run();
}

template <typename... Parameters, typename... Arguments>
void start_blocks(int64_t blocks, int threads, size_t shared_bytes, CUstream_st*,
                  void (*kernel)(Parameters...), Arguments... arguments) {
  for (int64_t i = blocks; i-- > 0;) run_blocks(i, 1, threads, shared_bytes, kernel, arguments...);
}

template <typename... Parameters, typename... Arguments>
void start_together(int64_t blocks, int threads, size_t shared_bytes, CUstream_st*,
                    void (*kernel)(Parameters...), Arguments... arguments) {
  if (blocks > 2 * multiprocessors()) Grid::die("more blocks than run at once");
  grids_started++;
  run_blocks(0, blocks, threads, shared_bytes, kernel, arguments...);
}

template <typename... Parameters, typename... Arguments>
void start_in_clusters(int64_t blocks, int threads, size_t shared_bytes, CUstream_st* stream,
                       void (*kernel)(Parameters...), Arguments... arguments) {
  if (blocks % kCluster) Grid::die("a cluster that is not whole");
  start_together(blocks, threads, shared_bytes, stream, kernel, arguments...);
}

}  // namespace dnirnn::cuda
