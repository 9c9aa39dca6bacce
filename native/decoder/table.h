// What one instruction set offers to decoder.cc. All single-threaded; definitions in README.md.
#pragma once

#include "decoder/kv.h"

namespace tensure {

// The heads of one key/value head for one row.
struct AttentionJob {
  KvFormat format;
  KvLayout layout;
  int64_t head_dim;
  int64_t num_heads;       // query heads that share this key/value head
  const float *query;      // [num_heads][head_dim], rotated
  float scale;
  const uint8_t *pages;    // of this layer and head, in page 0
  int64_t page_bytes;
  const int32_t *table;    // page ids of the sequence
  int64_t position;        // keys 0 .. position are read
  float *scores;           // scratch [num_heads][score_stride]
  int64_t score_stride;    // a multiple of 16, above position
  float *out;              // [num_heads][head_dim]
};

// One key and one value into a head's block of a page.
struct KvWrite {
  KvFormat format;
  KvLayout layout;
  int64_t head_dim;
  const float *key, *value;  // [head_dim]
  uint8_t *block;
  int64_t slot;  // position mod 16
};

struct PlainRows {
  int kind;  // 1 f32, 2 f16, 3 bf16, as MatrixKind
  const uint8_t *data;
  int64_t num_cols;
  const float *x;
  int64_t batch, x_stride;
  float *y;
  int64_t y_stride;
};

struct DecoderTable {
  void (*rms_norm)(const float *x, const float *weight, int64_t count, float eps, float *out);
  void (*rotate)(float *x, const float *cosine, const float *sine, int64_t head_dim, bool adjacent);
  void (*add)(float *x, const float *y, int64_t count);                         // x += y
  void (*add_scaled)(float *x, const float *y, float factor, int64_t count);    // x += y * factor, two roundings
  void (*scale)(float *x, float factor, int64_t count);
  void (*divide)(float *x, float divisor, int64_t count);
  void (*silu_multiply)(const float *gate, float *up, int64_t count);           // up = silu(gate) * up
  void (*widen)(int kind, const uint8_t *from, int64_t count, float *out);      // plain numbers to float
  void (*plain_rows)(const PlainRows &job, int64_t row_begin, int64_t row_end);
  void (*write_kv)(const KvWrite &job);
  void (*attend)(const AttentionJob &job);
};

}  // namespace tensure
