// What one instruction set offers to survey.cc: one chunk's hash, one unit's statistics, one unit's bins.
#pragma once

#include <cstdint>

namespace tensure {

// Statistics and gathering go by units of parts, the hash by chunks of bytes: a unit is a whole number of chunks.
constexpr int64_t kUnitParts = 4096;
constexpr int64_t kChunkBytes = 4096;
constexpr int64_t kStripeBytes = 64;
constexpr int kPasses = 4;  // of the hash over a chunk: 64 bits each
constexpr int64_t kKeyBytes = kChunkBytes + (kPasses - 1) * kStripeBytes;

// How the parts of a tensor read: what a NaN is (digest), and how a part becomes a float or a double (statistics).
enum class Part : int { f32, f64, f16, bf16, i8, i16, i32, i64, u8, u16, u32, u64, boolean };
constexpr int kNumParts = 13;

struct UnitLimits {
  float limit_float;    // the largest float that is at most the limit
  double limit_double;
};

// Of up to kUnitParts parts. Sums are of differences from `shift`, a finite part of the unit.
struct UnitFound {
  int64_t finite;
  double shift, sum, squares, minimum, maximum;  // meaningless where finite is 0
  int64_t zeros, denormals, nans, infinities, over_limit;
  int64_t first_nonfinite, first_over;  // within the unit, -1 for none
};

struct SurveyTable {
  // The chunk's sums under `key`: one for each pass. 0 < num_bytes <= kChunkBytes; the last stripe is filled up with zeros.
  // `canonical` is the kind of float whose NaNs are all taken as one, or Part::u8 for none.
  void (*hash)(const uint8_t *key, const uint8_t *bytes, int64_t num_bytes, Part canonical, uint64_t sums[kPasses]);
  // Statistics of 1 to kUnitParts parts at any address.
  void (*look)(Part part, const uint8_t *bytes, int64_t count, const UnitLimits &limits, UnitFound *found);
  // The bin of each of 1 to kUnitParts parts; num_bins for what belongs to none.
  void (*bins)(Part part, const uint8_t *bytes, int64_t count, double low, double high, int32_t num_bins, int32_t *out);
};

}  // namespace tensure
