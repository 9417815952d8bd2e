// LSTM cells that follow each other within a step, on the CPU: what both passes are given.
//
// Letters as in lstm_cells.h and kernels.h. All is computed in T, float for an x of bfloat16. A step
// has two parts for each cell, with a barrier after each: the product of all that the cell reads, of
// which a thread owns columns, and what is computed a row at a time, of which it owns rows. As in
// tbptt.cpp the N chunks are rows of one problem in the backward pass.
#pragma once

#include <vector>

#include "cpu/kernels.h"
#include "cpu/row_cells.h"
#include "lstm_cells.h"

namespace dnirnn::cpu {
namespace {

// The tensors of a call as they are computed with, and where they begin.
template <typename T>
struct CellTensors {
  std::vector<at::Tensor> held;
  std::vector<const T*> weights, norm, skip;
  T slope = 0;
  std::vector<Gate<T>> masks;

  CellTensors(const Network& net, at::TensorList w, const CellOptions& with) {
    for (const at::Tensor& tensor : w) weights.push_back(hold(tensor));
    for (const at::Tensor& tensor : with.norm) norm.push_back(hold(tensor));
    for (const at::Tensor& tensor : with.skip) skip.push_back(hold(tensor));
    if (with.slope) slope = with.slope->template item<T>();
    for (const Cell& cell : net.cells) {
      for (size_t j = 0; !with.masks.empty() && j <= cell.reads.size(); j++) {
        const int64_t units = j < 2 ? cell.H : cell.reads[j - 1].width;
        held.push_back(dense_gate(with.masks[cell.first_mask + j], units));
        masks.emplace_back(held.back());
      }
    }
  }
  const T* hold(const at::Tensor& tensor) {
    held.push_back(tensor.to(c10::CppTypeToScalarType<T>::value).contiguous());
    return held.back().template const_data_ptr<T>();
  }
  // Of what cell l reads at reads[j], j from 1.
  const T* mask(const Cell& cell, size_t j, int64_t t, int64_t b) const {
    return masks.empty() ? nullptr : masks[cell.first_mask + 1 + j].at(t, b);
  }
  const T* bias(const Cell& cell) const { return weights[cell.first_weight + cell.reads.size()]; }
  LstmOptions<T> options(const Network& net, int64_t l, int64_t t, int64_t b) const {
    const Cell& cell = net.cells[l];
    LstmOptions<T> with{};
    if (!norm.empty()) with.gain = norm[net.vectors() * l];
    if (!norm.empty() && !net.detect) with.gain_c = norm[3 * l + 1], with.bias_c = norm[3 * l + 2];
    if (!masks.empty()) {
      with.open_h = masks[cell.first_mask].at(t, b);
      with.open_c = masks[cell.first_mask + 1].at(t, b);
    }
    return with;
  }
};

// `kept`: [K, N, B, width] a section, or [B, width] where a step need not be kept.
template <typename T>
struct Kept {
  T* data;
  int64_t rows, N, B;
  bool whole;

  Kept(T* data, const Sizes& s, bool whole)
      : data(data), rows(whole ? s.K * s.N * s.B : s.B), N(s.N), B(s.B), whole(whole) {}
  T* at(const Section& section, int64_t k, int64_t n, int64_t b) const {
    return data + section.at * rows + ((whole ? (k * N + n) * B : 0) + b) * section.width;
  }
};

// With detectors: what the cell's product of reads[j] is scaled by, of its marks z and z below.
template <typename T>
T scale_of(const Cell& cell, size_t j, const T* marks) {
  const int64_t from = cell.reads[j].from;
  return from == cell.part + 1 ? marks[0] : from == cell.part - 1 && cell.part ? marks[1] : T(1);
}

// copy and keep.
template <typename T>
void shares_of(const T* marks, T* shares) {
  shares[0] = (1 - marks[0]) * (1 - marks[1]);
  shares[1] = (1 - marks[0]) * marks[1];
}

template <typename T>
T dot(const T* a, const T* b, int64_t count) {
  T sums[16] = {};
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    for (int64_t lane = 0; lane < 16; lane++) sums[lane] += a[i + lane] * b[i + lane];
  for (; i < count; i++) sums[0] += a[i] * b[i];
  T total = 0;
  for (const T sum : sums) total += sum;
  return total;
}

template <typename T>
void add_scaled(T* to, T scale, const T* from, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] += scale * from[i];
}

inline int64_t most_of(const Network& net, int64_t Cell::* size) {
  int64_t most = 0;
  for (const Cell& cell : net.cells) most = std::max(most, cell.*size);
  return most;
}

inline int64_t cells_team(const Network& net, int64_t rows, int64_t W) {
  double flops = 0;
  for (const Cell& cell : net.cells) flops += 2.0 * rows * cell.R * cell.D;
  return team_size((most_of(net, &Cell::H) + W - 1) / W, flops / (2 * net.cells.size()));
}

}  // namespace
}  // namespace dnirnn::cpu
