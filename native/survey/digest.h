// What joins the hashes of chunks to one digest: a polynomial over the integers modulo 2^127 - 1. Knows no vectors, no tensors.
#pragma once

#include <cstdint>

#include "survey/table.h"

namespace tensure {

// The key of the chunks' hash, from a multiple of 64 on: kKeyBytes of public numbers, the same for ever.
const uint8_t *hash_key();

// c1 * r^(k-1) + c2 * r^(k-2) + ... + ck for a fixed public r. Runs of coefficients may be worked out apart and joined.
class Chain {
 public:
  Chain() = default;
  static Chain one() { return Chain(1); }
  void append(uint64_t coefficient);
  // As appending each, in about the time of one.
  void append_all(const uint64_t (&coefficients)[kPasses]);
  // As if the `count` coefficients of `next` (which began with none) had been appended.
  void join(const Chain &next, uint64_t count);
  // 128 bits, each depending on each: a bijection, so that what differs stays different.
  void finish(uint64_t *low, uint64_t *high) const;

 private:
  explicit Chain(unsigned __int128 value) : value_(value) {}
  unsigned __int128 value_ = 0;  // below 2^127 - 1
};

}  // namespace tensure
