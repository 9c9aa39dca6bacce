#include "conv/pack.h"

namespace tensure {
namespace {

// G of F(4x4, 3x3), see winograd-inl.h.
constexpr double kG[6][3] = {{1.0 / 4, 0, 0},
                             {-1.0 / 6, -1.0 / 6, -1.0 / 6},
                             {-1.0 / 6, 1.0 / 6, -1.0 / 6},
                             {1.0 / 24, 1.0 / 12, 1.0 / 6},
                             {1.0 / 24, -1.0 / 12, 1.0 / 6},
                             {0, 0, 1}};

// G g G^T of one 3x3 filter, in double, rounded once.
void transform_filter(const float *g, float *u) {
  double half[6][3];
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 3; ++j) half[i][j] = kG[i][0] * g[j] + kG[i][1] * g[3 + j] + kG[i][2] * g[6 + j];
  for (int i = 0; i < 6; ++i)
    for (int j = 0; j < 6; ++j)
      u[i * 6 + j] = static_cast<float>(half[i][0] * kG[j][0] + half[i][1] * kG[j][1] + half[i][2] * kG[j][2]);
}

void pack_winograd(const Conv2d &conv, const ConvTable &table, const float *w, float *packed) {
  const int64_t K = conv.in_channels;
  for (const Panel &panel : channel_panels(conv, tile_shape(conv, table))) {
    float *to = packed + panel.at * 36 * K;
    std::memset(to, 0, sizeof(float) * 36 * K * panel.width);
    for (int j = 0; j < panel.channels; ++j)
      for (int64_t r = 0; r < K; ++r) {
        float u[36];
        transform_filter(w + ((panel.channel + j) * K + r) * 9, u);
        for (int e = 0; e < 36; ++e) to[(e * K + r) * panel.width + j] = u[e];
      }
  }
}

void pack_depthwise(const Conv2d &conv, const ConvTable &table, const float *w, float *packed) {
  const int64_t taps = conv.kernel_h * conv.kernel_w, padded = round_up(conv.out_channels, table.lanes);
  std::memset(packed, 0, sizeof(float) * taps * padded);
  for (int64_t c = 0; c < conv.out_channels; ++c)
    for (int64_t t = 0; t < taps; ++t) packed[t * padded + c] = w[c * taps + t];
}

void append_panels(std::vector<Panel> &panels, int64_t group, int64_t first, int64_t channels, int lanes, int most,
                   bool has_half) {
  const int64_t vectors = ceil_div(channels, lanes), count = ceil_div(vectors, most);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = vectors * i / count * lanes;
    const int64_t end = std::min(vectors * (i + 1) / count * lanes, channels);
    // Half a vector fewer where half of the last one would be empty; a lone half has no tile.
    int width = static_cast<int>(round_up(end - begin, lanes));
    if (has_half && width > lanes && end - begin <= width - lanes / 2) width -= lanes / 2;
    const int64_t at = panels.empty() ? 0 : panels.back().at + panels.back().width;
    panels.push_back({group, first + begin, static_cast<int>(end - begin), width, at});
  }
}

}  // namespace

TileShape tile_shape(const Conv2d &conv, const ConvTable &table) {
  TileShape shape{};
  shape.scalar = !(conv.switches & kVectorise);
  shape.has_half = table.has_half && conv.switches == kAllSwitches;
  shape.lanes = shape.scalar ? 1 : table.lanes;
  shape.max_vectors = shape.scalar ? kScalarVectors : table.max_vectors;
  for (int i = 1; i <= kMaxVectors; ++i) shape.max_pixels[i] = shape.scalar ? kScalarPixels : table.max_pixels[i];
  if (!(conv.switches & kRegisterBlock)) {
    shape.max_vectors = 1;
    shape.max_pixels[1] = 1;
  }
  return shape;
}

std::vector<Panel> channel_panels(const Conv2d &conv, const TileShape &shape) {
  std::vector<Panel> panels;
  for (int64_t g = 0; g < conv.groups; ++g)
    append_panels(panels, g, g * group_out(conv), group_out(conv), shape.lanes, shape.max_vectors,
                  shape.has_half);
  return panels;
}

std::vector<Panel> image_panels(const Conv2d &conv, const ConvTable &table) {
  std::vector<Panel> panels;
  for (int64_t g = 0; g < conv.groups; ++g)
    append_panels(panels, g, g * group_out(conv), group_out(conv), 1, table.max_filters, false);
  return panels;
}

int64_t packed_size(const Conv2d &conv, const ConvTable &table) {
  if (is_depthwise(conv)) return conv.kernel_h * conv.kernel_w * round_up(conv.out_channels, table.lanes);
  if (runs_image_tiles(conv)) return num_products(conv) * conv.out_channels;
  const std::vector<Panel> panels = channel_panels(conv, tile_shape(conv, table));
  const int64_t products = conv.algorithm == ConvAlgorithm::winograd ? 36 * conv.in_channels : num_products(conv);
  return (panels.back().at + panels.back().width) * products;
}

void pack(const Conv2d &conv, const ConvTable &table, const float *w, float *packed) {
  if (conv.algorithm == ConvAlgorithm::winograd) return pack_winograd(conv, table, w, packed);
  if (is_depthwise(conv)) return pack_depthwise(conv, table, w, packed);
  const std::vector<Panel> panels =
      runs_image_tiles(conv) ? image_panels(conv, table) : channel_panels(conv, tile_shape(conv, table));
  const int64_t K = num_products(conv), H = conv.kernel_h, W = conv.kernel_w;
  for (const Panel &panel : panels) {
    float *to = packed + panel.at * K;
    const float *from = w + panel.channel * K;
    for_each_product(conv, [&](int64_t u, int64_t v, int64_t r) {
      const float *tap = from + (r * H + u) * W + v;
      for (int j = 0; j < panel.channels; ++j) to[j] = tap[j * K];
      for (int j = panel.channels; j < panel.width; ++j) to[j] = 0.0f;
      to += panel.width;
    });
  }
}

}  // namespace tensure
