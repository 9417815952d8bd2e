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

// What the gradients of a step are multiplied by: known before they are.
template <typename V>
struct CellSlopes {
  V h_to_c;      // of c' by h'
  V i, f, g, o;  // of the preactivations by c', of the last by h'
  V c;           // of c by c'
};

// c' is computed again from `gates` and c, so that the history holds only what each step was given.
template <typename M, typename V>
DNIRNN_INLINE CellSlopes<V> cell_slopes(const CellGates<V>& gates, V c) {
  const V tanh_c = M::tanh(gates.f * c + gates.i * gates.g);
  return {gates.o * (V{} + 1 - tanh_c * tanh_c),  gates.g * gates.i * (V{} + 1 - gates.i),
          c * gates.f * (V{} + 1 - gates.f),      gates.i * (V{} + 1 - gates.g * gates.g),
          tanh_c * gates.o * (V{} + 1 - gates.o), gates.f};
}

// From dh, the whole gradient of h', and dc, what came back to c' from the next step: returns the
// gradients of the preactivations, and turns dc into the gradient of c.
template <typename V>
DNIRNN_INLINE CellGates<V> cell_backward(const CellSlopes<V>& slopes, V dh, V& dc) {
  const V through_c = dc + dh * slopes.h_to_c;
  dc = through_c * slopes.c;
  return {through_c * slopes.i, through_c * slopes.f, through_c * slopes.g, dh * slopes.o};
}

}  // namespace
