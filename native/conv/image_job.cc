// Convolution with images in the lanes: CHWN, CHWN8 and CHWN16, direct and im2win.
//
//   for chunk of images (as many as a vector holds), block of output pixels      threads share these
//     for tile of pixels                       their input stays in the caches ...
//       for panel of filters                   ... while every filter passes
//         one call of a register tile
#include "common/threads.h"
#include "conv/jobs.h"

namespace tensure {
namespace {

constexpr int64_t kStagingBytes = 768 << 10;

// Images that go through the kernels together.
struct Chunks {
  int64_t count, lanes;     // lanes of a whole chunk
  const ImageKernel (*kernels)[kMaxColumns + 1];
};

Chunks chunks_of(const Conv2d &conv, const ConvTable &table, int64_t num_images) {
  const int64_t block = layout_block(conv.layout);
  const int64_t lanes = block == 8 ? table.lanes_8 : block ? std::min<int64_t>(block, table.lanes) : table.lanes;
  return {ceil_div(num_images, lanes), lanes, block == 8 ? table.image_8 : table.image};
}

int64_t staging_floats(const Conv2d &conv, Source source, int64_t rows, int64_t columns, int64_t lanes) {
  const int64_t in_columns = columns_reached(conv, columns);
  switch (source) {
    case Source::staged: return conv.in_channels * rows_reached(conv, rows) * in_columns * lanes;
    case Source::fused: return conv.in_channels * rows * in_columns * conv.kernel_h * lanes;
    default: return 0;
  }
}

Blocks choose_blocks(const Conv2d &conv, Source source, const Sizes &s, int64_t lanes) {
  Blocks b{1, 1, s.out_width, 0, 0, 0};
  const auto bytes = [&] { return 4 * staging_floats(conv, source, b.rows, b.columns, lanes); };
  while (bytes() > kStagingBytes && b.columns > 1) b.columns = ceil_div(b.columns, 2);
  while (b.rows < 8 && 2 * b.rows <= s.out_height && b.columns == s.out_width) {
    b.rows *= 2;
    if (bytes() <= kStagingBytes) continue;
    b.rows /= 2;
    break;
  }
  b.row_blocks = ceil_div(s.out_height, b.rows);
  b.column_blocks = ceil_div(s.out_width, b.columns);
  return b;
}

class ImageJob {
 public:
  ImageJob(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run)
      : conv_(conv),
        table_(table),
        sizes_(sizes),
        run_(run),
        source_(source_of(conv)),
        chunks_(chunks_of(conv, table, sizes.num_images)),
        panels_(image_panels(conv, table)),
        blocks_(choose_blocks(conv, source_, sizes, chunks_.lanes)),
        products_(num_products(conv)),
        in_(planes(conv.layout, run.num_images, conv.in_channels, run.height, run.width)),
        out_(planes(conv.layout, run.num_images, conv.out_channels, sizes.out_height, sizes.out_width)) {}

  Workspace workspace() const {
    Carver shared(nullptr), thread(nullptr);
    shared.take<int64_t>(products_);
    shared.take<float>(whole_floats());
    thread.take<float>(staging_floats(conv_, source_, blocks_.rows, blocks_.columns, chunks_.lanes));
    return {shared.used(), thread.used()};
  }

  void run() {
    const Workspace need = workspace();
    Carver shared(run_.workspace);
    int64_t *offsets = shared.take<int64_t>(products_);
    float *whole = shared.take<float>(whole_floats());
    set_strides();
    const bool windows = source_ == Source::fused || source_ == Source::whole;
    const int64_t u_step = windows ? at_.cell : conv_.dilation_h * at_.row, v_step = conv_.dilation_w * at_.column;
    int64_t *offset = offsets;
    for_each_product(conv_, [&](int64_t u, int64_t v, int64_t r) {
      *offset++ = u * u_step + v * v_step + r * at_.channel;
    });
    if (source_ == Source::whole) im2win(conv_, run_.num_images, run_.height, run_.width, run_.x, whole, run_.num_threads);
    char *threads = static_cast<char *>(run_.workspace) + need.shared;
    const int64_t per_chunk = blocks_.row_blocks * blocks_.column_blocks;
    for_each_task(chunks_.count * per_chunk, run_.num_threads, [&](int64_t task, int thread) {
      float *staging = reinterpret_cast<float *>(threads + thread * need.per_thread);
      const int64_t chunk = task / per_chunk, row = task % per_chunk / blocks_.column_blocks;
      block(chunk, row * blocks_.rows, task % blocks_.column_blocks * blocks_.columns, staging, whole, offsets);
    });
  }

 private:
  int64_t whole_floats() const {
    return source_ == Source::whole ? im2win_size(conv_, run_.num_images, run_.height, run_.width) : 0;
  }

  void set_strides() {
    const bool copied = source_ == Source::staged || source_ == Source::fused;
    const int64_t cell = copied ? chunks_.lanes : in_.at.cell;
    const int64_t columns = copied ? columns_reached(conv_, blocks_.columns) : im2win_row_cells(conv_, run_.width);
    switch (source_) {
      case Source::in_place:
        at_ = in_.at;
        row_step_ = at_.row * conv_.stride_h;
        column_step_ = at_.column * conv_.stride_w;
        block_step_ = in_.image;
        return;
      case Source::staged: {
        const int64_t rows = rows_reached(conv_, blocks_.rows);
        at_ = {rows * columns * cell, columns * cell, cell, cell};
        row_step_ = at_.row * conv_.stride_h;
        column_step_ = at_.column * conv_.stride_w;
        return;
      }
      case Source::fused:
      case Source::whole: {
        const int64_t rows = source_ == Source::fused ? blocks_.rows : sizes_.out_height;
        const int64_t column = conv_.kernel_h * cell;
        at_ = {rows * columns * column, columns * column, column, cell};
        row_step_ = at_.row;
        column_step_ = column * conv_.stride_w;
        block_step_ = conv_.in_channels * at_.channel;
        return;
      }
    }
  }

  // Where a chunk's first image stands, in x-like memory whose blocks are `step` apart.
  int64_t chunk_at(int64_t chunk, int64_t step) const {
    const int64_t image = chunk * chunks_.lanes, block = layout_block(conv_.layout);
    return block ? image / block * step + image % block : image;
  }

  void block(int64_t chunk, int64_t m0, int64_t l0, float *staging, const float *whole, const int64_t *offsets) const {
    const int64_t rows = std::min(blocks_.rows, sizes_.out_height - m0);
    const int64_t columns = std::min(blocks_.columns, sizes_.out_width - l0);
    if (rows <= 0 || columns <= 0) return;
    const int64_t images = std::min(chunks_.lanes, sizes_.num_images - chunk * chunks_.lanes);
    const float *base;
    if (source_ == Source::in_place || source_ == Source::whole) {
      base = (source_ == Source::whole ? whole : run_.x) + chunk_at(chunk, block_step_) + m0 * row_step_ + l0 * column_step_;
    } else {
      const float *x = run_.x + chunk_at(chunk, in_.image);
      const int64_t left = l0 * conv_.stride_w - conv_.pad_left, in_columns = columns_reached(conv_, columns);
      if (source_ == Source::staged)
        stage(in_, x, run_.height, run_.width, m0 * conv_.stride_h - conv_.pad_top, rows_reached(conv_, rows), left, in_columns,
              at_, images, staging);
      else
        im2win_rows(conv_, in_, x, run_.height, run_.width, m0, rows, left, in_columns, at_, images, staging);
      base = staging;
    }
    const int64_t out = chunk_at(chunk, out_.image) + m0 * out_.at.row + l0 * out_.at.column;
    const int64_t pixels = rows * columns, tiles = ceil_div(pixels, table_.max_columns);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t begin = pixels * t / tiles, count = pixels * (t + 1) / tiles - begin;
      const float *bases[kMaxColumns], *x[kMaxColumns];
      int64_t out_at[kMaxColumns];
      for (int64_t i = 0; i < count; ++i) {
        const int64_t m = (begin + i) / columns, l = (begin + i) % columns;
        bases[i] = base + m * row_step_ + l * column_step_;
        out_at[i] = out + m * out_.at.row + l * out_.at.column;
      }
      ImageTile tile{};
      tile.x = x;
      tile.offsets = offsets;
      tile.num_products = products_;
      tile.out_at = out_at;
      tile.num_images = static_cast<int>(images);
      for (const Panel &panel : panels_) {
        const int64_t group_at = panel.group * group_in(conv_) * at_.channel, out_channel = panel.channel * out_.at.channel;
        for (int64_t i = 0; i < count; ++i) x[i] = bases[i] + group_at;
        tile.w = run_.packed + panel.at * products_;
        tile.to = {run_.bias ? run_.bias + panel.channel : nullptr, run_.residual ? run_.residual + out_channel : nullptr,
                   run_.out + out_channel, out_.at.channel, run_.activation, false};
        chunks_.kernels[panel.channels][count](tile);
      }
    }
  }

  const Conv2d &conv_;
  const ConvTable &table_;
  const Sizes sizes_;
  const Conv2dRun &run_;
  const Source source_;
  const Chunks chunks_;
  const std::vector<Panel> panels_;
  const Blocks blocks_;
  const int64_t products_;
  const Planes in_, out_;
  Strides at_{};
  int64_t row_step_ = 0, column_step_ = 0, block_step_ = 0;
};

}  // namespace

Workspace image_workspace(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, int num_threads) {
  Conv2dRun run{};
  run.num_images = sizes.num_images;
  run.height = sizes.height;
  run.width = sizes.width;
  run.num_threads = num_threads;
  return ImageJob(conv, table, sizes, run).workspace();
}

void run_image_job(const Conv2d &conv, const ConvTable &table, const Sizes &sizes, const Conv2dRun &run) {
  ImageJob(conv, table, sizes, run).run();
}

}  // namespace tensure
