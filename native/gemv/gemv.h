// y[b, m] = sum over k of W[m, k] * x[b, k], with W stored in 4 or 8 bits. The stable face of the family.
//
// One pass over the weights serves all rows of x. The caller chooses one of three arithmetics (README.md defines them to the
// bit): gemv_exact multiplies the decoded weight by the float32 activation; gemv_quantize and gemv_rounded round activations to 15 or
// 8 bits first and multiply integers. Neither depends on the number of threads, nor on which rows are computed together.
// Layouts are in README.md. Knows plain memory only: no Python, no files, no models.
#pragma once

#include <cstdint>

namespace tensure {

enum class GemvFormat : int {
  int8,      // own layout, 16 rows interleaved: q * scale
  int4,      // own layout: (q - 8) * scale
  int4_min,  // own layout: q * scale + minimum
  q4_0,      // the four below: GGUF blocks, row after row, read where they are
  q4_1,
  q8_0,
  q4_k,
};

// Borrowed memory of one matrix. No pointer needs any alignment.
struct GemvWeights {
  GemvFormat format;
  int64_t num_rows;         // M
  int64_t num_cols;         // K; GGUF: a multiple of gemv_block_cols
  int64_t group;            // own layouts: elements of a row that share a scale: 32, 64 or 128; int8 also 0: the whole row
  const uint8_t *q;         // gemv_q_bytes
  const uint8_t *scales;    // own layouts, gemv_num_scales of them: float for int8, IEEE half for int4; else null
  const uint8_t *minimums;  // int4_min: halves, as many as scales; else null
};

constexpr int64_t kGemvRows = 16;  // rows of one interleaved block

constexpr bool gemv_is_gguf(GemvFormat f) { return f >= GemvFormat::q4_0; }

// Elements and bytes of one GGUF block.
constexpr int64_t gemv_block_cols(GemvFormat f) { return f == GemvFormat::q4_k ? 256 : 32; }
constexpr int64_t gemv_block_bytes(GemvFormat f) {
  switch (f) {
    case GemvFormat::q4_0: return 2 + 16;
    case GemvFormat::q4_1: return 2 + 2 + 16;
    case GemvFormat::q8_0: return 2 + 32;
    case GemvFormat::q4_k: return 2 + 2 + 12 + 128;
    default: return 0;
  }
}

// Columns as stored: own layouts fill the last group with zeros.
constexpr int64_t gemv_stored_cols(GemvFormat f, int64_t num_cols, int64_t group) {
  const int64_t unit = gemv_is_gguf(f) ? gemv_block_cols(f) : group == 0 ? 32 : group;
  return (num_cols + unit - 1) / unit * unit;
}

constexpr int64_t gemv_stored_rows(GemvFormat f, int64_t num_rows) {
  return gemv_is_gguf(f) ? num_rows : (num_rows + kGemvRows - 1) / kGemvRows * kGemvRows;
}

// Bytes at `q`, scales at `scales` (and minimums at `minimums`).
constexpr int64_t gemv_q_bytes(GemvFormat f, int64_t num_rows, int64_t num_cols, int64_t group) {
  const int64_t rows = gemv_stored_rows(f, num_rows), cols = gemv_stored_cols(f, num_cols, group);
  if (gemv_is_gguf(f)) return rows * (cols / gemv_block_cols(f)) * gemv_block_bytes(f);
  return f == GemvFormat::int8 ? rows * cols : rows * cols / 2;
}
constexpr int64_t gemv_num_scales(GemvFormat f, int64_t num_rows, int64_t num_cols, int64_t group) {
  if (gemv_is_gguf(f)) return 0;
  const int64_t groups = group == 0 ? 1 : gemv_stored_cols(f, num_cols, group) / group;
  return gemv_stored_rows(f, num_rows) * groups;
}

// What activations are multiplied as: floats, or integers in groups of 32: of 15 bits (fine) or of 8 (fast).
enum class GemvArithmetic : int { exact, fine, fast };

// x: `batch` rows of num_cols floats, x_stride floats apart; y: `batch` rows of num_rows floats, y_stride apart. y overlaps
// nothing. At most num_threads threads work, each on rows of its own. All return false, having written nothing, when
// no instruction set is in use.
bool gemv_exact(const GemvWeights &weights, const float *x, int64_t batch, int64_t x_stride, float *y, int64_t y_stride,
                int num_threads);

// Whether gemv_exact fuses multiply and add with the set in use. v2 cannot: its results differ from those of all other
// sets, which agree with each other bit for bit. Who needs equal bits on two machines compares this.
bool gemv_exact_is_fused();

// Rounds activations (arithmetic fine or fast), once for all matrices of num_cols columns, whatever their formats. `activations` holds
// gemv_activation_bytes and needs no alignment (64 is best).
int64_t gemv_activation_bytes(GemvArithmetic arithmetic, int64_t num_cols, int64_t batch);
bool gemv_quantize(GemvArithmetic arithmetic, const float *x, int64_t batch, int64_t num_cols, int64_t x_stride,
                   uint8_t *activations);
bool gemv_rounded(GemvArithmetic arithmetic, const GemvWeights &weights, const uint8_t *activations, int64_t batch, float *y,
                  int64_t y_stride, int num_threads);

// The own layout that holds a GGUF format's weights, group 32; a format that has none stands for itself.
constexpr GemvFormat gemv_repacked(GemvFormat gguf) {
  switch (gguf) {
    case GemvFormat::q4_0: return GemvFormat::int4;
    case GemvFormat::q4_1: return GemvFormat::int4_min;
    case GemvFormat::q8_0: return GemvFormat::int8;
    default: return gguf;
  }
}

// GGUF blocks of a matrix, and memory of the caller's for the same weights in gemv_repacked(from): gemv_q_bytes at q,
// gemv_num_scales of floats (int8) or halves at scales, as many halves at minimums (int4_min). No pointer needs any alignment.
struct GemvRepack {
  GemvFormat from;  // q4_0, q4_1, q8_0; nothing is written for others
  int64_t num_rows, num_cols;
  const uint8_t *blocks;
  uint8_t *q, *scales, *minimums;
};

// Every weight to the bit. At most num_threads threads work. Needs no instruction set; allocates nothing.
void gemv_repack(const GemvRepack &job, int num_threads);
// Blocks of 16 rows from `first` to before `last`, by the calling thread.
void gemv_repack_blocks(const GemvRepack &job, int64_t first, int64_t last);

// Reads `bytes` as gemv_rounded reads weights, without its arithmetic: what the memory allows at most. Returns the exclusive or
// of the 64-bit words (of a whole number of kGemvReadBytes), so that nothing can be left out.
// streams: 1, 2, 4 or 8 places read in turn; prefetch: bytes to ask ahead, 0 for none.
constexpr int64_t kGemvReadBytes = 8 * 256;
uint64_t gemv_read(const uint8_t *data, int64_t bytes, int streams, int64_t prefetch, int num_threads);

}  // namespace tensure
