// Activations to 8 or 15 bits, in groups of 32, with the sums that the integer kernels need; and the plain reader of memory.
#pragma once

#include "gemv/exact-inl.h"  // and, before it, gemv/fast-inl.h in namespace plain

namespace {

// 32 integers in -127..127 to bytes, written as wide as they will be read.
inline void narrow(const VecI *integers, uint8_t *out) {
#if defined(__AVX512F__)
  const __m128i low = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)integers[0]);
  const __m128i high = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)integers[1]);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), _mm256_set_m128i(high, low));
#elif defined(__AVX2__)
  const __m256i low = _mm256_packs_epi32((__m256i)integers[0], (__m256i)integers[1]);
  const __m256i high = _mm256_packs_epi32((__m256i)integers[2], (__m256i)integers[3]);
  const __m256i bytes = _mm256_packs_epi16(low, high);  // fours of each vector, low halves first
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  _mm256_storeu_si256(reinterpret_cast<__m256i *>(out), _mm256_permutevar8x32_epi32(bytes, order));
#elif defined(__SSE2__)
  for (int i = 0; i < 2; ++i, integers += 4) {
    const __m128i low = _mm_packs_epi32((__m128i)integers[0], (__m128i)integers[1]);
    const __m128i high = _mm_packs_epi32((__m128i)integers[2], (__m128i)integers[3]);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(out + 16 * i), _mm_packs_epi16(low, high));
  }
#else
  for (int i = 0; i < 32; ++i) out[i] = static_cast<uint8_t>(integers[i / kLanes][i % kLanes]);
#endif
}

// q = round(x * (most / max|x|)) with ties to even, scale = max|x| / most, where most is 127, or 16256 = 128 * 127 for two planes. A
// group whose largest magnitude is below 2^-100 counts as zeros; one that holds Inf or NaN gets a NaN scale, so that nothing that
// reads it looks finite.
template <int kPlanes> inline void to_integers(const float *from, int64_t num_cols, uint8_t *out) {
  const tensure::GemvActivations place = tensure::gemv_activations(num_cols, kPlanes);
  constexpr float kMost = kPlanes == 1 ? 127.0f : 16256.0f;
  constexpr float kToInteger = 0x1.8p23f;  // adding it leaves no bits behind the point
  constexpr int kVectors = 32 / kLanes;
  static constexpr int32_t kPlaces[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const VecI places = load_as<VecI>(kPlaces);
  for (int64_t g = 0; g < place.groups; ++g) {
    float filled[32];
    const float *values = from + 32 * g;
    const int64_t here = num_cols - 32 * g;
    if (here < 32) {
      memset(filled, 0, sizeof filled);
      if (here > 0) memcpy(filled, values, sizeof(float) * static_cast<size_t>(here));
      values = filled;
    }
    VecF x[kVectors];
    VecI largest_of = {};  // magnitudes order as their bits do, NaN above Inf above all numbers
    TENSURE_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      x[i] = load(values + i * kLanes);
      const VecI magnitude = (VecI)x[i] & 0x7fffffff;
      largest_of = magnitude > largest_of ? magnitude : largest_of;
    }
    TENSURE_UNROLL
    for (int half = kLanes / 2; half > 0; half /= 2) {
      const VecI other = __builtin_shuffle(largest_of, (places + half) & (kLanes - 1));
      largest_of = other > largest_of ? other : largest_of;
    }
    const int32_t largest = largest_of[0];
    const bool finite = largest < 0x7f800000;
    const float most = bits_to_float(static_cast<uint32_t>(largest));
    const bool zero = !finite || most < 0x1p-100f;
    const float scale = !finite ? bits_to_float(0x7fc00000u) : zero ? 0.0f : most / kMost;
    const float inverse = zero ? 0.0f : kMost / most;
    VecI integers[kVectors], low[kVectors];
    int32_t lanes[8];
    alignas(32) uint8_t q[kPlanes * 32];
    TENSURE_UNROLL
    for (int i = 0; i < kVectors; ++i) {
      const VecI rounded = (VecI)(x[i] * inverse + kToInteger) - 0x4b400000;  // the bits of kToInteger
      integers[i] = zero ? VecI{} : rounded;
      if (kPlanes == 2) {
        const VecI high = (integers[i] + 64) >> 7;
        low[i] = integers[i] - (high << 7);
        integers[i] = high;
      }
    }
    narrow(integers, q);
    if (kPlanes == 2) narrow(low, q + 32);
    TENSURE_UNROLL
    for (int i = 0; i < plain::kBlockParts; ++i) {
      const plain::BlockI ones = plain::BlockI{} + 0x01010101;
      const auto sum_of = [&](const uint8_t *plane) {
        const auto right = load_as<plain::BlockI>(plane + i * plain::kBlockVector);
        return (plain::BlockI)plain::dot_signed((plain::RawBlock)plain::BlockI{}, (plain::RawBlock)ones, (plain::RawBlock)right);
      };
      plain::BlockI fours = sum_of(q);
      if (kPlanes == 2) fours = (fours << 7) + sum_of(q + 32);
      const plain::BlockI eighths = fours * -8;
      memcpy(lanes + i * plain::kBlockLanes, &eighths, sizeof eighths);
    }
    const int32_t total = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
    const float sum = scale * static_cast<float>(total / -8);
    memcpy(out + 32 * g, q, 32);
    if (kPlanes == 2) memcpy(out + place.low + 32 * g, q + 32, 32);
    memcpy(out + place.lanes + 32 * g, lanes, sizeof lanes);
    memcpy(out + place.total + 4 * g, &total, 4);
    memcpy(out + place.scale + 4 * g, &scale, 4);
    memcpy(out + place.sum + 4 * g, &sum, 4);
  }
}

void quantize(const float *from, int64_t num_cols, uint8_t *out) { to_integers<1>(from, num_cols, out); }
void quantize_fine(const float *from, int64_t num_cols, uint8_t *out) { to_integers<2>(from, num_cols, out); }

template <int kStreams>
inline uint64_t read_streams(const uint8_t *data, int64_t bytes, int64_t prefetch) {
  constexpr int kBytes = 4 * kLanes, kSteps = 256 / kBytes;
  const int64_t part = bytes / kStreams;
  VecI found[4] = {};
  for (int64_t i = 0; i < part; i += 256)
    for (int s = 0; s < kStreams; ++s) {
      const uint8_t *const p = data + s * part + i;
      if (prefetch)
        for (int line = 0; line < 256; line += 64) __builtin_prefetch(p + prefetch + line, 0, 3);
      for (int j = 0; j < kSteps; ++j) {
        VecI v;
        memcpy(&v, p + j * kBytes, sizeof v);
        found[j % 4] ^= v;
      }
    }
  found[0] ^= found[1] ^ found[2] ^ found[3];
  uint64_t words[kBytes / 8], all = 0;
  memcpy(words, found, sizeof words);
  for (uint64_t word : words) all ^= word;
  return all;
}

uint64_t read(const uint8_t *data, int64_t bytes, int streams, int64_t prefetch) {
  switch (streams) {
    case 8: return read_streams<8>(data, bytes, prefetch);
    case 4: return read_streams<4>(data, bytes, prefetch);
    case 2: return read_streams<2>(data, bytes, prefetch);
    default: return read_streams<1>(data, bytes, prefetch);
  }
}

}  // namespace
