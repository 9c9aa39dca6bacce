// Units in order, their figures joined, threads. Compiled for the platform's baseline: nothing here may need more.
#include "survey/survey.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/integers.h"
#include "common/isa.h"
#include "common/threads.h"
#include "survey/digest.h"
#include "survey/table.h"
#include "survey/walk.h"

namespace tensure {

#define TENSURE_DECLARE(index, isa) extern const SurveyTable survey_##isa;
TENSURE_FOR_EACH_ISA(TENSURE_DECLARE)
#define TENSURE_ENTRY(index, isa) &survey_##isa,
static const SurveyTable *const kTables[] = {TENSURE_FOR_EACH_ISA(TENSURE_ENTRY)};

namespace {

// What a thread takes at a time. Figures are joined task by task whatever the number of threads: the same bits.
constexpr int64_t kTaskUnits = 64;
constexpr int64_t kWaveTasks = 256;  // whose figures are kept before they are joined
constexpr int64_t kUnitsPerTally = 1 << 17;  // before a bin could hold 2^31

Part part_of(Element element) {
  if (element == Element::c64) return Part::f32;
  if (element == Element::c128) return Part::f64;
  return static_cast<Part>(element);
}

bool is_float(Part part) { return part == Part::f16 || part == Part::bf16 || part == Part::f32 || part == Part::f64; }

// The largest number of its kind that is at most the limit.
UnitLimits limits_for(double limit) {
  float nearest = static_cast<float>(limit);
  if (static_cast<double>(nearest) > limit) nearest = std::nextafter(nearest, 0.0f);
  return {nearest, limit};
}

// The sum of squared differences from the mean of a unit; infinite where squares are beyond double.
double squared_differences(const UnitFound &unit) {
  const double n = static_cast<double>(unit.finite), left = unit.squares - unit.sum * (unit.sum / n);
  if (!std::isfinite(unit.squares)) return std::numeric_limits<double>::infinity();
  return std::max(left, 0.0);
}

// Chan, Golub and LeVeque's rule for the joined mean and squared differences.
void join(Statistics *a, const Statistics &b) {
  const int64_t before = a->count;
  if (b.finite) {
    if (a->finite) {
      const double na = static_cast<double>(a->finite), nb = static_cast<double>(b.finite), n = na + nb;
      const double apart = b.mean - a->mean;
      a->mean = std::isfinite(apart) ? a->mean + apart * (nb / n) : a->mean * (na / n) + b.mean * (nb / n);
      a->m2 = a->m2 + b.m2 + apart * apart * (na * (nb / n));
      a->minimum = std::min(a->minimum, b.minimum);
      a->maximum = std::max(a->maximum, b.maximum);
    } else {
      a->mean = b.mean;
      a->m2 = b.m2;
      a->minimum = b.minimum;
      a->maximum = b.maximum;
    }
    a->finite += b.finite;
  }
  if (a->first_nonfinite < 0 && b.first_nonfinite >= 0) a->first_nonfinite = before + b.first_nonfinite;
  if (a->first_over < 0 && b.first_over >= 0) a->first_over = before + b.first_over;
  a->count += b.count;
  a->zeros += b.zeros;
  a->denormals += b.denormals;
  a->nans += b.nans;
  a->infinities += b.infinities;
  a->over_limit += b.over_limit;
}

Statistics statistics_of(const UnitFound &unit, int64_t count) {
  Statistics s;
  s.count = count;
  s.finite = unit.finite;
  if (unit.finite) {
    s.minimum = unit.minimum + 0.0;  // never -0.0: which zero is met first must not matter
    s.maximum = unit.maximum + 0.0;
    s.mean = unit.shift + unit.sum / static_cast<double>(unit.finite);
    s.m2 = squared_differences(unit);
  }
  s.zeros = unit.zeros;
  s.denormals = unit.denormals;
  s.nans = unit.nans;
  s.infinities = unit.infinities;
  s.over_limit = unit.over_limit;
  s.first_nonfinite = unit.first_nonfinite;
  s.first_over = unit.first_over;
  return s;
}

// A tensor as units of kUnitParts parts.
struct Units {
  const TensorView &simple;
  Part part;
  int64_t parts_each, part_bytes, num_parts, num_units;
  bool in_order;

  explicit Units(const TensorView &x)
      : simple(x), part(part_of(x.element)), parts_each(element_parts(x.element)),
        part_bytes(element_bytes(x.element) / parts_each), num_parts(parts_each), in_order(is_contiguous(x)) {
    for (const int64_t size : x.shape) num_parts *= size;
    num_units = ceil_div(num_parts, kUnitParts);
  }

  // Calls f(bytes, number of parts) for each unit from begin to end. Units that do not lie in order pass through a room.
  template <typename F> void each(int64_t begin, int64_t end, F f) const {
    if (begin == end) return;
    if (in_order) {
      for (int64_t unit = begin; unit < end; ++unit) f(simple.data + unit * kUnitParts * part_bytes, size(unit));
      return;
    }
    alignas(64) uint8_t room[kUnitParts * sizeof(double)];
    Walk walk(simple, begin * (kUnitParts / parts_each));
    for (int64_t unit = begin; unit < end; ++unit) {
      walk.take(size(unit) / parts_each, room);
      f(room, size(unit));
    }
  }
  int64_t size(int64_t unit) const { return std::min(kUnitParts, num_parts - unit * kUnitParts); }
};

struct Figures {
  Statistics statistics;
  Chain chain;
  uint64_t coefficients = 0;  // of the chain

  void look(const SurveyTable &table, const Units &units, int64_t begin, int64_t end, const SurveyOptions &options,
            const UnitLimits &limits) {
    const Part canonical = options.canonical_nan && is_float(units.part) ? units.part : Part::u8;
    units.each(begin, end, [&](const uint8_t *bytes, int64_t count) {
      const int64_t num_bytes = count * units.part_bytes;
      for (int64_t at = 0; options.digest && at < num_bytes; at += kChunkBytes) {
        uint64_t sums[kPasses];
        table.hash(hash_key(), bytes + at, std::min(kChunkBytes, num_bytes - at), canonical, sums);
        chain.append_all(sums);
        coefficients += kPasses;
      }
      if (options.statistics) {
        UnitFound unit;
        table.look(units.part, bytes, count, limits, &unit);
        join(&statistics, statistics_of(unit, count));
      }
    });
  }
};

}  // namespace

double deviation(const Statistics &s) { return s.finite ? std::sqrt(s.m2 / static_cast<double>(s.finite)) : 0.0; }
double l2(const Statistics &s) { return s.finite ? std::sqrt(s.m2 + static_cast<double>(s.finite) * s.mean * s.mean) : 0.0; }

bool survey(const TensorView &x, const SurveyOptions &options, Survey *found) {
  if (isa_in_use() < 0) return false;
  const SurveyTable &table = *kTables[isa_in_use()];
  const TensorView simple = simplified(x);
  const Units units(simple);
  const UnitLimits limits = limits_for(options.limit);
  const int64_t num_tasks = ceil_div(units.num_units, kTaskUnits);
  const auto run = [&](int64_t task, Figures *figures) {
    const int64_t begin = task * kTaskUnits;
    figures->look(table, units, begin, std::min(begin + kTaskUnits, units.num_units), options, limits);
  };
  *found = Survey{};
  Chain chain = Chain::one();
  if (options.num_threads == 1 || num_tasks <= 1) {
    for (int64_t task = 0; task < num_tasks; ++task) {
      Figures figures;
      figures.chain = chain;
      run(task, &figures);
      chain = figures.chain;
      join(&found->statistics, figures.statistics);
    }
  } else {
    for (int64_t begin = 0; begin < num_tasks; begin += kWaveTasks) {
      std::vector<Figures> wave(std::min(kWaveTasks, num_tasks - begin));
      for_each_task(static_cast<int64_t>(wave.size()), options.num_threads,
                    [&](int64_t task, int) { run(begin + task, &wave[task]); });
      for (const Figures &figures : wave) {
        chain.join(figures.chain, figures.coefficients);
        join(&found->statistics, figures.statistics);
      }
    }
  }
  found->statistics.count = units.num_parts;
  if (options.digest) {
    for (const int64_t size : x.shape) chain.append(static_cast<uint64_t>(size));
    chain.append(x.shape.size());
    chain.append(static_cast<uint64_t>(x.element));
    chain.finish(&found->digest.low, &found->digest.high);
  }
  return true;
}

bool histogram(const TensorView &x, double low, double high, int64_t num_bins, int64_t *counts) {
  if (isa_in_use() < 0) return false;
  const SurveyTable &table = *kTables[isa_in_use()];
  const TensorView simple = simplified(x);
  const Units units(simple);
  // Four tallies: equal bins one after the other need not wait for each other. The last bin of each is for what has none.
  std::vector<int32_t> tally(4 * (num_bins + 1));
  int32_t *const tallies[4] = {&tally[0], &tally[num_bins + 1], &tally[2 * (num_bins + 1)], &tally[3 * (num_bins + 1)]};
  const auto settle = [&] {
    for (int64_t bin = 0; bin < num_bins; ++bin)
      for (const int32_t *one : tallies) counts[bin] += one[bin];
    std::fill(tally.begin(), tally.end(), 0);
  };
  int64_t since = 0;
  units.each(0, units.num_units, [&](const uint8_t *bytes, int64_t count) {
    int32_t bins[kUnitParts];
    table.bins(units.part, bytes, count, low, high, static_cast<int32_t>(num_bins), bins);
    int64_t i = 0;
    for (; i + 4 <= count; i += 4)
      for (int j = 0; j < 4; ++j) ++tallies[j][bins[i + j]];
    for (; i < count; ++i) ++tallies[0][bins[i]];
    if (++since == kUnitsPerTally) {
      settle();
      since = 0;
    }
  });
  settle();
  return true;
}

}  // namespace tensure
