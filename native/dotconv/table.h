// What one instruction set offers to dotconv: register tiles, epilogues, copies; single-threaded, no loops over tiles.
#pragma once

#include <cstdint>

#include "conv/table.h"
#include "dotconv/dotconv.h"

namespace tensure {

// How a lane of 32 bits is multiplied: four bytes, two 16-bit integers, two bfloat16.
enum class DotMethod : int { bytes, shorts, halves };
constexpr int kDotMethods = 3;

// Lanes are output channels. A tile is `pixels` windows times `vectors` vectors of channels.
struct DotTile {
  const char *const *x;    // the windows' bases
  const int64_t *offsets;  // in bytes, of each group of neighbouring products, from a base
  int64_t num_groups;
  const void *w;           // [num_groups][vectors * lanes], 4 bytes each
  void *sums;              // [pixels][vectors * lanes], 4 bytes each
  bool first;              // sums begin at zero, else where they are
};
using DotKernel = void (*)(const DotTile &tile);

// Sums to output. The arrays begin at the sums' first channel and are as long as `width`.
struct DotFinish {
  const void *sums;       // [pixels][width]
  int pixels, width, channels;
  const int64_t *out_at;  // elements before each pixel's channel 0
  void *out;              // at the sums' first channel
  const int32_t *offset, *multiplier, *left, *right;
  const float *scale, *bias;
  int32_t zero_point, low, high;
  Activation activation;
  bool small;             // no sum with its offset reaches 2^30 and no `left` is above 0: a shorter way is right
};

// A few neighbouring output pixels of one row of a depthwise convolution of bytes, all channels.
struct DotDepthwise {
  const void *const *rows;  // [kernel_h]: column 0 of each input row; null where the input ends
  int32_t zero_point;
  const int32_t *w;         // [kernel_h * kernel_w][padded], in the low halves
  int64_t channels, padded, kernel_h, kernel_w, stride_w, dilation_w, pad_left, width;
  int64_t column;           // the first output column
  int32_t *sums;            // [pixels][padded]
};
constexpr int kDepthwisePixels = 4;  // whose windows lie inside the row; or one, anywhere

struct DotTable {
  int lanes, max_vectors;
  int max_pixels[kMaxVectors + 1];
  bool has_byte_dot, has_half_dot;  // the object holds them; the processor is asked apart
  bool signed_bytes;                // what the byte kernels take x for
  DotKernel tile[kDotMethods][kMaxVectors + 1][kMaxPixels + 1];
  void (*finish[5])(const DotFinish &finish);      // of sums of bytes, by DotOutput
  void (*finish_halves[2])(const DotFinish &finish);  // f32, bf16
  void (*flip)(const void *from, void *to, int64_t count);                             // the top bit of each byte
  void (*widen[2])(const void *from, void *to, int64_t count, int32_t zero_point);     // bytes to 16 bits less zero_point, by DotElement
  void (*depthwise[2][2])(const DotDepthwise &row);  // by DotElement, and whether kDepthwisePixels pixels or one
};

}  // namespace tensure
