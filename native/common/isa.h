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

}  // namespace tensure

// Expands F(index, name) for every set of this build, in the order of isas().
#if defined(__x86_64__)
#define TENSURE_FOR_EACH_ISA(F) F(0, v2) F(1, v3) F(2, v4)
#elif defined(__aarch64__)
#define TENSURE_FOR_EACH_ISA(F) F(0, neon)
#else
#define TENSURE_FOR_EACH_ISA(F) F(0, base)
#endif
