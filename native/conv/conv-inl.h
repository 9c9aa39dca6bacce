// The register tiles, written once and compiled by target.cc for every instruction set. No loop over tiles, no threads.
//
// Both tiles are the same thing turned round: a few scalars, broadcast, times a few vectors, into scalars x vectors
// accumulators that live in registers while all products of the outputs go by. In a channel tile the scalars are input
// values of `pixels` windows and the vectors are weights of neighbouring output channels; in an image tile the scalars are
// weights and the vectors are input values of neighbouring images. Where a product's input stands comes from a table of
// offsets, so that layout, dilation, groups and the im2win order are the table's business and never the loop's.
#pragma once

#include "common/activation-inl.h"
#include "conv/table.h"

namespace {

using tensure::Activation;
using tensure::ChannelTile;
using tensure::ConvTable;
using tensure::DepthwiseRow;
using tensure::Epilogue;
using tensure::ImageTile;

// --- epilogue ---

// Up to a vector of sums of one pixel, for channels that are neighbours in memory (stride 1) or not.
template <typename V> TENSURE_INLINE void finish(const Epilogue &to, V sum, int64_t at, int channel, int count) {
  constexpr int L = Lanes<V>::count;
  if (to.channel_stride == 1) {
    float *out = to.out + at + channel;
    if (count >= L) {
      if (to.bias) sum += load<V>(to.bias + channel);
      if (to.residual) sum += load<V>(to.residual + at + channel);
      store(out, activate(sum, to.activation));
    } else if constexpr (L > 1) {
      if (to.bias) sum += load_part(to.bias + channel, count);
      if (to.residual) sum += load_part(to.residual + at + channel, count);
      store_part(out, activate(sum, to.activation), count);
    }
    return;
  }
  if constexpr (L == 1) {
    if (to.bias) sum += to.bias[channel];
    if (to.residual) sum += to.residual[at + channel * to.channel_stride];
    to.out[at + channel * to.channel_stride] = activate(sum, to.activation);
  } else {
    const int valid = count < L ? count : L;
    if (to.bias) sum += load_part(to.bias + channel, valid);
    if (to.residual)
      for (int i = 0; i < valid; ++i) sum[i] += to.residual[at + (channel + i) * to.channel_stride];
    sum = activate(sum, to.activation);
    for (int i = 0; i < valid; ++i) to.out[at + (channel + i) * to.channel_stride] = sum[i];
  }
}

// The usual activations as two bounds, for ends that go straight from registers to memory; infinities stand for none.
template <typename V> struct Bounds {
  V low, high;
  TENSURE_INLINE explicit Bounds(Activation activation)
      : low(splat<V>(activation == Activation::none ? -__builtin_inff() : 0.0f)),
        high(splat<V>(activation == Activation::relu6 ? 6.0f : __builtin_inff())) {}
  TENSURE_INLINE static bool enough(const Epilogue &to) {
    return to.channel_stride == 1 && to.activation != Activation::silu;
  }
  TENSURE_INLINE V apply(V value) const {
    value = value < low ? low : value;
    return value > high ? high : value;
  }
};

// --- channel tiles ---

// The accumulators of a tile: MR pixels times NV vectors, and with HALF half a vector more.
template <typename V, int MR, int NV, bool HALF> struct Sums {
  static constexpr int kWidth = NV * Lanes<V>::count + (HALF ? 8 : 0);
  V whole[MR][NV];
  Vec8 half[HALF ? MR : 1];
};

// Any epilogue, of sums laid down as [pixels][width] with room for a vector behind them.
template <typename V> __attribute__((noinline)) void finish_tile(const ChannelTile &tile, const float *sums, int pixels, int width) {
  constexpr int L = Lanes<V>::count;
  for (int i = 0; i < pixels; ++i)
    for (int j = 0; j < tile.num_channels; j += L)
      finish(tile.to, load<V>(sums + i * width + j), tile.out_at[i], j, tile.num_channels - j);
}

// The sums, addresses worked out beforehand: one offset a product, one base a pixel.
template <typename V, int MR, int NV, bool HALF>
TENSURE_INLINE void add_products(const ChannelTile &tile, Sums<V, MR, NV, HALF> &sum) {
  constexpr int L = Lanes<V>::count;
  const float *x[MR];
#pragma GCC unroll 16
  for (int i = 0; i < MR; ++i) x[i] = tile.x[i];
  const float *w = tile.w;
  const float *next = tile.next;
  const int64_t step = tile.step;
  const int64_t *offset = tile.offsets;
  for (const int64_t *end = offset + tile.num_products; offset != end; ++offset) {
    const int64_t at = *offset;
    // A narrow tile has no load to spare; one of a single pixel waits for nothing but its weights.
    if constexpr (NV >= 3 && MR > 1) __builtin_prefetch(next, 0, 2);
    if constexpr (NV >= 3 && MR == 1) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) __builtin_prefetch(next + L * j);
    }
    next += step;
    V weights[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) weights[j] = load<V>(w + L * j);
    Vec8 half_weights;
    if constexpr (HALF) half_weights = load<Vec8>(w + L * NV);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const V value = splat<V>(x[i][at]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sum.whole[i][j] = fused(value, weights[j], sum.whole[i][j]);
      if constexpr (HALF) sum.half[i] = fused(lower_half(value), half_weights, sum.half[i]);
    }
    w += sum.kWidth;
  }
}

// The same sums in the same order with every address worked out from indices for every product (NHWC). The empty
// assembly statements keep the compiler from hoisting what this variant exists to leave in the loop.
template <typename V, int MR, int NV>
TENSURE_INLINE void add_products_unhoisted(const ChannelTile &tile, Sums<V, MR, NV, false> &sum) {
  constexpr int L = Lanes<V>::count;
  const tensure::Unhoisted &at = *tile.unhoisted;
  for (int64_t u = 0; u < at.kernel_h; ++u)
    for (int64_t v = 0; v < at.kernel_w; ++v)
      for (int64_t r = 0; r < at.channels; ++r) {
        int64_t product = (u * at.kernel_w + v) * at.channels + r;
        __asm__ volatile("" : "+r"(product));
        const float *w = tile.w + product * (L * NV);
        V weights[NV];
#pragma GCC unroll 4
        for (int j = 0; j < NV; ++j) weights[j] = load<V>(w + L * j);
#pragma GCC unroll 16
        for (int i = 0; i < MR; ++i) {
          int64_t row = at.pixel_row[i] + u * at.dilation_h, column = at.pixel_column[i] + v * at.dilation_w;
          __asm__ volatile("" : "+r"(row), "+r"(column));
          const V value = splat<V>(at.x[row * at.row + column * at.column + r]);
#pragma GCC unroll 4
          for (int j = 0; j < NV; ++j) sum.whole[i][j] = fused(value, weights[j], sum.whole[i][j]);
        }
      }
}

// A tile's sums with bias, `more` (a residual) and bounds, each `put` where it belongs.
template <typename V, int MR, int NV, bool HALF, typename More, typename Put>
TENSURE_INLINE void end_tile(const ChannelTile &tile, const Sums<V, MR, NV, HALF> &sum, More more, Put put) {
  constexpr int L = Lanes<V>::count;
  const Epilogue &to = tile.to;
  const Bounds<V> bounds(to.activation);
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    const V bias = to.bias ? load<V>(to.bias + j * L) : splat<V>(-0.0f);  // adding -0 changes nothing
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const int64_t at = tile.out_at[i] + j * L;
      put(to.out + at, bounds.apply(more(at, sum.whole[i][j] + bias)));
    }
  }
  if constexpr (HALF) {
    const Bounds<Vec8> half_bounds(to.activation);
    const Vec8 bias = to.bias ? load<Vec8>(to.bias + NV * L) : splat<Vec8>(-0.0f);
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
      const int64_t at = tile.out_at[i] + NV * L;
      put(to.out + at, half_bounds.apply(more(at, sum.half[i] + bias)));
    }
  }
}

template <typename V, int MR, int NV, bool HOISTED, bool HALF = false> void channel_tile(const ChannelTile &tile) {
  constexpr int L = Lanes<V>::count, W = Sums<V, MR, NV, HALF>::kWidth;
  Sums<V, MR, NV, HALF> sum;
  const auto each = [&sum](float *at, auto f) TENSURE_LAMBDA_INLINE {
#pragma GCC unroll 16
    for (int i = 0; i < MR; ++i) {
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) f(at + i * W + j * L, sum.whole[i][j]);
      if constexpr (HALF) f(at + i * W + NV * L, sum.half[i]);
    }
  };
  if (tile.first)
    each(nullptr, [](float *, auto &v) TENSURE_LAMBDA_INLINE { v = plain<decltype(v)>{}; });
  else
    each(tile.partial, [](float *p, auto &v) TENSURE_LAMBDA_INLINE { v = load<plain<decltype(v)>>(p); });
  if constexpr (HOISTED)
    add_products<V, MR, NV, HALF>(tile, sum);
  else
    add_products_unhoisted<V, MR, NV>(tile, sum);
  const auto put = [](float *p, const auto &v) TENSURE_LAMBDA_INLINE { store(p, v); };
  if (!tile.last) return each(tile.partial, put);
  const Epilogue &to = tile.to;
  if (tile.num_channels == W && Bounds<V>::enough(to)) {
    // The usual ends, straight from registers; three copies, so that none asks in its inner loop.
    const auto same = [](int64_t, auto v) TENSURE_LAMBDA_INLINE { return v; };
    const auto write = [](float *out, auto v) TENSURE_LAMBDA_INLINE { store(out, v); };
    if (to.residual)
      return end_tile<V, MR, NV, HALF>(
          tile, sum, [&to](int64_t at, auto v) TENSURE_LAMBDA_INLINE { return v + load<decltype(v)>(to.residual + at); }, write);
    if (to.streams)
      return end_tile<V, MR, NV, HALF>(tile, sum, same, [](float *out, auto v) TENSURE_LAMBDA_INLINE { stream(out, v); });
    return end_tile<V, MR, NV, HALF>(tile, sum, same, write);
  }
  float spilled[MR * W + L];
  each(spilled, put);
  finish_tile<V>(tile, spilled, MR, W);
}

// --- image tiles ---

template <typename V, int FR, int NC, bool WHOLE> TENSURE_INLINE void image_tile_body(const ImageTile &tile) {
  const int part = tile.num_images;
  const auto get = [part](const float *p) TENSURE_LAMBDA_INLINE { return WHOLE ? load<V>(p) : load_part_of<V>(p, part); };
  V sum[FR][NC];
#pragma GCC unroll 4
  for (int i = 0; i < FR; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < NC; ++j) sum[i][j] = splat<V>(0.0f);
  const float *x[NC];
#pragma GCC unroll 6
  for (int j = 0; j < NC; ++j) x[j] = tile.x[j];
  const float *w = tile.w;
  const int64_t *offset = tile.offsets;
  for (const int64_t *end = offset + tile.num_products; offset != end; ++offset) {
    const int64_t at = *offset;
    V values[NC];
#pragma GCC unroll 6
    for (int j = 0; j < NC; ++j) values[j] = get(x[j] + at);
#pragma GCC unroll 4
    for (int i = 0; i < FR; ++i) {
      const V weight = splat<V>(w[i]);
#pragma GCC unroll 6
      for (int j = 0; j < NC; ++j) sum[i][j] = fused(values[j], weight, sum[i][j]);
    }
    w += FR;
  }
  V spilled[FR * NC];
#pragma GCC unroll 4
  for (int i = 0; i < FR; ++i)
#pragma GCC unroll 6
    for (int j = 0; j < NC; ++j) spilled[i * NC + j] = sum[i][j];
  const Epilogue &to = tile.to;
#pragma GCC unroll 1
  for (int i = 0; i < FR; ++i)
#pragma GCC unroll 1
    for (int j = 0; j < NC; ++j) {
      V value = spilled[i * NC + j];
      const int64_t at = tile.out_at[j] + i * to.channel_stride;
      if (to.bias) value += splat<V>(to.bias[i]);
      if (to.residual) value += get(to.residual + at);
      value = activate(value, to.activation);
      if (WHOLE)
        store(to.out + at, value);
      else
        store_part(to.out + at, value, part);
    }
}

template <typename V, int FR, int NC> void image_tile(const ImageTile &tile) {
  if (tile.num_images == Lanes<V>::count)
    image_tile_body<V, FR, NC, true>(tile);
  else
    image_tile_body<V, FR, NC, false>(tile);
}

// --- depthwise ---

// Lanes are channels; Q output pixels share each tap's weights. Taps in order (u, v), all of them: where the input
// ends, zeros are read, so that every output adds the same products whatever rows it is computed with.
template <int Q, bool WHOLE, bool BORDER> TENSURE_INLINE void depthwise_pixels(const DepthwiseRow &row, int64_t column, int64_t channel, int part) {
  const auto get = [part](const float *p) TENSURE_LAMBDA_INLINE { return WHOLE ? load<VecF>(p) : load_part(p, part); };
  const int64_t padded = (row.channels + kLanes - 1) / kLanes * kLanes;
  VecF sum[Q];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) sum[q] = VecF{};
  const float *w = row.w + channel;
  for (int64_t u = 0; u < row.kernel_h; ++u) {
    const int64_t step = row.columns[u];
    const float *base = row.rows[u] + channel;
    for (int64_t v = 0; v < row.kernel_w; ++v, w += padded) {
      const VecF weight = load<VecF>(w);
      const int64_t first = column * row.stride_w + v * row.dilation_w - row.pad_left;
      const float *p = base + first * step;
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) {
        if (BORDER) {
          const int64_t at = first + q * row.stride_w;
          p = at < 0 || at >= row.width ? row.zeros + channel : base + at * step;
          sum[q] = fused(get(p), weight, sum[q]);
        } else {
          sum[q] = fused(get(p + q * row.stride_w * step), weight, sum[q]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q)
    finish(row.to, sum[q], row.out_at + (column + q) * row.channels, static_cast<int>(channel),
           WHOLE ? kLanes : part);
}

template <int Q, bool BORDER> void depthwise_strip(const DepthwiseRow &row, int64_t column) {
  int64_t channel = row.first_channel;
  for (; channel + kLanes <= row.end_channel; channel += kLanes)
    depthwise_pixels<Q, true, BORDER>(row, column, channel, kLanes);
  if (channel < row.end_channel)
    depthwise_pixels<Q, false, BORDER>(row, column, channel, static_cast<int>(row.end_channel - channel));
}

// The same sums in the same order for a filter KW wide, stride S, no dilation: an input vector is loaded once for all of the
// Q outputs it meets.
template <int KW, int S, int Q, bool WHOLE, bool BORDER>
TENSURE_INLINE void sliding_pixels(const DepthwiseRow &row, const Bounds<VecF> *bounds, int64_t column, int64_t channel,
                                   int part) {
  constexpr int kColumns = (Q - 1) * S + KW;
  const auto get = [part](const float *p) TENSURE_LAMBDA_INLINE { return WHOLE ? load<VecF>(p) : load_part(p, part); };
  const int64_t padded = (row.channels + kLanes - 1) / kLanes * kLanes;
  const int64_t first = column * S - row.pad_left;
  VecF sum[Q];
#pragma GCC unroll 8
  for (int q = 0; q < Q; ++q) sum[q] = VecF{};
  const float *w = row.w + channel;
  for (int64_t u = 0; u < row.kernel_h; ++u, w += KW * padded) {
    const int64_t step = row.columns[u];
    const float *base = row.rows[u] + channel, *p = base + first * step;
    VecF x[kColumns];
#pragma GCC unroll 16
    for (int k = 0; k < kColumns; ++k) {
      if (BORDER)
        x[k] = get(first + k < 0 || first + k >= row.width ? row.zeros + channel : base + (first + k) * step);
      else
        x[k] = get(p + k * step);
    }
#pragma GCC unroll 8
    for (int v = 0; v < KW; ++v) {
      const VecF weight = load<VecF>(w + v * padded);
#pragma GCC unroll 8
      for (int q = 0; q < Q; ++q) sum[q] = fused(x[q * S + v], weight, sum[q]);
    }
  }
  if (WHOLE && bounds) {
    const VecF bias = row.to.bias ? load<VecF>(row.to.bias + channel) : splat<VecF>(-0.0f);
    float *out = row.to.out + row.out_at + column * row.channels + channel;
#pragma GCC unroll 8
    for (int q = 0; q < Q; ++q) store(out + q * row.channels, bounds->apply(sum[q] + bias));
    return;
  }
#pragma GCC unroll 1
  for (int q = 0; q < Q; ++q)
    finish(row.to, sum[q], row.out_at + (column + q) * row.channels, static_cast<int>(channel), WHOLE ? kLanes : part);
}

template <int KW, int S, int Q, bool BORDER>
void sliding_strip(const DepthwiseRow &row, const Bounds<VecF> *bounds, int64_t column) {
  int64_t channel = row.first_channel;
  for (; channel + kLanes <= row.end_channel; channel += kLanes)
    sliding_pixels<KW, S, Q, true, BORDER>(row, bounds, column, channel, kLanes);
  if (channel < row.end_channel)
    sliding_pixels<KW, S, Q, false, BORDER>(row, bounds, column, channel, static_cast<int>(row.end_channel - channel));
}

// The output columns [low, high) whose whole window lies inside the row.
struct Inside {
  int64_t low, high;
};
Inside inside_of(const DepthwiseRow &row) {
  const int64_t low = (row.pad_left + row.stride_w - 1) / row.stride_w;
  const int64_t room = row.width + row.pad_left - (row.kernel_w - 1) * row.dilation_w;
  const int64_t high = room <= 0 ? 0 : (room + row.stride_w - 1) / row.stride_w;
  const int64_t begin = low < row.end ? low : row.end;
  const int64_t end = high < row.end ? high : row.end;
  return {begin, end > begin ? end : begin};
}

// The strip of `size` columns, at most Q.
template <int KW, int S, int Q>
void sliding_strip_of(const DepthwiseRow &row, const Bounds<VecF> *bounds, bool border, int64_t column, int64_t size) {
  if constexpr (Q > 1)
    if (size < Q) return sliding_strip_of<KW, S, Q - 1>(row, bounds, border, column, size);
  if (border)
    sliding_strip<KW, S, Q, true>(row, bounds, column);
  else
    sliding_strip<KW, S, Q, false>(row, bounds, column);
}

template <int KW, int S> void sliding_row(const DepthwiseRow &row) {
  constexpr int Q = kRegisters == 32 || S == 1 ? 4 : 2;
  const Inside inside = inside_of(row);
  const Bounds<VecF> common(row.to.activation), *bounds = Bounds<VecF>::enough(row.to) && !row.to.residual ? &common : nullptr;
  // Even strips: 7 columns are 3 + 4.
  const int64_t count = row.end - row.begin, strips = (count + Q - 1) / Q;
  for (int64_t i = 0; i < strips; ++i) {
    const int64_t begin = row.begin + count * i / strips, end = row.begin + count * (i + 1) / strips;
    sliding_strip_of<KW, S, Q>(row, bounds, begin < inside.low || end > inside.high, begin, end - begin);
  }
}

void depthwise_row(const DepthwiseRow &row) {
  if (row.dilation_w == 1 && row.stride_w <= 2) {
    if (row.kernel_w == 3) return row.stride_w == 1 ? sliding_row<3, 1>(row) : sliding_row<3, 2>(row);
    if (row.kernel_w == 5) return row.stride_w == 1 ? sliding_row<5, 1>(row) : sliding_row<5, 2>(row);
  }
  const Inside inside = inside_of(row);
  int64_t column = row.begin;
  for (; column < inside.low; ++column) depthwise_strip<1, true>(row, column);
  for (; column + 6 <= inside.high; column += 6) depthwise_strip<6, false>(row, column);
  for (; column < inside.high; ++column) depthwise_strip<1, false>(row, column);
  for (; column < row.end; ++column) depthwise_strip<1, true>(row, column);
}

// --- Winograd's way back ---

// One tile of one panel of channels, with the epilogue (the way in is in winograd-inl.h).
void winograd_output(const WinogradOutput &tile) {
  for (int channel = 0; channel < tile.num_channels; channel += kLanes) {
    VecF half[4][6];
#pragma GCC unroll 6
    for (int j = 0; j < 6; ++j) {
      VecF m[6], y[4];
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) m[i] = load<VecF>(tile.m + (i * 6 + j) * tile.matrix_stride + channel);
      output_column(m, y);
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) half[i][j] = y[i];
    }
    for (int i = 0; i < tile.rows; ++i) {
      VecF y[4];
      output_column(half[i], y);
      for (int j = 0; j < tile.columns; ++j)
        finish(tile.to, y[j], tile.out_at + i * tile.row_stride + j * tile.column_stride, channel,
               tile.num_channels - channel);
    }
  }
}

// --- the table ---

// Largest tiles whose accumulators, vectors and one broadcast fit the registers; without fused multiply-add a product
// needs one more.
#if defined(__FMA__) || defined(__aarch64__)
constexpr int kSpare = 1;
#else
constexpr int kSpare = 2;
#endif
// More than ten windows would keep their addresses on the stack where there are 16 general registers.
#if defined(__x86_64__)
constexpr int kMostPixels = 10;
#else
constexpr int kMostPixels = tensure::kMaxPixels;
#endif
constexpr int largest(int vectors) {
  int pixels = 0;
  while ((pixels + 1) * vectors + vectors + kSpare <= kRegisters && pixels < kMostPixels) ++pixels;
  return pixels;
}
constexpr int kTileVectors = kRegisters == 32 ? 4 : 3;
constexpr int kFilters = 4;
constexpr int kColumns = kRegisters == 32 ? 6 : kSpare == 1 ? 3 : 2;

template <typename V, int NV, int MR, int MOST> constexpr void fill_pixels(tensure::ChannelKernel (&hoisted)[MOST], tensure::ChannelKernel (&unhoisted)[MOST]) {
  if constexpr (MR > 0) {
    hoisted[MR] = channel_tile<V, MR, NV, true>;
    unhoisted[MR] = channel_tile<V, MR, NV, false>;
    fill_pixels<V, NV, MR - 1>(hoisted, unhoisted);
  }
}
// Tiles of whole vectors and a half; as wide as the next whole number of vectors, they hold as many pixels.
template <int NV, int MR> constexpr void fill_half(tensure::ChannelKernel (&kernels)[tensure::kMaxPixels + 1]) {
  if constexpr (MR > 0 && kHasHalf) {
    kernels[MR] = channel_tile<VecF, MR, NV, true, true>;
    fill_half<NV, MR - 1>(kernels);
  }
}
template <typename V, int FR, int NC> constexpr void fill_columns(tensure::ImageKernel (&row)[tensure::kMaxColumns + 1]) {
  if constexpr (NC > 0) {
    row[NC] = image_tile<V, FR, NC>;
    fill_columns<V, FR, NC - 1>(row);
  }
}
template <typename V, int FR> constexpr void fill_filters(tensure::ImageKernel (&rows)[tensure::kMaxFilters + 1][tensure::kMaxColumns + 1]) {
  if constexpr (FR > 0) {
    fill_columns<V, FR, kColumns>(rows[FR]);
    fill_filters<V, FR - 1>(rows);
  }
}

constexpr ConvTable make_table() {
  ConvTable table{};
  table.lanes = kLanes;
  table.max_vectors = kTileVectors;
  for (int vectors = 1; vectors <= kTileVectors; ++vectors) table.max_pixels[vectors] = largest(vectors);
  fill_pixels<VecF, 1, largest(1)>(table.channel[1][1], table.channel[0][1]);
  fill_pixels<VecF, 2, largest(2)>(table.channel[1][2], table.channel[0][2]);
  fill_pixels<VecF, 3, largest(3)>(table.channel[1][3], table.channel[0][3]);
  if constexpr (kTileVectors >= 4) fill_pixels<VecF, 4, largest(4)>(table.channel[1][4], table.channel[0][4]);
  table.has_half = kHasHalf;
  fill_half<1, largest(2)>(table.channel_half[1]);
  fill_half<2, largest(3)>(table.channel_half[2]);
  fill_half<3, largest(4)>(table.channel_half[3]);
  fill_pixels<float, 1, tensure::kScalarPixels>(table.scalar[1][1], table.scalar[0][1]);
  fill_pixels<float, 2, tensure::kScalarPixels>(table.scalar[1][2], table.scalar[0][2]);
  fill_pixels<float, 3, tensure::kScalarPixels>(table.scalar[1][3], table.scalar[0][3]);
  fill_pixels<float, 4, tensure::kScalarPixels>(table.scalar[1][4], table.scalar[0][4]);
  table.max_filters = kFilters;
  table.max_columns = kColumns;
  fill_filters<VecF, kFilters>(table.image);
  table.lanes_8 = Lanes<Vec8>::count;
  fill_filters<Vec8, kFilters>(table.image_8);
  table.depthwise = depthwise_row;
  table.winograd_input = winograd_input;
  table.winograd_output = winograd_output;
  return table;
}

}  // namespace
