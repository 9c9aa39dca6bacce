// Activations on vectors of the instruction set being compiled.
#pragma once

#include "common/activation.h"
#include "common/vector-inl.h"

namespace {

using tensure::Activation;

// Comparisons are false for NaN: each is written so that NaN falls through to itself.
template <typename V> TENSURE_INLINE V clamp_low(V x) { return x < splat<V>(0.0f) ? splat<V>(0.0f) : x; }
template <typename V> TENSURE_INLINE V clamp_high(V x) { return x > splat<V>(6.0f) ? splat<V>(6.0f) : x; }

template <typename V> TENSURE_INLINE V silu(V x) { return x / (splat<V>(1.0f) + exp_vec(-x)); }
template <> TENSURE_INLINE float silu<float>(float x) { return silu<VecF>(splat<VecF>(x))[0]; }

template <typename V> TENSURE_INLINE V activate(V x, Activation activation) {
  switch (activation) {
    case Activation::none: return x;
    case Activation::relu: return clamp_low(x);
    case Activation::relu6: return clamp_high(clamp_low(x));
    case Activation::silu: return silu(x);
  }
  return x;
}

}  // namespace
