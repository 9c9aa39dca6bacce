// Which instruction sets this build has code for, which of them this processor can run, and which one is in use.
//
// Chosen once, when the module is loaded: the best one the processor has, or the one TENSURE_ISA names. A name that
// cannot be honoured leaves nothing in use (in_use() is null) and no kernel runs: never a slower path in silence, never an
// illegal instruction. Knows no kernel.
#pragma once

namespace tensure {

struct Isa {
  const char *name;   // "v2", "v3", "v4" (the x86-64 levels), "neon" or "base"
  bool available;     // this processor and its operating system can run it
};

// Every set this build holds, narrowest first.
struct IsaList {
  const Isa *items;
  int count;
};
IsaList isas();

// Index into isas() of the set in use, or -1 when none can be.
int isa_in_use();

// What TENSURE_ISA held when the module was loaded; "" when unset.
const char *isa_asked();

// Instructions that belong to no x86-64 level and not to the aarch64 baseline. A kernel holds a small function for one of them
// in the object of the level in use, and asks here before it calls it.
//
//   vnni   8-bit dot products: AVX512_VNNI where v4 is in use, AVX-VNNI where v3 is, dotprod (sdot) on NEON
//   bf16   bfloat16 dot products: AVX512_BF16 where v4 is in use, bf16 (bfdot) on NEON
//
// True only if the processor has it in the encoding of the set in use, so a narrower set that TENSURE_ISA forces takes it
// away. TENSURE_FEATURES=-vnni or =-vnni,-bf16 takes it away too. A word in that list that is not one of these leaves
// nothing in use (isa_in_use() is -1), as a TENSURE_ISA that cannot be honoured does.
bool cpu_has_vnni();
bool cpu_has_bf16();

// What TENSURE_FEATURES held when the module was loaded, and whether it could be read.
const char *features_asked();
bool features_understood();

}  // namespace tensure

// Expands F(index, name) for every set of this build, in the order of isas().
#if defined(__x86_64__)
#define TENSURE_FOR_EACH_ISA(F) F(0, v2) F(1, v3) F(2, v4)
#elif defined(__aarch64__)
#define TENSURE_FOR_EACH_ISA(F) F(0, neon)
#else
#define TENSURE_FOR_EACH_ISA(F) F(0, base)
#endif
