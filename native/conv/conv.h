// 2-D convolution of float32 in five layouts by five algorithms. The stable face of the family; README.md says what each is.
//
// A caller describes one convolution (`Conv2d`), packs its weights once, and runs it on any batch and image size.
// Every strict algorithm (all but Winograd) adds the K = kernel_h * kernel_w * in_channels/groups products of an output one after
// the other, fused, in an order fixed by algorithm and layout: bits depend neither on threads nor on the batch nor on
// which rows are computed together, and are the same on every instruction set that has fused multiply-add.
#pragma once

#include <cstdint>
#include <memory>

#include "common/activation.h"

namespace tensure {

enum class Layout : int { nchw, nhwc, chwn, chwn8, chwn16 };
enum class ConvAlgorithm : int { direct, im2win, im2win_full, im2col, winograd };

// The paper's optimisations (arXiv 2408.00278), one bit each; all on unless an ablation turns some off. None changes a
// bit of the result. Honoured by direct convolution in NHWC.
enum ConvSwitch : unsigned {
  kVectorise = 1,       // vector lanes over output channels; off: scalars
  kHoist = 2,           // window and filter addresses worked out once for a tile; off: for every product
  kRegisterBlock = 4,   // W_ob x C_ob outputs in registers; off: one vector of one pixel
  kReorder = 8,         // a panel of weights is used for a block of pixels; off: all weights for each tile of pixels
  kCacheBlock = 16,     // blocks of pixels and of products sized for the caches; off: whole rows, whole sums
  kCoalesce = 32,       // images and rows are one loop for the threads; off: images only
  kAllSwitches = 63,
};

struct Conv2d {
  int64_t in_channels, out_channels, groups;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w;
  int64_t pad_top, pad_bottom, pad_left, pad_right;
  Layout layout;
  ConvAlgorithm algorithm;
  unsigned switches;
};

// Everything one run reads and writes. No pointer needs more than float alignment; `out` overlaps nothing else.
struct Conv2dRun {
  int64_t num_images, height, width;  // of x; num_images counts the padded images of CHWN8 and CHWN16
  const float *x;
  const float *packed;     // by conv2d_pack
  const float *bias;       // [out_channels] or null
  const float *residual;   // in the shape of out, or null; may be out itself
  float *out;
  Activation activation;   // activation(conv + bias + residual)
  int num_threads;
  void *workspace;         // conv2d_workspace bytes, 64-byte aligned
  bool read_next = false;  // `out` is read as soon as it is written: kept in the outer caches where they may hold it
};

// Sizes of an output; conv2d needs both positive.
int64_t conv2d_out_height(const Conv2d &conv, int64_t height);
int64_t conv2d_out_width(const Conv2d &conv, int64_t width);

// Floats of the packed weights for the instruction set in use, 0 when none is.
int64_t conv2d_packed_size(const Conv2d &conv);

// w is [out_channels][in_channels/groups][kernel_h][kernel_w].
void conv2d_pack(const Conv2d &conv, const float *w, float *packed);

// Bytes of workspace: what is shared (im2win_full, im2col), and what each of num_threads threads needs.
struct Workspace {
  int64_t shared, per_thread;
};
Workspace conv2d_workspace(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width, int num_threads);

// Returns false, having written nothing, when no instruction set is in use.
bool conv2d(const Conv2d &conv, const Conv2dRun &run);

// A convolution of one size on a number of threads: blocks, shares and offsets worked out once, for any number of runs.
class PreparedConv2d {
 public:
  virtual ~PreparedConv2d() = default;
  virtual Workspace workspace() const = 0;
  // `run` has the sizes and the number of threads that were prepared for.
  virtual void run(const Conv2dRun &run) const = 0;
};

// Null when no instruction set is in use.
std::unique_ptr<const PreparedConv2d> prepare_conv2d(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width,
                                                     int num_threads);

// The im2win tensor of x, whole: NCHW [N][C][Ho][Wp*Hf], NHWC [N][Ho][Wp*Hf][C], CHWN [C][Ho][Wp*Hf][N], CHWNb alike,
// Wp = width + pad_left + pad_right.
int64_t im2win_size(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width);
void im2win(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width, const float *x, float *out,
            int num_threads);

// Copies x into another layout. num_images counts real images; a padded layout's extra lanes become zero.
void convert_layout(Layout from, Layout to, int64_t num_images, int64_t channels, int64_t height, int64_t width,
                    const float *x, float *out, int num_threads);

}  // namespace tensure
