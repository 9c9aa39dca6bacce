#include "common/isa.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <string>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
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

struct Features {
  bool vnni = false, bf16 = false;
};

// What the processor has, in the encoding of the instruction set called `name`.
Features detect([[maybe_unused]] const std::string &name) {
  Features has;
#if defined(__x86_64__)
  const Regs seven = cpuid(7, 0), more = cpuid(7, 1);
  if (name == "v4") {
    has.vnni = seven.c & 1u << 11;  // AVX512_VNNI; v4 says that the registers are saved
    has.bf16 = more.a & 1u << 5;    // AVX512_BF16
  } else if (name == "v3") {
    has.vnni = more.a & 1u << 4;  // AVX-VNNI
  }
#elif defined(__aarch64__) && defined(__linux__)
  has.vnni = getauxval(AT_HWCAP) & 1ul << 20;   // HWCAP_ASIMDDP
  has.bf16 = getauxval(AT_HWCAP2) & 1ul << 14;  // HWCAP2_BF16
#endif
  return has;
}

// Takes away what a list such as "-vnni,-bf16" names; false when it holds anything else.
bool take_away(const std::string &list, Features &from) {
  for (size_t begin = 0; begin < list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    const std::string word = list.substr(begin, end - begin);
    if (word == "-vnni") {
      from.vnni = false;
    } else if (word == "-bf16") {
      from.bf16 = false;
    } else {
      return false;
    }
    begin = end + 1;
  }
  return true;
}

struct State {
#if defined(__x86_64__)
  Isa items[3] = {{"v2", level() >= 2}, {"v3", level() >= 3}, {"v4", level() >= 4}};
#elif defined(__aarch64__)
  Isa items[1] = {{"neon", true}};
#else
  Isa items[1] = {{"base", true}};
#endif
  std::string asked, features_asked;
  int in_use = -1;
  Features features;
  bool features_understood = true;

  State() {
    if (const char *text = std::getenv("TENSURE_ISA")) asked = text;
    if (const char *text = std::getenv("TENSURE_FEATURES")) features_asked = text;
    int index = 0;
    for (const Isa &isa : items) {
      // Without a wish the last one that runs is the widest.
      if (isa.available && (asked.empty() || asked == isa.name)) in_use = index;
      ++index;
    }
    if (in_use >= 0) features = detect(items[in_use].name);
    features_understood = take_away(features_asked, features);
    if (!features_understood) in_use = -1;
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
bool cpu_has_vnni() { return state().in_use >= 0 && state().features.vnni; }
bool cpu_has_bf16() { return state().in_use >= 0 && state().features.bf16; }
const char *features_asked() { return state().features_asked.c_str(); }
bool features_understood() { return state().features_understood; }

}  // namespace tensure
