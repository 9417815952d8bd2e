// The vector path for 128-bit CPUs.
// It asks for nothing beyond what the compiler's default target has.

#define PATH generic
#define NAME "128-bit"
#define BYTES 16
#define ROWS 2  // of a tile: ROWS * 4 accumulators and 4 vectors of the panel fit the registers
#define WEIGHT_ROWS 4  // rows of a tile of a weight gradient: WEIGHT_ROWS * 3 accumulators
#include "cpu/kernels_impl.h"
