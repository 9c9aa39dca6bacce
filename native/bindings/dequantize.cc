// Checks what Python hands over, releases the GIL, calls the kernel. Computes nothing.
#include "dequantize/dequantize.h"

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <stdexcept>

namespace nb = nanobind;

namespace tensure {

using Blocks = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

static void call(DequantizeEncoding encoding, const Blocks &blocks, const Floats &out, int num_threads) {
  const int64_t block_bytes = dequantize_block_bytes(encoding);
  const int64_t bytes = static_cast<int64_t>(blocks.shape(0));
  const int64_t num_blocks = bytes / block_bytes;
  if (bytes % block_bytes != 0) throw std::invalid_argument("blocks is not a whole number of blocks");
  if (static_cast<int64_t>(out.shape(0)) / kDequantizeElements != num_blocks ||
      static_cast<int64_t>(out.shape(0)) % kDequantizeElements != 0)
    throw std::invalid_argument("out does not hold 32 floats for each block");
  bool done;
  {
    nb::gil_scoped_release unlocked;
    done = dequantize(encoding, blocks.data(), num_blocks, out.data(), num_threads);
  }
  if (!done) throw std::runtime_error("no instruction set is in use");
}

void bind_dequantize(nb::module_ &m) {
  const auto def = [&m](const char *name, DequantizeEncoding encoding) {
    m.def(
        name, [encoding](Blocks blocks, Floats out, int num_threads) { call(encoding, blocks, out, num_threads); },
        nb::arg("blocks").noconvert(), nb::arg("out").noconvert(), nb::arg("num_threads"));
  };
  def("dequantize_q4_0", DequantizeEncoding::q4_0);
  def("dequantize_q4_1", DequantizeEncoding::q4_1);
  def("dequantize_q8_0", DequantizeEncoding::q8_0);
  m.def("dequantize_has_threads", &dequantize_has_threads);
}

}  // namespace tensure
