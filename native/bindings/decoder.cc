// Checks what Python hands over, keeps the weights alive, releases the GIL, runs the layers. Computes nothing.
#include "decoder/decoder.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <utility>

#include "bindings/gemv.h"

namespace nb = nanobind;

namespace tensure {

using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Ints = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using IntTable = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Pages = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
// kind, gemv format, rows, columns, group, integers or plain numbers, scales, minimums
using MatrixParts = std::tuple<int, int, int64_t, int64_t, int64_t, ConstBytes, ConstBytes, ConstBytes>;

static void expect(bool holds, const char *what) {
  if (!holds) throw std::invalid_argument(what);
}
static int64_t length(const Ints &a) { return static_cast<int64_t>(a.shape(0)); }

class BoundDecoder {
 public:
  // sizes: D H G E F V C; numbers: eps, embedding multiplier, residual multiplier, attention scale, logits divisor
  BoundDecoder(const std::array<int64_t, 7> &sizes, const std::array<float, 5> &numbers, bool adjacent, Table cosine,
               Table sine, int kv_format, int arithmetic,
               int head_arithmetic) {
    for (const int64_t size : sizes) expect(size >= 1 && size <= int64_t{1} << 24, "no such size");
    for (const float number : numbers) expect(std::isfinite(number), "a number is not finite");
    const auto [D, H, G, E, F, V, C] = sizes;
    expect(H % G == 0 && E % 2 == 0, "heads do not divide");
    expect(H * E <= int64_t{1} << 24, "too many heads");
    expect(kv_format >= 0 && kv_format <= 2, "no such format of the cache");
    for (const Table *t : {&cosine, &sine})
      expect(static_cast<int64_t>(t->shape(0)) == C && static_cast<int64_t>(t->shape(1)) == E / 2,
             "a rotary table has another shape");
    decoder_.shape = {D, H, G, E, F, V, C, numbers[0], adjacent, numbers[1], numbers[2], numbers[3], numbers[4]};
    decoder_.cosine = cosine.data();
    decoder_.sine = sine.data();
    decoder_.kv_format = static_cast<KvFormat>(kv_format);
    for (const int how : {arithmetic, head_arithmetic}) expect(how >= 0 && how <= 2, "no such arithmetic");
    decoder_.arithmetic = static_cast<GemvArithmetic>(arithmetic);
    decoder_.head_arithmetic = static_cast<GemvArithmetic>(head_arithmetic);
    tables_ = {std::move(cosine), std::move(sine)};
  }

  // matrices: q k v o gate up down; vectors: attn_norm ffn_norm q_bias k_bias v_bias q_norm k_norm
  void add_layer(const std::array<MatrixParts, 7> &matrices, const std::array<std::optional<Vector>, 7> &vectors) {
    const DecoderShape &s = decoder_.shape;
    const int64_t q = s.heads * s.head_dim, kv = s.kv_heads * s.head_dim;
    const int64_t rows[] = {q, kv, kv, s.width, s.ffn, s.ffn, s.width};
    const int64_t cols[] = {s.width, s.width, s.width, q, s.width, s.width, s.ffn};
    const int64_t counts[] = {s.width, s.width, q, kv, kv, s.head_dim, s.head_dim};
    DecoderMatrix m[7];
    const float *v[7];
    for (int i = 0; i < 7; ++i) m[i] = matrix(matrices[i], rows[i], cols[i]);
    for (int i = 0; i < 7; ++i) v[i] = vector(vectors[i], counts[i]);
    expect(v[0] && v[1], "a norm is missing");
    expect(!v[2] == !v[3] && !v[2] == !v[4] && !v[5] == !v[6], "biases or head norms are not complete");
    decoder_.layers.push_back({v[0], v[1], v[2], v[3], v[4], v[5], v[6], m[0], m[1], m[2], m[3], m[4], m[5], m[6]});
  }

  void set_embed(const MatrixParts &parts) {
    const DecoderMatrix m = matrix(parts, decoder_.shape.vocab, decoder_.shape.width);
    expect(m.kind != MatrixKind::gemv || m.weights.format != GemvFormat::q4_k, "rows of this format are not looked up");
    decoder_.embed = m;
    decoder_.has_embed = true;
  }

  void set_head(const MatrixParts &parts, const Vector &norm) {
    decoder_.head = matrix(parts, decoder_.shape.vocab, decoder_.shape.width);
    decoder_.norm = vector(norm, decoder_.shape.width);
    decoder_.has_head = true;
  }

  int64_t page_bytes() const {
    return kv_page_bytes(decoder_.kv_format, decoder_.shape.head_dim, decoder_.shape.kv_heads,
                         static_cast<int64_t>(decoder_.layers.size()));
  }
  int64_t workspace(int64_t num_rows, int num_threads) const {
    expect(num_rows >= 0 && num_rows <= int64_t{1} << 20 && num_threads >= 1 && num_threads <= 1024, "no such number of rows");
    return decoder_workspace(decoder_, num_rows, num_threads);
  }

  void run(const Ints &tokens, const Ints &positions, const Ints &slots, const IntTable &tables, const Ints &wanted,
           const Pages &pages, const Matrix &hidden, const Matrix &logits, const Bytes &workspace, int num_threads) const {
    const DecoderShape &s = decoder_.shape;
    const int64_t rows = length(tokens), num_slots = static_cast<int64_t>(tables.shape(0));
    const int64_t table_pages = static_cast<int64_t>(tables.shape(1)), num_pages = static_cast<int64_t>(pages.shape(0));
    expect(length(positions) == rows && length(slots) == rows, "tokens, positions and slots differ in length");
    expect(static_cast<int64_t>(pages.shape(1)) == page_bytes(), "pages have another size");
    expect(static_cast<int64_t>(hidden.shape(0)) == rows && static_cast<int64_t>(hidden.shape(1)) == s.width,
           "hidden has another shape");
    const int64_t num_wanted = decoder_.has_head ? length(wanted) : 0;
    expect(static_cast<int64_t>(logits.shape(0)) == num_wanted && (num_wanted == 0 || static_cast<int64_t>(logits.shape(1)) == s.vocab),
           "logits has another shape");
    std::vector<int64_t> written;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t position = positions.data()[i], slot = slots.data()[i], page = position / kPageTokens;
      expect(tokens.data()[i] >= 0 && tokens.data()[i] < s.vocab, "no such token");
      expect(position >= 0 && position < s.context, "a position is outside the context");
      expect(slot >= 0 && slot < num_slots && page < table_pages, "no such slot");
      for (int64_t p = 0; p <= page; ++p) {
        const int32_t id = tables.data()[slot * table_pages + p];
        expect(id >= 0 && id < num_pages, "a row reads a page that is not there");
      }
      written.push_back(tables.data()[slot * table_pages + page] * kPageTokens + position % kPageTokens);
    }
    std::sort(written.begin(), written.end());
    expect(std::adjacent_find(written.begin(), written.end()) == written.end(), "two rows write one place of the cache");
    // Every wanted row gives its own logits; a row's normed copy takes a row of the workspace.
    expect(num_wanted <= rows, "more logits than rows");
    for (int64_t i = 0; i < num_wanted; ++i) expect(wanted.data()[i] >= 0 && wanted.data()[i] < rows, "no such row is wanted");
    expect(static_cast<int64_t>(workspace.shape(0)) >= this->workspace(rows, num_threads), "the workspace is too small");
    expect(!workspace.size() || reinterpret_cast<uintptr_t>(workspace.data()) % 64 == 0, "the workspace is not aligned");
    const DecoderStep step{rows, tokens.data(), positions.data(), slots.data(), tables.data(), table_pages, num_wanted,
                           wanted.data(), pages.data(), hidden.data(), logits.data()};
    bool done;
    {
      nb::gil_scoped_release unlocked;
      done = decoder_run(decoder_, step, workspace.data(), num_threads);
    }
    if (!done) throw std::runtime_error("no instruction set is in use");
  }

 private:
  DecoderMatrix matrix(const MatrixParts &parts, int64_t rows, int64_t cols) {
    const auto &[kind, format, num_rows, num_cols, group, q, scales, minimums] = parts;
    expect(num_rows == rows && num_cols == cols, "a matrix has another shape");
    expect(kind >= 0 && kind <= 3, "no such kind of matrix");
    kept_.push_back(q);
    kept_.push_back(scales);
    kept_.push_back(minimums);
    if (kind == 0) return {MatrixKind::gemv, to_gemv_weights(format, rows, cols, group, q, scales, minimums), nullptr};
    expect(static_cast<int64_t>(q.shape(0)) == rows * cols * (kind == 1 ? 4 : 2), "a matrix has another number of bytes");
    return {static_cast<MatrixKind>(kind), {GemvFormat::int8, rows, cols, 0, nullptr, nullptr, nullptr}, q.data()};
  }
  const float *vector(const std::optional<Vector> &array, int64_t count) {
    if (!array) return nullptr;
    expect(static_cast<int64_t>(array->shape(0)) == count, "a vector has another length");
    vectors_.push_back(*array);
    return array->data();
  }

  Decoder decoder_{};
  std::vector<Table> tables_;
  std::vector<ConstBytes> kept_;
  std::vector<Vector> vectors_;
};

void bind_decoder(nb::module_ &m) {
  nb::class_<BoundDecoder>(m, "Decoder")
      .def(nb::init<const std::array<int64_t, 7> &, const std::array<float, 5> &, bool, Table, Table, int, int, int>(),
           nb::arg("sizes"), nb::arg("numbers"), nb::arg("adjacent"), nb::arg("cosine").noconvert(),
           nb::arg("sine").noconvert(), nb::arg("kv_format"), nb::arg("arithmetic"), nb::arg("head_arithmetic"))
      .def("add_layer", &BoundDecoder::add_layer, nb::arg("matrices"), nb::arg("vectors"))
      .def("set_embed", &BoundDecoder::set_embed, nb::arg("matrix"))
      .def("set_head", &BoundDecoder::set_head, nb::arg("matrix"), nb::arg("norm").noconvert())
      .def("page_bytes", &BoundDecoder::page_bytes)
      .def("workspace", &BoundDecoder::workspace, nb::arg("num_rows"), nb::arg("num_threads"))
      .def("run", &BoundDecoder::run, nb::arg("tokens").noconvert(), nb::arg("positions").noconvert(),
           nb::arg("slots").noconvert(), nb::arg("tables").noconvert(), nb::arg("wanted").noconvert(),
           nb::arg("pages").noconvert(), nb::arg("hidden").noconvert(), nb::arg("logits").noconvert(),
           nb::arg("workspace").noconvert(), nb::arg("num_threads"));
}

}  // namespace tensure
