// A planned run of steps over one arena, executed by one call. The stable face of the family.
//
// Python plans (which steps, which layouts, which bytes of the arena); this runs the plan. All images of one step lie in
// one layout; values between steps lie in the arena at offsets the plan fixed.
#pragma once

#include <cstdint>
#include <memory>
#include <variant>
#include <vector>

#include "conv/conv.h"

namespace tensure {

// Where a value's bytes are: `at` bytes into the arena, or the at-th input of a run.
struct Place {
  bool input;
  int64_t at;
};
constexpr Place kNowhere{false, -1};

struct Image {
  Layout layout;
  int64_t num_images, channels, height, width;
};

struct ConvStep {
  Conv2d conv;
  int64_t num_images, height, width;
  const float *packed, *bias;  // owned by the caller for as long as the segment lives
  Place x, residual, out;
  Activation activation;
};

enum class Pool : int { max, average };
struct PoolStep {
  Image from;
  int64_t out_height, out_width;
  int64_t kernel_h, kernel_w, stride_h, stride_w, dilation_h, dilation_w, pad_top, pad_left;
  int64_t pad_bottom, pad_right;
  Pool kind;
  bool count_padding;
  int64_t divisor;  // 0: the elements of the window
  bool adaptive;    // windows from floor(i * in / out) to ceil((i + 1) * in / out); the window fields are unused
  Place x, out;
};

// The mean of each channel: out is [num_images][channels].
struct MeanStep {
  Image from;
  Place x, out;
};

enum class Pointwise : int { add, multiply };
struct PointwiseStep {
  Image shape;  // of a and out; any array is an image of one channel and one row
  bool spread;  // b is [N, C, 1, 1] in the same layout
  Pointwise kind;
  Activation activation;
  Place a, b, out;
};

struct ActivationStep {
  int64_t count;
  Activation activation;
  Place x, out;
};

struct SoftmaxStep {
  int64_t rows, columns;
  Place x, out;
};

struct MoveStep {
  Image from;
  Layout to;
  Place x, out;
};

using Step = std::variant<ConvStep, PoolStep, MeanStep, PointwiseStep, ActivationStep, SoftmaxStep, MoveStep>;

// Steps for a number of threads: what a convolution can work out beforehand is worked out here, once for all runs.
class PreparedSegment {
 public:
  PreparedSegment(std::vector<Step> steps, int num_threads);

  // Bytes for the whole segment, the steps one after the other.
  int64_t workspace() const { return workspace_; }

  // False, with nothing written, when no instruction set is in use. With `seconds`, one for each step, adds what each took.
  bool run(const float *const *inputs, float *arena, void *workspace, double *seconds = nullptr) const;

 private:
  std::vector<Step> steps_;
  std::vector<std::unique_ptr<const PreparedConv2d>> convs_;  // of the convolutions among them, in order
  int num_threads_;
  int64_t workspace_ = 0;
};

}  // namespace tensure
