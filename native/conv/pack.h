// Weights laid out as the register tiles read them: panels of a few neighbouring output channels.
#pragma once

#include <cstdint>
#include <vector>

#include "conv/table.h"
#include "conv/view.h"

namespace tensure {

// Which register tile a channel job runs with, given the switches.
struct TileShape {
  bool scalar;
  bool has_half;  // a panel's last vector may be half as wide
  int lanes, max_vectors;
  int max_pixels[kMaxVectors + 1];
};
TileShape tile_shape(const Conv2d &conv, const ConvTable &table);

// Neighbouring output channels of one group whose weights stand together.
struct Panel {
  int64_t group;
  int64_t channel;   // first one, of all output channels
  int channels;      // valid ones
  int width;         // channels as packed: vectors * lanes, or the filters of an image tile
  int64_t at;        // floats before it in the packed weights, for one product: multiply by the number of products
};

// Panels of a group are as even as whole vectors allow: 5 vectors are 3 + 2, not 4 + 1.
std::vector<Panel> channel_panels(const Conv2d &conv, const TileShape &shape);
std::vector<Panel> image_panels(const Conv2d &conv, const ConvTable &table);

inline bool is_depthwise(const Conv2d &conv) {
  return conv.layout == Layout::nhwc && conv.algorithm == ConvAlgorithm::direct && conv.groups == conv.in_channels &&
         conv.out_channels == conv.groups && conv.groups > 1 && conv.switches == kAllSwitches;
}
inline bool runs_image_tiles(const Conv2d &conv) {
  return has_image_lanes(conv.layout) && conv.algorithm != ConvAlgorithm::im2col;
}

int64_t packed_size(const Conv2d &conv, const ConvTable &table);
void pack(const Conv2d &conv, const ConvTable &table, const float *w, float *packed);

}  // namespace tensure
