// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "decoder/attention-inl.h"
#include "decoder/rows-inl.h"
#include "decoder/table.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace tensure {

extern const DecoderTable TENSURE_PASTE(decoder_, TENSURE_ISA);
const DecoderTable TENSURE_PASTE(decoder_, TENSURE_ISA) = {rms_norm, rotate,     add,        add_scaled, scale, divide,
                                                           silu_multiply, widen, plain_rows, write_kv,   attend};

}  // namespace tensure
