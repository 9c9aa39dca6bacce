// Fast and fine arithmetic for one row of x and GGUF's blocks of 18 or 20 bytes, q4_0 and q4_1: four rows of weights at once.
//
// Included by fast-inl.h, hence twice and without a guard. In such blocks the work on a scale for every 16 bytes is what costs. So
// scales and minimums of four rows are widened and multiplied by one instruction each, the four sums of minimums are one vector,
// and where vectors have 64 bytes the eight sums of two rows are one as well. The same operations in the same order, each
// rounded, as one row alone.
#if defined(__AVX2__)
#define TENSURE_GEMV_NIBBLES
constexpr int kRowsTogether = 4;
constexpr int kRowsAVector = TENSURE_VECTOR_BYTES / 32;
constexpr int kNibbleVectors = kRowsTogether / kRowsAVector;

// The 16 pairs of a row, or of two: the low halves of bytes, then the high ones.
inline Raw pairs_of(const uint8_t *const *p) {
  const auto at = [](const uint8_t *from) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)); };
#if defined(__AVX512F__)
  // Masked forms: the plain ones make GCC 12 warn about its own undefined vector (bug 105593).
  const __m512i one = _mm512_maskz_broadcast_i32x4(0xffff, at(p[0]));
  const __m512i two = _mm512_mask_broadcast_i32x4(one, 0xff00, at(p[1]));
  const VecI places = {0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4};
  return (Raw)((VecI)two >> places & 0x0f0f0f0f);
#else
  const __m256i one = _mm256_broadcastsi128_si256(at(p[0])), places = _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4);
  return _mm256_and_si256(_mm256_srlv_epi32(one, places), _mm256_set1_epi32(0x0f0f0f0f));
#endif
}

// 32 bytes, once for each row of a vector.
inline Raw for_each_row(const void *p) {
  const __m256i once = _mm256_loadu_si256(static_cast<const __m256i *>(p));
#if defined(__AVX512F__)
  return _mm512_maskz_broadcast_i32x8(0xffff, once);
#else
  return once;
#endif
}

// Eight times element 2 r of `pairs` for each row r of vector v.
inline VecF factors_of(__m256 pairs, int v) {
#if defined(__AVX512F__)
  const int a = 4 * v, b = a + 2;
  return __builtin_shuffle((VecF)_mm512_castps256_ps512(pairs), VecI{a, a, a, a, a, a, a, a, b, b, b, b, b, b, b, b});
#else
  return _mm256_permutevar8x32_ps(pairs, _mm256_set1_epi32(2 * v));
#endif
}

// Rows of weights that lie `apart` rows from each other: streams for the memory.
template <GemvFormat kFormat, int kPlanes>
inline void nibbles(const GemvJob &job, const GemvActivations &place, int64_t row, int64_t apart) {
  constexpr bool kMin = kFormat == GemvFormat::q4_1;
  constexpr int64_t kBytes = gemv_block_bytes(kFormat);
  const int64_t blocks = job.weights.num_cols / 32;
  const Row x = row_of(job.activations, place, 0);
  const uint8_t *p[kRowsTogether];
  TENSURE_UNROLL
  for (int r = 0; r < kRowsTogether; ++r) p[r] = job.weights.q + (row + r * apart) * blocks * kBytes;
  VecF sums[kNibbleVectors] = {};
  __m256 leasts = {};
  for (int64_t g = 0; g < blocks; ++g) {
    TENSURE_UNROLL
    for (int r = 0; r < kRowsTogether; ++r) __builtin_prefetch(p[r] + kAhead, 0, 3);
    // Scale and minimum of each row; for q4_0 two bytes of integers stand in the place of the minimum, and nobody uses them.
    const __m128i heads = _mm_setr_epi32(int_at(p[0], 0), int_at(p[1], 0), int_at(p[2], 0), int_at(p[3], 0));
    const __m256 steps = _mm256_blend_ps(_mm256_set1_ps(float_at(x.scale, g)), _mm256_set1_ps(float_at(x.sum, g)), 0xaa);
    const __m256 pairs = _mm256_cvtph_ps(heads) * steps;
    if (kMin) leasts = leasts + pairs;
    const Raw right = for_each_row(x.q + 32 * g), low = for_each_row(x.low + 32 * g);
    TENSURE_UNROLL
    for (int v = 0; v < kNibbleVectors; ++v) {
      const uint8_t *from[kRowsAVector];
      TENSURE_UNROLL
      for (int r = 0; r < kRowsAVector; ++r) from[r] = p[v * kRowsAVector + r] + kBytes - 16;
      const Raw pair = pairs_of(from);
      Raw dot = {};
      if (kPlanes == 2) dot = (Raw)((VecI)dot_unsigned(dot, pair, right) << 7);
      if (kFormat == GemvFormat::q4_0) dot = (Raw)((VecI)dot + (VecI)for_each_row(x.lanes + 32 * g));
      dot = (Raw)dot_unsigned(dot, pair, kPlanes == 2 ? low : right);
      sums[v] = sums[v] + __builtin_convertvector((VecI)dot, VecF) * factors_of(pairs, v);
    }
    TENSURE_UNROLL
    for (int r = 0; r < kRowsTogether; ++r) p[r] += kBytes;
  }
  float least[2 * kRowsTogether];
  memcpy(least, &leasts, sizeof least);
  Sums each[kRowsTogether];
  memcpy(each, sums, sizeof each);
  TENSURE_UNROLL
  for (int r = 0; r < kRowsTogether; ++r) {
    float value = fold(each[r]);
    if (kMin) value = value + least[2 * r + 1];
    job.y[row + r * apart] = value;
  }
}
#endif
