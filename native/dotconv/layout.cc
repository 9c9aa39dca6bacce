#include "dotconv/layout.h"

namespace tensure {
namespace {

// Where in one channel's weights [channels][kernel_h][kernel_w] each element of each group stands; -1 for a zero.
std::vector<int64_t> taps_of(const Conv2d &conv, const DotLayout &layout) {
  const int64_t R = group_in(conv), H = conv.kernel_h, W = conv.kernel_w;
  std::vector<int64_t> taps;
  taps.reserve(layout.num_groups() * layout.per_group());
  for (int64_t run = 0; run < layout.runs; ++run) {
    const int64_t u = run * layout.columns / W, first = run * layout.columns % W;
    for (int64_t i = 0; i < layout.run_groups * layout.per_group(); ++i) {
      const int64_t v = first + i / layout.channels, r = i % layout.channels;
      taps.push_back(i < layout.run_elements() && r < R ? (r * H + u) * W + v : -1);
    }
  }
  return taps;
}

// STORED is what a tile reads, GIVEN what comes.
template <typename STORED, typename GIVEN>
void pack_panels(const Conv2d &conv, const DotLayout &layout, const std::vector<Panel> &panels, const GIVEN *w, char *packed) {
  const std::vector<int64_t> taps = taps_of(conv, layout);
  const int64_t K = num_products(conv), per_group = layout.per_group();
  for (const Panel &panel : panels) {
    STORED *to = reinterpret_cast<STORED *>(packed + panel.at * layout.num_groups() * 4);
    std::memset(to, 0, panel.width * layout.num_groups() * 4);
    for (int64_t g = 0; g < layout.num_groups(); ++g, to += panel.width * per_group)
      for (int64_t e = 0; e < per_group; ++e) {
        const int64_t tap = taps[g * per_group + e];
        if (tap < 0) continue;
        for (int j = 0; j < panel.channels; ++j) to[j * per_group + e] = w[(panel.channel + j) * K + tap];
      }
  }
}

void sum_weights(const Conv2d &conv, const std::vector<Panel> &panels, const int8_t *w, int32_t *sums) {
  const int64_t K = num_products(conv);
  for (const Panel &panel : panels)
    for (int j = 0; j < panel.width; ++j) {
      uint32_t sum = 0;
      if (j < panel.channels)
        for (int64_t k = 0; k < K; ++k) sum += static_cast<uint32_t>(w[(panel.channel + j) * K + k]);
      sums[panel.at + j] = static_cast<int32_t>(sum);
    }
}

// [taps][padded channels], each weight in the low half of a lane and zero above: see dot_shorts.
void pack_depthwise(const Conv2d &conv, int64_t padded, const int8_t *w, int32_t *packed) {
  const int64_t taps = conv.kernel_h * conv.kernel_w;
  std::memset(packed, 0, sizeof(int32_t) * taps * padded);
  for (int64_t c = 0; c < conv.out_channels; ++c)
    for (int64_t t = 0; t < taps; ++t) packed[t * padded + c] = w[c * taps + t] & 0xffff;
}

}  // namespace

int64_t dot_packed_size(const Conv2d &conv, const DotTable &table, DotMethod method) {
  if (is_dot_depthwise(conv, method)) return 4 * conv.kernel_h * conv.kernel_w * round_up(conv.out_channels, table.lanes);
  const int64_t padded = padded_channels(channel_panels(conv, dot_tile_shape(table)));
  return 4 * padded * (dot_layout(conv, method).num_groups() + 1);
}

void dot_pack(const Conv2d &conv, const DotTable &table, DotMethod method, const void *w, void *packed) {
  char *to = static_cast<char *>(packed);
  if (is_dot_depthwise(conv, method)) {
    pack_depthwise(conv, round_up(conv.out_channels, table.lanes), static_cast<const int8_t *>(w), static_cast<int32_t *>(packed));
    return;
  }
  const std::vector<Panel> panels = channel_panels(conv, dot_tile_shape(table));
  const DotLayout layout = dot_layout(conv, method);
  int32_t *sums = reinterpret_cast<int32_t *>(to + 4 * padded_channels(panels) * layout.num_groups());
  if (method == DotMethod::halves) {
    pack_panels<uint16_t>(conv, layout, panels, static_cast<const uint16_t *>(w), to);
    std::memset(sums, 0, sizeof(int32_t) * padded_channels(panels));
    return;
  }
  const int8_t *bytes = static_cast<const int8_t *>(w);
  if (method == DotMethod::bytes)
    pack_panels<int8_t>(conv, layout, panels, bytes, to);
  else
    pack_panels<int16_t>(conv, layout, panels, bytes, to);
  sum_weights(conv, panels, bytes, sums);
}

}  // namespace tensure
