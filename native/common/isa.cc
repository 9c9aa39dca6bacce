#include "common/isa.h"

#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace tensure {
namespace {

#if defined(__x86_64__)

struct Regs {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Regs cpuid(unsigned leaf, unsigned sub) {
  Regs r;
  __get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d);  // leaves zeros when the leaf does not exist
  return r;
}

bool all(unsigned word, unsigned mask) { return (word & mask) == mask; }

// The feature lists are those of the x86-64 psABI's levels. A level counts only if the operating system saves its
// registers (XCR0), which cpuid alone does not say.
int level() {
  const Regs one = cpuid(1, 0), seven = cpuid(7, 0), ext = cpuid(0x80000001u, 0);
  const bool v2 = all(one.c, bit_SSE3 | bit_SSSE3 | bit_CMPXCHG16B | bit_SSE4_1 | bit_SSE4_2 | bit_POPCNT) &&
                  all(ext.c, bit_LAHF_LM);
  if (!v2) return 1;
  if (!all(one.c, bit_OSXSAVE)) return 2;
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  const bool v3 = (low & 0x06) == 0x06 && all(one.c, bit_AVX | bit_F16C | bit_FMA | bit_MOVBE) &&
                  all(seven.b, bit_AVX2 | bit_BMI | bit_BMI2) && all(ext.c, bit_ABM);
  if (!v3) return 2;
  const bool v4 = (low & 0xe6) == 0xe6 &&
                  all(seven.b, bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL);
  return v4 ? 4 : 3;
}

#endif

struct State {
#if defined(__x86_64__)
  Isa items[3] = {{"v2", level() >= 2}, {"v3", level() >= 3}, {"v4", level() >= 4}};
#elif defined(__aarch64__)
  Isa items[1] = {{"neon", true}};
#else
  Isa items[1] = {{"base", true}};
#endif
  std::string asked;
  int in_use = -1;

  State() {
    if (const char *text = std::getenv("TENSURE_ISA")) asked = text;
    int index = 0;
    for (const Isa &isa : items) {
      // Without a wish the last one that runs is the widest.
      if (isa.available && (asked.empty() || asked == isa.name)) in_use = index;
      ++index;
    }
  }
};

const State &state() {
  static const State chosen;
  return chosen;
}

}  // namespace

IsaList isas() { return {state().items, static_cast<int>(std::size(state().items))}; }
int isa_in_use() { return state().in_use; }
const char *isa_asked() { return state().asked.c_str(); }

}  // namespace tensure
