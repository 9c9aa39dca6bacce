// The loops around the register tiles, one for each way of running: blocks, panels, threads, staging.
#pragma once

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

// How the output is cut: blocks of rows of one image, or of several whole images, and of columns.
struct Blocks {
  int64_t images, rows, columns;            // of a block
  int64_t image_blocks, row_blocks, column_blocks;
  int64_t count() const { return image_blocks * row_blocks * column_blocks; }
  int64_t max_pixels() const { return images * rows * columns; }
};

struct Sizes {
  int64_t num_images, height, width, out_height, out_width;
};

constexpr int64_t kFewPixels = 96;  // of a block, unless there is a reason for more

// Cuts an output into even blocks of about `target` pixels. `bytes_of(images, rows, columns)` is what a thread copies for
// a block of that size, 0 when it reads in place; blocks shrink until that is at most `most_bytes`.
template <typename BytesOf>
Blocks cut_blocks(const Sizes &s, int64_t target, int num_threads, int64_t most_bytes, BytesOf bytes_of) {
  Blocks b{1, s.out_height, s.out_width, s.num_images, 1, 1};
  // Two threads want several blocks each, or one waits for the other.
  const int64_t pixels = s.num_images * s.out_height * s.out_width;
  if (num_threads > 1) target = std::clamp<int64_t>(pixels / (4 * num_threads), std::min(kFewPixels, target), target);
  if (s.out_width >= target) {
    b.rows = 1;
    b.column_blocks = ceil_div(s.out_width, target);
    b.columns = ceil_div(s.out_width, b.column_blocks);
  } else {
    b.rows = std::clamp<int64_t>(target / s.out_width, 1, s.out_height);
    if (b.rows == s.out_height) b.images = std::clamp<int64_t>(target / (b.rows * s.out_width), 1, s.num_images);
  }
  const auto bytes = [&] { return bytes_of(b.images, b.rows, b.columns); };
  while (bytes() > most_bytes && b.images > 1) b.images = ceil_div(b.images, 2);
  while (bytes() > most_bytes && b.rows > 1) b.rows = ceil_div(b.rows, 2);
  while (bytes() > most_bytes && b.columns > 16) b.columns = ceil_div(b.columns, 2);
  b.image_blocks = ceil_div(s.num_images, b.images);
  b.images = ceil_div(s.num_images, b.image_blocks);
  b.row_blocks = ceil_div(s.out_height, b.rows);
  b.rows = ceil_div(s.out_height, b.row_blocks);
  b.column_blocks = ceil_div(s.out_width, b.columns);
  b.columns = ceil_div(s.out_width, b.column_blocks);
  return b;
}

// A 1x1 convolution of stride 1 without padding is one matrix product: all pixels of all images are one long row.
inline bool is_matrix_product(const Conv2d &conv) {
  return conv.kernel_h == 1 && conv.kernel_w == 1 && conv.stride_h == 1 && conv.stride_w == 1 && !has_padding(conv);
}
inline Sizes one_long_row(const Sizes &s) {
  const int64_t pixels = s.num_images * s.height * s.width;
  return {1, 1, pixels, 1, pixels};
}

Workspace channel_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads);
void run_channel_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run);

Workspace image_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads);
void run_image_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run);

Workspace winograd_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads);
void run_winograd_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run);

Workspace depthwise_workspace(const Conv2d &conv, const Sizes &sizes, int num_threads);
void run_depthwise_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run);

// Padded columns of an image `width` wide: the cells (each kernel_h elements high) of one output row's whole im2win row.
int64_t im2win_row_cells(const Conv2d &conv, int64_t width);

// Cuts a workspace into aligned pieces; with a null base it only adds up.
class Carver {
 public:
  explicit Carver(void *base) : base_(static_cast<char *>(base)) {}
  template <typename T> T *take(int64_t count) {
    T *piece = base_ ? reinterpret_cast<T *>(base_ + used_) : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char *base_;
  int64_t used_ = 0;
};

}  // namespace tensure
