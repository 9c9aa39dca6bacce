// What one instruction set offers to segment.cc: inner loops over one row or one run of floats, single-threaded.
#pragma once

#include <cstdint>

#include "segment/segment.h"

namespace tensure {

// One output pixel of a pool: the cells of a window, `count` floats each.
struct PoolCell {
  const float *x;                 // the window's first valid cell
  int64_t rows, columns;          // valid ones; at least one of each for a maximum
  int64_t row_stride, column_stride;
  int64_t count;
  float divisor;
  float *out;
};

struct SegmentTable {
  void (*pool_max)(const PoolCell &cell);
  void (*pool_average)(const PoolCell &cell);
  // out[i] = activation(a[i] op b[i]); with spread, b is one float
  void (*pointwise)(Pointwise kind, Activation activation, const float *a, const float *b, bool spread, int64_t count, float *out);
  void (*activate)(Activation activation, const float *x, int64_t count, float *out);
  void (*softmax)(const float *x, int64_t count, float *out);
};

}  // namespace tensure
