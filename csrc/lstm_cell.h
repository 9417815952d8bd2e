// The equations of the LSTM cell, once, for the host and the device.
//
// V is a scalar or a vector of lanes; M supplies sigmoid and tanh on it.
//   i, f, o = sigmoid(pre),  g = tanh(pre),  c' = f c + i g,  h' = o tanh(c')
#pragma once

#include "inline.h"

namespace {

template <typename V>
struct CellGates {
  V i, f, g, o;
};

// Turns the preactivations in `gates` into gates, and (c) into (c'); returns h'.
template <typename M, typename V>
DNIRNN_INLINE V cell_forward(CellGates<V>& gates, V& c) {
  gates.i = M::sigmoid(gates.i);
  gates.f = M::sigmoid(gates.f);
  gates.g = M::tanh(gates.g);
  gates.o = M::sigmoid(gates.o);
  c = gates.f * c + gates.i * gates.g;
  return gates.o * M::tanh(c);
}

// From dh, the whole gradient of h', and dc, what came back to c' from the next step: returns the
// gradients of the preactivations, and turns dc into the gradient of c. c' is computed again from
// `gates` and c, so that the history holds only what each step was given.
template <typename M, typename V>
DNIRNN_INLINE CellGates<V> cell_backward(const CellGates<V>& gates, V c, V dh, V& dc) {
  const V tanh_c = M::tanh(gates.f * c + gates.i * gates.g);
  const V through_c = dc + dh * gates.o * (V{} + 1 - tanh_c * tanh_c);
  CellGates<V> d;
  d.i = through_c * gates.g * gates.i * (V{} + 1 - gates.i);
  d.f = through_c * c * gates.f * (V{} + 1 - gates.f);
  d.g = through_c * gates.i * (V{} + 1 - gates.g * gates.g);
  d.o = dh * tanh_c * gates.o * (V{} + 1 - gates.o);
  dc = through_c * gates.f;
  return d;
}

}  // namespace
