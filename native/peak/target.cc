// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "peak/peak-inl.h"
#include "peak/table.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace tensure {

extern const PeakTable TENSURE_PASTE(peak_, TENSURE_ISA);
constexpr PeakTable TENSURE_PASTE(peak_, TENSURE_ISA) = make_table();

}  // namespace tensure
