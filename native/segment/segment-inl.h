// The inner loops of the steps that are no convolution, compiled by target.cc for every instruction set.
#pragma once

#include "common/activation-inl.h"
#include "segment/table.h"

namespace {

using tensure::Activation;
using tensure::Pointwise;
using tensure::PoolCell;

// Calls f(offset, number of lanes) over `count` floats, whole vectors first.
template <typename F> TENSURE_INLINE void over(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, static_cast<int>(count - i));
}
TENSURE_INLINE VecF get(const float *p, int lanes) { return lanes == kLanes ? load<VecF>(p) : load_part(p, lanes); }
TENSURE_INLINE void put(float *p, VecF v, int lanes) {
  if (lanes == kLanes)
    store(p, v);
  else
    store_part(p, v, lanes);
}

// The larger, and NaN if either is.
TENSURE_INLINE VecF larger(VecF a, VecF b) { return (b > a) | (b != b) ? b : a; }

void pool_max(const PoolCell &cell) {
  over(cell.count, [&](int64_t i, int lanes) TENSURE_LAMBDA_INLINE {
    VecF best = splat<VecF>(-__builtin_inff());
    for (int64_t u = 0; u < cell.rows; ++u)
      for (int64_t v = 0; v < cell.columns; ++v)
        best = larger(best, get(cell.x + u * cell.row_stride + v * cell.column_stride + i, lanes));
    put(cell.out + i, best, lanes);
  });
}

// Each row of the window by itself, then the rows: the error grows with their lengths' sum, not their product.
void pool_average(const PoolCell &cell) {
  const VecF divisor = splat<VecF>(cell.divisor);
  over(cell.count, [&](int64_t i, int lanes) TENSURE_LAMBDA_INLINE {
    VecF sum = {};
    for (int64_t u = 0; u < cell.rows; ++u) {
      VecF row = {};
      for (int64_t v = 0; v < cell.columns; ++v)
        row += get(cell.x + u * cell.row_stride + v * cell.column_stride + i, lanes);
      sum += row;
    }
    put(cell.out + i, sum / divisor, lanes);
  });
}

void pointwise(Pointwise kind, Activation activation, const float *a, const float *b, bool spread, int64_t count, float *out) {
  over(count, [&](int64_t i, int lanes) TENSURE_LAMBDA_INLINE {
    const VecF left = get(a + i, lanes), right = spread ? splat<VecF>(*b) : get(b + i, lanes);
    put(out + i, activate(kind == Pointwise::add ? left + right : left * right, activation), lanes);
  });
}

void activate_all(Activation activation, const float *x, int64_t count, float *out) {
  over(count, [&](int64_t i, int lanes) TENSURE_LAMBDA_INLINE { put(out + i, activate(get(x + i, lanes), activation), lanes); });
}

// exp(x - max) over its sum; NaN and infinities as the formula has them.
void softmax(const float *x, int64_t count, float *out) {
  float most = -__builtin_inff();
  for (int64_t i = 0; i < count; ++i) most = x[i] > most || x[i] != x[i] ? x[i] : most;
  const VecF highest = splat<VecF>(most);
  VecF sums = {};
  over(count, [&](int64_t i, int lanes) TENSURE_LAMBDA_INLINE {
    VecF e = exp_vec(get(x + i, lanes) - highest);
    for (int lane = lanes; lane < kLanes; ++lane) e[lane] = 0.0f;
    sums += e;
    put(out + i, e, lanes);
  });
  float sum = 0.0f;
  for (int lane = 0; lane < kLanes; ++lane) sum += sums[lane];
  const VecF total = splat<VecF>(sum);
  over(count, [&](int64_t i, int lanes) TENSURE_LAMBDA_INLINE { put(out + i, get(out + i, lanes) / total, lanes); });
}

}  // namespace
