// The few operations that the compiler's own vectors lack: fused multiply-add, loads at any address. Internal linkage throughout.
#pragma once

#include "common/unroll.h"
#include "dequantize/dequantize-inl.h"
// Behind the file that defines its vectors.
#include "common/halves-inl.h"

namespace {

#if defined(__AVX512F__) || defined(__FMA__) || defined(__aarch64__)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;  // x86-64-v2 and unknown machines: two roundings
#endif

// A vector at any address. Not memcpy: GCC copies structs of vectors by halves, and a load across two stores waits for both.
template <class Vec>
inline Vec load_as(const void *p) {
  typedef Vec Anywhere __attribute__((aligned(1), may_alias));
  return *static_cast<const Anywhere *>(p);
}

inline VecF multiply_add(VecF a, VecF b, VecF c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline float one_half(const uint8_t *p) {
#if defined(__F16C__)
  uint16_t bits;
  memcpy(&bits, p, 2);
  return _cvtsh_ss(bits);
#else
  return load_half(p);
#endif
}

// The eight 6-bit scales and minimums of a q4_k block: three words of four bytes (layout: ggml's block_q4_K).
struct Q4kScales {
  uint8_t scale[8], minimum[8];
};
inline Q4kScales q4_k_scales(const uint8_t *block) {
  uint32_t a, b, c;
  memcpy(&a, block + 4, 4);
  memcpy(&b, block + 8, 4);
  memcpy(&c, block + 12, 4);
  const uint32_t words[4] = {
      a & 0x3f3f3f3fu,
      (c & 0x0f0f0f0fu) | (a >> 6 & 0x03030303u) << 4,
      b & 0x3f3f3f3fu,
      (c >> 4 & 0x0f0f0f0fu) | (b >> 6 & 0x03030303u) << 4,
  };
  Q4kScales s;
  memcpy(&s, words, sizeof s);
  return s;
}

}  // namespace
