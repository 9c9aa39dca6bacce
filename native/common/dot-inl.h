// Dot products of small groups of narrow numbers, as instructions have them: one 32-bit lane holds a group.
//
// A lane of VecI is four bytes, two 16-bit integers or two bfloat16. Where an instruction stands outside the level that an
// object is compiled for (native/common/isa.h: features), it is written as assembly, so that the compiler cannot use it on its
// own; who calls it has asked the processor. Internal linkage throughout, see native/README.md.
#pragma once

#include "common/vector-inl.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

typedef int32_t VecI __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
typedef int32_t VecIAnywhere __attribute__((vector_size(TENSURE_VECTOR_BYTES), aligned(4)));

TENSURE_INLINE VecI splat_int(int32_t value) { return value - VecI{}; }
TENSURE_INLINE VecI load_ints(const void *p) { return *static_cast<const VecIAnywhere *>(p); }
TENSURE_INLINE void store_ints(void *p, VecI v) { *static_cast<VecIAnywhere *>(p) = v; }
// The sum modulo 2^32, where the language leaves a signed overflow undefined.
TENSURE_INLINE VecI wrapping_add(VecI a, VecI b) {
  typedef uint32_t Unsigned __attribute__((vector_size(TENSURE_VECTOR_BYTES)));
  return reinterpret_cast<VecI>(reinterpret_cast<Unsigned>(a) + reinterpret_cast<Unsigned>(b));
}
TENSURE_INLINE VecF as_floats(VecI v) { return reinterpret_cast<VecF>(v); }
TENSURE_INLINE VecI as_ints(VecF v) { return reinterpret_cast<VecI>(v); }

// Whether this object holds the feature's instructions (the processor is asked apart).
#if defined(__AVX2__) || (defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD))
constexpr bool kHasByteDot = true;
#else
constexpr bool kHasByteDot = false;
#endif
// On x86 the scalars' bytes are unsigned and the vectors' signed; on NEON both are signed.
#if defined(__aarch64__)
constexpr bool kByteDotIsSigned = true;
#else
constexpr bool kByteDotIsSigned = false;
#endif
#if defined(__AVX512F__)
constexpr bool kHasHalfDot = true;
#else
constexpr bool kHasHalfDot = false;
#endif

// sum + the four products of each lane's bytes, modulo 2^32.
TENSURE_INLINE VecI dot_bytes([[maybe_unused]] VecI values, [[maybe_unused]] VecI weights, VecI sum) {
#if defined(__AVX512F__)
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(values), "v"(weights));
#elif defined(__AVX2__)
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum) : "x"(values), "x"(weights));
#elif defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
  sum = reinterpret_cast<VecI>(vdotq_s32(reinterpret_cast<int32x4_t>(sum), reinterpret_cast<int8x16_t>(values),
                                         reinterpret_cast<int8x16_t>(weights)));
#endif
  return sum;
}

// sum + the two products of each lane's 16-bit integers. One of the two must not hold -2^15 in both halves of a lane.
TENSURE_INLINE VecI dot_shorts(VecI values, VecI weights, VecI sum) {
#if TENSURE_VECTOR_BYTES == 64
  return sum + reinterpret_cast<VecI>(_mm512_madd_epi16(reinterpret_cast<__m512i>(values), reinterpret_cast<__m512i>(weights)));
#elif defined(__AVX2__)
  return sum + reinterpret_cast<VecI>(_mm256_madd_epi16(reinterpret_cast<__m256i>(values), reinterpret_cast<__m256i>(weights)));
#elif defined(__SSE4_1__)
  return sum + reinterpret_cast<VecI>(_mm_madd_epi16(reinterpret_cast<__m128i>(values), reinterpret_cast<__m128i>(weights)));
#else
  return sum + (values >> 16) * (weights >> 16) + ((values << 16) >> 16) * ((weights << 16) >> 16);
#endif
}

// sum + the two products of each lane's bfloat16, the odd one first: each step rounded to nearest even, subnormal operands and
// results taken as zero (Intel SDM, VDPBF16PS).
TENSURE_INLINE VecF dot_halves([[maybe_unused]] VecI values, [[maybe_unused]] VecI weights, VecF sum) {
#if defined(__AVX512F__)
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(values), "v"(weights));
#endif
  return sum;
}

}  // namespace
