// Winograd F(4x4, 3x3), the two transforms that surround its 36 matrix products (Lavin and Gray, arXiv 1509.09308).
//
// Y = A^T [ (G g G^T) * (B^T d B) ] A with the interpolation points 0, 1, -1, 2, -2 and infinity. Lanes are channels
// (NHWC). The filter's transform is done once, in double, when weights are packed (pack.cc).
#pragma once

#include "common/vector-inl.h"
#include "conv/table.h"

namespace {

using tensure::WinogradInput;
using tensure::WinogradOutput;

// B^T times a column of six.
TENSURE_INLINE void input_column(VecF &a, VecF &b, VecF &c, VecF &d, VecF &e, VecF &f) {
  const VecF two = splat<VecF>(2.0f), four = splat<VecF>(4.0f), minus_five = splat<VecF>(-5.0f), minus_four = -four;
  const VecF first = fused(four, a, fused(minus_five, c, e));
  const VecF even = fused(minus_four, c, e), odd = fused(minus_four, b, d);
  const VecF outer = e - c, inner = two * (d - b);
  const VecF last = fused(four, b, fused(minus_five, d, f));
  a = first;
  b = even + odd;
  c = even - odd;
  d = outer + inner;
  e = outer - inner;
  f = last;
}

// A^T times a column of six.
TENSURE_INLINE void output_column(const VecF (&m)[6], VecF (&y)[4]) {
  const VecF sum12 = m[1] + m[2], difference12 = m[1] - m[2], sum34 = m[3] + m[4], difference34 = m[3] - m[4];
  y[0] = m[0] + (sum12 + sum34);
  y[1] = fused(splat<VecF>(2.0f), difference34, difference12);
  y[2] = fused(splat<VecF>(4.0f), sum34, sum12);
  y[3] = m[5] + fused(splat<VecF>(8.0f), difference34, difference12);
}

template <bool INSIDE> TENSURE_INLINE void input_channels(const WinogradInput &tile, int64_t channel, int count) {
  VecF d[6][6];
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      const int64_t row = tile.top + i, column = tile.left + j;
      const float *p = tile.x + (row * tile.width + column) * tile.channels + channel;
      if (INSIDE)
        d[i][j] = load<VecF>(p);
      else if (row < 0 || row >= tile.height || column < 0 || column >= tile.width)
        d[i][j] = VecF{};
      else
        d[i][j] = count == kLanes ? load<VecF>(p) : load_part(p, count);
    }
#pragma GCC unroll 6
  for (int j = 0; j < 6; ++j) input_column(d[0][j], d[1][j], d[2][j], d[3][j], d[4][j], d[5][j]);
#pragma GCC unroll 6
  for (int i = 0; i < 6; ++i) {
    input_column(d[i][0], d[i][1], d[i][2], d[i][3], d[i][4], d[i][5]);
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) store(tile.v + (i * 6 + j) * tile.matrix_stride + channel, d[i][j]);
  }
}

// One tile of all channels; v's rows must hold the channels rounded up to whole vectors.
void winograd_input(const WinogradInput &tile) {
  const bool inside =
      tile.top >= 0 && tile.left >= 0 && tile.top + 6 <= tile.height && tile.left + 6 <= tile.width;
  for (int64_t channel = 0; channel < tile.channels; channel += kLanes) {
    const int64_t left = tile.channels - channel;
    if (inside && left >= kLanes)
      input_channels<true>(tile, channel, kLanes);
    else
      input_channels<false>(tile, channel, left >= kLanes ? kLanes : static_cast<int>(left));
  }
}

}  // namespace
