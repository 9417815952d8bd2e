// Two sums that torch takes several kernels for, or a slow one. Each always in one order. No torch, no
// CUDA header.
#pragma once

#include "cuda/lstm.h"

namespace dnirnn::cuda {

// Of a regression on a target: delta = (value - target) / rows, in value's place, and the error, the
// sum of (value - target)^2 / (2 rows).
struct Regression {
  Type type;  // float32 or float64
  int64_t size, rows;
  void* value;
  const void* target;
  double* partial;  // [blocks_of]
  void* error;
};

int blocks_of(const Regression& regression);
void find_errors(const Regression& regression, CUstream_st* stream);

// The gradient of an embedding: sums[v] = sum of the gradients of the rows whose symbol is v.
struct BySymbol {
  Type type;
  const void* gradient;    // [rows, width]
  const int64_t* symbols;  // [rows]
  void* sums;              // [count, width]
  int64_t rows, width, count;
};

void sum_by_symbol(const BySymbol& call, CUstream_st* stream);

}  // namespace dnirnn::cuda
