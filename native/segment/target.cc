// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "segment/segment-inl.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace tensure {

extern const SegmentTable TENSURE_PASTE(segment_, TENSURE_ISA);
constexpr SegmentTable TENSURE_PASTE(segment_, TENSURE_ISA) = {pool_max, pool_average, pointwise, activate_all, softmax};

}  // namespace tensure
