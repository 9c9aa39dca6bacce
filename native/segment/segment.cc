// The executor: one step after the other, each over the team's threads. Compiled for the platform's baseline.
#include "segment/segment.h"

#include <algorithm>
#include <chrono>
#include <type_traits>
#include <utility>

#include "common/isa.h"
#include "common/threads.h"
#include "conv/view.h"
#include "segment/table.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const SegmentTable segment_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &segment_##isa,
static const SegmentTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

namespace {

// Below this many floats a second thread costs more than it saves.
constexpr int64_t kFloatsPerTask = 8192;

struct Context {
  const SegmentTable &table;
  const float *const *inputs;
  float *arena;
  void *workspace;
  int num_threads;

  const float *read(const Place &place) const {
    if (place.at < 0) return nullptr;
    return place.input ? inputs[place.at] : arena + place.at / static_cast<int64_t>(sizeof(float));
  }
  float *write(const Place &place) const { return arena + place.at / static_cast<int64_t>(sizeof(float)); }
  int threads_for(int64_t floats) const {
    return static_cast<int>(std::clamp<int64_t>(floats / kFloatsPerTask, 1, num_threads));
  }
};

// Images of a layout as independent planes of cells: CHWN is one image whose cells hold the batch.
struct Cells {
  Planes planes;
  int64_t images;
};
Cells cells_of(const Image &image, int64_t height, int64_t width) {
  const Planes found = planes(image.layout, image.num_images, image.channels, height, width);
  return {found, image.layout == Layout::chwn ? 1 : image.num_images};
}

void run(const Context &context, const ConvStep &step, const PreparedConv2d &prepared) {
  const Conv2dRun call{step.num_images, step.height, step.width, context.read(step.x), step.packed, step.bias,
                       context.read(step.residual), context.write(step.out), step.activation, context.num_threads,
                       context.workspace, /*read_next=*/true};
  prepared.run(call);
}

// The valid part of a window along one dim.
struct Span {
  int64_t begin, count, padded;  // first valid input, how many, and how many with padding
};
Span span(int64_t i, int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t before,
          int64_t after, bool adaptive) {
  if (adaptive) {
    const int64_t begin = i * size / out, end = ceil_div((i + 1) * size, out);
    return {begin, end - begin, end - begin};
  }
  int64_t begin = i * stride - before;
  const int64_t inside_padding = std::min(begin + (kernel - 1) * dilation + 1, size + after);
  const int64_t padded = ceil_div(std::max<int64_t>(inside_padding - begin, 0), dilation);
  if (begin < 0) begin += ceil_div(-begin, dilation) * dilation;
  const int64_t end = std::min(i * stride - before + (kernel - 1) * dilation + 1, size);
  return {begin, std::max<int64_t>(ceil_div(end - begin, dilation), 0), padded};
}

void run(const Context &context, const PoolStep &step) {
  const Image &image = step.from;
  const Cells from = cells_of(image, image.height, image.width), to = cells_of(image, step.out_height, step.out_width);
  const float *x = context.read(step.x);
  float *out = context.write(step.out);
  const int64_t planes = from.planes.num_planes, rows = step.out_height;
  const int64_t floats = image.num_images * image.channels * image.height * image.width;
  for_each_task(from.images * planes * rows, context.threads_for(floats), [&](int64_t task, int) {
    const int64_t n = task / (planes * rows), plane = task / rows % planes, m = task % rows;
    const Span down = span(m, image.height, rows, step.kernel_h, step.stride_h, step.dilation_h, step.pad_top,
                           step.pad_bottom, step.adaptive);
    for (int64_t l = 0; l < step.out_width; ++l) {
      const Span across = span(l, image.width, step.out_width, step.kernel_w, step.stride_w, step.dilation_w, step.pad_left,
                               step.pad_right, step.adaptive);
      const int64_t counted = step.count_padding ? down.padded * across.padded : down.count * across.count;
      const PoolCell cell{
          x + n * from.planes.image + plane * from.planes.at.channel + down.begin * from.planes.at.row +
              across.begin * from.planes.at.column,
          down.count,
          across.count,
          from.planes.at.row * (step.adaptive ? 1 : step.dilation_h),
          from.planes.at.column * (step.adaptive ? 1 : step.dilation_w),
          from.planes.at.cell,
          static_cast<float>(step.divisor ? step.divisor : counted),
          out + n * to.planes.image + plane * to.planes.at.channel + m * to.planes.at.row + l * to.planes.at.column};
      if (step.kind == Pool::max)
        context.table.pool_max(cell);
      else
        context.table.pool_average(cell);
    }
  });
}

void run(const Context &context, const MeanStep &step) {
  const Image &image = step.from;
  const Cells from = cells_of(image, image.height, image.width);
  const float *x = context.read(step.x);
  float *out = context.write(step.out);
  const int64_t planes = from.planes.num_planes, cell = from.planes.at.cell;
  for_each_task(from.images * planes, context.threads_for(image.num_images * image.channels * image.height * image.width),
                [&](int64_t task, int) {
    const int64_t n = task / planes, plane = task % planes;
    context.table.pool_average({x + n * from.planes.image + plane * from.planes.at.channel, image.height, image.width,
                                from.planes.at.row, from.planes.at.column, cell,
                                static_cast<float>(image.height * image.width), out + (n * planes + plane) * cell});
  });
}

void run(const Context &context, const PointwiseStep &step) {
  const Image &shape = step.shape;
  const float *a = context.read(step.a), *b = context.read(step.b);
  float *out = context.write(step.out);
  const int64_t pixels = shape.height * shape.width, floats = shape.num_images * shape.channels * pixels;
  if (!step.spread) {
    const int threads = context.threads_for(floats);
    const int64_t share = std::max<int64_t>(round_up(ceil_div(floats, threads), 64), 64);  // of none, too
    for_each_task(ceil_div(floats, share), threads, [&](int64_t task, int) {
      const int64_t begin = task * share, count = std::min(share, floats - begin);
      context.table.pointwise(step.kind, step.activation, a + begin, b + begin, false, count, out + begin);
    });
    return;
  }
  const Cells cells = cells_of(shape, shape.height, shape.width);
  const int64_t planes = cells.planes.num_planes, cell = cells.planes.at.cell;
  for_each_task(cells.images * planes, context.threads_for(floats), [&](int64_t task, int) {
    const int64_t n = task / planes, plane = task % planes, at = n * cells.planes.image + plane * cells.planes.at.channel;
    const float *scale = b + (n * planes + plane) * cell;
    if (cell == 1) {
      context.table.pointwise(step.kind, step.activation, a + at, scale, true, pixels, out + at);
      return;
    }
    for (int64_t pixel = 0; pixel < pixels; ++pixel)
      context.table.pointwise(step.kind, step.activation, a + at + pixel * cell, scale, false, cell, out + at + pixel * cell);
  });
}

void run(const Context &context, const ActivationStep &step) {
  const int threads = context.threads_for(step.count);
  const int64_t share = std::max<int64_t>(round_up(ceil_div(step.count, threads), 64), 64);
  const float *x = context.read(step.x);
  float *out = context.write(step.out);
  for_each_task(ceil_div(step.count, share), threads, [&](int64_t task, int) {
    const int64_t begin = task * share;
    context.table.activate(step.activation, x + begin, std::min(share, step.count - begin), out + begin);
  });
}

void run(const Context &context, const SoftmaxStep &step) {
  const float *x = context.read(step.x);
  float *out = context.write(step.out);
  for_each_task(step.rows, context.threads_for(step.rows * step.columns), [&](int64_t row, int) {
    context.table.softmax(x + row * step.columns, step.columns, out + row * step.columns);
  });
}

void run(const Context &context, const MoveStep &step) {
  const Image &image = step.from;
  convert_layout(image.layout, step.to, image.num_images, image.channels, image.height, image.width, context.read(step.x),
                 context.write(step.out), context.threads_for(image.num_images * image.channels * image.height * image.width));
}

}  // namespace

PreparedSegment::PreparedSegment(std::vector<Step> steps, int num_threads) : steps_(std::move(steps)), num_threads_(num_threads) {
  if (isa_in_use() < 0) return;
  for (const Step &step : steps_)
    if (const ConvStep *conv = std::get_if<ConvStep>(&step)) {
      convs_.push_back(prepare_conv2d(conv->conv, conv->num_images, conv->height, conv->width, num_threads));
      const Workspace need = convs_.back()->workspace();
      workspace_ = std::max(workspace_, need.shared + need.per_thread * num_threads);
    }
}

bool PreparedSegment::run(const float *const *inputs, float *arena, void *workspace, double *seconds) const {
  if (isa_in_use() < 0) return false;
  const Context context{*kTables[isa_in_use()], inputs, arena, workspace, num_threads_};
  using Clock = std::chrono::steady_clock;
  with_team(num_threads_, [&] {
    auto conv = convs_.begin();
    for (size_t i = 0; i < steps_.size(); ++i) {
      const Clock::time_point begin = seconds ? Clock::now() : Clock::time_point();
      const auto run_step = [&](const auto &step) {
        if constexpr (std::is_same_v<decltype(step), const ConvStep &>)
          tensure::run(context, step, **conv++);
        else
          tensure::run(context, step);
      };
      std::visit(run_step, steps_[i]);
      if (seconds) seconds[i] += std::chrono::duration<double>(Clock::now() - begin).count();
    }
  });
  return true;
}

}  // namespace tensure
