// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "dequantize/dequantize-inl.h"
#include "dequantize/table.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace tensure {

extern const DequantizeTable TENSURE_PASTE(dequantize_, TENSURE_ISA);
const DequantizeTable TENSURE_PASTE(dequantize_, TENSURE_ISA) = {{q4_0, q4_1, q8_0}};

}  // namespace tensure
