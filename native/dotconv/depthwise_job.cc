// Depthwise convolution of bytes (one input channel to one output channel): row by row, in place.
#include "common/threads.h"
#include "dotconv/jobs.h"

namespace tensure {
namespace {

struct Scratch {
  const void **rows;
  int64_t *out_at;
  int32_t *sums;
};

Scratch carve(Carver &carver, const Conv2d &conv, int64_t padded) {
  return {carver.take<const void *>(conv.kernel_h), carver.take<int64_t>(kDepthwisePixels),
          carver.take<int32_t>(kDepthwisePixels * padded)};
}

}  // namespace

Workspace dot_depthwise_workspace(const Conv2d &conv, const DotTable &table) {
  const int64_t padded = round_up(conv.out_channels, table.lanes);
  Carver shared(nullptr), thread(nullptr);
  carve_channels(shared, padded);
  carve(thread, conv, padded);
  return {shared.used(), thread.used()};
}

void run_dot_depthwise_job(const Conv2d &conv, const DotTable &table, const Sizes &s, const DotRun &run) {
  const Workspace need = dot_depthwise_workspace(conv, table);
  const int64_t C = conv.out_channels, padded = round_up(C, table.lanes);
  Carver shared(run.workspace);
  DotChannels channels = carve_channels(shared, padded);
  const std::vector<Panel> one{{0, 0, static_cast<int>(C), static_cast<int>(padded), 0}};
  fill_channels(conv, run, one, nullptr, 0, channels);
  char *threads = static_cast<char *>(run.workspace) + need.shared;
  // The columns whose whole window lies inside the row.
  const int64_t reach = s.width + conv.pad_left - (conv.kernel_w - 1) * conv.dilation_w;  // first column too far, times stride
  const int64_t high = std::min(reach <= 0 ? 0 : ceil_div(reach, conv.stride_w), s.out_width);
  const int64_t low = std::min(ceil_div(conv.pad_left, conv.stride_w), high);
  const auto *kernels = table.depthwise[static_cast<int>(run.element)];
  // Several rows a task: waking a thread for one short row costs more than the row.
  const int64_t rows = s.num_images * s.out_height;
  const int64_t per_task = std::clamp<int64_t>(rows / (4 * run.num_threads), 1, 64);
  for_each_task(ceil_div(rows, per_task), run.num_threads, [&](int64_t task, int thread) {
    Carver carver(threads + thread * need.per_thread);
    const Scratch scratch = carve(carver, conv, padded);
    for (int64_t index = task * per_task; index < std::min(rows, (task + 1) * per_task); ++index) {
      const int64_t n = index / s.out_height, m = index % s.out_height;
      for (int64_t u = 0; u < conv.kernel_h; ++u) {
        const int64_t y = m * conv.stride_h + u * conv.dilation_h - conv.pad_top;
        const bool inside = y >= 0 && y < s.height;
        scratch.rows[u] = inside ? static_cast<const char *>(run.x) + (n * s.height + y) * s.width * C : nullptr;
      }
      for (int64_t column = 0; column < s.out_width;) {
        const bool several = column >= low && column + kDepthwisePixels <= high;
        const int pixels = several ? kDepthwisePixels : 1;
        const DotDepthwise row{scratch.rows,  run.zero_point,  static_cast<const int32_t *>(run.packed), C, padded,
                               conv.kernel_h, conv.kernel_w,   conv.stride_w, conv.dilation_w, conv.pad_left,
                               s.width,       column,          scratch.sums};
        kernels[several](row);
        for (int q = 0; q < pixels; ++q) scratch.out_at[q] = (index * s.out_width + column + q) * C;
        finish_pixels(table, run, channels, 0, 0, static_cast<int>(C), static_cast<int>(padded), scratch.sums, scratch.out_at,
                      pixels);
        column += pixels;
      }
    }
  });
}

}  // namespace tensure
