// Convolution and matrix products of bytes and of bfloat16, by dot-product instructions, in NHWC. The stable face of the family;
// README.md says how.
//
// A convolution is described as in conv/conv.h (direct, NHWC, all switches on). Sums of bytes are exact modulo 2^32, so their
// bits are the same on every instruction set; sums of bfloat16 are added in one order that nothing but the convolution
// decides. A matrix product is a 1x1 convolution of one row of pixels.
#pragma once

#include <cstdint>

#include "conv/conv.h"

namespace tensure {

// Of x. Weights are int8 beside bytes, bfloat16 beside bfloat16.
enum class DotElement : int { u8, s8, bf16 };
// Of out. From bytes all but bf16, from bfloat16 only f32 and bf16.
enum class DotOutput : int { i32, s8, u8, f32, bf16 };

// Everything one run reads and writes. `out` overlaps nothing else.
//
//   bytes      sum = bias_ints + the sum of (x - zero_point) * w, where padding counts as the zero point
//     i32      sum
//     s8, u8   out_zero_point + sum * multiplier * 2^(shift - 31), with TensorFlow Lite's two roundings, held to low..high
//     f32      float(sum) * scale + bias_floats, each step rounded
//   bfloat16   activation(sum + bias_floats), rounded to bfloat16 where that is asked for
struct DotRun {
  int64_t num_images, height, width;  // of x
  DotElement element;
  DotOutput output;
  const void *x;
  const void *packed;           // by dotconv_pack
  const int32_t *bias_ints;     // [out_channels] or null
  const float *bias_floats;     // [out_channels] or null
  const int32_t *multiplier;    // [out_channels], 0 and up
  const int32_t *shift;         // [out_channels], -31 to 30
  const float *scale;           // [out_channels]
  int32_t zero_point, out_zero_point, low, high;
  Activation activation;
  void *out;
  int num_threads;
  void *workspace;              // dotconv_workspace bytes, 64-byte aligned
};

// Whether the processor has what `halves` (bfloat16) or bytes need. Bytes run on every instruction set.
bool dotconv_runs(bool halves);

// Bytes of the packed weights for the instruction set and features in use, 0 when none is.
int64_t dotconv_packed_size(const Conv2d &conv, bool halves);

// w is [out_channels][in_channels/groups][kernel_h][kernel_w], int8 or bfloat16. `packed` begins at a multiple of 4.
void dotconv_pack(const Conv2d &conv, bool halves, const void *w, void *packed);

Workspace dotconv_workspace(const Conv2d &conv, DotElement element, int64_t num_images, int64_t height, int64_t width,
                            int num_threads);

// Returns false, having written nothing, when no instruction set is in use or it lacks what is needed.
bool dotconv(const Conv2d &conv, const DotRun &run);

}  // namespace tensure
