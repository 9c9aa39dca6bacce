// Dispatch: which instruction set, which job. Compiled for the platform's baseline: nothing here may need more.
#include "conv/conv.h"

#include "common/isa.h"
#include "common/threads.h"
#include "conv/jobs.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const ConvTable conv_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &conv_##isa,
static const ConvTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

static const ConvTable *table() { return isa_in_use() < 0 ? nullptr : kTables[isa_in_use()]; }

static int64_t out_size(int64_t size, int64_t pad, int64_t kernel, int64_t dilation, int64_t stride) {
  const int64_t room = size + pad - (kernel - 1) * dilation - 1;
  return room < 0 ? 0 : room / stride + 1;
}

int64_t conv2d_out_height(const Conv2d &c, int64_t height) {
  return out_size(height, c.pad_top + c.pad_bottom, c.kernel_h, c.dilation_h, c.stride_h);
}
int64_t conv2d_out_width(const Conv2d &c, int64_t width) {
  return out_size(width, c.pad_left + c.pad_right, c.kernel_w, c.dilation_w, c.stride_w);
}

static Sizes sizes_of(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width) {
  return {num_images, height, width, conv2d_out_height(conv, height), conv2d_out_width(conv, width)};
}

Source source_of(const Conv2d &conv) {
  switch (conv.algorithm) {
    case ConvAlgorithm::im2win: return Source::fused;
    case ConvAlgorithm::im2win_full:
    case ConvAlgorithm::im2col: return Source::whole;
    default: return has_padding(conv) ? Source::staged : Source::in_place;
  }
}

int64_t conv2d_packed_size(const Conv2d &conv) { return table() ? packed_size(conv, *table()) : 0; }

void conv2d_pack(const Conv2d &conv, const float *w, float *packed) {
  if (table()) pack(conv, *table(), w, packed);
}

Workspace conv2d_workspace(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width, int num_threads) {
  if (!table() || num_images == 0) return {0, 0};
  const Sizes sizes = sizes_of(conv, num_images, height, width);
  if (conv.algorithm == ConvAlgorithm::winograd) return winograd_workspace(conv, *table(), sizes, num_threads);
  if (is_depthwise(conv)) return depthwise_workspace(conv, sizes, num_threads);
  if (runs_image_tiles(conv)) return image_workspace(conv, *table(), sizes, num_threads);
  return channel_workspace(conv, *table(), sizes, num_threads);
}

bool conv2d(const Conv2d &conv, const Conv2dRun &run) {
  if (!table()) return false;
  const Sizes sizes = sizes_of(conv, run.num_images, run.height, run.width);
  if (run.num_images == 0) return true;
  if (conv.algorithm == ConvAlgorithm::winograd)
    run_winograd_job(conv, *table(), sizes, run);
  else if (is_depthwise(conv))
    run_depthwise_job(conv, *table(), sizes, run);
  else if (runs_image_tiles(conv))
    run_image_job(conv, *table(), sizes, run);
  else
    prepare_channel_job(conv, *table(), sizes, run.num_threads)->run(run);
  return true;
}

namespace {

// Jobs that have little to prepare: they do so in every run.
class UnpreparedConv2d final : public PreparedConv2d {
 public:
  UnpreparedConv2d(const Conv2d &conv, const Workspace &workspace) : conv_(conv), workspace_(workspace) {}
  Workspace workspace() const override { return workspace_; }
  void run(const Conv2dRun &run) const override { conv2d(conv_, run); }

 private:
  const Conv2d conv_;
  const Workspace workspace_;
};

}  // namespace

std::unique_ptr<const PreparedConv2d> prepare_conv2d(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width,
                                                     int num_threads) {
  if (!table()) return nullptr;
  if (num_images == 0 || conv.algorithm == ConvAlgorithm::winograd || is_depthwise(conv) || runs_image_tiles(conv))
    return std::make_unique<UnpreparedConv2d>(conv, conv2d_workspace(conv, num_images, height, width, num_threads));
  return prepare_channel_job(conv, *table(), sizes_of(conv, num_images, height, width), num_threads);
}

// --- im2win as a tensor of its own ---

int64_t im2win_row_cells(const Conv2d &conv, int64_t width) { return width + conv.pad_left + conv.pad_right; }

int64_t im2win_size(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width) {
  return num_images * conv.in_channels * conv2d_out_height(conv, height) * im2win_row_cells(conv, width) * conv.kernel_h;
}

void im2win(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width, const float *x, float *out,
            int num_threads) {
  const int64_t out_height = conv2d_out_height(conv, height), columns = im2win_row_cells(conv, width);
  const Planes from = planes(conv.layout, num_images, conv.in_channels, height, width);
  const int64_t cell = from.at.cell, column = conv.kernel_h * cell, row = columns * column;
  const Strides to{out_height * row, row, column, cell};
  const int64_t block = layout_block(conv.layout);
  // CHWN holds all images in its cells; the others have one tensor an image or block of images.
  const int64_t tensors = conv.layout == Layout::chwn ? 1 : block ? num_images / block : num_images;
  for_each_task(tensors * out_height, num_threads, [&](int64_t task, int) {
    const int64_t n = task / out_height, m = task % out_height;
    im2win_rows(conv, from, x + n * from.image, height, width, m, 1, -conv.pad_left, columns, to, cell,
                out + n * from.num_planes * to.channel + m * row);
  });
}

// --- layouts ---

template <int C> static void weave_planes(const float *x, int64_t plane, int64_t width, float *out) {
  for (int64_t l = 0; l < width; ++l)
    for (int c = 0; c < C; ++c) out[l * C + c] = x[c * plane + l];
}
// Three planes, the usual picture, four pixels at a time: compilers shuffle one float after the other.
static void weave_three(const float *x, int64_t plane, int64_t width, float *out) {
  typedef float Four __attribute__((vector_size(16), aligned(4)));
  const auto four = [](const float *p) { return *reinterpret_cast<const Four *>(p); };
  int64_t l = 0;
  for (; l + 4 <= width; l += 4) {
    const Four a = four(x + l), b = four(x + plane + l), c = four(x + 2 * plane + l);
    Four *to = reinterpret_cast<Four *>(out + 3 * l);
    const Four low = __builtin_shufflevector(a, b, 0, 4, 1, 5), high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
    to[0] = __builtin_shufflevector(low, c, 0, 1, 4, 2);
    to[1] = __builtin_shufflevector(__builtin_shufflevector(low, c, 3, 5, 3, 5), high, 0, 1, 4, 5);
    to[2] = __builtin_shufflevector(c, high, 2, 6, 7, 3);
  }
  if (l < width) weave_planes<3>(x + l, plane, width - l, out + 3 * l);
}
static void weave(int64_t channels, const float *x, int64_t plane, int64_t width, float *out) {
  switch (channels) {
    case 1: return weave_planes<1>(x, plane, width, out);
    case 2: return weave_planes<2>(x, plane, width, out);
    case 3: return weave_three(x, plane, width, out);
    case 4: return weave_planes<4>(x, plane, width, out);
  }
}

void convert_layout(Layout source, Layout target, int64_t num_images, int64_t channels, int64_t height, int64_t width,
                    const float *x, float *out, int num_threads) {
  const auto padded = [num_images](Layout layout) {
    return layout_block(layout) ? round_up(num_images, layout_block(layout)) : num_images;
  };
  const Planes from = planes(source, padded(source), channels, height, width);
  const Planes to = planes(target, padded(target), channels, height, width);
  const auto channel = [](Layout layout, const Planes &p) { return layout == Layout::nhwc ? 1 : p.at.channel; };
  const auto image = [](Layout layout, const Planes &p, int64_t n) {
    const int64_t block = layout_block(layout);
    return block ? n / block * p.image + n % block : n * p.image;
  };
  const int64_t from_c = channel(source, from), to_c = channel(target, to);
  if (source == Layout::nchw && target == Layout::nhwc && channels <= 4) {
    // Pictures: a few planes woven into one.
    for_each_task(num_images * height, num_threads, [&](int64_t row, int) {
      const int64_t n = row / height, y = row % height;
      weave(channels, x + n * from.image + y * from.at.row, from.at.channel, width, out + n * to.image + y * to.at.row);
    });
    return;
  }
  constexpr int64_t B = 16;  // squares of channels by columns, or images by columns, stay in L1
  for_each_task(padded(target) == 0 ? 0 : height, num_threads, [&](int64_t y, int) {
    for (int64_t c0 = 0; c0 < channels; c0 += B)
      for (int64_t n0 = 0; n0 < padded(target); n0 += B)
        for (int64_t l0 = 0; l0 < width; l0 += B)
          for (int64_t c = c0; c < std::min(channels, c0 + B); ++c)
            for (int64_t n = n0; n < std::min(padded(target), n0 + B); ++n) {
              const float *in = x + image(source, from, n) + c * from_c + y * from.at.row;
              float *to_row = out + image(target, to, n) + c * to_c + y * to.at.row;
              for (int64_t l = l0; l < std::min(width, l0 + B); ++l)
                to_row[l * to.at.column] = n < num_images ? in[l * from.at.column] : 0.0f;
            }
  });
}

}  // namespace tensure
