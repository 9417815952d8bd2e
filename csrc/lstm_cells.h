// LSTM cells that follow each other within a step: what a call is made of, and the checks of its
// arguments, for every device.
//
// Letters as in shape.h, and P parts of the state, D the inputs of a cell. The state [B, S] is h and c
// of each part in turn, then what an option adds. The cells of a step run in their order; each reads
// the h of its own part, then those of other parts or x, and writes h and c of its own part: what a
// cell reads is what the cells before it have written.
#pragma once

#include <tuple>
#include <vector>

#include "sizes.h"

namespace dnirnn {

constexpr int64_t kReadsX = -1;

struct Part {
  int64_t H, h, c;  // units, and where h and c begin in a row of the state
};

struct Read {
  int64_t from, width, column;  // a part or kReadsX, and where it lies among the cell's inputs
};

struct Cell {
  int64_t part, H, D, R;    // R rows of its matrices: 4 H, and one of a detector
  std::vector<Read> reads;  // the cell's own h first
  int64_t first_weight;     // of its tensors in `weights`: one a read, then the bias
  int64_t first_mask;       // of its tensors in `masks`: open_h, open_c, one a read but the first
};

// Where a number of every row lies in `kept`, a section after another: [K, N, B, width].
struct Section {
  int64_t at, width;
};

struct CellSections {
  Section in, c, gates, normed, scales;
  Section raw,
      marks;  // with detectors: what was read, unscaled, but for the cell's own h; z, z below, s
};

// All that is optional: `norm` is gain [4 H], gain_c [H], bias_c [H] of each cell, with detectors gain
// and shift [4 H]; `masks` factors [T or 1, B or 1, H or 1], of no elements where there is none; `skip`
// is w [1, 2 sum of H], b [1]; `slope` [] that of the detectors.
struct CellOptions {
  at::TensorList norm, masks, skip;
  const std::optional<at::Tensor>& slope;
};

struct Network {
  Sizes s;
  std::vector<Part> parts;
  std::vector<Cell> cells;
  bool norm, skip, detect;
  int64_t cells_size;  // of the state, that is of h and c
  // Of the output: h of the last cell; with skip what is held of it, and u; with detectors the h of
  // all cells, and z of all but the last.
  int64_t O;
  std::vector<CellSections> kept;
  Section before, fresh;  // with skip: the state before a step, and h and c as the cells have them
  int64_t kept_width;

  int64_t held() const { return cells_size; }
  int64_t soft() const { return s.S - 1; }
  int64_t z(int64_t part) const { return cells_size + part; }
  int64_t top() const { return cells.back().H; }
  // Tensors of `norm` of a cell.
  int64_t vectors() const { return norm ? (detect ? 2 : 3) : 0; }
};

// (output, sent, kept)
using CellsForwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
// (grad_x, grad_state, grad_probe, grad_weights, grad_norm, grad_skip), each empty where it is not
// asked for.
using CellsBackwardResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, std::vector<at::Tensor>,
                                       std::vector<at::Tensor>, std::vector<at::Tensor>>;

inline void lay_out(Network& net) {
  int64_t at = 0;
  const auto section = [&](int64_t width) {
    const Section found{at, width};
    at += width;
    return found;
  };
  for (const Cell& cell : net.cells) {
    CellSections of;
    of.in = section(cell.D);
    of.c = section(cell.H);
    of.gates = section(4 * cell.H);
    of.normed = section(net.norm ? 4 * cell.H : 0);
    of.scales = section(net.norm ? 4 : 0);
    of.raw = section(net.detect ? cell.D - cell.H : 0);
    of.marks = section(net.detect ? 3 : 0);
    net.kept.push_back(of);
  }
  net.before = section(net.skip ? net.s.S : 0);
  net.fresh = section(net.skip ? net.cells_size : 0);
  net.kept_width = at;
}

// `cells` says of each cell its part, how many parts it reads beside its own, and which.
inline Network network_of(const at::Tensor& x, at::IntArrayRef cells, at::TensorList weights,
                          const CellOptions& with, int64_t truncation) {
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(0) > 0 && x.size(1) > 0,
                    "x must be [T, B, I] with T and B at least 1; got ", x.sizes());
  TORCH_CHECK_VALUE(truncation >= 1, "truncation must be at least 1 step; got ", truncation);
  Network net{};
  Sizes& s = net.s;
  s.T = x.size(0), s.B = x.size(1), s.I = x.size(2), s.L = 1;
  s.K = truncation < s.T ? truncation : s.T;
  s.N = (s.T + s.K - 1) / s.K;
  net.norm = !with.norm.empty();
  net.skip = !with.skip.empty();
  net.detect = with.slope.has_value();

  int64_t weight = 0, mask = 0;
  const auto weight_at = [&](int64_t i) -> const at::Tensor& {
    TORCH_CHECK_VALUE(
        i < static_cast<int64_t>(weights.size()),
        "weights must be w_hh, one w for each part read, and a bias for each cell of ", cells,
        "; got ", weights.size(), " tensors");
    return weights[i];
  };
  for (size_t i = 0; i < cells.size();) {
    TORCH_CHECK_VALUE(
        i + 1 < cells.size() && cells[i + 1] >= 0 && i + 2 + cells[i + 1] <= cells.size(),
        "cells must be, for each, its part, how many it reads and which; got ", cells);
    Cell cell{cells[i], 0, 0, 0, {}, weight, mask};
    const at::Tensor& w_hh = weight_at(weight);
    TORCH_CHECK_VALUE(w_hh.dim() == 2, "weights[", weight, "] (w_hh) must be [4 H, H]; got ",
                      w_hh.sizes());
    cell.H = cell.D = w_hh.size(1);
    cell.R = 4 * cell.H + (net.detect && i + 2 + cells[i + 1] < cells.size());
    cell.reads.push_back({cell.part, cell.H, 0});
    for (int64_t j = 0; j < cells[i + 1]; j++) {
      const at::Tensor& w = weight_at(weight + 1 + j);
      TORCH_CHECK_VALUE(w.dim() == 2, "weights[", weight + 1 + j, "] must be [4 H, width]; got ",
                        w.sizes());
      cell.reads.push_back({cells[i + 2 + j], w.size(1), cell.D});
      cell.D += w.size(1);
    }
    weight_at(weight + cell.reads.size());
    weight += cell.reads.size() + 1;
    mask += cell.reads.size() + 1;
    i += 2 + cells[i + 1];
    if (cell.part == static_cast<int64_t>(net.parts.size())) net.parts.push_back({cell.H, 0, 0});
    TORCH_CHECK_VALUE(cell.part >= 0 && cell.part < static_cast<int64_t>(net.parts.size()) &&
                          net.parts[cell.part].H == cell.H,
                      "the parts of cells must come up in order, each of one size; got ", cells);
    net.cells.push_back(std::move(cell));
  }
  TORCH_CHECK_VALUE(!net.cells.empty(), "cells must be at least one; got ", cells);
  TORCH_CHECK_VALUE(weight == static_cast<int64_t>(weights.size()), "weights must be ", weight,
                    " tensors for the cells ", cells, "; got ", weights.size());
  for (Part& part : net.parts) {
    part.h = net.cells_size, part.c = part.h + part.H;
    net.cells_size += 2 * part.H;
  }
  s.H = net.top();
  const int64_t count = net.cells.size();
  s.S = net.cells_size + (net.skip ? net.top() + 1 : net.detect ? count - 1 : 0);
  net.O = net.detect ? net.cells_size / 2 + count - 1 : net.top() + (net.skip ? 1 : 0);

  const auto held = state_type(x.scalar_type());
  const auto check = [&](const std::string& name, const at::Tensor& tensor, at::IntArrayRef sizes) {
    TORCH_CHECK_VALUE(tensor.sizes() == sizes, name, " must be ", sizes, "; got ", tensor.sizes());
    TORCH_CHECK_VALUE(tensor.device() == x.device(), name, " is on ", tensor.device(), ", x on ",
                      x.device(), ": they must be on one device");
  };
  const auto check_held = [&](const std::string& name, const at::Tensor& tensor) {
    TORCH_CHECK_TYPE(tensor.scalar_type() == held, name, " must be ", held, " for an x of ",
                     x.scalar_type(), "; got ", tensor.scalar_type());
  };
  const auto nth = [](const char* list, int64_t i) {
    return std::string(list) + "[" + std::to_string(i) + "]";
  };
  for (const Cell& cell : net.cells) {
    const int64_t reads = cell.reads.size();
    for (int64_t j = 0; j <= reads; j++) {
      const int64_t i = cell.first_weight + j;
      const at::Tensor& w = weights[i];
      if (j == reads) {
        check(nth("weights", i), w, {cell.R});
      } else {
        const Read& read = cell.reads[j];
        const bool there =
            read.from >= kReadsX && read.from < static_cast<int64_t>(net.parts.size());
        TORCH_CHECK_VALUE(there, "cells must read parts of the state, or x as -1; got ", cells);
        const int64_t width = read.from == kReadsX ? s.I : net.parts[read.from].H;
        check(nth("weights", i), w, {cell.R, width});
      }
      TORCH_CHECK_TYPE(
          w.scalar_type() == x.scalar_type() ||
              (w.scalar_type() == at::kFloat && held == at::kFloat),
          nth("weights", i), " is ", w.scalar_type(), ", x is ", x.scalar_type(),
          ": they must have one dtype, or the weights be float32 beside an x of 16 bits");
    }
  }
  const int64_t vectors = net.vectors();
  TORCH_CHECK_VALUE(static_cast<int64_t>(with.norm.size()) == vectors * count, "norm must be ",
                    net.detect ? "gain, shift" : "gain, gain_c, bias_c", " of each of ", count,
                    " cells, or empty; got ", with.norm.size(), " tensors");
  for (size_t i = 0; i < with.norm.size(); i++) {
    const bool wide = net.detect || i % vectors == 0;
    check(nth("norm", i), with.norm[i], {(wide ? 4 : 1) * net.cells[i / vectors].H});
    check_held(nth("norm", i), with.norm[i]);
  }
  TORCH_CHECK_VALUE(
      with.masks.empty() || static_cast<int64_t>(with.masks.size()) == mask,
      "masks must be open_h, open_c and one for each part read, of each cell, or empty:"
      " ",
      mask, " tensors; got ", with.masks.size());
  for (const Cell& cell : net.cells) {
    for (size_t j = 0; !with.masks.empty() && j <= cell.reads.size(); j++) {
      const at::Tensor& m = with.masks[cell.first_mask + j];
      if (m.numel() == 0) continue;
      const int64_t sizes[] = {s.T, s.B, j < 2 ? cell.H : cell.reads[j - 1].width};
      bool fits = m.dim() == 3;
      for (int64_t i = 0; fits && i < 3; i++) fits = m.size(i) == 1 || m.size(i) == sizes[i];
      TORCH_CHECK_VALUE(fits, nth("masks", cell.first_mask + j), " must be [", s.T, " or 1, ", s.B,
                        " or 1, ", sizes[2], " or 1]; got ", m.sizes());
      check_held(nth("masks", cell.first_mask + j), m);
    }
  }
  TORCH_CHECK_VALUE(!net.skip || with.skip.size() == 2, "skip must be w and b, or empty; got ",
                    with.skip.size(), " tensors");
  if (net.skip) {
    check("skip[0] (w)", with.skip[0], {1, net.cells_size});
    check("skip[1] (b)", with.skip[1], {1});
    for (int64_t i = 0; i < 2; i++) check_held(nth("skip", i), with.skip[i]);
  }
  if (net.detect) {
    TORCH_CHECK_VALUE(!net.skip && with.masks.empty(), "slope goes without skip and masks");
    check("slope", *with.slope, {});
    for (int64_t l = 0; l < count; l++) {
      const Cell& cell = net.cells[l];
      bool layers = cell.part == l;
      for (const Read& read : cell.reads) layers &= read.from >= l - 1 && read.from <= l + 1;
      TORCH_CHECK_VALUE(layers,
                        "with a slope each cell must have a part of its own, in order, and "
                        "read the one below, or x, and the one above; got ",
                        cells);
    }
  }
  lay_out(net);
  return net;
}

}  // namespace dnirnn
