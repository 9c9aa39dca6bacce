// Fast and fine arithmetic for several rows of x, own layouts: a tile of two vectors of weight rows and up to kTileRows rows of x.
//
// Included by fast-inl.h, hence twice and without a guard. A lane is a row of weights. What bounds the loop on a core with two
// 8-bit dot products a cycle is the multipliers: eight dot products and, of the definition, two or three multiplications for a
// run of 32 columns. Halves of bytes are taken apart once for all rows of x, a broadcast of x serves both vectors, and each sum
// of integers is one chain, begun with what the format takes away: the chains of a tile hide the latency, with no sum of sums.

// Sums of integers and floats of a tile live in registers: 2 x 2 x 6 of 32 (2 x 3 x 4 with two planes), of 16 half as many rows.
#if defined(__AVX512F__) || defined(__aarch64__)
template <int kPlanes> constexpr int kTileRows = kPlanes == 1 ? 6 : 4;
#else
template <int kPlanes> constexpr int kTileRows = kPlanes == 1 ? 3 : 2;
#endif

// 32 columns of weights in 0..15, four at a time. Without 8-bit dot products on x86 the eight sums of pairs are at most
// 8 * 2 * 15 * 127 = 30480: they stay in 16 bits up to the end.
#if defined(__SSSE3__) && !defined(TENSURE_GEMV_VNNI)
inline Raw run_begin(int32_t) { return Raw{}; }
#if defined(__AVX512BW__)
inline Raw run_add(Raw sum, Raw w, Raw x) { return in_register(_mm512_add_epi16(sum, _mm512_maddubs_epi16(w, x))); }
inline Raw run_end(Raw sum) { return _mm512_madd_epi16(sum, _mm512_set1_epi16(1)); }
#elif defined(__AVX2__)
inline Raw run_add(Raw sum, Raw w, Raw x) { return in_register(_mm256_add_epi16(sum, _mm256_maddubs_epi16(w, x))); }
inline Raw run_end(Raw sum) { return _mm256_madd_epi16(sum, _mm256_set1_epi16(1)); }
#else
inline Raw run_add(Raw sum, Raw w, Raw x) { return in_register(_mm_add_epi16(sum, _mm_maddubs_epi16(w, x))); }
inline Raw run_end(Raw sum) { return _mm_madd_epi16(sum, _mm_set1_epi16(1)); }
#endif
inline VecI run_end(Raw sum, int32_t less) { return (VecI)run_end(sum) + less; }
#else
inline Raw run_begin(int32_t less) { return (Raw)(VecI{} + less); }
inline Raw run_add(Raw sum, Raw w, Raw x) { return (Raw)dot_unsigned(sum, w, x); }
inline VecI run_end(Raw sum, int32_t) { return (VecI)sum; }
#endif

// kVecs vectors of weight rows from `row`, rows b0 to b0 + kBatch of x. kGroups: scales belong to groups of columns, not to rows.
template <GemvFormat kFormat, bool kGroups, int kBatch, int kVecs, int kPlanes>
inline void tile(const GemvJob &job, const GemvActivations &place, int64_t row, int64_t b0, int64_t row_end) {
  constexpr bool kInt8 = kFormat == GemvFormat::int8, kMin = kFormat == GemvFormat::int4_min;
  constexpr int kUnit = kInt8 ? 512 : 256;  // bytes of 32 columns
  constexpr int kScale = kInt8 ? 4 : 2;     // bytes of a scale
  const GemvWeights &w = job.weights;
  const int64_t units = gemv_stored_cols(kFormat, w.num_cols, w.group) / 32;
  const int64_t groups = kGroups ? units * 32 / w.group : 1;
  const uint8_t *x[kBatch];
  TENSURE_UNROLL
  for (int b = 0; b < kBatch; ++b) x[b] = job.activations + (b0 + b) * place.bytes;
  const uint8_t *q[kVecs], *scales[kVecs], *minimums[kVecs];
  TENSURE_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const int64_t block = (row + v * kLanes) / kRows, lane = (row + v * kLanes) % kRows;
    q[v] = w.q + block * units * kUnit + lane * 4;
    scales[v] = w.scales + (block * groups * kRows + lane) * kScale;
    minimums[v] = kMin ? w.minimums + (block * groups * kRows + lane) * kScale : nullptr;
  }
  VecF sums[kVecs][kBatch] = {};
  const int shift = w.group == 128 ? 2 : w.group == 64 ? 1 : 0;  // units to groups
  for (int64_t unit = 0; unit < units; ++unit) {
    Raw dots[kPlanes][kVecs][kBatch];
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      int32_t less = 0;  // taken away at the end where there are two planes: it belongs to their sum
      if (kPlanes == 1 && kFormat == GemvFormat::int4) less = int_at(x[b] + place.total, unit);
      if (kPlanes == 1 && kInt8 && kBias) less = int_at(x[b] + place.total, unit) * (kBias / 8);
      TENSURE_UNROLL
      for (int p = 0; p < kPlanes; ++p)
        TENSURE_UNROLL
        for (int v = 0; v < kVecs; ++v) dots[p][v][b] = kInt8 ? (Raw)(VecI{} + less) : run_begin(less);
    }
    TENSURE_UNROLL
    for (int four = 0; four < kUnit / 64; ++four) {
      VecI low[kVecs], high[kVecs];
      TENSURE_UNROLL
      for (int v = 0; v < kVecs; ++v) {
        low[v] = (VecI)in_register((Raw)load_as<VecI>(q[v] + kUnit * unit + 64 * four));
        if (!kInt8) {
          high[v] = low[v] >> 4 & 0x0f0f0f0f;
          low[v] = low[v] & 0x0f0f0f0f;
        }
      }
      TENSURE_UNROLL
      for (int b = 0; b < kBatch; ++b)
        TENSURE_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const Raw right = (Raw)(VecI{} + int_at(x[b] + p * place.low, 8 * unit + four));
          TENSURE_UNROLL
          for (int v = 0; v < kVecs; ++v)
            dots[p][v][b] = kInt8 ? in_register((Raw)dot_signed(dots[p][v][b], (Raw)low[v], right))
                                  : run_add(dots[p][v][b], (Raw)low[v], right);
        }
      if (kInt8) continue;
      TENSURE_UNROLL
      for (int b = 0; b < kBatch; ++b)
        TENSURE_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const Raw right = (Raw)(VecI{} + int_at(x[b] + p * place.low, 8 * unit + 4 + four));
          TENSURE_UNROLL
          for (int v = 0; v < kVecs; ++v) dots[p][v][b] = run_add(dots[p][v][b], (Raw)high[v], right);
        }
    }
    TENSURE_UNROLL
    for (int v = 0; v < kVecs; ++v) {
      VecF scale = {}, least = {};
      if constexpr (kInt8) {
        if (kGroups) scale = load_as<VecF>(scales[v] + (unit >> shift) * (kRows * kScale));
      } else {
        scale = load_halves(scales[v] + (unit >> shift) * (kRows * kScale));
        if (kMin) least = load_halves(minimums[v] + (unit >> shift) * (kRows * kScale));
      }
      TENSURE_UNROLL
      for (int b = 0; b < kBatch; ++b) {
        const bool takes = kFormat == GemvFormat::int4 || (kPlanes == 2 && kInt8 && kBias);
        const int32_t less = takes ? int_at(x[b] + place.total, unit) * (kInt8 ? kBias / 8 : 1) : 0;
        VecI dot = kInt8 ? (VecI)dots[0][v][b] : run_end(dots[0][v][b], kPlanes == 1 ? less : 0);
        if (kPlanes == 2) dot = (dot << 7) + (kInt8 ? (VecI)dots[1][v][b] : run_end(dots[1][v][b], 0)) + less;
        const float step = float_at(x[b] + place.scale, unit);
        const VecF factor = kGroups ? scale * step : step - VecF{};
        sums[v][b] = sums[v][b] + __builtin_convertvector(dot, VecF) * factor;
        if (kMin) sums[v][b] = sums[v][b] + least * float_at(x[b] + place.sum, unit);
      }
    }
  }
  TENSURE_UNROLL
  for (int v = 0; v < kVecs; ++v) {
    const int64_t first = row + v * kLanes, rows = row_end - first;
    const VecF scale = kGroups ? VecF{} : load_as<VecF>(scales[v]);
    TENSURE_UNROLL
    for (int b = 0; b < kBatch; ++b) {
      float *const y = job.y + (b0 + b) * job.y_stride + first;
      const VecF value = kGroups ? sums[v][b] : sums[v][b] * scale;
      if (rows >= kLanes) {
        store(y, value);
      } else if (rows > 0) {
        float out[kLanes];
        store(out, value);
        memcpy(y, out, static_cast<size_t>(rows) * sizeof(float));
      }
    }
  }
}

template <GemvFormat kFormat, bool kGroups, int kVecs, int kPlanes>
inline void tile_of(int batch, const GemvJob &job, const GemvActivations &place, int64_t row, int64_t b0, int64_t row_end) {
  switch (batch) {
    case 1: if constexpr (1 <= kTileRows<kPlanes>) return tile<kFormat, kGroups, 1, kVecs, kPlanes>(job, place, row, b0, row_end);
    case 2: if constexpr (2 <= kTileRows<kPlanes>) return tile<kFormat, kGroups, 2, kVecs, kPlanes>(job, place, row, b0, row_end);
    case 3: if constexpr (3 <= kTileRows<kPlanes>) return tile<kFormat, kGroups, 3, kVecs, kPlanes>(job, place, row, b0, row_end);
#if defined(__AVX512F__) || defined(__aarch64__)
    case 4: if constexpr (4 <= kTileRows<kPlanes>) return tile<kFormat, kGroups, 4, kVecs, kPlanes>(job, place, row, b0, row_end);
    case 5: if constexpr (5 <= kTileRows<kPlanes>) return tile<kFormat, kGroups, 5, kVecs, kPlanes>(job, place, row, b0, row_end);
    case 6: if constexpr (6 <= kTileRows<kPlanes>) return tile<kFormat, kGroups, 6, kVecs, kPlanes>(job, place, row, b0, row_end);
#endif
  }
}

// All rows of x for two vectors of weight rows, which stay in the cache; as many tiles as needed, as equal as can be.
template <GemvFormat kFormat, bool kGroups, int kPlanes>
inline void tiles(const GemvJob &job, int64_t row_begin, int64_t row_end) {
  const GemvActivations place = gemv_activations(job.weights.num_cols, kPlanes);
  const int64_t stored_end = (row_end + kRows - 1) / kRows * kRows, most = kTileRows<kPlanes>, parts = (job.batch + most - 1) / most;
  for (int64_t row = row_begin; row < stored_end; row += 2 * kLanes)
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t b0 = job.batch * part / parts;
      const int batch = static_cast<int>(job.batch * (part + 1) / parts - b0);
#if defined(__AVX512F__)
      if (row + kRows == stored_end) {
        tile_of<kFormat, kGroups, 1, kPlanes>(batch, job, place, row, b0, row_end);
        continue;
      }
#endif
      tile_of<kFormat, kGroups, 2, kPlanes>(batch, job, place, row, b0, row_end);
    }
}
