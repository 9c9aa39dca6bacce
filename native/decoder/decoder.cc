// The executor of a stage: its layers one after the other, each phase over the team's threads. Compiled for the baseline.
#include "decoder/decoder.h"

#include <algorithm>
#include <cstring>
#include <initializer_list>

#include "common/carver.h"
#include "common/half-inl.h"
#include "common/isa.h"
#include "common/threads.h"
#include "decoder/table.h"
#include "dequantize/dequantize.h"
#include "gemv/table.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const DecoderTable decoder_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &decoder_##isa,
static const DecoderTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

namespace {

// Below this many multiply-adds a phase is not worth a second thread.
constexpr int64_t kProductsPerTask = 16 << 10;

// What a matrix multiplies: rows of floats, and the same rounded where some matrix wants that.
struct Rows {
  float *x;
  int64_t stride;
  uint8_t *rounded;
};

struct Buffers {
  Rows in;        // what a norm or attention gave
  Rows gated;     // [R, F]: silu(gate) * up
  float *qkv;     // [R, (H + 2G) E]
  float *gate;    // [R, F]
  float *sum;     // [R, D]: what a matrix adds to the stream
  float *scores;  // [threads, heads of a group, score_stride]
  int64_t qkv_width, score_stride;
};

int64_t rounded_bytes(GemvArithmetic arithmetic, int64_t num_cols) {
  return arithmetic == GemvArithmetic::exact ? 0 : gemv_activation_bytes(arithmetic, num_cols, 1);
}

Buffers carve(Carver &carver, const Decoder &decoder, int64_t num_rows, int num_threads) {
  const DecoderShape &s = decoder.shape;
  const int64_t width = std::max(s.width, s.heads * s.head_dim), widest = std::max(width, s.ffn);
  Buffers b;
  b.in.stride = round_up(width, 16);
  b.in.x = carver.take<float>(num_rows * b.in.stride);
  const int64_t rounded = std::max(rounded_bytes(decoder.arithmetic, widest), rounded_bytes(decoder.head_arithmetic, s.width));
  b.in.rounded = carver.take<uint8_t>(rounded * num_rows);
  b.qkv_width = (s.heads + 2 * s.kv_heads) * s.head_dim;
  // One place, one tenant after the other: queries, keys and values until attention is done; gates until they are multiplied;
  // and what o or down gives.
  b.qkv = b.gate = b.sum = carver.take<float>(num_rows * std::max({b.qkv_width, s.ffn, s.width}));
  b.gated = {carver.take<float>(num_rows * s.ffn), s.ffn, b.in.rounded};
  b.score_stride = round_up(s.context, kPageTokens);
  b.scores = carver.take<float>(num_threads * (s.heads / s.kv_heads) * b.score_stride);
  return b;
}

// One row of gemv's own layouts, decoded: each value as gemv's "exact" decodes it.
void look_up_packed(const GemvWeights &w, int64_t row, float *out) {
  const int64_t cols = gemv_stored_cols(w.format, w.num_cols, w.group), block = row / kGemvRows, lane = row % kGemvRows;
  const int64_t group = w.group ? w.group : cols, groups = cols / group;
  const auto scale_at = [&](const uint8_t *scales, int64_t k) {
    const int64_t index = (block * groups + k / group) * kGemvRows + lane;
    if (w.format != GemvFormat::int8) return load_half(scales + 2 * index);
    float scale;
    std::memcpy(&scale, scales + 4 * index, 4);
    return scale;
  };
  for (int64_t k = 0; k < w.num_cols; ++k) {
    const float scale = scale_at(w.scales, k);
    if (w.format == GemvFormat::int8) {
      const int8_t q = static_cast<int8_t>(w.q[block * cols * kGemvRows + k / 4 * 64 + lane * 4 + k % 4]);
      out[k] = static_cast<float>(q) * scale;
      continue;
    }
    // 64 bytes are a word of each row: its low halves are columns 4 w to 4 w + 3 of 32, its high halves those 16 further on.
    const int64_t within = k % 32, word = within % 16 / 4;
    const uint8_t pair = w.q[block * cols * (kGemvRows / 2) + k / 32 * 256 + word * 64 + lane * 4 + within % 4];
    const float q = static_cast<float>(within < 16 ? pair & 15 : pair >> 4);
    out[k] = w.format == GemvFormat::int4 ? (q - 8.0f) * scale : q * scale + scale_at(w.minimums, k);
  }
}

class Run {
 public:
  Run(const Decoder &decoder, const DecoderStep &step, void *workspace, int num_threads)
      : decoder_(decoder),
        shape_(decoder.shape),
        step_(step),
        threads_(num_threads),
        table_(*kTables[isa_in_use()]),
        kv_(kv_layout(decoder.kv_format, shape_.head_dim)),
        page_bytes_(kv_page_bytes(decoder.kv_format, shape_.head_dim, shape_.kv_heads,
                                  static_cast<int64_t>(decoder.layers.size()))) {
    Carver carver(workspace);
    buffers_ = carve(carver, decoder, step.num_rows, num_threads);
  }

  void run() {
    if (step_.num_rows == 0) return;
    if (decoder_.has_embed) embed();
    use(decoder_.arithmetic);
    for (size_t i = 0; i < decoder_.layers.size(); ++i) {
      attention(decoder_.layers[i], static_cast<int64_t>(i));
      feed_forward(decoder_.layers[i]);
    }
    if (decoder_.has_head) head();
  }

 private:
  int64_t rows() const { return step_.num_rows; }

  // f(row) for every row, on more than one thread only if there is more than one row.
  template <typename F> void for_each_row(int64_t count, F f) {
    for_each_task(count, static_cast<int>(std::min<int64_t>(threads_, count)), [&](int64_t row, int) { f(row); });
  }

  // f(which matrix, first row, last row) over blocks of 16 rows of matrices that read the same input.
  template <typename F> void for_each_block(std::initializer_list<const DecoderMatrix *> matrices, int64_t batch, F f) {
    int64_t blocks = 0, products = 0;
    for (const DecoderMatrix *m : matrices) {
      blocks += ceil_div(m->weights.num_rows, kGemvRows);
      products += m->weights.num_rows * m->weights.num_cols * batch;
    }
    const int64_t wanted = threads_ == 1 ? 1 : std::min<int64_t>(products / kProductsPerTask, batch > 4 ? 8 * threads_ : threads_);
    const int64_t parts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(blocks, 1));
    for_each_task(parts, threads_, [&](int64_t part, int) {
      int64_t begin = blocks * part / parts, end = blocks * (part + 1) / parts;
      int which = 0;
      for (const DecoderMatrix *m : matrices) {
        const int64_t here = ceil_div(m->weights.num_rows, kGemvRows);
        if (begin < here && end > 0)
          f(which, std::max<int64_t>(begin, 0) * kGemvRows, std::min(std::min(end, here) * kGemvRows, m->weights.num_rows));
        begin -= here;
        end -= here;
        ++which;
      }
    });
  }

  bool rounds(const DecoderMatrix &m) const { return m.kind == MatrixKind::gemv && arithmetic_ != GemvArithmetic::exact; }

  void round(std::initializer_list<const DecoderMatrix *> readers, const Rows &in, int64_t row) const {
    if (std::none_of(readers.begin(), readers.end(), [&](const DecoderMatrix *m) { return rounds(*m); })) return;
    const int64_t cols = (*readers.begin())->weights.num_cols;
    gemv_.quantize(in.x + row * in.stride, cols, in.rounded + row * rounded_bytes(arithmetic_, cols));
  }

  void multiply(const DecoderMatrix &m, const Rows &in, int64_t batch, float *y, int64_t y_stride, int64_t begin, int64_t end) const {
    if (m.kind != MatrixKind::gemv) {
      table_.plain_rows({static_cast<int>(m.kind), m.data, m.weights.num_cols, in.x, batch, in.stride, y, y_stride}, begin, end);
      return;
    }
    const GemvJob job{m.weights, in.x, in.stride, in.rounded, batch, y, y_stride};
    gemv_.multiply(job, begin, end);
  }

  void norm(const float *hidden, const float *weight, int64_t row) const {
    table_.rms_norm(hidden, weight, shape_.width, shape_.rms_eps, buffers_.in.x + row * buffers_.in.stride);
  }

  // hidden += what the matrix gives.
  void add_product(const DecoderMatrix &m, const Rows &in) {
    for_each_block({&m}, rows(), [&](int, int64_t begin, int64_t end) {
      multiply(m, in, rows(), buffers_.sum, shape_.width, begin, end);
      for (int64_t row = 0; row < rows(); ++row) {
        const int64_t at = row * shape_.width + begin;
        if (shape_.residual_multiplier == 1.0f)
          table_.add(step_.hidden + at, buffers_.sum + at, end - begin);
        else
          table_.add_scaled(step_.hidden + at, buffers_.sum + at, shape_.residual_multiplier, end - begin);
      }
    });
  }

  void embed() {
    for_each_row(rows(), [&](int64_t row) {
      float *const out = step_.hidden + row * shape_.width;
      look_up(decoder_.embed, step_.tokens[row], out);
      if (shape_.embedding_multiplier != 1.0f) table_.scale(out, shape_.embedding_multiplier, shape_.width);
    });
  }

  void look_up(const DecoderMatrix &m, int64_t row, float *out) const {
    const GemvWeights &w = m.weights;
    if (m.kind != MatrixKind::gemv) {
      const int64_t bytes = m.kind == MatrixKind::f32 ? 4 : 2;
      table_.widen(static_cast<int>(m.kind), m.data + row * w.num_cols * bytes, w.num_cols, out);
      return;
    }
    if (!gemv_is_gguf(w.format)) {
      look_up_packed(w, row, out);
      return;
    }
    const DequantizeEncoding encoding = w.format == GemvFormat::q4_0   ? DequantizeEncoding::q4_0
                                        : w.format == GemvFormat::q4_1 ? DequantizeEncoding::q4_1
                                                                       : DequantizeEncoding::q8_0;
    const int64_t blocks = w.num_cols / kDequantizeElements;
    dequantize(encoding, w.q + row * blocks * dequantize_block_bytes(encoding), blocks, out, 1);
  }

  void attention(const DecoderLayer &layer, int64_t index) {
    const int64_t E = shape_.head_dim, group = shape_.heads / shape_.kv_heads;
    for_each_row(rows(), [&](int64_t row) {
      norm(step_.hidden + row * shape_.width, layer.attn_norm, row);
      round({&layer.q, &layer.k, &layer.v}, buffers_.in, row);
    });
    const int64_t k_at = shape_.heads * E, v_at = k_at + shape_.kv_heads * E;
    const DecoderMatrix *const matrices[] = {&layer.q, &layer.k, &layer.v};
    const int64_t at[] = {0, k_at, v_at};
    for_each_block({&layer.q, &layer.k, &layer.v}, rows(), [&](int which, int64_t begin, int64_t end) {
      multiply(*matrices[which], buffers_.in, rows(), buffers_.qkv + at[which], buffers_.qkv_width, begin, end);
    });
    for_each_row(rows(), [&](int64_t row) { place(layer, index, row); });
    // All keys and values of the step are written: rows may read each other's. A row's heads go to as many tasks as the threads
    // need to be busy.
    const int64_t splits = rows() * shape_.kv_heads >= 4 * threads_ || threads_ == 1 ? 1 : group;
    for_each_task(rows() * shape_.kv_heads * splits, threads_, [&](int64_t task, int thread) {
      const int64_t split = task % splits, g = task / splits % shape_.kv_heads, row = task / splits / shape_.kv_heads;
      const int64_t heads = group / splits, first = g * group + split * heads;
      const uint8_t *const pages = step_.pages + (index * shape_.kv_heads + g) * kv_.head_bytes;
      table_.attend({decoder_.kv_format, kv_, E, heads, buffers_.qkv + row * buffers_.qkv_width + first * E,
                     shape_.attention_scale, pages, page_bytes_, step_.tables + step_.slots[row] * step_.table_pages,
                     step_.positions[row], buffers_.scores + thread * group * buffers_.score_stride, buffers_.score_stride,
                     buffers_.in.x + row * buffers_.in.stride + first * E});
    });
    for_each_row(rows(), [&](int64_t row) { round({&layer.o}, buffers_.in, row); });
    add_product(layer.o, buffers_.in);
  }

  // Biases, norms and rotation of one row's heads; its key and value into the cache.
  void place(const DecoderLayer &layer, int64_t index, int64_t row) {
    const int64_t E = shape_.head_dim, H = shape_.heads, G = shape_.kv_heads, position = step_.positions[row];
    float *const q = buffers_.qkv + row * buffers_.qkv_width, *const k = q + H * E, *const v = k + G * E;
    if (layer.q_bias) {
      table_.add(q, layer.q_bias, H * E);
      table_.add(k, layer.k_bias, G * E);
      table_.add(v, layer.v_bias, G * E);
    }
    const float *const cosine = decoder_.cosine + position * (E / 2), *const sine = decoder_.sine + position * (E / 2);
    for (int64_t h = 0; h < H + G; ++h) {
      const float *const weight = h < H ? layer.q_norm : layer.k_norm;
      if (weight) table_.rms_norm(q + h * E, weight, E, shape_.rms_eps, q + h * E);
      table_.rotate(q + h * E, cosine, sine, E, shape_.adjacent);
    }
    const int64_t page = step_.tables[step_.slots[row] * step_.table_pages + position / kPageTokens];
    for (int64_t g = 0; g < G; ++g)
      table_.write_kv({decoder_.kv_format, kv_, E, k + g * E, v + g * E,
                       step_.pages + page * page_bytes_ + (index * G + g) * kv_.head_bytes, position % kPageTokens});
  }

  void feed_forward(const DecoderLayer &layer) {
    for_each_row(rows(), [&](int64_t row) {
      norm(step_.hidden + row * shape_.width, layer.ffn_norm, row);
      round({&layer.gate, &layer.up}, buffers_.in, row);
    });
    for_each_block({&layer.gate}, rows(), [&](int, int64_t begin, int64_t end) {
      multiply(layer.gate, buffers_.in, rows(), buffers_.gate, shape_.ffn, begin, end);
      multiply(layer.up, buffers_.in, rows(), buffers_.gated.x, shape_.ffn, begin, end);
      for (int64_t row = 0; row < rows(); ++row) {
        const int64_t at = row * shape_.ffn + begin;
        table_.silu_multiply(buffers_.gate + at, buffers_.gated.x + at, end - begin);
      }
    });
    for_each_row(rows(), [&](int64_t row) { round({&layer.down}, buffers_.gated, row); });
    add_product(layer.down, buffers_.gated);
  }

  void use(GemvArithmetic arithmetic) {
    arithmetic_ = arithmetic;
    gemv_ = gemv_kernels(arithmetic);
  }

  void head() {
    use(decoder_.head_arithmetic);
    for_each_row(step_.num_wanted, [&](int64_t i) {
      norm(step_.hidden + step_.wanted[i] * shape_.width, decoder_.norm, i);
      round({&decoder_.head}, buffers_.in, i);
    });
    if (step_.num_wanted == 0) return;
    for_each_block({&decoder_.head}, step_.num_wanted, [&](int, int64_t begin, int64_t end) {
      multiply(decoder_.head, buffers_.in, step_.num_wanted, step_.logits, shape_.vocab, begin, end);
      if (shape_.logits_divisor == 1.0f) return;
      for (int64_t i = 0; i < step_.num_wanted; ++i)
        table_.divide(step_.logits + i * shape_.vocab + begin, shape_.logits_divisor, end - begin);
    });
  }

  const Decoder &decoder_;
  const DecoderShape &shape_;
  const DecoderStep &step_;
  const int threads_;
  const DecoderTable &table_;
  GemvArithmetic arithmetic_ = GemvArithmetic::exact;  // in use
  GemvKernels gemv_{};
  const KvLayout kv_;
  const int64_t page_bytes_;
  Buffers buffers_;
};

}  // namespace

int64_t decoder_workspace(const Decoder &decoder, int64_t num_rows, int num_threads) {
  Carver carver(nullptr);
  carve(carver, decoder, num_rows, num_threads);
  return carver.used();
}

bool decoder_run(const Decoder &decoder, const DecoderStep &step, void *workspace, int num_threads) {
  if (isa_in_use() < 0) return false;
  with_team(num_threads, [&] { Run(decoder, step, workspace, num_threads).run(); });
  return true;
}

}  // namespace tensure
