// Simplifying a view, and gathering from one. Compiled for the platform's baseline.
#include "survey/walk.h"

#include <algorithm>
#include <cstring>

namespace tensure {

TensorView simplified(const TensorView &x) {
  TensorView simple{x.data, x.element, {}, {}};
  simple.shape.reserve(x.shape.size());
  simple.strides.reserve(x.shape.size());
  for (size_t dim = 0; dim < x.shape.size(); ++dim) {
    if (x.shape[dim] == 1) continue;
    if (!simple.shape.empty() && simple.strides.back() == x.strides[dim] * x.shape[dim]) {
      simple.shape.back() *= x.shape[dim];
      simple.strides.back() = x.strides[dim];
    } else {
      simple.shape.push_back(x.shape[dim]);
      simple.strides.push_back(x.strides[dim]);
    }
  }
  return simple;
}

bool is_contiguous(const TensorView &simple) {
  return simple.shape.empty() || (simple.shape.size() == 1 && simple.strides[0] == element_bytes(simple.element));
}

Walk::Walk(const TensorView &simple, int64_t start) : x_(simple), row_(simple.data), at_(simple.shape.size()) {
  for (size_t dim = x_.shape.size(); dim-- > 0;) {
    at_[dim] = start % x_.shape[dim];
    start /= x_.shape[dim];
    if (dim + 1 < x_.shape.size()) row_ += at_[dim] * x_.strides[dim];
  }
}

template <int kBytes> static void copy_run(const uint8_t *from, int64_t stride, int64_t count, uint8_t *out) {
  if (stride == kBytes) {
    std::memcpy(out, from, count * kBytes);
    return;
  }
  for (int64_t i = 0; i < count; ++i) std::memcpy(out + i * kBytes, from + i * stride, kBytes);
}

void Walk::take(int64_t num_elements, uint8_t *out) {
  const int64_t bytes = element_bytes(x_.element);
  if (x_.shape.empty()) {
    std::memcpy(out, row_, num_elements * bytes);
    return;
  }
  const size_t last = x_.shape.size() - 1;
  const int64_t stride = x_.strides[last];
  while (num_elements > 0) {
    const int64_t run = std::min(num_elements, x_.shape[last] - at_[last]);
    const uint8_t *from = row_ + at_[last] * stride;
    switch (bytes) {
      case 1: copy_run<1>(from, stride, run, out); break;
      case 2: copy_run<2>(from, stride, run, out); break;
      case 4: copy_run<4>(from, stride, run, out); break;
      case 8: copy_run<8>(from, stride, run, out); break;
      default: copy_run<16>(from, stride, run, out); break;
    }
    out += run * bytes;
    num_elements -= run;
    at_[last] += run;
    for (size_t dim = last; at_[dim] == x_.shape[dim] && dim > 0;) {
      at_[dim] = 0;
      if (dim < last) row_ -= x_.shape[dim] * x_.strides[dim];
      --dim;
      ++at_[dim];
      row_ += x_.strides[dim];
    }
  }
}

}  // namespace tensure
