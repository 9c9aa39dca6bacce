// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "dotconv/dotconv-inl.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace tensure {

extern const DotTable TENSURE_PASTE(dotconv_, TENSURE_ISA);
constexpr DotTable TENSURE_PASTE(dotconv_, TENSURE_ISA) = make_table();

}  // namespace tensure
