// One object per instruction set: family.cmake compiles this file once for each, with TENSURE_ISA naming it.
#include "gemv/exact-inl.h"
#include "gemv/simd-inl.h"
#include "gemv/table.h"

#define TENSURE_PASTE_(a, b) a##b
#define TENSURE_PASTE(a, b) TENSURE_PASTE_(a, b)

namespace {
namespace plain {
#include "gemv/fast-inl.h"
}  // namespace plain
}  // namespace
#include "gemv/quantize-inl.h"

// The companion with 8-bit dot products, for the processors of this level that have it (cpu_has_vnni()).
#if defined(__AVX512F__) || defined(__AVX2__) || defined(__aarch64__)
#define TENSURE_GEMV_VNNI
#pragma GCC push_options
#if defined(__AVX512F__)
#pragma GCC target("avx512vnni")
#elif defined(__AVX2__)
#pragma GCC target("avxvnni")
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
namespace {
namespace vnni {
#include "gemv/fast-inl.h"
}  // namespace vnni
}  // namespace
#pragma GCC pop_options
static constexpr tensure::GemvKernel kFastVnni = vnni::fast, kFineVnni = vnni::fine;
#else
static constexpr tensure::GemvKernel kFastVnni = nullptr, kFineVnni = nullptr;
#endif

namespace tensure {

extern const GemvTable TENSURE_PASTE(gemv_, TENSURE_ISA);
const GemvTable TENSURE_PASTE(gemv_, TENSURE_ISA) = {kFused,   exact,       plain::fast, kFastVnni,
                                                       quantize, plain::fine, kFineVnni,   quantize_fine,
                                                       read};

}  // namespace tensure
