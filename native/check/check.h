// What the checks share: numbers from a fixed seed, memory between guards, a tally, and planted faults.
//
// The checks are a program of their own, for what Python's tests cannot reach: other processors, under an emulator, and
// builds that watch every access. They compare the families' stable faces with the plainest loops in double.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace tensure::check {

[[noreturn]] [[gnu::format(printf, 1, 2)]] inline void fail(const char *format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  std::fflush(stdout);
  std::exit(1);
}

// SplitMix64: the same numbers with every compiler and library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t bits() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  int64_t pick(int64_t low, int64_t high) { return low + static_cast<int64_t>(bits() % static_cast<uint64_t>(high - low + 1)); }
  bool chance(int64_t one_in) { return pick(1, one_in) == 1; }
  template <typename T, size_t N> T choose(const T (&options)[N]) { return options[pick(0, N - 1)]; }
  // In [-1, 1), or an integer of at most 15: sums of products of those are exact in float.
  float number(bool integer) {
    return integer ? static_cast<float>(pick(-15, 15)) : static_cast<float>(pick(-(1 << 23), (1 << 23) - 1)) * 0x1p-23f;
  }

 private:
  uint64_t state_;
};

// `count` elements between two guards. Guard bytes are 0xff: read as a float they are NaN, and overwritten they are missed.
// A sanitizer build may not even read them. `skip` elements put the memory off the alignment of 64.
template <typename T> class Guarded {
 public:
  Guarded(int64_t count, int64_t skip)
      : count_(count), bytes_(kGuard + (skip + count) * static_cast<int64_t>(sizeof(T)) + kGuard + 64), room_(new char[bytes_]) {
    std::memset(room_.get(), 0xff, bytes_);
    begin_ = room_.get() + kGuard;
    begin_ += -reinterpret_cast<uintptr_t>(begin_) % 64 + skip * sizeof(T);
    poison(true);
  }
  ~Guarded() { poison(false); }
  Guarded(const Guarded &) = delete;
  Guarded &operator=(const Guarded &) = delete;

  T *data() const { return reinterpret_cast<T *>(begin_); }
  T &operator[](int64_t i) const { return data()[i]; }
  int64_t count() const { return count_; }

  void expect_guards(const char *what) const {
    poison(false);
    for (const char *p = room_.get(); p < room_.get() + bytes_; ++p)
      if ((p < begin_ || p >= end()) && *p != '\xff') fail("%s: a byte %td from its begin was overwritten", what, p - begin_);
    poison(true);
  }
  // For a planted fault: overwrites the first byte behind the end.
  void damage() const {
    poison(false);
    *end() = 0;
    poison(true);
  }

 private:
  static constexpr int64_t kGuard = 256;

  char *end() const { return begin_ + count_ * sizeof(T); }
  void poison([[maybe_unused]] bool on) const {
#if defined(__SANITIZE_ADDRESS__)
    if (on) {
      __asan_poison_memory_region(room_.get(), begin_ - room_.get());
      __asan_poison_memory_region(end(), room_.get() + bytes_ - end());
    } else {
      __asan_unpoison_memory_region(room_.get(), bytes_);
    }
#endif
  }

  const int64_t count_, bytes_;
  const std::unique_ptr<char[]> room_;
  char *begin_;
};

// An IEEE half by its definition.
inline double half(const uint8_t *p) {
  const int bits = p[0] | p[1] << 8, exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double sign = bits >> 15 ? -1 : 1;
  if (exponent == 31) return fraction ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

// FNV-1a over the bits of floats.
inline void digest(uint64_t &hash, float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  for (int i = 0; i < 4; ++i) hash = (hash ^ (bits >> 8 * i & 255)) * 0x100000001b3u;
}

// A fault planted on purpose, which the checks must see: a weight in another place, a byte written behind an output, a float
// read behind an input (only a sanitizer sees that), an output of a step changed, a block changed, a weight
// of bytes off by one, all work given to one of two threads, a key of a decoder's cache or a weight of one of its layers changed,
// a bit of a digest.
enum class Plant { none, weight, guard, read, step, block, byte, share, key, layer, figure };

// Each draws `rounds` cases and returns how many results it compared.
int64_t check_conv(int rounds, Plant plant);
int64_t check_layouts(int rounds);
int64_t check_segments(int rounds, Plant plant);
int64_t check_dequantize(int rounds, Plant plant);
int64_t check_dotconv(int rounds, Plant plant);
int64_t check_blocks(int rounds, Plant plant);
int64_t check_decoder(int rounds, Plant plant);
int64_t check_survey(int rounds, Plant plant);

}  // namespace tensure::check
