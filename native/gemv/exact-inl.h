// Exact arithmetic: decoded weight times float32 activation. See README.md, "exact", for the definition.
//
// A chunk of 128 columns of 16 rows is decoded to float32 in the first-level cache and then used for every row of x. Own layouts have
// rows in the lanes of a vector, GGUF blocks have columns there: two loops, one meaning. Internal linkage throughout.
#pragma once

#include "dequantize/dequantize-inl.h"
#include "gemv/simd-inl.h"
#include "gemv/table.h"

namespace {

using tensure::GemvActivations;
using tensure::GemvFormat;
using tensure::GemvJob;
using tensure::GemvWeights;
using tensure::gemv_activations;
using tensure::gemv_block_bytes;
using tensure::gemv_block_cols;
using tensure::gemv_is_gguf;
using tensure::gemv_stored_cols;

constexpr int kRows = 16;            // rows decoded together
constexpr int kSums = 16;            // partial sums of one output: columns with equal k mod 16
constexpr int kChunk = 128;          // columns decoded together
constexpr int kBatchSums = 8;        // rows of x whose partial sums are held at a time
constexpr int kVecs = 16 / kLanes;   // float vectors that hold 16 values

// How many partial sums stay in registers at once: all of them where there are 32 registers.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kHeld = 16;
#else
constexpr int kHeld = 8;
#endif

inline VecF load(const float *p) { return load_as<VecF>(p); }
inline VecF splat(float value) { return VecF{} + value; }

// w[k][row], sums[k mod 16][row].
inline void add_products_by_row(const float *w, const float *x, int num_cols, float *sums) {
  TENSURE_UNROLL
  for (int part = 0; part < kVecs; ++part) {
    for (int first = 0; first < kSums; first += kHeld) {
      VecF held[kHeld];
      TENSURE_UNROLL
      for (int i = 0; i < kHeld; ++i) held[i] = load(sums + (first + i) * kRows + part * kLanes);
      for (int k = first; k < num_cols; k += kSums)
        TENSURE_UNROLL
        for (int i = 0; i < kHeld; ++i)
          held[i] = multiply_add(load(w + (k + i) * kRows + part * kLanes), splat(x[k + i]), held[i]);
      TENSURE_UNROLL
      for (int i = 0; i < kHeld; ++i) store(sums + (first + i) * kRows + part * kLanes, held[i]);
    }
  }
}

// w[row][kChunk], sums[row][k mod 16].
inline void add_products_by_col(const float *w, const float *x, int num_cols, float *sums) {
  constexpr int kAtOnce = kHeld / kVecs < 8 ? kHeld / kVecs : 8;  // rows
  for (int row = 0; row < kRows; row += kAtOnce) {
    VecF held[kAtOnce][kVecs];
    TENSURE_UNROLL
    for (int r = 0; r < kAtOnce; ++r)
      TENSURE_UNROLL
      for (int v = 0; v < kVecs; ++v) held[r][v] = load(sums + (row + r) * kSums + v * kLanes);
    for (int k = 0; k < num_cols; k += kSums)
      TENSURE_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        const VecF right = load(x + k + v * kLanes);
        TENSURE_UNROLL
        for (int r = 0; r < kAtOnce; ++r)
          held[r][v] = multiply_add(load(w + (row + r) * kChunk + k + v * kLanes), right, held[r][v]);
      }
    TENSURE_UNROLL
    for (int r = 0; r < kAtOnce; ++r)
      TENSURE_UNROLL
      for (int v = 0; v < kVecs; ++v) store(sums + (row + r) * kSums + v * kLanes, held[r][v]);
  }
}

// Own int8: 64 bytes hold four columns of 16 rows.
inline void decode_int8(const GemvWeights &w, int64_t block, int64_t first, int num_cols, float *out) {
  const int64_t cols = gemv_stored_cols(w.format, w.num_cols, w.group);
  const int64_t groups = w.group ? cols / w.group : 1;
  for (int k = 0; k < num_cols; k += 4) {
    const int64_t group = w.group ? (first + k) / w.group : 0;
    const uint8_t *const q = w.q + (block * cols + first + k) * kRows;
    TENSURE_UNROLL
    for (int part = 0; part < kVecs; ++part) {
      const VecF scale = load_as<VecF>(w.scales + ((block * groups + group) * kRows + part * kLanes) * 4);
      const VecI four = load_as<VecI>(q + part * kLanes * 4);
      TENSURE_UNROLL
      for (int j = 0; j < 4; ++j)
        store(out + (k + j) * kRows + part * kLanes, to_floats(four << (24 - 8 * j) >> 24) * scale);
    }
  }
}

// Own int4: 256 bytes hold 32 columns of 16 rows.
template <bool kMinimum>
inline void decode_int4(const GemvWeights &w, int64_t block, int64_t first, int num_cols, float *out) {
  const int64_t cols = gemv_stored_cols(w.format, w.num_cols, w.group), groups = cols / w.group;
  for (int k = 0; k < num_cols; k += 32) {
    const int64_t place = ((block * groups + (first + k) / w.group) * kRows) * 2;
    const uint8_t *const q = w.q + (block * cols + first + k) * kRows / 2;
    TENSURE_UNROLL
    for (int part = 0; part < kVecs; ++part) {
      const VecF scale = load_halves(w.scales + place + part * kLanes * 2);
      VecF least = {};
      if (kMinimum) least = load_halves(w.minimums + place + part * kLanes * 2);
      TENSURE_UNROLL
      for (int four = 0; four < 4; ++four) {
        const VecI v = load_as<VecI>(q + 64 * four + part * kLanes * 4);
        TENSURE_UNROLL
        for (int j = 0; j < 8; ++j) {
          const int column = k + 4 * four + j / 2 + 16 * (j % 2);
          const VecF value = to_floats(v >> 4 * j & 15);
          store(out + column * kRows + part * kLanes, kMinimum ? value * scale + least : (value - 8.0f) * scale);
        }
      }
    }
  }
}

// GGUF q4_k, runs of 32 columns: value = (d * scale_run) * q - (dmin * minimum_run). Products are exact: one rounding.
inline void q4_k(const uint8_t *block, int first_run, int num_runs, float *out) {
  const Q4kScales s = q4_k_scales(block);
  for (int run = first_run; run < first_run + num_runs; ++run, out += 32) {
    const float scale = one_half(block) * static_cast<float>(s.scale[run]);
    const float least = one_half(block + 2) * static_cast<float>(s.minimum[run]);
    const uint8_t *const pairs = block + 16 + 32 * (run / 2);
    for (int i = 0; i < 32; i += kLanes) {
      const VecI q = unsigned_bytes(pairs + i);
      store(out + i, to_floats(run % 2 ? q >> 4 : q & 15) * scale - least);
    }
  }
}

inline void decode_gguf(const GemvWeights &w, int64_t row, int64_t first, int num_cols, float *out) {
  const int64_t width = gemv_block_cols(w.format);
  const uint8_t *const blocks = w.q + (row * (w.num_cols / width) + first / width) * gemv_block_bytes(w.format);
  for (int line = 0; line < kChunk; line += 64) __builtin_prefetch(blocks + 512 + line, 0, 3);
  switch (w.format) {
    case GemvFormat::q4_0: return q4_0(blocks, num_cols / 32, out);
    case GemvFormat::q4_1: return q4_1(blocks, num_cols / 32, out);
    case GemvFormat::q8_0: return q8_0(blocks, num_cols / 32, out);
    default: return q4_k(blocks, static_cast<int>(first % 256) / 32, num_cols / 32, out);
  }
}

// ((s0 + s8) + (s4 + s12)) + ...: halves are folded until one is left.
inline float fold(float *s, int step) {
  float left[kSums];
  TENSURE_UNROLL
  for (int i = 0; i < kSums; ++i) left[i] = s[i * step];
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) left[i] = left[i] + left[i + half];
  return left[0];
}

void exact(const GemvJob &job, int64_t row_begin, int64_t row_end) {
  alignas(64) float w[kRows * kChunk];
  alignas(64) float sums[kBatchSums][kSums * kRows];
  const GemvWeights &weights = job.weights;
  const bool gguf = gemv_is_gguf(weights.format);
  const int64_t cols = gemv_stored_cols(weights.format, weights.num_cols, weights.group);
  memset(w, 0, sizeof w);  // rows beyond the last of a GGUF matrix
  for (int64_t row = row_begin; row < row_end; row += kRows) {
    const int rows = row_end - row < kRows ? static_cast<int>(row_end - row) : kRows;
    for (int64_t b0 = 0; b0 < job.batch; b0 += kBatchSums) {
      const int batch = job.batch - b0 < kBatchSums ? static_cast<int>(job.batch - b0) : kBatchSums;
      memset(sums, 0, sizeof sums[0] * batch);
      for (int64_t first = 0; first < cols; first += kChunk) {
        const int num_cols = cols - first < kChunk ? static_cast<int>(cols - first) : kChunk;
        if (gguf) {
          for (int r = 0; r < rows; ++r) decode_gguf(weights, row + r, first, num_cols, w + r * kChunk);
        } else if (weights.format == GemvFormat::int8) {
          decode_int8(weights, row / kRows, first, num_cols, w);
        } else if (weights.format == GemvFormat::int4) {
          decode_int4<false>(weights, row / kRows, first, num_cols, w);
        } else {
          decode_int4<true>(weights, row / kRows, first, num_cols, w);
        }
        for (int b = 0; b < batch; ++b) {
          const float *x = job.x + (b0 + b) * job.x_stride + first;
          float filled[kChunk];
          if (first + num_cols > weights.num_cols) {
            memset(filled, 0, sizeof filled);
            memcpy(filled, x, sizeof(float) * static_cast<size_t>(weights.num_cols - first));
            x = filled;
          }
          if (gguf) {
            add_products_by_col(w, x, num_cols, sums[b]);
          } else {
            add_products_by_row(w, x, num_cols, sums[b]);
          }
        }
      }
      for (int b = 0; b < batch; ++b)
        for (int r = 0; r < rows; ++r)
          job.y[(b0 + b) * job.y_stride + row + r] = fold(sums[b] + (gguf ? r * kSums : r), gguf ? 1 : kRows);
    }
  }
}

}  // namespace
