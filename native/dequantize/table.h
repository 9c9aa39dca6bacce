// What one instruction set offers to dequantize.cc: the three kernels, single-threaded.
#pragma once

#include <cstdint>

namespace tensure {

using DequantizeKernel = void (*)(const uint8_t *block, int64_t num_blocks, float *out);

struct DequantizeTable {
  DequantizeKernel kernels[3];  // in the order of DequantizeEncoding
};

}  // namespace tensure
