// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "survey/hash-inl.h"
#include "survey/look-inl.h"
#include "survey/table.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace tensure {

extern const SurveyTable TENSURE_PASTE(survey_, TENSURE_ISA);
const SurveyTable TENSURE_PASTE(survey_, TENSURE_ISA) = {hash_chunk, look_at_unit, bins_of_unit};

}  // namespace tensure
