// GGUF blocks of small integers -> float32, exactly. The stable face of the family; see README.md for the layouts.
#pragma once

#include <cstdint>

namespace tensure {

enum class DequantizeEncoding : int { q4_0, q4_1, q8_0 };

constexpr int64_t kDequantizeElements = 32;  // elements of one block, in every encoding here

// Bytes of one block.
constexpr int64_t dequantize_block_bytes(DequantizeEncoding e) {
  switch (e) {
    case DequantizeEncoding::q4_0: return 2 + 16;
    case DequantizeEncoding::q4_1: return 2 + 2 + 16;
    case DequantizeEncoding::q8_0: return 2 + 32;
  }
  return 0;
}

// Writes 32 * num_blocks floats. Neither pointer needs any alignment; the two ranges must not overlap. Blocks are split among
// at most num_threads threads (each element is written by one thread from one block: the split cannot change a bit).
// Returns false, having written nothing, when no instruction set is in use.
bool dequantize(DequantizeEncoding encoding, const uint8_t *blocks, int64_t num_blocks, float *out, int num_threads);

// Whether num_threads can have an effect in this build.
bool dequantize_has_threads();

}  // namespace tensure
