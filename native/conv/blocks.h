// How an output is cut into blocks, for the caches, and how blocks and panels are dealt out to threads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "conv/view.h"

namespace tensure {

struct Sizes {
  int64_t num_images, height, width, out_height, out_width;
};

// The index-th of `count` even pieces of `total`: sizes differ by one at most, and so do the sums of equal runs of pieces.
struct Piece {
  int64_t begin, size;
};
inline Piece piece(int64_t total, int64_t count, int64_t index) {
  const int64_t begin = total * index / count;
  return {begin, total * (index + 1) / count - begin};
}

// How the output is cut: pieces of the rows of one image, or of several whole images, and of the columns.
struct Blocks {
  int64_t images, rows, columns;  // of the largest block
  int64_t image_blocks, row_blocks, column_blocks;
  int64_t count() const { return image_blocks * row_blocks * column_blocks; }
  int64_t max_pixels() const { return images * rows * columns; }
};
inline Blocks cut_evenly(const Sizes &s, int64_t image_blocks, int64_t row_blocks, int64_t column_blocks) {
  return {ceil_div(s.num_images, image_blocks), ceil_div(s.out_height, row_blocks), ceil_div(s.out_width, column_blocks),
          image_blocks, row_blocks, column_blocks};
}

struct Block {
  Piece images, rows, columns;
};
inline Block block_at(const Sizes &s, const Blocks &b, int64_t index) {
  return {piece(s.num_images, b.image_blocks, index / b.column_blocks / b.row_blocks),
          piece(s.out_height, b.row_blocks, index / b.column_blocks % b.row_blocks),
          piece(s.out_width, b.column_blocks, index % b.column_blocks)};
}

constexpr int64_t kFewPixels = 96;  // of a block, unless there is a reason for more

// Cuts an output into even blocks of about `target` pixels. `bytes_of(images, rows, columns)` is what a thread copies for
// a block of that size, 0 when it reads in place; blocks shrink until that is at most `most_bytes`.
template <typename BytesOf>
Blocks cut_blocks(const Sizes &s, int64_t target, int num_threads, int64_t most_bytes, BytesOf bytes_of) {
  int64_t images = 1, rows = s.out_height, columns = s.out_width;
  // Two threads want several blocks each, or one waits for the other.
  const int64_t pixels = s.num_images * s.out_height * s.out_width;
  if (num_threads > 1) target = std::clamp<int64_t>(pixels / (4 * num_threads), std::min(kFewPixels, target), target);
  if (s.out_width >= target) {
    rows = 1;
    columns = ceil_div(s.out_width, ceil_div(s.out_width, target));
  } else {
    rows = std::clamp<int64_t>(target / s.out_width, 1, s.out_height);
    if (rows == s.out_height) images = std::clamp<int64_t>(target / (rows * s.out_width), 1, s.num_images);
  }
  const auto bytes = [&] { return bytes_of(images, rows, columns); };
  while (bytes() > most_bytes && images > 1) images = ceil_div(images, 2);
  while (bytes() > most_bytes && rows > 1) rows = ceil_div(rows, 2);
  while (bytes() > most_bytes && columns > 16) columns = ceil_div(columns, 2);
  return cut_evenly(s, ceil_div(s.num_images, images), ceil_div(s.out_height, rows), ceil_div(s.out_width, columns));
}

// Each block is `parts` tasks of as many panels each.
struct Deal {
  Blocks blocks;
  int64_t parts;
};

// What a task costs, in the time that one panel takes for one pixel.
struct TaskCost {
  int64_t tile_pixels;    // a tile costs one pixel more than its own
  int64_t reload;         // pixels that reading a panel's weights costs
  double copy;            // for a copied byte
};

// The most that one of the threads has to do, in units of `total`, when `outer` times `total` is cut into `pieces` of
// `parts` each and every thread takes a run of those.
inline double busiest_share(int64_t outer, int64_t total, int64_t pieces, int64_t parts, int num_threads) {
  const int64_t tasks = outer * pieces * parts;
  const auto before = [&](int64_t task) {
    const int64_t block = task / parts;
    const Piece at = piece(total, pieces, block % pieces);
    const double begun = static_cast<double>(at.size * (task % parts)) / static_cast<double>(parts);
    return static_cast<double>(block / pieces * total + at.begin) + begun;
  };
  double most = 0;
  for (int t = 0; t < num_threads; ++t) {
    const Piece own = piece(tasks, num_threads, t);
    most = std::max(most, before(own.begin + own.size) - before(own.begin));
  }
  return most;
}

// Deals blocks and panels out to threads: of finer cuts than `cut`, and of panels shared out evenly, those that keep the
// busiest thread for the shortest time. One thread takes the blocks as they are. `bytes_of` as for cut_blocks.
template <typename BytesOf>
Deal deal_out(const Sizes &s, const Blocks &cut, int64_t num_panels, int num_threads, const TaskCost &cost, BytesOf bytes_of) {
  Deal best{cut, 1};
  if (num_threads == 1) return best;
  const bool by_columns = cut.column_blocks > 1 || s.out_height == 1;
  const int64_t total = by_columns ? s.out_width : s.out_height;
  const int64_t first = by_columns ? cut.column_blocks : cut.row_blocks, outer = cut.count() / first;
  const double pixels = static_cast<double>(s.num_images * s.out_height * s.out_width);
  double least = 0;
  for (int64_t pieces = first; pieces <= std::min(total, first + 8 * num_threads); ++pieces) {
    const Blocks blocks = by_columns ? cut_evenly(s, cut.image_blocks, cut.row_blocks, pieces)
                                     : cut_evenly(s, cut.image_blocks, pieces, cut.column_blocks);
    const double copied = cost.copy * static_cast<double>(bytes_of(blocks.images, blocks.rows, blocks.columns));
    const int64_t tiles = ceil_div(blocks.max_pixels(), cost.tile_pixels);
    for (int64_t parts = 1; parts <= num_panels; ++parts) {
      const int64_t tasks = outer * pieces * parts, rounds = ceil_div(tasks, num_threads);
      if (parts > 1 && tasks > 64 * num_threads) break;
      if (num_panels % parts) continue;
      const double panels = static_cast<double>(num_panels), all = pixels * panels;
      const double share = all * busiest_share(outer, total, pieces, parts, num_threads) / static_cast<double>(outer * total);
      const double beside = static_cast<double>((tiles + cost.reload) * (num_panels / parts)) + copied * panels + 1;
      // Threads never end together: some part of a task is waited for.
      const double waiting = (all / static_cast<double>(tasks) + beside) / 16;
      const double time = share + beside * static_cast<double>(rounds) + waiting;
      if (least == 0 || time < least) {
        least = time;
        best = {blocks, parts};
      }
    }
  }
  return best;
}

}  // namespace tensure
