// One row's attention to the keys of its sequence, and the writing of keys and values. See kv.h for where they lie.
//
// Scores of 16 keys are the lanes of a vector, each the sum over a head's elements in order (even ones and odd ones apart);
// probabilities are not divided by their sum until the end; values are added key by key. Nothing depends on who else is
// computed, on chunks or on threads.
#pragma once

#include "decoder/numbers-inl.h"
#include "decoder/table.h"

namespace {

using tensure::AttentionJob;
using tensure::KvFormat;
using tensure::KvWrite;
using tensure::kPageTokens;

constexpr int kKeyVecs = 16 / kLanes;    // vectors of 16 keys
constexpr int kValueVecs = 32 / kLanes;  // vectors of 32 elements of a value

template <KvFormat kFormat> TENSURE_INLINE VecF load_key(const uint8_t *k, int64_t e, int part, int64_t half) {
  if constexpr (kFormat == KvFormat::f16) return load_halves(k + (e * 16 + part * kLanes) * 2);
  if constexpr (kFormat == KvFormat::int8) return load_bytes(k + e * 16 + part * kLanes);
  if constexpr (kFormat == KvFormat::int4) return load_nibbles(k + (e % half) * 16 + part * kLanes, e >= half);
}

template <KvFormat kFormat> TENSURE_INLINE VecF load_value(const uint8_t *v, int64_t key, int64_t i, int64_t width) {
  if constexpr (kFormat == KvFormat::f16) return load_halves(v + (key * width + i) * 2);
  if constexpr (kFormat == KvFormat::int8) return load_bytes(v + key * width + i);
  if constexpr (kFormat == KvFormat::int4) {
    const int64_t half = width / 2;
    return load_nibbles(v + key * half + i % half, i >= half);
  }
}

TENSURE_INLINE VecF floats_at(const uint8_t *p, int part) {
  VecF v;
  memcpy(&v, p + part * sizeof v, sizeof v);
  return v;
}

// Scores of one page for kHeads heads.
template <KvFormat kFormat, int kHeads>
TENSURE_INLINE void score_page(const AttentionJob &job, const uint8_t *block, const float *query, const float *query_sums,
                               float *scores) {
  const int64_t E = job.head_dim, half = E / 2;
  VecF even[kHeads][kKeyVecs] = {}, odd[kHeads][kKeyVecs] = {};
  for (int64_t e = 0; e < E; e += 2) {
    TENSURE_UNROLL
    for (int part = 0; part < kKeyVecs; ++part) {
      const VecF k0 = load_key<kFormat>(block, e, part, half), k1 = load_key<kFormat>(block, e + 1, part, half);
      TENSURE_UNROLL
      for (int h = 0; h < kHeads; ++h) {
        even[h][part] = fused(k0, splat<VecF>(query[h * E + e]), even[h][part]);
        odd[h][part] = fused(k1, splat<VecF>(query[h * E + e + 1]), odd[h][part]);
      }
    }
  }
  TENSURE_UNROLL
  for (int h = 0; h < kHeads; ++h)
    TENSURE_UNROLL
    for (int part = 0; part < kKeyVecs; ++part) {
      VecF s = even[h][part] + odd[h][part];
      if (kFormat != KvFormat::f16) s = s * floats_at(block + job.layout.k_scale, part);
      if (kFormat == KvFormat::int4)
        s = s + splat<VecF>(query_sums[h]) * floats_at(block + job.layout.k_scale + 4 * kPageTokens, part);
      store(scores + h * job.score_stride + part * kLanes, s * splat<VecF>(job.scale));
    }
}

// Scores to unnormalised probabilities; their sum. Lanes of the last page beyond the position hold minus infinity.
TENSURE_INLINE float exponents(float *scores, int64_t num_pages) {
  VecF most[kKeyVecs];
  for (int v = 0; v < kKeyVecs; ++v) most[v] = load<VecF>(scores + v * kLanes);
  for (int64_t p = 1; p < num_pages; ++p)
    for (int v = 0; v < kKeyVecs; ++v) {
      const VecF here = load<VecF>(scores + p * 16 + v * kLanes);
      most[v] = here > most[v] ? here : most[v];
    }
  float lanes[16];
  for (int v = 0; v < kKeyVecs; ++v) store(lanes + v * kLanes, most[v]);
  float largest = lanes[0];
  for (int i = 1; i < 16; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  VecF sums[kKeyVecs] = {};
  for (int64_t p = 0; p < num_pages; ++p)
    for (int v = 0; v < kKeyVecs; ++v) {
      float *const at = scores + p * 16 + v * kLanes;
      const VecF found = exp_vec(load<VecF>(at) - splat<VecF>(largest));
      store(at, found);
      sums[v] = sums[v] + found;
    }
  for (int v = 0; v < kKeyVecs; ++v) store(lanes + v * kLanes, sums[v]);
  return fold16(lanes);
}

template <KvFormat kFormat, int kHeads>
TENSURE_INLINE void attend_heads(const AttentionJob &job, int64_t first) {
  const int64_t E = job.head_dim, W = job.layout.value_width;
  const int64_t num_pages = job.position / kPageTokens + 1, last = job.position % kPageTokens;
  const float *const query = job.query + first * E;
  float query_sums[kHeads] = {};
  if (kFormat == KvFormat::int4)
    for (int h = 0; h < kHeads; ++h)
      for (int64_t e = 0; e < E; ++e) query_sums[h] = query_sums[h] + query[h * E + e];
  for (int64_t p = 0; p < num_pages; ++p)
    score_page<kFormat, kHeads>(job, job.pages + job.table[p] * job.page_bytes, query, query_sums, job.scores + p * 16);
  float sums[kHeads];
  for (int h = 0; h < kHeads; ++h) {
    float *const scores = job.scores + h * job.score_stride;
    for (int64_t i = last + 1; i < kPageTokens; ++i) scores[(num_pages - 1) * 16 + i] = -__builtin_inff();
    sums[h] = exponents(scores, num_pages);
  }
  for (int64_t i = 0; i < W; i += 32) {
    VecF acc[kHeads][kValueVecs] = {};
    float least[kHeads] = {};
    for (int64_t p = 0; p < num_pages; ++p) {
      const uint8_t *const block = job.pages + job.table[p] * job.page_bytes;
      const uint8_t *const v = block + job.layout.v, *const scales = block + job.layout.v_scale;
      const int64_t keys = p + 1 < num_pages ? kPageTokens : last + 1;
      for (int64_t key = 0; key < keys; ++key) {
        VecF value[kValueVecs];
        TENSURE_UNROLL
        for (int part = 0; part < kValueVecs; ++part) value[part] = load_value<kFormat>(v, key, i + part * kLanes, W);
        float step = 1.0f, minimum = 0.0f;
        if (kFormat != KvFormat::f16) memcpy(&step, scales + 4 * key, 4);
        if (kFormat == KvFormat::int4) memcpy(&minimum, scales + 4 * (kPageTokens + key), 4);
        TENSURE_UNROLL
        for (int h = 0; h < kHeads; ++h) {
          float weight = job.scores[h * job.score_stride + p * 16 + key];
          if (kFormat == KvFormat::int4) least[h] = fused(weight, minimum, least[h]);
          if (kFormat != KvFormat::f16) weight = weight * step;
          TENSURE_UNROLL
          for (int part = 0; part < kValueVecs; ++part)
            acc[h][part] = fused(splat<VecF>(weight), value[part], acc[h][part]);
        }
      }
    }
    for (int h = 0; h < kHeads; ++h) {
      float found[32];
      for (int part = 0; part < kValueVecs; ++part) {
        VecF sum = acc[h][part];
        if (kFormat == KvFormat::int4) sum = sum + splat<VecF>(least[h]);
        store(found + part * kLanes, sum / splat<VecF>(sums[h]));
      }
      memcpy(job.out + (first + h) * E + i, found, sizeof(float) * static_cast<size_t>(E - i < 32 ? E - i : 32));
    }
  }
}

template <KvFormat kFormat> TENSURE_INLINE void attend_all(const AttentionJob &job) {
  int64_t h = 0;
  for (; h + 4 <= job.num_heads; h += 4) attend_heads<kFormat, 4>(job, h);
  switch (job.num_heads - h) {
    case 3: return attend_heads<kFormat, 3>(job, h);
    case 2: return attend_heads<kFormat, 2>(job, h);
    case 1: return attend_heads<kFormat, 1>(job, h);
    default: return;
  }
}

void attend(const AttentionJob &job) {
  switch (job.format) {
    case KvFormat::f16: return attend_all<KvFormat::f16>(job);
    case KvFormat::int8: return attend_all<KvFormat::int8>(job);
    case KvFormat::int4: return attend_all<KvFormat::int4>(job);
  }
}

// ---- writing ----------------------------------------------------------------------------------------------------------

struct Range {
  float least, most;
  bool finite;
};
TENSURE_INLINE Range range_of(const float *x, int64_t count) {
  Range r{x[0], x[0], true};
  for (int64_t i = 0; i < count; ++i) {
    r.least = x[i] < r.least ? x[i] : r.least;
    r.most = x[i] > r.most ? x[i] : r.most;
    r.finite = r.finite && x[i] - x[i] == 0.0f;
  }
  return r;
}

constexpr float kToInteger = 0x1.8p23f;  // adding it leaves no bits behind the point
TENSURE_INLINE int nearest(float x) { return static_cast<int>((x + kToInteger) - kToInteger); }

// Signed bytes: scale = max|x| / 127. A head whose largest magnitude is below 2^-100 is stored as zeros.
template <typename Put> TENSURE_INLINE float to_bytes(const float *x, int64_t count, Put put) {
  const Range r = range_of(x, count);
  const float most = r.most > -r.least ? r.most : -r.least;
  const bool zero = !r.finite || most < 0x1p-100f;
  const float inverse = zero ? 0.0f : 127.0f / most;
  for (int64_t i = 0; i < count; ++i) put(i, zero ? 0 : nearest(x[i] * inverse));
  return !r.finite ? __builtin_nanf("") : zero ? 0.0f : most / 127.0f;
}

struct Step {
  float scale, minimum;
};
// Four bits: scale = (max - min) / 15 and the minimum. What is wider than a float holds is not finite either.
template <typename Put> TENSURE_INLINE Step to_nibbles(const float *x, int64_t count, Put put) {
  const Range r = range_of(x, count);
  const float width = r.most - r.least;
  const bool flat = !r.finite || width < 0x1p-100f || width - width != 0.0f;
  const float inverse = flat ? 0.0f : 15.0f / width;
  for (int64_t i = 0; i < count; ++i) {
    const int q = flat ? 0 : nearest((x[i] - r.least) * inverse);
    put(i, q < 0 ? 0 : q > 15 ? 15 : q);
  }
  if (!r.finite || width - width != 0.0f) return {__builtin_nanf(""), r.finite ? r.least : 0.0f};
  return {flat ? 0.0f : width / 15.0f, r.least};
}

TENSURE_INLINE void put_float(uint8_t *p, int64_t index, float value) { memcpy(p + 4 * index, &value, 4); }
TENSURE_INLINE void put_nibble(uint8_t *byte, bool high, int q) {
  *byte = static_cast<uint8_t>(high ? (*byte & 0x0f) | q << 4 : (*byte & 0xf0) | q);
}

void write_kv(const KvWrite &job) {
  const int64_t E = job.head_dim, W = job.layout.value_width, slot = job.slot;
  uint8_t *const k = job.block, *const v = job.block + job.layout.v;
  uint8_t *const k_scale = job.block + job.layout.k_scale, *const v_scale = job.block + job.layout.v_scale;
  switch (job.format) {
    case KvFormat::f16:
      for (int64_t e = 0; e < E; ++e) {
        const uint16_t key = to_half(job.key[e]), value = to_half(job.value[e]);
        memcpy(k + 2 * (e * 16 + slot), &key, 2);
        memcpy(v + 2 * (slot * W + e), &value, 2);
      }
      memset(v + 2 * (slot * W + E), 0, static_cast<size_t>(2 * (W - E)));
      return;
    case KvFormat::int8: {
      const float key = to_bytes(job.key, E, [&](int64_t e, int q) { k[e * 16 + slot] = static_cast<uint8_t>(q); });
      const float value = to_bytes(job.value, E, [&](int64_t e, int q) { v[slot * W + e] = static_cast<uint8_t>(q); });
      memset(v + slot * W + E, 0, static_cast<size_t>(W - E));
      put_float(k_scale, slot, key);
      put_float(v_scale, slot, value);
      return;
    }
    case KvFormat::int4: {
      const int64_t half = E / 2, wide = W / 2;
      const Step key = to_nibbles(job.key, E, [&](int64_t e, int q) {
        put_nibble(k + (e % half) * 16 + slot, e >= half, q);
      });
      memset(v + slot * wide, 0, static_cast<size_t>(wide));
      const Step value = to_nibbles(job.value, E, [&](int64_t e, int q) {
        put_nibble(v + slot * wide + e % wide, e >= wide, q);
      });
      put_float(k_scale, slot, key.scale);
      put_float(k_scale, kPageTokens + slot, key.minimum);
      put_float(v_scale, slot, value.scale);
      put_float(v_scale, kPageTokens + slot, value.minimum);
      return;
    }
  }
}

}  // namespace
