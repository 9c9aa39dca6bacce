// The loops around the register tiles, one for each way of running: blocks, panels, threads, staging.
#pragma once

#include "common/carver.h"
#include "conv/blocks.h"
#include "conv/pack.h"

namespace tensure {

// Where a job's windows come from.
enum class Source {
  in_place,  // x itself
  staged,    // a copy of a block's input with its padding, in the thread's workspace
  fused,     // im2win rows of a block, in the thread's workspace
  whole,     // im2win or im2col of everything, in the shared workspace
};
Source source_of(const Conv2d &conv);

// A 1x1 convolution of stride 1 without padding is one matrix product: all pixels of all images are one long row.
inline bool is_matrix_product(const Conv2d &conv) {
  return conv.kernel_h == 1 && conv.kernel_w == 1 && conv.stride_h == 1 && conv.stride_w == 1 && !has_padding(conv);
}
inline Sizes one_long_row(const Sizes &s) {
  const int64_t pixels = s.num_images * s.height * s.width;
  return {1, 1, pixels, 1, pixels};
}

Workspace channel_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads);
std::unique_ptr<const PreparedConv2d> prepare_channel_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes,
                                                          int num_threads);

Workspace image_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads);
void run_image_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run);

Workspace winograd_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads);
void run_winograd_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run);

Workspace depthwise_workspace(const Conv2d &conv, const Sizes &sizes, int num_threads);
void run_depthwise_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run);

// Padded columns of an image `width` wide: the cells (each kernel_h elements high) of one output row's whole im2win row.
int64_t im2win_row_cells(const Conv2d &conv, int64_t width);

}  // namespace tensure
