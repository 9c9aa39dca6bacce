// The loops, written once and compiled by target.cc for every instruction set.
//
// A loop needs as many independent sums as an instruction has latency times units, or it measures the latency: 4 x 2 and 5 x 2
// on today's cores, so 16 sums, and 12 where 16 registers have to hold the operands too. The empty assembly statements make
// operands opaque, so that no product is worked out once for all.
#pragma once

#include "common/dot-inl.h"
#include "peak/table.h"

namespace {

using tensure::PeakLoop;
using tensure::PeakTable;

constexpr int kSums = kRegisters == 32 ? 16 : 12;

#if defined(__x86_64__)
#define TENSURE_OPAQUE(v) __asm__ volatile("" : "+v"(v))
#elif defined(__aarch64__)
#define TENSURE_OPAQUE(v) __asm__ volatile("" : "+w"(v))
#else
#define TENSURE_OPAQUE(v) __asm__ volatile("" : "+m"(v))
#endif

// `step(sum)` on every sum, `turns` times; the sums begin at `first`.
template <typename V, typename F> TENSURE_INLINE void turn(int64_t turns, V first, F step) {
  V sum[kSums];
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) {
    sum[i] = first;
    TENSURE_OPAQUE(sum[i]);
  }
  for (int64_t t = 0; t < turns; ++t) {
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sum[i] = step(sum[i]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < kSums; ++i) TENSURE_OPAQUE(sum[i]);
}

void run_f32(int64_t turns) {
  // Values that stay near 1 for ever: the fixed point of v * x + y.
  VecF x = splat<VecF>(0.5f), y = splat<VecF>(0.5f);
  TENSURE_OPAQUE(x);
  TENSURE_OPAQUE(y);
  turn(turns, splat<VecF>(1.25f), [&](VecF v) TENSURE_LAMBDA_INLINE { return fused(v, x, y); });
}

void run_byte_dot(int64_t turns) {
  VecI x = splat_int(0x01020304), w = splat_int(0x05ff7f80);
  TENSURE_OPAQUE(x);
  TENSURE_OPAQUE(w);
  turn(turns, VecI{}, [&](VecI v) TENSURE_LAMBDA_INLINE { return dot_bytes(x, w, v); });
}

// Without dot products of bytes. On x86: products of bytes added in pairs to 16 bits (which may saturate: fast, and for
// nothing but a limit), those in pairs to 32 bits, those to the sum.
void run_bytes(int64_t turns) {
  VecI x = splat_int(0x01020304), w = splat_int(0x05ff7f80), ones = splat_int(0x00010001);
  TENSURE_OPAQUE(x);
  TENSURE_OPAQUE(w);
  TENSURE_OPAQUE(ones);
  turn(turns, VecI{}, [&](VecI v) TENSURE_LAMBDA_INLINE {
#if TENSURE_VECTOR_BYTES == 64
    VecI pairs = reinterpret_cast<VecI>(_mm512_maddubs_epi16(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(w)));
    TENSURE_OPAQUE(x);
    return dot_shorts(pairs, ones, v);
#elif defined(__AVX2__)
    VecI pairs = reinterpret_cast<VecI>(_mm256_maddubs_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(w)));
    TENSURE_OPAQUE(x);
    return dot_shorts(pairs, ones, v);
#elif defined(__SSSE3__)
    VecI pairs = reinterpret_cast<VecI>(_mm_maddubs_epi16(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(w)));
    TENSURE_OPAQUE(x);
    return dot_shorts(pairs, ones, v);
#elif defined(__aarch64__)
    int16x8_t pairs = vmull_s8(vget_low_s8(reinterpret_cast<int8x16_t>(x)), vget_low_s8(reinterpret_cast<int8x16_t>(w)));
    TENSURE_OPAQUE(x);
    return reinterpret_cast<VecI>(vpadalq_s16(reinterpret_cast<int32x4_t>(v), pairs));
#else
    VecI product = x * w;
    TENSURE_OPAQUE(x);
    return v + product;
#endif
  });
}
#if defined(__x86_64__)
constexpr int kBytesALane = 4;
#elif defined(__aarch64__)
constexpr int kBytesALane = 2;
#else
constexpr int kBytesALane = 1;
#endif

void run_half_dot(int64_t turns) {
  VecI x = splat_int(0x3f803f80), w = splat_int(0x3f80bf80);  // 1 * 1 - 1 * 1: sums stay as they are
  TENSURE_OPAQUE(x);
  TENSURE_OPAQUE(w);
  turn(turns, splat<VecF>(1.0f), [&](VecF v) TENSURE_LAMBDA_INLINE { return dot_halves(x, w, v); });
}

constexpr int64_t operations(int products_a_lane) { return int64_t{2} * products_a_lane * kLanes * kSums; }

constexpr PeakTable make_table() {
  PeakTable table{};
  table.f32 = {run_f32, operations(1)};
  table.int8 = {run_bytes, operations(kBytesALane)};
  if (kHasByteDot) table.int8_vnni = {run_byte_dot, operations(4)};
  if (kHasHalfDot) table.bf16 = {run_half_dot, operations(2)};
  return table;
}

}  // namespace
