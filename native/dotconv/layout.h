// How a sum of products is cut into groups of 32 bits, and how x stands when they are read.
//
// In NHWC a kernel row's products of one group of channels are neighbours in memory, or, with dilation or several groups, those
// of one kernel column are. Such a run is cut into groups; the last one may reach beyond the run, where weights are zero.
// That is harmless for bytes. A bfloat16 beyond the run may be infinite or NaN, so there channels are padded to an even number.
#pragma once

#include "conv/pack.h"
#include "dotconv/table.h"

namespace tensure {

struct DotLayout {
  DotMethod method;
  int64_t element;   // bytes of x's elements as the tiles read them
  int64_t channels;  // of one group of the convolution, padding included
  int64_t columns;   // kernel columns of a run
  int64_t runs, run_groups;

  int64_t per_group() const { return 4 / element; }
  int64_t num_groups() const { return runs * run_groups; }
  int64_t run_elements() const { return columns * channels; }
};

inline DotLayout dot_layout(const Conv2d &conv, DotMethod method) {
  DotLayout l{};
  l.method = method;
  l.element = method == DotMethod::bytes ? 1 : 2;
  l.channels = method == DotMethod::halves ? round_up(group_in(conv), 2) : group_in(conv);
  l.columns = conv.groups == 1 && conv.dilation_w == 1 ? conv.kernel_w : 1;
  l.runs = conv.kernel_h * conv.kernel_w / l.columns;
  l.run_groups = ceil_div(l.run_elements(), l.per_group());
  return l;
}

// Bytes are convolved depthwise by a loop of their own.
inline bool is_dot_depthwise(const Conv2d &conv, DotMethod method) {
  return method != DotMethod::halves && is_depthwise(conv);
}

inline TileShape dot_tile_shape(const DotTable &table) {
  TileShape shape{};
  shape.lanes = table.lanes;
  shape.max_vectors = table.max_vectors;
  for (int i = 1; i <= kMaxVectors; ++i) shape.max_pixels[i] = table.max_pixels[i];
  return shape;
}

// Channels of all panels, lanes without a channel included.
inline int64_t padded_channels(const std::vector<Panel> &panels) { return panels.back().at + panels.back().width; }

// The packed weights are [panel][group][width] lanes, then the sum of each channel's weights, for all panels.
int64_t dot_packed_size(const Conv2d &conv, const DotTable &table, DotMethod method);
void dot_pack(const Conv2d &conv, const DotTable &table, DotMethod method, const void *w, void *packed);

}  // namespace tensure
