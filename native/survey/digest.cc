// Key, polynomial and last mix of the digest. Compiled for the platform's baseline; integers only.
#include "survey/digest.h"

namespace tensure {
namespace {

typedef unsigned __int128 Wide;
constexpr Wide kPrime = (Wide{1} << 127) - 1;
constexpr int kKeyWords = kKeyBytes / 8;

// SplitMix64 from the first 64 bits of the fraction of pi: the key, then r, then the constants of the last mix.
struct Numbers {
  alignas(64) uint64_t key[kKeyWords];
  Wide r;
  uint64_t mix[4];

  constexpr Numbers() : key{}, r(0), mix{} {
    uint64_t state = 0x243f6a8885a308d3;
    for (uint64_t &word : key) word = next(state);
    r = next(state);
    r = (r | Wide{next(state)} << 64) & kPrime;
    for (uint64_t &word : mix) word = next(state);
  }
  static constexpr uint64_t next(uint64_t &state) {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
};
constexpr Numbers kNumbers;

constexpr Wide reduced(Wide value) {
  value = (value & kPrime) + (value >> 127);
  return value >= kPrime ? value - kPrime : value;
}

// 2^127 counts as 1, so that 2^128 counts as 2.
constexpr Wide product(Wide a, Wide b) {
  const uint64_t a0 = static_cast<uint64_t>(a), a1 = static_cast<uint64_t>(a >> 64);
  const uint64_t b0 = static_cast<uint64_t>(b), b1 = static_cast<uint64_t>(b >> 64);
  const Wide low = Wide{a0} * b0, middle = Wide{a0} * b1 + Wide{a1} * b0;  // halves above are below 2^63: no overflow
  Wide high = Wide{a1} * b1 + (middle >> 64);
  const Wide sum = low + (middle << 64);
  high += sum < low;
  return reduced(reduced(sum) + reduced(high << 1));  // high is below 2^126 + 2^64
}

constexpr uint64_t scrambled(uint64_t z) {
  z = (z ^ z >> 32) * 0xd6e8feb86659fd93;
  z = (z ^ z >> 32) * 0xd6e8feb86659fd93;
  return z ^ z >> 32;
}

}  // namespace

const uint8_t *hash_key() { return reinterpret_cast<const uint8_t *>(kNumbers.key); }

void Chain::append(uint64_t coefficient) { value_ = reduced(product(value_, kNumbers.r) + coefficient); }

void Chain::append_all(const uint64_t (&c)[kPasses]) {
  static_assert(kPasses == 4);
  static constexpr Wide r1 = kNumbers.r, r2 = product(r1, r1), r3 = product(r2, r1), r4 = product(r3, r1);
  const Wide upper = reduced(product(r3, c[0]) + product(r2, c[1])), lower = reduced(product(r1, c[2]) + c[3]);
  value_ = reduced(product(value_, r4) + reduced(upper + lower));
}

void Chain::join(const Chain &next, uint64_t count) {
  Wide factor = 1, square = kNumbers.r;
  for (; count; count >>= 1, square = product(square, square))
    if (count & 1) factor = product(factor, square);
  value_ = reduced(product(value_, factor) + next.value_);
}

void Chain::finish(uint64_t *low, uint64_t *high) const {
  uint64_t a = static_cast<uint64_t>(value_), b = static_cast<uint64_t>(value_ >> 64);
  for (int round = 0; round < 4; round += 2) {
    a ^= scrambled(b + kNumbers.mix[round]);
    b ^= scrambled(a + kNumbers.mix[round + 1]);
  }
  *low = a;
  *high = b;
}

}  // namespace tensure
