// What one core can do at most: loops of one instruction on registers, that touch no memory. The stable face of the family.
#pragma once

#include <string>

namespace tensure {

enum class PeakKind : int {
  f32,   // multiply-adds of float
  int8,  // dot products of bytes into 32-bit sums
  bf16,  // dot products of bfloat16 into float sums
};

// Why `kind` cannot be measured here, "" when it can.
std::string peak_lacks(PeakKind kind);

// Operations (a multiplication and an addition are two) per second of the calling thread's CPU time: the best of several
// slices that together take about `seconds`. 0 when the processor lacks the instruction.
double measure_peak(PeakKind kind, double seconds);

}  // namespace tensure
