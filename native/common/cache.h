// Sizes of this processor's caches, in bytes, for choosing blocks. They change no result.
#pragma once

#include <unistd.h>

#include <cstdint>

namespace tensure {

// The second-level cache of one core; 1 MiB where the system does not say.
inline int64_t l2_bytes() {
  static const int64_t found = [] {
    const long size = sysconf(_SC_LEVEL2_CACHE_SIZE);
    return size > 0 ? static_cast<int64_t>(size) : int64_t{1} << 20;
  }();
  return found;
}

}  // namespace tensure
