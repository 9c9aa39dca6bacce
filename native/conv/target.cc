// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "conv/winograd-inl.h"
#include "conv/conv-inl.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace tensure {

extern const ConvTable TENSURE_PASTE(conv_, TENSURE_ISA);
constexpr ConvTable TENSURE_PASTE(conv_, TENSURE_ISA) = make_table();

}  // namespace tensure
