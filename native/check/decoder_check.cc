// Small decoders in steps over pages, against plain loops in double.
//
// The loops take keys and values as the pages hold them, once these are seen to be what they compute themselves within the
// cache's rounding: so that no rounding of theirs falls on the other side, and the bound on the logits stays narrow. Every
// model runs twice, in other steps, over other pages and with another number of threads, and must give the same bits.
#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "check/check.h"
#include "decoder/decoder.h"

namespace tensure::check {
namespace {

// ---- weights ----------------------------------------------------------------------------------------------------------

using Numbers = std::unique_ptr<Guarded<float>>;

// A half of magnitude 2^exponent to 2^(exponent + 1).
uint16_t draw_half(Random &random, int exponent, bool negative) {
  return static_cast<uint16_t>((negative ? 0x8000 : 0) | (exponent + 15) << 10 | random.pick(0, 1023));
}
void put_half(uint8_t *to, uint16_t bits) { std::memcpy(to, &bits, 2); }

// A matrix as it is stored, between guards, and what it means.
struct Matrix {
  DecoderMatrix stored;
  std::unique_ptr<Guarded<uint8_t>> q, scales;
  std::vector<double> w;  // [rows][cols]
};

enum class Kind { f32, f16, bf16, q8_0, q4_0, int8, int4 };

// Numbers of about 1 / sqrt(cols) for some tens of columns.
Matrix draw_matrix(Random &random, Kind kind, int64_t rows, int64_t cols) {
  Matrix m;
  m.w.resize(rows * cols);
  const auto room = [&](int64_t bytes) { return std::make_unique<Guarded<uint8_t>>(bytes, random.pick(0, 15)); };
  const auto gguf = [&](GemvFormat format, int exponent) {
    const int64_t bytes = gemv_block_bytes(format), blocks = rows * cols / 32;
    m.q = room(blocks * bytes);
    for (int64_t b = 0; b < blocks; ++b) {
      uint8_t *const block = m.q->data() + b * bytes;
      for (int64_t i = 2; i < bytes; ++i) block[i] = static_cast<uint8_t>(random.bits());
      put_half(block, draw_half(random, exponent, random.chance(2)));
      for (int64_t i = 0; i < 32; ++i) {
        const int nibble = i < 16 ? block[2 + i % 16] & 15 : block[2 + i % 16] >> 4;
        const int value = format == GemvFormat::q8_0 ? static_cast<int8_t>(block[2 + i]) : nibble - 8;
        m.w[b * 32 + i] = value * half(block);
      }
    }
    m.stored = {MatrixKind::gemv, {format, rows, cols, 0, m.q->data(), nullptr, nullptr}, nullptr};
  };
  // Sixteen rows interleaved, with one scale for a row or for 32 columns; what fills rows and columns up means zero.
  const auto interleaved = [&](GemvFormat format, int64_t group) {
    const bool bytes = format == GemvFormat::int8;
    const int64_t groups = gemv_num_scales(format, rows, cols, group) / gemv_stored_rows(format, rows);
    const int64_t stored = gemv_stored_cols(format, cols, group), width = bytes ? 4 : 2;
    m.q = room(gemv_q_bytes(format, rows, cols, group));
    std::memset(m.q->data(), bytes ? 0 : 0x88, m.q->count());
    m.scales = room(gemv_num_scales(format, rows, cols, group) * width);
    std::memset(m.scales->data(), 0, m.scales->count());
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t g = 0; g < groups; ++g) {
        uint8_t *const scale = m.scales->data() + (row / 16 * 16 * groups + g * 16 + row % 16) * width;
        double value;
        if (bytes) {
          const float number = (1.5f + random.number(false)) * 0x1p-9f;
          std::memcpy(scale, &number, 4);
          value = number;
        } else {
          put_half(scale, draw_half(random, -5, random.chance(2)));
          value = half(scale);
        }
        const int64_t begin = group ? g * group : 0, end = std::min(cols, group ? begin + group : cols);
        for (int64_t k = begin; k < end; ++k) {
          uint8_t *const block = m.q->data() + row / 16 * 16 * stored / (bytes ? 1 : 2);
          if (bytes) {
            const int q = static_cast<int>(random.pick(-128, 127));
            block[k / 4 * 64 + row % 16 * 4 + k % 4] = static_cast<uint8_t>(q);
            m.w[row * cols + k] = q * value;
          } else {
            const int q = static_cast<int>(random.pick(0, 15)), shift = k % 32 < 16 ? 0 : 4;
            uint8_t &pair = block[k / 32 * 256 + k % 16 / 4 * 64 + row % 16 * 4 + k % 4];
            pair = static_cast<uint8_t>((pair & (0xf0 >> shift)) | q << shift);
            m.w[row * cols + k] = (q - 8) * value;
          }
        }
      }
    }
    m.stored = {MatrixKind::gemv, {format, rows, cols, group, m.q->data(), m.scales->data(), nullptr}, nullptr};
  };
  const auto plain = [&](MatrixKind of, int64_t width) {
    m.q = room(rows * cols * width);
    for (int64_t i = 0; i < rows * cols; ++i) {
      uint8_t *const at = m.q->data() + i * width;
      if (of == MatrixKind::f16) {
        const bool negative = random.chance(2);  // by itself: the order in which arguments are drawn is the compiler's
        put_half(at, draw_half(random, static_cast<int>(random.pick(-6, -3)), negative));
        m.w[i] = half(at);
        continue;
      }
      float number = random.number(false) * 0.25f;
      uint32_t bits;
      std::memcpy(&bits, &number, 4);
      if (of == MatrixKind::bf16) bits &= 0xffff0000u;
      std::memcpy(&number, &bits, 4);
      const uint16_t upper = static_cast<uint16_t>(bits >> 16);
      of == MatrixKind::bf16 ? std::memcpy(at, &upper, 2) : std::memcpy(at, &bits, 4);
      m.w[i] = number;
    }
    m.stored = {of, {GemvFormat::int8, rows, cols, 0, nullptr, nullptr, nullptr}, m.q->data()};
  };
  switch (kind) {
    case Kind::f32: plain(MatrixKind::f32, 4); break;
    case Kind::f16: plain(MatrixKind::f16, 2); break;
    case Kind::bf16: plain(MatrixKind::bf16, 2); break;
    case Kind::q8_0: gguf(GemvFormat::q8_0, -9); break;
    case Kind::q4_0: gguf(GemvFormat::q4_0, -5); break;
    case Kind::int8: interleaved(GemvFormat::int8, random.chance(2) ? 0 : 32); break;
    case Kind::int4: interleaved(GemvFormat::int4, 32); break;
  }
  return m;
}

Matrix draw_any(Random &random, int64_t rows, int64_t cols) {
  for (;;) {
    const Kind kind = static_cast<Kind>(random.pick(0, 6));
    if ((kind != Kind::q8_0 && kind != Kind::q4_0) || cols % 32 == 0) return draw_matrix(random, kind, rows, cols);
  }
}

Numbers draw_vector(Random &random, int64_t count, float about) {
  Numbers v = std::make_unique<Guarded<float>>(count, random.pick(0, 15));
  for (int64_t i = 0; i < count; ++i) (*v)[i] = about + 0.3f * random.number(false);
  return v;
}
const float *at(const Numbers &v) { return v ? v->data() : nullptr; }

struct Layer {
  Numbers attn_norm, ffn_norm, q_bias, k_bias, v_bias, q_norm, k_norm;
  Matrix q, k, v, o, gate, up, down;
};

struct Model {
  Decoder decoder;
  std::vector<Layer> layers;
  Matrix embed, head;
  Numbers norm, cosine, sine;
};

Model draw_model(Random &random, int round) {
  static constexpr int64_t head_dims[] = {2, 6, 20, 64, 80};
  const bool large = round % 4 == 3;  // work for several threads
  const int64_t G = random.pick(1, 3), group = random.pick(1, 5), E = large ? 32 : random.choose(head_dims);
  DecoderShape s{large ? 64 : random.chance(2) ? 32 : random.pick(3, 50), G * group, G, E, large ? 320 : random.pick(3, 70),
                 random.pick(2, 70), 70, 1e-5f, random.chance(2), 1, 1, 0, 1};
  s.attention_scale = 1 / std::sqrt(static_cast<float>(E));
  if (random.chance(2)) s.embedding_multiplier = 2.5f, s.residual_multiplier = 0.75f, s.logits_divisor = 3;
  Model m{};
  const bool biases = random.chance(2), head_norms = random.chance(2);
  for (int64_t i = random.pick(1, 2); i > 0; --i) {
    Layer l;
    const int64_t query = s.heads * E, key = G * E;
    l.attn_norm = draw_vector(random, s.width, 1), l.ffn_norm = draw_vector(random, s.width, 1);
    if (biases)
      l.q_bias = draw_vector(random, query, 0), l.k_bias = draw_vector(random, key, 0), l.v_bias = draw_vector(random, key, 0);
    if (head_norms) l.q_norm = draw_vector(random, E, 1), l.k_norm = draw_vector(random, E, 1);
    l.q = draw_any(random, query, s.width), l.k = draw_any(random, key, s.width), l.v = draw_any(random, key, s.width);
    l.o = draw_any(random, s.width, query);
    l.gate = draw_any(random, s.ffn, s.width), l.up = draw_any(random, s.ffn, s.width);
    l.down = draw_any(random, s.width, s.ffn);
    m.layers.push_back(std::move(l));
  }
  m.embed = draw_any(random, s.vocab, s.width), m.head = draw_any(random, s.vocab, s.width);
  m.norm = draw_vector(random, s.width, 1);
  m.cosine = draw_vector(random, s.context * E / 2, 0), m.sine = draw_vector(random, s.context * E / 2, 0);
  for (int64_t i = 0; i < m.cosine->count(); ++i)  // the square root is rounded alike everywhere
    (*m.sine)[i] = static_cast<float>(std::sqrt(1.0 - (*m.cosine)[i] * static_cast<double>((*m.cosine)[i])));
  Decoder &d = m.decoder;
  d.shape = s;
  for (const Layer &l : m.layers)
    d.layers.push_back({at(l.attn_norm), at(l.ffn_norm), at(l.q_bias), at(l.k_bias), at(l.v_bias), at(l.q_norm), at(l.k_norm),
                        l.q.stored, l.k.stored, l.v.stored, l.o.stored, l.gate.stored, l.up.stored, l.down.stored});
  d.cosine = at(m.cosine), d.sine = at(m.sine);
  d.has_embed = d.has_head = true;
  d.embed = m.embed.stored, d.head = m.head.stored, d.norm = at(m.norm);
  d.arithmetic = round % 3 != 2 ? GemvArithmetic::exact : round / 3 % 2 ? GemvArithmetic::fine : GemvArithmetic::fast;
  d.head_arithmetic = d.arithmetic == GemvArithmetic::fast ? GemvArithmetic::fine : d.arithmetic;  // as sessions have it
  d.kv_format = static_cast<KvFormat>(round % 3 == 2 ? random.pick(0, 2) : round / 3 % 3);
  return m;
}

// ---- the family's face --------------------------------------------------------------------------------------------------

using Sequences = std::vector<std::vector<int32_t>>;

struct Served {
  std::vector<std::vector<float>> logits;  // [sequence][position * vocab + i]
  std::unique_ptr<Guarded<uint8_t>> pages;
  std::vector<std::vector<int32_t>> tables;
};

// Every row of every sequence, in steps of any rows over pages in any order.
Served serve(Random &random, const Model &m, const Sequences &sequences, int threads) {
  const Decoder &d = m.decoder;
  const DecoderShape &s = d.shape;
  const int64_t page_bytes = kv_page_bytes(d.kv_format, s.head_dim, s.kv_heads, d.layers.size());
  const int64_t deep = (s.context + kPageTokens - 1) / kPageTokens, slots = sequences.size(), num_pages = slots * deep + 1;
  Served served;
  served.pages = std::make_unique<Guarded<uint8_t>>(num_pages * page_bytes, random.pick(0, 15));
  std::vector<int32_t> free(num_pages);
  for (int64_t i = 0; i < num_pages; ++i) free[i] = static_cast<int32_t>(i);
  for (int64_t i = num_pages - 1; i > 0; --i) std::swap(free[i], free[random.pick(0, i)]);
  Guarded<int32_t> tables(slots * deep, 0);
  for (int64_t slot = 0; slot < slots; ++slot) {
    served.tables.emplace_back();
    served.logits.emplace_back(sequences[slot].size() * s.vocab);
    for (int64_t p = 0; p < deep; ++p) {
      const bool there = p * kPageTokens < static_cast<int64_t>(sequences[slot].size());
      tables[slot * deep + p] = there ? free.back() : -1;
      if (there) served.tables[slot].push_back(free.back()), free.pop_back();
    }
  }
  std::vector<int64_t> done(slots, 0);
  for (;;) {
    std::vector<std::pair<int64_t, int64_t>> rows;
    bool left = false;
    for (int64_t slot = 0; slot < slots; ++slot) {
      const int64_t size = sequences[slot].size(), ahead = std::min(random.chance(3) ? 0 : random.pick(1, 19), size - done[slot]);
      for (int64_t i = 0; i < ahead; ++i) rows.emplace_back(slot, done[slot]++);
      left = left || done[slot] < size;
    }
    const int64_t count = rows.size();
    Guarded<int32_t> tokens(count, 0), positions(count, 0), slot_of(count, 0), wanted(count, 0);
    for (int64_t i = 0; i < count; ++i) {
      const auto [slot, position] = rows[i];
      tokens[i] = sequences[slot][position];
      positions[i] = static_cast<int32_t>(position);
      slot_of[i] = static_cast<int32_t>(slot);
      wanted[i] = static_cast<int32_t>(i);
    }
    Guarded<float> hidden(count * s.width, random.pick(0, 15)), logits(count * s.vocab, random.pick(0, 15));
    Guarded<char> workspace(decoder_workspace(d, count, threads), 0);
    const DecoderStep step{count, tokens.data(), positions.data(), slot_of.data(), tables.data(), deep, count,
                           wanted.data(), served.pages->data(), hidden.data(), logits.data()};
    if (!decoder_run(d, step, workspace.data(), threads)) fail("the decoder did not run");
    hidden.expect_guards("hidden rows of a decoder");
    logits.expect_guards("logits");
    workspace.expect_guards("workspace of a decoder");
    served.pages->expect_guards("pages");
    for (int64_t i = 0; i < count; ++i)
      std::copy_n(logits.data() + i * s.vocab, s.vocab, served.logits[rows[i].first].data() + rows[i].second * s.vocab);
    if (!left) return served;
  }
}

// ---- the plain loops ----------------------------------------------------------------------------------------------------

using Row = std::vector<double>;

// Of the yardstick below, by arithmetic. Measured over 400 models: at most 6.3e-6 with float32 activations; with 8 bits half of all
// rows are within 0.0011, 999 of 1000 within 0.009, one reached 0.04. Fifteen bits are 128 times as fine.
constexpr double kShare[] = {5e-5, 5e-5 + 0.15 / 128, 0.15};

Row times(const Matrix &m, const Row &x) {
  const int64_t cols = m.stored.weights.num_cols;
  Row y(m.stored.weights.num_rows, 0);
  for (size_t i = 0; i < y.size(); ++i)
    for (int64_t k = 0; k < cols; ++k) y[i] += m.w[i * cols + k] * x[k];
  return y;
}

void normalise(double *x, const float *weight, int64_t count, double eps) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
  for (int64_t i = 0; i < count; ++i) x[i] = x[i] / std::sqrt(sum / count + eps) * weight[i];
}
Row normed(Row x, const float *weight, double eps) {
  normalise(x.data(), weight, x.size(), eps);
  return x;
}

void bias(Row &x, const Numbers &by) {
  for (size_t i = 0; by && i < x.size(); ++i) x[i] += (*by)[i];
}

void turn(double *x, const DecoderShape &s, const Model &m, int64_t position) {
  const int64_t pairs = s.head_dim / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    double &a = s.adjacent ? x[2 * i] : x[i], &b = s.adjacent ? x[2 * i + 1] : x[pairs + i];
    const double c = (*m.cosine)[position * pairs + i], sine = (*m.sine)[position * pairs + i], before = a;
    a = a * c - b * sine;
    b = b * c + before * sine;
  }
}

// One key and one value as kv.h lays them out; `step` is what one unit of the stored integers means.
struct Stored {
  Row key, value;
  double key_step = 0, value_step = 0;
};
Stored read_page(const Decoder &d, const uint8_t *block, int64_t slot) {
  const int64_t E = d.shape.head_dim, W = (E + 31) / 32 * 32;
  const KvLayout layout = kv_layout(d.kv_format, E);
  const auto number = [&](int64_t from, int64_t index) {
    float found;
    std::memcpy(&found, block + from + 4 * index, 4);
    return static_cast<double>(found);
  };
  Stored s;
  const bool four = d.kv_format == KvFormat::int4;
  if (d.kv_format != KvFormat::f16) s.key_step = number(layout.k_scale, slot), s.value_step = number(layout.v_scale, slot);
  for (int64_t e = 0; e < E; ++e) {
    const uint8_t *const v = block + layout.v;
    if (d.kv_format == KvFormat::f16) {
      s.key.push_back(half(block + 2 * (e * 16 + slot)));
      s.value.push_back(half(v + 2 * (slot * W + e)));
    } else if (!four) {
      s.key.push_back(static_cast<int8_t>(block[e * 16 + slot]) * s.key_step);
      s.value.push_back(static_cast<int8_t>(v[slot * W + e]) * s.value_step);
    } else {
      const uint8_t key = block[e % (E / 2) * 16 + slot], value = v[slot * W / 2 + e % (W / 2)];
      s.key.push_back((e < E / 2 ? key & 15 : key >> 4) * s.key_step + number(layout.k_scale, 16 + slot));
      s.value.push_back((e < W / 2 ? value & 15 : value >> 4) * s.value_step + number(layout.v_scale, 16 + slot));
    }
  }
  return s;
}

double largest(const double *x, int64_t count) {
  double most = 0;
  for (int64_t i = 0; i < count; ++i) most = std::max(most, std::abs(x[i]));
  return most;
}

// What errors of a product are measured by: the largest input times the magnitudes of a row of weights, the largest of some rows.
double yardstick(const Matrix &m, const Row &x, int64_t begin, int64_t count) {
  const int64_t cols = m.stored.weights.num_cols;
  double most = 0;
  for (int64_t i = begin; i < begin + count; ++i) {
    double sum = 0;
    for (int64_t k = 0; k < cols; ++k) sum += std::abs(m.w[i * cols + k]);
    most = std::max(most, sum);
  }
  return most * largest(x.data(), cols);
}

// Within `allowed`, and what the cache's format rounds.
void compare_head(const char *what, const double *wanted, const Row &found, double step, double allowed, int64_t position) {
  for (size_t e = 0; e < found.size(); ++e) {
    const double rounding = step ? 0.5001 * step : std::abs(wanted[e]) * 0x1.01p-11 + 0x1p-25;
    if (!(std::abs(found[e] - wanted[e]) <= allowed + rounding))
      fail("decoder, %s at position %d: element %zu is %.9g, plain loops give %.9g", what, static_cast<int>(position), e, found[e],
           wanted[e]);
  }
}

void compare_sequence(const Model &m, const std::vector<int32_t> &tokens, const std::vector<int32_t> &table,
                      const Guarded<uint8_t> &pages, const std::vector<float> &logits) {
  const Decoder &d = m.decoder;
  const DecoderShape &s = d.shape;
  const int64_t E = s.head_dim, group = s.heads / s.kv_heads, rows = tokens.size();
  const int64_t head_bytes = kv_layout(d.kv_format, E).head_bytes;
  const double share = kShare[static_cast<int>(d.arithmetic)];
  std::vector<Row> x(rows);
  for (int64_t p = 0; p < rows; ++p)
    for (int64_t i = 0; i < s.width; ++i) x[p].push_back(m.embed.w[tokens[p] * s.width + i] * s.embedding_multiplier);
  for (size_t index = 0; index < m.layers.size(); ++index) {
    const Layer &l = m.layers[index];
    std::vector<Stored> cache(rows * s.kv_heads);
    for (int64_t p = 0; p < rows; ++p) {
      const Row in = normed(x[p], at(l.attn_norm), s.rms_eps);
      Row q = times(l.q, in), k = times(l.k, in), v = times(l.v, in), attended(s.heads * E, 0);
      bias(q, l.q_bias), bias(k, l.k_bias), bias(v, l.v_bias);
      Row sizes;  // of each head of k before its norm
      for (int64_t g = 0; g < s.kv_heads; ++g) sizes.push_back(largest(&k[g * E], E));
      for (int64_t h = 0; h < s.heads + s.kv_heads; ++h) {
        double *const head = h < s.heads ? &q[h * E] : &k[(h - s.heads) * E];
        if (l.q_norm) normalise(head, at(h < s.heads ? l.q_norm : l.k_norm), E, s.rms_eps);
        turn(head, s, m, p);
      }
      for (int64_t g = 0; g < s.kv_heads; ++g) {
        const int64_t block = (table[p / 16] * static_cast<int64_t>(m.layers.size()) + index) * s.kv_heads + g;
        Stored &stored = cache[p * s.kv_heads + g] = read_page(d, pages.data() + block * head_bytes, p % 16);
        const double grown = l.k_norm ? largest(&k[g * E], E) / sizes[g] : 1;
        compare_head("key", &k[g * E], stored.key, stored.key_step, share * grown * yardstick(l.k, in, g * E, E), p);
        compare_head("value", &v[g * E], stored.value, stored.value_step, share * yardstick(l.v, in, g * E, E), p);
      }
      for (int64_t h = 0; h < s.heads; ++h) {
        Row scores(p + 1, 0);
        double most = -INFINITY, sum = 0;
        for (int64_t j = 0; j <= p; ++j) {
          for (int64_t e = 0; e < E; ++e) scores[j] += q[h * E + e] * cache[j * s.kv_heads + h / group].key[e];
          most = std::max(most, scores[j] *= s.attention_scale);
        }
        for (double &score : scores) sum += score = std::exp(score - most);
        for (int64_t j = 0; j <= p; ++j)
          for (int64_t e = 0; e < E; ++e)
            attended[h * E + e] += scores[j] / sum * cache[j * s.kv_heads + h / group].value[e];
      }
      const Row o = times(l.o, attended);
      for (int64_t i = 0; i < s.width; ++i) x[p][i] += o[i] * s.residual_multiplier;
      const Row again = normed(x[p], at(l.ffn_norm), s.rms_eps), gate = times(l.gate, again);
      Row up = times(l.up, again);
      for (int64_t i = 0; i < s.ffn; ++i) up[i] *= gate[i] / (1 + std::exp(-gate[i]));
      const Row down = times(l.down, up);
      for (int64_t i = 0; i < s.width; ++i) x[p][i] += down[i] * s.residual_multiplier;
    }
  }
  for (int64_t p = 0; p < rows; ++p) {
    const Row in = normed(x[p], at(m.norm), s.rms_eps);
    Row wanted = times(m.head, in);
    for (double &logit : wanted) logit /= s.logits_divisor;
    const double allowed = share * yardstick(m.head, in, 0, s.vocab) / s.logits_divisor;
    for (int64_t i = 0; i < s.vocab; ++i)
      if (!(std::abs(logits[p * s.vocab + i] - wanted[i]) <= allowed))
        fail("decoder, position %d: logit %d is %.9g, plain loops give %.9g, allowed %.3g", static_cast<int>(p),
             static_cast<int>(i), logits[p * s.vocab + i], wanted[i], allowed);
  }
}

}  // namespace

int64_t check_decoder(int rounds, Plant plant) {
  Random random(17);
  int64_t compared = 0;
  for (int round = 0; round < rounds; ++round) {
    Model m = draw_model(random, round);
    Sequences sequences(random.pick(1, 3));
    for (auto &tokens : sequences) {
      tokens.resize(random.pick(1, &tokens == &sequences[0] ? 70 : 20));
      for (int32_t &token : tokens) token = static_cast<int32_t>(random.pick(0, m.decoder.shape.vocab - 1));
    }
    const Served served = serve(random, m, sequences, 1), again = serve(random, m, sequences, 3);
    const DecoderShape &s = m.decoder.shape;
    const int64_t page_bytes = kv_page_bytes(m.decoder.kv_format, s.head_dim, s.kv_heads, m.layers.size());
    if (plant == Plant::key) (*served.pages)[served.tables[0][0] * page_bytes + 1] ^= 0x40;  // position 0, element 0 of f16
    if (plant == Plant::layer) std::rotate(m.layers[0].down.w.begin(), m.layers[0].down.w.begin() + 1, m.layers[0].down.w.end());
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < sequences.size(); ++i) {
      if (std::memcmp(served.logits[i].data(), again.logits[i].data(), 4 * served.logits[i].size()))
        fail("decoder: steps, pages or threads change bits");
      compare_sequence(m, sequences[i], served.tables[i], *served.pages, served.logits[i]);
      for (const float logit : served.logits[i]) digest(hash, logit);
      compared += static_cast<int64_t>(sequences[i].size());
    }
    std::printf("decoder %d bits %016llx\n", round, static_cast<unsigned long long>(hash));
  }
  return compared;
}

}  // namespace tensure::check
