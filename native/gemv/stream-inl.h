// Fast and fine arithmetic for one row of x, own layouts: kBlocks blocks of 16 rows that lie `apart` blocks from each other run together, each a
// long stream for the memory.
//
// Included by fast-inl.h, hence twice and without a guard. A lane is a row of weights. Every block has two chains of dot products,
// and the chains of all blocks take turns: one after the other they would wait for each other's latency, for a core looks ahead
// less far among vector instructions than among others.

// Bytes to ask ahead, measured best of 1536 to 6144; and for scales, whose streams are an eighth as fast.
constexpr int stream_ahead(GemvFormat f) { return f == GemvFormat::int4 ? 3072 : 2048; }
constexpr int kScalesAhead = 1024;

template <GemvFormat kFormat, bool kGroups, int kBlocks, int kPlanes>
inline void stream(const GemvJob &job, const GemvActivations &place, int64_t block, int64_t apart, int64_t row_end) {
  constexpr bool kInt8 = kFormat == GemvFormat::int8, kMin = kFormat == GemvFormat::int4_min;
  constexpr int kUnit = kInt8 ? 512 : 256;             // bytes of 32 columns
  constexpr int kScales = kRows * (kInt8 ? 4 : 2);     // bytes of their scales
  const GemvWeights &w = job.weights;
  const int64_t units = gemv_stored_cols(kFormat, w.num_cols, w.group) / 32;
  const int64_t groups = kGroups ? units * 32 / w.group : 1;
  const int shift = w.group == 128 ? 2 : w.group == 64 ? 1 : 0;  // units to groups
  const Row x = row_of(job.activations, place, 0);
  const uint8_t *q[kBlocks], *scales[kBlocks], *minimums[kBlocks];
  TENSURE_UNROLL
  for (int s = 0; s < kBlocks; ++s) {
    const int64_t here = block + s * apart;
    q[s] = w.q + here * units * kUnit;
    scales[s] = w.scales + here * groups * kScales;
    minimums[s] = kMin ? w.minimums + here * groups * kScales : nullptr;
  }
  VecF sums[kBlocks][kParts] = {};
  for (int64_t unit = 0; unit < units; ++unit) {
    const int64_t scales_at = (unit >> shift) * kScales;
    TENSURE_UNROLL
    for (int s = 0; s < kBlocks; ++s) {
      TENSURE_UNROLL
      for (int line = 0; line < kUnit; line += 64) __builtin_prefetch(q[s] + unit * kUnit + stream_ahead(kFormat) + line, 0, 3);
      if (kGroups) __builtin_prefetch(scales[s] + scales_at + kScalesAhead, 0, 3);
      if (kMin) __builtin_prefetch(minimums[s] + scales_at + kScalesAhead, 0, 3);
    }
    TENSURE_UNROLL
    for (int part = 0; part < kParts; ++part) {
      VecI even[kPlanes][kBlocks] = {}, odd[kPlanes][kBlocks] = {};
      TENSURE_UNROLL
      for (int four = 0; four < 4; ++four) {
        VecI left[kPlanes], right[kPlanes];
        TENSURE_UNROLL
        for (int p = 0; p < kPlanes; ++p) {
          const int8_t *const plane = p ? x.low : x.q;
          left[p] = VecI{} + int_at(plane, 8 * unit + (kInt8 ? 2 * four : four));
          right[p] = VecI{} + int_at(plane, 8 * unit + (kInt8 ? 2 * four + 1 : four + 4));
        }
        TENSURE_UNROLL
        for (int s = 0; s < kBlocks; ++s) {
          const uint8_t *const at = q[s] + unit * kUnit + part * TENSURE_VECTOR_BYTES;
          if constexpr (kInt8) {
            const VecI first = load_as<VecI>(at + 128 * four), second = load_as<VecI>(at + 128 * four + 64);
            TENSURE_UNROLL
            for (int p = 0; p < kPlanes; ++p) {
              even[p][s] = (VecI)dot_signed((Raw)even[p][s], (Raw)first, (Raw)left[p]);
              odd[p][s] = (VecI)dot_signed((Raw)odd[p][s], (Raw)second, (Raw)right[p]);
            }
          } else {
            const VecI v = (VecI)in_register((Raw)load_as<VecI>(at + 64 * four));
            const VecI low = v & 0x0f0f0f0f, high = v >> 4 & 0x0f0f0f0f;
            TENSURE_UNROLL
            for (int p = 0; p < kPlanes; ++p) {
              even[p][s] = (VecI)dot_unsigned((Raw)even[p][s], (Raw)low, (Raw)left[p]);
              odd[p][s] = (VecI)dot_unsigned((Raw)odd[p][s], (Raw)high, (Raw)right[p]);
            }
          }
        }
      }
      TENSURE_UNROLL
      for (int s = 0; s < kBlocks; ++s) {
        VecF factor = float_at(x.scale, unit) - VecF{};
        if constexpr (kInt8) {
          if (kGroups) factor = load_as<VecF>(scales[s] + scales_at + part * kLanes * 4) * factor;
        } else {
          factor = load_halves(scales[s] + scales_at + part * kLanes * 2) * factor;
        }
        VecI dot = even[0][s] + odd[0][s];
        if (kPlanes == 2) dot = (dot << 7) + (even[kPlanes - 1][s] + odd[kPlanes - 1][s]);
        if (kFormat == GemvFormat::int4) dot += int_at(x.total, unit);
        if (kInt8 && kBias) dot += int_at(x.total, unit) * (kBias / 8);
        VecF &sum = sums[s][part];
        sum = sum + __builtin_convertvector(dot, VecF) * factor;
        if (kMin) sum = sum + load_halves(minimums[s] + scales_at + part * kLanes * 2) * float_at(x.sum, unit);
      }
    }
  }
  TENSURE_UNROLL
  for (int s = 0; s < kBlocks; ++s) {
    float out[kRows];
    TENSURE_UNROLL
    for (int part = 0; part < kParts; ++part) {
      VecF value = sums[s][part];
      if (!kGroups) value = value * load_as<VecF>(scales[s] + part * kLanes * 4);
      store(out + part * kLanes, value);
    }
    const int64_t row = (block + s * apart) * kRows;
    const int64_t rows = row_end - row < kRows ? row_end - row : kRows;
    memcpy(job.y + row, out, static_cast<size_t>(rows) * sizeof(float));
  }
}

template <GemvFormat kFormat, bool kGroups, int kPlanes>
inline void streams(const GemvJob &job, int64_t row_begin, int64_t row_end) {
  const GemvActivations place = gemv_activations(job.weights.num_cols, kPlanes);
  const int64_t begin = row_begin / kRows, end = (row_end + kRows - 1) / kRows, half = (end - begin) / 2;
  for (int64_t block = begin; block < begin + half; ++block)
    stream<kFormat, kGroups, 2, kPlanes>(job, place, block, half, row_end);
  if ((end - begin) % 2) stream<kFormat, kGroups, 1, kPlanes>(job, place, end - 1, 0, row_end);
}
