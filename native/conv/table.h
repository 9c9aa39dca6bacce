// What one instruction set offers to conv.cc: register tiles and transforms, single-threaded, no loops over tiles.
#pragma once

#include <cstdint>

#include "conv/conv.h"

namespace tensure {

constexpr int kMaxVectors = 4;   // of output channels in a channel tile
constexpr int kMaxPixels = 16;   // of a channel tile
constexpr int kMaxColumns = 6;   // of an image tile
constexpr int kMaxFilters = 4;   // of an image tile

// After the sum: activation(sum + bias + residual), then the store. `out` and `residual` share offsets.
struct Epilogue {
  const float *bias;      // at the tile's first channel, or null
  const float *residual;  // like out, or null
  float *out;
  int64_t channel_stride; // floats between two channels of out
  Activation activation;
  bool streams;           // stores go past the caches, where tiles are whole and aligned
};

// Addresses as the plainest loop nest works them out: for the ablation without hoisting.
struct Unhoisted {
  const float *x;             // of the whole input or staging buffer
  const int64_t *pixel_row;   // row and column of each window's corner in that buffer
  const int64_t *pixel_column;
  int64_t kernel_h, kernel_w, channels, dilation_h, dilation_w, row, column;
};

// Lanes are output channels. A tile is `pixels` windows times `vectors` vectors of channels.
struct ChannelTile {
  const float *const *x;    // the windows' bases
  const int64_t *offsets;   // of each product, from a base
  int64_t num_products;
  const float *w;           // [num_products][vectors * lanes]
  const float *next;        // weights to fetch on the way, `step` floats on with each product: a line into L2, or all of a
  int64_t step;             // product's when there is one pixel. Nothing is read there, and it may lie beyond the end
  const int64_t *out_at;    // where in out each pixel's first channel of the tile stands
  int num_channels;         // valid ones, at most vectors * lanes
  float *partial;           // [pixels][vectors * lanes], sums so far; used unless first and last
  bool first, last;
  const Unhoisted *unhoisted;
  Epilogue to;
};
using ChannelKernel = void (*)(const ChannelTile &tile);

// Lanes are images. A tile is `columns` output pixels times `filters` output channels.
struct ImageTile {
  const float *const *x;    // the windows' bases
  const int64_t *offsets;
  int64_t num_products;
  const float *w;           // [num_products][filters]
  const int64_t *out_at;    // where in out each pixel's first image of the tile stands, channel 0
  int num_images;           // valid lanes
  Epilogue to;
};
using ImageKernel = void (*)(const ImageTile &tile);

// A run of output pixels and channels of one row of a depthwise convolution in NHWC.
struct DepthwiseRow {
  const float *const *rows;  // [kernel_h]: column 0 of each input row; a row of zeros where the input ends
  const int64_t *columns;    // [kernel_h]: floats between two columns of that row; 0 for zeros
  const float *zeros;        // [channels]
  const float *w;            // [kernel_h * kernel_w][channels padded to lanes]
  int64_t channels, kernel_h, kernel_w, stride_w, dilation_w, pad_left, width;
  int64_t begin, end;        // output columns
  int64_t first_channel, end_channel;  // the first a multiple of lanes, the end one too or the last
  int64_t out_at;            // of output column 0
  Epilogue to;
};

// Winograd F(4x4, 3x3) on NHWC: see winograd-inl.h.
struct WinogradInput {
  const float *x;            // the image
  int64_t height, width, channels;
  int64_t top, left;         // of the 6x6 patch; may be negative
  float *v;                  // [36][tile_stride]: this tile's row of each of the 36 matrices
  int64_t matrix_stride;
};
struct WinogradOutput {
  const float *m;            // [36][matrix_stride]: this tile's row
  int64_t matrix_stride;
  int num_channels;
  int64_t rows, columns;     // valid ones of the 4x4 patch
  int64_t row_stride, column_stride;
  int64_t out_at;
  Epilogue to;
};

constexpr int kScalarVectors = 4;  // the tile of scalars: 3 pixels by 4 channels
constexpr int kScalarPixels = 3;

// Kernels by [addresses hoisted][vectors][pixels] and [filters][columns]; entries outside a set's registers are null.
struct ConvTable {
  int lanes;
  int max_vectors;
  int max_pixels[kMaxVectors + 1];
  ChannelKernel channel[2][kMaxVectors + 1][kMaxPixels + 1];
  bool has_half;  // whether there are tiles of whole vectors and a half (8 lanes more), and these:
  ChannelKernel channel_half[kMaxVectors][kMaxPixels + 1];
  ChannelKernel scalar[2][kScalarVectors + 1][kScalarPixels + 1];
  int max_filters, max_columns;
  ImageKernel image[kMaxFilters + 1][kMaxColumns + 1];
  int lanes_8;  // of the kernels for CHWN8, at most 8
  ImageKernel image_8[kMaxFilters + 1][kMaxColumns + 1];
  void (*depthwise)(const DepthwiseRow &row);
  void (*winograd_input)(const WinogradInput &tile);
  void (*winograd_output)(const WinogradOutput &tile);
};

}  // namespace tensure
