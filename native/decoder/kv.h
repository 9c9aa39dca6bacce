// How keys and values lie in a page of the cache. Shared by the kernels, the bindings and what hashes pages.
//
// A page holds 16 positions of one sequence for all layers of the stage and all key/value heads:
//
//   page[layer][kv head] = K, V, and for 8 and 4 bits the scales of both
//
// K is transposed, so that a vector is one element of 16 keys and a score needs no sum across a vector; V is not, so that a
// vector is 16 elements of one value.
//
//   f16    K half [E][16]; V half [16][W]                                 W: E rounded up to 32; the rest is zero
//   int8   K int8 [E][16]; V int8 [16][W]; scales of K and V float [16]   value = q * scale
//   int4   K [E/2][16] bytes: element e low, e + E/2 high; V [16][W/2]: element i low, i + W/2 high;
//          scales and minimums of K, then of V: float [16] each           value = q * scale + minimum
#pragma once

#include <stdint.h>

namespace tensure {

constexpr int64_t kPageTokens = 16;

enum class KvFormat : int { f16, int8, int4 };

struct KvLayout {
  int64_t value_width;            // W
  int64_t v, k_scale, v_scale;    // byte offsets in a head's block; K is at 0
  int64_t head_bytes;
};

static inline KvLayout kv_layout(KvFormat format, int64_t head_dim) {
  KvLayout at;
  at.value_width = (head_dim + 31) / 32 * 32;
  const int64_t bits = format == KvFormat::f16 ? 16 : format == KvFormat::int8 ? 8 : 4;
  const int64_t of_scales = format == KvFormat::f16 ? 0 : format == KvFormat::int8 ? 4 * kPageTokens : 8 * kPageTokens;
  at.v = (head_dim * kPageTokens * bits / 8 + 63) / 64 * 64;
  at.k_scale = at.v + at.value_width * kPageTokens * bits / 8;
  at.v_scale = at.k_scale + of_scales;
  at.head_bytes = (at.v_scale + of_scales + 63) / 64 * 64;
  return at;
}

static inline int64_t kv_page_bytes(KvFormat format, int64_t head_dim, int64_t kv_heads, int64_t num_layers) {
  return kv_layout(format, head_dim).head_bytes * kv_heads * num_layers;
}

}  // namespace tensure
