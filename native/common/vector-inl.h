// One float vector of the instruction set being compiled, and the few operations the kernels need.
//
// Included by `-inl.h` bodies that target.cc compiles once for each set. GCC's own vector types, and intrinsics only where
// the language has no word for it: fused multiply-add (the language may or may not fuse a*b+c; bits must not depend on
// that) and masked tails. Internal linkage throughout, see native/README.md.
#pragma once

#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

constexpr int kLanes = TENSURE_VECTOR_BYTES / 4;

typedef float VecF __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
typedef float VecFAnywhere __attribute__((vector_size(TENSURE_VECTOR_BYTES), aligned(4)));

// How many vector registers a tile may fill; x86 before AVX-512 has 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisters = 32;
#else
constexpr int kRegisters = 16;
#endif

#define TENSURE_INLINE inline __attribute__((always_inline))
#define TENSURE_LAMBDA_INLINE __attribute__((always_inline))

template <typename T> struct Plain { typedef T type; };
template <typename T> struct Plain<T &> { typedef T type; };
template <typename T> using plain = typename Plain<T>::type;

// Scalars go through the same names, so that a kernel can be compiled without vectors (the ablation does).
template <typename V> struct Lanes;
template <> struct Lanes<VecF> { static constexpr int count = kLanes; };
template <> struct Lanes<float> { static constexpr int count = 1; };

template <typename V> TENSURE_INLINE V splat(float value);
template <> TENSURE_INLINE float splat<float>(float value) { return value; }
template <> TENSURE_INLINE VecF splat<VecF>(float value) { return value - VecF{}; }

template <typename V> TENSURE_INLINE V load(const float *p);
template <> TENSURE_INLINE float load<float>(const float *p) { return *p; }
template <> TENSURE_INLINE VecF load<VecF>(const float *p) { return *reinterpret_cast<const VecFAnywhere *>(p); }

TENSURE_INLINE void store(float *p, VecF v) { *reinterpret_cast<VecFAnywhere *>(p) = v; }
TENSURE_INLINE void store(float *p, float v) { *p = v; }

// a * b + c, rounded once; on a set without the instruction (x86-64-v2) rounded twice.
#if defined(__FMA__) || defined(__aarch64__)
TENSURE_INLINE float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
#else
TENSURE_INLINE float fused(float a, float b, float c) { return a * b + c; }
#endif
TENSURE_INLINE VecF fused(VecF a, VecF b, VecF c) {
#if TENSURE_VECTOR_BYTES == 64
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

// The first n lanes (1 <= n <= lanes); the others read as zero, and nothing beyond them is touched.
TENSURE_INLINE VecF load_part(const float *p, int n) {
#if TENSURE_VECTOR_BYTES == 64
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane));
#else
  VecF v = {};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

TENSURE_INLINE void store_part(float *p, VecF v, int n) {
#if TENSURE_VECTOR_BYTES == 64
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v);
#elif defined(__AVX2__)
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(n), lane), v);
#else
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

// Eight lanes or fewer, for data that comes in eights: half a vector on AVX-512, else a whole one.
#if TENSURE_VECTOR_BYTES == 64
typedef float Vec8 __attribute__((vector_size(32)));
typedef float Vec8Anywhere __attribute__((vector_size(32), aligned(4)));
template <> struct Lanes<Vec8> { static constexpr int count = 8; };
template <> TENSURE_INLINE Vec8 splat<Vec8>(float value) { return value - Vec8{}; }
template <> TENSURE_INLINE Vec8 load<Vec8>(const float *p) { return *reinterpret_cast<const Vec8Anywhere *>(p); }
TENSURE_INLINE void store(float *p, Vec8 v) { *reinterpret_cast<Vec8Anywhere *>(p) = v; }
TENSURE_INLINE Vec8 fused(Vec8 a, Vec8 b, Vec8 c) { return _mm256_fmadd_ps(a, b, c); }
TENSURE_INLINE Vec8 load_part_8(const float *p, int n) {
  return _mm256_maskz_loadu_ps(static_cast<__mmask8>((1u << n) - 1), p);
}
TENSURE_INLINE void store_part(float *p, Vec8 v, int n) {
  _mm256_mask_storeu_ps(p, static_cast<__mmask8>((1u << n) - 1), v);
}
TENSURE_INLINE Vec8 lower_half(VecF v) { return __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7); }
constexpr bool kHasHalf = true;
#else
typedef VecF Vec8;
TENSURE_INLINE VecF lower_half(VecF v) { return v; }
constexpr bool kHasHalf = false;
#endif

template <typename V> TENSURE_INLINE V load_part_of(const float *p, int n) {
#if TENSURE_VECTOR_BYTES == 64
  if constexpr (Lanes<V>::count == 8) return load_part_8(p, n);
#endif
  if constexpr (Lanes<V>::count == kLanes) return load_part(p, n);
}

// e^x for x in [-87, 88]; beyond 88 it gives infinity, below -87 zero, NaN stays NaN. Relative error, measured on
// every float of the range: at most 2.31e-7 where products are fused, 2.55e-7 on x86-64-v2; of x / (1 + e^-x) made from it
// 2.99e-7 and 3.02e-7 (tests/kernels/test_conv.py). Cody-Waite reduction by ln 2 in two parts, then a degree-6 Taylor
// polynomial on [-ln2/2, ln2/2], whose first term left out is 1.2e-7 at the ends.
template <typename V> TENSURE_INLINE V exp_vec(V x) {
  typedef int32_t Int __attribute__((vector_size(sizeof(V))));
  const V low = splat<V>(-87.0f), high = splat<V>(88.0f);
  const V inside = x < low ? low : x > high ? high : x;  // NaN compares false twice and passes through
  const V scaled = inside * splat<V>(1.44269504088896341f);
  const V magic = splat<V>(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V n = (scaled + magic) - magic;
  V r = fused(n, splat<V>(-0.693359375f), inside);
  r = fused(n, splat<V>(2.12194440e-4f), r);
  V p = splat<V>(1.0f / 720);
  p = fused(p, r, splat<V>(1.0f / 120));
  p = fused(p, r, splat<V>(1.0f / 24));
  p = fused(p, r, splat<V>(1.0f / 6));
  p = fused(p, r, splat<V>(0.5f));
  p = fused(p, r, splat<V>(1.0f));
  p = fused(p, r, splat<V>(1.0f));
  const Int exponent = __builtin_convertvector(x == x ? n : V{}, Int);
  const V power = reinterpret_cast<V>((exponent + 127) << 23);
  const V infinity = splat<V>(__builtin_inff());
  return x > high ? infinity : x < low ? V{} : p * power;
}

// A store that goes past the caches; p is aligned to the vector.
TENSURE_INLINE void stream(float *p, float v) { *p = v; }
TENSURE_INLINE void stream(float *p, VecF v) {
#if TENSURE_VECTOR_BYTES == 64
  _mm512_stream_ps(p, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(p, v);
#else
  store(p, v);
#endif
}

#if TENSURE_VECTOR_BYTES == 64
TENSURE_INLINE void stream(float *p, Vec8 v) { _mm256_stream_ps(p, v); }
#endif

}  // namespace
