// What the drivers share whose cells are computed a row at a time: products of which a thread owns
// columns, cells of which it owns rows.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "cpu/team.h"

namespace dnirnn::cpu {
namespace {

// Rows whose products of x are made at once, and whose gate gradients are collected before they go
// into the weights' gradients.
constexpr int64_t kGroupRows = 1024;

// A tensor [T or 1, B or 1, H or 1], or nothing.
template <typename T>
struct Gate {
  const T* data;
  int64_t step, row;

  explicit Gate(const at::Tensor& dense)
      : data(dense.defined() ? dense.const_data_ptr<T>() : nullptr),
        step(dense.defined() && dense.size(0) > 1 ? dense.stride(0) : 0),
        row(dense.defined() && dense.size(1) > 1 ? dense.stride(1) : 0) {}
  const T* at(int64_t t, int64_t b) const { return data ? data + t * step + b * row : nullptr; }
};

// Calls each(column, columns) for this member's share of the columns, in panels of at most 4 W.
template <typename F>
void panels_of(const Member& me, int64_t columns, int64_t W, const F& each) {
  const int64_t units = (columns + W - 1) / W;
  const int64_t last = std::min(me.last(units) * W, columns);
  for (int64_t j = me.first(units) * W; j < last; j += 4 * W) each(j, std::min(4 * W, last - j));
}

inline int64_t padded(int64_t columns, int64_t W) { return (columns + W - 1) / W * W; }

// A gate with its units one behind the other.
inline at::Tensor dense_gate(const std::optional<at::Tensor>& gate, int64_t units) {
  if (!gate || gate->numel() == 0) return {};
  return (gate->size(2) == units ? *gate : gate->expand({-1, -1, units})).contiguous();
}

}  // namespace
}  // namespace dnirnn::cpu
