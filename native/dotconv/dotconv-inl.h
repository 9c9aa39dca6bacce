// Register tiles, epilogues and copies, written once and compiled by target.cc for every instruction set.
//
// The tile is conv-inl.h's channel tile with a group of neighbouring products where that one has a product: 32 bits of x,
// broadcast, against a vector of 32-bit groups of weights. The sums leave through memory, because what happens to them next
// has many forms and takes little time.
#pragma once

#include "common/activation-inl.h"
#include "common/dot-inl.h"
#include "dotconv/table.h"

namespace {

using tensure::DotDepthwise;
using tensure::DotFinish;
using tensure::DotKernel;
using tensure::DotMethod;
using tensure::DotTable;
using tensure::DotTile;

// --- tiles ---

template <DotMethod METHOD> TENSURE_INLINE VecI dot(VecI values, VecI weights, VecI sum) {
  if constexpr (METHOD == DotMethod::bytes) return dot_bytes(values, weights, sum);
  if constexpr (METHOD == DotMethod::shorts) return dot_shorts(values, weights, sum);
  if constexpr (METHOD == DotMethod::halves) return as_ints(dot_halves(values, weights, as_floats(sum)));
}

TENSURE_INLINE int32_t load_group(const char *p) {
  int32_t group;
  memcpy(&group, p, 4);
  return group;
}

template <DotMethod METHOD, int MR, int NV> void dot_tile(const DotTile &tile) {
  VecI sum[MR][NV];
  int32_t *sums = static_cast<int32_t *>(tile.sums);
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) sum[i][j] = tile.first ? VecI{} : load_ints(sums + (i * NV + j) * kLanes);
  const char *x[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) x[i] = tile.x[i];
  const int32_t *w = static_cast<const int32_t *>(tile.w);
  const int64_t *offset = tile.offsets;
  for (const int64_t *end = offset + tile.num_groups; offset != end; ++offset) {
    const int64_t at = *offset;
    VecI weights[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) weights[j] = load_ints(w + j * kLanes);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const VecI value = splat_int(load_group(x[i] + at));
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sum[i][j] = dot<METHOD>(value, weights[j], sum[i][j]);
    }
    w += NV * kLanes;
  }
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store_ints(sums + (i * NV + j) * kLanes, sum[i][j]);
}

// --- epilogues ---

typedef int8_t VecS8 __attribute__((vector_size(kLanes)));
typedef uint8_t VecU8 __attribute__((vector_size(kLanes)));
typedef uint16_t VecU16 __attribute__((vector_size(kLanes * 2)));

template <typename T, typename V> TENSURE_INLINE void store_lanes(T *to, V v, int count) {
  if (count >= kLanes) {
    memcpy(to, &v, sizeof v);
  } else {
    const V part = v;  // a copy of its own: only this end has an address
    for (int i = 0; i < count; ++i) to[i] = part[i];
  }
}

// multiply_even: the 64-bit products of the even lanes. alternate: even lanes of one, odd lanes of the other.
typedef int64_t VecL __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
typedef uint64_t VecUL __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
#if TENSURE_VECTOR_BYTES == 64
// The plain intrinsic is given an undefined register, which GCC 12 warns about (PR 105593).
TENSURE_INLINE VecL multiply_even(VecL a, VecL b) {
  return reinterpret_cast<VecL>(_mm512_maskz_mul_epi32(0xff, reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}
TENSURE_INLINE VecI alternate(VecUL even, VecUL odd) {
  return reinterpret_cast<VecI>(
      _mm512_mask_blend_epi32(0xaaaa, reinterpret_cast<__m512i>(even), reinterpret_cast<__m512i>(odd)));
}
#elif defined(__AVX2__)
TENSURE_INLINE VecL multiply_even(VecL a, VecL b) {
  return reinterpret_cast<VecL>(_mm256_mul_epi32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
}
TENSURE_INLINE VecI alternate(VecUL even, VecUL odd) {
  return reinterpret_cast<VecI>(_mm256_blend_epi32(reinterpret_cast<__m256i>(even), reinterpret_cast<__m256i>(odd), 0xaa));
}
#elif defined(__SSE4_1__)
TENSURE_INLINE VecL multiply_even(VecL a, VecL b) {
  return reinterpret_cast<VecL>(_mm_mul_epi32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
}
TENSURE_INLINE VecI alternate(VecUL even, VecUL odd) {
  return reinterpret_cast<VecI>(_mm_blend_epi16(reinterpret_cast<__m128i>(even), reinterpret_cast<__m128i>(odd), 0xcc));
}
#else
TENSURE_INLINE VecL multiply_even(VecL a, VecL b) { return (a << 32 >> 32) * (b << 32 >> 32); }
TENSURE_INLINE VecI alternate(VecUL even, VecUL odd) {
  return reinterpret_cast<VecI>((even & 0xffffffff) | (odd & ~uint64_t{0xffffffff}));
}
#endif

// floor((a * b + 2^30) / 2^31) of each lane; b >= 0. The saturating rounding doubling high multiply of gemmlowp, whose
// rounding of negative products comes to the same.
TENSURE_INLINE VecI high_multiply(VecI a, VecI b) {
#if defined(__aarch64__)
  return reinterpret_cast<VecI>(vqrdmulhq_s32(reinterpret_cast<int32x4_t>(a), reinterpret_cast<int32x4_t>(b)));
#else
  const VecL x = reinterpret_cast<VecL>(a), y = reinterpret_cast<VecL>(b), half = int64_t{1 << 30} - VecL{};
  // The results are bits 31 to 62: moved down to the even lanes, up to the odd ones.
  const VecUL even = reinterpret_cast<VecUL>(multiply_even(x, y) + half);
  const VecUL odd = reinterpret_cast<VecUL>(multiply_even(x >> 32, y >> 32) + half);
  return alternate(even >> 31, odd << 1);
#endif
}

// x * 2^left, held to 32 bits.
TENSURE_INLINE VecI shift_left(VecI x, VecI left) {
  const VecI shifted = x << left;
  return (shifted >> left) == x ? shifted : (x >> 31) ^ 0x7fffffff;
}

// round(x / 2^right), halves away from zero.
TENSURE_INLINE VecI shift_right(VecI x, VecI right) {
  const VecI mask = ~(splat_int(-1) << right), negative = x < 0;  // -1 where true
  return (x >> right) - ((x & mask) > (mask >> 1) - negative);
}

// The same, of |x| < 2^30: half is added, and one taken away below zero, without leaving 32 bits.
TENSURE_INLINE VecI shift_right_small(VecI x, VecI right, VecI half, VecI is_shift) {
  return (x + half + ((x >> 31) & is_shift)) >> right;
}

TENSURE_INLINE VecI clamp(VecI x, VecI low, VecI high) {
  x = x < low ? low : x;
  return x > high ? high : x;
}

void finish_ints(const DotFinish &f) {
  for (int c = 0; c < f.channels; c += kLanes) {
    const VecI offset = load_ints(f.offset + c);
    const int32_t *sums = static_cast<const int32_t *>(f.sums) + c;
    for (int p = 0; p < f.pixels; ++p)
      store_lanes(static_cast<int32_t *>(f.out) + f.out_at[p] + c, wrapping_add(load_ints(sums + p * f.width), offset),
                  f.channels - c);
  }
}

template <typename T, typename NARROW, bool SMALL> TENSURE_INLINE void finish_bytes_of(const DotFinish &f) {
  const VecI zero = splat_int(f.zero_point), low = splat_int(f.low) - zero, high = splat_int(f.high) - zero;
  // Copies, since a store of bytes might change any field for all the compiler knows.
  const int pixels = f.pixels, width = f.width, channels = f.channels;
  const int64_t *out_at = f.out_at;
  for (int c = 0; c < channels; c += kLanes) {
    const VecI offset = load_ints(f.offset + c), multiplier = load_ints(f.multiplier + c);
    const VecI left = load_ints(f.left + c), right = load_ints(f.right + c);
    const VecI mask = ~(splat_int(-1) << right), half = (mask >> 1) + (mask & 1), is_shift = right > 0;
    const int32_t *sums = static_cast<const int32_t *>(f.sums) + c;
    T *out = static_cast<T *>(f.out) + c;
    for (int p = 0; p < pixels; ++p, sums += width) {
      const VecI sum = wrapping_add(load_ints(sums), offset);
      const VecI scaled = SMALL ? shift_right_small(high_multiply(sum, multiplier), right, half, is_shift)
                                : shift_right(high_multiply(shift_left(sum, left), multiplier), right);
      const NARROW narrow = __builtin_convertvector(clamp(scaled, low, high) + zero, NARROW);
      store_lanes(out + out_at[p], narrow, channels - c);
    }
  }
}

template <typename T, typename NARROW> void finish_bytes(const DotFinish &f) {
  if (f.small)
    finish_bytes_of<T, NARROW, true>(f);
  else
    finish_bytes_of<T, NARROW, false>(f);
}

void finish_scaled(const DotFinish &f) {
  for (int c = 0; c < f.channels; c += kLanes) {
    const VecI offset = load_ints(f.offset + c);
    const VecF scale = load<VecF>(f.scale + c), bias = load<VecF>(f.bias + c);
    const int32_t *sums = static_cast<const int32_t *>(f.sums) + c;
    for (int p = 0; p < f.pixels; ++p) {
      const VecI sum = wrapping_add(load_ints(sums + p * f.width), offset);
      const VecF value = __builtin_convertvector(sum, VecF) * scale + bias;
      store_lanes(static_cast<float *>(f.out) + f.out_at[p] + c, value, f.channels - c);
    }
  }
}

// The upper halves of floats, rounded to nearest even; NaN stays NaN.
TENSURE_INLINE VecU16 to_halves(VecF v) {
  const VecI bits = as_ints(v);
  const VecI rounded = wrapping_add(bits, ((bits >> 16) & 1) + 0x7fff);
  return __builtin_convertvector((v == v ? rounded : bits | 0x400000) >> 16, VecU16);
}

template <bool NARROW> void finish_half_sums(const DotFinish &f) {
  for (int c = 0; c < f.channels; c += kLanes) {
    const VecF bias = load<VecF>(f.bias + c);
    const float *sums = static_cast<const float *>(f.sums) + c;
    for (int p = 0; p < f.pixels; ++p) {
      const VecF value = activate(load<VecF>(sums + p * f.width) + bias, f.activation);
      const int64_t at = f.out_at[p] + c;
      if constexpr (NARROW)
        store_lanes(static_cast<uint16_t *>(f.out) + at, to_halves(value), f.channels - c);
      else
        store_lanes(static_cast<float *>(f.out) + at, value, f.channels - c);
    }
  }
}

// --- copies ---

void flip(const void *from, void *to, int64_t count) {
  const uint8_t *x = static_cast<const uint8_t *>(from);
  uint8_t *y = static_cast<uint8_t *>(to);
  for (int64_t i = 0; i < count; ++i) y[i] = x[i] ^ 0x80;
}

template <typename T> void widen(const void *from, void *to, int64_t count, int32_t zero_point) {
  const T *x = static_cast<const T *>(from);
  int16_t *y = static_cast<int16_t *>(to);
  const int16_t zero = static_cast<int16_t>(zero_point);
  for (int64_t i = 0; i < count; ++i) y[i] = static_cast<int16_t>(x[i] - zero);
}

// --- depthwise ---

// Lanes are channels; the pixels share each tap's weights. A tap beyond the input counts as the zero point: it is skipped.
template <typename T, typename NARROW, int Q> void depthwise(const DotDepthwise &row) {
  const VecI zero = splat_int(row.zero_point);
  for (int64_t channel = 0; channel < row.channels; channel += kLanes) {
    const int64_t left = row.channels - channel;
    const auto get = [&](const T *p) TENSURE_LAMBDA_INLINE {
      NARROW v = {};
      if (left >= kLanes)
        memcpy(&v, p, sizeof v);
      else
        memcpy(&v, p, static_cast<size_t>(left));
      return __builtin_convertvector(v, VecI) - zero;
    };
    VecI sum[Q] = {};
    const int32_t *w = row.w + channel;
    for (int64_t u = 0; u < row.kernel_h; ++u) {
      const T *base = static_cast<const T *>(row.rows[u]);
      if (!base) {
        w += row.kernel_w * row.padded;
        continue;
      }
      for (int64_t v = 0; v < row.kernel_w; ++v, w += row.padded) {
        const int64_t at = row.column * row.stride_w + v * row.dilation_w - row.pad_left;
        if (Q == 1 && (at < 0 || at >= row.width)) continue;
        const T *p = base + at * row.channels + channel;
        const VecI weight = load_ints(w);
#pragma GCC unroll 4
        for (int q = 0; q < Q; ++q) sum[q] = dot_shorts(get(p + q * row.stride_w * row.channels), weight, sum[q]);
      }
    }
#pragma GCC unroll 4
    for (int q = 0; q < Q; ++q) store_ints(row.sums + q * row.padded + channel, sum[q]);
  }
}

// --- the table ---

// Largest tiles whose sums, weights, one broadcast and, where products and sums are two instructions, one product fit the
// registers.
constexpr int kSpareRegisters = kRegisters == 32 ? 1 : 2;
constexpr int kTileVectors = kRegisters == 32 ? 4 : 2;
constexpr int largest(int vectors) {
  int pixels = 0;
  while ((pixels + 1) * vectors + vectors + kSpareRegisters <= kRegisters && pixels < tensure::kMaxPixels) ++pixels;
  return pixels;
}

template <DotMethod METHOD, int NV, int MR> constexpr void fill_pixels(DotKernel (&row)[tensure::kMaxPixels + 1]) {
  if constexpr (MR > 0) {
    row[MR] = dot_tile<METHOD, MR, NV>;
    fill_pixels<METHOD, NV, MR - 1>(row);
  }
}
template <DotMethod METHOD, int NV> constexpr void fill_vectors(DotTable &table) {
  if constexpr (NV > 0) {
    fill_pixels<METHOD, NV, largest(NV)>(table.tile[static_cast<int>(METHOD)][NV]);
    fill_vectors<METHOD, NV - 1>(table);
  }
}

constexpr DotTable make_table() {
  DotTable table{};
  table.lanes = kLanes;
  table.max_vectors = kTileVectors;
  for (int vectors = 1; vectors <= kTileVectors; ++vectors) table.max_pixels[vectors] = largest(vectors);
  table.has_byte_dot = kHasByteDot;
  table.has_half_dot = kHasHalfDot;
  table.signed_bytes = kByteDotIsSigned;
  if constexpr (kHasByteDot) fill_vectors<DotMethod::bytes, kTileVectors>(table);
  if constexpr (kHasHalfDot) fill_vectors<DotMethod::halves, kTileVectors>(table);
  fill_vectors<DotMethod::shorts, kTileVectors>(table);
  table.finish[0] = finish_ints;
  table.finish[1] = finish_bytes<int8_t, VecS8>;
  table.finish[2] = finish_bytes<uint8_t, VecU8>;
  table.finish[3] = finish_scaled;
  table.finish_halves[0] = finish_half_sums<false>;
  table.finish_halves[1] = finish_half_sums<true>;
  table.flip = flip;
  table.widen[0] = widen<uint8_t>;
  table.widen[1] = widen<int8_t>;
  table.depthwise[0][0] = depthwise<uint8_t, VecU8, 1>;
  table.depthwise[0][1] = depthwise<uint8_t, VecU8, tensure::kDepthwisePixels>;
  table.depthwise[1][0] = depthwise<int8_t, VecS8, 1>;
  table.depthwise[1][1] = depthwise<int8_t, VecS8, tensure::kDepthwisePixels>;
  return table;
}

}  // namespace
