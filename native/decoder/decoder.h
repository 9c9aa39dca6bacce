// Rows of tokens through the layers of a decoder-only language model, over a paged key-value cache. The stable face.
//
// A step is a list of rows: a row is one token of one sequence at one position. Whether rows are one sequence's prompt, one
// token each of many sequences, or a mix, each row's arithmetic is the same and reads nothing of another row but the keys and
// values that row wrote. So nothing that a scheduler decides (batch, chunks, arrivals, preemption) can change a bit of a row,
// nor can the number of threads; README.md defines the arithmetic.
//
// Knows plain memory only: no files, no tokenizer, no scheduler. Letters: R rows, D width, H query heads, G key/value heads,
// E head size, F feed-forward width, C context, V vocabulary.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder/kv.h"
#include "gemv/gemv.h"

namespace tensure {

// A matrix [num_rows, num_cols]: in one of gemv's formats, or plain numbers row after row.
enum class MatrixKind : int { gemv, f32, f16, bf16 };
struct DecoderMatrix {
  MatrixKind kind;
  GemvWeights weights;  // kind gemv; num_rows and num_cols in any case
  const uint8_t *data;  // plain numbers, at any address
};

struct DecoderLayer {
  const float *attn_norm, *ffn_norm;          // [D]
  const float *q_bias, *k_bias, *v_bias;      // or null
  const float *q_norm, *k_norm;               // [E] or null
  DecoderMatrix q, k, v, o, gate, up, down;
};

struct DecoderShape {
  int64_t width, heads, kv_heads, head_dim, ffn, vocab, context;
  float rms_eps;
  bool adjacent;  // rotary pairs are elements 2i and 2i + 1, not i and i + E/2
  float embedding_multiplier, residual_multiplier, attention_scale, logits_divisor;
};

// What a stage holds: some layers, and perhaps the embedding and the head.
struct Decoder {
  DecoderShape shape;
  std::vector<DecoderLayer> layers;
  const float *cosine, *sine;  // [C, E/2]
  bool has_embed, has_head;
  DecoderMatrix embed;  // [V, D]; may be the head's own memory. Rows of Q4_K are not looked up
  DecoderMatrix head;   // [V, D]
  const float *norm;    // [D]
  GemvArithmetic arithmetic, head_arithmetic;  // of matrices in gemv's formats: the layers', the head
  KvFormat kv_format;
};

struct DecoderStep {
  int64_t num_rows;
  const int32_t *tokens;     // [R], read where the embedding is
  const int32_t *positions;  // [R], 0 .. C-1
  const int32_t *slots;      // [R], rows of `tables`
  const int32_t *tables;     // [slots, table_pages]: page ids of a sequence, in order
  int64_t table_pages;
  int64_t num_wanted;
  const int32_t *wanted;     // [num_wanted]: rows whose logits are asked for
  uint8_t *pages;            // the cache: kv_page_bytes each
  float *hidden;             // [R, D]: what the layers before gave (unless has_embed), then what these gave
  float *logits;             // [num_wanted, V] where the head is
};

int64_t decoder_workspace(const Decoder &decoder, int64_t num_rows, int num_threads);

// Runs all layers of the stage. `workspace` holds decoder_workspace bytes, aligned to 64. Returns false, having written nothing,
// when no instruction set is in use. Everything in `step` has been checked by the caller.
bool decoder_run(const Decoder &decoder, const DecoderStep &step, void *workspace, int num_threads);

}  // namespace tensure
