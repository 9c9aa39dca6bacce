// Surveys of tensors with any strides: figures against sums in long double, digests against their definition in plain integers.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "check/check.h"
#include "survey/survey.h"

namespace tensure::check {
namespace {

// The digest as the docstring of _survey.py has it: one product at a time, reduced by adding and doubling.
class PlainDigest {
 public:
  PlainDigest() {
    Random numbers(0x243f6a8885a308d3);
    for (int i = 0; i < (4096 + 192) / 8; ++i) {
      const uint64_t word = numbers.bits();
      key_.push_back(static_cast<uint32_t>(word));
      key_.push_back(static_cast<uint32_t>(word >> 32));
    }
    r_ = numbers.bits();
    r_ = (r_ | static_cast<Wide>(numbers.bits()) << 64) & kPrime;
    for (uint64_t &word : mix_) word = numbers.bits();
  }

  Digest operator()(const std::vector<uint8_t> &bytes, const std::vector<int64_t> &shape, Element element) const {
    Wide h = 1;
    for (size_t begin = 0; begin < bytes.size(); begin += 4096) {
      std::vector<uint8_t> chunk(bytes.begin() + begin, bytes.begin() + std::min(begin + 4096, bytes.size()));
      chunk.resize((chunk.size() + 63) / 64 * 64);
      for (int pass = 0; pass < 4; ++pass) {
        uint64_t sum = 0;
        for (size_t i = 0; i < chunk.size() / 4; i += 2)
          sum += static_cast<uint64_t>(word(chunk, i) + key_[i + 16 * pass]) *
                 static_cast<uint32_t>(word(chunk, i + 1) + key_[i + 1 + 16 * pass]);
        append(h, sum);
      }
    }
    for (const int64_t size : shape) append(h, size);
    append(h, shape.size());
    append(h, static_cast<uint64_t>(element));
    uint64_t low = static_cast<uint64_t>(h), high = static_cast<uint64_t>(h >> 64);
    for (int step = 0; step < 4; step += 2) {
      low ^= scrambled(high + mix_[step]);
      high ^= scrambled(low + mix_[step + 1]);
    }
    return {low, high};
  }

 private:
  typedef unsigned __int128 Wide;
  static constexpr Wide kPrime = (static_cast<Wide>(1) << 127) - 1;

  static uint32_t word(const std::vector<uint8_t> &chunk, size_t i) {
    uint32_t value;
    std::memcpy(&value, &chunk[4 * i], 4);
    return value;
  }
  void append(Wide &h, uint64_t coefficient) const {
    Wide product = 0;
    for (int bit = 126; bit >= 0; --bit) {
      product = product * 2 % kPrime;
      if (r_ >> bit & 1) product = (product + h) % kPrime;
    }
    h = (product + coefficient) % kPrime;
  }
  static uint64_t scrambled(uint64_t z) {
    for (int i = 0; i < 2; ++i) z = (z ^ z >> 32) * 0xd6e8feb86659fd93;
    return z ^ z >> 32;
  }

  std::vector<uint32_t> key_;
  Wide r_ = 0;
  uint64_t mix_[4];
};

template <typename T> T read(const uint8_t *p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

double value_of(Element element, const uint8_t *p) {
  switch (element) {
    case Element::f32: case Element::c64: return read<float>(p);
    case Element::f64: case Element::c128: return read<double>(p);
    case Element::f16: return half(p);
    case Element::bf16: {
      const uint32_t bits = static_cast<uint32_t>(read<uint16_t>(p)) << 16;
      return read<float>(reinterpret_cast<const uint8_t *>(&bits));
    }
    case Element::i8: return read<int8_t>(p);
    case Element::i16: return read<int16_t>(p);
    case Element::i32: return read<int32_t>(p);
    case Element::i64: return static_cast<double>(read<int64_t>(p));
    case Element::u8: return read<uint8_t>(p);
    case Element::u16: return read<uint16_t>(p);
    case Element::u32: return read<uint32_t>(p);
    case Element::u64: return static_cast<double>(read<uint64_t>(p));
    case Element::boolean: return *p ? 1 : 0;
  }
  return 0;
}

double smallest_normal(Element element) {
  if (element == Element::f16) return 0x1p-14;
  return element == Element::f64 || element == Element::c128 ? 0x1p-1022 : 0x1p-126;
}

// A view of drawn bytes: dims permuted, some of them backwards or with gaps.
struct Drawn {
  Element element;
  std::vector<int64_t> shape, strides;
  int64_t first = 0, bytes = 0;  // where the first element begins, and of all

  Drawn(Random &random, Element which, bool large) : element(which), bytes(element_bytes(which)) {
    const int64_t dims = large ? 2 : random.pick(0, 4);
    for (int64_t i = 0; i < dims; ++i) shape.push_back(random.pick(random.chance(20) ? 0 : 1, dims == 1 ? 9000 : 12));
    if (large) shape = {random.pick(1, 100), 4096};  // several tasks of 64 units
    std::vector<int64_t> order(dims);
    std::iota(order.begin(), order.end(), 0);
    if (random.chance(2))
      for (int64_t i = dims - 1; i > 0; --i) std::swap(order[i], order[random.pick(0, i)]);
    strides.resize(dims);
    for (int64_t i = dims - 1; i >= 0; --i) {
      const int64_t dim = order[i], gap = random.chance(6) ? 2 : 1;
      strides[dim] = bytes * gap;
      bytes *= gap * std::max<int64_t>(shape[dim], 1);
      if (random.chance(6) && shape[dim]) {
        first += strides[dim] * (shape[dim] - 1);
        strides[dim] = -strides[dim];
      }
    }
  }
  std::vector<uint8_t> in_order(const uint8_t *data) const {
    const int64_t each = element_bytes(element);
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    std::vector<uint8_t> found;
    for (int64_t i = 0; i < count; ++i) {
      int64_t at = 0, rest = i;
      for (size_t dim = shape.size(); dim-- > 0; rest /= shape[dim]) at += rest % shape[dim] * strides[dim];
      found.insert(found.end(), data + at, data + at + each);
    }
    return found;
  }
};

void close(const char *what, double found, double wanted, double allowed) {
  if (!(std::abs(found - wanted) <= allowed)) fail("survey, %s: %.17g, wanted %.17g within %.3g", what, found, wanted, allowed);
}
void equal(const char *what, int64_t found, int64_t wanted) {
  if (found != wanted) fail("survey, %s: %lld, wanted %lld", what, static_cast<long long>(found), static_cast<long long>(wanted));
}

void compare(const Statistics &found, Element element, const std::vector<uint8_t> &bytes, double limit) {
  const int64_t each = element_bytes(element) / element_parts(element);
  Statistics wanted;
  long double sum = 0, magnitude = 0, squares = 0;
  std::vector<double> finite;
  for (size_t at = 0; at < bytes.size(); at += each, ++wanted.count) {
    const double value = value_of(element, &bytes[at]);
    const bool over = std::abs(value) > limit;
    wanted.nans += std::isnan(value);
    wanted.infinities += std::isinf(value);
    wanted.zeros += value == 0;
    wanted.denormals += value != 0 && std::abs(value) < smallest_normal(element);
    wanted.over_limit += over;
    if (over && wanted.first_over < 0) wanted.first_over = wanted.count;
    if (!std::isfinite(value) && wanted.first_nonfinite < 0) wanted.first_nonfinite = wanted.count;
    if (!std::isfinite(value)) continue;
    finite.push_back(value);
    sum += value;
    magnitude += std::abs(value);
    squares += static_cast<long double>(value) * value;
  }
  equal("parts", found.count, wanted.count);
  equal("finite", found.finite, static_cast<int64_t>(finite.size()));
  equal("NaNs", found.nans, wanted.nans);
  equal("infinities", found.infinities, wanted.infinities);
  equal("zeros", found.zeros, wanted.zeros);
  equal("subnormals", found.denormals, wanted.denormals);
  equal("over the limit", found.over_limit, wanted.over_limit);
  equal("first that is not finite", found.first_nonfinite, wanted.first_nonfinite);
  equal("first over the limit", found.first_over, wanted.first_over);
  if (finite.empty()) return;
  const long double mean = sum / finite.size();
  long double m2 = 0;
  for (const double value : finite) m2 += (value - mean) * (value - mean);
  close("minimum", found.minimum, *std::min_element(finite.begin(), finite.end()), 0);
  close("maximum", found.maximum, *std::max_element(finite.begin(), finite.end()), 0);
  // aarch64's long double is a quad and x86's has 64 bits; both are far finer than what is allowed.
  close("mean", found.mean, static_cast<double>(mean), static_cast<double>(1e-10L * magnitude / finite.size()));
  close("std", deviation(found), std::sqrt(static_cast<double>(m2) / finite.size()), 1e-9 * std::sqrt(static_cast<double>(m2)) + 1e-150);
  close("l2", l2(found), static_cast<double>(std::sqrt(squares)), 
        1e-9 * static_cast<double>(std::sqrt(squares)) + 1e-150);  // smaller squares are no double
}

}  // namespace

int64_t check_survey(int rounds, Plant plant) {
  Random random(19);
  const PlainDigest plain;
  uint64_t hash = 0xcbf29ce484222325u;
  for (int round = 0; round < rounds; ++round) {
    const Element element = static_cast<Element>(round % kNumElements);
    const Drawn drawn(random, element, round % 32 == 31);
    Guarded<uint8_t> data(drawn.bytes, random.pick(0, 63));
    for (int64_t i = 0; i < data.count(); ++i)
      data[i] = element == Element::boolean ? random.pick(0, 1) : static_cast<uint8_t>(random.bits());
    if (element == Element::f64 || element == Element::c128)  // squares stay below the largest double
      for (int64_t i = 7; i < data.count(); i += 8) {
        if (data[i] & 0x30) data[i] &= ~0x40;
        if (random.chance(50)) data[i] |= 0x7f, data[i - 1] |= 0xf0;  // infinity or NaN
      }
    const TensorView view{data.data() + drawn.first, element, drawn.shape, drawn.strides};
    const std::vector<uint8_t> bytes = drawn.in_order(view.data);
    SurveyOptions options;
    options.digest = true;
    options.limit = random.chance(3) ? random.pick(0, 100) : 1e30;
    Survey found, again;
    options.num_threads = 2;
    if (!survey(view, options, &again)) fail("a survey did not run");
    options.num_threads = 1;
    survey(view, options, &found);
    if (plant == Plant::figure) found.digest.low ^= 1;
    compare(found.statistics, element, bytes, options.limit);
    const Digest wanted = plain(bytes, drawn.shape, element);
    if (found.digest.low != wanted.low || found.digest.high != wanted.high) fail("survey, digest: round %d differs", round);
    if (std::memcmp(&found, &again, sizeof found)) fail("survey: two threads change bits");
    data.expect_guards("a surveyed tensor");
    for (const double figure : {found.statistics.mean, found.statistics.m2, found.statistics.minimum, found.statistics.maximum})
      for (int half = 0; half < 2; ++half) {
        float bits;
        std::memcpy(&bits, reinterpret_cast<const char *>(&figure) + 4 * half, 4);
        digest(hash, bits);
      }

    const int64_t bins = random.pick(1, 20);
    const double low = static_cast<double>(random.pick(-50, 0)), high = static_cast<double>(random.pick(1, 120));
    std::vector<int64_t> counts(bins), plain_counts(bins);
    histogram(view, low, high, bins, counts.data());
    const int64_t each = element_bytes(element) / element_parts(element);
    for (size_t at = 0; at < bytes.size(); at += each) {
      const double value = value_of(element, &bytes[at]);
      if (value >= low && value <= high)
        ++plain_counts[std::min(static_cast<int64_t>((value - low) * (static_cast<double>(bins) / (high - low))), bins - 1)];
    }
    if (counts != plain_counts) fail("survey, histogram: round %d differs", round);
  }
  std::printf("survey figures are %016llx\n", static_cast<unsigned long long>(hash));
  return rounds;
}

}  // namespace tensure::check
