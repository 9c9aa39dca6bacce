// The body of the family, written once and compiled by target.cc for every instruction set.
//
// Everything here has internal linkage, and no standard template is used: an inline function compiled with one set's flags
// must never be the copy that the linker keeps for all. Vectors are the compiler's own (vector_size), so the text holds no
// intrinsics; TENSURE_VECTOR_BYTES is the width of a float vector.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

constexpr int kLanes = TENSURE_VECTOR_BYTES / 4;
static_assert(16 % kLanes == 0, "half a block must be whole vectors");

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef uint8_t VecU8 __attribute__((vector_size(kLanes)));
typedef int8_t VecI8 __attribute__((vector_size(kLanes)));

inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

// IEEE half, little-endian in memory, to float: exact for every bit pattern, NaN payloads kept.
inline float load_half(const uint8_t *p) {
  const uint32_t h = static_cast<uint32_t>(p[0]) | static_cast<uint32_t>(p[1]) << 8;
  const uint32_t sign = (h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 31u;
  const uint32_t fraction = h & 0x3ffu;
  if (exponent == 0) {
    // Subnormal or zero: fraction * 2^-24 is exact, and normal as a float, so a flush-to-zero mode cannot touch it.
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  if (exponent == 31) return bits_to_float(sign | 0x7f800000u | fraction << 13);
  return bits_to_float(sign | (exponent + (127 - 15)) << 23 | fraction << 13);
}

inline VecF widen(VecU8 v) { return __builtin_convertvector(__builtin_convertvector(v, VecI), VecF); }
inline VecF widen(VecI8 v) { return __builtin_convertvector(__builtin_convertvector(v, VecI), VecF); }

inline void store(float *out, VecF v) { memcpy(out, &v, sizeof v); }

void q4_0(const uint8_t *block, int64_t num_blocks, float *out) {
  for (int64_t b = 0; b < num_blocks; ++b, block += 18, out += 32) {
    const float scale = load_half(block);
    for (int i = 0; i < 16; i += kLanes) {
      VecU8 pair;
      memcpy(&pair, block + 2 + i, sizeof pair);
      store(out + i, (widen(pair & 15) - 8.0f) * scale);
      store(out + 16 + i, (widen(pair >> 4) - 8.0f) * scale);
    }
  }
}

void q4_1(const uint8_t *block, int64_t num_blocks, float *out) {
  for (int64_t b = 0; b < num_blocks; ++b, block += 20, out += 32) {
    const float scale = load_half(block);
    const float least = load_half(block + 2);
    for (int i = 0; i < 16; i += kLanes) {
      VecU8 pair;
      memcpy(&pair, block + 4 + i, sizeof pair);
      store(out + i, widen(pair & 15) * scale + least);
      store(out + 16 + i, widen(pair >> 4) * scale + least);
    }
  }
}

void q8_0(const uint8_t *block, int64_t num_blocks, float *out) {
  for (int64_t b = 0; b < num_blocks; ++b, block += 34, out += 32) {
    const float scale = load_half(block);
    for (int i = 0; i < 32; i += kLanes) {
      VecI8 q;
      memcpy(&q, block + 2 + i, sizeof q);
      store(out + i, widen(q) * scale);
    }
  }
}

}  // namespace
