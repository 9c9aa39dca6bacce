// GGUF blocks into the own layouts, every weight to the bit: 32-bit words of 16 rows change places, nothing is computed.
//
// A GGUF block of four bits holds elements 0..15 in the low halves of its 16 bytes and 16..31 in the high ones, as the own layout
// has them: word w of the block is word w of its row's run. So a run of 16 rows is a transposition, and memory is all it costs.
#include <algorithm>
#include <cstring>

#include "gemv/gemv.h"

namespace tensure {
namespace {

typedef int32_t Words __attribute__((vector_size(16)));

// What stands for the rows that fill the last 16: weights of zero.
constexpr uint8_t kNoRow[2][34] = {{}, {0, 0, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88,
                                        0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88}};

Words words_at(const uint8_t *p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return words;
}

// Four words of four rows: in[row][word] to out[word][row], rows of 64 bytes.
void transpose(const uint8_t *const *in, int64_t offset, uint8_t *out) {
  const Words a = words_at(in[0] + offset), b = words_at(in[1] + offset);
  const Words c = words_at(in[2] + offset), d = words_at(in[3] + offset);
  const Words ab_low = __builtin_shuffle(a, b, Words{0, 4, 1, 5}), ab_high = __builtin_shuffle(a, b, Words{2, 6, 3, 7});
  const Words cd_low = __builtin_shuffle(c, d, Words{0, 4, 1, 5}), cd_high = __builtin_shuffle(c, d, Words{2, 6, 3, 7});
  const Words all[4] = {
      __builtin_shuffle(ab_low, cd_low, Words{0, 1, 4, 5}), __builtin_shuffle(ab_low, cd_low, Words{2, 3, 6, 7}),
      __builtin_shuffle(ab_high, cd_high, Words{0, 1, 4, 5}), __builtin_shuffle(ab_high, cd_high, Words{2, 3, 6, 7})};
  for (int word = 0; word < 4; ++word) std::memcpy(out + 64 * word, &all[word], sizeof(Words));
}

// A half of every row, as it is or widened.
void put_halves(const uint8_t *const *rows, int64_t offset, uint8_t *out) {
  for (int r = 0; r < kGemvRows; ++r) std::memcpy(out + 2 * r, rows[r] + offset, 2);
}
// As load_half, four at a time without a branch: subnormals as integers, for a mode that flushes them must not touch them.
void put_floats(const uint8_t *const *rows, uint8_t *out) {
  typedef float Floats __attribute__((vector_size(16)));
  for (int first = 0; first < kGemvRows; first += 4, rows += 4, out += sizeof(Words)) {
    Words h;
    for (int r = 0; r < 4; ++r) h[r] = rows[r][0] | rows[r][1] << 8;
    const Words exponent = h & 0x7c00, magnitude = h & 0x7fff, large = (magnitude << 13) + (112 << 23);
    const Words tiny = (Words)(__builtin_convertvector(magnitude, Floats) * 0x1p-24f);
    const Words special = (magnitude << 13) | 0x7f800000;
    const Words value = exponent == 0 ? tiny : exponent == 0x7c00 ? special : large;
    const Words signed_value = value | (h & 0x8000) << 16;
    std::memcpy(out, &signed_value, sizeof signed_value);
  }
}

template <GemvFormat kFrom>
void repack(const GemvRepack &job, int64_t block) {
  constexpr int64_t kBytes = gemv_block_bytes(kFrom);
  constexpr int64_t kUnit = kFrom == GemvFormat::q8_0 ? 512 : 256;  // bytes of 32 columns of 16 rows
  constexpr int64_t kHead = kBytes - kUnit / kGemvRows;             // bytes of scale and minimum
  constexpr int64_t kScales = kGemvRows * (kFrom == GemvFormat::q8_0 ? 4 : 2);
  const int64_t units = job.num_cols / 32;
  const uint8_t *rows[kGemvRows];
  int64_t steps[kGemvRows];
  for (int r = 0; r < kGemvRows; ++r) {
    const int64_t row = block * kGemvRows + r;
    const bool filled = row >= job.num_rows;
    rows[r] = filled ? kNoRow[kFrom == GemvFormat::q4_0] : job.blocks + row * units * kBytes;
    steps[r] = filled ? 0 : kBytes;
  }
  // The next 16 rows lie behind these in one piece: asked for in order, where 16 short streams would each start cold.
  const uint8_t *ahead = job.blocks + (block + 1) * kGemvRows * units * kBytes;
  for (int64_t unit = 0; unit < units; ++unit, ahead += kGemvRows * kBytes) {
    for (int64_t line = 0; line < kGemvRows * kBytes; line += 64) __builtin_prefetch(ahead + line, 0, 2);
    const int64_t place = block * units + unit;
    for (int64_t part = 0; part < kUnit / 256; ++part)
      for (int r = 0; r < kGemvRows; r += 4) transpose(rows + r, kHead + 16 * part, job.q + place * kUnit + 256 * part + 4 * r);
    if (kFrom == GemvFormat::q8_0) {
      put_floats(rows, job.scales + place * kScales);
    } else {
      put_halves(rows, 0, job.scales + place * kScales);
      if (kFrom == GemvFormat::q4_1) put_halves(rows, 2, job.minimums + place * kScales);
    }
    for (int r = 0; r < kGemvRows; ++r) rows[r] += steps[r];
  }
}

}  // namespace

void gemv_repack_blocks(const GemvRepack &job, int64_t first, int64_t last) {
  for (int64_t block = first; block < last; ++block) switch (job.from) {
      case GemvFormat::q4_0: repack<GemvFormat::q4_0>(job, block); break;
      case GemvFormat::q4_1: repack<GemvFormat::q4_1>(job, block); break;
      case GemvFormat::q8_0: repack<GemvFormat::q8_0>(job, block); break;
      default: return;
    }
}

void gemv_repack(const GemvRepack &job, int num_threads) {
  const int64_t blocks = (job.num_rows + kGemvRows - 1) / kGemvRows;
  const int64_t work = gemv_q_bytes(job.from, job.num_rows, job.num_cols, 0) >> 20;  // a thread for a mebibyte or more
  const int parts = static_cast<int>(std::clamp<int64_t>(std::min(work, blocks), 1, std::max(num_threads, 1)));
  if (parts == 1) return gemv_repack_blocks(job, 0, blocks);
#if defined(_OPENMP)
#pragma omp parallel for num_threads(parts) schedule(static, 1)
#endif
  for (int part = 0; part < parts; ++part)
    gemv_repack_blocks(job, blocks * part / parts, blocks * (part + 1) / parts);
}

}  // namespace tensure
