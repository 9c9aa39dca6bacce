// Everything a person asks about a tensor's values, and a 128-bit digest of its bytes, in one pass. The stable face of the family.
#pragma once

#include <cstdint>
#include <vector>

namespace tensure {

// What one element is. Complex numbers are looked at as their two parts, as if the last dim were twice as long.
enum class Element : int { f32, f64, f16, bf16, i8, i16, i32, i64, u8, u16, u32, u64, boolean, c64, c128 };
constexpr int kNumElements = 15;

constexpr int64_t element_bytes(Element e) {
  constexpr int64_t bytes[kNumElements] = {4, 8, 2, 2, 1, 2, 4, 8, 1, 2, 4, 8, 1, 8, 16};
  return bytes[static_cast<int>(e)];
}
// Parts of one element: 2 for complex numbers.
constexpr int element_parts(Element e) { return e == Element::c64 || e == Element::c128 ? 2 : 1; }

// A tensor in memory. Strides are in bytes, of any sign, zero included; its order is C order of the shape.
struct TensorView {
  const uint8_t *data;
  Element element;
  std::vector<int64_t> shape, strides;
};

// Dims of 1 dropped, neighbours that lie as one joined: the same elements in the same order.
TensorView simplified(const TensorView &x);
bool is_contiguous(const TensorView &simple);

struct SurveyOptions {
  bool statistics = true, digest = false;
  bool canonical_nan = false;  // digest: every NaN counts as one and the same
  double limit = __builtin_inf();  // count |x| > limit; at least 0
  int num_threads = 1;
};

// Of parts. Places are indices of parts in C order, -1 for none.
struct Statistics {
  int64_t count = 0;   // all parts
  int64_t finite = 0;  // what minimum, maximum, mean and m2 are of
  double minimum = 0, maximum = 0, mean = 0;
  double m2 = 0;  // sum of squared differences from the mean
  int64_t zeros = 0, denormals = 0, nans = 0, infinities = 0, over_limit = 0;
  int64_t first_nonfinite = -1, first_over = -1;
};

// Population standard deviation, and the root of the sum of squares, of the finite parts; 0 of none.
double deviation(const Statistics &s);
double l2(const Statistics &s);

struct Digest {
  uint64_t low, high;
};

struct Survey {
  Statistics statistics;
  Digest digest{0, 0};
};

// Returns false when no instruction set is in use. Results are the same bits on every instruction set, for every number of
// threads, and for every way the same tensor may lie in memory. Never makes a copy of the tensor: what does not lie in order is
// gathered through 32 KiB at a time.
bool survey(const TensorView &x, const SurveyOptions &options, Survey *found);

// counts[bin] grows by the number of finite parts v with low <= v <= high and
// min(int((v - low) * (num_bins / (high - low))), num_bins - 1) == bin, in double arithmetic. low < high, high - low finite.
bool histogram(const TensorView &x, double low, double high, int64_t num_bins, int64_t *counts);

}  // namespace tensure
