// Blocks of small integers against the formula in double.
#include <cmath>

#include "check/check.h"
#include "dequantize/dequantize.h"

namespace tensure::check {
namespace {

double element(DequantizeEncoding encoding, const uint8_t *block, int i) {
  const double scale = half(block);
  const auto nibble = [i](const uint8_t *at) { return i < 16 ? at[i] & 15 : at[i - 16] >> 4; };
  switch (encoding) {
    case DequantizeEncoding::q4_0: return (nibble(block + 2) - 8) * scale;
    case DequantizeEncoding::q4_1: return nibble(block + 4) * scale + half(block + 2);
    case DequantizeEncoding::q8_0: return static_cast<int8_t>(block[2 + i]) * scale;
  }
  return 0;
}

}  // namespace

int64_t check_dequantize(int rounds, Plant plant) {
  Random random(11);
  for (int round = 0; round < rounds; ++round) {
    const DequantizeEncoding encoding = static_cast<DequantizeEncoding>(round % 3);
    const int64_t bytes = dequantize_block_bytes(encoding), blocks = round < 3 ? 3000 : random.pick(0, 40);
    Guarded<uint8_t> from(blocks * bytes, random.pick(0, 63));
    for (int64_t i = 0; i < from.count(); ++i) from[i] = static_cast<uint8_t>(random.bits());
    Guarded<float> out(blocks * kDequantizeElements, random.pick(0, 15));
    if (!dequantize(encoding, from.data(), blocks, out.data(), 2)) fail("dequantize did not run");
    out.expect_guards("dequantized blocks");
    if (plant == Plant::block && blocks) from[from.count() - 1] ^= 0x11;
    for (int64_t i = 0; i < out.count(); ++i) {
      const float wanted = static_cast<float>(element(encoding, from.data() + i / 32 * bytes, static_cast<int>(i % 32)));
      if (out[i] != wanted && !(std::isnan(out[i]) && std::isnan(wanted)))
        fail("encoding %d, element %d is %.9g, wanted %.9g", round % 3, static_cast<int>(i), out[i], wanted);
    }
  }
  return rounds;
}

}  // namespace tensure::check
