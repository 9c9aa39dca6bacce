// Images in every layout by their definition, and a convolution as seven plain loops in double.
#pragma once

#include <cmath>
#include <vector>

#include "conv/conv.h"

namespace tensure::check {

struct Shape {
  int64_t n, c, h, w;
};

inline int64_t lanes_of(Layout layout) { return layout == Layout::chwn8 ? 8 : layout == Layout::chwn16 ? 16 : 1; }
// Images with the padding of the last block.
inline int64_t held(Layout layout, int64_t n) { return (n + lanes_of(layout) - 1) / lanes_of(layout) * lanes_of(layout); }
inline int64_t size_of(Layout layout, const Shape &s) { return held(layout, s.n) * s.c * s.h * s.w; }

inline int64_t index_of(Layout layout, const Shape &s, int64_t n, int64_t c, int64_t y, int64_t x) {
  const int64_t b = lanes_of(layout);
  switch (layout) {
    case Layout::nchw: return ((n * s.c + c) * s.h + y) * s.w + x;
    case Layout::nhwc: return ((n * s.h + y) * s.w + x) * s.c + c;
    case Layout::chwn: return ((c * s.h + y) * s.w + x) * s.n + n;
    case Layout::chwn8:
    case Layout::chwn16: return (((n / b * s.c + c) * s.h + y) * s.w + x) * b + n % b;
  }
  return 0;
}

// Calls f(index in NCHW, index in the layout) for every element of every image.
template <typename F> void for_each_element(Layout layout, const Shape &s, F f) {
  int64_t i = 0;
  for (int64_t n = 0; n < s.n; ++n)
    for (int64_t c = 0; c < s.c; ++c)
      for (int64_t y = 0; y < s.h; ++y)
        for (int64_t x = 0; x < s.w; ++x) f(i++, index_of(layout, s, n, c, y, x));
}

inline double activated(double x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return x < 0 ? 0 : x;
    case Activation::relu6: return x < 0 ? 0 : x > 6 ? 6 : x;
    case Activation::silu: return x / (1 + std::exp(-x));
  }
  return x;
}

// Sums and sums of magnitudes, in NCHW.
struct Exact {
  std::vector<double> value, magnitude;
};
inline Exact plain_conv(const Conv2d &c, const Shape &in, const Shape &out, const float *x, const float *w) {
  Exact exact;
  const int64_t each_in = c.in_channels / c.groups, each_out = c.out_channels / c.groups;
  for (int64_t n = 0; n < out.n; ++n)
    for (int64_t o = 0; o < out.c; ++o)
      for (int64_t m = 0; m < out.h; ++m)
        for (int64_t l = 0; l < out.w; ++l) {
          double sum = 0, magnitude = 0;
          for (int64_t r = 0; r < each_in; ++r)
            for (int64_t u = 0; u < c.kernel_h; ++u)
              for (int64_t v = 0; v < c.kernel_w; ++v) {
                const int64_t y = m * c.stride_h + u * c.dilation_h - c.pad_top;
                const int64_t at = l * c.stride_w + v * c.dilation_w - c.pad_left;
                if (y < 0 || y >= in.h || at < 0 || at >= in.w) continue;
                const double product = static_cast<double>(x[((n * in.c + o / each_out * each_in + r) * in.h + y) * in.w + at]) *
                                       w[((o * each_in + r) * c.kernel_h + u) * c.kernel_w + v];
                sum += product;
                magnitude += std::abs(product);
              }
          exact.value.push_back(sum);
          exact.magnitude.push_back(magnitude);
        }
  return exact;
}

// How far a sum of `terms` rounded once each may be from the exact one, for magnitudes summing to 1: never more than terms * u,
// and on random numbers all but surely below 8 sqrt(terms) u (Higham and Mary, SIAM J. Sci. Comput. 41, 2019).
inline double sum_error(int64_t terms) {
  return std::fmin(static_cast<double>(terms), 8 * std::sqrt(static_cast<double>(terms))) * 0x1p-24 * 1.001;
}
// What SiLU makes of an error of its input, and adds to it.
inline double silu_error(double error, double y) { return 1.1 * error + 4e-7 * std::abs(y) + 1e-35; }

}  // namespace tensure::check
