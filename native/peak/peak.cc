// Which loop, and its time. Compiled for the platform's baseline: nothing here may need more.
#include "peak/peak.h"

#include <time.h>

#include <algorithm>

#include "common/isa.h"
#include "peak/table.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const PeakTable peak_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &peak_##isa,
static const PeakTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

constexpr int kSlices = 16;  // one of them at least is seldom disturbed

// CPU time, not wall time: what other processes take is not this core's limit.
static double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

static double seconds_of(const PeakLoop &loop, int64_t turns) {
  const double begin = thread_seconds();
  loop.run(turns);
  return thread_seconds() - begin;
}

static PeakLoop loop_of(PeakKind kind) {
  if (isa_in_use() < 0) return {};
  const PeakTable &table = *kTables[isa_in_use()];
  switch (kind) {
    case PeakKind::f32: return table.f32;
    case PeakKind::int8: return cpu_has_vnni() && table.int8_vnni.run ? table.int8_vnni : table.int8;
    case PeakKind::bf16: return cpu_has_bf16() ? table.bf16 : PeakLoop{};
  }
  return {};
}

std::string peak_lacks(PeakKind kind) {
  if (loop_of(kind).run) return "";
  if (isa_in_use() < 0) return "no instruction set is in use";
  return std::string("no bfloat16 dot products with instruction set ") + isas().items[isa_in_use()].name;
}

double measure_peak(PeakKind kind, double seconds) {
  const PeakLoop loop = loop_of(kind);
  if (!loop.run) return 0;
  const double slice = seconds / kSlices;
  int64_t turns = 256;
  while (seconds_of(loop, turns) < slice / 2 && turns < int64_t{1} << 40) turns *= 2;  // warms the clock up, too
  double best = 0;
  for (int i = 0; i < kSlices; ++i)
    best = std::max(best, static_cast<double>(turns * loop.operations) / std::max(seconds_of(loop, turns), 1e-9));
  return best;
}

}  // namespace tensure
