// Convolution with output channels in the lanes: NCHW and NHWC by direct and im2win, and im2col in every layout.
//
//   for block of output pixels (images, rows, columns; threads share these, and panels when blocks are few)
//     stage or im2win the block's input, or point into x
//     for panel of output channels          the panel's weights stay in L2 ...
//       for part of the products            ... in parts, when a panel is larger than that
//         for tile of pixels                one call of a register tile
//
// Blocks and parts only decide when a product is added, never in which order: an output's sum is one chain.
#include "common/cache.h"
#include "common/threads.h"
#include "conv/jobs.h"

namespace tensure {
namespace {

constexpr int64_t kStagingBytes = 320 << 10;
constexpr int64_t kPanelBytes = 256 << 10;
constexpr int64_t kShareFloats = 4;     // the least of a product's weights that a tile fetches ahead
constexpr int64_t kProductsAhead = 16;  // of a lone pixel
// Outputs over this many times L2 are written past the caches; one that the next step reads only where L3 would not hold
// it either: reading 5 MB back from memory costs a MobileNet 8 % of its time, 13 MB kept costs VGG-16 half a per cent.
constexpr int64_t kStreamedL2s = 2, kKeptL2s = 8;

int64_t cell_of(const Conv2d &conv) { return conv.layout == Layout::nhwc ? conv.in_channels : 1; }
int64_t planes_of(const Conv2d &conv) { return conv.layout == Layout::nhwc ? 1 : conv.in_channels; }

// Floats of the thread's copy of a block's input.
int64_t staging_floats(const Conv2d &conv, Source source, int64_t images, int64_t rows, int64_t columns) {
  const int64_t in_columns = columns_reached(conv, columns);
  switch (source) {
    case Source::staged: return images * conv.in_channels * rows_reached(conv, rows) * in_columns;
    case Source::fused: return images * conv.in_channels * rows * in_columns * conv.kernel_h;
    default: return 0;
  }
}

// Whether the weights are more than stay in L2: they come from L3 once a block.
bool outgrows_l2(const Conv2d &conv) { return 4 * num_products(conv) * conv.out_channels > l2_bytes() / 2; }

bool copies(Source source) { return source == Source::staged || source == Source::fused; }

Deal choose_deal(const Conv2d &conv, Source source, const Sizes &s, const TileShape &shape, const std::vector<Panel> &panels,
                 int num_threads) {
  if (!(conv.switches & kCacheBlock)) return {cut_evenly(s, s.num_images, 1, 1), 1};
  const bool reloads = outgrows_l2(conv);
  int64_t target = kFewPixels;
  if (reloads) {
    // Make blocks as large as their input fits beside a panel.
    const int64_t pixel_bytes = 4 * conv.in_channels * conv.stride_h * conv.stride_w;
    target = std::clamp<int64_t>(kStagingBytes / pixel_bytes, kFewPixels, 1024);
  }
  if (copies(source)) target = std::max<int64_t>(target, 8 * s.out_width);  // rows of a block share what they copy
  const auto bytes_of = [&](int64_t images, int64_t rows, int64_t columns) {
    return 4 * staging_floats(conv, source, images, rows, columns);
  };
  const Blocks blocks = cut_blocks(s, target, num_threads, kStagingBytes, bytes_of);
  if (!(conv.switches & kCoalesce)) return {blocks, 1};
  const int64_t vectors = ceil_div(panels.front().width, shape.lanes);
  const int64_t products_a_pixel = num_products(conv) * conv.out_channels / static_cast<int64_t>(panels.size());
  const TaskCost cost{shape.max_pixels[vectors], reloads ? 6 : 1, 2.0 / static_cast<double>(products_a_pixel)};
  return deal_out(s, blocks, static_cast<int64_t>(panels.size()), num_threads, cost, bytes_of);
}

bool is_product(const Conv2d &conv) {
  return conv.layout == Layout::nhwc && conv.algorithm == ConvAlgorithm::direct && is_matrix_product(conv);
}

Sizes flattened(const Conv2d &conv, const Sizes &s) { return is_product(conv) ? one_long_row(s) : s; }

struct Scratch {
  const float **x;
  int64_t *out_at, *pixel_row, *pixel_column;
  float *partial, *staging;
};

// Products of one part of a panel.
int64_t part_products(const Conv2d &conv, int64_t width) {
  const bool whole = !(conv.switches & kCacheBlock) || !(conv.switches & kHoist);
  return whole ? num_products(conv) : std::max<int64_t>(kPanelBytes / (4 * width), 64);
}
bool is_split(const Conv2d &conv, const TileShape &shape) {
  return part_products(conv, shape.max_vectors * shape.lanes) < num_products(conv);
}

Scratch carve(Carver &carver, const Conv2d &conv, Source source, const Blocks &b, const TileShape &shape) {
  Scratch s{};
  const int64_t pixels = b.max_pixels();
  s.x = carver.take<const float *>(pixels);
  s.out_at = carver.take<int64_t>(pixels);
  if (!(conv.switches & kHoist)) {
    s.pixel_row = carver.take<int64_t>(pixels);
    s.pixel_column = carver.take<int64_t>(pixels);
  }
  if (is_split(conv, shape)) s.partial = carver.take<float>(pixels * shape.max_vectors * shape.lanes);
  s.staging = carver.take<float>(staging_floats(conv, source, b.images, b.rows, b.columns));
  return s;
}

// What does not change from run to run: blocks, shares, panels and strides.
struct ChannelPlan {
  ChannelPlan(const Conv2d &conv, const ConvTable &table, const Sizes &given, int num_threads)
      : conv(conv),
        table(table),
        given(given),
        sizes(flattened(conv, given)),
        num_threads(num_threads),
        source(source_of(conv)),
        shape(tile_shape(conv, table)),
        panels(channel_panels(conv, shape)),
        deal(choose_deal(conv, source, sizes, shape, panels, num_threads)),
        products(num_products(conv)),
        fetches(outgrows_l2(conv)),
        in(planes(conv.layout, given.num_images, conv.in_channels, given.height, given.width)),
        out(planes(conv.layout, given.num_images, conv.out_channels, given.out_height, given.out_width)) {
    if (is_product(conv)) {
      in = planes(conv.layout, 1, conv.in_channels, 1, sizes.width);
      out = planes(conv.layout, 1, conv.out_channels, 1, sizes.width);
    }
    set_strides();
  }

  Workspace workspace() const {
    Carver shared(nullptr), thread(nullptr);
    shared.take<float>(whole_floats());
    carve(thread, conv, source, blocks, shape);
    return {shared.used(), thread.used()};
  }

  int64_t whole_floats() const {
    if (source != Source::whole) return 0;
    if (conv.algorithm == ConvAlgorithm::im2col)
      return sizes.num_images * sizes.out_height * sizes.out_width * conv.groups * products;
    return im2win_size(conv, given.num_images, given.height, given.width);
  }

  // Of each product, from a window's base.
  void fill_offsets(int64_t *offset) const {
    if (conv.algorithm == ConvAlgorithm::im2col) {
      for (int64_t k = 0; k < products; ++k) offset[k] = k;
      return;
    }
    const bool windows = source == Source::fused || source == Source::whole;
    const int64_t u_step = windows ? at.cell : conv.dilation_h * at.row;
    const int64_t v_step = conv.dilation_w * at.column;
    for_each_product(conv, [&](int64_t u, int64_t v, int64_t r) {
      *offset++ = u * u_step + v * v_step + r * at.channel;
    });
  }

  const Conv2d conv;
  const ConvTable &table;
  const Sizes given, sizes;  // as the caller has them, and as one long row where that is the same
  const int num_threads;
  const Source source;
  const TileShape shape;
  const std::vector<Panel> panels;
  const Deal deal;
  const Blocks &blocks = deal.blocks;
  const int64_t products;
  const bool fetches;  // weights ahead of time, because they do not all stay in L2
  Planes in, out;
  Strides at{};
  int64_t window_columns = 0, row_step = 0, column_step = 0, image_step = 0;

 private:
  // Strides of what the windows are read from: between planes, output rows' first windows, columns, and cells of a column.
  void set_strides() {
    const int64_t cell = cell_of(conv);
    const bool one_plane = conv.layout == Layout::nhwc;  // a cell then holds all channels, one after the other
    window_columns = copies(source) ? columns_reached(conv, blocks.columns) : im2win_row_cells(conv, given.width);
    switch (source) {
      case Source::in_place:
        at = in.at;
        row_step = at.row * conv.stride_h;
        column_step = at.column * conv.stride_w;
        image_step = in.image;
        break;
      case Source::staged: {
        const int64_t rows = rows_reached(conv, blocks.rows);
        const int64_t plane = rows * window_columns * cell;
        at = {one_plane ? 1 : plane, window_columns * cell, cell, cell};
        row_step = at.row * conv.stride_h;
        column_step = at.column * conv.stride_w;
        image_step = planes_of(conv) * plane;
        break;
      }
      case Source::fused:
      case Source::whole: {
        if (conv.algorithm == ConvAlgorithm::im2col) {
          at = {1, 0, 0, 1};
          column_step = conv.groups * products;
          row_step = column_step * sizes.out_width;
          image_step = row_step * sizes.out_height;
          break;
        }
        const int64_t rows = source == Source::fused ? blocks.rows : sizes.out_height;
        const int64_t column = conv.kernel_h * cell, plane = rows * window_columns * column;
        at = {one_plane ? 1 : plane, window_columns * column, column, cell};
        row_step = at.row;
        column_step = column * conv.stride_w;
        image_step = planes_of(conv) * plane;
        break;
      }
    }
  }
};

// One run of a plan.
class ChannelJob {
 public:
  ChannelJob(const ChannelPlan &plan, const int64_t *offsets, const Conv2dRun &run)
      : plan_(plan),
        conv_(plan.conv),
        sizes_(plan.sizes),
        blocks_(plan.blocks),
        offsets_(offsets),
        run_(run),
        streams_(streams()) {}

  void run() {
    const Workspace need = plan_.workspace();
    if (plan_.source == Source::whole) {
      float *whole = static_cast<float *>(run_.workspace);
      fill_whole(whole);
      whole_ = whole;
    }
    char *threads = static_cast<char *>(run_.workspace) + need.shared;
    const bool coalesce = conv_.switches & kCoalesce;
    const int64_t num_panels = static_cast<int64_t>(plan_.panels.size()), parts = plan_.deal.parts;
    const auto task = [&](int64_t index, int thread) {
      Carver carver(threads + thread * need.per_thread);
      const Scratch scratch = carve(carver, conv_, plan_.source, blocks_, plan_.shape);
      const int64_t part = index % parts;
      block(index / parts, num_panels * part / parts, num_panels * (part + 1) / parts, scratch);
    };
    if (coalesce) {
      for_each_task(blocks_.count() * parts, plan_.num_threads, task);
    } else {
      const int64_t per_image = blocks_.row_blocks * blocks_.column_blocks;
      for_each_task(blocks_.image_blocks, plan_.num_threads, [&](int64_t image, int thread) {
        for (int64_t i = 0; i < per_image; ++i) task(image * per_image + i, thread);
      });
    }
  }

 private:
  // An output that the core's own caches will not hold until somebody reads it is written past them: a line that is
  // written whole need not be read first. (Tiles are aligned when the array and every pixel of it are.)
  bool streams() const {
    const int64_t bytes = 4 * sizes_.num_images * sizes_.out_height * sizes_.out_width * conv_.out_channels;
    const int64_t most = (run_.read_next ? kKeptL2s : kStreamedL2s) * l2_bytes();
    return conv_.layout == Layout::nhwc && bytes > most && conv_.out_channels % plan_.shape.lanes == 0 &&
           group_out(conv_) % plan_.shape.lanes == 0 && reinterpret_cast<uintptr_t>(run_.out) % 64 == 0;
  }

  void fill_whole(float *whole) const {
    if (conv_.algorithm == ConvAlgorithm::im2win_full) {
      im2win(conv_, run_.num_images, run_.height, run_.width, run_.x, whole, plan_.num_threads);
      return;
    }
    const int64_t rows = sizes_.num_images * sizes_.out_height, lanes = plan_.in.at.cell;
    const int64_t block = layout_block(conv_.layout);
    const int64_t R = group_in(conv_), H = conv_.kernel_h, W = conv_.kernel_w;
    for_each_task(rows, plan_.num_threads, [&](int64_t index, int) {
      const int64_t n = index / sizes_.out_height, m = index % sizes_.out_height;
      const float *image = image_of(run_.x, plan_.in, n, lanes, block);
      float *to = whole + index * plan_.row_step;
      const int64_t channel = conv_.layout == Layout::nhwc ? 1 : plan_.in.at.channel;
      for (int64_t l = 0; l < sizes_.out_width; ++l)
        for (int64_t g = 0; g < conv_.groups; ++g) {
          const auto put = [&](int64_t u, int64_t v, int64_t r) {
            const int64_t y = m * conv_.stride_h + u * conv_.dilation_h - conv_.pad_top;
            const int64_t x = l * conv_.stride_w + v * conv_.dilation_w - conv_.pad_left;
            const bool outside = y < 0 || y >= run_.height || x < 0 || x >= run_.width;
            *to++ = outside ? 0.0f : image[y * plan_.in.at.row + x * plan_.in.at.column + (g * R + r) * channel];
          };
          if (conv_.layout == Layout::nhwc) {
            for (int64_t u = 0; u < H; ++u)
              for (int64_t v = 0; v < W; ++v)
                for (int64_t r = 0; r < R; ++r) put(u, v, r);
          } else {
            for (int64_t r = 0; r < R; ++r)
              for (int64_t u = 0; u < H; ++u)
                for (int64_t v = 0; v < W; ++v) put(u, v, r);
          }
        }
    });
  }

  // Where image n begins; for layouts with image lanes, its lane.
  template <typename T> static T *image_of(T *x, const Planes &p, int64_t n, int64_t lanes, int64_t block) {
    return block ? x + n / block * p.image + n % lanes : x + n * p.image;
  }

  void block(int64_t index, int64_t first_panel, int64_t last_panel, const Scratch &scratch) const {
    const Block at = block_at(sizes_, blocks_, index);
    const auto [n0, images] = at.images;
    const auto [m0, rows] = at.rows;
    const auto [l0, columns] = at.columns;
    const bool copied = copies(plan_.source);
    const float *base = copied ? scratch.staging : plan_.source == Source::whole ? whole_ : run_.x;
    if (copied) copy_input(n0, images, m0, rows, l0, columns, scratch.staging);
    int64_t pixel = 0;
    const int64_t lanes = plan_.out.at.cell, lane_block = layout_block(conv_.layout);
    for (int64_t i = 0; i < images; ++i)
      for (int64_t m = 0; m < rows; ++m) {
        const float *x = copied ? base + i * plan_.image_step + m * plan_.row_step
                                : base + (n0 + i) * plan_.image_step + (m0 + m) * plan_.row_step + l0 * plan_.column_step;
        const int64_t first = lane_block ? (n0 + i) / lane_block * plan_.out.image + (n0 + i) % lanes : (n0 + i) * plan_.out.image;
        const int64_t out = first + (m0 + m) * plan_.out.at.row + l0 * plan_.out.at.column;
        for (int64_t l = 0; l < columns; ++l, ++pixel) {
          scratch.x[pixel] = x + l * plan_.column_step;
          scratch.out_at[pixel] = out + l * plan_.out.at.column;
          if (scratch.pixel_row) {
            const int64_t rows_before = copied ? i * rows_reached(conv_, blocks_.rows) : (n0 + i) * run_.height;
            scratch.pixel_row[pixel] = rows_before + (copied ? m : m0 + m) * conv_.stride_h;
            scratch.pixel_column[pixel] = (copied ? l : l0 + l) * conv_.stride_w;
          }
        }
      }
    if (conv_.switches & kReorder) {
      for (int64_t p = first_panel; p < last_panel; ++p) panel(plan_.panels[p], 0, pixel, scratch, base);
      return;
    }
    const int64_t few = plan_.shape.max_pixels[plan_.shape.max_vectors];
    for (int64_t begin = 0; begin < pixel; begin += few)
      for (int64_t p = first_panel; p < last_panel; ++p)
        panel(plan_.panels[p], begin, std::min(pixel, begin + few), scratch, base);
  }

  void copy_input(int64_t n0, int64_t images, int64_t m0, int64_t rows, int64_t l0, int64_t columns, float *staging) const {
    const int64_t cell = cell_of(conv_);
    for (int64_t i = 0; i < images; ++i) {
      const float *image = run_.x + (n0 + i) * plan_.in.image;
      float *to = staging + i * plan_.image_step;
      const int64_t left = l0 * conv_.stride_w - conv_.pad_left, in_columns = columns_reached(conv_, columns);
      if (plan_.source == Source::staged)
        stage(plan_.in, image, run_.height, run_.width, m0 * conv_.stride_h - conv_.pad_top, rows_reached(conv_, rows), left,
              in_columns, plan_.at, cell, to);
      else
        im2win_rows(conv_, plan_.in, image, run_.height, run_.width, m0, rows, left, in_columns, plan_.at, cell, to);
    }
  }

  // The weights that a part's tiles fetch into L2 on their way: each `share` floats of every product, one after the other.
  struct Ahead {
    const float *weights;
    int64_t share;
  };

  // What this thread wants next stands behind the part's weights, or it begins anew with another block. A lone pixel reads
  // a product's weights faster than the processor foresees: its tile fetches those of a later product.
  Ahead ahead_of(const ChannelTile &part, const Panel &panel, int64_t pixels, int64_t tiles, bool is_last_panel) const {
    const Ahead nothing{part.w, 0};
    if (!plan_.fetches) return nothing;
    if (pixels == 1) return {part.w + kProductsAhead * panel.width, panel.width};
    const bool begins_anew = part.last && is_last_panel;
    if (tiles == 1 || (begins_anew && blocks_.count() == 1)) return nothing;
    return {begins_anew ? run_.packed : part.w + part.num_products * panel.width,
            round_up(ceil_div(panel.width, tiles), kShareFloats)};
  }

  void panel(const Panel &panel, int64_t begin, int64_t end, const Scratch &scratch, const float *base) const {
    const int vectors = static_cast<int>(ceil_div(panel.width, plan_.shape.lanes));
    const bool half = panel.width % plan_.shape.lanes;
    const int64_t most = plan_.shape.max_pixels[vectors];
    const int64_t pixels = end - begin, tiles = ceil_div(pixels, most);
    const int64_t group_at = panel.group * group_in(conv_) *
                             (conv_.algorithm == ConvAlgorithm::im2col ? conv_.kernel_h * conv_.kernel_w : plan_.at.channel);
    const bool hoisted = conv_.switches & kHoist;
    const int64_t part_most = tiles > 1 ? part_products(conv_, panel.width) : plan_.products;
    const int64_t parts = ceil_div(plan_.products, part_most);
    const int64_t channel_stride = conv_.layout == Layout::nhwc ? 1 : plan_.out.at.channel;
    Unhoisted indices{base + group_at, nullptr, nullptr, conv_.kernel_h, conv_.kernel_w, group_in(conv_),
                      conv_.dilation_h, conv_.dilation_w, plan_.at.row, plan_.at.column};
    ChannelTile tile{};
    tile.num_channels = panel.channels;
    tile.to = {run_.bias ? run_.bias + panel.channel : nullptr,
               run_.residual ? run_.residual + panel.channel * channel_stride : nullptr,
               run_.out + panel.channel * channel_stride, channel_stride, run_.activation, streams_};
    const ChannelKernel *kernels = half            ? plan_.table.channel_half[vectors - 1]
                                   : plan_.shape.scalar ? plan_.table.scalar[hoisted][vectors]
                                                   : plan_.table.channel[hoisted][vectors];
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t k0 = plan_.products * part / parts, k1 = plan_.products * (part + 1) / parts;
      tile.offsets = offsets_ + k0;
      tile.num_products = k1 - k0;
      tile.w = run_.packed + panel.at * plan_.products + k0 * panel.width;
      tile.first = part == 0;
      tile.last = part == parts - 1;
      const Ahead ahead = ahead_of(tile, panel, pixels, tiles, &panel == &plan_.panels.back());
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t p0 = begin + pixels * t / tiles, p1 = begin + pixels * (t + 1) / tiles;
        const bool has_share = t * ahead.share < panel.width;
        tile.next = has_share ? ahead.weights + tile.num_products * t * ahead.share : tile.w;
        tile.step = has_share ? ahead.share : 0;
        const float *moved[kMaxPixels];
        tile.x = scratch.x + p0;
        if (group_at) {
          for (int64_t i = p0; i < p1; ++i) moved[i - p0] = scratch.x[i] + group_at;
          tile.x = moved;
        }
        tile.out_at = scratch.out_at + p0;
        tile.partial = scratch.partial + (p0 - begin) * panel.width;
        if (!hoisted) {
          indices.pixel_row = scratch.pixel_row + p0;
          indices.pixel_column = scratch.pixel_column + p0;
          tile.unhoisted = &indices;
        }
        kernels[p1 - p0](tile);
      }
    }
  }

  const ChannelPlan &plan_;
  const Conv2d &conv_;
  const Sizes &sizes_;
  const Blocks &blocks_;
  const int64_t *offsets_;
  const Conv2dRun &run_;
  const bool streams_;
  const float *whole_ = nullptr;
};

class PreparedChannels final : public PreparedConv2d {
 public:
  PreparedChannels(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads)
      : plan_(conv, table, sizes, num_threads), offsets_(plan_.products) {
    plan_.fill_offsets(offsets_.data());
  }
  Workspace workspace() const override { return plan_.workspace(); }
  void run(const Conv2dRun &run) const override { ChannelJob(plan_, offsets_.data(), run).run(); }

 private:
  const ChannelPlan plan_;
  std::vector<int64_t> offsets_;
};

}  // namespace

Workspace channel_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads) {
  return ChannelPlan(conv, table, sizes, num_threads).workspace();
}

std::unique_ptr<const PreparedConv2d> prepare_channel_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes,
                                                          int num_threads) {
  return std::make_unique<PreparedChannels>(conv, table, sizes, num_threads);
}

}  // namespace tensure
