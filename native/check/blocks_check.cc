// Cuts of an output: blocks cover every pixel once, and shares for threads are even where networks have few pixels.
#include <algorithm>
#include <vector>

#include "check/check.h"
#include "conv/blocks.h"

namespace tensure::check {
namespace {

int64_t nothing_copied(int64_t, int64_t, int64_t) { return 0; }

void expect_cover(const Sizes &s, const Blocks &blocks) {
  std::vector<int> seen(s.num_images * s.out_height * s.out_width, 0);
  for (int64_t i = 0; i < blocks.count(); ++i) {
    const Block at = block_at(s, blocks, i);
    if (at.images.size > blocks.images || at.rows.size > blocks.rows || at.columns.size > blocks.columns)
      fail("block %lld is larger than the largest", static_cast<long long>(i));
    for (int64_t n = at.images.begin; n < at.images.begin + at.images.size; ++n)
      for (int64_t m = at.rows.begin; m < at.rows.begin + at.rows.size; ++m)
        for (int64_t l = at.columns.begin; l < at.columns.begin + at.columns.size; ++l)
          ++seen[(n * s.out_height + m) * s.out_width + l];
  }
  if (std::any_of(seen.begin(), seen.end(), [](int times) { return times != 1; })) fail("blocks do not cover every pixel once");
}

// The busiest thread's pixels of panels, over an even share, when each begins with its own run of tasks.
double unevenness(const Sizes &s, const Deal &deal, int64_t num_panels, int threads) {
  const int64_t tasks = deal.blocks.count() * deal.parts;
  int64_t most = 0, all = 0;
  for (int t = 0; t < threads; ++t) {
    const Piece own = piece(tasks, threads, t);
    int64_t work = 0;
    for (int64_t task = own.begin; task < own.begin + own.size; ++task) {
      const Block at = block_at(s, deal.blocks, task / deal.parts);
      work += at.images.size * at.rows.size * at.columns.size * piece(num_panels, deal.parts, task % deal.parts).size;
    }
    most = std::max(most, work);
    all += work;
  }
  return static_cast<double>(most * threads) / static_cast<double>(all);
}

}  // namespace

int64_t check_blocks(int rounds, Plant plant) {
  Random random(0xb10c);
  int64_t compared = 0;
  for (int round = 0; round < rounds; ++round) {
    const int64_t height = random.pick(1, 40), width = random.pick(1, 300), threads = random.pick(1, 5);
    const Sizes s{random.pick(1, 5), height, width, height, width};
    const Blocks cut = cut_blocks(s, random.pick(16, 400), static_cast<int>(threads), 40'000,
                                  [](int64_t images, int64_t rows, int64_t columns) { return 64 * images * rows * columns; });
    const Deal deal = deal_out(s, cut, random.pick(1, 40), static_cast<int>(threads), {6, 1, 0}, nothing_copied);
    expect_cover(s, cut);
    expect_cover(s, deal.blocks);
    compared += 2;
  }
  // The layers of image networks that two threads shared badly: one long row, or rows that stay whole.
  struct Layer {
    int64_t height, width, panels;
  };
  static constexpr Layer layers[] = {{1, 196, 1}, {1, 784, 1}, {1, 49, 3},  {1, 49, 5},
                                     {1, 196, 9}, {28, 28, 8}, {14, 14, 4}, {1, 49, 32}};
  for (const Layer &layer : layers) {
    const Sizes s{1, layer.height, layer.width, layer.height, layer.width};
    const Blocks cut = cut_blocks(s, layer.height > 1 ? 8 * layer.width : kFewPixels, 2, 1 << 20, nothing_copied);
    Deal deal = deal_out(s, cut, layer.panels, 2, {6, 1, 0}, nothing_copied);
    if (plant == Plant::share) deal = {cut_evenly(s, 1, 1, 1), 1};
    const double most = unevenness(s, deal, layer.panels, 2);
    if (most > 1.05)
      fail("%lld x %lld pixels and %lld panels: one of two threads has %.2f of its share", static_cast<long long>(layer.height),
           static_cast<long long>(layer.width), static_cast<long long>(layer.panels), most);
    ++compared;
  }
  return compared;
}

}  // namespace tensure::check
