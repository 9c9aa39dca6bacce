// Depthwise convolution in NHWC (one input channel to one output channel): row by row, in place.
#include "common/threads.h"
#include "conv/jobs.h"

namespace tensure {
namespace {

struct Scratch {
  const float **rows;
  int64_t *columns;
};

Scratch carve(Carver &carver, const Conv2d &conv) {
  return {carver.take<const float *>(conv.kernel_h), carver.take<int64_t>(conv.kernel_h)};
}

}  // namespace

Workspace depthwise_workspace(const Conv2d &conv, const Sizes &, int) {
  Carver shared(nullptr), thread(nullptr);
  shared.take<float>(conv.in_channels);
  carve(thread, conv);
  return {shared.used(), thread.used()};
}

void run_depthwise_job(const Conv2d &conv, const ConvTable &table, const Sizes &s, const Conv2dRun &run) {
  const Workspace need = depthwise_workspace(conv, s, run.num_threads);
  float *zeros = static_cast<float *>(run.workspace);
  std::memset(zeros, 0, sizeof(float) * conv.in_channels);
  char *threads = static_cast<char *>(run.workspace) + need.shared;
  const int64_t C = conv.in_channels, row_floats = run.width * C;
  // Several rows a task: waking a thread for one short row costs more than the row. Few rows that do not go round evenly
  // are shared out by channels too.
  const int64_t rows = run.num_images * s.out_height, T = run.num_threads;
  const int64_t row_tasks = std::clamp<int64_t>(4 * T * ceil_div(rows, 4 * T * 64), 1, rows);
  const int64_t vectors = ceil_div(C, table.lanes), parts = rows % T && rows < 8 * T ? std::min(T, vectors) : 1;
  for_each_task(row_tasks * parts, run.num_threads, [&](int64_t task, int thread) {
    const Piece part = piece(vectors, parts, task / row_tasks), some = piece(rows, row_tasks, task % row_tasks);
    Carver carver(threads + thread * need.per_thread);
    const Scratch scratch = carve(carver, conv);
    for (int64_t index = some.begin; index < some.begin + some.size; ++index) {
      const int64_t n = index / s.out_height, m = index % s.out_height;
      for (int64_t u = 0; u < conv.kernel_h; ++u) {
        const int64_t y = m * conv.stride_h + u * conv.dilation_h - conv.pad_top;
        const bool inside = y >= 0 && y < run.height;
        scratch.rows[u] = inside ? run.x + (n * run.height + y) * row_floats : zeros;
        scratch.columns[u] = inside ? C : 0;
      }
      const DepthwiseRow row{scratch.rows, scratch.columns, zeros, run.packed, C, conv.kernel_h, conv.kernel_w,
                             conv.stride_w, conv.dilation_w, conv.pad_left, run.width, 0, s.out_width,
                             part.begin * table.lanes, std::min(C, (part.begin + part.size) * table.lanes),
                             index * s.out_width * C, {run.bias, run.residual, run.out, 1, run.activation, false}};
      table.depthwise(row);
    }
  });
}

}  // namespace tensure
