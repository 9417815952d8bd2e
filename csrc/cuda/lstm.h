// One layer of tbptt on the device: what the kernels are given, and how they are started.
// No torch and no CUDA header: pointers, sizes and a stream.
//
// Letters as in shape.h. V is x's dtype (of weights, h, outputs), S that of the state and of every
// sum: float64 where V is, else float32. Steps lie in one of two orders: by time, [T, B, ...], t = n
// K + k; or by chunk, [K, N, B, ...], in which step k of all chunks is one block of rows, and rows of
// steps that a short last chunk lacks are zero.
#pragma once

#include "shape.h"

struct CUstream_st;

namespace dnirnn::cuda {

enum class Type { kFloat, kDouble, kBFloat16, kHalf };

struct Forward {
  Sizes s;
  Type type;
  int64_t layer;
  bool probe_every_step;
  bool output_by_chunk;  // else by time
  const void* state;     // [B, S], S
  const void* probe;     // [N or T, B, S], S; or null
  const bool* reset;     // [T, B], or null
  const void* w_hh;      // [4 H, H], V
  const void* bias;      // [4 H], S: both together
  void* h;               // by chunk, [.., H], V: what a step starts from
  void* c;               // the same, S
  void* gates;           // by chunk, [.., 4, H], S: a step turns sums of products into gates
  void* output;          // [.., H], V
  void* sent;            // [N, B, S], S
};

// Writes h and c of step 0.
void enter(const Forward& pass, CUstream_st* stream);
// Step t, whose gates hold the products with the input and with h: writes the gates, output and, of the
// next step, h and c.
void step(const Forward& pass, int64_t t, CUstream_st* stream);

struct Backward {
  Sizes s;
  Type type;
  int64_t layer;
  bool probe_every_step;
  const void* grad_output;       // by time, [.., H], V; or null
  const void* grad_above;        // by chunk, [.., H], S; or null
  const void* grad_sent;         // [N, B, S], S; or null
  const bool* reset;             // [T, B], or null
  const void *w_hh, *c, *gates;  // as in Forward
  void* d;                       // by chunk, [.., 4, H], V: the gradients of the gates' sums
  void* dc;                      // [N, B, H], S: on its way back
  void* grad_probe;              // [N or T, B, S], S; or null
  void* grad_state;              // [B, S], S; or null
};

// Step k of every chunk: writes d. dh: [N, B, H], S: d of step k + 1 times w_hh; not read at a
// chunk's last step.
void step_back(const Backward& pass, int64_t k, const void* dh, CUstream_st* stream);
// What came back to the chunks' starts. dh: d of step 0 times w_hh.
void leave(const Backward& pass, const void* dh, CUstream_st* stream);

// All steps of a layer in one kernel that keeps w_hh on chip, in the registers of as many blocks as
// the GPU runs at once.

enum class Products { kExact, kTf32 };  // of float32
// Groups of blocks for all cells that the current device runs at once, forwards or back: the room that
// there is; 0 where the layer does not fit.
int64_t room_on_chip(const Sizes& s, Type type, Products products, bool back);
// Whether with so much room it is likely the faster way.
bool faster_on_chip(const Sizes& s, Type type, Products products, bool back, int64_t room);
// step for every t, after enter. h: unsent (make_unsent) from step 1 on.
void steps_on_chip(const Forward& pass, Products products, int64_t room, CUstream_st* stream);
// step_back for every k, and leave. d: unsent.
void steps_back_on_chip(const Backward& pass, Products products, int64_t room, CUstream_st* stream);

}  // namespace dnirnn::cuda
