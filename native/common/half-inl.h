// IEEE half to float, for bodies that are compiled once for each instruction set: everything here has internal linkage.
#pragma once

#include <stdint.h>
#include <string.h>

namespace {

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

}  // namespace
