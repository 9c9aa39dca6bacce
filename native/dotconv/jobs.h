// The loops around the register tiles.
#pragma once

#include "conv/jobs.h"
#include "dotconv/layout.h"

namespace tensure {

// Each output channel's numbers, at its place in the packed weights.
struct DotChannels {
  int32_t *offset, *multiplier, *left, *right;
  float *scale, *bias;
  bool small;  // as in DotFinish
};
DotChannels carve_channels(Carver &carver, int64_t padded);

// What is added to every sum of bytes because x was read with `shift` added, less zero_point: -(zero_point + shift) times the
// sum of the weights; weight_sums is null where x was read right.
void fill_channels(const Conv2d &conv, const DotRun &run, const std::vector<Panel> &panels, const int32_t *weight_sums,
                   int32_t shift, DotChannels &to);

// `sums` of some pixels of one panel to the output.
void finish_pixels(const DotTable &table, const DotRun &run, const DotChannels &all, int64_t at, int64_t channel, int channels,
                   int width, const void *sums, const int64_t *out_at, int pixels);

Workspace dot_channel_workspace(const Conv2d &conv, const DotTable &table, DotMethod method, const Sizes &sizes,
                                const DotRun &run);
void run_dot_channel_job(const Conv2d &conv, const DotTable &table, DotMethod method, const Sizes &sizes, const DotRun &run);

Workspace dot_depthwise_workspace(const Conv2d &conv, const DotTable &table);
void run_dot_depthwise_job(const Conv2d &conv, const DotTable &table, const Sizes &sizes, const DotRun &run);

}  // namespace tensure
