// Checks what Python hands over, releases the GIL, calls the kernel. Computes nothing.
#include "bindings/gemv.h"

#include <nanobind/nanobind.h>

#include <cstdint>
#include <stdexcept>

namespace nb = nanobind;

namespace tensure {

using Bytes = ConstBytes;
using Writable = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

static int64_t size(const Bytes &bytes) { return static_cast<int64_t>(bytes.shape(0)); }

static GemvFormat check_sizes(int format, int64_t num_rows, int64_t num_cols, int64_t group, int64_t q_bytes,
                              int64_t scales_bytes, int64_t minimums_bytes) {
  constexpr int64_t kMost = int64_t{1} << 40;
  if (format < 0 || format > static_cast<int>(GemvFormat::q4_k)) throw std::invalid_argument("no such format");
  const auto f = static_cast<GemvFormat>(format);
  if (num_rows < 1 || num_cols < 1 || num_rows > kMost / num_cols) throw std::invalid_argument("no such shape");
  const bool group_fits = gemv_is_gguf(f) ? group == 0
                                          : group == 32 || group == 64 || group == 128 ||
                                                (group == 0 && f == GemvFormat::int8);
  if (!group_fits) throw std::invalid_argument("no such group");
  if (gemv_is_gguf(f) && num_cols % gemv_block_cols(f)) throw std::invalid_argument("columns are not whole blocks");
  if (q_bytes != gemv_q_bytes(f, num_rows, num_cols, group)) throw std::invalid_argument("q has another size");
  const int64_t wanted = gemv_num_scales(f, num_rows, num_cols, group) * (f == GemvFormat::int8 ? 4 : 2);
  if (scales_bytes != wanted) throw std::invalid_argument("scales has another size");
  if (minimums_bytes != (f == GemvFormat::int4_min ? wanted : 0))
    throw std::invalid_argument("minimums has another size");
  return f;
}

GemvWeights to_gemv_weights(int format, int64_t num_rows, int64_t num_cols, int64_t group, const ConstBytes &q,
                            const ConstBytes &scales, const ConstBytes &minimums) {
  const GemvFormat f = check_sizes(format, num_rows, num_cols, group, size(q), size(scales), size(minimums));
  return {f, num_rows, num_cols, group, q.data(), scales.data(), minimums.data()};
}

static GemvArithmetic to_rounded(int arithmetic) {
  if (arithmetic != static_cast<int>(GemvArithmetic::fine) && arithmetic != static_cast<int>(GemvArithmetic::fast))
    throw std::invalid_argument("no arithmetic that rounds activations");
  return static_cast<GemvArithmetic>(arithmetic);
}

static void check_result(const GemvWeights &w, int64_t batch, const Result &y) {
  if (static_cast<int64_t>(y.shape(0)) != batch || static_cast<int64_t>(y.shape(1)) != w.num_rows)
    throw std::invalid_argument("y has another shape");
}

static void check_done(bool done) {
  if (!done) throw std::runtime_error("no instruction set is in use");
}

void bind_gemv(nb::module_ &m) {
  m.def(
      "gemv_exact",
      [](int format, int64_t num_rows, int64_t num_cols, int64_t group, Bytes q, Bytes scales, Bytes minimums, Matrix x,
         Result y, int num_threads) {
        const GemvWeights w = to_gemv_weights(format, num_rows, num_cols, group, q, scales, minimums);
        const auto batch = static_cast<int64_t>(x.shape(0));
        if (static_cast<int64_t>(x.shape(1)) != num_cols) throw std::invalid_argument("x has another width");
        check_result(w, batch, y);
        bool done;
        {
          nb::gil_scoped_release unlocked;
          done = gemv_exact(w, x.data(), batch, num_cols, y.data(), num_rows, num_threads);
        }
        check_done(done);
      },
      nb::arg("format"), nb::arg("num_rows"), nb::arg("num_cols"), nb::arg("group"), nb::arg("q").noconvert(),
      nb::arg("scales").noconvert(), nb::arg("minimums").noconvert(), nb::arg("x").noconvert(),
      nb::arg("y").noconvert(), nb::arg("num_threads"));
  m.def(
      "gemv_quantize",
      [](int arithmetic, Matrix x, Writable activations) {
        const GemvArithmetic how = to_rounded(arithmetic);
        const auto batch = static_cast<int64_t>(x.shape(0)), num_cols = static_cast<int64_t>(x.shape(1));
        if (static_cast<int64_t>(activations.shape(0)) != gemv_activation_bytes(how, num_cols, batch))
          throw std::invalid_argument("activations has another size");
        bool done;
        {
          nb::gil_scoped_release unlocked;
          done = gemv_quantize(how, x.data(), batch, num_cols, num_cols, activations.data());
        }
        check_done(done);
      },
      nb::arg("arithmetic"), nb::arg("x").noconvert(), nb::arg("activations").noconvert());
  m.def(
      "gemv_rounded",
      [](int arithmetic, int format, int64_t num_rows, int64_t num_cols, int64_t group, Bytes q, Bytes scales, Bytes minimums,
         Bytes activations, Result y, int num_threads) {
        const GemvArithmetic how = to_rounded(arithmetic);
        const GemvWeights w = to_gemv_weights(format, num_rows, num_cols, group, q, scales, minimums);
        const auto batch = static_cast<int64_t>(y.shape(0));
        if (size(activations) != gemv_activation_bytes(how, num_cols, batch))
          throw std::invalid_argument("activations has another size");
        check_result(w, batch, y);
        bool done;
        {
          nb::gil_scoped_release unlocked;
          done = gemv_rounded(how, w, activations.data(), batch, y.data(), num_rows, num_threads);
        }
        check_done(done);
      },
      nb::arg("arithmetic"), nb::arg("format"), nb::arg("num_rows"), nb::arg("num_cols"), nb::arg("group"), nb::arg("q").noconvert(),
      nb::arg("scales").noconvert(), nb::arg("minimums").noconvert(), nb::arg("activations").noconvert(),
      nb::arg("y").noconvert(), nb::arg("num_threads"));
  m.def(
      "gemv_repack",
      [](int from, int64_t num_rows, int64_t num_cols, Bytes blocks, Writable q, Writable scales, Writable minimums,
         int num_threads) {
        const GemvFormat f = check_sizes(from, num_rows, num_cols, 0, size(blocks), 0, 0), to = gemv_repacked(f);
        if (to == f) throw std::invalid_argument("no own layout for this format");
        const auto bytes = [](const Writable &array) { return static_cast<int64_t>(array.shape(0)); };
        check_sizes(static_cast<int>(to), num_rows, num_cols, 32, bytes(q), bytes(scales), bytes(minimums));
        nb::gil_scoped_release unlocked;
        gemv_repack({f, num_rows, num_cols, blocks.data(), q.data(), scales.data(), minimums.data()}, num_threads);
      },
      nb::arg("format"), nb::arg("num_rows"), nb::arg("num_cols"), nb::arg("blocks").noconvert(),
      nb::arg("q").noconvert(), nb::arg("scales").noconvert(), nb::arg("minimums").noconvert(), nb::arg("num_threads"));
  m.def(
      "gemv_activation_bytes",
      [](int arithmetic, int64_t num_cols, int64_t batch) { return gemv_activation_bytes(to_rounded(arithmetic), num_cols, batch); },
      nb::arg("arithmetic"), nb::arg("num_cols"), nb::arg("batch"));
  m.def("gemv_exact_is_fused", &gemv_exact_is_fused);
  m.def(
      "gemv_read",
      [](Bytes data, int streams, int64_t prefetch, int num_threads) {
        if (size(data) % kGemvReadBytes) throw std::invalid_argument("data is not a whole number of units");
        nb::gil_scoped_release unlocked;
        return gemv_read(data.data(), size(data), streams, prefetch, num_threads);
      },
      nb::arg("data").noconvert(), nb::arg("streams"), nb::arg("prefetch"), nb::arg("num_threads"));
}

}  // namespace tensure
