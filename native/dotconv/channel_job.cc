// Convolution by groups of products with output channels in the lanes: conv/channel_job.cc's loops over 32-bit groups.
//
//   for block of output pixels (images, rows, columns; threads share these, and panels when blocks are few)
//     copy the block's input with its padding, in the form the tiles read, or point into x
//     for panel of output channels          the panel's weights stay in L2 ...
//       for part of the groups              ... in parts, when a panel is larger than that
//         for tile of pixels                one call of a register tile, then of an epilogue
//
// Everything about x is counted in bytes: a tile only ever reads 32 bits at an offset.
#include "common/cache.h"
#include "common/threads.h"
#include "dotconv/jobs.h"

namespace tensure {
namespace {

constexpr int64_t kStagingBytes = 256 << 10;
constexpr int64_t kPanelBytes = 256 << 10;
constexpr int64_t kOverread = 4;  // bytes behind the last run that a group may reach

Sizes flattened(const Conv2d &conv, const Sizes &s) { return is_matrix_product(conv) ? one_long_row(s) : s; }

// Whether x's bytes have the other sign than the tiles read.
bool is_flipped(const DotTable &table, DotMethod method, DotElement element) {
  return method == DotMethod::bytes && (element == DotElement::s8) != table.signed_bytes;
}

bool reads_in_place(const Conv2d &conv, const DotTable &table, const DotLayout &layout, DotElement element) {
  return layout.method != DotMethod::shorts && !is_flipped(table, layout.method, element) && !has_padding(conv) &&
         layout.channels == group_in(conv) && layout.run_elements() % layout.per_group() == 0;
}

int64_t pixel_bytes(const Conv2d &conv, const DotLayout &layout) { return conv.groups * layout.channels * layout.element; }

int64_t staging_bytes(const Conv2d &conv, const DotLayout &layout, int64_t images, int64_t rows, int64_t columns) {
  return images * rows_reached(conv, rows) * columns_reached(conv, columns) * pixel_bytes(conv, layout);
}

Blocks choose_blocks(const Conv2d &conv, const DotLayout &layout, bool copies, const Sizes &s, int num_threads) {
  int64_t target = kFewPixels;
  if (4 * layout.num_groups() * conv.out_channels > l2_bytes() / 2) {
    // Weights come from L3 once a block: make blocks as large as their input fits beside a panel.
    const int64_t bytes = pixel_bytes(conv, layout) * conv.stride_h * conv.stride_w;
    target = std::clamp<int64_t>(kStagingBytes / bytes, kFewPixels, 1024);
  }
  if (copies && conv.kernel_h > 1) target = std::max<int64_t>(target, 8 * s.out_width);  // rows of a block share what they copy
  return cut_blocks(s, target, num_threads, kStagingBytes, [&](int64_t images, int64_t rows, int64_t columns) {
    return copies ? staging_bytes(conv, layout, images, rows, columns) : 0;
  });
}

struct Scratch {
  const char **x;
  int64_t *out_at;
  int32_t *sums;
  char *staging;
};

class DotJob {
 public:
  DotJob(const Conv2d &conv, const DotTable &table, DotMethod method, const Sizes &sizes, const DotRun &run)
      : conv_(conv),
        table_(table),
        sizes_(sizes),
        run_(run),
        layout_(dot_layout(conv, method)),
        shape_(dot_tile_shape(table)),
        panels_(channel_panels(conv, shape_)),
        in_place_(reads_in_place(conv, table, layout_, run.element)),
        flipped_(is_flipped(table, method, run.element)),
        blocks_(choose_blocks(conv, layout_, !in_place_, sizes, run.num_threads)),
        pixel_(pixel_bytes(conv, layout_)) {
    source_pixel_ = conv.in_channels * (run.element == DotElement::bf16 ? 2 : 1);
    columns_ = in_place_ ? sizes.width : columns_reached(conv, blocks_.columns);
    row_ = columns_ * pixel_;
    image_ = row_ * (in_place_ ? sizes.height : rows_reached(conv, blocks_.rows));
  }

  Workspace workspace() const {
    Carver shared(nullptr), thread(nullptr);
    shared.take<int64_t>(layout_.num_groups());
    carve_channels(shared, padded_channels(panels_));
    carve(thread);
    return {shared.used(), thread.used()};
  }

  void run() {
    const Workspace need = workspace();
    Carver shared(run_.workspace);
    int64_t *offsets = shared.take<int64_t>(layout_.num_groups());
    channels_ = carve_channels(shared, padded_channels(panels_));
    fill_offsets(offsets);
    offsets_ = offsets;
    const bool corrects = layout_.method == DotMethod::bytes;
    const char *packed = static_cast<const char *>(run_.packed);
    const int32_t *weight_sums =
        reinterpret_cast<const int32_t *>(packed + 4 * padded_channels(panels_) * layout_.num_groups());
    fill_channels(conv_, run_, panels_, corrects ? weight_sums : nullptr, sign_shift(), channels_);
    char *threads = static_cast<char *>(run_.workspace) + need.shared;
    // Panels become tasks of their own when there are too few blocks to go round.
    const int64_t wanted = run_.num_threads == 1 ? 1 : ceil_div(4 * run_.num_threads, blocks_.count());
    const int64_t num_panels = static_cast<int64_t>(panels_.size()), parts = std::min(num_panels, wanted);
    for_each_task(blocks_.count() * parts, run_.num_threads, [&](int64_t index, int thread) {
      Carver carver(threads + thread * need.per_thread);
      const Scratch scratch = carve(carver);
      const int64_t part = index % parts;
      block(index / parts, num_panels * part / parts, num_panels * (part + 1) / parts, scratch);
    });
  }

 private:
  // What a byte reads as, less what it is.
  int32_t sign_shift() const { return !flipped_ ? 0 : run_.element == DotElement::s8 ? 128 : -128; }

  int64_t part_groups(int64_t width) const { return std::max<int64_t>(kPanelBytes / (4 * width), 64); }

  Scratch carve(Carver &carver) const {
    const int64_t pixels = blocks_.max_pixels(), width = shape_.max_vectors * shape_.lanes;
    const bool is_split = part_groups(width) < layout_.num_groups();
    Scratch s{};
    s.x = carver.take<const char *>(pixels);
    s.out_at = carver.take<int64_t>(pixels);
    s.sums = carver.take<int32_t>((is_split ? pixels : kMaxPixels) * width);
    if (!in_place_)
      s.staging = carver.take<char>(staging_bytes(conv_, layout_, blocks_.images, blocks_.rows, blocks_.columns) + kOverread);
    return s;
  }

  void fill_offsets(int64_t *offset) const {
    for (int64_t run = 0; run < layout_.runs; ++run) {
      const int64_t u = run * layout_.columns / conv_.kernel_w, v = run * layout_.columns % conv_.kernel_w;
      const int64_t first = u * conv_.dilation_h * row_ + v * conv_.dilation_w * pixel_;
      for (int64_t g = 0; g < layout_.run_groups; ++g) *offset++ = first + 4 * g;
    }
  }

  void block(int64_t index, int64_t first_panel, int64_t last_panel, const Scratch &scratch) const {
    const Block at = block_at(sizes_, blocks_, index);
    const auto [n0, images] = at.images;
    const auto [m0, rows] = at.rows;
    const auto [l0, columns] = at.columns;
    const char *base = scratch.staging;
    if (in_place_)
      base = static_cast<const char *>(run_.x) + n0 * image_ + m0 * conv_.stride_h * row_ + l0 * conv_.stride_w * pixel_;
    else
      for (int64_t i = 0; i < images; ++i) stage(n0 + i, m0, rows, l0, columns, scratch.staging + i * image_);
    int64_t pixel = 0;
    for (int64_t i = 0; i < images; ++i)
      for (int64_t m = 0; m < rows; ++m) {
        const char *x = base + i * image_ + m * conv_.stride_h * row_;
        const int64_t out = ((n0 + i) * sizes_.out_height + m0 + m) * sizes_.out_width + l0;
        for (int64_t l = 0; l < columns; ++l, ++pixel) {
          scratch.x[pixel] = x + l * conv_.stride_w * pixel_;
          scratch.out_at[pixel] = (out + l) * conv_.out_channels;
        }
      }
    for (int64_t p = first_panel; p < last_panel; ++p) panel(panels_[p], pixel, scratch);
  }

  // The input that rows [m0, m0 + rows) and columns [l0, l0 + columns) of the output of image n reach, padding included.
  void stage(int64_t n, int64_t m0, int64_t rows, int64_t l0, int64_t columns, char *to) const {
    const int64_t top = m0 * conv_.stride_h - conv_.pad_top, first = l0 * conv_.stride_w - conv_.pad_left;
    const int64_t in_rows = rows_reached(conv_, rows), in_columns = columns_reached(conv_, columns);
    const int64_t left = std::clamp<int64_t>(-first, 0, in_columns);
    const int64_t right = std::clamp<int64_t>(first + in_columns - sizes_.width, 0, in_columns - left);
    const int64_t inside = in_columns - left - right;
    // Sums of bytes count the zero point; the other forms hold what is less it.
    const int padding = layout_.method == DotMethod::bytes ? run_.zero_point + sign_shift() : 0;
    for (int64_t i = 0; i < in_rows; ++i, to += row_) {
      const int64_t y = top + i;
      if (y < 0 || y >= sizes_.height) {
        std::memset(to, padding, in_columns * pixel_);
        continue;
      }
      std::memset(to, padding, left * pixel_);
      if (inside > 0) {
        const int64_t pixels_before = (n * sizes_.height + y) * sizes_.width + first + left;
        copy_pixels(static_cast<const char *>(run_.x) + pixels_before * source_pixel_, to + left * pixel_, inside);
      }
      std::memset(to + (left + inside) * pixel_, padding, right * pixel_);
    }
  }

  void copy_pixels(const char *from, char *to, int64_t count) const {
    const int64_t elements = count * conv_.in_channels;
    if (layout_.method == DotMethod::shorts) {
      table_.widen[static_cast<int>(run_.element)](from, to, elements, run_.zero_point);
    } else if (flipped_) {
      table_.flip(from, to, elements);
    } else if (layout_.channels == group_in(conv_)) {
      std::memcpy(to, from, count * source_pixel_);
    } else {
      const int64_t given = group_in(conv_) * layout_.element, stored = layout_.channels * layout_.element;
      for (int64_t i = 0; i < count * conv_.groups; ++i) {
        std::memcpy(to + i * stored, from + i * given, given);
        std::memset(to + i * stored + given, 0, stored - given);
      }
    }
  }

  void panel(const Panel &panel, int64_t pixels, const Scratch &scratch) const {
    const int vectors = panel.width / shape_.lanes;
    const DotKernel *kernels = table_.tile[static_cast<int>(layout_.method)][vectors];
    const int64_t tiles = ceil_div(pixels, shape_.max_pixels[vectors]);
    const int64_t groups = layout_.num_groups();
    const int64_t parts = tiles > 1 ? ceil_div(groups, part_groups(panel.width)) : 1;
    const int64_t group_at = panel.group * layout_.channels * layout_.element;
    const char *w = static_cast<const char *>(run_.packed) + 4 * panel.at * groups;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t k0 = groups * part / parts, k1 = groups * (part + 1) / parts;
      for (int64_t t = 0, p0 = 0, p1; t < tiles; ++t, p0 = p1) {
        p1 = pixels * (t + 1) / tiles;
        const char *x[kMaxPixels];
        for (int64_t i = p0; i < p1; ++i) x[i - p0] = scratch.x[i] + group_at;
        int32_t *sums = scratch.sums + (parts > 1 ? p0 * panel.width : 0);
        const DotTile tile{x, offsets_ + k0, k1 - k0, w + 4 * k0 * panel.width, sums, part == 0};
        kernels[p1 - p0](tile);
        if (part == parts - 1)
          finish_pixels(table_, run_, channels_, panel.at, panel.channel, panel.channels, panel.width, sums,
                        scratch.out_at + p0, static_cast<int>(p1 - p0));
      }
    }
  }

  const Conv2d &conv_;
  const DotTable &table_;
  const Sizes sizes_;
  const DotRun &run_;
  const DotLayout layout_;
  const TileShape shape_;
  const std::vector<Panel> panels_;
  const bool in_place_, flipped_;
  const Blocks blocks_;
  const int64_t pixel_;  // bytes of a pixel as the tiles read it
  int64_t source_pixel_ = 0, columns_ = 0, row_ = 0, image_ = 0;
  const int64_t *offsets_ = nullptr;
  DotChannels channels_{};
};

}  // namespace

Workspace dot_channel_workspace(const Conv2d &conv, const DotTable &table, DotMethod method, const Sizes &sizes,
                                const DotRun &run) {
  return DotJob(conv, table, method, flattened(conv, sizes), run).workspace();
}

void run_dot_channel_job(const Conv2d &conv, const DotTable &table, DotMethod method, const Sizes &sizes, const DotRun &run) {
  DotJob(conv, table, method, flattened(conv, sizes), run).run();
}

}  // namespace tensure
