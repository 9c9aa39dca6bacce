// Cuts a workspace into aligned pieces; with a null base it only adds up.
#pragma once

#include "common/integers.h"

namespace tensure {

class Carver {
 public:
  explicit Carver(void *base) : base_(static_cast<char *>(base)) {}
  template <typename T> T *take(int64_t count) {
    T *piece = base_ ? reinterpret_cast<T *>(base_ + used_) : nullptr;
    used_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
    return piece;
  }
  int64_t used() const { return used_; }

 private:
  char *base_;
  int64_t used_ = 0;
};

}  // namespace tensure
