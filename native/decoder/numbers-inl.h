// Narrow numbers to vectors of floats and back. Internal linkage throughout.
#pragma once

#include "common/unroll.h"
#include "common/vector-inl.h"
// Behind the file that defines its vectors.
#include "common/halves-inl.h"

namespace {

typedef int32_t VecInt __attribute__((vector_size(TENSURE_VECTOR_BYTES)));

// kLanes bfloat16 at p; exact.
TENSURE_INLINE VecF load_bfloats(const uint8_t *p) {
  VecInt v;
  for (int i = 0; i < kLanes; ++i) {
    uint16_t word;
    memcpy(&word, p + 2 * i, 2);
    v[i] = static_cast<int32_t>(static_cast<uint32_t>(word) << 16);
  }
  return (VecF)v;
}

// kLanes signed bytes at p.
TENSURE_INLINE VecF load_bytes(const uint8_t *p) {
#if TENSURE_VECTOR_BYTES == 64
  return _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
#elif defined(__AVX2__)
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
  VecInt v;
  for (int i = 0; i < kLanes; ++i) v[i] = static_cast<int8_t>(p[i]);
  return __builtin_convertvector(v, VecF);
#endif
}

// The low or high halves of kLanes bytes at p.
TENSURE_INLINE VecF load_nibbles(const uint8_t *p, bool high) {
#if TENSURE_VECTOR_BYTES == 64
  const VecInt v = (VecInt)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#elif defined(__AVX2__)
  const VecInt v = (VecInt)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
#else
  VecInt v;
  for (int i = 0; i < kLanes; ++i) v[i] = p[i];
#endif
  return __builtin_convertvector(high ? v >> 4 : v & 15, VecF);
}

// Float to half, ties to even, as the hardware's conversion does it; NaN stays NaN.
TENSURE_INLINE uint16_t to_half(float x) {
#if defined(__F16C__)
  return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__aarch64__)
  const __fp16 h = static_cast<__fp16>(x);
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
#else
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = bits >> 16 & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | (magnitude >> 13 & 0x3ffu));
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and up
  if (magnitude < 0x38800000u) {  // below 2^-14: the half is a multiple of 2^-24
    float whole;
    memcpy(&whole, &magnitude, 4);
    const float shifted = whole + 0.5f;  // 0.5 has steps of 2^-24: adding it rounds to one
    uint32_t found;
    memcpy(&found, &shifted, 4);
    return static_cast<uint16_t>(sign | (found - 0x3f000000u));
  }
  const uint32_t rounded = magnitude + 0xfffu + (magnitude >> 13 & 1u);
  return static_cast<uint16_t>(sign | (rounded - 0x38000000u) >> 13);
#endif
}

// ((s0 + s8) + (s4 + s12)) + ...: halves are folded until one is left. `s` has 16 floats and is overwritten.
TENSURE_INLINE float fold16(float *s) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) s[i] = s[i] + s[i + half];
  return s[0];
}

}  // namespace
