// Statistics of one unit, compiled by target.cc for every instruction set.
//
// Every kind of part becomes floats (what has 24 bits or fewer: exact) or doubles in a buffer that stays in the first cache;
// f32 and f64 are read where they lie. One sweep then adds differences from a finite part of the unit and their squares in
// sixteen lanes of doubles, the same lanes on every set. With n parts, squares less sum * sum / n loses at most a factor of n + 1
// to cancellation: the shift is one of the parts, so (shift - mean)^2 is part of what is left. What is rare (zeros, subnormals,
// NaNs, infinities, parts over the limit) is counted only where the sweep shows that there is some.
#pragma once

#include "common/halves-inl.h"
#include "common/unroll.h"
#include "common/vector-inl.h"
#include "survey/table.h"

namespace {

using tensure::kUnitParts;
using tensure::UnitFound;
using tensure::UnitLimits;

constexpr int kSumLanes = 16;
constexpr int kDoubles = TENSURE_VECTOR_BYTES / 8;  // in a vector
constexpr int kSumVectors = kSumLanes / kDoubles;

typedef double VecD __attribute__((vector_size(TENSURE_VECTOR_BYTES)));

template <typename T> struct Of;
template <> struct Of<float> {
  typedef VecF Vec;
  typedef int32_t Bits;
  static constexpr Bits magnitude = 0x7fffffff, infinity = 0x7f800000;
};
template <> struct Of<double> {
  typedef VecD Vec;
  typedef int64_t Bits;
  static constexpr Bits magnitude = 0x7fffffffffffffff, infinity = 0x7ff0000000000000;
};

template <typename T> TENSURE_INLINE typename Of<T>::Vec load_vector(const T *p) {
  typename Of<T>::Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}
template <typename T> TENSURE_INLINE typename Of<T>::Bits bits_of(T value) {
  typename Of<T>::Bits bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// The doubles of a vector of T: one vector of them, or two.
TENSURE_INLINE void widen(VecD v, VecD *out) { out[0] = v; }
TENSURE_INLINE void widen(VecF v, VecD *out) {
#if TENSURE_VECTOR_BYTES == 64
  out[0] = _mm512_maskz_cvtps_pd(0xff, lower_half(v));
  out[1] = _mm512_maskz_cvtps_pd(0xff, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15));
#elif defined(__AVX2__)
  out[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(v));
  out[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(v, 1));
#elif defined(__SSE2__)
  out[0] = _mm_cvtps_pd(v);
  out[1] = _mm_cvtps_pd(_mm_movehl_ps(v, v));
#elif defined(__aarch64__)
  out[0] = vcvt_f64_f32(vget_low_f32(v));
  out[1] = vcvt_high_f64_f32(v);
#else
  out[0] = VecD{v[0], v[1]};
  out[1] = VecD{v[2], v[3]};
#endif
}

template <typename T> struct Sweep {
  double sum = 0, squares = 0;
  T least, most, smallest;  // `smallest` of the magnitudes
  int64_t replaced = 0;
};

// Over n parts. With kMasked, what is not finite counts as the shift; without, it makes the sum NaN or infinite.
template <typename T, bool kMasked> Sweep<T> sweep(const T *x, int64_t n, T shift) {
  typedef typename Of<T>::Vec Vec;
  typedef typename Of<T>::Bits Bits;
  typedef Bits VecBits __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
  constexpr int lanes = TENSURE_VECTOR_BYTES / static_cast<int>(sizeof(T)), widened = sizeof(double) / sizeof(T);
  VecD sums[kSumVectors] = {}, squares[kSumVectors] = {};
  const VecD from = static_cast<double>(shift) - VecD{};
  const Vec same = shift - Vec{};
  Vec least = same, most = same, smallest = (Vec)((VecBits)same & Of<T>::magnitude);
  VecBits replaced = {};
  const auto take = [&](const T *p) TENSURE_LAMBDA_INLINE {
    TENSURE_UNROLL
    for (int i = 0; i < kSumLanes / lanes; ++i) {
      Vec v = load_vector(p + i * lanes);
      Vec magnitude = (Vec)((VecBits)v & Of<T>::magnitude);
      if constexpr (kMasked) {
        const VecBits finite = (VecBits)magnitude < Of<T>::infinity;
        replaced += finite + 1;
        v = finite ? v : same;
        magnitude = (Vec)((VecBits)v & Of<T>::magnitude);
      }
      least = v < least ? v : least;
      most = v > most ? v : most;
      smallest = magnitude < smallest ? magnitude : smallest;
      VecD wide[widened];
      widen(v, wide);
      TENSURE_UNROLL
      for (int j = 0; j < widened; ++j) {
        const VecD away = wide[j] - from;
        sums[i * widened + j] += away;
        squares[i * widened + j] += away * away;
      }
    }
  };
  int64_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) take(x + i);
  if (i < n) {
    T rest[kSumLanes];
    for (int lane = 0; lane < kSumLanes; ++lane) rest[lane] = shift;
    memcpy(rest, x + i, (n - i) * sizeof(T));
    take(rest);
  }
  Sweep<T> found;
  double sum_lanes[kSumLanes], square_lanes[kSumLanes];
  memcpy(sum_lanes, sums, sizeof sums);
  memcpy(square_lanes, squares, sizeof squares);
  for (int half = kSumLanes / 2; half; half /= 2)
    for (int lane = 0; lane < half; ++lane) {
      sum_lanes[lane] += sum_lanes[lane + half];
      square_lanes[lane] += square_lanes[lane + half];
    }
  found.sum = sum_lanes[0];
  found.squares = square_lanes[0];
  found.least = found.most = shift;
  found.smallest = smallest[0];
  for (int lane = 0; lane < lanes; ++lane) {
    if (least[lane] < found.least) found.least = least[lane];
    if (most[lane] > found.most) found.most = most[lane];
    if (smallest[lane] < found.smallest) found.smallest = smallest[lane];
    found.replaced += replaced[lane];
  }
  return found;
}

// What is rare, from the bits alone, so that no rounding mode or flushing of subnormals matters.
template <typename T> void count_rare(const T *x, int64_t n, T smallest_normal, T limit, UnitFound *found) {
  typedef typename Of<T>::Bits Bits;
  typedef Bits VecBits __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
  constexpr int lanes = TENSURE_VECTOR_BYTES / static_cast<int>(sizeof(T));
  const Bits normal = bits_of(smallest_normal), most = bits_of(limit), infinity = Of<T>::infinity;
  VecBits zeros = {}, small = {}, nans = {}, infinities = {}, over = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    VecBits bits;
    memcpy(&bits, x + i, sizeof bits);
    bits &= Of<T>::magnitude;
    zeros -= bits == 0;
    small -= bits < normal;
    nans -= bits > infinity;
    infinities -= bits == infinity;
    over -= bits > most;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    found->zeros += zeros[lane];
    found->denormals += small[lane];
    found->nans += nans[lane];
    found->infinities += infinities[lane];
    found->over_limit += over[lane];
  }
  for (; i < n; ++i) {
    const Bits bits = bits_of(x[i]) & Of<T>::magnitude;
    found->zeros += bits == 0;
    found->denormals += bits < normal;
    found->nans += bits > infinity;
    found->infinities += bits == infinity;
    found->over_limit += bits > most;
  }
  found->denormals -= found->zeros;
  found->over_limit -= found->nans;  // counted above: their bits are larger than any limit's
  if (found->nans + found->infinities)
    for (i = 0; i < n && found->first_nonfinite < 0; ++i)
      if ((bits_of(x[i]) & Of<T>::magnitude) >= infinity) found->first_nonfinite = i;
  if (found->over_limit)
    for (i = 0; i < n && found->first_over < 0; ++i) {
      const Bits bits = bits_of(x[i]) & Of<T>::magnitude;
      if (bits > most && bits <= infinity) found->first_over = i;
    }
}

template <typename T> void look(const T *x, int64_t n, T smallest_normal, T limit, UnitFound *found) {
  const auto is_finite = [](T value) { return (bits_of(value) & Of<T>::magnitude) < Of<T>::infinity; };
  *found = UnitFound{};
  found->first_nonfinite = found->first_over = -1;
  found->finite = n;
  T shift = x[0];
  Sweep<T> all = {};
  bool rare = !is_finite(shift);
  if (!rare) {
    all = sweep<T, false>(x, n, shift);
    rare = !__builtin_isfinite(all.sum);
  }
  if (rare) {
    int64_t first = 0;
    while (first < n && !is_finite(x[first])) ++first;
    if (first < n) {
      shift = x[first];
      all = sweep<T, true>(x, n, shift);
      found->finite = n - all.replaced;
    } else {
      found->finite = 0;
    }
  }
  found->shift = shift;
  found->sum = all.sum;
  found->squares = all.squares;
  if (!__builtin_isfinite(all.sum)) {  // of doubles near the largest one: the mean still is a number
    found->shift = found->sum = 0;
    for (int64_t i = 0; i < n; ++i)
      if (is_finite(x[i])) found->shift += x[i] / static_cast<double>(found->finite);
    found->squares = __builtin_inf();
  }
  found->minimum = all.least;
  found->maximum = all.most;
  if (rare || all.smallest < smallest_normal || all.most > limit || all.least < -limit)
    count_rare(x, n, smallest_normal, limit, found);
}

// Parts as floats, for what a float holds exactly.
template <typename From> void to_floats(const uint8_t *bytes, int64_t n, float *out) {
  for (int64_t i = 0; i < n; ++i) {
    From value;
    memcpy(&value, bytes + i * sizeof(From), sizeof value);
    out[i] = static_cast<float>(value);
  }
}
template <typename From> void to_doubles(const uint8_t *bytes, int64_t n, double *out) {
  for (int64_t i = 0; i < n; ++i) {
    From value;
    memcpy(&value, bytes + i * sizeof(From), sizeof value);
    out[i] = static_cast<double>(value);
  }
}
void booleans_to_floats(const uint8_t *bytes, int64_t n, float *out) {
  for (int64_t i = 0; i < n; ++i) out[i] = bytes[i] ? 1.0f : 0.0f;
}
void bfloats_to_floats(const uint8_t *bytes, int64_t n, float *out) {
  for (int64_t i = 0; i < n; ++i) {
    uint16_t upper;
    memcpy(&upper, bytes + 2 * i, 2);
    const uint32_t bits = static_cast<uint32_t>(upper) << 16;
    memcpy(out + i, &bits, 4);
  }
}
void halves_to_floats(const uint8_t *bytes, int64_t n, float *out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, load_halves(bytes + 2 * i));
  for (; i < n; ++i) out[i] = load_half(bytes + 2 * i);
}

// Calls f(floats or doubles, the smallest normal number of the part's own kind).
template <typename F> TENSURE_INLINE void with_numbers(Part part, const uint8_t *bytes, int64_t n, F f) {
  constexpr float normal = 0x1p-126f;
  if (part == Part::f32 && reinterpret_cast<uintptr_t>(bytes) % 4 == 0) return f(reinterpret_cast<const float *>(bytes), normal);
  if (part == Part::f64 && reinterpret_cast<uintptr_t>(bytes) % 8 == 0)
    return f(reinterpret_cast<const double *>(bytes), 0x1p-1022);
  union {
    float floats[kUnitParts];
    double doubles[kUnitParts];
  } room;
  switch (part) {
    case Part::f16: return halves_to_floats(bytes, n, room.floats), f(room.floats, 0x1p-14f);
    case Part::bf16: return bfloats_to_floats(bytes, n, room.floats), f(room.floats, normal);
    case Part::i8: return to_floats<int8_t>(bytes, n, room.floats), f(room.floats, normal);
    case Part::u8: return to_floats<uint8_t>(bytes, n, room.floats), f(room.floats, normal);
    case Part::i16: return to_floats<int16_t>(bytes, n, room.floats), f(room.floats, normal);
    case Part::u16: return to_floats<uint16_t>(bytes, n, room.floats), f(room.floats, normal);
    case Part::boolean: return booleans_to_floats(bytes, n, room.floats), f(room.floats, normal);
    case Part::i32: return to_doubles<int32_t>(bytes, n, room.doubles), f(room.doubles, 0x1p-1022);
    case Part::u32: return to_doubles<uint32_t>(bytes, n, room.doubles), f(room.doubles, 0x1p-1022);
    case Part::i64: return to_doubles<int64_t>(bytes, n, room.doubles), f(room.doubles, 0x1p-1022);
    case Part::u64: return to_doubles<uint64_t>(bytes, n, room.doubles), f(room.doubles, 0x1p-1022);
    case Part::f32: memcpy(room.floats, bytes, n * sizeof(float)); return f(room.floats, normal);
    case Part::f64: memcpy(room.doubles, bytes, n * sizeof(double)); return f(room.doubles, 0x1p-1022);
  }
}

void look_at_unit(Part part, const uint8_t *bytes, int64_t count, const UnitLimits &limits, UnitFound *found) {
  with_numbers(part, bytes, count, [&](const auto *x, auto normal) TENSURE_LAMBDA_INLINE {
    if constexpr (sizeof(normal) == sizeof(float))
      look<float>(x, count, normal, limits.limit_float, found);
    else
      look<double>(x, count, normal, limits.limit_double, found);
  });
}

void bins_of_unit(Part part, const uint8_t *bytes, int64_t count, double low, double high, int32_t num_bins, int32_t *out) {
  const double scale = num_bins / (high - low);
  with_numbers(part, bytes, count, [&](const auto *x, auto) TENSURE_LAMBDA_INLINE {
    for (int64_t i = 0; i < count; ++i) {
      const double value = x[i], at = (value - low) * scale;
      const bool inside = value >= low && value <= high;  // no NaN, no infinity: both ends are finite
      const int32_t bin = static_cast<int32_t>(inside ? at : 0.0);
      out[i] = inside ? (bin < num_bins ? bin : num_bins - 1) : num_bins;
    }
  });
}

}  // namespace
