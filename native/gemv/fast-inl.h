// Fast and fine arithmetic: activations of 8 or 15 bits, integer dot products over 32 columns, float sums. See README.md.
//
// kPlanes: 1 for fast; 2 for fine, where an activation is 128 times a byte of one plane plus a byte of the other.
//
// target.cc includes this file once in namespace plain and, where the instruction set has a companion with 8-bit dot products,
// once more in namespace vnni with TENSURE_GEMV_VNNI and that companion's target in force. Hence no include guard.
// Integer parts are exact, float parts are single multiplications and additions in one order: all variants give equal bits.

// Vectors of the instruction set's width (own layouts), and of 32 bytes or what there is of them (one GGUF block).
constexpr int kParts = 64 / TENSURE_VECTOR_BYTES;
constexpr int kBlockVector = TENSURE_VECTOR_BYTES < 32 ? TENSURE_VECTOR_BYTES : 32;
constexpr int kBlockLanes = kBlockVector / 4;
constexpr int kBlockParts = 32 / kBlockVector;
typedef int32_t BlockI __attribute__((vector_size(kBlockVector)));
typedef float BlockF __attribute__((vector_size(kBlockVector)));

// What the intrinsics call these vectors; the same bits.
#if defined(__AVX512F__)
typedef __m512i Raw;
typedef __m256i RawBlock;
#elif defined(__AVX2__)
typedef __m256i Raw;
typedef __m256i RawBlock;
#elif defined(__SSSE3__)
typedef __m128i Raw;
typedef __m128i RawBlock;
#else
typedef VecI Raw;
typedef BlockI RawBlock;
#endif

// GGUF: rows of x that one pass over a few rows of weights serves, as registers allow.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBatchTile = 4;
#else
constexpr int kBatchTile = 2;
#endif

// The value, in a register: GCC loads twice what two instructions can take from memory, and makes a tree of a chain of integer
// sums, which takes twice the registers there are.
inline Raw in_register(Raw value) {
#if defined(__x86_64__)
  __asm__("" : "+v"(value));
#elif defined(__aarch64__)
  __asm__("" : "+w"(value));
#endif
  return value;
}

// dot_unsigned: each lane adds the products of four bytes, w in 0..15 and x in -127..127.
// dot_signed: w in -128..127; adds kBias times the sum of the four x as well, which the caller takes away.
#if defined(TENSURE_GEMV_VNNI) && defined(__AVX512F__)
constexpr int kBias = 128;
inline __m512i dot_unsigned(__m512i acc, __m512i w, __m512i x) { return _mm512_dpbusd_epi32(acc, w, x); }
inline __m512i dot_signed(__m512i acc, __m512i w, __m512i x) {
  return _mm512_dpbusd_epi32(acc, _mm512_xor_si512(w, _mm512_set1_epi8(-128)), x);
}
inline __m256i dot_unsigned(__m256i acc, __m256i w, __m256i x) { return _mm256_dpbusd_epi32(acc, w, x); }
inline __m256i dot_signed(__m256i acc, __m256i w, __m256i x) {
  return _mm256_dpbusd_epi32(acc, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x);
}
#elif defined(TENSURE_GEMV_VNNI) && defined(__AVX2__)
constexpr int kBias = 128;
inline __m256i dot_unsigned(__m256i acc, __m256i w, __m256i x) { return _mm256_dpbusd_avx_epi32(acc, w, x); }
inline __m256i dot_signed(__m256i acc, __m256i w, __m256i x) {
  return _mm256_dpbusd_avx_epi32(acc, _mm256_xor_si256(w, _mm256_set1_epi8(-128)), x);
}
#elif defined(TENSURE_GEMV_VNNI) && defined(__aarch64__)
constexpr int kBias = 0;
inline VecI dot_signed(VecI acc, VecI w, VecI x) {
  return vdotq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x));
}
inline VecI dot_unsigned(VecI acc, VecI w, VecI x) { return dot_signed(acc, w, x); }
#elif defined(__SSSE3__)
// maddubs adds two products u8 * s8 and saturates at 16 bits. With w <= 15 the sum is at most 2 * 15 * 127; with |w| <= 128 as the
// unsigned side and x carrying the sign, since x is never -128, at most 2 * 128 * 127 = 32512. So it never saturates.
constexpr int kBias = 0;
inline __m128i dot_unsigned(__m128i acc, __m128i w, __m128i x) {
  return _mm_add_epi32(acc, _mm_madd_epi16(_mm_maddubs_epi16(w, x), _mm_set1_epi16(1)));
}
inline __m128i dot_signed(__m128i acc, __m128i w, __m128i x) {
  return dot_unsigned(acc, _mm_abs_epi8(w), _mm_sign_epi8(x, w));
}
#if defined(__AVX2__)
inline __m256i dot_unsigned(__m256i acc, __m256i w, __m256i x) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
inline __m256i dot_signed(__m256i acc, __m256i w, __m256i x) {
  return dot_unsigned(acc, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}
#endif
#if defined(__AVX512BW__)
inline __m512i dot_unsigned(__m512i acc, __m512i w, __m512i x) {
  return _mm512_add_epi32(acc, _mm512_madd_epi16(_mm512_maddubs_epi16(w, x), _mm512_set1_epi16(1)));
}
inline __m512i dot_signed(__m512i acc, __m512i w, __m512i x) {
  const __m512i flipped = _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
  return dot_unsigned(acc, _mm512_abs_epi8(w), flipped);
}
#endif
#elif defined(__aarch64__)
constexpr int kBias = 0;
inline VecI dot_signed(VecI acc, VecI w, VecI x) {
  const int8x16_t left = vreinterpretq_s8_s32(w), right = vreinterpretq_s8_s32(x);
  const int16x8_t low = vmull_s8(vget_low_s8(left), vget_low_s8(right)), high = vmull_high_s8(left, right);
  return vaddq_s32(acc, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
}
inline VecI dot_unsigned(VecI acc, VecI w, VecI x) { return dot_signed(acc, w, x); }
#else
constexpr int kBias = 0;
inline VecI dot_signed(VecI acc, VecI w, VecI x) {
  TENSURE_UNROLL
  for (int j = 0; j < 4; ++j) acc += (w << (24 - 8 * j) >> 24) * (x << (24 - 8 * j) >> 24);
  return acc;
}
inline VecI dot_unsigned(VecI acc, VecI w, VecI x) { return dot_signed(acc, w, x); }
#endif

// One row of quantised activations.
struct Row {
  const int8_t *q, *low;
  const uint8_t *lanes, *total, *scale, *sum;
};
inline Row row_of(const uint8_t *activations, const GemvActivations &place, int64_t b) {
  const uint8_t *const p = activations + b * place.bytes;
  return {reinterpret_cast<const int8_t *>(p), reinterpret_cast<const int8_t *>(p) + place.low, p + place.lanes, p + place.total, p + place.scale, p + place.sum};
}
inline float float_at(const uint8_t *p, int64_t index) {
  float value;
  memcpy(&value, p + 4 * index, 4);
  return value;
}
inline int32_t int_at(const void *p, int64_t index) {
  int32_t value;
  memcpy(&value, static_cast<const uint8_t *>(p) + 4 * index, 4);
  return value;
}

// ---- own layouts: a lane is a row -------------------------------------------------------------------------------------

#include "gemv/stream-inl.h"
#include "gemv/tile-inl.h"

template <GemvFormat kFormat, bool kGroups, int kPlanes>
inline void packed_rows(const GemvJob &job, int64_t row_begin, int64_t row_end) {
  job.batch == 1 ? streams<kFormat, kGroups, kPlanes>(job, row_begin, row_end)
                 : tiles<kFormat, kGroups, kPlanes>(job, row_begin, row_end);
}

// ---- GGUF blocks in place: a lane is four neighbouring columns -------------------------------------------------------------

constexpr int kAhead = 4096;  // bytes: measured best of 2048 to 4096

struct Block {
  BlockI v[kBlockParts];
};

inline Block block_at(const void *p) {
  Block block;
  TENSURE_UNROLL
  for (int i = 0; i < kBlockParts; ++i) block.v[i] = load_as<BlockI>(static_cast<const uint8_t *>(p) + i * kBlockVector);
  return block;
}

// 16 bytes of pairs: low halves are elements 0..15, high halves 16..31.
inline Block pairs_at(const uint8_t *p) {
  Block block;
#if defined(__AVX2__)
  const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)));
  block.v[0] = (BlockI)_mm256_srlv_epi32(twice, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4)) & 0x0f0f0f0f;
#else
  const BlockI pairs = load_as<BlockI>(p);
  block.v[0] = pairs & 0x0f0f0f0f;
  block.v[kBlockParts - 1] = pairs >> 4 & 0x0f0f0f0f;
#endif
  return block;
}

struct Sums {
  BlockF v[kBlockParts];
};

inline Sums widen_bytes(const uint8_t *p) {
  Sums sums;
#if defined(__AVX2__)
  sums.v[0] = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p))));
#else
  for (int i = 0; i < 8; ++i) sums.v[i / kBlockLanes][i % kBlockLanes] = static_cast<float>(p[i]);
#endif
  return sums;
}

inline float fold(const Sums &sums) {
  float s[8];
  memcpy(s, &sums, sizeof s);
  return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

// sums += integers * factor, where the integers are the dot products of one run of 32 columns, less 8 * kLessEighths times the
// sums of x.
template <bool kSigned, int kLessEighths, int kPlanes>
inline void add_run(Sums &sums, const Block &w, const Row &x, int64_t group, float factor) {
  const Block right = block_at(x.q + 32 * group), low = block_at(x.low + 32 * group), lanes = block_at(x.lanes + 32 * group);
  const auto dot = [](BlockI sum, BlockI left, BlockI with) {
    return kSigned ? (BlockI)dot_signed((RawBlock)sum, (RawBlock)left, (RawBlock)with)
                   : (BlockI)dot_unsigned((RawBlock)sum, (RawBlock)left, (RawBlock)with);
  };
  TENSURE_UNROLL
  for (int i = 0; i < kBlockParts; ++i) {
    BlockI sum = {};
    if (kPlanes == 2) sum = dot(sum, w.v[i], right.v[i]) << 7;
    if (kLessEighths) sum += lanes.v[i] * kLessEighths;
    sum = dot(sum, w.v[i], kPlanes == 2 ? low.v[i] : right.v[i]);
    sums.v[i] = sums.v[i] + __builtin_convertvector(sum, BlockF) * factor;
  }
}

// What one row of weights adds up, for kBatch rows of x. `leasts` is for q4_k, `least` for q4_1.
template <int kBatch>
struct GgufSums {
  Sums dots[kBatch] = {}, leasts[kBatch] = {};
  float least[kBatch] = {};
};

template <GemvFormat kFormat, int kBatch, int kPlanes>
inline void add_block(GgufSums<kBatch> &to, const uint8_t *p, const Row *x, int64_t g) {
  if constexpr (kFormat == GemvFormat::q4_0) {
    const Block q = pairs_at(p + 2);
    const float scale = one_half(p);
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b) add_run<false, 1, kPlanes>(to.dots[b], q, x[b], g, scale * float_at(x[b].scale, g));
  } else if constexpr (kFormat == GemvFormat::q4_1) {
    const Block q = pairs_at(p + 4);
    const float scale = one_half(p), minimum = one_half(p + 2);
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      add_run<false, 0, kPlanes>(to.dots[b], q, x[b], g, scale * float_at(x[b].scale, g));
      to.least[b] = to.least[b] + minimum * float_at(x[b].sum, g);
    }
  } else if constexpr (kFormat == GemvFormat::q8_0) {
    const Block q = block_at(p + 2);
    const float scale = one_half(p);
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b) add_run<true, kBias / 8, kPlanes>(to.dots[b], q, x[b], g, scale * float_at(x[b].scale, g));
  } else {
    const Q4kScales six_bits = q4_k_scales(p);
    const float scale = one_half(p), minimum = one_half(p + 2);
    const Sums scales = widen_bytes(six_bits.scale), minimums = widen_bytes(six_bits.minimum);
    float factors[kBatch][8];
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b)
      TENSURE_UNROLL
      for (int i = 0; i < kBlockParts; ++i) {
        const BlockF steps = load_as<BlockF>(x[b].scale + 32 * g + i * kBlockVector);
        const BlockF totals = load_as<BlockF>(x[b].sum + 32 * g + i * kBlockVector);
        const BlockF factor = scales.v[i] * scale * steps;
        memcpy(factors[b] + i * kBlockLanes, &factor, sizeof factor);
        to.leasts[b].v[i] = to.leasts[b].v[i] - minimums.v[i] * minimum * totals;
      }
    TENSURE_UNROLL
    for (int run = 0; run < 8; ++run) {
      Block q = block_at(p + 16 + 32 * (run / 2));
      TENSURE_UNROLL
      for (int i = 0; i < kBlockParts; ++i) q.v[i] = (run % 2 ? q.v[i] >> 4 : q.v[i]) & 0x0f0f0f0f;
      TENSURE_UNROLL
      for (int b = 0; b < kBatch; ++b) add_run<false, 0, kPlanes>(to.dots[b], q, x[b], 8 * g + run, factors[b][run]);
    }
  }
}

// kRowsAtOnce rows of weights that lie `apart` rows from each other (streams for the memory), for kBatch rows of x.
template <GemvFormat kFormat, int kBatch, int kRowsAtOnce, int kPlanes>
inline void gguf(const GemvJob &job, const GemvActivations &place, int64_t row, int64_t apart, int64_t b0) {
  constexpr int64_t kBytes = gemv_block_bytes(kFormat);
  constexpr int kStep = kBytes <= 32 ? 2 : 1;  // blocks that one round of prefetching covers
  const GemvWeights &w = job.weights;
  const int64_t blocks = w.num_cols / gemv_block_cols(kFormat);
  Row x[kBatch];
  for (int b = 0; b < kBatch; ++b) x[b] = row_of(job.activations, place, b0 + b);
  GgufSums<kBatch> sums[kRowsAtOnce];
  const uint8_t *p[kRowsAtOnce];
  for (int r = 0; r < kRowsAtOnce; ++r) p[r] = w.q + (row + r * apart) * blocks * kBytes;
  int64_t g = 0;
  for (; g + kStep <= blocks; g += kStep) {
    TENSURE_UNROLL
    for (int r = 0; r < kRowsAtOnce; ++r) {
      TENSURE_UNROLL
      for (int64_t line = 0; line < kStep * kBytes; line += 64) __builtin_prefetch(p[r] + kAhead + line, 0, 3);
      TENSURE_UNROLL
      for (int i = 0; i < kStep; ++i) add_block<kFormat, kBatch, kPlanes>(sums[r], p[r] + i * kBytes, x, g + i);
      p[r] += kStep * kBytes;
    }
  }
  if (g < blocks) {
    TENSURE_UNROLL
    for (int r = 0; r < kRowsAtOnce; ++r) add_block<kFormat, kBatch, kPlanes>(sums[r], p[r], x, g);
  }
  TENSURE_UNROLL
  for (int r = 0; r < kRowsAtOnce; ++r)
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      float value = fold(sums[r].dots[b]);
      if (kFormat == GemvFormat::q4_1) value = value + sums[r].least[b];
      if (kFormat == GemvFormat::q4_k) value = value + fold(sums[r].leasts[b]);
      job.y[(b0 + b) * job.y_stride + row + r * apart] = value;
    }
}

#include "gemv/nibbles-inl.h"

template <GemvFormat kFormat, int kPlanes>
inline void gguf_rows(const GemvJob &job, int64_t row_begin, int64_t row_end) {
  constexpr int kStreams = 2;
  const GemvActivations place = gemv_activations(job.weights.num_cols, kPlanes);
#if defined(TENSURE_GEMV_NIBBLES)
  if constexpr (kFormat == GemvFormat::q4_0 || kFormat == GemvFormat::q4_1) {
    if (job.batch == 1) {
      const int64_t part = (row_end - row_begin) / kRowsTogether;
      for (int64_t row = row_begin; row < row_begin + part; ++row) nibbles<kFormat, kPlanes>(job, place, row, part);
      for (int64_t row = row_begin + kRowsTogether * part; row < row_end; ++row) gguf<kFormat, 1, 1, kPlanes>(job, place, row, 0, 0);
      return;
    }
  }
#endif
  if (job.batch == 1) {
    const int64_t part = (row_end - row_begin) / kStreams;
    for (int64_t row = row_begin; row < row_begin + part; ++row) gguf<kFormat, 1, kStreams, kPlanes>(job, place, row, part, 0);
    for (int64_t row = row_begin + kStreams * part; row < row_end; ++row) gguf<kFormat, 1, 1, kPlanes>(job, place, row, 0, 0);
    return;
  }
  for (int64_t row = row_begin; row < row_end;) {
    const bool two = row + 2 <= row_end;
    int64_t b = 0;
    for (; b + kBatchTile <= job.batch; b += kBatchTile)
      two ? gguf<kFormat, kBatchTile, 2, kPlanes>(job, place, row, 1, b) : gguf<kFormat, kBatchTile, 1, kPlanes>(job, place, row, 0, b);
    for (; b < job.batch; ++b)
      two ? gguf<kFormat, 1, 2, kPlanes>(job, place, row, 1, b) : gguf<kFormat, 1, 1, kPlanes>(job, place, row, 0, b);
    row += two ? 2 : 1;
  }
}

template <int kPlanes> inline void rounded(const GemvJob &job, int64_t row_begin, int64_t row_end) {
  switch (job.weights.format) {
    case GemvFormat::int8:
      return job.weights.group ? packed_rows<GemvFormat::int8, true, kPlanes>(job, row_begin, row_end)
                               : packed_rows<GemvFormat::int8, false, kPlanes>(job, row_begin, row_end);
    case GemvFormat::int4: return packed_rows<GemvFormat::int4, true, kPlanes>(job, row_begin, row_end);
    case GemvFormat::int4_min: return packed_rows<GemvFormat::int4_min, true, kPlanes>(job, row_begin, row_end);
    case GemvFormat::q4_0: return gguf_rows<GemvFormat::q4_0, kPlanes>(job, row_begin, row_end);
    case GemvFormat::q4_1: return gguf_rows<GemvFormat::q4_1, kPlanes>(job, row_begin, row_end);
    case GemvFormat::q8_0: return gguf_rows<GemvFormat::q8_0, kPlanes>(job, row_begin, row_end);
    case GemvFormat::q4_k: return gguf_rows<GemvFormat::q4_k, kPlanes>(job, row_begin, row_end);
  }
}

void fast(const GemvJob &job, int64_t row_begin, int64_t row_end) { rounded<1>(job, row_begin, row_end); }
void fine(const GemvJob &job, int64_t row_begin, int64_t row_end) { rounded<2>(job, row_begin, row_end); }
