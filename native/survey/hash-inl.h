// The hash of one chunk, compiled by target.cc for every instruction set: NH of Black and others, four passes over 32-bit words.
//
// A pass adds a key word to each 32-bit word (mod 2^32), multiplies neighbours to 64 bits, and adds all products (mod 2^64). For
// any two different chunks of one length, at most one key in 2^32 makes a pass agree; the passes use the same key, each a stripe
// further on, which keeps that bound for each (Toeplitz). See digest.cc for what becomes of the sums.
#pragma once

#include "common/unroll.h"
#include "common/vector-inl.h"
#include "survey/table.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

using tensure::kPasses;
using tensure::kStripeBytes;
using tensure::Part;

typedef uint64_t Words64 __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
typedef uint32_t Words32 __attribute__((vector_size(TENSURE_VECTOR_BYTES)));

template <typename V> TENSURE_INLINE V load_words(const uint8_t *p) {
  V v;
  memcpy(&v, p, sizeof v);
  return v;
}

// The product of the two halves of each 64-bit lane: the language has no word for a product of 32 bits by 32 into 64.
TENSURE_INLINE Words64 halves_product(Words32 v) {
#if defined(__AVX512F__)
  const __m512i w = (__m512i)v;
  return (Words64)_mm512_maskz_mul_epu32(0xff, w, _mm512_maskz_srli_epi64(0xff, w, 32));
#elif defined(__AVX2__)
  return (Words64)_mm256_mul_epu32((__m256i)v, _mm256_srli_epi64((__m256i)v, 32));
#elif defined(__SSE2__)
  return (Words64)_mm_mul_epu32((__m128i)v, _mm_srli_epi64((__m128i)v, 32));
#elif defined(__aarch64__)
  const uint64x2_t w = (uint64x2_t)v;
  return (Words64)vmull_u32(vmovn_u64(w), vshrn_n_u64(w, 32));
#else
  const Words64 w = (Words64)v;
  return (w & 0xffffffffu) * (w >> 32);
#endif
}

// NaNs of one kind of float, all to one pattern: the quiet one without a sign or payload.
template <Part kPart> struct NanOf;
template <> struct NanOf<Part::f16> {
  typedef int16_t Lane;
  static constexpr Lane magnitude = 0x7fff, infinity = 0x7c00, canonical = 0x7e00;
};
template <> struct NanOf<Part::bf16> {
  typedef int16_t Lane;
  static constexpr Lane magnitude = 0x7fff, infinity = 0x7f80, canonical = 0x7fc0;
};
template <> struct NanOf<Part::f32> {
  typedef int32_t Lane;
  static constexpr Lane magnitude = 0x7fffffff, infinity = 0x7f800000, canonical = 0x7fc00000;
};
template <> struct NanOf<Part::f64> {
  typedef int64_t Lane;
  static constexpr Lane magnitude = 0x7fffffffffffffff, infinity = 0x7ff0000000000000, canonical = 0x7ff8000000000000;
};

template <Part kPart> TENSURE_INLINE Words32 canonical_nans(Words32 v) {
  if constexpr (kPart == Part::u8) {
    return v;
  } else {
    typedef NanOf<kPart> N;
    typedef typename N::Lane V __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
    const V bits = (V)v;
    return (Words32)((bits & N::magnitude) > N::infinity ? V{} + N::canonical : bits);
  }
}

template <Part kPart> TENSURE_INLINE void hash_stripe(const uint8_t *key, const uint8_t *bytes, Words64 (&sums)[kPasses]) {
  TENSURE_UNROLL
  for (int at = 0; at < kStripeBytes; at += TENSURE_VECTOR_BYTES) {
    const Words32 v = canonical_nans<kPart>(load_words<Words32>(bytes + at));
    TENSURE_UNROLL
    for (int pass = 0; pass < kPasses; ++pass)
      sums[pass] += halves_product(v + load_words<Words32>(key + at + pass * kStripeBytes));
  }
}

template <Part kPart>
void hash_of(const uint8_t *key, const uint8_t *bytes, int64_t num_bytes, uint64_t out[kPasses]) {
  Words64 sums[kPasses] = {};
  for (; num_bytes >= kStripeBytes; num_bytes -= kStripeBytes, bytes += kStripeBytes, key += kStripeBytes) {
    // Opaque, or GCC keeps the key from one stripe to the next in registers, of which there are too few, and spills the sums.
    __asm__("" : "+r"(key));
    hash_stripe<kPart>(key, bytes, sums);
  }
  if (num_bytes) {
    uint8_t last[kStripeBytes] = {};
    memcpy(last, bytes, num_bytes);
    hash_stripe<kPart>(key, last, sums);
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    out[pass] = 0;
    for (int lane = 0; lane < TENSURE_VECTOR_BYTES / 8; ++lane) out[pass] += sums[pass][lane];
  }
}

void hash_chunk(const uint8_t *key, const uint8_t *bytes, int64_t num_bytes, Part canonical, uint64_t sums[kPasses]) {
  switch (canonical) {
    case Part::f16: return hash_of<Part::f16>(key, bytes, num_bytes, sums);
    case Part::bf16: return hash_of<Part::bf16>(key, bytes, num_bytes, sums);
    case Part::f32: return hash_of<Part::f32>(key, bytes, num_bytes, sums);
    case Part::f64: return hash_of<Part::f64>(key, bytes, num_bytes, sums);
    default: return hash_of<Part::u8>(key, bytes, num_bytes, sums);
  }
}

}  // namespace
