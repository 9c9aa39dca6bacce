// How an algorithm in a layout sees its input: the order of the products of a sum, and where each product's input stands.
//
// Every layout is a sequence of cells: NHWC one cell of all channels at each pixel, NCHW a cell of one float for each channel
// plane, CHWN a cell of neighbouring images for each channel plane. Staging and im2win copy cells; the rest is strides.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "common/integers.h"
#include "conv/conv.h"

namespace tensure {

constexpr int64_t layout_block(Layout layout) {
  return layout == Layout::chwn8 ? 8 : layout == Layout::chwn16 ? 16 : 0;
}
inline bool has_image_lanes(Layout layout) { return layout != Layout::nchw && layout != Layout::nhwc; }

inline int64_t group_in(const Conv2d &conv) { return conv.in_channels / conv.groups; }
inline int64_t group_out(const Conv2d &conv) { return conv.out_channels / conv.groups; }
inline int64_t num_products(const Conv2d &conv) { return conv.kernel_h * conv.kernel_w * group_in(conv); }
inline bool has_padding(const Conv2d &conv) {
  return conv.pad_top || conv.pad_bottom || conv.pad_left || conv.pad_right;
}
// Input rows and columns that a run of outputs reaches.
inline int64_t rows_reached(const Conv2d &conv, int64_t rows) {
  return (rows - 1) * conv.stride_h + (conv.kernel_h - 1) * conv.dilation_h + 1;
}
inline int64_t columns_reached(const Conv2d &conv, int64_t columns) {
  return (columns - 1) * conv.stride_w + (conv.kernel_w - 1) * conv.dilation_w + 1;
}

// Calls f(u, v, r) for every product in the order in which an output adds them.
template <typename F> void for_each_product(const Conv2d &conv, F f) {
  const int64_t H = conv.kernel_h, W = conv.kernel_w, R = group_in(conv);
  const bool channel_first = conv.layout != Layout::nhwc;  // cells of one channel: walk a plane, then the next
  switch (conv.algorithm) {
    case ConvAlgorithm::im2win:
    case ConvAlgorithm::im2win_full:
      if (channel_first)
        for (int64_t r = 0; r < R; ++r)
          for (int64_t v = 0; v < W; ++v)
            for (int64_t u = 0; u < H; ++u) f(u, v, r);
      else
        for (int64_t v = 0; v < W; ++v)
          for (int64_t u = 0; u < H; ++u)
            for (int64_t r = 0; r < R; ++r) f(u, v, r);
      return;
    case ConvAlgorithm::direct:
    case ConvAlgorithm::im2col:
    case ConvAlgorithm::winograd:
      if (channel_first)
        for (int64_t r = 0; r < R; ++r)
          for (int64_t u = 0; u < H; ++u)
            for (int64_t v = 0; v < W; ++v) f(u, v, r);
      else
        for (int64_t u = 0; u < H; ++u)
          for (int64_t v = 0; v < W; ++v)
            for (int64_t r = 0; r < R; ++r) f(u, v, r);
      return;
  }
}

// Floats between neighbours of one image (or chunk of images). `cell` floats stand together.
struct Strides {
  int64_t channel, row, column, cell;
};

// A tensor of `channels` in a layout, as planes of cells.
struct Planes {
  int64_t num_planes;  // 1 in NHWC, else the channels
  Strides at;
  int64_t image;       // between images (NCHW, NHWC), or blocks of images (CHWNb); unused in CHWN
};

inline Planes planes(Layout layout, int64_t num_images, int64_t channels, int64_t height, int64_t width) {
  const int64_t size = channels * height * width;
  switch (layout) {
    case Layout::nchw: return {channels, {height * width, width, 1, 1}, size};
    case Layout::nhwc: return {1, {1, width * channels, channels, channels}, size};
    case Layout::chwn: {
      const int64_t n = num_images;
      return {channels, {height * width * n, width * n, n, n}, 1};
    }
    case Layout::chwn8:
    case Layout::chwn16: {
      const int64_t b = layout_block(layout);
      return {channels, {height * width * b, width * b, b, b}, size * b};
    }
  }
  return {};
}

// Copies the cells of input rows [row, row + rows) and columns [column, column + columns), coordinates that may lie in
// the padding (zeros), into planes with strides `to`; `cell` floats of each.
void stage(const Planes &from, const float *x, int64_t height, int64_t width, int64_t row, int64_t rows, int64_t column,
           int64_t columns, const Strides &to, int64_t cell, float *out);

// The im2win rows of output rows [m, m + rows), input columns as in stage: out[plane][row][column][u][cell], `to.row`
// between output rows, `to.column` between input columns (kernel_h cells of `to.cell` floats).
void im2win_rows(const Conv2d &conv, const Planes &from, const float *x, int64_t height, int64_t width, int64_t m,
                 int64_t rows, int64_t column, int64_t columns, const Strides &to, int64_t cell, float *out);

}  // namespace tensure
