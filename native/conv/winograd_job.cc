// Winograd F(4x4, 3x3) in NHWC: stride 1, 3x3, no dilation, one group.
//
//   for block of output tiles (threads share these, and panels when blocks are few)
//     transform the block's input: V[36][tile][channel]
//     for panel of output channels
//       for each of the 36: M[36][tile][panel] = V times the panel's transformed filters      (the channel tiles of direct)
//       transform back, with the epilogue
#include "common/cache.h"
#include "common/threads.h"
#include "conv/jobs.h"

namespace tensure {
namespace {

// Rows of V are one vector longer than the channels, so that the 36 matrices do not fall on the same cache sets.
int64_t row_floats(const Conv2d &conv, const ConvTable &table) {
  return round_up(conv.in_channels, table.lanes) + table.lanes;
}

struct Shape {
  int64_t down, across, tiles, block;
};

Shape shape_of(const Conv2d &conv, const ConvTable &table, const Sizes &s, int num_threads) {
  const int64_t down = ceil_div(s.out_height, 4), across = ceil_div(s.out_width, 4), tiles = s.num_images * down * across;
  // V of a block fills about half of L2; fewer tiles than 12 would read every weight too often.
  int64_t block = std::clamp<int64_t>(l2_bytes() / 2 / (36 * 4 * row_floats(conv, table)), 12, 96);
  if (num_threads > 1) block = std::clamp<int64_t>(ceil_div(tiles, 2 * num_threads), std::min<int64_t>(12, block), block);
  return {down, across, tiles, ceil_div(tiles, ceil_div(tiles, block))};
}

struct Scratch {
  float *v, *m;
  const float **x;
  int64_t *out_at;
};

Scratch carve(Carver &carver, const Conv2d &conv, const ConvTable &table, int64_t block) {
  Scratch s{};
  s.v = carver.take<float>(36 * block * row_floats(conv, table));
  s.m = carver.take<float>(36 * block * table.max_vectors * table.lanes);
  s.x = carver.take<const float *>(block);
  s.out_at = carver.take<int64_t>(block);
  return s;
}

}  // namespace

Workspace winograd_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads) {
  Carver shared(nullptr), thread(nullptr);
  shared.take<int64_t>(conv.in_channels);
  carve(thread, conv, table, shape_of(conv, table, sizes, num_threads).block);
  return {shared.used(), thread.used()};
}

void run_winograd_job(const Conv2d &conv, const ConvTable &table, const Sizes &s, const Conv2dRun &run) {
  const Shape shape = shape_of(conv, table, s, run.num_threads);
  const TileShape tiles = tile_shape(conv, table);
  const std::vector<Panel> panels = channel_panels(conv, tiles);
  const Workspace need = winograd_workspace(conv, table, s, run.num_threads);
  int64_t *offsets = static_cast<int64_t *>(run.workspace);
  for (int64_t r = 0; r < conv.in_channels; ++r) offsets[r] = r;
  char *threads = static_cast<char *>(run.workspace) + need.shared;
  const int64_t C = conv.in_channels, ld = row_floats(conv, table), out_c = conv.out_channels;
  const int64_t num_panels = static_cast<int64_t>(panels.size());
  const int64_t num_blocks = ceil_div(shape.tiles, shape.block);
  const int64_t wanted = run.num_threads == 1 ? 1 : ceil_div(2 * run.num_threads, num_blocks);
  const int64_t parts = std::min(num_panels, wanted);
  for_each_task(num_blocks * parts, run.num_threads, [&](int64_t task, int thread) {
    Carver carver(threads + thread * need.per_thread);
    const Scratch scratch = carve(carver, conv, table, shape.block);
    const int64_t first = task / parts * shape.block, count = std::min(shape.block, shape.tiles - first);
    const auto place = [&](int64_t tile, int64_t &image, int64_t &row, int64_t &column) {
      image = tile / (shape.down * shape.across);
      row = tile / shape.across % shape.down * 4;
      column = tile % shape.across * 4;
    };
    int64_t image, row, column;
    for (int64_t i = 0; i < count; ++i) {
      place(first + i, image, row, column);
      table.winograd_input({run.x + image * run.height * run.width * C, run.height, run.width, C, row - conv.pad_top,
                            column - conv.pad_left, scratch.v + i * ld, shape.block * ld});
    }
    const int64_t part = task % parts;
    for (int64_t p = num_panels * part / parts; p < num_panels * (part + 1) / parts; ++p) {
      const Panel &panel = panels[p];
      const int vectors = static_cast<int>(ceil_div(panel.width, tiles.lanes));
      const ChannelKernel *kernels = panel.width % tiles.lanes ? table.channel_half[vectors - 1] : table.channel[1][vectors];
      const int64_t most = tiles.max_pixels[vectors], num_tiles = ceil_div(count, most);
      ChannelTile tile{};
      tile.offsets = offsets;
      tile.num_products = C;
      tile.num_channels = panel.width;
      tile.first = tile.last = true;
      for (int64_t i = 0; i < count; ++i) scratch.out_at[i] = i * panel.width;
      for (int e = 0; e < 36; ++e) {
        for (int64_t i = 0; i < count; ++i) scratch.x[i] = scratch.v + (e * shape.block + i) * ld;
        tile.w = run.packed + (panel.at * 36 + static_cast<int64_t>(e) * panel.width) * C;
        tile.to = {nullptr, nullptr, scratch.m + e * shape.block * panel.width, 1, Activation::none, false};
        for (int64_t t = 0; t < num_tiles; ++t) {
          const int64_t begin = count * t / num_tiles, end = count * (t + 1) / num_tiles;
          tile.x = scratch.x + begin;
          tile.out_at = scratch.out_at + begin;
          kernels[end - begin](tile);
        }
      }
      for (int64_t i = 0; i < count; ++i) {
        place(first + i, image, row, column);
        const Epilogue to{run.bias ? run.bias + panel.channel : nullptr, run.residual ? run.residual + panel.channel : nullptr,
                          run.out + panel.channel, 1, run.activation, false};
        table.winograd_output({scratch.m + i * panel.width, shape.block * panel.width, panel.channels,
                               std::min<int64_t>(4, s.out_height - row), std::min<int64_t>(4, s.out_width - column),
                               s.out_width * out_c, out_c,
                               ((image * s.out_height + row) * s.out_width + column) * out_c, to});
      }
    }
  });
}

}  // namespace tensure
