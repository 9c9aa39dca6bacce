// Dispatch: which instruction set, which method, which job. Compiled for the platform's baseline: nothing here may need more.
#include "dotconv/dotconv.h"

#include <cstdlib>

#include "common/isa.h"
#include "dotconv/jobs.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const DotTable dotconv_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &dotconv_##isa,
static const DotTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

static const DotTable *table() { return isa_in_use() < 0 ? nullptr : kTables[isa_in_use()]; }

static DotMethod method_of(bool halves) {
  if (halves) return DotMethod::halves;
  return cpu_has_vnni() && table()->has_byte_dot ? DotMethod::bytes : DotMethod::shorts;
}

static Sizes sizes_of(const Conv2d &conv, int64_t num_images, int64_t height, int64_t width) {
  return {num_images, height, width, conv2d_out_height(conv, height), conv2d_out_width(conv, width)};
}

bool dotconv_runs(bool halves) { return table() && (!halves || (cpu_has_bf16() && table()->has_half_dot)); }

int64_t dotconv_packed_size(const Conv2d &conv, bool halves) {
  return dotconv_runs(halves) ? dot_packed_size(conv, *table(), method_of(halves)) : 0;
}

void dotconv_pack(const Conv2d &conv, bool halves, const void *w, void *packed) {
  if (dotconv_runs(halves)) dot_pack(conv, *table(), method_of(halves), w, packed);
}

Workspace dotconv_workspace(const Conv2d &conv, DotElement element, int64_t num_images, int64_t height, int64_t width,
                            int num_threads) {
  const bool halves = element == DotElement::bf16;
  if (!dotconv_runs(halves) || num_images == 0) return {0, 0};
  if (is_dot_depthwise(conv, method_of(halves))) return dot_depthwise_workspace(conv, *table());
  DotRun run{};
  run.num_images = num_images;
  run.height = height;
  run.width = width;
  run.element = element;
  run.num_threads = num_threads;
  return dot_channel_workspace(conv, *table(), method_of(halves), sizes_of(conv, num_images, height, width), run);
}

bool dotconv(const Conv2d &conv, const DotRun &run) {
  const bool halves = run.element == DotElement::bf16;
  if (!dotconv_runs(halves)) return false;
  if (run.num_images == 0) return true;
  const Sizes sizes = sizes_of(conv, run.num_images, run.height, run.width);
  if (is_dot_depthwise(conv, method_of(halves)))
    run_dot_depthwise_job(conv, *table(), sizes, run);
  else
    run_dot_channel_job(conv, *table(), method_of(halves), sizes, run);
  return true;
}

// --- what the jobs share ---

DotChannels carve_channels(Carver &carver, int64_t padded) {
  return {carver.take<int32_t>(padded), carver.take<int32_t>(padded), carver.take<int32_t>(padded),
          carver.take<int32_t>(padded), carver.take<float>(padded),   carver.take<float>(padded), false};
}

void fill_channels(const Conv2d &conv, const DotRun &run, const std::vector<Panel> &panels, const int32_t *weight_sums,
                   int32_t shift, DotChannels &to) {
  int64_t largest_bias = 0;
  int32_t most_left = 0;
  const uint32_t centre = static_cast<uint32_t>(run.zero_point + shift);
  for (const Panel &panel : panels)
    for (int j = 0; j < panel.width; ++j) {
      const int64_t at = panel.at + j, channel = panel.channel + j;
      const bool valid = j < panel.channels;
      const uint32_t bias = valid && run.bias_ints ? static_cast<uint32_t>(run.bias_ints[channel]) : 0;
      const uint32_t correction = weight_sums ? centre * static_cast<uint32_t>(weight_sums[at]) : 0;
      const int32_t shift_by = valid && run.shift ? run.shift[channel] : 0;
      if (valid && run.bias_ints) largest_bias = std::max(largest_bias, std::abs(int64_t{run.bias_ints[channel]}));
      most_left = std::max(most_left, shift_by);
      to.offset[at] = static_cast<int32_t>(bias - correction);
      to.multiplier[at] = valid && run.multiplier ? run.multiplier[channel] : 0;
      to.left[at] = std::max(shift_by, 0);
      to.right[at] = std::max(-shift_by, 0);
      to.scale[at] = valid && run.scale ? run.scale[channel] : 0.0f;
      to.bias[at] = valid && run.bias_floats ? run.bias_floats[channel] : -0.0f;  // adding -0 changes nothing
    }
  constexpr int64_t kLargestProduct = 255 * 128;
  to.small = most_left == 0 && kLargestProduct * num_products(conv) + largest_bias < int64_t{1} << 30;
}

void finish_pixels(const DotTable &table, const DotRun &run, const DotChannels &all, int64_t at, int64_t channel, int channels,
                   int width, const void *sums, const int64_t *out_at, int pixels) {
  static constexpr int64_t kBytes[] = {4, 1, 1, 4, 2};  // of an output element
  const int output = static_cast<int>(run.output);
  const DotFinish finish{sums,
                         pixels,
                         width,
                         channels,
                         out_at,
                         static_cast<char *>(run.out) + channel * kBytes[output],
                         all.offset + at,
                         all.multiplier + at,
                         all.left + at,
                         all.right + at,
                         all.scale + at,
                         all.bias + at,
                         run.out_zero_point,
                         run.low,
                         run.high,
                         run.activation,
                         all.small};
  if (run.element == DotElement::bf16)
    table.finish_halves[run.output == DotOutput::bf16](finish);
  else
    table.finish[output](finish);
}

}  // namespace tensure
