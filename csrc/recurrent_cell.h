// The equations of the plain recurrent cell and of the gated recurrent unit, once, for the host and
// the device.
//
// V is a scalar or a vector of lanes; M supplies sigmoid and tanh on it. zx and zh are the products
// of the input and of h, biases included.
//   plain:  h' = tanh(zx + zh)
//   gated:  r, z = sigmoid(zx + zh),  n = tanh(zx_n + r zh_n),  h' = (1 - z) n + z h
#pragma once

#include "lstm_cell.h"

namespace {

template <typename V>
struct UnitGates {
  V r, z, n, zh_n;
};

// Turns the preactivations in `gates` (r and z: zx + zh; n: zx_n) into gates; returns h'.
template <typename M, typename V>
DNIRNN_INLINE V unit_forward(UnitGates<V>& gates, V h) {
  gates.r = M::sigmoid(gates.r);
  gates.z = M::sigmoid(gates.z);
  gates.n = M::tanh(gates.n + gates.r * gates.zh_n);
  return gates.n + gates.z * (h - gates.n);
}

// From dh, the whole gradient of h': returns the gradients of what unit_forward was given, and
// turns dh into the part of the gradient of h that comes by z.
template <typename M, typename V>
DNIRNN_INLINE UnitGates<V> unit_backward(const UnitGates<V>& gates, V h, V& dh) {
  UnitGates<V> d;
  d.n = dh * (V{} + 1 - gates.z) * (V{} + 1 - gates.n * gates.n);
  d.z = dh * (h - gates.n) * gates.z * (V{} + 1 - gates.z);
  d.r = d.n * gates.zh_n * gates.r * (V{} + 1 - gates.r);
  d.zh_n = d.n * gates.r;
  dh = dh * gates.z;
  return d;
}

}  // namespace
