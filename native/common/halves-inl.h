// A vector of IEEE halves as floats. Include it behind the file that defines VecF and kLanes. Internal linkage throughout.
#pragma once

#include "common/half-inl.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

// kLanes halves at p, as floats; exact.
inline VecF load_halves(const uint8_t *p) {
#if defined(__AVX512F__)
  // The plain form of this intrinsic makes GCC 12 warn about its own undefined vector (bug 105593).
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
#elif defined(__F16C__)
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#elif defined(__aarch64__)
  return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p)));
#else
  VecF v;
  for (int i = 0; i < kLanes; ++i) v[i] = load_half(p + 2 * i);
  return v;
#endif
}

}  // namespace
