// The operators' schemas, and the Python module: what is not a tensor operation.
#include <torch/extension.h>
#include <torch/library.h>

#include "cpu/kernels.h"

TORCH_LIBRARY(dnirnn, m) {
  // Layers of one cell (cells.h), N chunks of K steps: (output, sent, synthetic, and the histories h, c, gates, between).
  m.def(
      "tbptt(Tensor x, Tensor state, Tensor? probe, Tensor[] weights, Tensor[] estimator, "
      "int truncation, float scale, Tensor? reset) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // (grad_x, grad_state, grad_probe, grad_weights), each empty where it is not asked for.
  m.def(
      "tbptt_backward(Tensor? grad_output, Tensor? grad_sent, Tensor x, Tensor h, Tensor c, "
      "Tensor gates, Tensor between, Tensor[] weights, Tensor? reset, int truncation, "
      "int probe_rows, bool with_grad_x, bool with_grad_state, bool with_grad_weights) "
      "-> (Tensor, Tensor, Tensor, Tensor[])");
  // One LSTM layer with gates over its state and layer normalisation, N chunks of K steps: (output,
  // sent, and the histories h, c, gates, normed, scales).
  m.def(
      "gated_lstm(Tensor x, Tensor state, Tensor? probe, Tensor[] weights, Tensor[] norm, "
      "Tensor? open_h, Tensor? open_c, Tensor? factor, int truncation, Tensor? reset) "
      "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  // (grad_x, grad_state, grad_probe, grad_weights, grad_norm, grad_open_h, grad_open_c), each empty
  // where it is not asked for.
  m.def(
      "gated_lstm_backward(Tensor? grad_output, Tensor? grad_sent, Tensor x, Tensor h, Tensor c, "
      "Tensor gates, Tensor normed, Tensor scales, Tensor[] weights, Tensor[] norm, "
      "Tensor? open_h, Tensor? open_c, Tensor? factor, Tensor? reset, int truncation, "
      "bool with_grad_x, bool with_grad_state, bool with_grad_probe, bool with_grad_weights, "
      "bool with_grad_open_h, bool with_grad_open_c) "
      "-> (Tensor, Tensor, Tensor, Tensor[], Tensor[], Tensor, Tensor)");
  // LSTM cells that follow each other within a step, N chunks of K steps: (output, sent, and what the
  // backward pass needs, empty without `keep`).
  m.def(
      "lstm_cells(Tensor x, Tensor state, Tensor? probe, int[] cells, Tensor[] weights, "
      "Tensor[] norm, Tensor[] masks, Tensor[] skip, Tensor? slope, int truncation, "
      "Tensor? reset, bool keep) "
      "-> (Tensor, Tensor, Tensor)");
  // (grad_x, grad_state, grad_probe, grad_weights, grad_norm, grad_skip), each empty where it is not
  // asked for.
  m.def(
      "lstm_cells_backward(Tensor? grad_output, Tensor? grad_sent, Tensor x, Tensor kept, "
      "int[] cells, Tensor[] weights, Tensor[] norm, Tensor[] masks, Tensor[] skip, "
      "Tensor? slope, Tensor? reset, int truncation, bool with_grad_x, bool with_grad_state, bool "
      "with_grad_probe, "
      "bool with_grad_weights) -> (Tensor, Tensor, Tensor, Tensor[], Tensor[], Tensor[])");
  // Modules of one layer each, by their periods, plain or LSTMs: (output, the state after them).
  m.def(
      "clockwork(Tensor x, Tensor state, Tensor[] weights, int[] periods, int t0) "
      "-> (Tensor, Tensor)");
  // dnirnn.Masks: which of `size` units are kept at each t [T, B]: bool [T, B, size].
  m.def("masks(Tensor t, Tensor seed, int size, int threshold) -> Tensor");
  // (error, gradients)
  m.def("regression(Tensor entered, Tensor target, Tensor[] estimator) -> (Tensor, Tensor[])");
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def(
      "vector_path", [] { return std::string(dnirnn::cpu::kernels<float>().name); },
      "The vector path in use on this CPU.");
  m.def("multiplies_bfloat16", &dnirnn::cpu::multiplies_bfloat16,
        "Whether this CPU multiplies bfloat16 numbers itself, for tbptt.");
}
