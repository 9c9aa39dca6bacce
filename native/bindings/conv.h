// What the bindings of convolutions share: a convolution as Python writes it down, and size checks.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>

#include "conv/conv.h"

namespace tensure {

// in, out, groups, kernel h w, stride h w, dilation h w, pad top bottom left right, layout, algorithm, switches
using Geometry = std::array<int64_t, 16>;

// Throws std::invalid_argument when a number is out of its range.
Conv2d to_conv(const Geometry &geometry);

// A product of sizes; throws when one is negative or it does not fit.
inline int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t total = 1;
  for (const int64_t size : sizes)
    if (size < 0 || __builtin_mul_overflow(total, size, &total)) throw std::invalid_argument("a size is negative or too large");
  return total;
}

inline void expect(int64_t found, int64_t wanted, const char *message) {
  if (found != wanted) throw std::invalid_argument(message);
}

}  // namespace tensure
