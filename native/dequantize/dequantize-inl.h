// The body of the family, written once and compiled by target.cc for every instruction set.
//
// Everything here has internal linkage, and no standard template is used: an inline function compiled with one set's flags
// must never be the copy that the linker keeps for all. Vectors are the compiler's own (vector_size), so the text holds
// intrinsics only where GCC needs help; TENSURE_VECTOR_BYTES is the width of a float vector.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/half-inl.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = TENSURE_VECTOR_BYTES / 4;
static_assert(16 % kLanes == 0, "half a block must be whole vectors");

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));

// kLanes bytes at p as integers. GCC 12 takes __builtin_convertvector from 8 to 32 bits apart into scalars, which is several
// times as slow; hence the intrinsics.
inline VecI unsigned_bytes(const uint8_t *p) {
#if defined(__AVX512F__)
  return (VecI)_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
#elif defined(__AVX2__)
  return (VecI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)));
#elif defined(__SSE4_1__)
  return (VecI)_mm_cvtepu8_epi32(_mm_loadu_si32(p));
#else
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  Bytes v;
  memcpy(&v, p, sizeof v);
  return __builtin_convertvector(v, VecI);
#endif
}
inline VecI signed_bytes(const uint8_t *p) { return unsigned_bytes(p) << 24 >> 24; }

inline VecF to_floats(VecI v) { return __builtin_convertvector(v, VecF); }

inline void store(float *out, VecF v) { memcpy(out, &v, sizeof v); }

void q4_0(const uint8_t *block, int64_t num_blocks, float *out) {
  for (int64_t b = 0; b < num_blocks; ++b, block += 18, out += 32) {
    const float scale = load_half(block);
    for (int i = 0; i < 16; i += kLanes) {
      const VecI pair = unsigned_bytes(block + 2 + i);
      store(out + i, (to_floats(pair & 15) - 8.0f) * scale);
      store(out + 16 + i, (to_floats(pair >> 4) - 8.0f) * scale);
    }
  }
}

void q4_1(const uint8_t *block, int64_t num_blocks, float *out) {
  for (int64_t b = 0; b < num_blocks; ++b, block += 20, out += 32) {
    const float scale = load_half(block);
    const float least = load_half(block + 2);
    for (int i = 0; i < 16; i += kLanes) {
      const VecI pair = unsigned_bytes(block + 4 + i);
      store(out + i, to_floats(pair & 15) * scale + least);
      store(out + 16 + i, to_floats(pair >> 4) * scale + least);
    }
  }
}

void q8_0(const uint8_t *block, int64_t num_blocks, float *out) {
  for (int64_t b = 0; b < num_blocks; ++b, block += 34, out += 32) {
    const float scale = load_half(block);
    for (int i = 0; i < 32; i += kLanes) store(out + i, to_floats(signed_bytes(block + 2 + i)) * scale);
  }
}

}  // namespace
