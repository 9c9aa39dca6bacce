// What one instruction set offers to peak.cc.
#pragma once

#include <cstdint>

namespace tensure {

// Runs `turns` turns of a loop on registers.
struct PeakLoop {
  void (*run)(int64_t turns);  // null where the set has no such instruction
  int64_t operations;          // of one turn
};

struct PeakTable {
  PeakLoop f32;
  PeakLoop int8;       // the best the set has without the feature "vnni"
  PeakLoop int8_vnni;  // with it
  PeakLoop bf16;       // with the feature "bf16"
};

}  // namespace tensure
