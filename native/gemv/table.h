// What one instruction set offers to gemv.cc, and the layout of quantised activations. All single-threaded.
#pragma once

#include "gemv/gemv.h"

namespace tensure {

// Activations of one row of x as integers q in groups of 32: one plane of bytes for 8 bits, two for 15, q = 128 * high + low with
// low in -64..63. Columns are filled with zeros to a multiple of 256, so that every format finds whole groups.
struct GemvActivations {
  int64_t cols, groups;      // filled up
  int64_t low, lanes, total, scale, sum, bytes;  // offsets behind the (high) bytes; bytes of one row of x
};

static inline GemvActivations gemv_activations(int64_t num_cols, int planes) {
  GemvActivations a;
  a.cols = (num_cols + 255) / 256 * 256;
  a.groups = a.cols / 32;
  a.low = planes == 2 ? a.cols : 0;
  a.lanes = planes * a.cols;           // int32 [groups][8]: -8 * sum of q of four neighbours
  a.total = a.lanes + 32 * a.groups;   // int32 [groups]: -8 * sum of q of the group
  a.scale = a.total + 4 * a.groups;    // float [groups]
  a.sum = a.scale + 4 * a.groups;      // float [groups]: scale * sum of q of the group
  a.bytes = (a.sum + 4 * a.groups + 63) / 64 * 64;
  return a;
}

// Rows row_begin to row_end of y; row_begin is a multiple of 16.
struct GemvJob {
  GemvWeights weights;
  const float *x;              // exact
  int64_t x_stride;
  const uint8_t *activations;  // fast and fine
  int64_t batch;
  float *y;
  int64_t y_stride;
};
using GemvKernel = void (*)(const GemvJob &job, int64_t row_begin, int64_t row_end);

struct GemvTable {
  bool fused;
  GemvKernel exact;
  GemvKernel fast;
  GemvKernel fast_vnni;  // for cpu_has_vnni(); null when this set has no such instruction
  void (*quantize)(const float *x, int64_t num_cols, uint8_t *activations);
  GemvKernel fine, fine_vnni;  // as fast
  void (*quantize_fine)(const float *x, int64_t num_cols, uint8_t *activations);
  uint64_t (*read)(const uint8_t *data, int64_t bytes, int streams, int64_t prefetch);
};

// Of the instruction set in use, for families that hand out rows to threads of their own; null when there is none.
const GemvTable *gemv_table();
// The kernels of this arithmetic: those with 8-bit dot products where the processor has them. `quantize` is null for exact.
struct GemvKernels {
  GemvKernel multiply;
  void (*quantize)(const float *x, int64_t num_cols, uint8_t *activations);
};
GemvKernels gemv_kernels(GemvArithmetic arithmetic);

}  // namespace tensure
