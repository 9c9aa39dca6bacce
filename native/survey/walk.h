// A tensor's elements in C order, wherever they lie. Knows bytes and strides only.
#pragma once

#include <cstdint>

#include "survey/survey.h"

namespace tensure {

// Copies runs of elements, one after the other, from where it stands.
class Walk {
 public:
  // At the element `start` of a simplified view, which must outlive this.
  Walk(const TensorView &simple, int64_t start);
  void take(int64_t num_elements, uint8_t *out);

 private:
  const TensorView &x_;
  const uint8_t *row_;           // where the row begins: all dims but the last
  std::vector<int64_t> at_;      // of each dim
};

}  // namespace tensure
