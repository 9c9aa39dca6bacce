// What happens to one row between matrices: norms, rotation, gates, sums; and rows of plain numbers times a row.
#pragma once

#include "common/activation-inl.h"
#include "decoder/numbers-inl.h"
#include "decoder/table.h"

namespace {

constexpr int kSixteen = 16 / kLanes;  // vectors that hold 16 floats

// The float vector at index k of a row of `count`, the rest of it zero.
TENSURE_INLINE VecF load_until(const float *p, int64_t k, int64_t count) {
  return k + kLanes <= count ? load<VecF>(p + k) : k < count ? load_part(p + k, static_cast<int>(count - k)) : VecF{};
}

// Elementwise f(i's vectors) over [0, count), the last one partial.
template <typename F> TENSURE_INLINE void for_each_vector(int64_t count, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) f(i, kLanes);
  if (i < count) f(i, static_cast<int>(count - i));
}
TENSURE_INLINE VecF load_some(const float *p, int n) { return n == kLanes ? load<VecF>(p) : load_part(p, n); }
TENSURE_INLINE void store_some(float *p, VecF v, int n) { n == kLanes ? store(p, v) : store_part(p, v, n); }

// Sixteen partial sums by index mod 16, each in order, folded; then x / sqrt(mean + eps) times the weight.
void rms_norm(const float *x, const float *weight, int64_t count, float eps, float *out) {
  VecF sums[kSixteen] = {};
  for (int64_t k = 0; k < count; k += 16)
    TENSURE_UNROLL
    for (int v = 0; v < kSixteen; ++v) {
      const VecF here = load_until(x, k + v * kLanes, count);
      sums[v] = fused(here, here, sums[v]);
    }
  float s[16];
  for (int v = 0; v < kSixteen; ++v) store(s + v * kLanes, sums[v]);
  const float mean = fold16(s) / static_cast<float>(count);
  const float inverse = 1.0f / __builtin_sqrtf(mean + eps);
  for_each_vector(count, [&](int64_t i, int n) TENSURE_LAMBDA_INLINE {
    store_some(out + i, load_some(x + i, n) * splat<VecF>(inverse) * load_some(weight + i, n), n);
  });
}

// Each pair (a, b) becomes (a cos - b sin, b cos + a sin).
void rotate(float *x, const float *cosine, const float *sine, int64_t head_dim, bool adjacent) {
  const int64_t half = head_dim / 2;
  if (adjacent) {
    for (int64_t i = 0; i < half; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosine[i] + b * -sine[i];
      x[2 * i + 1] = b * cosine[i] + a * sine[i];
    }
    return;
  }
  for_each_vector(half, [&](int64_t i, int n) TENSURE_LAMBDA_INLINE {
    const VecF a = load_some(x + i, n), b = load_some(x + half + i, n);
    const VecF c = load_some(cosine + i, n), s = load_some(sine + i, n);
    store_some(x + i, a * c + b * -s, n);
    store_some(x + half + i, b * c + a * s, n);
  });
}

void add(float *x, const float *y, int64_t count) {
  for_each_vector(count, [&](int64_t i, int n) TENSURE_LAMBDA_INLINE {
    store_some(x + i, load_some(x + i, n) + load_some(y + i, n), n);
  });
}
void add_scaled(float *x, const float *y, float factor, int64_t count) {
  for_each_vector(count, [&](int64_t i, int n) TENSURE_LAMBDA_INLINE {
    store_some(x + i, load_some(x + i, n) + load_some(y + i, n) * splat<VecF>(factor), n);
  });
}
void scale(float *x, float factor, int64_t count) {
  for_each_vector(count, [&](int64_t i, int n) TENSURE_LAMBDA_INLINE {
    store_some(x + i, load_some(x + i, n) * splat<VecF>(factor), n);
  });
}
void divide(float *x, float divisor, int64_t count) {
  for_each_vector(count, [&](int64_t i, int n) TENSURE_LAMBDA_INLINE {
    store_some(x + i, load_some(x + i, n) / splat<VecF>(divisor), n);
  });
}
void silu_multiply(const float *gate, float *up, int64_t count) {
  for_each_vector(count, [&](int64_t i, int n) TENSURE_LAMBDA_INLINE {
    store_some(up + i, silu(load_some(gate + i, n)) * load_some(up + i, n), n);
  });
}

// ---- plain numbers ----------------------------------------------------------------------------------------------------

enum class PlainKind { f32 = 1, f16 = 2, bf16 = 3 };
template <PlainKind kKind> constexpr int kPlainBytes = kKind == PlainKind::f32 ? 4 : 2;

template <PlainKind kKind> TENSURE_INLINE VecF load_plain(const uint8_t *p) {
  if constexpr (kKind == PlainKind::f16) return load_halves(p);
  if constexpr (kKind == PlainKind::bf16) return load_bfloats(p);
  if constexpr (kKind == PlainKind::f32) {
    VecF v;
    memcpy(&v, p, sizeof v);
    return v;
  }
}

// Sixteen numbers from k on; those from `count` on are zero.
template <PlainKind kKind> TENSURE_INLINE void load_sixteen(const uint8_t *row, int64_t k, int64_t count, VecF *v) {
  constexpr int kBytes = kPlainBytes<kKind>;
  uint8_t filled[16 * kBytes];
  const uint8_t *from = row + k * kBytes;
  if (k + 16 > count) {
    memset(filled, 0, sizeof filled);
    memcpy(filled, from, static_cast<size_t>((count - k) * kBytes));
    from = filled;
  }
  TENSURE_UNROLL
  for (int i = 0; i < kSixteen; ++i) v[i] = load_plain<kKind>(from + i * kLanes * kBytes);
}

// gemv's exact sum: sixteen partial sums by k mod 16, each in order by fused multiply-add, folded. kRows rows of weights for
// kBatch rows of x at a time.
template <PlainKind kKind, int kRows, int kBatch>
TENSURE_INLINE void plain_tile(const tensure::PlainRows &job, int64_t row, int64_t b0) {
  constexpr int kBytes = kPlainBytes<kKind>;
  VecF sums[kRows][kBatch][kSixteen] = {};
  const uint8_t *w = job.data + row * job.num_cols * kBytes;
  for (int64_t k = 0; k < job.num_cols; k += 16) {
    VecF right[kBatch][kSixteen];
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b)
      TENSURE_UNROLL
      for (int i = 0; i < kSixteen; ++i)
        right[b][i] = load_until(job.x + (b0 + b) * job.x_stride, k + i * kLanes, job.num_cols);
    TENSURE_UNROLL
    for (int r = 0; r < kRows; ++r) {
      VecF left[kSixteen];
      load_sixteen<kKind>(w + r * job.num_cols * kBytes, k, job.num_cols, left);
      TENSURE_UNROLL
      for (int b = 0; b < kBatch; ++b)
        TENSURE_UNROLL
        for (int i = 0; i < kSixteen; ++i) sums[r][b][i] = fused(left[i], right[b][i], sums[r][b][i]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBatch; ++b) {
      float s[16];
      for (int i = 0; i < kSixteen; ++i) store(s + i * kLanes, sums[r][b][i]);
      job.y[(b0 + b) * job.y_stride + row + r] = fold16(s);
    }
}

template <PlainKind kKind> void plain_rows_of(const tensure::PlainRows &job, int64_t begin, int64_t end) {
  constexpr int kTall = kLanes >= 8 ? 4 : 1;
  int64_t row = begin;
  for (; row + kTall <= end; row += kTall) {
    int64_t b = 0;
    for (; b + 2 <= job.batch; b += 2) plain_tile<kKind, kTall, 2>(job, row, b);
    if (b < job.batch) plain_tile<kKind, kTall, 1>(job, row, b);
  }
  for (; row < end; ++row)
    for (int64_t b = 0; b < job.batch; ++b) plain_tile<kKind, 1, 1>(job, row, b);
}

void plain_rows(const tensure::PlainRows &job, int64_t begin, int64_t end) {
  switch (static_cast<PlainKind>(job.kind)) {
    case PlainKind::f32: return plain_rows_of<PlainKind::f32>(job, begin, end);
    case PlainKind::f16: return plain_rows_of<PlainKind::f16>(job, begin, end);
    case PlainKind::bf16: return plain_rows_of<PlainKind::bf16>(job, begin, end);
  }
}

template <PlainKind kKind> void widen_of(const uint8_t *from, int64_t count, float *out) {
  for (int64_t k = 0; k < count; k += 16) {
    VecF v[kSixteen];
    float sixteen[16];
    load_sixteen<kKind>(from, k, count, v);
    for (int i = 0; i < kSixteen; ++i) store(sixteen + i * kLanes, v[i]);
    memcpy(out + k, sixteen, sizeof(float) * static_cast<size_t>(count - k < 16 ? count - k : 16));
  }
}

void widen(int kind, const uint8_t *from, int64_t count, float *out) {
  switch (static_cast<PlainKind>(kind)) {
    case PlainKind::f32: return widen_of<PlainKind::f32>(from, count, out);
    case PlainKind::f16: return widen_of<PlainKind::f16>(from, count, out);
    case PlainKind::bf16: return widen_of<PlainKind::bf16>(from, count, out);
  }
}

}  // namespace
